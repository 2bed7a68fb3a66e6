//! The learner's shared memory. Each test plays a database of its own, since others run at the same time.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use crate::pg::guard::guarded;
    use crate::pg::worker;
    use crate::statements::changed::Changed;
    use crate::statements::entry::Known;
    use crate::statements::ring::{self, Seen, Statement};
    use crate::statements::shared;
    use crate::statements::table::{self, Counts, Found, Judged, Key, New, Place};
    use pgrx::prelude::*;

    /// A number that is no database's.
    fn database(test: u32) -> u32 {
        4_100_000_000 + test
    }

    fn key<'a>(database: u32, hash: u64, path: &'a [u8], kept: &'a [u8]) -> Key<'a> {
        Key {
            database,
            hash,
            check: hash + 1,
            length: kept.len() as u64,
            path: path.len() as u64,
            path_text: path,
            kept,
        }
    }

    fn insert(key: &Key) -> Option<Place> {
        table::insert(key, &New { words: 0, now_us: 1, judged: None }).map(|inserted| inserted.place)
    }

    fn judged(known: Known, depends: &[u32]) -> Judged<'_> {
        Judged { known, depends, on_all: false, seen: Seen::Generation(ring::generation()) }
    }

    fn known(place: Place) -> Option<Known> {
        place.entry().map(|entry| entry.known())
    }

    /// Statements have this hash from now on in this session; NULL: their own.
    #[pg_extern]
    fn force_statement_hash(hash: Option<i64>) {
        crate::statements::identity::FORCED.set(hash.map(i64::cast_unsigned));
    }

    /// Asked for by tests that need the server, but not from inside.
    #[pg_test]
    fn the_server_is_there() {}

    #[pg_test]
    fn statements_are_told_apart() {
        let database = database(1);
        let one = key(database, 5, b"public", b"select $");
        assert!(matches!(table::find(&one), Found::Absent));
        let place = insert(&one).expect("there is room");
        assert!(matches!(table::find(&one), Found::Entry(found) if found == place));
        assert_eq!(insert(&one), Some(place), "it is there once");
        let other_path = insert(&key(database, 5, b"", b"select $")).expect("there is room");
        assert_ne!(place, other_path);
        assert!(table::count(place, Counts { calls: 3, clean: 2, era: 0 }, 10));
        assert!(matches!(table::find(&key(database, 5, b"public", b"select x")), Found::Collides));
        assert_eq!(insert(&key(database, 5, b"public", b"select x")), None);
        for place in [place, other_path] {
            assert!(place.entry().is_some_and(|entry| entry.is_negative()));
        }
        table::forget(database, None);
        assert!(place.entry().is_none());
        assert!(!table::count(place, Counts::default(), 10));
        assert!(matches!(table::find(&one), Found::Absent));
    }

    #[pg_test]
    fn verdicts_get_worse_until_something_changes() {
        let database = database(2);
        let place = insert(&key(database, 7, b"", b"select f ( )")).expect("there is room");
        assert!(table::judge(place, &judged(Known::Proven, &[20_000]), ""));
        assert_eq!(known(place), Some(Known::Proven));
        assert!(table::judge(place, &judged(Known::Unproven, &[20_001]), "no"));
        assert!(table::judge(place, &judged(Known::Proven, &[20_000]), ""));
        assert_eq!(known(place), Some(Known::Unproven));
        let mut changed = Changed::default();
        changed.add_object(20_001);
        let mut alone = shared::exclusive();
        let element =
            ring::open(&mut alone, database, &changed, 100, worker::own_pid()).expect("there is a ring");
        table::set_back(database, &alone, |entry, _| entry.depends().any(|oid| oid == 20_001));
        drop(alone);
        assert_eq!(known(place), Some(Known::Nothing));
        let early = judged(Known::Proven, &[20_001]);
        assert!(!table::judge(place, &early, ""), "its notices are not sent yet");
        ring::close(element, worker::own_pid());
        assert!(!table::judge(place, &early, ""), "it was planned before");
        assert!(table::judge(place, &judged(Known::Proven, &[20_001]), ""));
        assert!(table::writes(place, "it wrote").is_some_and(|written| written.was_proven));
        assert!(table::writes(place, "it wrote").is_none(), "it is said once");
        let alone = shared::exclusive();
        table::set_back(database, &alone, |_, _| true);
        drop(alone);
        assert!(place.entry().is_some_and(|entry| entry.is_negative()), "until it is forgotten");
        table::forget(database, Some(7));
    }

    #[pg_test]
    fn many_dependencies_are_everything() {
        let database = database(3);
        let place = insert(&key(database, 7, b"", b"select 1")).expect("there is room");
        let oids: Vec<u32> = (20_000..20_010).collect();
        assert!(table::judge(place, &judged(Known::Proven, &oids), ""));
        let entry = place.entry().expect("it is there");
        assert!(entry.depends_on(&[20_003, 20_009], false) && !entry.depends_on(&[1], false));
        let more: Vec<u32> = (20_005..20_030).collect();
        assert!(table::judge(place, &judged(Known::Proven, &more), ""));
        assert!(entry.depends_on(&[1], false));
        table::forget(database, None);
    }

    #[pg_test]
    fn the_ring_knows_what_it_has_forgotten() {
        let database = database(4);
        let statement = Statement { database, depends: &[30_000], on_all: false, words: 0b0110 };
        let start = Seen::Generation(ring::generation());
        let tell = |change: &dyn Fn(&mut Changed)| {
            let mut changed = Changed::default();
            change(&mut changed);
            let mut alone = shared::exclusive();
            let element = ring::open(&mut alone, database, &changed, 1000, worker::own_pid());
            drop(alone);
            ring::close(element.expect("there is a ring"), worker::own_pid());
        };
        tell(&|changed| changed.add_object(30_001));
        assert!(!ring::has_changed(start, &statement));
        assert!(ring::has_changed(start, &Statement { on_all: true, ..statement }));
        tell(&|changed| changed.add_object(30_000));
        assert!(ring::has_changed(start, &statement));
        let now = Seen::Generation(ring::generation());
        assert!(!ring::has_changed(now, &statement));
        tell(&|changed| (0..100).for_each(|oid| changed.add_object(oid)));
        assert!(ring::has_changed(now, &statement), "too many for one place: any");
        let other = Statement { database: database + 1, depends: &[30_000], on_all: false, words: 0 };
        assert!(!ring::has_changed(now, &other), "of another database");
        for _ in 0..300 {
            tell(&|changed| changed.add_object(30_001));
        }
        assert!(ring::has_changed(now, &other), "the ring has turned");
        assert!(ring::has_changed_since(999, &statement, 1_000_000), "before this server's time");
    }

    #[pg_test]
    fn places_are_found_for_new_statements() {
        let database = database(5);
        let most = crate::statements::settings::most();
        let often = insert(&key(database, 1, b"", b"often")).expect("there is room");
        for number in 0..3 * most as u64 {
            let text = number.to_string();
            let place = insert(&key(database, 1000 + number, b"", text.as_bytes()));
            assert!(place.is_some(), "{number}");
            if number % 50 == 0 {
                assert!(table::count(often, Counts { calls: 64, clean: 0, era: 0 }, 1), "{number}");
            }
        }
        let _kept = shared::share();
        assert!(table::of_database(database).count() <= most);
        drop(_kept);
        table::forget(database, None);
    }

    #[pg_test]
    fn a_mistake_in_the_learner_ends_it_and_nothing_else() {
        assert_eq!(guarded(1, || panic!("on purpose")), 1);
        assert!(crate::statements::is_broken());
        assert_eq!(Spi::get_one::<i32>("SELECT 7"), Ok(Some(7)));
    }

    #[pg_test(error = "division by zero")]
    fn errors_of_postgresql_pass() {
        guarded((), || {
            let _ = Spi::get_one::<i32>("SELECT 1 / 0");
        });
    }
}
