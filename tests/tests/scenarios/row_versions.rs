//! What is kept of who wrote a row last: statement by statement, in transactions of all kinds, and what ends it.

use pgquorum_tests::{LogServer, await_answer, refused, run, text};
use postgres::Client;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// A server with a table `t` of whose rows versions are kept.
fn start(conf: &str) -> (LogServer, Client) {
    let log = LogServer::start(conf);
    let mut c = log.connect();
    run(
        &mut c,
        "CREATE TABLE t (id int PRIMARY KEY, v int);
         INSERT INTO t VALUES (1, 0);
         SELECT quorum.track('t', 'c')",
    );
    assert_eq!(text(&mut c, "SELECT quorum.keep_versions('t')::text"), "true");
    (log, c)
}

/// What is known of rows of `t`, as `1 live, 2 deleted by berlin`.
fn known(c: &mut Client) -> String {
    text(
        c,
        "SELECT string_agg(format('%s %s%s', i, CASE WHEN v.deleted THEN 'deleted' ELSE 'live' END, ' by ' || v.origin), ', ' ORDER BY i)
         FROM generate_series(1, 20) AS i, quorum.row_version_of('t', jsonb_build_object('id', i)) AS v",
    )
}

/// Microseconds between the commit of `t`'s row 1 and now.
fn age_us(c: &mut Client) -> i64 {
    let sql = "SELECT ((extract(epoch FROM clock_timestamp()) - extract(epoch FROM v.committed_at)) * 1000000)::bigint::text
               FROM quorum.row_version_of('t', '{\"id\": 1}') AS v";
    text(c, sql).parse().expect("a number")
}

fn rows_kept(c: &mut Client) -> String {
    text(c, "SELECT count(*)::text FROM quorum.row_version")
}

#[test]
fn the_last_change_of_a_row_counts() {
    let (log, mut c) = start("");
    let c = &mut c;
    assert_eq!(known(c), "", "a row that was there is older than everything");
    run(c, "UPDATE t SET v = 1");
    assert_eq!(known(c), "1 live");
    assert!((0..60_000_000).contains(&age_us(c)));
    run(c, "INSERT INTO t VALUES (2, 0); DELETE FROM t WHERE id = 1");
    assert_eq!(known(c), "1 deleted, 2 live");
    run(c, "UPDATE t SET id = 3 WHERE id = 2");
    assert_eq!(known(c), "1 deleted, 2 deleted, 3 live");
    run(
        c,
        "UPDATE t SET id = id + 1 WHERE id = 3; UPDATE t SET id = 3 WHERE id = 4; INSERT INTO t VALUES (1)",
    );
    assert_eq!(known(c), "1 live, 2 deleted, 3 live, 4 deleted");
    run(c, "BEGIN; DELETE FROM t; INSERT INTO t VALUES (5); DELETE FROM t; INSERT INTO t VALUES (3); COMMIT");
    assert_eq!(known(c), "1 deleted, 2 deleted, 3 live, 4 deleted, 5 deleted");
    run(
        c,
        "BEGIN; DELETE FROM t; ROLLBACK; BEGIN; SAVEPOINT s; DELETE FROM t; INSERT INTO t VALUES (6); ROLLBACK TO s; COMMIT",
    );
    assert_eq!(known(c), "1 deleted, 2 deleted, 3 live, 4 deleted, 5 deleted");
    run(
        c,
        "BEGIN; SAVEPOINT a; INSERT INTO t VALUES (6); SAVEPOINT b; INSERT INTO t VALUES (7); RELEASE a; COMMIT",
    );
    assert_eq!(known(c), "1 deleted, 2 deleted, 3 live, 4 deleted, 5 deleted, 6 live, 7 live");
    // Emptied, all rows are deleted, those too of which nothing was known.
    run(c, "BEGIN; INSERT INTO t VALUES (8); TRUNCATE t; INSERT INTO t VALUES (1); COMMIT");
    let all: Vec<String> =
        (1..=20).map(|id| format!("{id} {}", if id == 1 { "live" } else { "deleted" })).collect();
    assert_eq!(known(c), all.join(", "));
    // What is left of the time before is removed; it does not count.
    let of_now =
        "SELECT count(*)::text FROM quorum.row_version AS v JOIN quorum.versioned_table AS t USING (keeping)";
    assert_eq!(text(c, of_now), "1");
    // A prepared transaction: nothing before, all after.
    run(c, "BEGIN; DELETE FROM t; INSERT INTO t VALUES (9); PREPARE TRANSACTION 'p'");
    assert_eq!(text(&mut log.connect(), of_now), "1");
    run(c, "COMMIT PREPARED 'p'");
    let all: Vec<String> =
        (1..=20).map(|id| format!("{id} {}", if id == 9 { "live" } else { "deleted" })).collect();
    assert_eq!(known(c), all.join(", "));
    run(c, "BEGIN; DELETE FROM t; TRUNCATE t; PREPARE TRANSACTION 'p'");
    run(c, "ROLLBACK PREPARED 'p'");
    assert_eq!(known(c), all.join(", "));
    run(c, "TRUNCATE t; INSERT INTO t VALUES (8)");
    run(c, "TRUNCATE t");
    run(c, "INSERT INTO t VALUES (9)");
    assert_eq!(text(c, of_now), "1", "a session that emptied a table keeps what it writes then");
    assert_eq!(known(c), all.join(", "));
}

#[test]
fn serializable_transactions_do_not_fail_by_it() {
    let (log, mut c) = start("");
    let c = &mut c;
    run(c, "INSERT INTO t SELECT generate_series(2, 100)");
    let begin = "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pg_class;";
    run(
        c,
        &format!("{begin} INSERT INTO t VALUES (101); DELETE FROM t WHERE id = 7; PREPARE TRANSACTION 'p'"),
    );
    let noted = "SELECT count(*)::text FROM pg_locks WHERE mode = 'SIReadLock'
        AND relation IN ('quorum.row_version'::regclass, 'quorum.row_version_pkey'::regclass)";
    assert_eq!(text(&mut log.connect(), noted), "0");
    let other = &mut log.connect();
    run(other, &format!("{begin} UPDATE t SET v = 9 WHERE id = 8; INSERT INTO t VALUES (102); COMMIT"));
    run(c, "COMMIT PREPARED 'p'");
    assert_eq!(
        text(c, "SELECT count(*) FILTER (WHERE deleted)::text || ' ' || count(*) FROM quorum.row_version"),
        "1 101"
    );
}

#[test]
fn applied_changes_have_the_time_and_place_of_their_origin() {
    let (log, mut c) = start("");
    let c = &mut c;
    let as_berlin =
        |time: &str| format!("SET pgquorum.origin = 'berlin'; SET pgquorum.origin_commit_time = '{time}'");
    let apply = &mut log.connect();
    run(apply, &as_berlin("2001-02-03 04:05:06.000007+00"));
    run(apply, "UPDATE t SET v = 2; INSERT INTO t VALUES (2); DELETE FROM t WHERE id = 2");
    assert_eq!(known(c), "1 live by berlin, 2 deleted by berlin");
    let at = "SELECT committed_at::timestamptz(6) AT TIME ZONE 'UTC' = '2001-02-03 04:05:06.000007'
              FROM quorum.row_version_of('t', '{\"id\": 1}')";
    assert_eq!(text(c, &format!("SELECT ({at})::text")), "true");
    // Who writes here is later, also than an origin whose clock is ahead, and the log says so.
    run(c, "UPDATE t SET v = 3");
    assert_eq!(known(c), "1 live, 2 deleted by berlin");
    run(apply, &as_berlin("2100-01-01 00:00:00+00"));
    run(apply, "UPDATE t SET v = 4");
    run(c, "UPDATE t SET v = 5");
    assert_eq!(known(c), "1 live, 2 deleted by berlin");
    let logged = "SELECT format('%s %s', max(committed_at) = '2100-01-01 00:00:00.000001+00', count(*) FILTER (WHERE committed_at > now() + interval '1 day'))
                  FROM quorum.changes('c', 'start', 1000) WHERE op <> 'ddl'";
    run(c, "SELECT quorum.cut('c')");
    assert_eq!(text(c, logged), "t 1");
    assert_eq!(
        text(
            c,
            "SELECT (committed_at = '2100-01-01 00:00:00.000001+00')::text FROM quorum.row_version_of('t', '{\"id\": 1}')"
        ),
        "true"
    );
    run(c, "DELETE FROM t");
    run(c, "INSERT INTO t VALUES (3)");
    assert_eq!(known(c), "1 deleted, 2 deleted by berlin, 3 live");
    assert_eq!(
        text(
            c,
            "SELECT (committed_at < now() + interval '1 minute')::text FROM quorum.row_version_of('t', '{\"id\": 3}')"
        ),
        "true",
        "other rows have the clock's time"
    );
    // Who would win.
    let wins = |c: &mut Client, id: i32, time: &str, origin: &str| {
        text(c, &format!("SELECT quorum.who_wins('t', '{{\"id\": {id}}}', {time}, '{origin}', 'here')"))
    };
    assert_eq!(wins(c, 7, "'1970-01-01'", "x"), "remote", "nothing is known");
    assert_eq!(wins(c, 3, "'2001-01-01'", "x"), "local");
    assert_eq!(wins(c, 3, "clock_timestamp() + interval '5 s'", "x"), "remote");
    assert_eq!(wins(c, 3, "clock_timestamp() + interval '11 s'", "x"), "future");
    let same = "(SELECT committed_at FROM quorum.row_version_of('t', '{\"id\": 3}'))";
    assert_eq!(wins(c, 3, same, "h"), "local");
    assert_eq!(wins(c, 3, same, "here"), "same");
    assert_eq!(wins(c, 3, same, "i"), "remote");
    assert_eq!(wins(c, 2, "'2001-02-03 04:05:06.000007+00'", "berlin"), "same");
    assert_eq!(wins(c, 2, "'2001-02-03 04:05:06.000007+00'", "bern"), "remote");
    // Origins get their numbers once, and keep them if the transaction fails.
    run(c, "BEGIN; SET LOCAL pgquorum.origin = 'oslo'; INSERT INTO t VALUES (4); PREPARE TRANSACTION 'p'");
    run(c, "ROLLBACK PREPARED 'p'");
    run(c, "BEGIN; SET LOCAL pgquorum.origin = 'paris'; INSERT INTO t VALUES (4); COMMIT");
    run(c, "BEGIN; SET LOCAL pgquorum.origin = 'oslo'; INSERT INTO t VALUES (5); COMMIT");
    assert_eq!(known(c), "1 deleted, 2 deleted by berlin, 3 live, 4 live by paris, 5 live by oslo");
    let numbers = "SELECT string_agg(format('%s %s', id, name), ', ' ORDER BY id) FROM quorum.origin";
    assert_eq!(text(c, numbers), "1 berlin, 2 paris, 3 oslo");
    assert_eq!(text(c, "SELECT quorum.origin_number('paris'::bytea)::text"), "2");
}

#[test]
fn large_transactions_and_partitions() {
    let (_log, mut c) = start("pgquorum.capture_memory = 64kB");
    let c = &mut c;
    run(
        c,
        "CREATE TABLE p (a text, b int, v int, PRIMARY KEY (b, a)) PARTITION BY RANGE (b);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (30000);
         CREATE TABLE p2 (v int, b int NOT NULL, a text NOT NULL);
         ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (30000) TO (60000);
         SELECT quorum.track('p', 'c'); SELECT quorum.keep_versions('p')",
    );
    refused(c, "SELECT quorum.keep_versions('p1')", "42704", "not tracked");
    // More than fits into memory, each row several times, and far from each other.
    run(
        c,
        "BEGIN; INSERT INTO p SELECT 'k', i, 0 FROM generate_series(0, 59999) AS i;
         UPDATE p SET v = 1 WHERE b % 3 = 0; DELETE FROM p WHERE b % 3 = 1;
         SAVEPOINT s; DELETE FROM p; ROLLBACK TO s; UPDATE p SET b = b + 30002 WHERE b % 3 = 2 AND b < 100; COMMIT",
    );
    let differ = "SELECT count(*)::text FROM generate_series(0, 59999) AS i
        JOIN quorum.row_version AS v ON v.key = quorum.key_number(ARRAY['k', i::text]::bytea[])
        LEFT JOIN p ON p.b = i WHERE v.deleted IS NOT DISTINCT FROM (p.b IS NOT NULL)";
    assert_eq!(text(c, differ), "0");
    assert_eq!(rows_kept(c), "60000");
    assert_eq!(text(c, "SELECT count(DISTINCT commit_us)::text FROM quorum.row_version"), "1");
    // The same again over what is there, as another origin in one with its own clock.
    run(
        c,
        "BEGIN; SET LOCAL pgquorum.origin = 'x'; UPDATE p SET v = 2; DELETE FROM p WHERE b % 2 = 0; COMMIT",
    );
    assert_eq!(text(c, differ), "0");
    run(c, "BEGIN; UPDATE p SET v = 3; TRUNCATE p1; INSERT INTO p VALUES ('k', 7, 1); COMMIT");
    assert_eq!(text(c, differ), "0", "rows of a partition that was emptied are deleted one by one");
    run(c, "BEGIN; UPDATE p SET v = 3; INSERT INTO p SELECT 'l', i FROM generate_series(0, 20000) AS i; TRUNCATE p;
            INSERT INTO p SELECT 'm', i FROM generate_series(0, 29999) AS i; COMMIT");
    let of_now = "SELECT count(*)::text FROM quorum.row_version AS v JOIN quorum.versioned_table AS t USING (keeping) WHERE NOT v.deleted";
    assert_eq!(text(c, of_now), "30000");
    assert_eq!(
        text(c, "SELECT deleted::text FROM quorum.row_version_of('p', '{\"a\": \"k\", \"b\": 7}')"),
        "true"
    );
    assert_eq!(
        text(c, "SELECT deleted::text FROM quorum.row_version_of('p', '{\"a\": \"m\", \"b\": 7}')"),
        "false"
    );
}

#[test]
fn what_ends_it_and_what_is_refused() {
    let (log, mut c) = start("");
    let c = &mut c;
    run(c, "UPDATE t SET v = 1; INSERT INTO t VALUES (2)");
    assert_eq!(text(c, "SELECT quorum.keep_versions('t')::text"), "false", "it is kept already");
    assert_eq!(known(c), "1 live, 2 live");
    // Other columns are no matter; with another key it begins anew.
    run(c, "ALTER TABLE t ADD COLUMN w int NOT NULL DEFAULT 7");
    assert_eq!(known(c), "1 live, 2 live");
    refused(c, "ALTER TABLE t ALTER COLUMN id TYPE float", "55006", "may print differently");
    refused(
        c,
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id) DEFERRABLE",
        "55006",
        "DEFERRABLE",
    );
    run(
        c,
        "BEGIN; UPDATE t SET v = 2; ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, w); INSERT INTO t VALUES (3, 3, 3); COMMIT",
    );
    refused(c, "SELECT * FROM quorum.row_version_of('t', '{\"id\": 1}')", "22023", "must have the column w");
    refused(
        c,
        "SELECT * FROM quorum.row_version_of('t', '{\"id\": 1, \"w\": 1, \"v\": 1}')",
        "22023",
        "other columns",
    );
    let by = |c: &mut Client, id: i32, w: i32| {
        text(
            c,
            &format!("SELECT count(*)::text FROM quorum.row_version_of('t', '{{\"id\": {id}, \"w\": {w}}}')"),
        )
    };
    assert_eq!((by(c, 1, 7), by(c, 3, 3)), ("0".to_owned(), "1".to_owned()));
    run(c, "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)");
    assert_eq!(known(c), "");
    run(c, "UPDATE t SET v = 3 WHERE id < 3");
    assert_eq!(known(c), "1 live, 2 live");
    // Dropped, and begun anew: nothing is known.
    assert_eq!(text(c, "SELECT quorum.drop_versions('t')::text"), "true");
    assert_eq!(text(c, "SELECT quorum.drop_versions('t')::text"), "false");
    refused(c, "SELECT * FROM quorum.row_version_of('t', '{\"id\": 1}')", "42704", "no versions are kept");
    let other = &mut log.connect();
    run(other, "UPDATE t SET v = 4");
    run(c, "SELECT quorum.keep_versions('t')");
    assert_eq!(known(c), "");
    run(other, "UPDATE t SET v = 5 WHERE id = 1");
    assert_eq!(known(c), "1 live");
    run(c, "BEGIN; UPDATE t SET v = 6; SELECT quorum.untrack('t'); COMMIT");
    refused(c, "SELECT * FROM quorum.row_version_of('t', '{\"id\": 1}')", "42704", "not tracked");
    refused(c, "SELECT quorum.keep_versions('t')", "42704", "not tracked");
    run(
        c,
        "SELECT quorum.track('t', 'c'); SELECT quorum.keep_versions('t'); UPDATE t SET v = 7 WHERE id = 2",
    );
    assert_eq!(known(c), "2 live");
    run(c, "BEGIN; UPDATE t SET v = 8; DROP TABLE t; COMMIT");
    assert_eq!(text(c, "SELECT count(*)::text FROM quorum.versioned_table"), "0");
    // Keys that are equal without printing the same, and tables of which not all is in the log.
    run(
        c,
        "CREATE COLLATION anyhow (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN code AS text CHECK (value <> '');
         CREATE TABLE f (id float PRIMARY KEY); CREATE TABLE n (id numeric PRIMARY KEY); CREATE TABLE j (id jsonb PRIMARY KEY);
         CREATE TABLE w (id text COLLATE anyhow PRIMARY KEY); CREATE TABLE d (id int PRIMARY KEY DEFERRABLE);
         CREATE TABLE few (id int PRIMARY KEY, v int); CREATE TABLE whole (id int); CREATE TABLE i (id interval PRIMARY KEY);
         CREATE TABLE many (a bool, b mood, c code, d numeric(9, 2), e char(5), f timestamptz, g bytea, h uuid, i date,
                            j varchar, k bigint, l smallint, m name, n inet, v int, PRIMARY KEY (n, m, l, k, j, i, h, g, f, e, d, c, b, a));
         SELECT quorum.track(x, 'c') FROM unnest('{f,n,j,w,d,i,many}'::regclass[]) AS x;
         SELECT quorum.track('few', 'c', \"where\" => 'v > 0'), quorum.track('whole', 'c', old_image => 'full')",
    );
    for (table, why) in [
        ("f", "double precision"),
        ("n", "numeric"),
        ("j", "jsonb"),
        ("w", "text"),
        ("i", "interval"),
        ("d", "DEFERRABLE"),
        ("few", "filtered"),
        ("whole", "no key"),
    ] {
        refused(c, &format!("SELECT quorum.keep_versions('{table}')"), "55000", why);
    }
    // What SQL makes of a key is what the trigger made of it, whatever the session's settings are.
    run(
        c,
        "SELECT quorum.keep_versions('many'); SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Tokyo'; SET bytea_output = 'escape';
         INSERT INTO many SELECT true, 'bad', 'ä', 1, 'ab', '2001-02-03 04:05:06.7+00', '\\xff00', gen_random_uuid(), '1999-12-31',
                                 'x', 1::bigint << 60, -7, 'n', '10.1.2.3' FROM generate_series(1, 3)",
    );
    let keys = "SELECT format('%s %s', count(*), count(DISTINCT v.committed_at)) FROM many,
        quorum.row_version_of('many', to_jsonb(many) - 'v') AS v WHERE NOT v.deleted";
    assert_eq!(text(c, keys), "3 1");
    run(c, "DROP EXTENSION pgquorum CASCADE; INSERT INTO many SELECT * FROM many WHERE false");
}

#[test]
fn old_tombstones_are_removed_and_nothing_else() {
    let (log, mut c) = start("pgquorum.tombstone_age = '1h'");
    let c = &mut c;
    run(
        c,
        "CREATE TABLE gone (id int PRIMARY KEY); SELECT quorum.track('gone', 'c'); SELECT quorum.keep_versions('gone');
         INSERT INTO gone SELECT generate_series(1, 3000);
         INSERT INTO t SELECT generate_series(2, 3000); DELETE FROM t WHERE id % 2 = 0",
    );
    // Deleted long ago, elsewhere.
    run(
        c,
        "SET pgquorum.origin = 'x'; SET pgquorum.origin_commit_time = '2001-01-01 00:00+00'; DELETE FROM t WHERE id % 5 = 0 AND id <= 1000",
    );
    run(c, "RESET pgquorum.origin; RESET pgquorum.origin_commit_time; UPDATE t SET v = 1 WHERE id = 1");
    // One of the tombstones is being replaced meanwhile, and waits for nobody.
    let writer = &mut log.connect();
    run(writer, "BEGIN; INSERT INTO t VALUES (5); PREPARE TRANSACTION 'p'");
    run(c, "SELECT quorum.drop_versions('gone')");
    run(c, "ALTER SYSTEM SET pgquorum.tombstone_age = '1s'");
    run(c, "SELECT pg_reload_conf()");
    let left = "SELECT format('%s live, %s old, %s of no table', count(*) FILTER (WHERE NOT v.deleted), count(*) FILTER (WHERE v.deleted),
                              count(*) FILTER (WHERE t.keeping IS NULL))
                FROM quorum.row_version AS v LEFT JOIN quorum.versioned_table AS t USING (keeping)";
    await_answer(c, SOON * 4, left, "1400 live, 1 old, 0 of no table");
    run(writer, "COMMIT PREPARED 'p'");
    await_answer(c, SOON, left, "1401 live, 0 old, 0 of no table");
    assert_eq!(known(c), "1 live, 3 live, 5 live, 7 live, 9 live, 11 live, 13 live, 17 live, 19 live");
}
