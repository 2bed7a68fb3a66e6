//! The applier before a provider of ArangoDB's format that is none of ours: documents, transactions that mix, and lies of all kinds.

use pgquorum_tests::{Cluster, FakeRemote, PATIENCE, Said, await_until, request};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// What the fake has in its log, and what it says instead.
#[derive(Default)]
struct Log {
    /// Lines with their ticks.
    lines: Vec<(u64, String)>,
    /// What it says when it is asked for the log, in place of the truth.
    lie: Option<Said>,
    /// Nothing up to this tick is there any more.
    purged: u64,
}

type Shared = Arc<Mutex<Log>>;

fn number(line: &str, name: &str) -> u64 {
    let (_, rest) = line.split_once(&format!("{name}=")).unwrap_or_default();
    rest.split('&').next().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Answers as a server of ArangoDB does.
fn answer(log: &Shared, line: &str) -> Said {
    let log = log.lock().expect("the log");
    let documents = |count: usize| -> String {
        let line = |n| {
            format!(
                "{{\"type\":2300,\"data\":{{\"_id\":\"users/k{n}\",\"_key\":\"k{n}\",\"_rev\":\"r\",\"n\":{n},\"tags\":[1,2]}}}}\n"
            )
        };
        (0..count).map(line).collect()
    };
    let dumped = |body: String| Said {
        status: 200,
        fields: vec![("checkmore", "false".to_owned()), ("lastincluded", "0".to_owned())],
        body,
    };
    if line.contains("/_api/version") {
        return Said::json(json!({"server": "arango", "version": "3.9.1"}));
    }
    if line.contains("/server-id") {
        return Said::json(json!({"serverId": "4711"}));
    }
    if line.contains("/batch/") {
        return Said { status: 204, ..Said::default() };
    }
    if line.contains("/replication/batch") {
        let last = log.lines.last().map_or(5, |(tick, _)| *tick);
        return Said::json(json!({"id": "9", "lastTick": last.to_string()}));
    }
    if line.contains("/inventory") {
        let one = |cid: &str, name: &str| json!({"parameters": {"cid": cid, "name": name, "type": 2}, "indexes": []});
        return Said::json(
            json!({"collections": [one("5", "users"), one("6", "wide"), one("7", "_graphs")], "state": {"running": true}}),
        );
    }
    if line.contains("/dump?collection=users") {
        return dumped(documents(3));
    }
    if line.contains("/dump?") {
        return dumped(String::new());
    }
    if line.contains("/logger-follow") {
        if let Some(lie) = &log.lie {
            return lie.clone();
        }
        let from = number(line, "from");
        let lines: Vec<&(u64, String)> = log.lines.iter().filter(|(tick, _)| *tick > from).collect();
        let last = log.lines.last().map_or(0, |(tick, _)| *tick);
        let fields = vec![
            ("active", "true".to_owned()),
            ("checkmore", "false".to_owned()),
            ("lastincluded", lines.last().map_or(0, |(tick, _)| *tick).to_string()),
            ("lasttick", last.to_string()),
            ("frompresent", (from >= log.purged).to_string()),
        ];
        let body: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
        return Said { status: if body.is_empty() { 204 } else { 200 }, fields, body };
    }
    Said { status: 404, body: json!({"error": true, "errorNum": 404}).to_string(), ..Said::default() }
}

struct Scene {
    cluster: Cluster,
    remote: FakeRemote,
    log: Shared,
}

impl Scene {
    fn put(&self, command: &str, body: Option<&Value>) -> (u16, Value) {
        self.cluster.send(1, "PUT", &format!("/_api/replication/{command}"), body)
    }

    fn ok(&self, command: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.put(command, body);
        assert_eq!(status, 200, "{command}: {answer}");
        answer
    }

    fn say(&self, lines: &[(u64, &str)]) {
        let mut log = self.log.lock().expect("the log");
        log.lines.extend(lines.iter().map(|(tick, line)| (*tick, format!("{{\"tick\":\"{tick}\",{line}}}"))));
    }

    fn lie(&self, lie: Option<Said>) {
        self.log.lock().expect("the log").lie = lie;
    }

    fn await_state(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        await_until(PATIENCE, what, || {
            let port = self.cluster.node(1).api_port();
            match request(port, "GET", "/_api/replication/applier-state", None) {
                Ok((200, state)) if wanted(&state["state"]) => Ok(state["state"].clone()),
                Ok((status, state)) => Err(format!("{status} {state}")),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    /// Waits until everything up to this tick is applied.
    fn await_tick(&self, tick: u64) -> Value {
        let text = json!(tick.to_string());
        self.await_state(&format!("tick {tick}"), |state| state["lastAppliedContinuousTick"] == text)
    }

    /// Waits until it has stopped with this number; gives the message.
    fn await_stop(&self, number: u64) -> String {
        let stopped = self.await_state(&format!("error {number}"), |state| state["running"] == false);
        assert_eq!(stopped["lastError"]["errorNum"], number, "{stopped}");
        stopped["lastError"]["errorMessage"].as_str().unwrap_or_default().to_owned()
    }

    fn rows(&self, query: &str) -> String {
        self.cluster.ask(1, query)
    }
}

fn lie(status: u16, body: &str) -> Said {
    let fields = vec![("checkmore", "false".to_owned()), ("frompresent", "true".to_owned())];
    Said { status, fields, body: body.to_owned() }
}

#[test]
fn documents_of_others_become_rows_and_lies_do_not() {
    let log = Shared::default();
    let shared = Arc::clone(&log);
    let remote = FakeRemote::start(move |line| answer(&shared, line));
    let scene = Scene { cluster: Cluster::start_steady(1), remote, log };
    scene.cluster.sql("CREATE TABLE wide (id text PRIMARY KEY, n int, note text DEFAULT 'none', c int GENERATED ALWAYS AS (n * 2) STORED)");
    let settings = json!({"endpoint": scene.remote.endpoint(), "idleMinWaitTime": 0.02, "idleMaxWaitTime": 0.05,
        "connectionRetryWaitTime": 0.2});

    // A collection without a table gets one; what belongs to ArangoDB itself does not.
    let made = scene.ok("make-slave", Some(&settings));
    assert_eq!(made["state"]["lastAppliedContinuousTick"], "5", "{made}");
    let users = "SELECT string_agg(_key || ' ' || data::text, '; ' ORDER BY _key) FROM users";
    assert_eq!(
        scene.rows(users),
        r#"k0 {"n": 0, "tags": [1, 2]}; k1 {"n": 1, "tags": [1, 2]}; k2 {"n": 2, "tags": [1, 2]}"#
    );
    assert_eq!(scene.rows("SELECT coalesce(to_regclass('_graphs')::text, 'none')"), "none");

    // Two transactions that mix, one that is given up, a change alone; with names, numbers and neither.
    scene.say(&[
        (11, r#""type":2200,"tid":"1""#),
        (12, r#""type":2300,"tid":"1","cid":"5","key":"k0","data":{"_key":"k0","new":true}"#),
        (13, r#""type":2200,"tid":"2""#),
        (14, r#""type":2302,"tid":"2","cname":"users","data":{"_key":"k1"}"#),
        (15, r#""type":2300,"tid":"0","cname":"wide","key":"a","data":{"_key":"a","_id":"wide/a","_rev":"x","n":7}"#),
        (16, r#""type":2201,"tid":"2""#),
        (17, r#""type":2200,"tid":"3""#),
        (18, r#""type":2302,"tid":"3","cname":"users","data":{"_key":"k2"}"#),
        (19, r#""type":2202,"tid":"3""#),
        (20, r#""type":2300,"tid":"1","cname":"wide","key":"b","data":{"_key":"b","note":"x"}"#),
        (21, r#""type":2201,"tid":"1""#),
        (22, r#""type":2300,"tid":"0","cname":"_graphs","key":"g","data":{"_key":"g"}"#),
    ]);
    scene.await_tick(22);
    assert_eq!(scene.rows(users), r#"k0 {"new": true}; k2 {"n": 2, "tags": [1, 2]}"#);
    let wide = "SELECT string_agg(concat_ws(' ', id, n, note, c), '; ' ORDER BY id) FROM wide";
    assert_eq!(scene.rows(wide), "a 7 none 14; b x");
    scene.say(&[
        (23, r#""type":2300,"tid":"0","cname":"wide","key":"b","data":{"_key":"b","n":1}"#),
        (24, r#""type":2000,"cid":"8","collection":{"name":"fresh"}"#),
        (25, r#""type":2300,"tid":"0","cname":"fresh","key":"f","data":{"_key":"f"}"#),
        (26, r#""type":2004,"cid":"5","cname":"users""#),
        // Indexes and databases are this side's own affair.
        (27, r#""type":2100,"cid":"5","index":{"id":"9","type":"hash","unique":true,"fields":["n"]}"#),
        (28, r#""type":2101,"cid":"5","id":"9""#),
        (29, r#""type":1100,"db":"other","data":{"name":"other"}"#),
        // What is incomplete when the logger is stopped stays so.
        (30, r#""type":2200,"tid":"9""#),
        (31, r#""type":2302,"tid":"9","cname":"fresh","key":"f""#),
        (32, r#""type":1000,"lastTick":"31""#),
        (33, r#""type":1001"#),
        (34, r#""type":2201,"tid":"9""#),
        // The revision that it replaces is the remote's alone.
        (
            35,
            r#""type":2300,"tid":"0","cid":"6","key":"b","rev":"35","oldRev":"23","data":{"_key":"b","n":5}"#,
        ),
    ]);
    scene.await_tick(35);
    assert_eq!(scene.rows(wide), "a 7 none 14; b 5 none 10");
    assert_eq!(
        scene.rows("SELECT (SELECT count(*) FROM users) || ' ' || (SELECT count(*) FROM fresh)"),
        "0 1"
    );

    // Failures that pass: nothing of a bad answer is applied, and it goes on.
    let good = r#"{"tick":"36","type":2300,"tid":"0","cname":"users","key":"a","data":{"_key":"a"}}"#;
    for (status, body, number) in [
        (500, "broken".to_owned(), 1402),
        (503, "{}".to_owned(), 1402),
        (200, format!("{good}\n{{\"tick\":\"37\",\"type\":23"), 1401),
        (200, format!("{good}\nnonsense\n"), 1401),
        (200, format!("{good}\n{good}\n"), 1401),
        (200, "{\"tick\":\"3\",\"type\":2302,\"cname\":\"users\",\"key\":\"a\"}\n".to_owned(), 1401),
    ] {
        scene.lie(Some(lie(status, &body)));
        let state = scene.await_state("a failure", |state| state["lastError"]["errorNum"] == number);
        assert_eq!(state["running"], true, "{state}");
        scene.lie(None);
        scene.await_state("an answer", |state| state["lastError"]["errorNum"] == 0);
        assert_eq!(scene.rows("SELECT count(*)::text FROM users"), "0", "{body}");
    }
    // Failures that do not.
    scene.ok("applier-stop", None);
    scene.ok("applier-config", Some(&json!({"maxConnectRetries": 2})));
    scene.lie(Some(lie(500, "broken")));
    scene.ok("applier-start", None);
    assert!(scene.await_stop(1402).contains("status 500"));
    scene.lie(None);

    // An attribute without a column: what comes before it is applied, and what comes after it is not.
    scene.say(&[
        (41, r#""type":2300,"tid":"0","cname":"wide","key":"c","data":{"_key":"c","n":3}"#),
        (42, r#""type":2200,"tid":"4""#),
        (43, r#""type":2300,"tid":"4","cname":"wide","key":"d","data":{"_key":"d","n":4}"#),
        (44, r#""type":2300,"tid":"4","cname":"wide","key":"e","data":{"_key":"e","colour":"red"}"#),
        (45, r#""type":2201,"tid":"4""#),
        (46, r#""type":2302,"tid":"0","cname":"wide","key":"a","data":{"_key":"a"}"#),
    ]);
    scene.ok("applier-start", None);
    let message = scene.await_stop(400);
    assert!(
        message.contains("public.wide") && message.contains("attribute colour") && message.contains("44"),
        "{message}"
    );
    let keys = "SELECT string_agg(id, ' ' ORDER BY id) FROM wide";
    assert_eq!(scene.rows(keys), "a b c");
    // One more event that does not fit may be passed over; not two.
    scene.ok("applier-config", Some(&json!({"ignoreErrors": 1})));
    scene.ok("applier-start", None);
    let state = scene.await_tick(46);
    assert_eq!(scene.rows(keys), "b c d");
    assert!(state["totalOperationsExcluded"].as_u64() > Some(0), "{state}");
    scene.say(&[
        (51, r#""type":2300,"tid":"0","cname":"wide","key":"e","data":{"_key":"e","colour":"red"}"#),
        (52, r#""type":2300,"tid":"0","cname":"wide","key":"e","data":{"_key":"e","n":"many"}"#),
    ]);
    scene.await_stop(400);
    // Mended: the column is there, and a value that does not fit is gone from the log.
    scene.cluster.sql("ALTER TABLE wide ADD COLUMN colour text");
    scene.log.lock().expect("the log").lines.retain(|(tick, _)| *tick != 52);
    scene.ok("applier-config", Some(&json!({"ignoreErrors": 0})));
    scene.ok("applier-start", None);
    scene.say(&[(53, r#""type":2001,"cid":"5","cname":"users""#)]);
    assert!(scene.await_stop(1203).contains("Nothing is dropped here by itself"));
    scene.ok("applier-config", Some(&json!({"skipCreateDrop": true})));
    scene.ok("applier-start", None);
    scene.await_tick(53);
    scene.ok("applier-stop", None);

    // The log has lost what comes next.
    scene.log.lock().expect("the log").purged = 60;
    scene.say(&[(61, r#""type":2302,"tid":"0","cname":"wide","key":"b","data":{"_key":"b"}"#)]);
    scene.ok("applier-start", None);
    assert!(scene.await_stop(1414).contains("make-follower"));
    assert_ne!(scene.rows("SELECT count(*)::text FROM wide"), "0", "nothing was changed");
    scene.ok("applier-config", Some(&json!({"autoResync": true})));
    scene.ok("applier-start", None);
    scene.await_tick(61);
    assert_eq!(scene.rows("SELECT count(*)::text FROM wide"), "0");
    assert_eq!(scene.rows("SELECT count(*)::text FROM users"), "3");

    // A copy that fails changes nothing.
    scene.ok("applier-stop", None);
    let shared = Arc::clone(&scene.log);
    scene.remote.answer(move |line| match line.contains("/dump?collection=wide") {
        true => lie(200, "{\"type\":2300,\"data\":{\"_key\":\"z\",\"nothing\":1}}\n"),
        false => answer(&shared, line),
    });
    scene.cluster.sql("INSERT INTO users VALUES ('mine', '{}')");
    let (status, refused) = scene.put("sync", Some(&json!({"endpoint": scene.remote.endpoint()})));
    assert_eq!((status, &refused["errorNum"]), (400, &json!(400)), "{refused}");
    assert!(refused["errorMessage"].as_str().is_some_and(|text| text.contains("nothing")), "{refused}");
    assert_eq!(scene.rows("SELECT count(*)::text FROM users"), "4");
    let (status, down) = scene.put("sync", Some(&json!({"endpoint": "tcp://127.0.0.1:1"})));
    assert_eq!((status, &down["errorNum"]), (500, &json!(1400)), "{down}");

    // One that rests is started with its leader, if it is to be.
    scene.ok("applier-config", Some(&json!({"autoStart": true})));
    scene.say(&[(71, r#""type":2300,"tid":"0","cname":"wide","key":"y","data":{"_key":"y"}"#)]);
    scene.cluster.kill(1, None);
    scene.cluster.start_node(1);
    scene.await_tick(71);
    assert_eq!(scene.rows(keys), "y");
}
