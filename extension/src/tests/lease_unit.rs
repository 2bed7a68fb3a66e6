//! The lease without a server.

use super::{HINT_BYTES_MAX, LeaderHint, Lease, LeaseState, RenewRefusal};

#[test]
fn a_fresh_lease_is_none() {
    let lease = Lease::default();
    assert!(!lease.is_valid(0));
    assert_eq!(lease.state(5), LeaseState::None);
}

#[test]
fn a_lease_ends_at_its_deadline_and_comes_back() {
    let lease = Lease::default();
    assert_eq!(lease.grant(3, 100), Ok(100));
    assert!(lease.is_valid(99));
    assert!(!lease.is_valid(100));
    assert_eq!(lease.state(130), LeaseState::Expired { epoch: 3, ended_ns: 100 });
    assert_eq!(lease.grant(3, 200), Ok(200));
    assert_eq!(lease.state(130), LeaseState::Valid { epoch: 3, deadline_ns: 200 });
}

#[test]
fn a_deadline_never_moves_backwards_within_an_epoch() {
    let lease = Lease::default();
    assert_eq!(lease.grant(3, 200), Ok(200));
    assert_eq!(lease.grant(3, 150), Ok(200));
    assert_eq!(lease.grant(4, 150), Ok(150), "a new epoch starts its own");
}

#[test]
fn older_and_revoked_epochs_are_refused() {
    let lease = Lease::default();
    assert_eq!(lease.grant(3, 200), Ok(200));
    assert_eq!(lease.grant(2, 300), Err(RenewRefusal::Older(3)));
    lease.revoke(3, 120);
    assert!(!lease.is_valid(121));
    assert_eq!(lease.state(130), LeaseState::Revoked { epoch: 3, ended_ns: 120 });
    assert_eq!(lease.grant(3, 300), Err(RenewRefusal::Revoked(3)));
    assert_eq!(lease.grant(4, 300), Ok(300));
    assert!(lease.is_valid(200));
}

#[test]
fn revoking_older_epochs_leaves_the_lease() {
    let lease = Lease::default();
    assert_eq!(lease.grant(5, 200), Ok(200));
    lease.revoke(4, 100);
    assert!(lease.is_valid(150));
    assert_eq!(lease.revoked_epoch(), 4);
}

#[test]
fn revoking_before_any_lease_bars_the_epoch() {
    let lease = Lease::default();
    lease.revoke(7, 100);
    assert_eq!(lease.state(110), LeaseState::None);
    assert_eq!(lease.check(7), Err(RenewRefusal::Revoked(7)));
    assert_eq!(lease.check(8), Ok(false));
}

#[test]
fn a_hint_is_cut_at_a_character_and_printable() {
    assert_eq!(LeaderHint::new(" node 2\nat a:1 ").text(), "node 2 at a:1");
    let long = LeaderHint::new(&"é".repeat(HINT_BYTES_MAX));
    assert_eq!(long.text(), "é".repeat(HINT_BYTES_MAX / 2));
    assert_eq!(LeaderHint::default().text(), "");
}
