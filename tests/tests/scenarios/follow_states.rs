//! What keeps a subscription from going on is said, and it goes on when it is mended.

use pgquorum_tests::{PATIENCE, Pair, await_until, free_ports, run};
use serde_json::{Value, json};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";

fn patch(pair: &Pair, body: &Value) -> (u16, Value) {
    pair.target.send(pair.target.leader(), "PATCH", "/subscriptions/mirror", Some(body))
}

#[test]
fn what_is_wrong_at_the_source_is_said_and_mended() {
    let pair = Pair::start((1, 1), TABLES);
    pair.source.sql("INSERT INTO t SELECT g FROM generate_series(1, 10) AS g");
    let right = pair.remote();
    let [nobody] = free_ports();
    let nobody = format!("http://127.0.0.1:{nobody}");
    // Nobody there.
    pair.subscribe(&json!({"remote": [nobody]}));
    let state = pair.await_state("waiting", Some("unreachable"));
    assert!(state["detail"].as_str().is_some_and(|detail| detail.contains(&nobody)), "{state}");
    // There, and it has no such channel. The address that is wrong does no harm.
    let mut both = vec![json!(nobody)];
    both.extend(right.as_array().cloned().unwrap_or_default());
    assert_eq!(patch(&pair, &json!({"remote": both})).0, 200);
    pair.await_state("stopped", Some("unknown_channel"));
    pair.track(&["t"]);
    pair.await_state("following", None);
    pair.assert_same("t");
    // An address that needs a certificate.
    let https = right[0].as_str().expect("an address").replace("http:", "https:");
    assert_eq!(patch(&pair, &json!({"remote": [https]})).0, 200);
    let state = pair.await_state("stopped", Some("certificate"));
    assert!(state["detail"].as_str().is_some_and(|detail| detail.contains("ca")), "{state}");
    assert_eq!(patch(&pair, &json!({"ca": "no certificate"})).0, 200);
    pair.await_state("stopped", Some("certificate"));
    // Itself.
    let own = format!("http://127.0.0.1:{}", pair.target.node(1).api_port());
    assert_eq!(patch(&pair, &json!({"remote": [own], "ca": null})).0, 200);
    pair.await_state("stopped", Some("unknown_channel"));
    let (status, answer) = pair.target.post(1, "/channels", Some(&json!({"name": "shop"})));
    assert_eq!(status, 200, "{answer}");
    pair.await_state("stopped", Some("PQ014"));
    assert_eq!(patch(&pair, &json!({"remote": right})).0, 200);
    pair.await_state("following", None);
    pair.source.sql("INSERT INTO t VALUES (11)");
    pair.await_applied();
    pair.assert_same("t");
}

#[test]
fn what_was_pruned_at_the_source_stops_it_or_is_copied_anew() {
    let pair = Pair::start((1, 1), TABLES);
    pair.source.sql("INSERT INTO t SELECT g FROM generate_series(1, 10) AS g");
    pair.track(&["t"]);
    pair.subscribe(&json!({}));
    pair.await_state("following", None);
    let prune = || {
        assert_eq!(patch(&pair, &json!({"enabled": false})).0, 200);
        pair.await_state("disabled", None);
        pair.source.sql("UPDATE t SET note = 'pruned'; DELETE FROM t WHERE id = 1");
        pair.source.ask(1, "SELECT quorum.cut('shop')");
        assert_eq!(pair.source.post(1, "/channels/shop/prune", None).0, 200);
        pair.source.sql("INSERT INTO t SELECT max(id) + 1 FROM t");
        assert_eq!(patch(&pair, &json!({"enabled": true})).0, 200);
    };
    prune();
    let state = pair.await_state("stopped", Some("position_purged"));
    assert!(state["detail"].as_str().is_some_and(|detail| detail.contains("reload")), "{state}");
    assert_eq!(patch(&pair, &json!({"on_purged": "reload"})).0, 200);
    pair.await_state("following", None);
    pair.await_applied();
    pair.assert_same("t");
    prune();
    pair.await_state("following", None);
    pair.await_applied();
    pair.assert_same("t");
}

#[test]
fn requests_about_subscriptions_are_refused_in_words() {
    let pair = Pair::start((1, 1), TABLES);
    let leader = pair.target.leader();
    let new = |more: Value| {
        let mut body = json!({"name": "mirror", "remote": ["http://127.0.0.1:1"], "channel": "shop"});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let (status, answer) = pair.target.post(leader, "/subscriptions", Some(&body));
        assert!(!answer.to_string().contains("s3cret"), "{answer}");
        (status, answer["code"].as_str().unwrap_or_default().to_owned())
    };
    for (body, status, code) in [
        (json!({"remote": []}), 400, "bad_field"),
        (json!({"remote": ["127.0.0.1:8008"]}), 400, "refused_by_database"),
        (json!({"remote": ["http://user:s3cret@x:1"]}), 400, "refused_by_database"),
        (json!({"channel": null}), 400, "missing_field"),
        (json!({"policy": "some"}), 400, "refused_by_database"),
        (json!({"copy": "some"}), 400, "refused_by_database"),
        (json!({"jobs": 0}), 400, "refused_by_database"),
        (json!({"start": "yesterday noon", "copy": "none"}), 400, "refused_by_database"),
        (json!({"secret": {"s3cret": 1}}), 400, "bad_field"),
        (json!({"surprise": 1}), 400, "unknown_field"),
        (json!({"name": "no name"}), 400, "refused_by_database"),
    ] {
        let (got, word) = new(body.clone());
        assert_eq!((got, word.as_str()), (status, code), "{body}");
    }
    assert_eq!(new(json!({"secret": "s3cret"})), (200, String::new()));
    assert_eq!(new(json!({})), (409, "already_exists".to_owned()));
    let (_, state) = pair.target.get(leader, "/subscriptions/mirror");
    assert!(!state.to_string().contains("s3cret") && state["has_secret"] == true, "{state}");
    for (method, path, status) in [
        ("GET", "/subscriptions/none", 404),
        ("GET", "/subscriptions/none/tables", 404),
        ("DELETE", "/subscriptions/none", 404),
        ("GET", "/subscriptions?database=none", 404),
        ("GET", "/subscriptions?surprise=1", 400),
    ] {
        let (got, answer) = pair.target.send(leader, method, path, None);
        assert_eq!(got, status, "{method} {path}: {answer}");
    }
    let (got, answer) =
        pair.target.post(leader, "/subscriptions/mirror/tables/public.none/resume", Some(&json!({})));
    assert_eq!((got, answer["code"].as_str()), (404, Some("unknown_table")), "{answer}");
    // The secret is in no log, whatever was wrong with it.
    let log = std::fs::read_to_string(pair.target.node(leader).state_dir().join("postgres.log"))
        .unwrap_or_default();
    assert!(!log.contains("s3cret"));
    assert_eq!(pair.target.send(leader, "DELETE", "/subscriptions/mirror", None).0, 200);
}

#[test]
fn a_subscription_in_another_database_is_found() {
    let pair = Pair::start((1, 1), TABLES);
    pair.source.sql("INSERT INTO t SELECT g FROM generate_series(1, 10) AS g");
    pair.track(&["t"]);
    pair.target.sql("CREATE DATABASE mine");
    let mut client = pair.target.connect_to(1, "mine").expect("a session");
    run(&mut client, &format!("CREATE EXTENSION pgquorum; {TABLES}"));
    let remote = pair.remote()[0].as_str().expect("an address").to_owned();
    run(&mut client, &format!("SELECT quorum.subscribe('mirror', ARRAY['{remote}'], 'shop')"));
    await_until(PATIENCE, "the rows", || {
        let count: i64 = client.query_one("SELECT count(*) FROM t", &[]).map_err(|e| e.to_string())?.get(0);
        if count == 10 { Ok(()) } else { Err(count.to_string()) }
    });
    let (_, state) = pair.target.get(1, "/subscriptions/mirror?database=mine");
    assert_eq!(state["database"], "mine", "{state}");
    // It does not keep its database from going once it is ended.
    run(&mut client, "SELECT quorum.unsubscribe('mirror')");
    drop(client);
    await_until(PATIENCE, "DROP DATABASE", || {
        let mut admin = pair.target.connect(1).map_err(|e| e.to_string())?;
        admin.batch_execute("DROP DATABASE mine").map_err(|e| e.to_string())
    });
}

#[test]
fn who_holds_a_row_that_a_change_needs_is_said() {
    let pair = Pair::start((1, 1), TABLES);
    pair.source.sql("INSERT INTO t SELECT g FROM generate_series(1, 10) AS g");
    pair.track(&["t"]);
    pair.subscribe(&json!({}));
    pair.await_state("following", None);
    let mut holder = pair.target.connect(1).expect("a session");
    holder
        .batch_execute("SET application_name = 'forgotten'; BEGIN; SELECT FROM t WHERE id = 7 FOR UPDATE")
        .expect("a lock");
    pair.source.sql("UPDATE t SET note = 'new' WHERE id = 7");
    let state = pair.await_state("waiting", Some("blocked"));
    assert!(state["detail"].as_str().is_some_and(|detail| detail.contains("forgotten")), "{state}");
    holder.batch_execute("COMMIT").expect("the lock is gone");
    pair.await_state("following", None);
    pair.await_applied();
    pair.assert_same("t");
}

#[test]
fn both_sides_know_how_far_behind_a_follower_is() {
    let pair = Pair::start((1, 1), TABLES);
    pair.track(&["t"]);
    pair.subscribe(&json!({}));
    pair.await_state("following", None);
    pair.source.sql("INSERT INTO t SELECT g FROM generate_series(1, 10) AS g");
    pair.await_applied();
    let metrics = |line: &str| {
        await_until(PATIENCE, line, || {
            let (_, answer) = pair.target.get(1, "/metrics");
            let text = answer.as_str().unwrap_or_default().to_owned();
            if text.lines().any(|one| one == line) { Ok(()) } else { Err(text) }
        });
    };
    metrics(
        "pgquorum_subscription_state{database=\"postgres\",subscription=\"mirror\",state=\"following\"} 1",
    );
    metrics("pgquorum_subscription_lag_changes{database=\"postgres\",subscription=\"mirror\"} 0");
    let behind = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        await_until(PATIENCE, what, || {
            let (status, all) = pair.source.get(1, "/channels/shop/followers");
            if status == 200 && wanted(&all[0]) { Ok(()) } else { Err(all.to_string()) }
        });
    };
    behind("the follower has all", &|one| {
        one["lag_ticks"] == 0 && one["lag_bytes"] == 0 && one["lag_seconds"] == 0.0
    });
    let here = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        await_until(PATIENCE, what, || {
            let found = pair.state()?;
            if wanted(&found) { Ok(()) } else { Err(found.to_string()) }
        });
    };
    here("the subscription has all", &|one| one["lag_ticks"] == 0 && one["lag_bytes"] == 0);
    let mut holder = pair.target.connect(1).expect("a session");
    holder.batch_execute("BEGIN; LOCK TABLE t IN EXCLUSIVE MODE").expect("a lock");
    pair.source.sql("INSERT INTO t SELECT g FROM generate_series(31, 45) AS g");
    here("the subscription is behind", &|one| {
        one["lag_ticks"] == 15 && one["lag_bytes"].as_u64().is_some_and(|bytes| bytes >= 15)
    });
    holder.batch_execute("COMMIT").expect("the lock is gone");
    pair.await_applied();
    behind("the follower has all again", &|one| one["lag_ticks"] == 0);
    assert_eq!(patch(&pair, &json!({"enabled": false})).0, 200);
    pair.await_state("disabled", None);
    pair.source.sql("INSERT INTO t SELECT g FROM generate_series(11, 30) AS g");
    behind("the follower is behind", &|one| {
        let above = |name: &str| one[name].as_f64().is_some_and(|value| value > 0.0);
        one["lag_ticks"] == 20 && above("lag_bytes") && above("lag_seconds")
    });
}
