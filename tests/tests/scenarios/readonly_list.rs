//! The list of statements with their verdicts, on real servers: each is learned as it says, and what is served does no harm.

use pgquorum_tests::{
    LearningServer, PATIENCE, await_served, await_until, hash_of, known, run, served, server_error, text,
};
use postgres::Client;
use std::collections::{BTreeMap, BTreeSet};

const LIST: &str = include_str!("../../data/readonly_statements.txt");
/// Of a statement that is not proven, until it may be served.
const MIN_CALLS: usize = 2;

struct Entry {
    /// `read-only`, `lying` (proven by what a function says, and withdrawn when it writes), `unproven` or `refused`.
    verdict: &'static str,
    statement: &'static str,
}

/// The file, as its head describes it.
struct List {
    /// To be run once.
    set_up: String,
    /// To be run in each session; on a standby without what makes temporary objects.
    session: Vec<&'static str>,
    entries: Vec<Entry>,
}

impl List {
    fn read() -> List {
        let mut list = List { set_up: String::new(), session: Vec::new(), entries: Vec::new() };
        let mut part = "";
        for line in LIST.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            match (part, line) {
                (_, "[setup]" | "[session]" | "[statements]") => part = line,
                ("[setup]", line) => list.set_up += &format!("{line}\n"),
                ("[session]", line) => list.session.push(line),
                ("[statements]", line) => {
                    let (verdict, statement) = line.split_once('|').expect("a verdict and a statement");
                    list.entries.push(Entry { verdict: verdict.trim(), statement: statement.trim() });
                }
                _ => panic!("a line outside of any part: {line}"),
            }
        }
        list
    }

    fn primary(&self, servers: &LearningServer) -> Client {
        let mut client = servers.connect();
        self.session.iter().for_each(|line| run(&mut client, line));
        client
    }

    fn standby(&self, servers: &LearningServer) -> Client {
        let mut client = servers.standby().connect().expect("a session on the standby");
        self.session
            .iter()
            .filter(|line| !line.starts_with("CREATE"))
            .for_each(|line| run(&mut client, line));
        client
    }
}

/// Runs it, and takes back what it has done. Some statements do not run within a block.
fn run_once(client: &mut Client, statement: &str) {
    run(client, "BEGIN");
    let code = server_error(client, statement);
    run(client, "ROLLBACK");
    if code.as_deref() == Some("25001") {
        let _ = client.batch_execute(statement);
    }
}

/// Everything that a statement could change: rows of all tables, sequences, large objects, settings, roles, definitions.
fn fingerprint(client: &mut Client) -> String {
    let tables = "SELECT string_agg(CASE relkind WHEN 'S' THEN format('SELECT %L || last_value || is_called::text FROM %s',
                  oid::regclass, oid::regclass)
                  ELSE format('SELECT %L || count(*) || coalesce(md5(string_agg(t::text, '','' ORDER BY t::text)), '''') FROM %s t',
                  oid::regclass, oid::regclass) END, ' UNION ALL ') FROM pg_class
                  WHERE relkind IN ('r', 'S', 'm') AND relnamespace NOT IN (SELECT oid FROM pg_namespace
                  WHERE nspname ~ '^(pg_|information_schema|quorum)')";
    let each = text(client, tables);
    let sql = format!("SELECT string_agg(x, E'\\n' ORDER BY x) FROM ({each}) AS f(x)");
    let rows = text(client, &sql);
    let more = "SELECT concat_ws(' ', (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_roles),
                (SELECT count(*) FROM pg_largeobject_metadata), (SELECT count(*) FROM pg_replication_slots),
                (SELECT md5(string_agg(name || setting, ',' ORDER BY name)) FROM pg_settings WHERE name !~ 'transaction'))";
    format!("{rows}\n{}", text(client, more))
}

/// Runs a served statement on the primary and looks for traces: a transaction's number, locks that a replica refuses or that
/// last, cursors of its own.
fn leaves_no_trace(client: &mut Client, statement: &str) -> Result<(), String> {
    run(client, "BEGIN");
    if let Some(code) = server_error(client, statement) {
        run(client, "ROLLBACK");
        return Err(format!("error {code} on the primary"));
    }
    let number = text(client, "SELECT pg_current_xact_id_if_assigned()::text");
    let locks = text(
        client,
        "SELECT string_agg(DISTINCT locktype || ' ' || mode, ', ') FROM pg_locks WHERE pid = pg_backend_pid() AND
         (locktype = 'advisory' OR locktype <> 'virtualxid' AND
          mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock', 'SIReadLock'))",
    );
    run(client, "COMMIT");
    if number.is_empty() && locks.is_empty() {
        Ok(())
    } else {
        Err(format!("transaction {number}, locks {locks}"))
    }
}

/// Runs every statement of the list whose hash is served; those that do harm. What its session on the primary had of its
/// own is gone afterwards.
fn harm(servers: &LearningServer, list: &List, all: &BTreeSet<String>) -> Vec<String> {
    let (mut primary, mut standby) = (list.primary(servers), list.standby(servers));
    run(&mut primary, "SET statement_timeout = '60s'");
    run(&mut standby, "SET statement_timeout = '60s'");
    let mut harm = Vec::new();
    for entry in list.entries.iter().filter(|entry| all.contains(&hash_of(entry.statement))) {
        if let Err(why) = leaves_no_trace(&mut primary, entry.statement) {
            harm.push(format!("{}: {why}", entry.statement));
        }
        run(&mut standby, "BEGIN");
        if let Some(code) = server_error(&mut standby, entry.statement) {
            harm.push(format!("{}: error {code} on the standby", entry.statement));
        }
        run(&mut standby, "ROLLBACK");
    }
    let own = format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE pid = {}",
        text(&mut primary, "SELECT pg_backend_pid()::text")
    );
    drop(primary);
    // A server removes temporary tables after its client has gone away.
    let look = &mut servers.connect();
    await_until(PATIENCE, "the session ends", || match text(look, &own).as_str() {
        "0" => Ok(()),
        there => Err(format!("{there} session")),
    });
    harm
}

#[test]
fn each_statement_is_learned_as_the_list_says_and_what_is_served_does_no_harm() {
    let list = List::read();
    let entries = &list.entries;
    assert!(entries.len() >= 150, "{} statements", entries.len());
    let servers = LearningServer::with_standby(&format!(
        "pgquorum.statements_min_calls = {MIN_CALLS}\nmax_prepared_transactions = 5\nwal_level = logical"
    ));
    run(&mut servers.connect(), &list.set_up);
    let (c, look) = (&mut list.primary(&servers), &mut servers.connect());
    // One text cannot be two things: a driver knows the hash alone.
    let mut verdicts: BTreeMap<String, &Entry> = BTreeMap::new();
    for entry in entries {
        let first = verdicts.entry(hash_of(entry.statement)).or_insert(entry);
        assert_eq!(first.verdict, entry.verdict, "{} and {}", first.statement, entry.statement);
    }
    for entry in entries {
        for _ in 0..MIN_CALLS {
            run_once(c, entry.statement);
        }
    }
    run(c, "SELECT 1 AS settled");
    await_served(look, "SELECT 1 AS settled");
    let proven = || entries.iter().filter(|entry| entry.verdict == "read-only");
    await_until(PATIENCE, "all that is read-only is served", || {
        let all = served(look);
        let missing: Vec<&str> =
            proven().map(|e| e.statement).filter(|s| !all.contains(&hash_of(s))).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("without {missing:#?}")) }
    });
    let all = served(look);
    let mut wrong = Vec::new();
    for Entry { verdict, statement } in entries {
        let rows = known(look, statement);
        let good = match *verdict {
            "read-only" => rows.iter().any(|row| row.how == "proven" && row.served && !row.withdrawn),
            _ => {
                !all.contains(&hash_of(statement))
                    && rows.iter().all(|row| !row.served && row.how != "proven")
            }
        };
        if !good {
            wrong.push(format!("{statement}: {verdict}, and it is {rows:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    servers.await_replayed();
    let standby = &mut servers.standby().connect().expect("a session on the standby");
    let there = served(standby);
    assert!(
        proven().all(|entry| there.contains(&hash_of(entry.statement))),
        "the standby serves what the primary does"
    );
    let before = fingerprint(c);
    assert_eq!(harm(&servers, &list, &all.union(&there).cloned().collect()), Vec::<String>::new());
    assert_eq!(fingerprint(c), before, "something was changed");

    // The same for those that were only watched.
    run(look, "ALTER SYSTEM SET pgquorum.serve_observed_statements = on");
    run(look, "SELECT pg_reload_conf()");
    run(c, "CREATE FUNCTION only_watched() RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN 1; END'");
    for _ in 0..MIN_CALLS {
        run(c, "SELECT only_watched()");
    }
    await_served(look, "SELECT only_watched()");
    let all = served(look);
    let refused = entries.iter().filter(|entry| ["refused", "lying"].contains(&entry.verdict));
    let wrong: Vec<&str> = refused.map(|e| e.statement).filter(|s| all.contains(&hash_of(s))).collect();
    assert!(wrong.is_empty(), "refused or seen writing, and served: {wrong:#?}");
    let before = fingerprint(c);
    assert_eq!(harm(&servers, &list, &all), Vec::<String>::new());
    assert_eq!(fingerprint(c), before, "something was changed");
}
