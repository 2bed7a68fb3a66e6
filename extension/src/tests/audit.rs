//! What is said of tracked tables whose changes are not captured as they should be. Catalogs are changed by hand here: event
//! triggers would see anything else, and to switch those off would be felt by other tests.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).unwrap_or_else(|e| panic!("{sql}: {e}")).unwrap_or_default()
    }

    /// A table of this name, tracked in a channel that has its name, too.
    fn track(table: &str, definition: &str) {
        run(&format!(
            "SELECT quorum.create_channel('{table}'); CREATE TABLE {table} {definition};
             SELECT quorum.track('{table}', '{table}')"
        ));
    }

    /// What is said up to the advice.
    fn fault(table: &str) -> String {
        text(&format!(
            "SELECT split_part(fault, ': changes may be missing', 1) FROM quorum.tracked_tables WHERE \"table\" = '{table}'"
        ))
    }

    fn set_trigger(table: &str, name: &str, enabled: char) {
        run(&format!(
            "UPDATE pg_trigger SET tgenabled = '{enabled}' WHERE tgrelid = '{table}'::regclass AND tgname = '{name}'"
        ));
    }

    /// How many tables there is something to say of.
    fn audited() -> String {
        text("SELECT quorum.audit_capture()::text")
    }

    fn events() -> String {
        text("SELECT string_agg(kind || ' ' || (details ->> 'table'), ', ' ORDER BY index DESC) FROM quorum.event
              WHERE kind LIKE 'capture-fault%'")
    }

    #[pg_test]
    fn a_trigger_that_is_switched_off_is_found_and_said_once() {
        track("audited", "(id int PRIMARY KEY)");
        assert_eq!((fault("audited"), audited()), (String::new(), "0".to_owned()));
        for enabled in ['D', 'O', 'R'] {
            set_trigger("audited", "pgquorum_row", enabled);
            let expected = "its trigger pgquorum_row is switched off, or not on in all sessions";
            assert_eq!(fault("audited"), expected, "{enabled}");
        }
        assert_eq!((audited(), audited()), ("1".to_owned(), "0".to_owned()));
        set_trigger("audited", "pgquorum_row", 'A');
        assert_eq!((fault("audited"), audited()), (String::new(), "1".to_owned()));
        assert_eq!(audited(), "0");
        set_trigger("audited", "pgquorum_truncate", 'D');
        assert_eq!(audited(), "1");
        run("SELECT quorum.untrack('audited')");
        assert_eq!((audited(), audited()), ("1".to_owned(), "0".to_owned()));
        assert_eq!(
            events(),
            "capture-fault public.audited, capture-fault-gone public.audited, \
             capture-fault public.audited, capture-fault-gone public.audited"
        );
        let last = text("SELECT message FROM quorum.event ORDER BY index LIMIT 1");
        assert_eq!(last, "table public.audited of channel \"audited\" is not tracked any more");
    }

    #[pg_test]
    fn a_trigger_that_is_missing_or_changed_is_found_on_partitions_too() {
        track("audited_parts", "(id int PRIMARY KEY) PARTITION BY LIST (id)");
        run("CREATE TABLE audited_part PARTITION OF audited_parts FOR VALUES IN (1)");
        assert_eq!(fault("audited_parts"), "");
        run(
            "DELETE FROM pg_trigger WHERE tgrelid = 'audited_part'::regclass AND tgname = 'pgquorum_truncate'",
        );
        let missing = "its trigger pgquorum_truncate on the partition audited_part is missing";
        assert_eq!(fault("audited_parts"), missing);
        run("UPDATE pg_trigger SET tgtype = 5
             WHERE tgrelid = 'audited_parts'::regclass AND tgname = 'pgquorum_row'");
        assert_eq!(fault("audited_parts"), "its trigger pgquorum_row is not as quorum.track made it");
    }

    #[pg_test]
    fn an_event_trigger_that_is_switched_off_is_found_by_readers_too() {
        track("audited_blindly", "(id int PRIMARY KEY)");
        run("UPDATE pg_event_trigger SET evtenabled = 'O' WHERE evtname = 'pgquorum_drop';
             SET LOCAL ROLE quorum_reader");
        let expected = "event trigger pgquorum_drop is missing, switched off, or not on in all sessions";
        assert_eq!(fault("audited_blindly"), expected);
        let advice = text(
            "SELECT split_part(fault, 'To go on: ', 2) FROM quorum.tracked_tables WHERE \"table\" = 'audited_blindly'",
        );
        assert!(
            advice.starts_with(
                "ALTER EVENT TRIGGER pgquorum_drop ENABLE ALWAYS; SELECT quorum.stop_channel('audited_blindly'); and"
            ),
            "{advice}"
        );
        assert!(advice.contains("SELECT quorum.start_channel('audited_blindly'), which"), "{advice}");
    }
}
