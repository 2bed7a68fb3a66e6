//! Triggers of tracked tables that were switched off or dropped past the event triggers that would have seen it: it is
//! found, said once, and can be put right.

use pgquorum_tests::{LogServer, await_answer, refused, run, text};
use postgres::Client;
use std::time::Duration;

/// A worker that was ended is started again after a second, or a little later.
const SOON: Duration = Duration::from_secs(60);
const EVENTS: &str =
    "SELECT string_agg(kind || ' ' || (details ->> 'table'), ', ' ORDER BY index DESC) FROM quorum.event
                      WHERE kind LIKE 'capture-fault%'";
const FAULTS: &str =
    "SELECT string_agg(\"table\" || ': ' || split_part(fault, ': changes', 1), ', ' ORDER BY \"table\")
                      FROM quorum.tracked_tables WHERE fault IS NOT NULL";

/// As only a superuser can. In one transaction, so that the worker never sees event triggers that are off.
fn past_event_triggers(client: &mut Client, sql: &str) {
    run(client, "BEGIN");
    for (how, then) in [("DISABLE", sql), ("ENABLE ALWAYS", "")] {
        for name in ["pgquorum_ddl", "pgquorum_drop"] {
            run(client, &format!("ALTER EVENT TRIGGER {name} {how}"));
        }
        run(client, then);
    }
    run(client, "COMMIT");
}

/// The worker looks when it begins, and then about once a minute.
fn begin_anew(client: &mut Client) {
    run(
        client,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pgquorum feed'",
    );
}

#[test]
fn what_is_not_captured_is_found_and_said_once() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY);
         SELECT quorum.track('t', 'c'), quorum.track('u', 'c'); INSERT INTO t VALUES (1)",
    );
    let before = text(c, "SELECT quorum.cut('c')");
    assert_eq!(text(c, FAULTS), "");

    past_event_triggers(c, "ALTER TABLE t DISABLE TRIGGER pgquorum_row");
    run(c, "INSERT INTO t VALUES (2)");
    assert_eq!(text(c, "SELECT quorum.cut('c')"), before, "it is lost");
    assert_eq!(text(c, FAULTS), "t: its trigger pgquorum_row is switched off, or not on in all sessions");
    begin_anew(c);
    await_answer(c, SOON, EVENTS, "capture-fault public.t");

    // The next one looks again, and says what is new.
    past_event_triggers(c, "DROP TRIGGER pgquorum_truncate ON u");
    begin_anew(c);
    await_answer(c, SOON, EVENTS, "capture-fault public.t, capture-fault public.u");
    let said = |table: &str| {
        let line = format!("WARNING:  pgquorum feed: table public.{table} of channel \"c\" is not captured");
        log.server.log().matches(&line).count()
    };
    assert_eq!((said("t"), said("u")), (1, 1));

    // As it is advised.
    run(c, "SELECT quorum.stop_channel('c')");
    run(c, "SELECT quorum.start_channel('c')");
    assert_eq!(text(c, FAULTS), "");
    begin_anew(c);
    let all = "capture-fault public.t, capture-fault public.u, \
               capture-fault-gone public.t, capture-fault-gone public.u";
    await_answer(c, SOON, EVENTS, all);
    assert_eq!(
        log.server.log().matches("is captured again; what was changed meanwhile is missing").count(),
        2
    );
    refused(c, &format!("SELECT quorum.changes('c', '{before}')"), "PQ001", "purged");
    run(c, "INSERT INTO t VALUES (3)");
    run(c, "SELECT quorum.cut('c')");
    let captured = "SELECT string_agg(key ->> 'id', ' ') FROM quorum.changes('c') WHERE op = 'insert'";
    assert_eq!(text(c, captured), "3");
}

/// Without an event trigger the changes of rows are captured, but not what statements do to their tables.
#[test]
fn an_event_trigger_that_is_gone_is_found() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(c, "CREATE TABLE t (id int PRIMARY KEY); SELECT quorum.track('t', 'c')");
    run(c, "ALTER EVENT TRIGGER pgquorum_ddl DISABLE");
    let fault = "event trigger pgquorum_ddl is missing, switched off, or not on in all sessions";
    assert_eq!(text(c, FAULTS), format!("t: {fault}"));
    begin_anew(c);
    await_answer(c, SOON, EVENTS, "capture-fault public.t");
    run(c, "ALTER EVENT TRIGGER pgquorum_ddl ENABLE ALWAYS");
    begin_anew(c);
    await_answer(c, SOON, EVENTS, "capture-fault public.t, capture-fault-gone public.t");
}
