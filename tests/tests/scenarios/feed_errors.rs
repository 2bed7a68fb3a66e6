//! What readers are told: positions that are gone, of another history, in the future; followers; damage.

use pgquorum_change::{LogRow, take_row};
use pgquorum_tests::{Plain, Replayed, await_answer, await_until, free_ports, server_directory, text};
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, Row};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(120);

/// The statement fails with this code, and says something in message, detail and hint.
fn refused(client: &mut Client, sql: &str, code: &str) -> String {
    let error = client.batch_execute(sql).expect_err(sql);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}"));
    assert_eq!(error.code().code(), code, "{sql}: {error:?}");
    let hint = error.hint().unwrap_or_else(|| panic!("{sql}: no hint: {error:?}"));
    format!("{} {} {hint}", error.message(), error.detail().unwrap_or_default())
}

#[test]
fn errors_say_what_to_do() {
    let (dir, [port]) = (server_directory("feed-errors"), free_ports());
    let conf =
        "shared_preload_libraries = 'pgquorum'\npgquorum.segment_size = 1\nmax_prepared_transactions = 5";
    let server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    client
        .batch_execute(
            "CREATE EXTENSION pgquorum; CREATE TABLE t (id int PRIMARY KEY, v text);
             SELECT quorum.create_channel('shop'); SELECT quorum.track('t', 'shop');
             INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) AS i",
        )
        .expect("set-up");
    assert_eq!(
        text(&mut client, "SELECT quorum.cut('shop')"),
        "1:101",
        "tick 1 says that the table is tracked"
    );

    refused(&mut client, "SELECT quorum.changes('nope')", "42704");
    refused(&mut client, "SELECT quorum.changes('shop', 'yesterday')", "22023");
    refused(&mut client, "SELECT quorum.changes('shop', 'start', 10, '{nope}')", "42P01");
    let said = refused(&mut client, "SELECT quorum.changes('shop', '1:102')", "PQ003");
    assert!(said.contains("up to tick 101 (1:101)"), "{said}");
    refused(&mut client, "SELECT quorum.read_log('shop', '102')", "PQ003");
    refused(&mut client, "SELECT quorum.wait('shop', '7:50', '1 s')", "PQ002");
    refused(&mut client, "SELECT quorum.dump_start('shop')", "25000");

    // A copy that would hold what its own transaction has written.
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; DELETE FROM t WHERE id = 1")
        .expect("a change");
    refused(&mut client, "SELECT quorum.dump_start('shop')", "25001");
    client.batch_execute("ROLLBACK").expect("the session goes on");

    // A copy whose snapshot is older than the last batch.
    let mut other = server.connect().expect("a second session");
    other.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM t").expect("a snapshot");
    client.batch_execute("INSERT INTO t VALUES (101, 'y')").expect("a change");
    client.batch_execute("SELECT quorum.cut('shop')").expect("a batch");
    refused(&mut other, "SELECT quorum.dump_start('shop')", "PQ004");
    other.batch_execute("ROLLBACK").expect("the session goes on");

    // In the middle of a transaction, from each tick on.
    for after in 0..=102 {
        let sql = format!("SELECT string_agg(tick::text, ',') FROM quorum.changes('shop', '{after}', 1000)");
        let expected: Vec<String> = (after + 1..=102).map(|tick| tick.to_string()).collect();
        assert_eq!(text(&mut client, &sql), expected.join(","), "after {after}");
    }

    // Purged: at once for readers, and on the disk when a segment is free.
    assert_eq!(text(&mut client, "SELECT quorum.purge('shop', keep => 1)"), "1:101");
    let said = refused(&mut client, "SELECT quorum.changes('shop', '1:50')", "PQ001");
    assert!(said.contains("begin at 1:101") && said.contains("dump_start"), "{said}");
    assert_eq!(text(&mut client, "SELECT string_agg(tick::text, ',') FROM quorum.changes('shop')"), "102");
    assert_eq!(text(&mut client, "SELECT quorum.prune('shop')::text"), "2");
    assert_eq!(
        text(
            &mut client,
            "SELECT concat_ws(' ', first_tick, last_tick, changes, delta_version) FROM quorum.channel_state"
        ),
        "103 102 0 0"
    );

    // A dropped channel's positions mean nothing in a new one of its name.
    client
        .batch_execute("SELECT quorum.drop_channel('shop'); SELECT quorum.create_channel('shop')")
        .expect("anew");
    refused(&mut client, "SELECT quorum.changes('shop', '102')", "PQ001");
    client
        .batch_execute("SELECT quorum.track('t', 'shop'); DELETE FROM t WHERE id = 1")
        .expect("changes of the new channel");
    assert_eq!(text(&mut client, "SELECT quorum.cut('shop')"), "1:105");
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_damaged_log_row_is_named_and_what_comes_before_is_given() {
    let (dir, [port]) = (server_directory("feed-damage"), free_ports());
    // PostgreSQL's own checksums would refuse the page; ours are for what gets past them.
    let conf = "shared_preload_libraries = 'pgquorum'\nignore_checksum_failure = on\nfull_page_writes = off";
    let mut server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    client
        .batch_execute(
            "CREATE EXTENSION pgquorum; CREATE TABLE t (id int PRIMARY KEY, v text);
             SELECT quorum.create_channel('shop'); SELECT quorum.track('t', 'shop')",
        )
        .expect("set-up");
    for row in ["(1, 'sound')", "(2, 'MARKER')", "(3, 'sound')"] {
        client.batch_execute(&format!("INSERT INTO t VALUES {row}")).expect("a transaction of its own");
    }
    assert_eq!(text(&mut client, "SELECT quorum.cut('shop')"), "1:4");
    assert_eq!(packed(&mut client, "1:1"), (as_they_are(&mut client, "1:1"), None));
    let file = text(&mut client, "SELECT pg_relation_filepath(heap) FROM quorum.log_segment");
    client.batch_execute("CHECKPOINT").expect("all is in the files");
    server.kill();
    let file = server.dir().join(file);
    let mut bytes = std::fs::read(&file).expect("the log's file");
    let at = bytes.windows(6).position(|window| window == b"MARKER").expect("the value");
    bytes[at] = b'm';
    std::fs::write(&file, bytes).expect("damage");
    server.crash();

    let mut client = server.connect().expect("a session");
    // What was recovered is shown when the worker has found it.
    assert_eq!(text(&mut client, "SELECT quorum.cut('shop')"), "1:4");
    for sql in ["SELECT quorum.changes('shop', '1:1')", "SELECT quorum.read_log('shop', '1:2')"] {
        let said = refused(&mut client, sql, "XX001");
        assert!(
            said.contains("channel \"shop\" is damaged in segment 1: row (0,3) of quorum_log.log_1_1"),
            "{said}"
        );
        assert!(said.contains("checksum"), "{said}");
    }
    // What comes before it is given first.
    let (sound, error) = packed(&mut client, "1:1");
    assert_eq!((ticks(&sound), error.as_deref()), (vec![2], Some("XX001")));
    assert_eq!(packed(&mut client, "1:2"), (Vec::new(), Some("XX001".to_owned())));
    assert_eq!(ticks(&packed(&mut client, "1:3").0), [4]);
    assert_eq!(text(&mut client, "SELECT new ->> 'v' FROM quorum.changes('shop', '1:1', 1)"), "sound");
    assert_eq!(text(&mut client, "SELECT key ->> 'id' FROM quorum.changes('shop', '1:3')"), "3");
    // A change that is longer than what may be read at once is begun; with more it is whole.
    client
        .batch_execute(
            "INSERT INTO t SELECT 5, string_agg(md5(i::text), '') FROM generate_series(1, 10000) AS i",
        )
        .expect("a long change");
    assert_eq!(text(&mut client, "SELECT quorum.cut('shop')"), "1:5");
    for (max_bytes, expected) in [(1, "f t"), (20_000, "f t"), (1_000_000, "t f")] {
        let sql = format!(
            "SELECT concat_ws(' ', sum(length(pack)) > 320000, sum(length(pack)) BETWEEN 8000 AND 30000)
             FROM (SELECT quorum.read_packed('shop', '1:4', {max_bytes}) AS pack) AS packs"
        );
        assert_eq!(text(&mut client, &sql), expected, "{max_bytes}");
    }
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn retention_drops_whole_segments_and_asks_followers() {
    let (dir, [port]) = (server_directory("feed-retention"), free_ports());
    let conf = "shared_preload_libraries = 'pgquorum'\npgquorum.segment_size = 1";
    let server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    client
        .batch_execute(
            "CREATE EXTENSION pgquorum; CREATE TABLE t (id int PRIMARY KEY, v text);
             SELECT quorum.create_channel('shop', retain_rows => 2000); SELECT quorum.track('t', 'shop');
             SELECT quorum.register_follower('shop', 'slow', 'start')",
        )
        .expect("set-up");
    let fill = |client: &mut Client, from: i32| {
        for step in 0..8 {
            let from = from + step * 1000;
            let sql = format!(
                "INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series({from}, {from} + 999) AS i; SELECT quorum.cut('shop')"
            );
            client.batch_execute(&sql).expect("changes");
        }
    };
    fill(&mut client, 0);
    await_until(SOON, "several segments", || {
        let segments = text(&mut client, "SELECT segments::text FROM quorum.channel_state");
        fill_one(&mut client);
        if segments.parse::<i32>().is_ok_and(|n| n >= 3) { Ok(()) } else { Err(segments) }
    });
    // The follower holds everything, until it has read it.
    assert_eq!(text(&mut client, "SELECT first_tick::text FROM quorum.channel_state"), "1");
    let mut copy = Replayed::new("shop");
    while copy.read(&mut client, 5000, i64::MAX).expect("reading") > 0 {}
    client.batch_execute("SELECT quorum.move_follower('shop', 'slow', 'now')").expect("it moves");
    await_until(SOON, "old segments go", || {
        fill_one(&mut client);
        let state = "SELECT concat_ws(' ', first_tick, last_tick, segments) FROM quorum.channel_state";
        let first: i64 =
            text(&mut client, "SELECT first_tick::text FROM quorum.channel_state").parse().expect("a tick");
        if first > 1 { Ok(()) } else { Err(text(&mut client, state)) }
    });
    let said = refused(&mut client, "SELECT quorum.changes('shop', '1:0')", "PQ001");
    assert!(said.contains("has been purged"), "{said}");
    // What is kept can be read from its first tick on, and there is at least what was promised.
    let kept = text(
        &mut client,
        "SELECT concat_ws(' ', count(*) = max(tick) - min(tick) + 1, count(*) >= 2000) FROM quorum.changes('shop', 'start', 1000000)",
    );
    assert_eq!(kept, "t t");

    // A follower that is not heard of is forgotten, with an event.
    client
        .batch_execute("SELECT quorum.register_follower('shop', 'gone', 'now', '1 s')")
        .expect("registered");
    await_until(SOON, "it is forgotten", || {
        let left = text(&mut client, "SELECT count(*)::text FROM quorum.follower WHERE name = 'gone'");
        if left == "0" { Ok(()) } else { Err(left) }
    });
    await_answer(
        &mut client,
        SOON,
        "SELECT kind FROM quorum.event ORDER BY index LIMIT 1",
        "follower-expired",
    );
    refused(&mut client, "SELECT quorum.move_follower('shop', 'gone', 'now')", "42704");
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn log_goes_when_it_is_as_old_as_was_promised_and_followers_have_read_it() {
    const AGE: Duration = Duration::from_secs(5);
    let (dir, [port]) = (server_directory("feed-retention-age"), free_ports());
    let server = Plain::init(&dir.join("data"), port, "shared_preload_libraries = 'pgquorum'");
    let mut client = server.connect().expect("a session");
    client
        .batch_execute(
            "CREATE EXTENSION pgquorum; CREATE TABLE t (id int PRIMARY KEY, v text);
             SELECT quorum.create_channel('shop', retain_age => '5 s'); SELECT quorum.track('t', 'shop');
             SELECT quorum.register_follower('shop', 'slow', 'start'); INSERT INTO t VALUES (1)",
        )
        .expect("set-up");
    // The newest tick after each change, and when the change was begun.
    let mut written: Vec<(i64, Instant)> = Vec::new();
    let number = |client: &mut Client, column: &str| -> i64 {
        text(client, &format!("SELECT {column}::text FROM quorum.channel_state")).parse().expect("a tick")
    };
    let old =
        "SELECT count(*)::text FROM quorum.log_segment WHERE closed_at < clock_timestamp() - interval '12 s'";
    await_until(SOON, "a segment twice as old as was promised", || {
        let begun = Instant::now();
        fill_one(&mut client);
        written.push((number(&mut client, "last_tick"), begun));
        match text(&mut client, old) {
            none if none == "0" => Err(none),
            _ => Ok(()),
        }
    });
    assert_eq!(number(&mut client, "first_tick"), 1, "the follower has not read it");
    client.batch_execute("SELECT quorum.drop_follower('shop', 'slow')").expect("it goes");
    let end = number(&mut client, "last_tick");
    await_until(SOON, "log goes as it gets old", || {
        let begun = Instant::now();
        fill_one(&mut client);
        written.push((number(&mut client, "last_tick"), begun));
        let first = number(&mut client, "first_tick");
        if let Some((tick, begun)) = written.iter().rev().find(|(tick, _)| *tick < first) {
            let age = begun.elapsed();
            // The server goes by another clock, which may be set a little while this runs.
            assert!(age + Duration::from_secs(1) >= AGE, "change {tick} is gone after {age:?}");
        }
        if first > end { Ok(()) } else { Err(format!("{first}, not above {end}")) }
    });
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

fn fill_one(client: &mut Client) {
    client.batch_execute("UPDATE t SET v = v WHERE id = 1; SELECT quorum.cut('shop')").expect("a change");
}

type Rows = Vec<(LogRow, Vec<u8>)>;

fn ticks(rows: &Rows) -> Vec<u64> {
    rows.iter().map(|(row, _)| row.last_tick).collect()
}

/// The log rows that come after a position, and with which SQLSTATE they end before the end of the log.
fn packed(client: &mut Client, after: &str) -> (Rows, Option<String>) {
    let mut found = Vec::new();
    let mut packs = client
        .query_raw("SELECT quorum.read_packed('shop', $1)", [after])
        .expect("the statement itself is right");
    loop {
        let pack: Vec<u8> = match packs.next() {
            Ok(Some(row)) => row.get(0),
            Ok(None) => return (found, None),
            Err(error) => return (found, error.code().map(|code| code.code().to_owned())),
        };
        let mut rest = pack.as_slice();
        while !rest.is_empty() {
            let (row, chunk) = take_row(&mut rest).expect("whole rows");
            found.push((row, chunk.to_vec()));
        }
    }
}

/// The same from the function that gives a log row in a row.
fn as_they_are(client: &mut Client, after: &str) -> Rows {
    let sql =
        "SELECT epoch, first_tick, last_tick, xid::text::int8, flags, data FROM quorum.read_log('shop', $1)";
    let number = |row: &Row, column: usize| u64::try_from(row.get::<_, i64>(column)).expect("not negative");
    let rows = client.query(sql, &[&after]).expect("log rows");
    let row = |row: &Row| {
        let flags = u32::try_from(row.get::<_, i32>(4)).expect("not negative");
        let [epoch, first_tick, last_tick, xid] = [0, 1, 2, 3].map(|column| number(row, column));
        (LogRow { epoch, first_tick, last_tick, xid, flags }, row.get(5))
    };
    rows.iter().map(row).collect()
}
