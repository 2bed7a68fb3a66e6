//! Tables of the source that do not fit here: each stops alone, in words that say what to mend, and goes on when it is mended.

use pgquorum_tests::{PATIENCE, Pair, await_until, pgquorum};
use serde_json::{Value, json};

const AT_SOURCE: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN price AS numeric;
    CREATE TABLE fine (id int PRIMARY KEY, note text); CREATE TABLE moods (id int PRIMARY KEY, m mood);
    CREATE TABLE priced (id int PRIMARY KEY, p price); CREATE TABLE short (id int PRIMARY KEY, v text);
    CREATE TABLE small (id int PRIMARY KEY, n int); CREATE TABLE doubled (id int PRIMARY KEY, code text);
    CREATE TABLE keyless (id int PRIMARY KEY, v text); CREATE TABLE bare (id int, v text)";
/// A label, a type with its table, room, a range and keys are missing; one index is too much.
const AT_TARGET: &str = "CREATE TYPE mood AS ENUM ('sad');
    CREATE TABLE fine (id int PRIMARY KEY, note text); CREATE TABLE moods (id int PRIMARY KEY, m mood);
    CREATE TABLE short (id int PRIMARY KEY, v varchar(5)); CREATE TABLE small (id int PRIMARY KEY, n smallint);
    CREATE TABLE doubled (id int PRIMARY KEY, code text CONSTRAINT doubled_code UNIQUE);
    CREATE TABLE keyless (id int, v text); CREATE TABLE bare (id int, v text)";
const TABLES: [&str; 8] = ["fine", "moods", "priced", "short", "small", "doubled", "keyless", "bare"];

/// Table, code, and words that its message must have.
type Misfit = (&'static str, &'static str, &'static [&'static str]);

/// All of these have stopped, and say why in SQL, over REST and on the command line; nothing else has.
fn assert_stopped(pair: &Pair, misfits: &[Misfit]) {
    for (table, code, words) in misfits {
        let message = pair.await_table(table, "stopped", Some(code));
        for word in *words {
            assert!(message.contains(word), "{table}: {word:?} is not in {message:?}");
        }
        let sql = format!(
            "SELECT concat_ws(' ', state, code, message) FROM quorum.subscription_tables WHERE \"table\" = '{table}'"
        );
        assert_eq!(pair.target.ask(1, &sql), format!("stopped {code} {message}"));
    }
    let state = pair.await_state("following", None);
    assert_eq!(state["tables_stopped"], misfits.len(), "{state}");
    let shown = pgquorum(["subscriptions", "show", "mirror", "--url", &pair.target.node(1).api]);
    let tables = shown.expect("subscriptions show");
    let stopped = |one: &&Value| one["state"] == "stopped";
    let stopped: Vec<&Value> =
        tables["its_tables"].as_array().into_iter().flatten().filter(stopped).collect();
    assert_eq!(stopped.len(), misfits.len(), "{tables}");
    for one in stopped {
        let known = misfits.iter().any(|(table, code, _)| one["table"] == *table && one["code"] == *code);
        assert!(known && one["message"].as_str().is_some_and(|text| !text.is_empty()), "{one}");
    }
}

#[test]
fn what_does_not_fit_stops_one_table_and_says_what_to_mend() {
    let pair = Pair::start((1, 1), "");
    pair.source.sql(AT_SOURCE);
    pair.target.sql(AT_TARGET);
    pair.source.sql(
        "INSERT INTO fine SELECT generate_series(1, 3); INSERT INTO moods VALUES (1, 'ok'); INSERT INTO priced VALUES (1, 5); \
         INSERT INTO short VALUES (1, 'too long'); INSERT INTO small VALUES (1, 70000); \
         INSERT INTO doubled VALUES (1, 'x'), (2, 'x'); INSERT INTO keyless VALUES (1, 'a'); INSERT INTO bare VALUES (1, 'a')",
    );
    pair.track(&TABLES[..7]);
    let whole = json!({"table": "bare", "old_image": "full"});
    assert_eq!(pair.source.post(1, "/channels/shop/tables", Some(&whole)).0, 200);
    pair.subscribe(&json!({"jobs": 3}));
    // In the copy.
    assert_stopped(
        &pair,
        &[
            ("moods", "22P02", &["mood", "ok", "column m"]),
            ("priced", "42P01", &["public.priced", "Create it"]),
            ("short", "22001", &["varying(5)", "column v"]),
            ("small", "22003", &["70000", "smallint", "column n"]),
            ("doubled", "23505", &["doubled_code", "(code)=(x)"]),
        ],
    );
    pair.source.sql("INSERT INTO fine VALUES (4, 'goes on')");
    pair.await_applied();
    pair.assert_same("fine");
    // What was never copied has no place to go on from.
    let path = "/subscriptions/mirror/tables/public.short/resume";
    let (status, answer) = pair.target.post(1, path, Some(&json!({})));
    let said = answer["message"].as_str().unwrap_or_default();
    assert!(status == 400 && said.contains("never copied") && said.contains("copy => true"), "{answer}");
    pair.target.sql(
        "ALTER TYPE mood ADD VALUE 'ok'; CREATE DOMAIN price AS numeric; CREATE TABLE priced (id int PRIMARY KEY, p price); \
         ALTER TABLE short ALTER v TYPE varchar(10); ALTER TABLE small ALTER n TYPE int; ALTER TABLE doubled DROP CONSTRAINT doubled_code",
    );
    assert_eq!(pair.target.ask(1, "SELECT quorum.resume_table('mirror', 'moods', copy => true)"), "copy");
    let url = pair.target.node(1).api;
    pgquorum(["subscriptions", "resume", "mirror", "public.short", "--copy", "--url", &url]).expect("resume");
    for table in ["priced", "small", "doubled"] {
        pair.resume(table, true);
    }
    for table in TABLES {
        pair.await_table(table, "following", None);
    }
    pair.await_applied();
    TABLES.iter().for_each(|table| pair.assert_same(table));

    // In what is followed: all of it in one transaction of the source.
    pair.target.sql("ALTER DOMAIN price ADD CONSTRAINT cheap CHECK (VALUE < 100)");
    pair.source.sql("UPDATE doubled SET code = 'y' WHERE id = 2; ALTER TYPE mood ADD VALUE 'great'");
    pair.await_applied();
    pair.target.sql("ALTER TABLE doubled ADD CONSTRAINT doubled_code UNIQUE (code)");
    pair.source.sql(
        "BEGIN; INSERT INTO fine VALUES (5, 'first'); INSERT INTO moods VALUES (2, 'great'); INSERT INTO priced VALUES (2, 500); \
         UPDATE short SET v = 'much too long'; ALTER TABLE small ALTER n TYPE bigint; INSERT INTO small VALUES (2, 5000000000); \
         INSERT INTO doubled VALUES (3, 'x'); INSERT INTO keyless VALUES (2, 'b'); UPDATE bare SET v = 'b'; \
         INSERT INTO fine VALUES (6, 'last'); COMMIT",
    );
    let misfits: [Misfit; 7] = [
        ("moods", "22P02", &["value at", "mood", "great"]),
        ("priced", "23514", &["value at", "cheap"]),
        ("short", "22001", &["value at", "varying(10)"]),
        ("small", "22003", &["value at", "5000000000"]),
        ("doubled", "23505", &["insert_exists at", "doubled_code"]),
        ("keyless", "42P16", &["public.keyless", "unique index", "id"]),
        ("bare", "42P16", &["public.bare", "primary key"]),
    ];
    assert_stopped(&pair, &misfits);
    pair.await_applied();
    pair.assert_same("fine");
    // While they stand still the others go on, and the source with them.
    pair.source.sql("DELETE FROM moods WHERE id = 1; UPDATE small SET n = n + 1; INSERT INTO fine VALUES (7, 'meanwhile')");
    pair.await_applied();
    pair.assert_same("fine");
    assert_eq!(pair.target.ask(1, "SELECT string_agg(m::text, ',') FROM moods"), "ok");
    pair.target.sql(
        "ALTER TYPE mood ADD VALUE 'great'; ALTER DOMAIN price DROP CONSTRAINT cheap; ALTER TABLE short ALTER v TYPE text; \
         ALTER TABLE small ALTER n TYPE bigint; ALTER TABLE doubled DROP CONSTRAINT doubled_code; \
         ALTER TABLE keyless ADD PRIMARY KEY (id); ALTER TABLE bare ADD PRIMARY KEY (id)",
    );
    for (table, ..) in misfits {
        pair.resume(table, false);
    }
    for table in TABLES {
        pair.await_table(table, "following", None);
    }
    pair.source.sql(
        "UPDATE bare SET v = 'c'; DELETE FROM keyless WHERE id = 1; INSERT INTO doubled VALUES (4, 'x')",
    );
    pair.await_applied();
    TABLES.iter().for_each(|table| pair.assert_same(table));
    assert_eq!(pair.state().expect("a state")["tables_stopped"], 0);
}

/// A server that was made of a copy of the other's data directory has its origin name.
#[test]
fn a_twin_is_not_followed_until_it_has_a_name_of_its_own() {
    let pair = Pair::start((1, 1), "CREATE TABLE t (id int PRIMARY KEY, note text)");
    for cluster in [&pair.source, &pair.target] {
        cluster.sql("SELECT quorum.set_origin_name('twin')");
    }
    pair.source.sql("INSERT INTO t SELECT generate_series(1, 10)");
    pair.track(&["t"]);
    pair.subscribe(&json!({}));
    let state = pair.await_state("stopped", Some("PQ014"));
    let detail = state["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("twin") && detail.contains("quorum.identity"), "{state}");
    let sql = "SELECT concat_ws(' ', state, code, detail) FROM quorum.subscription_state";
    assert_eq!(pair.target.ask(1, sql), format!("stopped PQ014 {detail}"));
    let metric = "state=\"stopped\"} 1";
    await_until(PATIENCE, "it is in the metrics", || match pair.target.get(1, "/metrics").1.as_str() {
        Some(text) if text.contains(metric) => Ok(()),
        other => Err(other.unwrap_or_default().to_owned()),
    });
    assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM t"), "0");
    // What the detail says.
    pair.target.sql("DELETE FROM quorum.identity; SELECT quorum.set_origin_name('other')");
    pair.alter(&json!({"jobs": 1}));
    pair.await_state("following", None);
    pair.source.sql("INSERT INTO t VALUES (11, 'new')");
    pair.await_applied();
    pair.assert_same("t");
    // Behind the address is another database from now on: it is not taken for the one before.
    pair.source.sql("DELETE FROM quorum.identity; SELECT quorum.set_origin_name('third')");
    pair.alter(&json!({"jobs": 2}));
    let state = pair.await_state("stopped", Some("PQ015"));
    assert!(
        state["detail"].as_str().is_some_and(|text| text.contains("twin") && text.contains("third")),
        "{state}"
    );
}
