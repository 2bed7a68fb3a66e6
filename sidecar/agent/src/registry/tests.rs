use super::leases::{Leases, lasts};
use super::*;

const LEASE: Millis = 60_000;

fn server(name: &str) -> Registration {
    Registration {
        server: name.to_owned(),
        public_url: "https://shop.example.org".to_owned(),
        cluster_url: format!("http://{name}:8080"),
        location: Value::Null,
    }
}

fn register(kind: &str, server: Registration, at: Millis) -> RegistryChange {
    RegistryChange::Register { kind: kind.to_owned(), service: format!("id of {kind}"), server, at }
}

fn remove(name: &str, not_after: Option<Millis>) -> RegistryChange {
    RegistryChange::Remove { service: "id of shop".to_owned(), server: name.to_owned(), not_after, at: 5000 }
}

fn names(registry: &Registry) -> Vec<&str> {
    registry.of_type("shop").map_or_else(Vec::new, |shop| shop.servers.keys().map(String::as_str).collect())
}

/// With `a` and `b`, registered at 1000 and 2000.
fn two() -> Registry {
    let mut registry = Registry::default();
    let both = [register("shop", server("a"), 1000), register("shop", server("b"), 2000)];
    assert_eq!(registry.apply(1, &both), [RegistryOutcome::Done, RegistryOutcome::Done]);
    registry
}

#[test]
fn servers_come_and_go_and_each_change_is_seen() {
    let mut registry = two();
    assert_eq!((names(&registry), registry.len()), (vec!["a", "b"], 2));
    let shop = registry.of_type("shop").unwrap();
    assert_eq!((shop.id.as_str(), shop.changed_at, shop.updated), ("id of shop", 1, 2000));
    assert_eq!(registry.by_id("id of shop").unwrap().0, "shop");
    // It registers again, from another address.
    let moved = Registration { cluster_url: "http://c:1".to_owned(), ..server("a") };
    registry.apply(2, &[register("shop", moved.clone(), 3000)]);
    let a = &registry.of_type("shop").unwrap().servers["a"];
    assert_eq!((&a.registration, a.created, a.updated), (&moved, 1000, 3000));
    assert_eq!(registry.apply(3, &[remove("a", None)]), [RegistryOutcome::Done]);
    assert_eq!(registry.apply(4, &[remove("a", None)]), [RegistryOutcome::Known], "it is gone already");
    registry.apply(5, &[remove("b", None)]);
    assert!(registry.of_type("shop").is_none(), "a type without servers is none");
    assert_eq!(registry.apply(6, &[remove("b", None)]), [RegistryOutcome::NoService]);
    assert_eq!((registry.len(), registry.bytes, registry.updated()), (0, 0, 5000));
}

#[test]
fn what_came_later_looks_later_whatever_the_clocks_say() {
    let mut registry = two();
    registry.apply(2, &[register("shop", server("b"), 500)]);
    assert_eq!(registry.of_type("shop").unwrap().servers["b"].updated, 2001);
}

#[test]
fn a_server_that_registered_since_is_not_removed() {
    let mut registry = two();
    let newer =
        RegistryOutcome::Newer { server: Server { registration: server("b"), created: 2000, updated: 2000 } };
    assert_eq!(registry.apply(2, &[remove("b", Some(1999))]), [newer]);
    assert_eq!(registry.apply(3, &[remove("b", Some(2000))]), [RegistryOutcome::Done]);
    assert_eq!(names(&registry), ["a"]);
}

#[test]
fn what_others_know_is_added_and_does_not_put_back_what_is_newer() {
    let merge = |service: &str, server, updated| RegistryChange::Merge {
        service: service.to_owned(),
        server,
        updated,
    };
    let mut registry = two();
    let old = Registration { public_url: "http://old".to_owned(), ..server("b") };
    assert_eq!(registry.apply(2, &[merge("id of shop", old.clone(), 2000)]), [RegistryOutcome::Known]);
    assert_eq!(registry.apply(3, &[merge("id of shop", old, 2001)]), [RegistryOutcome::Done]);
    assert_eq!(registry.apply(4, &[merge("id of shop", server("c"), 100)]), [RegistryOutcome::Done]);
    assert_eq!(names(&registry), ["a", "b", "c"]);
    assert_eq!(registry.apply(5, &[merge("another", server("d"), 9000)]), [RegistryOutcome::NoService]);
}

#[test]
fn there_is_an_end_to_servers_types_and_texts() {
    let mut registry = Registry::default();
    for i in 0..TYPES_MAX {
        registry.apply(1, &[register(&format!("t{i}"), server("a"), 1)]);
    }
    let full = |outcome: &[RegistryOutcome]| matches!(outcome, [RegistryOutcome::Full { .. }]);
    assert!(full(&registry.apply(2, &[register("one more", server("a"), 1)])));
    for i in 0..SERVERS_MAX - TYPES_MAX {
        assert!(!full(&registry.apply(3, &[register("t0", server(&format!("s{i}")), 1)])));
    }
    assert!(full(&registry.apply(4, &[register("t0", server("one more"), 1)])));
    assert!(!full(&registry.apply(5, &[register("t0", server("s7"), 2)])), "it is there already");
    assert_eq!(registry.len(), SERVERS_MAX);

    let long =
        |i: usize| Registration { location: Value::String("x".repeat(1 << 20)), ..server(&format!("s{i}")) };
    let mut registry = Registry::default();
    let outcomes: Vec<bool> =
        (0..17).map(|i| full(&registry.apply(6, &[register("t", long(i), 1)]))).collect();
    assert_eq!(outcomes.iter().filter(|full| **full).count(), 2, "{outcomes:?}");
    assert!(registry.bytes <= BYTES_MAX);
    let mut empty = Registry::default();
    let huge = Registration { location: Value::String("x".repeat(BYTES_MAX)), ..server("a") };
    assert!(full(&empty.apply(7, &[register("t", huge, 1)])) && empty.by_type.is_empty());
}

#[test]
fn a_state_is_read_as_it_was_written() {
    let mut registry = two();
    let there = Registration { location: serde_json::json!({"zone": "eu"}), ..server("c") };
    registry.apply(2, &[register("other", there, 3000)]);
    let text = serde_json::to_string(&registry).unwrap();
    assert_eq!(serde_json::from_str::<Registry>(&text).unwrap(), registry);
    for change in [register("shop", server("a"), 1), remove("a", None), remove("a", Some(7))] {
        let entry = crate::entry::Entry::Registry { batch: u64::MAX, changes: vec![change] };
        assert_eq!(crate::entry::Entry::decode(&entry.encode()).unwrap(), entry);
    }
}

#[test]
fn copies_share_what_does_not_change() {
    let mut registry = two();
    registry.apply(2, &[register("other", server("c"), 3000)]);
    let copy = registry.clone();
    registry.apply(3, &[register("shop", server("d"), 4000)]);
    assert_eq!(names(&copy), ["a", "b"], "the copy is as it was");
    let same = |kind: &str, name: &str| {
        let at = |registry: &Registry| std::ptr::from_ref::<Server>(&registry.by_type[kind].servers[name]);
        at(&copy) == at(&registry)
    };
    assert!(same("other", "c") && same("shop", "a"));
}

fn swept(leases: &mut Leases, registry: &Registry, now: Millis) -> Vec<String> {
    leases.sweep(registry, now, LEASE, 3000, 100).into_iter().map(|(_, over)| over.server).collect()
}

#[test]
fn a_lease_ends_when_it_was_not_renewed_and_not_before() {
    let (registry, mut leases) = (two(), Leases::default());
    leases.lead(7);
    assert!(swept(&mut leases, &registry, 0).is_empty(), "everybody begins with a whole one");
    let end = lasts(LEASE);
    assert!(end > 2 * LEASE, "whoever renews each time that it says may miss one");
    for now in (3000..end).step_by(3000) {
        assert!(swept(&mut leases, &registry, now).is_empty(), "{now}");
        if now <= LEASE {
            assert!(leases.renew("shop", "a", now, LEASE));
        }
    }
    assert_eq!(swept(&mut leases, &registry, end), ["b"]);
    assert!(swept(&mut leases, &registry, end + 1).is_empty(), "that is on its way");
    assert!(!leases.renew("shop", "b", end, LEASE), "it must say again to all that it is there");
    leases.registered("shop", "b", end, LEASE);
    for now in (end + 2000..end + LEASE).step_by(3000) {
        assert!(swept(&mut leases, &registry, now).is_empty(), "{now}");
    }
    assert_eq!(swept(&mut leases, &registry, end + LEASE), ["a"]);
    // The removal did not come about.
    leases.still_there("shop", "a", end + LEASE + 100);
    assert_eq!(swept(&mut leases, &registry, end + LEASE + 200), ["a"]);
}

#[test]
fn whoever_begins_to_lead_gives_everybody_a_whole_lease() {
    let (registry, mut leases) = (two(), Leases::default());
    let end = lasts(LEASE);
    leases.lead(7);
    swept(&mut leases, &registry, 0);
    leases.lead(8);
    assert!(swept(&mut leases, &registry, end + 5).is_empty());
    leases.lead(8);
    for now in (end + 5..2 * end + 5).step_by(3000) {
        assert!(swept(&mut leases, &registry, now).is_empty());
    }
    assert_eq!(swept(&mut leases, &registry, 2 * end + 5), ["a", "b"]);
}

#[test]
fn who_stood_still_holds_it_against_nobody() {
    let (registry, mut leases) = (two(), Leases::default());
    leases.lead(7);
    swept(&mut leases, &registry, 0);
    // The process was frozen for an hour, and the servers' renewals wait to be read.
    assert!(swept(&mut leases, &registry, 3_600_000).is_empty());
    assert!(leases.renew("shop", "a", 3_600_010, LEASE));
    for now in (3_603_000..3_600_000 + lasts(LEASE)).step_by(3000) {
        let over = swept(&mut leases, &registry, now);
        assert!(!over.contains(&"a".to_owned()), "{now}");
    }
}

#[test]
fn a_shorter_lease_holds_at_once_and_a_sweep_has_an_end() {
    let (mut registry, mut leases) = (two(), Leases::default());
    leases.lead(7);
    swept(&mut leases, &registry, 0);
    assert!(leases.sweep(&registry, 100, 1000, 3000, 100).is_empty());
    assert_eq!(leases.sweep(&registry, 100 + lasts(1000), 1000, 3000, 1).len(), 1);
    assert_eq!(leases.sweep(&registry, 101 + lasts(1000), 1000, 3000, 1).len(), 1);
    // What is not registered any more has no lease.
    registry.apply(2, &[remove("a", None), remove("b", None)]);
    leases.sweep(&registry, 5000, 1000, 3000, 100);
    assert!(leases.renew("shop", "a", 5000, 1000), "nothing of it is left");
}

#[test]
fn nobody_to_look_after_is_no_delay() {
    let (registry, mut leases) = (two(), Leases::default());
    leases.lead(7);
    swept(&mut leases, &registry, 0);
    leases.rest();
    leases.registered("shop", "a", 3_600_000, LEASE);
    swept(&mut leases, &registry, 3_600_010);
    for now in (3_600_010..3_600_000 + lasts(LEASE)).step_by(3000) {
        assert!(swept(&mut leases, &registry, now).is_empty());
    }
    assert_eq!(swept(&mut leases, &registry, 3_600_005 + lasts(LEASE)), ["a"]);
}
