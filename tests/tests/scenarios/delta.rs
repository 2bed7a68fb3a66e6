//! The delta interface with a director and a worker: what each request does, with every answer that it can give.

mod in_sql;

use pgquorum_tests::{
    LineStream, Login, PATIENCE, Pair, await_until, pgquorum, pgquorum_reading, request, request_as,
    request_within,
};
use postgres::fallible_iterator::FallibleIterator;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";
const BASES: [&str; 2] = ["/rest/v5/cluster", "/fact-finder/rest/v5/cluster"];
const LIMIT: Duration = Duration::from_secs(90);

/// Method, and what follows the base.
const ROUTES: [(&str, &str); 7] = [
    ("GET", "/shop/database/state"),
    ("GET", "/shop/import/state"),
    ("GET", "/shop/state"),
    ("POST", "/shop/database/prune"),
    ("POST", "/shop/database/sync"),
    ("POST", "/database/sync/full"),
    ("POST", "/reset/config/version/counters"),
];

fn ask(port: u16, method: &str, base: &str, path: &str) -> (u16, Value) {
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    request_within(LIMIT, to, None, method, &format!("{base}{path}"), None).expect("an answer")
}

fn done(port: u16, method: &str, base: &str, path: &str) -> Value {
    let (status, answer) = ask(port, method, base, path);
    assert_eq!(status, 200, "{method} {base}{path}: {answer}");
    answer
}

/// An error as this interface has them.
fn refused(got: (u16, Value), status: u16, error: &str) {
    assert_eq!((got.0, &got.1["error"]), (status, &json!(error)), "{}", got.1);
    assert!(got.1["errorDescription"].is_string(), "{}", got.1);
}

struct World {
    pair: Pair,
    director: u16,
}

impl World {
    fn worker(&self) -> u16 {
        let target = &self.pair.target;
        target.node(target.leader()).api_port()
    }

    fn state(&self, port: u16) -> Value {
        done(port, "GET", BASES[0], "/shop/state")
    }

    fn await_state(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        await_until(PATIENCE, what, || {
            let state = self.state(self.worker());
            if fits(&state) { Ok(state) } else { Err(state.to_string()) }
        })
    }

    fn rest(&self, rests: bool) {
        let target = &self.pair.target;
        let body = json!({"enabled": !rests});
        let (status, answer) = target.send(target.leader(), "PATCH", "/subscriptions/mirror", Some(&body));
        assert_eq!(status, 200, "{answer}");
        self.pair.await_state(if rests { "disabled" } else { "following" }, None);
        if rests {
            // Who works for it hears of that a moment later.
            self.pair.await_rest();
        }
    }

    fn here(&self, query: &str) -> String {
        self.pair.target.ask(self.pair.target.leader(), query)
    }
}

fn imports(count: u64) -> Value {
    json!([{"type": "DATA", "count": count}])
}

#[test]
fn a_director_and_its_worker() {
    let pair = Pair::start((1, 3), TABLES);
    pair.source.sql("INSERT INTO t SELECT g FROM generate_series(1, 10) AS g");
    pair.track(&["t"]);
    let director = pair.source.node(1).api_port();
    let world = World { pair, director };
    for base in BASES {
        refused(ask(world.worker(), "GET", base, "/shop/state"), 400, "UnknownChannel");
        refused(ask(world.worker(), "POST", base, "/shop/database/prune"), 400, "UnknownChannel");
        assert_eq!(
            done(world.worker(), "POST", base, "/database/sync/full"),
            json!(""),
            "nothing is followed"
        );
    }
    world.pair.subscribe(&json!({"policy": "skip"}));
    world.pair.await_state("following", None);
    applied_and_answered(&world);
    rejected_and_counted(&world);
    pruned(&world);
    flushed_and_fetched(&world);
    in_sql::asked(&world);
    asked_wrongly(&world);
    by_role_and_after_a_failover(world);
}

/// What was committed before the request is here when it is answered.
fn applied_and_answered(world: &World) {
    for (base, id) in BASES.into_iter().zip([11, 12]) {
        world.pair.source.sql(&format!("INSERT INTO t VALUES ({id}, 'new')"));
        let results = done(world.worker(), "POST", base, "/shop/database/sync");
        assert!(results.as_array().is_some_and(|all| all.len() <= 2), "{results}");
        assert_eq!(world.here(&format!("SELECT note FROM t WHERE id = {id}")), "new");
        assert_eq!(
            done(world.director, "POST", base, "/shop/database/sync"),
            json!([]),
            "the director has it all"
        );
        let database = done(world.worker(), "GET", base, "/shop/database/state");
        assert_eq!(database, done(world.director, "GET", base, "/shop/database/state"));
        assert_eq!((&database["databaseVersion"], &database["deltaErrorCount"]), (&json!(1), &json!(0)));
        let deltas = world.pair.source.ask(1, "SELECT delta_version::text FROM quorum.channel_state");
        assert_eq!(database["deltaVersion"].to_string(), deltas);
        assert_eq!(
            done(world.worker(), "GET", base, "/shop/import/state"),
            json!({"importCounts": imports(1)})
        );
        assert_eq!(
            done(world.director, "GET", base, "/shop/import/state"),
            json!({"importCounts": imports(0)})
        );
    }
    let whole = world.state(world.worker());
    assert_eq!((&whole["cacheFlush"], &whole["importCounts"]), (&json!(0), &imports(1)));
    assert_eq!(whole["databaseState"]["databaseVersion"], 1);
}

/// A worker that rests applies what is missing when it is told to, each change with its result, and rests again.
fn rejected_and_counted(world: &World) {
    world.rest(true);
    world.pair.target.sql("DELETE FROM t WHERE id = 5");
    world.pair.source.sql("INSERT INTO t VALUES (20, 'twenty'); UPDATE t SET note = 'x' WHERE id IN (1, 5); DELETE FROM t WHERE id = 2");
    // Any node takes it; the leader does it.
    let follower = world.pair.target.node(world.pair.target.follower()).api_port();
    let results = done(follower, "POST", BASES[1], "/shop/database/sync?verbose=true");
    let all = results.as_array().expect("results");
    assert_eq!(all.len(), 4, "{results}");
    assert_eq!(all[0], json!({"success": true, "record": {"id": 20, "note": "twenty"}}));
    let failed: Vec<&Value> = all.iter().filter(|result| result["success"] == false).collect();
    assert_eq!(failed.len(), 1, "{results}");
    assert_eq!(
        (&failed[0]["error"]["name"], &failed[0]["record"]["id"]),
        (&json!("update_missing"), &json!(5))
    );
    assert!(failed[0]["error"]["stacktrace"].is_array() && failed[0]["error"]["description"].is_string());
    assert_eq!(all[3]["record"], json!({"id": 2}));
    assert_eq!(world.pair.state().expect("a state")["state"], "disabled");
    assert_eq!(world.state(world.worker())["deltaErrorCount"], 1);
    // Many are not listed one by one.
    world.pair.await_rest();
    world.pair.source.sql("INSERT INTO t SELECT g FROM generate_series(1001, 2010) AS g");
    let url = world.pair.target.node(world.pair.target.leader()).api;
    let results = pgquorum(["channel", "sync", "shop", "--url", &url]).expect("channel sync");
    let all = results.as_array().expect("results");
    assert_eq!((all.len(), &all[999]), (1001, &json!({"success": true})));
    assert!(
        all[1000]["warnings"][0].as_str().is_some_and(|text| text.starts_with("10 further deltas")),
        "{}",
        all[1000]
    );
    assert_eq!(world.here("SELECT count(*)::text FROM t WHERE id > 1000"), "1010");
}

/// Each prune is one reload: asked for where the worker rests, by itself where it is to.
fn pruned(world: &World) {
    world.pair.await_rest();
    let pruned = done(world.director, "POST", BASES[0], "/shop/database/prune");
    assert!(pruned.as_str().is_some_and(|text| text.contains("shop is 2")), "{pruned}");
    let state = done(world.director, "GET", BASES[0], "/shop/database/state");
    assert_eq!(state, json!({"databaseVersion": 2, "deltaVersion": 0, "deltaErrorCount": 0}));
    for base in BASES {
        refused(ask(world.worker(), "POST", base, "/shop/database/sync"), 409, "DatabaseVersionDiffers");
    }
    let trace = ask(world.worker(), "POST", BASES[0], "/shop/database/sync?verbose=true").1;
    assert!(trace["stacktrace"].is_array(), "{trace}");
    assert_eq!(world.state(world.worker())["databaseVersion"], 1);
    assert_eq!(done(world.worker(), "POST", BASES[0], "/database/sync/full"), json!(""));
    let state = world.state(world.worker());
    assert_eq!((&state["databaseVersion"], &state["deltaErrorCount"]), (&json!(2), &json!(0)), "{state}");
    assert_eq!(state["importCounts"], imports(2));
    world.pair.assert_same("t");
    // The same again does nothing, and the reload is not repeated when the worker goes on by itself.
    assert_eq!(done(world.worker(), "POST", BASES[1], "/database/sync/full"), json!(""));
    let url = world.pair.target.node(world.pair.target.leader()).api;
    pgquorum(["channel", "resync", "--wait", "90s", "--url", &url]).expect("channel resync");
    assert_eq!(world.pair.state().expect("a state")["state"], "disabled");
    let target = &world.pair.target;
    let body = json!({"on_purged": "reload"});
    assert_eq!(target.send(target.leader(), "PATCH", "/subscriptions/mirror", Some(&body)).0, 200);
    world.rest(false);
    assert_eq!(world.state(world.worker())["importCounts"], imports(2));
    let url = world.pair.source.node(1).api;
    pgquorum(["channel", "prune", "shop", "--url", &url]).expect("channel prune");
    let state = world.await_state("the third version", |state| state["databaseVersion"] == 3);
    assert_eq!(state["importCounts"], imports(3));
    world.pair.await_state("following", None);
    for id in [31, 32] {
        world.pair.source.sql(&format!("INSERT INTO t VALUES ({id})"));
        done(world.worker(), "POST", BASES[0], "/shop/database/sync");
    }
    // It has looked at the source once more since.
    world.pair.source.sql("CREATE TABLE later (id int PRIMARY KEY)");
    world.pair.target.sql("CREATE TABLE later (id int PRIMARY KEY)");
    world.pair.track(&["later"]);
    await_until(PATIENCE, "the other table", || {
        let state = world.pair.state()?;
        if state["tables_known"] == 2 && state["tables_copying"] == 0 {
            Ok(())
        } else {
            Err(state.to_string())
        }
    });
    assert_eq!(world.state(world.worker())["importCounts"], imports(3), "one table is no load of all");
    world.pair.assert_same("t");
}

fn flushed_and_fetched(world: &World) {
    let mut reader = LineStream::open(world.director, "/channels/shop/stream?after=now&tables=t", "*/*")
        .expect("a stream");
    let mut listener = world.pair.target.connect(world.pair.target.leader()).expect("a session");
    listener.batch_execute("LISTEN quorum_flush_caches").expect("LISTEN");
    let url = world.pair.source.node(1).api;
    let flushed = pgquorum(["channel", "flush", "shop", "--url", &url]).expect("channel flush");
    assert_eq!(flushed["cache_flushes"], 1);
    let entry = std::iter::repeat_with(|| reader.next_change())
        .find(|line| line["type"] == "change")
        .expect("an entry");
    assert_eq!(
        (&entry["op"], &entry["tag"], &entry["table"]),
        (&json!("ddl"), &json!("FLUSH CACHES"), &json!("t"))
    );
    world.await_state("the worker's flush", |state| state["cacheFlush"] == 1);
    let mut notifications = listener.notifications();
    let heard = notifications.timeout_iter(PATIENCE).next().expect("no error").expect("a notification");
    assert_eq!(heard.payload(), "shop");
    assert_eq!(world.state(world.director)["cacheFlush"], 1);
    // Twice in one transaction are two here, and one for those who follow.
    world.pair.source.sql("SELECT quorum.flush_caches('shop'), quorum.flush_caches('shop')");
    world.await_state("the next flush", |state| state["cacheFlush"] == 2);
    let shown = pgquorum(["channel", "state", "shop", "--url", &url]).expect("channel state");
    assert_eq!((&shown["cacheFlush"], &shown["databaseVersion"]), (&json!(3), &json!(3)));
    world.pair.source.sql("SELECT quorum.count_import('shop', 'SUGGEST')");
    let args = ["channel", "count-import", "shop", "suggest", "--url", &url];
    let counted = pgquorum(args).expect("channel count-import");
    assert_eq!((&counted["kind"], &counted["count"]), (&json!("SUGGEST"), &json!(2)));
    let counts = done(world.director, "GET", BASES[0], "/shop/import/state");
    assert_eq!(
        counts,
        json!({"importCounts": [{"type": "DATA", "count": 0}, {"type": "SUGGEST", "count": 2}]})
    );
    // Nothing stopped, and what describes the tables is fetched once more.
    let fetched_once = |reset: &dyn Fn()| {
        world.pair.target.sql("UPDATE quorum.subscription_version SET config_version = 100");
        reset();
        await_until(PATIENCE, "it was fetched", || {
            let version = world.here("SELECT config_version::text FROM quorum.subscription_version");
            if version == "1" { Ok(()) } else { Err(version) }
        });
    };
    fetched_once(&|| {
        for base in BASES {
            assert!(done(world.worker(), "POST", base, "/reset/config/version/counters").is_string());
        }
    });
    let worker = world.pair.target.node(world.pair.target.leader()).api;
    fetched_once(&|| {
        let reset =
            pgquorum(["channel", "reset-counters", "--url", &worker]).expect("channel reset-counters");
        assert!(reset.is_string(), "{reset}");
    });
    world.pair.await_state("following", None);
}

fn asked_wrongly(world: &World) {
    for base in BASES {
        for (method, path) in ROUTES {
            for port in [world.worker(), world.director] {
                refused(ask(port, method, base, &format!("{path}?verbose=perhaps")), 400, "BadParameter");
                refused(ask(port, method, base, &format!("{path}?surprise=1")), 400, "UnknownParameter");
                refused(ask(port, method, base, &format!("{path}?database=none")), 400, "UnknownDatabase");
                let other = if method == "GET" { "POST" } else { "GET" };
                refused(ask(port, other, base, path), 405, "MethodNotAllowed");
                if path.starts_with("/shop") {
                    let none = path.replace("shop", "none");
                    refused(ask(port, method, base, &none), 400, "UnknownChannel");
                }
            }
        }
        refused(ask(world.worker(), "GET", base, "/shop"), 404, "NoSuchRoute");
    }
}

fn by_role_and_after_a_failover(world: World) {
    const PASSWORD: &str = "correct horse battery";
    let target = &world.pair.target;
    let before = world.state(world.worker());
    let url = target.node(target.leader()).api;
    let add = |name: &str, role: &str, more: &[&str]| {
        let args = ["user", "add", name, "--role", role, "--url", &url];
        pgquorum_reading(&format!("{PASSWORD}\n"), args.iter().copied().chain(more.iter().copied()))
            .expect("user add");
    };
    let file = target.dir().join("password-of-root");
    std::fs::write(&file, PASSWORD).expect("the password");
    let file = file.display().to_string();
    let as_root = ["--login", "root", "--login-password-file", &file];
    add("root", "admin", &[]);
    add("importer", "ApiImport", &as_root);
    add("config", "ApiConfig", &as_root);
    add("bob", "reader", &as_root);
    let login = |name: &str| Login::basic(name, PASSWORD);
    for base in BASES {
        for (method, path) in ROUTES {
            let line = format!("{base}{path}");
            refused(ask(world.worker(), method, base, path), 401, "Unauthorized");
            let as_user =
                |name| request_as(&login(name), world.worker(), method, &line, None).expect("an answer");
            refused(as_user("bob"), 403, "Forbidden");
            if path.starts_with("/reset") {
                assert_eq!(as_user("config").0, 200);
            } else {
                refused(as_user("config"), 403, "Forbidden");
            }
            match (path, as_user("importer")) {
                // A worker publishes nothing.
                ("/shop/database/prune", got) => refused(got, 400, "UnknownChannel"),
                (_, (status, answer)) => assert_eq!(status, 200, "{line}: {answer}"),
            }
        }
    }
    // A token of one node's token endpoint is a login at the others, too.
    let form = format!("grant_type=password&username=importer&password={}", PASSWORD.replace(' ', "+"));
    for path in ["/oauth/token", "/fact-finder/oauth/token"] {
        let asked = |body: &str| request(world.worker(), "POST", path, Some(body)).expect("an answer");
        let (status, got) = asked(&form);
        assert_eq!((status, &got["scope"]), (200, &json!("import")), "{got}");
        let bearer = Login::bearer(got["access_token"].as_str().expect("a token"));
        for id in [target.leader(), target.follower()] {
            let port = target.node(id).api_port();
            let state = request_as(&bearer, port, "GET", "/fact-finder/rest/v5/cluster/shop/state", None);
            assert_eq!(state.expect("an answer").0, 200);
        }
        let (status, got) = asked(&format!("{form}x"));
        assert_eq!((status, &got["error"]), (400, &json!("invalid_grant")), "{got}");
    }
    // Another leader has the same counts.
    let old = target.leader();
    target.kill(old, None);
    let port = target.node(target.await_leader(Some(old))).api_port();
    let importer = login("importer");
    let after = await_until(PATIENCE, "the state at the new leader", || {
        match request_as(&importer, port, "GET", "/rest/v5/cluster/shop/state", None) {
            Ok((200, state)) => Ok(state),
            other => Err(format!("{other:?}")),
        }
    });
    for name in ["databaseVersion", "importCounts", "cacheFlush", "deltaErrorCount"] {
        assert_eq!(after[name], before[name], "{name}: {after}, before: {before}");
    }
    world.pair.source.sql("INSERT INTO t VALUES (41, 'after')");
    let sync = || request_as(&importer, port, "POST", "/rest/v5/cluster/shop/database/sync?wait=20s", None);
    await_until(PATIENCE, "the new leader applies", || match sync() {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(world.here("SELECT note FROM t WHERE id = 41"), "after");
    // Without its director a worker cannot know what is missing.
    world.pair.source.stop(1);
    refused(sync().expect("an answer"), 500, "DirectorFailed");
}
