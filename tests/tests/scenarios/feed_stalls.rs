//! What must not hold up the feed, nor let it show too much: commits that wait, sessions that keep locks, many databases,
//! nobody listening, a channel that is broken.

use pgquorum_tests::{Plain, await_answer, await_until, free_ports, run, server_directory, text};
use postgres::Client;
use std::time::{Duration, Instant};

/// The worker looks about once a second by itself; machines may be busy.
const SOON: Duration = Duration::from_secs(60);

fn set_up(client: &mut Client, channels: &[&str]) {
    run(client, "CREATE EXTENSION pgquorum");
    for name in channels {
        run(
            client,
            &format!(
                "CREATE TABLE {name} (id int PRIMARY KEY); SELECT quorum.create_channel('{name}');
                 SELECT quorum.track('{name}', '{name}')"
            ),
        );
        run(client, &format!("SELECT quorum.cut('{name}')"));
    }
}

/// Waits until a row is shown, without asking for a batch.
fn shown(client: &mut Client, channel: &str, id: i32) {
    let sql = format!(
        "SELECT count(*)::text FROM quorum.changes('{channel}', 'start', 100000) WHERE key ->> 'id' = '{id}'"
    );
    await_until(SOON, &format!("row {id} of {channel} is shown"), || match text(client, &sql) {
        n if n == "1" => Ok(()),
        n => Err(n),
    });
}

/// From now on commits wait for a standby that is not there; or not any more.
fn wait_for_nobody(server: &Plain, client: &mut Client, wait: bool) {
    let sql =
        if wait { "SET synchronous_standby_names = 'nobody'" } else { "RESET synchronous_standby_names" };
    run(client, &format!("ALTER SYSTEM {sql}"));
    run(client, "SELECT pg_reload_conf()");
    await_answer(client, SOON, "SHOW synchronous_standby_names", if wait { "nobody" } else { "" });
    if wait {
        // That they wait is said to all by the checkpointer, when it has read the settings. Whoever can connect now comes
        // after it was told to, and it does so before the second of two checkpoints.
        let mut later = server.connect().expect("a session");
        run(&mut later, "CHECKPOINT");
        run(&mut later, "CHECKPOINT");
    }
}

const COMMITS_THAT_WAIT: &str = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'";
// Others look into other databases.
const CUTTER: &str = "SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'pgquorum feed' AND datname = current_database()";
const CUTTER_IS_HELD_UP: &str = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND backend_type = 'pgquorum feed' AND datname = current_database()";
const CUTTER_WAITS: &str = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'pgquorum feed' AND datname = current_database()";

#[test]
fn a_commit_that_waited_for_standbys_is_shown_on_a_server_that_does_nothing_else() {
    let (dir, [port]) = (server_directory("feed-stalls-commit"), free_ports());
    // Learned statements are written, too.
    let conf = "shared_preload_libraries = 'pgquorum'\nautovacuum = off\nmax_prepared_transactions = 5\npgquorum.learn_statements = off";
    let server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    set_up(&mut client, &["shop"]);
    for (id, prepared) in [(1, false), (2, true)] {
        if prepared {
            run(&mut client, "BEGIN; INSERT INTO shop VALUES (2); PREPARE TRANSACTION 'p'");
        }
        wait_for_nobody(&server, &mut client, true);
        let mut waiting = server.connect().expect("a second session");
        let commit = std::thread::spawn(move || {
            run(&mut waiting, if prepared { "COMMIT PREPARED 'p'" } else { "INSERT INTO shop VALUES (1)" });
        });
        await_answer(&mut client, SOON, COMMITS_THAT_WAIT, "1");
        // It is looked for now, when its commit is in the WAL already, and cannot be seen yet.
        run(&mut client, "SELECT quorum.cut('shop')");
        wait_for_nobody(&server, &mut client, false);
        commit.join().expect("it commits");
        shown(&mut client, "shop", id);
    }
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

/// Changes of a channel come at their usual pace of one look a second, for some seconds.
fn goes_on(client: &mut Client, channel: &str, ids: std::ops::Range<i32>) {
    for id in ids {
        run(client, &format!("INSERT INTO {channel} VALUES ({id})"));
        shown(client, channel, id);
    }
}

#[test]
fn a_session_that_keeps_a_lock_holds_up_its_own_channel_only() {
    let (dir, [port]) = (server_directory("feed-stalls-lock"), free_ports());
    let conf = "shared_preload_libraries = 'pgquorum'";
    let server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    set_up(&mut client, &["a", "b"]);
    let mut holder = server.connect().expect("a second session");
    let locks = [
        "SELECT quorum.drop_channel('a')",
        "SELECT quorum.prune('a'); SELECT quorum.open_segment(1)",
        "LOCK TABLE quorum.channel_confirmed, quorum.log_segment, quorum.batch_segment IN SHARE ROW EXCLUSIVE MODE",
    ];
    for (round, sql) in (1..).zip(locks) {
        run(&mut holder, &format!("BEGIN; {sql}"));
        if round > 1 {
            run(&mut client, &format!("INSERT INTO a VALUES ({round})"));
        }
        goes_on(&mut client, "b", round * 10..round * 10 + 4);
        run(&mut holder, "ROLLBACK");
        if round > 1 {
            shown(&mut client, "a", round);
        }
    }
    // Whoever asks for a batch gets it when the lock is gone.
    run(&mut holder, "BEGIN; SELECT quorum.drop_channel('a')");
    let mut asker = server.connect().expect("a third session");
    let asked = std::thread::spawn(move || text(&mut asker, "SELECT quorum.cut('a')"));
    goes_on(&mut client, "b", 40..43);
    run(&mut holder, "ROLLBACK");
    assert!(asked.join().expect("it is answered").starts_with("1:"));
    // A follower that is being moved cannot expire; everything else goes on. Nor does log go that it may need.
    await_until(SOON, "it is being moved before it expires", || {
        run(&mut client, "SELECT quorum.register_follower('a', 'f', 'now', '1 s')");
        holder.batch_execute("BEGIN; SELECT quorum.move_follower('a', 'f', 'now')").map_err(|error| {
            run(&mut holder, "ROLLBACK");
            format!("{error:?}")
        })
    });
    goes_on(&mut client, "a", 50..55);
    let error = client.batch_execute("SELECT quorum.drop_segments(1, 1, 1, true)").expect_err("not now");
    assert_eq!(error.code().map(|code| code.code()), Some("55P03"), "{error:?}");
    // Where followers are not asked, it does not count. There is no segment 0.
    run(&mut client, "BEGIN; SELECT quorum.drop_segments(1, 0, 0, false); ROLLBACK");
    run(&mut holder, "ROLLBACK");
    // What cannot be looked after is cut all the same.
    run(&mut client, "ALTER TABLE quorum.follower RENAME TO other");
    goes_on(&mut client, "a", 60..64);
    await_until(SOON, "that is said once", || {
        let log = server.log();
        match log.matches("channel \"a\" in database 5 cannot be looked after").count() {
            1 => Ok(()),
            times => Err(format!("{times} times: {log}")),
        }
    });
    run(&mut client, "ALTER TABLE quorum.other RENAME TO follower");
    assert!(!server.log().contains("no batch of channel"), "{}", server.log());
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_channel_that_cannot_be_looked_after_does_not_slow_down_others() {
    let (dir, [port]) = (server_directory("feed-stalls-kept"), free_ports());
    let conf = "shared_preload_libraries = 'pgquorum'\npgquorum.segment_size = 1MB";
    let server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    set_up(&mut client, &["a", "b"]);
    let batches_of_b = |client: &mut Client, ids: std::ops::Range<i32>| {
        let begin = Instant::now();
        for id in ids {
            run(client, &format!("INSERT INTO b VALUES ({id})"));
            run(client, "SELECT quorum.cut('b')");
        }
        begin.elapsed()
    };
    let usual = batches_of_b(&mut client, 0..50);
    // Its segment is full, and the next one cannot be opened. Somebody waits for it, so it is served all the time.
    let mut holder = server.connect().expect("a second session");
    run(&mut holder, "BEGIN; SELECT FROM quorum.channel WHERE id = 1 FOR UPDATE");
    run(&mut client, "INSERT INTO a SELECT generate_series(1, 300000)");
    run(&mut client, "SELECT quorum.cut('a')");
    let mut reader = server.connect().expect("a third session");
    let waiting = std::thread::spawn(move || run(&mut reader, "SELECT quorum.wait('a', 'now', '6 s')"));
    await_answer(&mut client, SOON, CUTTER_IS_HELD_UP, "1");
    let took = batches_of_b(&mut client, 50..100);
    // If each of them waited for the other channel's lock, which is asked for for 200 ms, it would be 10 s more than usual.
    assert!(took < usual * 2 + Duration::from_secs(5), "50 batches took {took:?}, and before {usual:?}");
    let segments = "SELECT count(*)::text FROM quorum.log_segment WHERE channel = 1";
    assert_eq!(text(&mut client, segments), "1");
    run(&mut holder, "ROLLBACK");
    await_answer(&mut client, SOON, segments, "2");
    waiting.join().expect("it is answered");
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_channel_is_served_whatever_number_of_databases_there_is() {
    let (dir, [port]) = (server_directory("feed-stalls-many"), free_ports());
    let conf = "shared_preload_libraries = 'pgquorum'\nfsync = off";
    let mut server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    for number in 0..70 {
        // Nobody can be in this template, as the worker that looks into all databases may be in the other one.
        run(&mut client, &format!("CREATE DATABASE many_{number} TEMPLATE template0"));
    }
    server.crash();
    let mut client = server.connect().expect("a session");
    // All are visited after the start, one after the other; a crash sets the counters to 0.
    let visited =
        "SELECT count(*)::text FROM pg_stat_database WHERE datname LIKE 'many%' AND xact_commit > 0";
    await_until(SOON * 5, "all databases are visited", || match text(&mut client, visited) {
        n if n == "70" => Ok(()),
        n => Err(n),
    });
    set_up(&mut client, &["shop"]);
    run(&mut client, "INSERT INTO shop VALUES (1)");
    shown(&mut client, "shop", 1);
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_database_that_cannot_be_entered_does_not_hold_up_others() {
    let (dir, [port]) = (server_directory("feed-stalls-visit"), free_ports());
    let conf = "shared_preload_libraries = 'pgquorum'\nmax_prepared_transactions = 5";
    let mut server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    set_up(&mut client, &["shop"]);
    run(&mut client, "CREATE DATABASE shut TEMPLATE template0");
    // Outlives the crash: from then on nobody can connect to this database.
    let mut inside = server.connect_to("shut").expect("a session in the other database");
    run(&mut inside, "BEGIN; LOCK TABLE pg_class IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'shut'");
    server.crash();
    let mut client = server.connect().expect("a session");
    let workers = "SELECT count(*)::text FROM pg_stat_activity
                   WHERE backend_type = 'pgquorum feed' AND datname = 'postgres'";
    await_answer(&mut client, SOON, workers, "1");
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn the_last_batch_before_a_standby_came_is_shown_there() {
    let (dir, [port, other]) = (server_directory("feed-stalls-told"), free_ports());
    let conf = "shared_preload_libraries = 'pgquorum'";
    let server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    set_up(&mut client, &["shop"]);
    run(&mut client, "INSERT INTO shop VALUES (1)");
    run(&mut client, "SELECT quorum.cut('shop')");
    let standby = server.standby(&dir.join("standby"), other, "late");
    let mut reader = standby.connect().expect("a session on the standby");
    shown(&mut reader, "shop", 1);
    drop(reader);
    standby.remove();
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_batch_that_a_crash_left_is_shown_when_standbys_have_it() {
    let (dir, [port]) = (server_directory("feed-stalls-crash"), free_ports());
    let conf = "shared_preload_libraries = 'pgquorum'";
    let mut server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    set_up(&mut client, &["shop"]);
    run(&mut client, "INSERT INTO shop VALUES (1)");
    let end = text(&mut client, "SELECT quorum.cut('shop')");
    wait_for_nobody(&server, &mut client, true);
    run(&mut client, "SET synchronous_commit = local; INSERT INTO shop VALUES (2)");
    await_answer(&mut client, SOON, CUTTER_WAITS, "1");
    server.crash();
    let mut client = server.connect().expect("a session");
    await_answer(&mut client, SOON, CUTTER_WAITS, "1");
    assert_eq!(
        text(&mut client, "SELECT max(last_tick)::text FROM quorum_log.batch_1_1"),
        "3",
        "it is there"
    );
    assert_eq!(text(&mut client, "SELECT end_position FROM quorum.channel_state"), end, "and is not shown");
    let reading = "SELECT count(*)::text FROM quorum.changes('shop', '1:3')";
    assert_eq!(text(&mut client, reading), "0", "whoever had it already waits for what comes next");
    // Nor is it when the one who waits for standbys is told to go, and the next one waits.
    let cutter = text(&mut client, CUTTER);
    run(&mut client, &format!("SELECT pg_terminate_backend({cutter})"));
    await_answer(&mut client, SOON, &format!("{CUTTER_WAITS} AND pid <> {cutter}"), "1");
    assert_eq!(text(&mut client, "SELECT end_position FROM quorum.channel_state"), end, "not yet");
    wait_for_nobody(&server, &mut client, false);
    shown(&mut client, "shop", 2);
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_worker_that_waits_for_standbys_is_not_cancelled_but_ended() {
    let (dir, [port]) = (server_directory("feed-stalls-cancel"), free_ports());
    let server = Plain::init(&dir.join("data"), port, "shared_preload_libraries = 'pgquorum'");
    let mut client = server.connect().expect("a session");
    set_up(&mut client, &["shop"]);
    let end = text(&mut client, "SELECT quorum.cut('shop')");
    wait_for_nobody(&server, &mut client, true);
    run(&mut client, "SET synchronous_commit = local; INSERT INTO shop VALUES (1)");
    await_answer(&mut client, SOON, CUTTER_WAITS, "1");
    let cutter = text(&mut client, CUTTER);
    run(&mut client, &format!("SELECT pg_cancel_backend({cutter})"));
    await_until(SOON, "the worker says that it waits on", || {
        let log = std::fs::read_to_string(dir.join("data.log")).map_err(|e| e.to_string())?;
        let said = log.contains("a commit goes on waiting for its standbys");
        if said { Ok(()) } else { Err("it has not said so".to_owned()) }
    });
    assert_eq!(text(&mut client, "SELECT end_position FROM quorum.channel_state"), end);
    await_answer(&mut client, SOON, CUTTER_WAITS, "1");
    // That is said once. Were this one to end the wait, the batch would be shown below.
    run(&mut client, &format!("SELECT pg_cancel_backend({cutter})"));
    run(&mut client, &format!("SELECT pg_terminate_backend({cutter})"));
    // The next one waits for the same.
    let next = format!("SELECT count(*)::text FROM ({CUTTER}) AS c(pid) WHERE pid <> '{cutter}'");
    await_answer(&mut client, SOON, &next, "1");
    await_answer(&mut client, SOON, CUTTER_WAITS, "1");
    assert_eq!(text(&mut client, "SELECT end_position FROM quorum.channel_state"), end, "not yet");
    wait_for_nobody(&server, &mut client, false);
    shown(&mut client, "shop", 1);
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_follower_cannot_register_for_log_that_only_an_old_snapshot_shows() {
    let (dir, [port]) = (server_directory("feed-stalls-old"), free_ports());
    let server = Plain::init(&dir.join("data"), port, "shared_preload_libraries = 'pgquorum'");
    let mut client = server.connect().expect("a session");
    set_up(&mut client, &["shop"]);
    run(&mut client, "SELECT quorum.register_follower('shop', 'f')");
    let mut old = server.connect().expect("a second session");
    for sql in
        ["SELECT quorum.register_follower('shop', 'g', '0')", "SELECT quorum.move_follower('shop', 'f', '0')"]
    {
        run(&mut old, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1");
        run(&mut client, "SELECT quorum.purge('shop', keep => 0)");
        let error = old.batch_execute(sql).expect_err("it has gone");
        assert_eq!(error.code().map(|code| code.code()), Some("PQ001"), "{error:?}");
        run(&mut old, "ROLLBACK");
        run(&mut client, "DELETE FROM quorum.channel_start");
    }
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_channel_made_anew_begins_above_a_batch_that_was_being_made() {
    let (dir, [port]) = (server_directory("feed-stalls-anew"), free_ports());
    let conf = "shared_preload_libraries = 'pgquorum'";
    let server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    set_up(&mut client, &["shop"]);
    wait_for_nobody(&server, &mut client, true);
    run(&mut client, "SET synchronous_commit = local; INSERT INTO shop VALUES (1)");
    await_answer(&mut client, SOON, CUTTER_WAITS, "1");
    let mut other = server.connect().expect("a second session");
    let dropped = std::thread::spawn(move || run(&mut other, "SELECT quorum.drop_channel('shop')"));
    await_answer(
        &mut client,
        SOON,
        "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND backend_type = 'client backend'",
        "1",
    );
    wait_for_nobody(&server, &mut client, false);
    dropped.join().expect("it is dropped");
    run(&mut client, "SELECT quorum.create_channel('shop')");
    // Tick 1 said that the table is tracked, 2 was the row; 3 is left out.
    assert_eq!(text(&mut client, "SELECT first_tick::text FROM quorum.channel_state"), "4");
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_broken_channel_keeps_no_place_of_others() {
    let (dir, [port]) = (server_directory("feed-stalls-broken"), free_ports());
    let conf = "shared_preload_libraries = 'pgquorum'\nmax_prepared_transactions = 5";
    let server = Plain::init(&dir.join("data"), port, conf);
    let mut client = server.connect().expect("a session");
    set_up(&mut client, &["a", "b"]);
    run(&mut client, "SET allow_system_table_mods = on; UPDATE quorum_log.batch_1_1 SET snapshot = 'broken'");
    run(
        &mut client,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pgquorum feed'",
    );
    run(&mut client, "BEGIN; INSERT INTO b VALUES (1); PREPARE TRANSACTION 'p'");
    let pending = "SELECT pending_transactions::text FROM quorum.channel_state WHERE channel = 'b'";
    assert_eq!(text(&mut client, pending), "1");
    run(&mut client, "COMMIT PREPARED 'p'");
    shown(&mut client, "b", 1);
    await_answer(&mut client, SOON, pending, "0");
    await_until(SOON, "the broken one is named", || {
        let log = server.log();
        let said = log.contains("no batch of channel \"a\" in database 5 could be cut");
        if said { Ok(()) } else { Err(log) }
    });
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}
