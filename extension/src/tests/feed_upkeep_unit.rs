//! What may be dropped.

use super::*;

fn old() -> Old {
    Old { number: 3, last_tick: 1000, closed_s: 100.0, bytes: 50 }
}

/// 5000 changes in 300 bytes, 50 of which could go.
fn goes(limits: Limits) -> bool {
    may_go(&old(), &limits, 5000, 300)
}

#[test]
fn without_limits_everything_is_kept() {
    assert!(!goes(Limits::default()));
    assert!(goes(Limits { floor: 1001, ..Limits::default() }), "purged");
    assert!(!goes(Limits { floor: 1000, ..Limits::default() }), "its last tick is not purged");
}

#[test]
fn all_promises_are_kept() {
    assert!(goes(Limits { age_s: Some(100.0), ..Limits::default() }));
    assert!(!goes(Limits { age_s: Some(101.0), ..Limits::default() }));
    assert!(goes(Limits { rows: Some(4000), ..Limits::default() }));
    assert!(!goes(Limits { rows: Some(4001), ..Limits::default() }));
    assert!(goes(Limits { bytes: Some(250), ..Limits::default() }));
    assert!(!goes(Limits { bytes: Some(251), ..Limits::default() }));
    assert!(!goes(Limits { age_s: Some(10.0), rows: Some(4001), ..Limits::default() }), "both count");
}

#[test]
fn followers_hold_it_and_the_cap_does_not_ask_them() {
    let slow = |cap_bytes| Limits { rows: Some(10), slowest: Some(999), cap_bytes, ..Limits::default() };
    assert!(!goes(slow(None)));
    assert!(!goes(slow(Some(300))));
    assert!(goes(slow(Some(299))));
    assert!(
        goes(Limits { rows: Some(10), slowest: Some(1000), ..Limits::default() }),
        "it has read all of it"
    );
    assert!(goes(Limits { floor: 1001, slowest: Some(0), ..Limits::default() }), "a purge is an order");
}
