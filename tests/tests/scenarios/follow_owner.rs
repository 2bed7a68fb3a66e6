//! What a copy calls has the rights of the table's owner, however the rows come.

use pgquorum_tests::{LogServer, Pair};
use serde_json::json;

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";
/// A table of somebody who would like to be more.
const HERE: &str = "CREATE ROLE somebody; CREATE TABLE t (id int PRIMARY KEY, note text, by_default text DEFAULT current_user, \
    by_trigger text, by_check text); CREATE TABLE deleted (by text); \
    ALTER TABLE t OWNER TO somebody; ALTER TABLE deleted OWNER TO somebody; GRANT USAGE ON SCHEMA public TO somebody; \
    CREATE FUNCTION who() RETURNS text LANGUAGE plpgsql AS $$ DECLARE result text := current_user; BEGIN \
      BEGIN EXECUTE 'RESET ROLE'; result := 'reset'; EXCEPTION WHEN OTHERS THEN NULL; END; \
      BEGIN EXECUTE 'SET SESSION AUTHORIZATION postgres'; result := 'set'; EXCEPTION WHEN OTHERS THEN NULL; END; \
      BEGIN EXECUTE 'CREATE ROLE mine SUPERUSER'; result := 'made'; EXCEPTION WHEN OTHERS THEN NULL; END; \
      RETURN result || ' ' || current_user; END $$; \
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.by_trigger := public.who(); RETURN NEW; END $$; \
    CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.deleted VALUES (public.who()); RETURN NULL; END $$; \
    CREATE FUNCTION passes(t) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN public.who() = 'somebody somebody'; END $$; \
    CREATE TRIGGER a BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION note(); ALTER TABLE t ENABLE ALWAYS TRIGGER a; \
    CREATE TRIGGER b AFTER DELETE ON t FOR EACH ROW EXECUTE FUNCTION gone(); ALTER TABLE t ENABLE REPLICA TRIGGER b; \
    ALTER TABLE t ADD CHECK (passes(t))";

#[test]
fn a_copy_has_the_rights_of_the_tables_owner() {
    let pair = Pair::start((1, 1), "");
    pair.source.sql(&format!("{TABLES}; INSERT INTO t SELECT g, 'source' FROM generate_series(1, 3) AS g"));
    pair.target.sql(HERE);
    pair.track(&["t"]);
    let whose = "SELECT string_agg(DISTINCT concat_ws(' | ', by_default, by_trigger), ', ') FROM t";
    for copy in ["error", "truncate", "merge"] {
        pair.subscribe(&json!({"copy": copy}));
        pair.await_state("following", None);
        assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM t"), "3", "{copy}");
        assert_eq!(pair.target.ask(1, whose), "somebody | somebody somebody", "{copy}");
        let (status, answer) = pair.target.send(1, "DELETE", "/subscriptions/mirror", None);
        assert_eq!(status, 200, "{answer}");
    }
    assert_eq!(
        pair.target.ask(1, "SELECT count(*) || ' ' || string_agg(DISTINCT by, ',') FROM deleted"),
        "3 somebody somebody"
    );
    assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM pg_roles WHERE rolname = 'mine'"), "0");
    // Nothing is left for the commit, which has more rights.
    pair.target.sql(
        "DELETE FROM t; CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION gone(); \
         ALTER TABLE t ENABLE ALWAYS TRIGGER late",
    );
    pair.subscribe(&json!({}));
    pair.await_state("stopped", Some("no_table_copied"));
    let tables = pair.target.get(1, "/subscriptions/mirror/tables").1;
    assert_eq!((&tables[0]["state"], &tables[0]["code"]), (&json!("stopped"), &json!("42501")), "{tables}");
}

/// The rights are for the very next command, and not for one after it, a savepoint included.
#[test]
fn what_is_announced_for_a_copy_ends_with_the_next_command() {
    let log = LogServer::start("");
    let mut client = log.connect();
    let prepared = "CREATE ROLE owner; CREATE TABLE t (who text DEFAULT current_user, n int); ALTER TABLE t OWNER TO owner";
    client.batch_execute(prepared).expect("a table of somebody else");
    let mut copied = |between: &str| -> Result<String, postgres::Error> {
        let begin = "BEGIN; TRUNCATE t; SELECT quorum.copy_as_owner('t'::regclass)";
        let done = client.batch_execute(&format!("{begin}; {between} COPY t (n) FROM PROGRAM 'echo 1'"));
        client.batch_execute("COMMIT")?;
        done?;
        Ok(client.query_one("SELECT who FROM t", &[])?.get(0))
    };
    assert!(copied("").is_err(), "the owner may not run programs");
    for between in ["SHOW work_mem;", "SAVEPOINT s;", "SAVEPOINT s; ROLLBACK TO s;"] {
        assert_eq!(copied(between).map_err(|e| format!("{e:?}")), Ok("postgres".to_owned()), "{between}");
    }
}
