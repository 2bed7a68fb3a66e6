//! A database without the extension, in which somebody has made relations under its names: nothing that runs with a
//! superuser's rights believes them.

use pgquorum_tests::{PATIENCE, Plain, await_until, free_ports, refused, run, server_directory, text};

/// What the extension's own statements would call notes with whose rights it runs.
const TRAP: &str = "CREATE TABLE quorum.who (name text); GRANT ALL ON quorum.who TO PUBLIC;
    CREATE FUNCTION quorum.trap() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO quorum.who VALUES (current_user); RETURN 0;
    END $$;
    CREATE TABLE quorum.channel (id int, name text, retain_age interval, retain_rows bigint, retain_bytes bigint, cap_bytes bigint);
    INSERT INTO quorum.channel VALUES (1, 'shop');
    CREATE TABLE quorum.channel_confirmed (channel int PRIMARY KEY, tick bigint);
    CREATE TABLE quorum.channel_epoch (channel int, epoch bigint, first_tick bigint, source text);
    CREATE TABLE quorum.channel_start (channel int PRIMARY KEY, first_tick bigint);
    CREATE TABLE quorum_log.log_1_1 (data bytea);
    CREATE TABLE quorum_log.batch_1_1 (last_tick bigint PRIMARY KEY, first_tick bigint, epoch bigint, confirmed bigint,
        lowest_segment int, cut_at timestamptz, snapshot text, scan_segments int[], scan_blocks bigint[], entries bytea);
    CREATE TABLE quorum.batch_segment (channel int, number int, batches oid, first_tick bigint);
    INSERT INTO quorum.batch_segment VALUES (1, 1, 'quorum_log.batch_1_1'::regclass, 1);
    CREATE VIEW quorum.follower AS SELECT 1 AS channel, quorum.trap() AS tick;";

#[test]
fn names_that_somebody_made_up_get_no_rights() {
    let (dir, [port]) = (server_directory("made-up-names"), free_ports());
    let conf = "shared_preload_libraries = 'pgquorum'\nfsync = off\nlog_min_messages = debug1";
    let mut server = Plain::init(&dir.join("data"), port, conf);
    server.sql("CREATE ROLE mallory");
    server.sql("CREATE DATABASE theirs");
    let connect = |server: &Plain| server.connect_to("theirs").expect("a session in the other database");
    let client = &mut connect(&server);
    run(client, "GRANT CREATE ON DATABASE theirs TO mallory; SET SESSION AUTHORIZATION mallory");
    run(client, &format!("CREATE SCHEMA quorum; CREATE SCHEMA quorum_log; {TRAP}"));
    run(
        client,
        "CREATE VIEW quorum.log_segment AS SELECT 1 AS channel, 1 AS number, (quorum.trap() + 1)::oid AS heap",
    );
    run(client, "VACUUM FULL");
    assert_eq!(text(client, "SELECT count(*)::text FROM quorum.who"), "0", "VACUUM asks nobody");

    // After a start each database is visited.
    run(
        client,
        "DROP VIEW quorum.log_segment;
         CREATE TABLE quorum.log_segment (channel int, number int, heap oid, opened_at timestamptz, closed_at timestamptz);
         INSERT INTO quorum.log_segment VALUES (1, 1, 'quorum_log.log_1_1'::regclass, now())",
    );
    let databases = text(client, "SELECT count(*)::text FROM pg_database WHERE datallowconn");
    let databases: usize = databases.parse().expect("a number");
    server.crash();
    let client = &mut connect(&server);
    // A worker that finds channels stays; where there are none it ends at once, with a line at this level of the log.
    await_until(PATIENCE, "a worker has looked into each database and ended", || {
        let log = std::fs::read_to_string(dir.join("data.log")).map_err(|e| e.to_string())?;
        let since = log.rsplit("database system is ready to accept connections").next().unwrap_or_default();
        let ended = since.matches("background worker \"pgquorum feed\" (PID").count();
        if ended >= databases { Ok(()) } else { Err(format!("{ended} of {databases} ended")) }
    });
    assert_eq!(text(client, "SELECT count(*)::text FROM quorum.who"), "0", "nor does the worker");

    // What is there already does not become part of the extension.
    let create = "CREATE EXTENSION pgquorum";
    refused(client, create, "42501", "does not belong to a superuser");
    run(client, "ALTER SCHEMA quorum OWNER TO postgres; GRANT CREATE ON SCHEMA quorum TO mallory");
    refused(client, create, "42501", "others than its owner");
    run(client, "REVOKE CREATE ON SCHEMA quorum FROM mallory");
    refused(client, create, "42P06", "\"quorum\" exists and is not empty");
    run(client, "DROP SCHEMA quorum CASCADE; CREATE SCHEMA quorum");
    refused(client, create, "42P06", "\"quorum_log\" exists");
    run(client, "DROP SCHEMA quorum_log CASCADE");
    run(client, create);
    run(client, "SELECT quorum.create_channel('shop')");
    run(client, "SELECT quorum.cut('shop')");
    // An empty schema is left, and is good for the next time.
    run(client, "DROP EXTENSION pgquorum");
    run(client, create);
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}
