//! Channels: made, dropped, and what their names may be.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    fn text(sql: &str) -> Option<String> {
        Spi::get_one::<String>(sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    #[pg_test]
    fn a_channel_comes_and_goes_with_its_log() {
        run("SELECT quorum.create_channel('shop', retain_age => '1 day', cap_bytes => 1000000)");
        let shown = "SELECT format('%s %s %s %s', name, old_image, retain_age, tables) FROM quorum.channels";
        assert_eq!(text(shown).as_deref(), Some("shop key 1 day 0"));
        let heaps = "SELECT string_agg(c.relname::text || ' ' || c.reltoastrelid, ',') FROM pg_class AS c
                     WHERE c.relnamespace = 'quorum_log'::regnamespace AND c.relname LIKE 'log%'";
        let id = text("SELECT quorum.channel_id('shop')::text").expect("it exists");
        assert_eq!(text(heaps), Some(format!("log_{id}_1 0")), "with a log and nothing beside it");
        let member =
            "SELECT count(*)::text FROM pg_depend AS d JOIN quorum.log_segment AS s ON s.heap = d.objid
                      WHERE d.deptype = 'e'";
        assert_eq!(text(member).as_deref(), Some("1"), "dumps leave the log out");
        run(&format!("SELECT quorum.open_segment({id})"));
        let segments = "SELECT string_agg(format('%s %s', number, closed_xid IS NULL), ',' ORDER BY number) FROM quorum.log_segment";
        assert_eq!(text(segments).as_deref(), Some("1 f,2 t"));
        run(
            "CREATE TABLE t (id int PRIMARY KEY); SELECT quorum.track('t', 'shop'); SELECT quorum.drop_channel('shop')",
        );
        assert_eq!(text(heaps), None);
        let triggers = "SELECT count(*)::text FROM pg_trigger WHERE tgrelid = 't'::regclass";
        assert_eq!(text(triggers).as_deref(), Some("0"));
    }

    #[pg_test(error = "channel \"twice\" exists")]
    fn names_are_taken_once() {
        run("SELECT quorum.create_channel('twice')");
        run("SELECT quorum.create_channel('twice')");
    }

    #[pg_test(
        error = "'1 shop' cannot be the name of a channel: it takes 1 to 63 letters, digits, \".\", \"_\" and \"-\", the first a letter or \"_\""
    )]
    fn names_are_plain() {
        run("SELECT quorum.create_channel('1 shop')");
    }

    #[pg_test(error = "old_image is none, key or full, not 'some'")]
    fn old_images_have_three_kinds() {
        run("SELECT quorum.create_channel('shop', old_image => 'some')");
    }

    #[pg_test(error = "what is to be retained cannot be negative, and cap_bytes must be above 0")]
    fn retention_is_not_negative() {
        run("SELECT quorum.create_channel('shop', retain_rows => -1)");
    }

    #[pg_test(error = "there is no channel nowhere")]
    fn what_is_not_there_cannot_be_dropped() {
        run("SELECT quorum.drop_channel('nowhere')");
    }
}
