//! What the proof says of statements: the list in `tests/data/readonly_statements.txt`, and what it rests on.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use std::ffi::CString;

    use pgrx::prelude::*;

    use crate::pg::utility;
    use crate::statements::functions::{self, Class};
    use crate::statements::proof::{self, Examined, Verdict};

    const LIST: &str = include_str!("../../../tests/data/readonly_statements.txt");

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).unwrap_or_else(|e| panic!("{sql}: {e}")).unwrap_or_default()
    }

    /// Empty: the server has no such function.
    fn name_of(function: u32) -> String {
        text(&format!("SELECT coalesce((SELECT proname::text FROM pg_proc WHERE oid = {function}), '')"))
    }

    fn oid(sql: &str) -> u32 {
        Spi::get_one::<pg_sys::Oid>(sql).expect("it runs").expect("there is one").to_u32()
    }

    fn examined(statement: &str) -> Examined {
        let statement = CString::new(statement).expect("no zero");
        utility::examine_text(&statement).unwrap_or_else(|_| panic!("it is one statement"))
    }

    fn word(statement: &str) -> &'static str {
        examined(statement).verdict.word()
    }

    /// The lines of a part of the list that mean something.
    fn part(name: &str) -> impl Iterator<Item = &'static str> {
        let begins = LIST.find(&format!("\n[{name}]\n")).expect("the part is there") + name.len() + 4;
        let lines = LIST[begins..].lines().take_while(|line| !line.starts_with('['));
        lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
    }

    fn set_up() {
        for name in ["setup", "session"] {
            run(&part(name).collect::<Vec<_>>().join("\n"));
        }
    }

    #[pg_test]
    fn the_list_is_judged_as_it_says() {
        set_up();
        let (mut wrong, mut count) = (Vec::new(), 0);
        for line in part("statements") {
            count += 1;
            let (expected, statement) = line.split_once(" | ").expect("a verdict and a statement");
            let found = Spi::get_two_with_args::<String, String>(
                "SELECT verdict, reason FROM quorum.explain_readonly($1)",
                &[statement.into()],
            );
            let (verdict, reason) = found.unwrap_or_else(|e| panic!("{statement}: {e}"));
            let verdict = verdict.expect("there is a verdict");
            let reason = reason.unwrap_or_default();
            let proven = if expected == "lying" { "read-only" } else { expected };
            if verdict != proven || reason.is_empty() != (verdict == "read-only") {
                wrong.push(format!("{line}\n    is {verdict}: {reason}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(count >= 150, "the list has {count} statements");
    }

    /// Else a function that has come with a new version of PostgreSQL would be judged by nobody.
    #[pg_test]
    fn every_volatile_function_of_the_server_is_listed() {
        let mut known = Vec::new();
        Spi::connect(|client| {
            let rows = client.select(
                "SELECT oid, proname::text FROM pg_proc WHERE provolatile = 'v' AND oid < 12000",
                None,
                &[],
            );
            for row in rows.expect("it runs") {
                let oid = row.get::<pg_sys::Oid>(1).expect("an oid").expect("not null").to_u32();
                let name = row.get::<String>(2).expect("a text").expect("not null");
                assert!(functions::group_of(oid).is_some(), "{name} ({oid}) is VOLATILE and in no list");
                known.push(oid);
            }
        });
        assert!(known.len() > 200, "only {} VOLATILE functions", known.len());
        let mut found = 0;
        for (oid, name) in functions::groups().flat_map(|group| group.functions) {
            let here = name_of(*oid);
            // Other versions lack some, and call some otherwise.
            found += usize::from(!here.is_empty());
            let same = cfg!(not(feature = "pg15")) || here.is_empty() || here == *name;
            assert!(same && *oid < 12000, "{name} ({oid}) is {here}");
        }
        assert!(found > 300, "only {found} functions of the list");
        for group in functions::groups().filter(|group| group.class == Class::Harmless) {
            for (oid, name) in group.functions {
                let here = name_of(*oid);
                assert!(here.is_empty() || known.contains(oid), "{name} is harmless anyway");
            }
        }
    }

    /// Literals decide which of the functions of a name is called, so those of the server are judged alike.
    #[pg_test]
    fn functions_of_one_name_are_judged_alike() {
        for group in functions::groups() {
            for (oid, name) in group.functions {
                let others = format!(
                    "SELECT coalesce(string_agg(b.oid::text, ' '), '') FROM pg_proc AS a JOIN pg_proc AS b USING (proname, pronargs)
                     WHERE a.oid = {oid} AND b.oid < 12000"
                );
                for other in text(&others).split_whitespace() {
                    let other: u32 = other.parse().expect("a number");
                    let class = functions::group_of(other).map(|group| group.class);
                    assert_eq!(class, Some(group.class), "{name} ({oid}) and {other}");
                }
            }
        }
    }

    /// What the proof does not look up.
    #[pg_test]
    fn what_comes_with_the_server_is_as_the_proof_takes_it() {
        let none = |sql: &str| {
            assert_eq!(
                text(&format!("SELECT coalesce(string_agg(x::text, ' '), '') FROM ({sql}) AS f (x)")),
                "",
                "{sql}"
            )
        };
        none("SELECT t.typname FROM pg_type AS t JOIN pg_proc AS p ON p.oid IN (t.typinput, t.typoutput, t.typreceive,
              t.typsend, t.typmodin, t.typmodout, t.typsubscript) WHERE t.oid < 12000 AND p.provolatile = 'v'");
        none("SELECT typname FROM pg_type WHERE oid < 12000 AND typtype = 'd'");
        none(
            "SELECT p.oid FROM pg_amproc AS a JOIN pg_proc AS p ON p.oid = a.amproc WHERE a.oid < 12000 AND p.provolatile = 'v'",
        );
        none(
            "SELECT p.oid FROM pg_cast AS c JOIN pg_proc AS p ON p.oid = c.castfunc WHERE c.oid < 12000 AND p.provolatile = 'v'",
        );
        none("SELECT relname FROM pg_class WHERE oid < 12000 AND (relkind NOT IN ('r', 'i', 't') OR relpersistence <> 'p'
              OR relhassubclass OR relrowsecurity)");
        none(
            "SELECT contypid::regtype FROM pg_constraint WHERE contypid BETWEEN 1 AND 16383
              AND contypid::regtype::text NOT LIKE 'information_schema.%'",
        );
        assert_eq!(
            text("SELECT string_agg(oid || lanname, ' ' ORDER BY oid) FROM pg_language WHERE oid < 12000"),
            "12internal 13c 14sql"
        );
    }

    #[pg_test]
    fn what_a_verdict_rests_on_is_noted() {
        set_up();
        let view = oid("SELECT 'nested_view'::regclass::oid");
        let (plain, table) = (oid("SELECT 'plain_view'::regclass::oid"), oid("SELECT 't'::regclass::oid"));
        let depends = examined("SELECT * FROM nested_view").depends;
        assert!([view, plain, table].iter().all(|oid| depends.oids().contains(oid)), "{depends:?}");
        assert!(!depends.is_everything());

        for (statement, object) in [
            ("SELECT f_stable(1)", "'f_stable(int)'::regprocedure"),
            ("SELECT overloaded_well(1)", "'overloaded_well(text)'::regprocedure"),
            ("SELECT total(id) FROM t", "'step(int, int)'::regprocedure"),
            ("SELECT m @+ 1 FROM typed", "'@+(mood, int)'::regoperator"),
            ("SELECT m FROM typed", "'mood'::regtype"),
            ("SELECT ps FROM typed", "'pair'::regclass"),
            ("SELECT * FROM parted", "'parted_2a'::regclass"),
            ("SELECT * FROM secured_volatile", "'f_volatile(int)'::regprocedure"),
            ("SELECT * FROM secured_query", "'u'::regclass"),
            ("SELECT nextval('s') FROM plain_view", "'plain_view'::regclass"),
            ("EXPLAIN SELECT * FROM plain_view", "'plain_view'::regclass"),
            ("DECLARE c CURSOR FOR SELECT * FROM plain_view", "'plain_view'::regclass"),
        ] {
            let found = examined(statement).depends;
            let object = oid(&format!("SELECT {object}::oid"));
            assert!(found.oids().contains(&object), "{statement}: {object} is not in {found:?}");
        }
        assert!(examined("SELECT 1 + 1, lower('x') FROM pg_class").depends.oids().is_empty());

        let tables = (0..17).map(|n| format!("CREATE TABLE many_{n} ()")).collect::<Vec<_>>().join(";");
        run(&tables);
        let all = (0..17).map(|n| format!("many_{n}")).collect::<Vec<_>>().join(", ");
        assert!(examined(&format!("SELECT 1 FROM {all}")).depends.is_everything());
    }

    #[pg_test]
    fn what_is_temporary_is_said() {
        set_up();
        run("CREATE TEMP TABLE passing_child () INHERITS (ro.parent)");
        for statement in [
            "SELECT * FROM passing",
            "SELECT * FROM parent",
            "SELECT nextval('s') FROM passing",
            "EXPLAIN SELECT * FROM passing",
            "SELECT NULL::passing",
        ] {
            assert!(examined(statement).temporary, "{statement}");
        }
        assert!(!examined("SELECT * FROM t").temporary);
        run("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1'");
        assert!(examined("SELECT pg_temp.f()").temporary);
    }

    /// What is remembered of a function, type or table is forgotten when it changes.
    #[pg_test]
    fn changes_are_seen() {
        set_up();
        let steps = [
            ("SELECT f_stable(1)", "ALTER FUNCTION f_stable VOLATILE"),
            (
                "SELECT f_immutable(1)",
                "CREATE OR REPLACE FUNCTION f_immutable(a int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
            ),
            ("SELECT total(id) FROM t", "ALTER FUNCTION step VOLATILE"),
            ("SELECT overloaded_well(1)", "ALTER FUNCTION overloaded_well(text) VOLATILE"),
            (
                "SELECT upper('x')",
                "CREATE FUNCTION upper(int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
            ),
            (
                "SELECT 'ok'::mood",
                "CREATE FUNCTION cast_mood(int) RETURNS mood LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
              CREATE CAST (int AS mood) WITH FUNCTION cast_mood(int)",
            ),
            ("SELECT * FROM parted", "ALTER TABLE parted_2a SET UNLOGGED"),
            ("SELECT * FROM parted_1", "ALTER TABLE parted_1 SET UNLOGGED"),
            ("SELECT * FROM parent", "ALTER FOREIGN TABLE abroad INHERIT parent"),
            ("SELECT * FROM secured", "CREATE POLICY other ON secured USING (f_volatile(id) = 1)"),
            (
                "SELECT * FROM plain_view",
                "CREATE OR REPLACE VIEW plain_view AS SELECT f_volatile(id) AS id, v FROM t",
            ),
            ("SELECT l FROM typed WHERE l = 'x'::label", "ALTER DOMAIN label ADD CHECK (length(VALUE) > 0)"),
        ];
        for (statement, change) in steps {
            // Twice, so that what is remembered is used.
            assert_eq!((word(statement), word(statement)), ("read-only", "read-only"), "{statement}");
            run(change);
            assert_ne!(word(statement), "read-only", "{statement} after {change}");
        }
    }

    #[pg_test]
    fn parameters_are_left_open() {
        set_up();
        assert_eq!(word("SELECT * FROM t WHERE id = $1 AND v = $2 LIMIT $3"), "read-only");
        assert_eq!(word("SELECT id FROM typed WHERE m = $1"), "read-only");
        assert_eq!(word("SELECT $1::positive"), "unproven");
    }

    #[pg_test]
    fn what_forbids_serving_at_run_is_known() {
        set_up();
        for (function, forbidden) in [
            ("nextval(regclass)", true),
            ("pg_advisory_lock(bigint)", true),
            ("set_config(text, text, boolean)", true),
            ("pg_is_in_recovery()", true),
            ("alias_lock(bigint)", true),
            ("dblink(text, text)", true),
            ("quorum.is_leader()", true),
            ("random()", false),
            ("lower(text)", false),
            ("query_to_xml(text, boolean, boolean, text)", false),
            ("f_volatile(int)", false),
            ("alias_lower(text)", false),
            ("gen_random_bytes(int)", false),
        ] {
            let oid = oid(&format!("SELECT '{function}'::regprocedure::oid"));
            assert_eq!(proof::forbidden_at_run(oid), forbidden, "{function}");
            assert_eq!(proof::why_forbidden(oid).is_some(), forbidden, "{function}");
        }
        assert!(!proof::forbidden_at_run(4_000_000_000));
    }

    #[pg_test]
    fn what_is_explained_does_not_run() {
        set_up();
        let before = text("SELECT last_value::text FROM s");
        assert!(matches!(examined("SELECT nextval('s')").verdict, Verdict::Refused(_)));
        assert_eq!(text("SELECT last_value::text FROM s"), before);
    }

    #[pg_test]
    fn reasons_are_sentences() {
        set_up();
        let reason = |statement: &str| examined(statement).verdict.reason().expect("there is one").text();
        assert_eq!(
            reason("SELECT f_volatile(1)"),
            "function ro.f_volatile(integer) is VOLATILE, so it may write; if it does not, declare it STABLE"
        );
        assert_eq!(
            reason("SELECT * FROM unlogged_view"),
            "table ro.unlogged is unlogged, so a replica has no rows of it"
        );
        assert_eq!(
            reason("SELECT '5'::positive"),
            "type ro.positive is a domain with constraints, which can call anything"
        );
        assert_eq!(
            reason("SELECT 1 FROM t FOR SHARE"),
            "the statement locks rows (FOR UPDATE, FOR SHARE), which a replica cannot"
        );
    }

    #[pg_test(error = "there are several statements in the text")]
    fn several_statements_are_refused() {
        run("SELECT * FROM quorum.explain_readonly('SELECT 1; SELECT 2')");
    }

    #[pg_test(error = "there is no statement in the text")]
    fn no_statement_is_refused() {
        run("SELECT * FROM quorum.explain_readonly(' -- nothing ')");
    }

    #[pg_test]
    fn errors_of_the_statement_are_passed_on() {
        for (statement, code) in
            [("SELEC 1", "42601"), ("SELECT * FROM nothing_there", "42P01"), ("", "22023")]
        {
            let caught = format!(
                "DO $do$ BEGIN PERFORM quorum.explain_readonly($s${statement}$s$);
                 EXCEPTION WHEN OTHERS THEN PERFORM set_config('ro.seen', SQLSTATE, true); END $do$"
            );
            run(&caught);
            assert_eq!(text("SELECT current_setting('ro.seen')"), code, "{statement}");
        }
    }
}
