//! Applying entries of the consensus log: order, idempotence, what is replaced, what is refused.

use pgrx::prelude::*;

/// One value of a query that must return one.
fn text(sql: &str) -> String {
    Spi::get_one::<String>(sql).expect("query runs").expect("query returns a value")
}

fn applied(index: i64, term: i64, payload: &str) -> bool {
    let sql = format!("SELECT quorum.apply_entry({index}, {term}, '{payload}')");
    Spi::get_one::<bool>(&sql).expect("query runs").expect("not null")
}

/// `SQLSTATE: message` of a statement that must fail; the transaction goes on.
fn failure(sql: &str) -> String {
    Spi::run(
        "CREATE OR REPLACE FUNCTION pg_temp.failure(statement text) RETURNS text LANGUAGE plpgsql AS $$
         BEGIN EXECUTE statement; RETURN 'no error';
         EXCEPTION WHEN OTHERS THEN RETURN sqlstate || ': ' || sqlerrm; END $$",
    )
    .expect("helper is created");
    Spi::get_one_with_args::<String>("SELECT pg_temp.failure($1)", &[sql.into()])
        .expect("query runs")
        .expect("not null")
}

fn entry_failure(index: i64, term: i64, payload: &str) -> String {
    failure(&format!("SELECT quorum.apply_entry({index}, {term}, '{payload}')"))
}

const NODES: &str = r#"{"nodes": [
    {"id": 1, "ip": "10.0.0.1", "db-port": 5432, "api-port": 8000, "role": "node", "down": false},
    {"id": 2, "ip": "10.0.0.2", "db-port": 5432, "api-port": 8000, "role": "listener"},
    {"id": 3, "ip": "10.0.0.3", "db-port": null, "role": "witness", "down": true}]}"#;

const NODE_ROWS: &str = "SELECT coalesce(string_agg(n::text, ' ' ORDER BY id), '') FROM quorum.node AS n";

#[pg_schema]
mod tests {
    use super::{NODE_ROWS, NODES, applied, entry_failure, failure, text};
    use pgrx::prelude::*;

    #[pg_test]
    fn entries_apply_once_and_in_order() {
        assert_eq!(text("SELECT quorum.applied_index()::text"), "0");
        assert!(applied(3, 1, "{}"));
        assert!(!applied(3, 1, "{}"), "twice changes nothing");
        assert!(applied(7, 2, "{}"), "gaps are allowed");
        assert!(!applied(3, 1, "{}"));
        assert_eq!(text("SELECT quorum.applied_index()::text"), "7");
        assert_eq!(text("SELECT count(*)::text FROM quorum.cluster_log"), "2");
    }

    #[pg_test]
    fn another_history_is_refused() {
        assert!(applied(3, 2, "{}"));
        assert_eq!(entry_failure(3, 1, "{}"), "22000: entry 3 of term 1 is recorded with term 2");
        assert_eq!(entry_failure(4, 1, "{}"), "22000: entry 4 of term 1 follows entry 3 of the later term 2");
        assert_eq!(
            entry_failure(2, 2, "{}"),
            "55000: entry 2 is older than the newest applied entry, 3, and is not recorded"
        );
        assert_eq!(text("SELECT quorum.applied_index()::text"), "3");
    }

    #[pg_test]
    fn nodes_are_made_equal() {
        assert!(applied(1, 1, NODES));
        let rows = "(1,10.0.0.1,5432,8000,node,f) (2,10.0.0.2,5432,8000,listener,f) (3,10.0.0.3,,,witness,t)";
        assert_eq!(text(NODE_ROWS), rows);
        let before = text("SELECT string_agg(ctid::text, ' ' ORDER BY id) FROM quorum.node");
        assert!(applied(2, 1, NODES));
        let after = text("SELECT string_agg(ctid::text, ' ' ORDER BY id) FROM quorum.node");
        assert_eq!(before, after, "rows that do not differ are not touched");
        assert!(applied(3, 1, r#"{"nodes": [{"id": 2, "ip": "10.0.0.9", "role": "node"}]}"#));
        assert_eq!(text(NODE_ROWS), "(2,10.0.0.9,,,node,f)");
        assert!(applied(4, 1, r#"{"nodes": []}"#));
        assert_eq!(text(NODE_ROWS), "");
    }

    #[pg_test]
    fn settings_are_made_equal() {
        assert!(applied(
            1,
            1,
            r#"{"config": {"a": 1, "b": "x", "c": true}, "db-config": {"work_mem": "8MB"}}"#
        ));
        let settings =
            "SELECT coalesce(string_agg(name || '=' || value, ' ' ORDER BY name), '') FROM quorum.";
        assert_eq!(text(&format!("{settings}config")), "a=1 b=x c=true");
        assert!(applied(2, 1, r#"{"config": {"b": "y", "d": [1]}}"#));
        assert_eq!(text(&format!("{settings}config")), "b=y d=[1]");
        assert_eq!(text(&format!("{settings}db_config")), "work_mem=8MB");
    }

    #[pg_test]
    fn events_are_recorded() {
        assert!(applied(
            5,
            2,
            r#"{"event": {"kind": "node-down", "node": 3, "message": "no answer", "at": "2026-01-02T03:04:05.5+02:00"}}"#
        ));
        let row = "SELECT format('%s %s %s %s %s %s %s', index, term, at AT TIME ZONE 'UTC', kind, node, message, details)
                   FROM quorum.event";
        assert_eq!(text(row), "5 2 2026-01-02 01:04:05.5 node-down 3 no answer {}");
    }

    #[pg_test]
    fn lost_transactions_are_recorded() {
        let report = r#"{"lost": {"node": 3, "timeline": 2, "acknowledged": "no", "transactions": [
            {"xid": 735, "committed-at": "2026-01-02T03:04:05.5Z", "tables": [{"table": "public.a", "inserted": 2}]},
            {"xid": 736, "committed-at": "yesterday", "tables": [], "schema-changed": true}]}}"#;
        assert!(applied(5, 2, report));
        let row = "SELECT string_agg(format('%s %s %s %s %s %s %s %s', index, node, timeline, xid,
                   committed_at AT TIME ZONE 'UTC', acknowledged, tables #>> '{0,table}', schema_changed), '|' ORDER BY xid)
                   FROM quorum.lost_transactions";
        assert_eq!(text(row), "5 3 2 735 2026-01-02 03:04:05.5 no public.a f|5 3 2 736  no  t");
    }

    #[pg_test]
    fn bad_payloads_are_named() {
        for (payload, complaint) in [
            ("[]", "the payload must be a JSON object, not array"),
            (r#"{"nodes": {}}"#, "\"nodes\" must be an array, not object"),
            (r#"{"nodes": [1]}"#, "a node must be an object, not number"),
            (
                r#"{"nodes": [{"ip": "a", "role": "node"}]}"#,
                "the id of a node must be a positive integer, not null",
            ),
            (r#"{"nodes": [{"id": 1.5}]}"#, "the id of a node must be a positive integer, not 1.5"),
            (r#"{"nodes": [{"id": 1, "role": "node"}]}"#, "the ip of node 1 must be a text"),
            (
                r#"{"nodes": [{"id": 1, "ip": "a", "role": "king"}]}"#,
                "the role of node 1 must be node, listener or witness, not \"king\"",
            ),
            (
                r#"{"nodes": [{"id": 1, "ip": "a", "role": "node", "db-port": 65536}]}"#,
                "\"db-port\" of node 1 must be a port number, not 65536",
            ),
            (
                r#"{"nodes": [{"id": 1, "ip": "a", "role": "node", "down": "no"}]}"#,
                "\"down\" of node 1 must be true or false",
            ),
            (
                r#"{"nodes": [{"id": 1, "ip": "a", "role": "node"}, {"id": 1, "ip": "b", "role": "node"}]}"#,
                "the id of every node must be unique",
            ),
            (r#"{"config": []}"#, "\"config\" must be an object, not array"),
            (
                r#"{"db-config": {"a": null}}"#,
                "a setting in \"db-config\" must have a name and a value: \"a\"",
            ),
            (r#"{"lost": []}"#, "\"lost\" must be an object, not array"),
            (
                r#"{"lost": {"node": 1, "timeline": 1, "acknowledged": "maybe"}}"#,
                "\"acknowledged\" of a report must be no or possibly, not \"maybe\"",
            ),
            (
                r#"{"lost": {"node": 1, "timeline": 1, "acknowledged": "no", "transactions": [{"xid": "x"}]}}"#,
                "the xid of a lost transaction must be a number, not \"x\"",
            ),
            (r#"{"event": {"message": "m"}}"#, "the kind of an event must be a text"),
            (r#"{"event": {"kind": "k"}}"#, "the message of an event must be a text"),
            (
                r#"{"event": {"kind": "k", "message": "m", "at": "yesterday"}}"#,
                "\"at\" of an event must be a time as in RFC 3339, not \"yesterday\"",
            ),
        ] {
            assert_eq!(entry_failure(1, 1, payload), format!("22023: {complaint}"));
        }
        assert!(entry_failure(0, 1, "{}").starts_with("22023: index and term must be positive"));
        assert!(failure("SELECT quorum.apply_entry(1, 1, NULL)").starts_with("22023: the payload must be"));
        assert_eq!(text("SELECT quorum.applied_index()::text"), "0", "nothing stays of a refused entry");
    }

    #[pg_test]
    fn a_snapshot_replaces_everything() {
        assert!(applied(1, 1, NODES));
        assert!(applied(2, 1, r#"{"config": {"a": "1"}, "db-config": {"b": "2"}}"#));
        let snapshot = "SELECT quorum.apply_snapshot(9, 2, '{\"nodes\": [{\"id\": 4, \"ip\": \"h\", \"role\": \"node\"}]}')::text";
        assert_eq!(text(snapshot), "true");
        assert_eq!(text(snapshot), "false", "the same one again");
        assert_eq!(text(NODE_ROWS), "(4,h,,,node,f)");
        assert_eq!(
            text(
                "SELECT ((SELECT count(*) FROM quorum.config) + (SELECT count(*) FROM quorum.db_config))::text"
            ),
            "0"
        );
        assert_eq!(text("SELECT payload ->> 'type' FROM quorum.cluster_log WHERE index = 9"), "snapshot");
        assert!(failure("SELECT quorum.apply_snapshot(8, 2, '{\"nodes\": []}')").starts_with("55000"));
        assert_eq!(
            failure("SELECT quorum.apply_snapshot(10, 2, '{}')"),
            "22023: a snapshot must have \"nodes\""
        );
    }

    #[pg_test]
    fn the_log_keeps_ten_thousand_rows() {
        Spi::run(
            "INSERT INTO quorum.cluster_log (index, term, payload) SELECT 2 * i, 1, '{}' FROM generate_series(1, 10005) AS i",
        )
        .expect("rows are inserted");
        assert!(applied(30_000, 1, "{}"));
        assert_eq!(text("SELECT count(*) || ' ' || min(index) FROM quorum.cluster_log"), "10000 14");
    }
}
