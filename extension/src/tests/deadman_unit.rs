//! The dead-man's decision without a server. Times in nanoseconds; the grace is 500 ms.

use super::{CHECK_INTERVAL, DeadMan, LEASED_INTERVAL_MAX, STOP_AGAIN_NS, Step, pause};
use crate::pg::clock::NS_PER_MS;
use crate::shmem::LeaseState;

const GRACE: u64 = 500 * NS_PER_MS;
const END: u64 = 10_000 * NS_PER_MS;
const EXPIRED: LeaseState = LeaseState::Expired { epoch: 1, ended_ns: END };
const REVOKED: LeaseState = LeaseState::Revoked { epoch: 1, ended_ns: END };
const VALID: LeaseState = LeaseState::Valid { epoch: 1, deadline_ns: END };

fn after(milliseconds: u64) -> u64 {
    END + milliseconds * NS_PER_MS
}

#[test]
fn sessions_go_after_one_grace_and_the_server_after_two() {
    let mut deadman = DeadMan::default();
    assert_eq!(deadman.step(after(500), EXPIRED, GRACE), Step::Nothing);
    assert_eq!(deadman.step(after(501), EXPIRED, GRACE), Step::EndSessions);
    assert_eq!(deadman.step(after(1_000), EXPIRED, GRACE), Step::Nothing);
    assert_eq!(deadman.step(after(1_002), EXPIRED, GRACE), Step::StopServer);
    assert_eq!(deadman.step(after(1_100), EXPIRED, GRACE), Step::Nothing);
    assert_eq!(deadman.step(after(1_002) + STOP_AGAIN_NS, EXPIRED, GRACE), Step::StopServer);
}

#[test]
fn a_renewal_calls_it_off() {
    let mut deadman = DeadMan::default();
    assert_eq!(deadman.step(after(600), EXPIRED, GRACE), Step::EndSessions);
    assert_eq!(deadman.step(after(700), VALID, GRACE), Step::Nothing);
    assert_eq!(deadman.step(after(5_000), EXPIRED, GRACE), Step::EndSessions, "a new incident");
}

#[test]
fn without_an_epoch_nothing_happens() {
    assert_eq!(DeadMan::default().step(u64::MAX, LeaseState::None, GRACE), Step::Nothing);
}

#[test]
fn a_revocation_gives_ten_seconds() {
    let mut deadman = DeadMan::default();
    assert_eq!(deadman.step(after(299), REVOKED, GRACE), Step::Nothing);
    assert_eq!(deadman.step(after(300), REVOKED, GRACE), Step::EndWaiting);
    assert_eq!(deadman.step(after(400), REVOKED, GRACE), Step::Nothing);
    assert_eq!(deadman.step(after(10_000), REVOKED, GRACE), Step::Nothing);
    assert_eq!(deadman.step(after(10_001), REVOKED, GRACE), Step::EndSessions);
    assert_eq!(deadman.step(after(20_000), REVOKED, GRACE), Step::Nothing);
    assert_eq!(deadman.step(after(20_002), REVOKED, GRACE), Step::StopServer);
}

#[test]
fn after_a_pause_of_the_machine_the_sidecar_gets_one_grace() {
    let mut deadman = DeadMan::default();
    assert_eq!(deadman.step(after(60_000), EXPIRED, GRACE), Step::EndSessions);
    assert_eq!(deadman.step(after(60_500), EXPIRED, GRACE), Step::Nothing);
    assert_eq!(deadman.step(after(60_501), EXPIRED, GRACE), Step::StopServer);
}

#[test]
fn a_repeated_revocation_ends_the_waiting_once() {
    let mut deadman = DeadMan::default();
    let mut step =
        |at: u64| deadman.step(after(at), LeaseState::Revoked { epoch: 1, ended_ns: after(at) }, GRACE);
    assert_eq!(
        [0, 150, 300, 450].map(&mut step),
        [Step::Nothing, Step::Nothing, Step::EndWaiting, Step::Nothing]
    );
}

#[test]
fn a_lease_is_left_alone_until_its_end_and_an_incident_is_not() {
    let left = pause(END - 400 * NS_PER_MS, VALID);
    assert!(u128::from(400 * NS_PER_MS) < left.as_nanos() && left.as_millis() <= 402, "{left:?}");
    assert!(pause(END - 1, VALID).as_millis() >= 1, "it is over when the worker looks");
    assert_eq!(pause(END - 9_000 * NS_PER_MS, VALID), LEASED_INTERVAL_MAX);
    for state in [EXPIRED, REVOKED, LeaseState::None] {
        assert_eq!(pause(after(10), state), CHECK_INTERVAL);
    }
}
