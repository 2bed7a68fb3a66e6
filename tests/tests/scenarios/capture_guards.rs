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
