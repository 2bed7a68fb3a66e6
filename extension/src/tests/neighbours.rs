//! What is remembered of other clusters, and tables that are made as another cluster describes them.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn run(sql: &str) {
        Spi::run(sql).expect("it runs");
    }

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).expect("query runs").expect("query returns a value")
    }

    /// The error that a statement brings.
    fn refused(sql: &str) -> String {
        run("CREATE OR REPLACE FUNCTION pg_temp.refused(sql text) RETURNS text LANGUAGE plpgsql AS
             $$ BEGIN EXECUTE sql; RETURN 'done'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM; END $$");
        text(&format!("SELECT pg_temp.refused($text${sql}$text$)"))
    }

    #[pg_test]
    fn routes_and_neighbours_are_remembered_without_the_secret() {
        assert_eq!(
            text("SELECT quorum.neighbours()::text"),
            r#"{"ca": null, "hub": [], "leaf": [], "login": null, "nodes": [], "node_name": null, "has_secret": false}"#
        );
        run("SELECT quorum.set_neighbour_self('paris', 'cluster_user', 'hush')");
        run("SELECT quorum.set_neighbour_self(ca => 'PEM')");
        let set = |server: &str, routes: &str| {
            text(&format!("SELECT quorum.set_neighbour_routes('{server}', '{routes}')::text"))
        };
        assert_eq!(
            set("hub", r#"[{"host": "b", "port": 2}, {"host": "a", "port": 1}]"#),
            r#"{"set": [{"host": "b", "port": 2}, {"host": "a", "port": 1}], "skipped": []}"#
        );
        assert_eq!(
            set("leaf", r#"[{"host": "a", "port": 1}, {"host": "c", "port": 3}]"#),
            r#"{"set": [{"host": "c", "port": 3}], "skipped": [{"host": "a", "port": 1}]}"#
        );
        run(r#"SELECT quorum.put_neighbour('rome', '{http://10.0.0.9:8008}',
                '[{"database": "d", "schema": "s", "table": "t", "subscribe": true, "publish": false},
                  {"database": "d", "schema": "s", "table": "u", "subscribe": true, "publish": true}]')"#);
        run(r#"SELECT quorum.put_neighbour('rome', '{http://10.0.0.8:8008}',
                '[{"database": "d", "schema": "s", "table": "u", "subscribe": false, "publish": false}]')"#);
        let all = text("SELECT quorum.neighbours()::text");
        assert_eq!(
            all,
            r#"{"ca": "PEM", "hub": [{"host": "b", "port": 2}, {"host": "a", "port": 1}], "leaf": [{"host": "c", "port": 3}], "login": "cluster_user", "nodes": [{"name": "rome", "remote": ["http://10.0.0.8:8008"], "tables": [{"table": "t", "schema": "s", "publish": false, "database": "d", "subscribe": true}, {"table": "u", "schema": "s", "publish": false, "database": "d", "subscribe": false}]}], "node_name": "paris", "has_secret": true}"#
        );
        assert_eq!(text("SELECT quorum.neighbour_secret()"), "hush");
        for role in ["quorum_reader", "quorum_admin", "quorum_follower"] {
            let may = format!(
                "SELECT has_any_column_privilege('{role}', 'quorum.neighbour_self', 'SELECT') ||
                    has_function_privilege('{role}', 'quorum.neighbour_secret()', 'EXECUTE')::text"
            );
            assert_eq!(text(&may), "falsefalse", "{role}");
        }
        run("SELECT quorum.set_neighbour_self(secret => '')");
        assert_eq!(text("SELECT quorum.neighbours() ->> 'has_secret'"), "false");
        assert_eq!(
            text(
                r#"SELECT quorum.delete_neighbour_routes('[{"host": "a", "port": 1}, {"host": "z", "port": 1}]')::text"#
            ),
            r#"{"deleted": [{"host": "a", "port": 1}], "skipped": [{"host": "z", "port": 1}]}"#
        );
        assert_eq!(
            text("SELECT quorum.drop_neighbour('rome')::text || quorum.drop_neighbour('rome')"),
            "truefalse"
        );
    }

    #[pg_test]
    fn a_table_is_made_as_it_is_described() {
        run("CREATE TYPE public.mood AS ENUM ('good', 'bad');
             CREATE TABLE public.\"Odd\" (b numeric(10, 2)[], a varchar(20) DEFAULT 'x', at timestamp(3) with time zone,
                 span interval day to second(2), m public.mood, c \"char\", n int GENERATED ALWAYS AS IDENTITY,
                 g int GENERATED ALWAYS AS (1) STORED, PRIMARY KEY (n, a))");
        run("ALTER TABLE public.\"Odd\" DROP COLUMN c");
        run("SELECT quorum.offer_table('cluster', 'new one', 'Odd', quorum.describe_table('public', 'Odd'))");
        let columns = |schema: &str| {
            text(&format!("SELECT string_agg(format('%s %s', x ->> 'name', x ->> 'type'), ', ') || (quorum.describe_table('{schema}', 'Odd') ->> 'key')
                           FROM jsonb_array_elements(quorum.describe_table('{schema}', 'Odd') -> 'columns') AS x"))
        };
        assert_eq!(
            columns("new one"),
            "b numeric(10,2)[], a character varying(20), at timestamp(3) with time zone, span interval day to second(2), \
             m public.mood, n integer[\"n\", \"a\"]"
        );
        assert_eq!(columns("public"), columns("new one"));
        assert_eq!(text("SELECT channel || ' ' || schema FROM quorum.tracked_tables"), "cluster new one");
        assert_eq!(text("SELECT count(*)::text FROM quorum.versioned_table"), "0");
        run("SELECT quorum.offer_table('cluster', 'new one', 'Odd', versions => true)");
        assert_eq!(text("SELECT count(*)::text FROM quorum.versioned_table"), "1");
        // Again: nothing happens.
        run("SELECT quorum.offer_table('cluster', 'new one', 'Odd')");
        assert_eq!(text("SELECT coalesce(quorum.describe_table('public', 'odd')::text, 'none')"), "none");
        run("SELECT quorum.create_channel('shop'), quorum.track('public.\"Odd\"', 'shop')");
        assert!(
            refused("SELECT quorum.offer_table('cluster', 'public', 'Odd')")
                .starts_with("42710 table public.Odd is in channel shop")
        );
        assert!(refused("SELECT quorum.offer_table('cluster', 'public', 'none')").starts_with("42P01"));
    }

    #[pg_test]
    fn what_another_cluster_sends_is_no_statement() {
        let make = |types: &str, key: &str| {
            refused(&format!(
                r#"SELECT quorum.offer_table('cluster', 'public', 't', jsonb_build_object('columns',
                    jsonb_build_array(jsonb_build_object('name', 'a"b', 'type', $type${types}$type$)), 'key', '{key}'::jsonb))"#
            ))
        };
        for wrong in [
            "int DEFAULT 1",
            "int); DROP TABLE x; --",
            "int CHECK (true)",
            "int, b int",
            "public.none",
            "",
            "int REFERENCES pg_class",
            "int GENERATED ALWAYS AS IDENTITY",
        ] {
            let said = make(wrong, r#"["a\"b"]"#);
            assert!(said.starts_with("42"), "{wrong}: {said}");
        }
        assert!(make("int", "[]").starts_with("22023"), "it needs a key");
        assert!(refused("SELECT quorum.create_described_table('quorum', 't', '{}')").starts_with("22023"));
        assert_eq!(make("int", r#"["a\"b"]"#), "done");
        assert_eq!(
            text(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = 'public.t'::regclass AND attnum = 1"
            ),
            "a\"b"
        );
    }

    #[pg_test]
    fn types_that_a_table_needs_are_made_with_it() {
        run("CREATE SCHEMA far; CREATE SCHEMA \"far types\";
             CREATE TYPE \"far types\".\"Mood\" AS ENUM ('calm', 'it''s angry', 'back\\slash');
             CREATE DOMAIN far.kilo AS numeric(6, 2) DEFAULT 1 NOT NULL CHECK (VALUE > 0);
             CREATE DOMAIN far.light AS far.kilo CHECK (VALUE < 5);
             CREATE TYPE far.size AS (weight far.light, moods \"far types\".\"Mood\"[]);
             CREATE TABLE far.lion (id int PRIMARY KEY, size far.size, sizes far.size[], kilo far.kilo)");
        let describe = || text("SELECT quorum.describe_table('far', 'lion')::text");
        let description = describe();
        run("DROP SCHEMA far, \"far types\" CASCADE");
        let offer = |table: &str| {
            run(&format!("SELECT quorum.offer_table('cluster', 'far', '{table}', $d${description}$d$)"));
        };
        offer("lion");
        assert_eq!(describe(), description);
        // What is a constraint there was fulfilled there.
        run("INSERT INTO far.lion VALUES (1, '(7,{calm})', NULL, -3)");
        let owned = "SELECT count(*)::text FROM pg_type AS t JOIN pg_database AS d ON d.datdba = t.typowner
                     WHERE d.datname = current_database() AND t.typname IN ('Mood', 'kilo', 'light', 'size')";
        assert_eq!(text(owned), "4");
        // Types that there are stay as they are.
        run("ALTER TYPE \"far types\".\"Mood\" RENAME VALUE 'calm' TO 'quiet'");
        offer("cub");
        assert_eq!(
            text(
                "SELECT string_agg(enumlabel, ', ' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = '\"far types\".\"Mood\"'::regtype"
            ),
            "quiet, it's angry, back\\slash"
        );
    }

    #[pg_test]
    fn a_type_that_cannot_be_made_is_named() {
        run("CREATE SCHEMA far; CREATE TYPE far.span AS RANGE (subtype = int4);
             CREATE TYPE far.pair AS (a far.span, b int);
             CREATE TABLE far.t (id int PRIMARY KEY, s far.span); CREATE TABLE far.u (id int PRIMARY KEY, p far.pair)");
        let describe = |table: &str| text(&format!("SELECT quorum.describe_table('far', '{table}')::text"));
        let (t, u) = (describe("t"), describe("u"));
        run("DROP SCHEMA far CASCADE");
        let offer = |table: &str, description: &str| {
            refused(&format!("SELECT quorum.offer_table('cluster', 'far', '{table}', $d${description}$d$)"))
        };
        assert_eq!(offer("t", &t), "42704 table far.t cannot be made here: there is no type far.span");
        assert_eq!(offer("u", &u), "42704 type far.pair cannot be made here: there is no type far.span");
        for (wrong, code) in [
            (r#"{"schema": "pg_catalog", "name": "x", "kind": "enum", "labels": []}"#, "22023"),
            (r#"{"schema": "public", "kind": "enum", "labels": []}"#, "22023"),
            (r#"{"schema": "public", "name": "x", "kind": "range"}"#, "22023"),
            (r#"{"schema": "public", "name": "x", "kind": "domain"}"#, "42704"),
            (r#"{"schema": "public", "name": "x", "kind": "domain", "base": "int CHECK (true)"}"#, "42"),
            (r#"{"schema": "public", "name": "x", "kind": "domain", "base": "int; DROP TABLE y"}"#, "42"),
            (
                r#"{"schema": "public", "name": "x", "kind": "composite", "attributes": [{"name": "a", "type": "int, b int"}]}"#,
                "42",
            ),
        ] {
            let said = refused(&format!("SELECT quorum.create_described_types('[{wrong}]', current_user)"));
            assert!(said.starts_with(code), "{wrong}: {said}");
        }
        let label =
            r#"{"schema": "public", "name": "x", "kind": "enum", "labels": ["a'); DROP TABLE y; --"]}"#;
        let made = refused(&format!("SELECT quorum.create_described_types($d$[{label}]$d$, current_user)"));
        assert_eq!(made, "done");
        assert_eq!(
            text("SELECT enumlabel::text FROM pg_enum WHERE enumtypid = 'public.x'::regtype"),
            "a'); DROP TABLE y; --"
        );
    }

    #[pg_test]
    fn a_neighbour_is_followed_with_the_tables_that_are_said() {
        let follow = |tables: &str| {
            run(&format!("SELECT quorum.follow_neighbour('node-b', '{{http://10.0.0.1:8008}}', 'cluster', 'd', '{tables}', '5:100', 'apply_remote',
                          'me', 'hush')"));
        };
        let state = "SELECT coalesce(string_agg(concat_ws(' ', name, tables, copy, start, policy, has_secret), ','), 'none') FROM quorum.subscription_state";
        follow("{}");
        assert_eq!(text(state), "none");
        follow("{public.a,public.b}");
        assert_eq!(text(state), "node-b {public.a,public.b} none 5:100 apply_remote t");
        let table = "SELECT coalesce(string_agg(concat_ws(' ', table_name, state, after_epoch, after_tick), ',' ORDER BY table_name), 'none') FROM quorum.subscription_table";
        // Before anything was applied, and after.
        assert_eq!(text("SELECT quorum.replay_table('node-b', 'public', 'a', '5:40')"), "catch-up");
        run("SELECT quorum.subscription_tables_found((SELECT id FROM quorum.subscription), 'far',
                '[{\"schema\": \"public\", \"table\": \"a\"}, {\"schema\": \"public\", \"table\": \"b\"}]')");
        assert_eq!(text(table), "a catch-up 5 40,b following 5 100");
        assert_eq!(text("SELECT quorum.replay_table('node-b', 'public', 'b', '5:20')"), "catch-up");
        assert_eq!(text("SELECT quorum.replay_table('node-b', 'public', 'a', '5:100')"), "following");
        assert_eq!(text(table), "a following 5 100,b catch-up 5 20");
        assert!(refused("SELECT quorum.replay_table('node-c', 'public', 'a', '5:1')").starts_with("42704"));
        assert!(refused("SELECT quorum.replay_table('node-b', 'public', 'a', 'soon')").starts_with("22023"));
        follow("{public.b}");
        assert_eq!(text(table), "b catch-up 5 20");
        follow("{}");
        assert_eq!(text(state), "none");
    }
}
