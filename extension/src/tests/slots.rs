//! What writers of the log and the one who cuts it tell each other. Each test plays a database of its own, since others
//! run at the same time.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use crate::log::slots::{self, ANY_HEAP, Active, Written};
    use pgrx::prelude::*;

    /// A number that is no database's.
    fn database(test: u32) -> u32 {
        4_000_000_000 + test
    }

    #[pg_test]
    fn frontiers_are_kept_and_forgotten() {
        let database = database(1);
        assert_eq!(slots::frontier(database, 7), 0, "without one, the whole table");
        for heap in 1..=50 {
            slots::publish_frontier(database, heap, heap * 10);
        }
        slots::publish_frontier(database, 7, 71);
        for heap in (1..=50).filter(|heap| *heap != 7) {
            assert_eq!(slots::frontier(database, heap), heap * 10);
        }
        assert_eq!(slots::frontier(database, 7), 71);
        for heap in 1..=50 {
            slots::forget_heap(database, heap);
            assert_eq!(slots::frontier(database, heap), 0);
        }
        slots::publish_frontier(database, 7, 3);
        assert_eq!(slots::frontier(database, 7), 3, "a place is used again");
        slots::publish_frontier(database, 9, 4);
        let mut heaps = slots::heaps(database);
        heaps.sort_unstable();
        assert_eq!(heaps, [7, 9]);
        slots::forget_database(database);
        assert!(slots::heaps(database).is_empty(), "and goes with the database");
    }

    #[pg_test]
    fn writers_show_from_where_they_write() {
        let database = database(2);
        slots::publish_frontier(database, 5, 40);
        assert_eq!(slots::begin(99, database, 5), 40);
        assert_eq!(slots::begin(99, database, 6), 0);
        let one = Active { xid: 99, heap: 5, first_block: 40 };
        assert_eq!(slots::active(database), [one, Active { xid: 99, heap: 6, first_block: 0 }]);
        slots::publish_frontier(database, 5, 50);
        assert_eq!(slots::active(database)[0], one, "what it read when it began");
        slots::end();
        assert_eq!(slots::active(database), []);
        for heap in 10..30 {
            slots::publish_frontier(database, heap, heap);
            slots::begin(100, database, heap);
        }
        let any = slots::active(database).into_iter().find(|active| active.heap == ANY_HEAP);
        assert_eq!(
            any,
            Some(Active { xid: 100, heap: ANY_HEAP, first_block: 10 }),
            "too many to show one by one"
        );
        slots::end();
        (5..30).for_each(|heap| slots::forget_heap(database, heap));
    }

    #[pg_test]
    fn prepared_transactions_show_exactly_where_they_wrote() {
        let database = database(3);
        slots::begin(99, database, 5);
        let written = [
            Written { heap: 5, first_block: 3, last_block: 8 },
            Written { heap: 6, first_block: 0, last_block: 0 },
        ];
        slots::hand_over(99, database, &written);
        assert_eq!(slots::active(database), []);
        assert_eq!(slots::prepared(database), written.map(|part| (99, part)));
        slots::hand_over(100, database, &written[..1]);
        slots::forget_prepared(99);
        assert_eq!(slots::prepared(database), [(100, written[0])]);
        slots::forget_database(database);
        assert_eq!(slots::prepared(database), []);
        assert_eq!(slots::lost(), 0);
    }
}
