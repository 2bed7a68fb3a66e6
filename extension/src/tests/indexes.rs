//! Which indexes of tracked tables the log of channel `_logger` tells of. What it says of them, and when, is seen from outside
//! (`capture_indexes`).

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).expect("query runs").expect("query returns a value")
    }

    /// Those that were told of and not taken back, in the order in which they were.
    fn told() -> String {
        text(
            "SELECT coalesce(string_agg(format('%s%s%s', CASE WHEN (k.described ->> 'unique')::boolean THEN 'unique ' END,
                                               k.described ->> 'method', k.described ->> 'fields'), ' ' ORDER BY k.id), '')
             FROM quorum.tracked_index AS k",
        )
    }

    /// The id of the one over these columns.
    fn id(fields: &str) -> String {
        text(&format!(
            "SELECT k.id::text FROM quorum.tracked_index AS k WHERE k.described ->> 'fields' = '{fields}'"
        ))
    }

    /// A table `idx` that is tracked.
    fn set_up() {
        run("SELECT quorum.create_channel('_logger');
             CREATE TABLE idx (id int PRIMARY KEY, a int, b text, c text, d text GENERATED ALWAYS AS (upper(b)) STORED);
             CREATE INDEX idx_a ON idx (a); SELECT quorum.track('idx', '_logger')");
        assert_eq!(told(), r#"btree["a"]"#);
    }

    #[pg_test]
    fn those_that_an_inventory_lists_are_told_of() {
        set_up();
        run(
            "CREATE UNIQUE INDEX ON idx (b, a) INCLUDE (c); CREATE INDEX ON idx USING hash (b); ALTER TABLE idx ADD UNIQUE (c)",
        );
        let all = r#"btree["a"] unique btree["b", "a"] hash["b"] unique btree["c"]"#;
        assert_eq!(told(), all);
        run("CREATE INDEX ON idx (lower(b)); CREATE INDEX ON idx (b) WHERE a > 1; CREATE INDEX ON idx USING brin (a);
             CREATE INDEX ON idx (d)");
        assert_eq!(told(), all, "expressions, parts of the rows, other methods, what is not captured");
        run("ALTER TABLE idx DROP CONSTRAINT idx_c_key; DROP INDEX idx_b_idx, idx_a");
        assert_eq!(told(), r#"unique btree["b", "a"]"#);
        // It is the key's own now.
        run("ALTER TABLE idx ALTER b SET NOT NULL, ALTER a SET NOT NULL; CREATE UNIQUE INDEX idx_key ON idx (a, b);
             ALTER TABLE idx DROP CONSTRAINT idx_pkey, ADD PRIMARY KEY USING INDEX idx_key");
        assert_eq!(told(), r#"unique btree["b", "a"]"#);
        run("SELECT quorum.untrack('idx')");
        assert_eq!(told(), "");
    }

    #[pg_test]
    fn one_keeps_its_id_as_long_as_nothing_else_is_to_be_told() {
        set_up();
        let first = id(r#"["a"]"#);
        for statement in [
            "ALTER INDEX idx_a RENAME TO idx_z",
            "ALTER TABLE idx RENAME TO idx2",
            "CREATE SCHEMA idx_apart; ALTER TABLE idx2 SET SCHEMA idx_apart; SET LOCAL search_path = idx_apart, public",
            "REINDEX TABLE idx2",
            "ALTER TABLE idx2 ALTER a TYPE bigint",
            "CLUSTER idx2 USING idx_z",
            "CREATE INDEX idx_twin ON idx2 (a DESC); DROP INDEX idx_z",
        ] {
            run(statement);
            assert_eq!((told().as_str(), id(r#"["a"]"#)), (r#"btree["a"]"#, first.clone()), "{statement}");
        }
        run("ALTER TABLE idx2 RENAME a TO z");
        assert_eq!(told(), r#"btree["z"]"#);
        assert_ne!(id(r#"["z"]"#), first, "what was told of it is not true any more");
    }

    #[pg_test]
    fn one_goes_with_its_column_or_its_table() {
        set_up();
        run(
            "CREATE DOMAIN idx_text AS text; ALTER TABLE idx ADD e idx_text; CREATE INDEX ON idx (e, id); CREATE INDEX ON idx (b)",
        );
        assert_eq!(told(), r#"btree["a"] btree["e", "id"] btree["b"]"#);
        run("ALTER TABLE idx DROP COLUMN a");
        assert_eq!(told(), r#"btree["e", "id"] btree["b"]"#);
        run("DROP DOMAIN idx_text CASCADE");
        assert_eq!(told(), r#"btree["b"]"#);
        run("DROP TABLE idx");
        assert_eq!(told(), "");
    }

    #[pg_test]
    fn what_is_rolled_back_was_not_told() {
        set_up();
        run("DO $do$ BEGIN
                 CREATE INDEX ON idx (b); DROP INDEX idx_a; RAISE EXCEPTION 'no';
             EXCEPTION WHEN OTHERS THEN NULL; END $do$");
        assert_eq!(told(), r#"btree["a"]"#);
    }

    #[pg_test]
    fn other_channels_know_nothing_of_indexes() {
        run("SELECT quorum.create_channel('indexless_' || pg_backend_pid());
             CREATE TABLE idx (id int PRIMARY KEY, a int); CREATE INDEX ON idx (a);
             SELECT quorum.track('idx', 'indexless_' || pg_backend_pid()); CREATE INDEX idx_later ON idx (a, id); DROP INDEX idx_later");
        assert_eq!(told(), "");
    }

    #[pg_test]
    fn a_partitioned_table_has_those_that_all_its_partitions_have() {
        run("SELECT quorum.create_channel('_logger');
             CREATE TABLE idx_p (id int PRIMARY KEY, a int, b int) PARTITION BY RANGE (id);
             CREATE TABLE idx_p1 PARTITION OF idx_p FOR VALUES FROM (1) TO (10); CREATE TABLE idx_p2 PARTITION OF idx_p DEFAULT;
             CREATE INDEX ON idx_p (a); SELECT quorum.track('idx_p', '_logger')");
        assert_eq!(told(), r#"btree["a"]"#);
        run("CREATE INDEX idx_p_b ON ONLY idx_p (b); CREATE INDEX idx_p1_b ON idx_p1 (b); CREATE INDEX idx_p2_b ON idx_p2 (b);
             ALTER INDEX idx_p_b ATTACH PARTITION idx_p1_b");
        assert_eq!(told(), r#"btree["a"]"#);
        run("ALTER INDEX idx_p_b ATTACH PARTITION idx_p2_b");
        assert_eq!(told(), r#"btree["a"] btree["b"]"#);
        run("DROP INDEX idx_p_b; CREATE TABLE idx_p3 PARTITION OF idx_p FOR VALUES FROM (10) TO (20)");
        assert_eq!(told(), r#"btree["a"]"#);
    }
}
