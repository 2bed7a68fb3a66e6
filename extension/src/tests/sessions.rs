//! Sessions of clients, for what cannot be seen from inside a function: statements are learned only where clients send
//! them, and changes withdraw when they commit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use postgres::Client;
use postgres::SimpleQueryMessage;

const PATIENCE: Duration = Duration::from_secs(30);

/// They share a database: what one forgets, another would miss.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Keeps other tests of the learner out, in a server that is there.
pub fn alone() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // The first test starts the server.
    pgrx_tests::run_test("the_server_is_there", None, crate::pg_test::postgresql_conf_options())
        .expect("the server starts");
    guard
}

pub fn session() -> Client {
    let (mut client, _) = pgrx_tests::client().expect("a session");
    client
        .batch_execute("SET log_statement = 'none'; SET log_min_duration_statement = -1")
        .expect("settings");
    client
}

/// Another session, of which it is kept what the server says beside its answers: severity and message.
pub fn session_that_hears(client: &mut Client, heard: Arc<Mutex<Vec<String>>>) -> Client {
    let mut config = postgres::Config::new();
    config
        .host("localhost")
        .port(value(client, "SHOW port").parse().expect("a port"))
        .user(&value(client, "SELECT current_user"))
        .dbname(&value(client, "SELECT current_database()"));
    config.notice_callback(move |notice| {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.push(format!("{}: {}", notice.severity(), notice.message()));
    });
    config.connect(postgres::NoTls).expect("a session")
}

pub fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// The first value of a statement, as text; empty: NULL or no row.
pub fn value(client: &mut Client, sql: &str) -> String {
    let messages = client.simple_query(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
        _ => None,
    });
    rows.into_iter().next().unwrap_or_default()
}

/// Runs a statement so often, by itself.
pub fn repeat(client: &mut Client, times: usize, sql: &str) {
    for _ in 0..times {
        client.simple_query(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

pub fn await_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is said of a statement: `served how barred-reason`.
pub fn standing(client: &mut Client, sql: &str) -> String {
    let sql = sql.replace('\'', "''");
    value(
        client,
        &format!(
            "SELECT served || ' ' || coalesce(how, '-') || ' ' || coalesce(reason, '-') FROM quorum.readonly_statements
             WHERE hash = quorum.statement_hash('{sql}') ORDER BY served LIMIT 1"
        ),
    )
}

pub fn is_served(client: &mut Client, sql: &str) -> bool {
    let sql = sql.replace('\'', "''");
    let found =
        value(client, &format!("SELECT quorum.statement_hash('{sql}') = ANY (quorum.served_statements())"));
    found == "t"
}

/// Runs a statement until it is served.
pub fn learn(client: &mut Client, sql: &str) {
    repeat(client, 2, sql);
    await_until(&format!("{sql} is served"), || is_served(client, sql));
}

/// A session that calls for a function of its own when it is done: what a test makes is dropped by it.
pub fn clean(client: &mut Client, schema: &str) {
    run(client, &format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}"));
}
