//! `GET /sql/readonly` on every node: what it answers, how little it answers again, how long it waits, and mistakes.

use pgquorum_tests::{
    Answer, Cluster, PATIENCE, await_served, await_until, get_with, hash_of, known, pgquorum, psql, request,
    run, served,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longer than any wait that is asked for here.
const LIMIT: Duration = Duration::from_secs(90);
const PATH: &str = "/sql/readonly";
/// Less than what is waited for at most: whoever is answered earlier was told.
const TOLD: Duration = Duration::from_secs(25);

fn get(port: u16, path: &str, fields: &[(&str, &str)]) -> Answer {
    get_with(LIMIT, port, path, fields).unwrap_or_else(|e| panic!("GET {path} at port {port}: {e}"))
}

fn tag(answer: &Answer) -> String {
    let tag = answer.field("etag").unwrap_or_else(|| panic!("no ETag: {answer:?}"));
    assert!(tag.ends_with('"') && tag.len() > 2, "{tag}");
    tag.to_owned()
}

fn has(answer: &Answer, statement: &str) -> bool {
    let hashes = answer.body.as_array().unwrap_or_else(|| panic!("an array: {answer:?}"));
    hashes.contains(&json!(hash_of(statement)))
}

/// Waits until a node serves a statement over HTTP.
fn await_listed(port: u16, statement: &str) -> Answer {
    await_until(PATIENCE, &format!("port {port} lists {statement}"), || {
        let answer = get(port, PATH, &[]);
        if answer.status == 200 && has(&answer, statement) { Ok(answer) } else { Err(format!("{answer:?}")) }
    })
}

#[test]
fn hashes_details_tags_and_waits() {
    let cluster = Cluster::start_steady(3);
    cluster.await_replicas(2);
    let leader = cluster.leader();
    let mut session = cluster.connect(leader).expect("a session on the leader");
    let c = &mut session;
    run(c, "CREATE TABLE orders (id int)");
    run(c, "SELECT id FROM orders WHERE id = 7");
    run(c, "INSERT INTO orders VALUES (7)");
    await_served(c, "SELECT id FROM orders WHERE id = 7");
    for node in cluster.status().nodes {
        let port = node.api_port();
        let answer = await_listed(port, "SELECT id FROM orders WHERE id = 8");
        assert!(!has(&answer, "INSERT INTO orders VALUES (7)"));
        let hashes: Vec<&str> =
            answer.body.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert!(
            hashes.iter().all(|h| h.len() == 16 && h.bytes().all(|b| b"0123456789abcdef".contains(&b))),
            "{answer:?}"
        );
        assert!(hashes.is_sorted_by(|a, b| a < b), "in order and once each: {answer:?}");

        // The same again costs nothing, whatever list of tags it stands in.
        let now = get(port, PATH, &[]);
        assert!(tag(&now).starts_with('"'), "a strong one: {}", tag(&now));
        for given in [tag(&now), format!("\"other\", {}", tag(&now)), "*".to_owned()] {
            let again = get(port, PATH, &[("if-none-match", &given)]);
            if again.status != 304 {
                // Something was learned in between.
                assert_ne!(tag(&again), tag(&now), "{given}: {again:?}");
                continue;
            }
            assert_eq!(again.body, json!(""), "{again:?}");
        }
        assert_eq!(get(port, PATH, &[("if-none-match", "\"other\"")]).status, 200);

        // The whole truth, for those who want to know why.
        let details = get(port, &format!("{PATH}?details=true"), &[]);
        let records = details.body.as_array().unwrap_or_else(|| panic!("{details:?}"));
        let wanted = hash_of("SELECT id FROM orders WHERE id = 7");
        let record =
            records.iter().find(|r| r["hash"] == json!(wanted)).unwrap_or_else(|| panic!("{details:?}"));
        assert_eq!((&record["how"], &record["served"]), (&json!("proven"), &json!(true)), "{record}");
        assert_eq!(record["database"], json!("postgres"), "{record}");
        // What has run once has no query id yet.
        assert!(record.get("query_id").is_some(), "{record}");
        for field in ["search_path", "calls", "last_use"] {
            assert!(!record[field].is_null(), "{field}: {record}");
        }
        assert_ne!(tag(&details), tag(&now), "another answer has another tag");
    }
    // Nobody waits for what is not the same any more, nor longer than was asked for.
    let port = cluster.node(leader).api_port();
    let (begin, stale) =
        (Instant::now(), get(port, &format!("{PATH}?wait=30s"), &[("if-none-match", "\"other\"")]));
    assert!(stale.status == 200 && begin.elapsed() < TOLD, "{stale:?}");
    let begin = Instant::now();
    let no_tag = get(port, &format!("{PATH}?wait=30s"), &[]);
    assert!(no_tag.status == 200 && begin.elapsed() < TOLD, "{no_tag:?}");
    await_until(PATIENCE, "a wait to its end", || {
        let now = get(port, PATH, &[]);
        let begin = Instant::now();
        let waited = get(port, &format!("{PATH}?wait=2s"), &[("if-none-match", &tag(&now))]);
        let took = begin.elapsed();
        match waited.status {
            304 => {
                assert!(took >= Duration::from_millis(1900) && took < TOLD, "{took:?}");
                Ok(())
            }
            // Something was learned meanwhile.
            status => Err(format!("{status} after {took:?}")),
        }
    });
}

#[test]
fn a_wait_ends_when_something_is_learned() {
    let cluster = Cluster::start_steady(3);
    cluster.await_replicas(2);
    let leader = cluster.leader();
    let mut session = cluster.connect(leader).expect("a session on the leader");
    run(&mut session, "CREATE TABLE orders (id int)");
    let ports: Vec<u16> = cluster.status().nodes.iter().map(|node| node.api_port()).collect();
    std::thread::scope(|scope| {
        let wait = |port: u16| {
            // As a driver does it: it comes back until what it looks for is there.
            let (begin, mut tag_now) = (Instant::now(), "\"none\"".to_owned());
            loop {
                let answer = get(port, &format!("{PATH}?wait=30s"), &[("if-none-match", &tag_now)]);
                if answer.status == 200 && has(&answer, "SELECT id FROM orders") {
                    return begin.elapsed();
                }
                assert!(begin.elapsed() < PATIENCE, "port {port}: {answer:?}");
                if answer.status == 200 {
                    tag_now = tag(&answer);
                }
            }
        };
        let waiting: Vec<_> = ports.iter().map(|port| scope.spawn(move || wait(*port))).collect();
        run(&mut session, "SELECT id FROM orders");
        for thread in waiting {
            let took = thread.join().expect("it is told");
            assert!(took < TOLD, "{took:?}");
        }
    });
}

#[test]
fn databases_mistakes_and_the_command_line() {
    let cluster = Cluster::start_steady(1);
    let port = cluster.node(1).api_port();
    let mut admin = cluster.connect(1).expect("a session");
    run(&mut admin, "CREATE DATABASE shop");
    run(&mut admin, "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    let refused = |path: &str, status: u16, code: &str| {
        let (got, answer) = request(port, "GET", path, None).expect("an answer");
        assert_eq!(got, status, "{path}: {answer}");
        assert_eq!(answer["code"], json!(code), "{path}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|m| m.len() > 10), "{path}: {answer}");
    };
    refused("/sql/readonly?database=none", 404, "unknown_database");
    refused("/sql/readonly?database=shop", 404, "no_extension");
    let bad = [
        "/sql/readonly?wait=61s",
        "/sql/readonly?wait=soon",
        "/sql/readonly?details=perhaps",
        "/sql/readonly?unknown=1",
        "/sql/readonly?database=",
    ];
    for path in bad {
        let (got, answer) = request(port, "GET", path, None).expect("an answer");
        assert!(got == 400 && answer["code"].is_string(), "{path}: {got} {answer}");
    }
    let (got, _) = request(port, "POST", "/sql/readonly", Some("{}")).expect("an answer");
    assert_eq!(got, 405);

    let mut shop = cluster.connect_to(1, "shop").expect("a session");
    run(&mut shop, "CREATE EXTENSION pgquorum; CREATE TABLE item (id int)");
    run(&mut shop, "SELECT id FROM item");
    await_served(&mut shop, "SELECT id FROM item");
    await_until(PATIENCE, "the other database's statement", || {
        let answer = get(port, "/sql/readonly?database=shop", &[]);
        if answer.status == 200 && has(&answer, "SELECT id FROM item") {
            Ok(())
        } else {
            Err(format!("{answer:?}"))
        }
    });
    assert!(!has(&get(port, PATH, &[]), "SELECT id FROM item"), "each database has its own");

    // No UTF-8 in a name, and JSON all the same.
    let mut ascii = cluster.connect_to(1, "ascii").expect("a session");
    run(&mut ascii, "CREATE EXTENSION pgquorum");
    psql(&cluster.status().dsn.replace("/postgres?", "/ascii?"), b"SELECT 1 AS \"\xff\xfe\";\n");
    run(&mut ascii, "SELECT 1 AS plain");
    await_served(&mut ascii, "SELECT 1 AS plain");
    let details = get(port, "/sql/readonly?database=ascii&details=true", &[]);
    assert!(details.status == 200 && details.body.is_array(), "{details:?}");
}

#[test]
fn what_the_sidecar_does_is_not_learned() {
    let cluster = Cluster::start_steady(3);
    cluster.await_replicas(2);
    let mut client = cluster.connect(cluster.leader()).expect("a session on the leader");
    run(&mut client, "SELECT 1 AS by_a_client");
    await_served(&mut client, "SELECT 1 AS by_a_client");
    let all = served(&mut client);
    // The harness's own questions are there, and nothing else that begins so.
    let sql = "SELECT statement FROM quorum.readonly_statements WHERE statement LIKE '%quorum%lease%' OR statement LIKE
               '%quorum . take_learned%' OR statement LIKE '%pg_stat_replication%'";
    let rows = client.query(sql, &[]).expect("the view");
    let texts: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(texts.iter().all(|text| text.contains("quorum . readonly_statements")), "{texts:?}");
    assert!(!all.is_empty() && !known(&mut client, "SELECT 1 AS by_a_client").is_empty());
    let url = cluster.node(cluster.follower()).api;
    let listed = await_until(PATIENCE, "the command lists it on a follower", || {
        let outcome = pgquorum(["readonly", "--url", &url]);
        if outcome.code != 0 {
            return Err(outcome.said);
        }
        let text = outcome.json.to_string();
        if text.contains(&hash_of("SELECT 1 AS by_a_client")) { Ok(text) } else { Err(text) }
    });
    assert!(!listed.is_empty());
}
