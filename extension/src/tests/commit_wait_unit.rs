//! What a session does that is not allowed to stop waiting, as plain code.

use super::*;

const GRACE_NS: u64 = 500 * clock::NS_PER_MS;

fn ms(milliseconds: u64) -> u64 {
    milliseconds * clock::NS_PER_MS
}

fn steps(lease: LeaseState, ending: bool, at_ms: &[u64]) -> Vec<Step> {
    let mut hold = Hold::default();
    at_ms.iter().map(|at| hold.step(ms(*at), lease, GRACE_NS, ending)).collect()
}

#[test]
fn under_a_lease_it_waits_for_ever() {
    let lease = LeaseState::Valid { epoch: 3, deadline_ns: u64::MAX };
    assert_eq!(steps(lease, true, &[1, 1_000, 100_000]), [Step::Nothing; 3]);
}

#[test]
fn a_lease_that_ran_out_is_given_its_grace() {
    let lease = LeaseState::Expired { epoch: 3, ended_ns: ms(1_000) };
    let seen = steps(lease, true, &[1_001, 1_499, 1_500, 1_600, 3_999, 4_000, 4_100, 7_000]);
    use Step::{Nothing, SayUnknown, StopServer};
    assert_eq!(seen, [Nothing, Nothing, SayUnknown, Nothing, Nothing, StopServer, Nothing, StopServer]);
}

#[test]
fn after_a_revocation_the_standbys_have_a_moment() {
    let mut hold = Hold::default();
    // The sidecar repeats it, which moves its moment on.
    let mut step =
        |at: u64| hold.step(ms(at), LeaseState::Revoked { epoch: 3, ended_ns: ms(at) }, GRACE_NS, true);
    use Step::{Nothing, SayUnknown};
    assert_eq!([1_000, 1_200, 1_349, 1_350].map(&mut step), [Nothing, Nothing, Nothing, SayUnknown]);
    // A session that is made to look late says it at once.
    let lease = LeaseState::Revoked { epoch: 3, ended_ns: ms(1_000) };
    assert_eq!(steps(lease, true, &[1_300, 1_350]), [Nothing, SayUnknown]);
}

#[test]
fn a_session_that_was_only_cancelled_stops_no_server() {
    let lease = LeaseState::Revoked { epoch: 3, ended_ns: ms(1_000) };
    assert_eq!(
        steps(lease, false, &[1_000, 1_350, 60_000]),
        [Step::Nothing, Step::SayUnknown, Step::Nothing]
    );
}

#[test]
fn a_lease_that_comes_back_starts_the_count_anew() {
    let mut hold = Hold::default();
    let expired = |at| LeaseState::Expired { epoch: 3, ended_ns: ms(at) };
    let valid = LeaseState::Valid { epoch: 3, deadline_ns: u64::MAX };
    assert_eq!(hold.step(ms(1_400), expired(1_000), GRACE_NS, true), Step::Nothing);
    assert_eq!(hold.step(ms(1_450), valid, GRACE_NS, true), Step::Nothing);
    assert_eq!(hold.step(ms(2_400), expired(2_000), GRACE_NS, true), Step::Nothing);
    assert_eq!(hold.step(ms(2_500), expired(2_000), GRACE_NS, true), Step::SayUnknown);
}
