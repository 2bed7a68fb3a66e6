//! Versions of rows: what is kept at the commit, how keys are numbered, who may ask.

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

    fn set_up() {
        run("SELECT quorum.create_channel('versions_' || pg_backend_pid());
             CREATE TABLE t (name text, id int, v int, PRIMARY KEY (name, id));
             INSERT INTO t VALUES ('old', 1, 1);
             SELECT quorum.track('t', 'versions_' || pg_backend_pid());
             SELECT quorum.keep_versions('t')");
    }

    /// The same as in docs/row-versions.md, which the crate computes, too.
    #[pg_test]
    fn keys_have_the_numbers_that_are_written_down() {
        for (values, number) in [
            ("'1'", "86e1b5d0-cd65-e768-1ee2-85f08a12933f"),
            ("'42', 'DE'", "07095ce3-409f-4c11-c86a-b2eabf221808"),
            ("convert_to('Zürich', 'UTF8')", "cae562bc-2785-4af4-45a2-92541df3a376"),
            ("''", "df3f6198-04a9-2fdb-4057-192dc43dd748"),
        ] {
            let sql = format!("SELECT quorum.key_number(ARRAY[{values}]::bytea[])::text");
            assert_eq!(text(&sql).as_deref(), Some(number));
        }
    }

    #[pg_test]
    fn the_commit_keeps_the_last_change_of_each_row() {
        set_up();
        run("INSERT INTO t VALUES ('a', 1), ('b', 2), ('c', 3);
             UPDATE t SET v = 1 WHERE name = 'a'; DELETE FROM t WHERE name = 'b';
             UPDATE t SET name = 'd' WHERE name = 'c'; UPDATE t SET v = 2 WHERE name = 'd'");
        assert_eq!(
            text(
                "SELECT count(*)::text FROM quorum.row_version AS v JOIN quorum.versioned_table AS t
                         ON t.keeping = v.keeping WHERE t.relid = 't'::regclass"
            )
            .as_deref(),
            Some("0")
        );
        assert!(crate::capture::before_commit(), "there was something to write");
        let known = "SELECT string_agg(k.key || ' ' || v.deleted::text || coalesce(' ' || v.origin, ''), ', ' ORDER BY k.key)
                     FROM unnest('{a1,b2,c3,d3,old1}'::text[]) AS k(key),
                          quorum.row_version_of('t', jsonb_build_object('id', right(k.key, 1), 'name', rtrim(k.key, '123'))) AS v
                     WHERE v.committed_at > now() - interval '1 minute'";
        assert_eq!(text(known).as_deref(), Some("a1 false, b2 true, c3 true, d3 false"));
        let numbers =
            "SELECT count(*)::text FROM quorum.row_version WHERE key = quorum.key_number('{1,a}'::bytea[])";
        assert_eq!(text(numbers).as_deref(), Some("1"), "by the columns' names, id before name");
    }

    #[pg_test]
    fn readers_ask() {
        set_up();
        run("SET LOCAL ROLE quorum_reader");
        assert_eq!(
            text("SELECT quorum.who_wins('t', '{\"name\": \"old\", \"id\": 1}', '2001-01-01', 'x', 'y')")
                .as_deref(),
            Some("remote")
        );
        assert_eq!(
            text("SELECT count(*)::text FROM quorum.row_version_of('t', '{\"name\": \"old\", \"id\": 1}')")
                .as_deref(),
            Some("0")
        );
        assert_eq!(
            text("SELECT \"table\"::text FROM quorum.versioned_tables WHERE \"table\" = 't'").as_deref(),
            Some("t")
        );
    }

    #[pg_test(error = "permission denied for function keep_versions")]
    fn only_administrators_keep_versions() {
        set_up();
        run("SET LOCAL ROLE quorum_reader; SELECT quorum.keep_versions('t')");
    }

    #[pg_test(error = "no versions are kept of the rows of public.other")]
    fn where_nothing_is_kept_nothing_is_told() {
        run("SELECT quorum.create_channel('versions_' || pg_backend_pid()); CREATE TABLE other (id int PRIMARY KEY);
             SELECT quorum.track('other', 'versions_' || pg_backend_pid());
             SELECT quorum.who_wins('other', '{\"id\": 1}', '2001-01-01', 'x', 'y')");
    }
}
