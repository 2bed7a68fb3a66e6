//! Nothing that a user may do ends capture without a word.

use pgquorum_tests::{LogServer, Plain, take_log};
use postgres::{Client, NoTls};

fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

fn expect(client: &mut Client, sql: &str, lines: &[&str]) {
    run(client, sql);
    assert_eq!(take_log(client), lines, "{sql}");
}

fn refused(client: &mut Client, sql: &str, code: &str, word: &str) {
    let Err(error) = client.batch_execute(sql) else { panic!("{sql}: accepted") };
    let error = error.as_db_error().expect("an answer of the server");
    assert_eq!(error.code().code(), code, "{sql}: {error:?}");
    assert!(error.message().contains(word), "{sql}: {error:?}");
}

#[test]
fn large_keys_are_never_left_out() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE t (id text PRIMARY KEY, v int); ALTER TABLE t ALTER COLUMN id SET STORAGE EXTERNAL;
         SELECT quorum.track('t', 'c', old_image => 'none'); INSERT INTO t VALUES (repeat('k', 2400), 1)",
    );
    take_log(c);
    let key = "k".repeat(2400);
    expect(
        c,
        "UPDATE t SET v = 2",
        &[&format!(r#"{{"op":"update","table":"t","key":{{"id":"{key}"}},"new":{{"id":"{key}","v":2}}}}"#)],
    );
}

#[test]
fn a_key_is_captured_whole_or_not_at_all() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE t (a int CONSTRAINT k PRIMARY KEY, b int NOT NULL);
         SELECT quorum.track('t', 'c', columns => '{a}');
         CREATE TABLE u (a int NOT NULL, b int); CREATE UNIQUE INDEX u_a ON u (a);
         ALTER TABLE u REPLICA IDENTITY USING INDEX u_a; SELECT quorum.track('u', 'c');
         CREATE TABLE i (a int, b int, PRIMARY KEY (a) INCLUDE (b)); SELECT quorum.track('i', 'c')",
    );
    refused(c, "ALTER TABLE t DROP CONSTRAINT k, ADD PRIMARY KEY (a, b)", "55006", "no key");
    run(c, "INSERT INTO t VALUES (1, 1)");
    // What comes behind the key with INCLUDE does not tell rows apart.
    take_log(c);
    expect(
        c,
        "INSERT INTO i VALUES (1, 2)",
        &[r#"{"op":"insert","table":"i","key":{"a":1},"new":{"a":1,"b":2}}"#],
    );
    refused(c, "DROP INDEX u_a", "55006", "no key");
    // It commits before anybody is asked.
    let _ = c.batch_execute("DROP INDEX CONCURRENTLY u_a");
    refused(c, "INSERT INTO u VALUES (1, 1)", "55000", "key");
    run(c, "CREATE UNIQUE INDEX u_b ON u (a); ALTER TABLE u REPLICA IDENTITY USING INDEX u_b");
    take_log(c);
    expect(
        c,
        "INSERT INTO u VALUES (1, 2)",
        &[r#"{"op":"insert","table":"u","key":{"a":1},"new":{"a":1,"b":2}}"#],
    );
}

#[test]
fn names_in_other_encodings() {
    let log = LogServer::start("");
    run(&mut log.connect(), "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    let dsn = Plain::dsn(&[&log.server]).replace("/postgres?", "/latin?");
    let c = &mut Client::connect(&dsn, NoTls).expect("a session");
    run(c, "CREATE EXTENSION pgquorum; SELECT quorum.create_channel('c')");
    run(
        c,
        r#"CREATE TABLE "maße" (id int PRIMARY KEY, "größe" text);
           SELECT quorum.track('"maße"', 'c', "where" => '"größe" <> ''gemäß''')"#,
    );
    run(c, r#"ALTER TABLE "maße" ALTER COLUMN "größe" SET NOT NULL"#);
    run(c, r#"INSERT INTO "maße" VALUES (1, 'für'), (2, 'gemäß')"#);
    assert_eq!(
        take_log(c),
        [
            r#"{"op":"ddl","table":"maße","tag":"TRACK","sql":""}"#,
            r#"{"op":"ddl","table":"maße","tag":"ALTER TABLE","sql":"ALTER TABLE \"maße\" ALTER COLUMN \"größe\" SET NOT NULL"}"#,
            r#"{"op":"insert","table":"maße","key":{"id":1},"new":{"id":1,"größe":"für"}}"#,
        ]
    );
}
