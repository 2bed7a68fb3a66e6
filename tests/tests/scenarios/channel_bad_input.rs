//! Channels and everything that can be asked of them wrongly, on a real server: the status, the word, nothing half done.

use pgquorum_tests::Cluster;
use serde_json::{Value, json};

#[test]
fn each_mistake_has_its_word() {
    let cluster = Cluster::start_steady(1);
    cluster.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, note text); CREATE TABLE other (id int PRIMARY KEY); \
         CREATE TABLE keyless (id int); CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY); \
         CREATE VIEW looks AS SELECT 1 AS id",
    );
    // The feed looks into all databases that can be entered, at the same time perhaps.
    cluster.sql("CREATE DATABASE bare TEMPLATE template0");
    // Objects of the extension's names that somebody else made: none of it is to run with the sidecar's rights.
    let mut bare = cluster.connect_to(1, "bare").expect("a session in the other database");
    bare.batch_execute(
        "CREATE TABLE ran (); CREATE SCHEMA quorum; CREATE TABLE quorum.channel (name text);
         CREATE FUNCTION runs() RETURNS text LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO public.ran DEFAULT VALUES; RETURN 'x'; END $$;
         CREATE VIEW quorum.channel_state AS SELECT public.runs() AS channel;
         CREATE FUNCTION quorum.create_channel(name text) RETURNS text LANGUAGE sql AS 'SELECT public.runs()';
         CREATE VIEW quorum.readonly_statements AS
             SELECT public.runs() AS hash, 'public' AS search_path, 1 AS query_id, true AS served, now() AS withdrawn;
         CREATE FUNCTION quorum.statements_state() RETURNS text LANGUAGE sql AS 'SELECT public.runs()';
         CREATE FUNCTION quorum.served_statements() RETURNS text[] LANGUAGE sql AS 'SELECT ARRAY[public.runs()]';
         CREATE FUNCTION quorum.take_learned(integer) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(public.runs())';
         CREATE FUNCTION quorum.mark_unsent() RETURNS text LANGUAGE sql AS 'SELECT public.runs()';
         CREATE FUNCTION quorum.merge_statements(jsonb) RETURNS int LANGUAGE sql AS 'SELECT length(public.runs())'",
    )
    .expect("objects of these names");
    for (path, body) in [
        ("/channels", json!({"name": "shop"})),
        ("/channels", json!({"name": "second"})),
        ("/channels/shop/tables", json!({"table": "orders"})),
    ] {
        assert_eq!(cluster.post(1, path, Some(&body)).0, 200, "{path} {body}");
    }
    cluster.sql("INSERT INTO orders SELECT g, 'x' FROM generate_series(1, 100) AS g");
    // All of it, so that nothing comes while the mistakes are made.
    cluster.ask(1, "SELECT quorum.cut('shop')");
    let (status, found) = cluster.get(1, "/channels/shop/changes?after=start&wait=10s&limit=10");
    assert_eq!(status, 200, "{found}");
    let (_, before) = cluster.get(1, "/channels");

    let track = |table: &str| json!({"table": table});
    let cases: Vec<(&str, &str, Value, u16, &str)> = vec![
        ("POST", "/channels", json!({"name": "shop"}), 409, "already_exists"),
        ("POST", "/channels", json!({"name": "a", "old_image": "half"}), 400, "refused_by_database"),
        ("POST", "/channels", json!({"name": "a", "retain_age": "soon"}), 400, "refused_by_database"),
        ("POST", "/channels?database=none", json!({"name": "a"}), 404, "unknown_database"),
        ("POST", "/channels?database=bare", json!({"name": "a"}), 404, "no_extension"),
        ("GET", "/channels?database=bare", Value::Null, 404, "no_extension"),
        ("GET", "/sql/readonly?database=bare", Value::Null, 404, "no_extension"),
        ("GET", "/sql/readonly?database=bare&details=true", Value::Null, 404, "no_extension"),
        ("POST", "/channels/none/tables", track("other"), 404, "unknown_channel"),
        ("POST", "/channels/shop/tables", track("nothing"), 404, "unknown_table"),
        ("POST", "/channels/shop/tables", track("orders"), 409, "already_exists"),
        ("POST", "/channels/second/tables", track("orders"), 409, "already_exists"),
        ("POST", "/channels/shop/tables", track("keyless"), 400, "refused_by_database"),
        ("POST", "/channels/shop/tables", track("unlogged"), 400, "refused_by_database"),
        ("POST", "/channels/shop/tables", track("looks"), 400, "refused_by_database"),
        ("POST", "/channels/shop/tables", track("pg_class"), 400, "refused_by_database"),
        ("POST", "/channels/shop/tables", track("a b"), 400, "refused_by_database"),
        ("POST", "/channels/shop/tables", json!({"table": "other", "columns": ["x"]}), 400, "unknown_column"),
        (
            "POST",
            "/channels/shop/tables",
            json!({"table": "other", "where": "id >"}),
            400,
            "refused_by_database",
        ),
        ("POST", "/channels/shop/tables", json!({"table": "other", "where": "x > 1"}), 400, "unknown_column"),
        (
            "POST",
            "/channels/shop/tables",
            json!({"table": "other", "where": "id IN (SELECT 1)"}),
            400,
            "refused_by_database",
        ),
        ("DELETE", "/channels/none", Value::Null, 404, "unknown_channel"),
        ("DELETE", "/channels/shop/tables/other", Value::Null, 404, "unknown_table"),
        ("POST", "/channels/none/prune", Value::Null, 404, "unknown_channel"),
        ("POST", "/channels/shop/purge", json!({"before": "99999999"}), 409, "position_in_future"),
        ("POST", "/channels/shop/followers", json!({"name": "a/b"}), 400, "refused_by_database"),
        (
            "POST",
            "/channels/shop/followers",
            json!({"name": "a", "ttl": "-1 day"}),
            400,
            "refused_by_database",
        ),
        ("POST", "/channels/none/followers", json!({"name": "a"}), 404, "unknown_channel"),
        ("PUT", "/channels/shop/followers/a", json!({"position": "now"}), 404, "unknown_follower"),
        ("DELETE", "/channels/shop/followers/a", Value::Null, 404, "unknown_follower"),
        ("GET", "/channels/none", Value::Null, 404, "unknown_channel"),
        ("GET", "/channels/none/changes", Value::Null, 404, "unknown_channel"),
        ("GET", "/channels/none/dump", Value::Null, 404, "unknown_channel"),
        ("GET", "/channels/shop/dump?table=other", Value::Null, 404, "unknown_table"),
        ("GET", "/channels/shop/changes?tables=other", Value::Null, 404, "unknown_table"),
        ("GET", "/channels/shop/changes?after=99999999", Value::Null, 409, "position_in_future"),
        ("GET", "/channels/shop/changes?after=99999:1", Value::Null, 409, "position_unknown_epoch"),
        ("GET", "/channels/shop/stream?after=99999:1", Value::Null, 409, "position_unknown_epoch"),
        ("GET", "/channels/shop/changes?after=soon", Value::Null, 400, "bad_position"),
    ];
    for (method, path, body, status, code) in cases {
        let body = (!body.is_null()).then_some(&body);
        let (got, answer) = cluster.send(1, method, path, body);
        assert_eq!(
            (got, answer["code"].as_str()),
            (status, Some(code)),
            "{method} {path} {body:?}: {answer}"
        );
        assert!(answer["message"].as_str().is_some_and(|message| message.len() > 20), "{answer}");
    }
    let (_, after) = cluster.get(1, "/channels");
    let kept = |state: &Value| {
        [state["channel"].clone(), state["last_tick"].clone(), state["database_version"].clone()]
    };
    let all = |states: &Value| states.as_array().into_iter().flatten().map(kept).collect::<Vec<_>>();
    assert_eq!(all(&after), all(&before), "something was half done");
    let ran: i64 = bare.query_one("SELECT count(*) FROM ran", &[]).expect("a count").get(0);
    assert_eq!(ran, 0, "what somebody else made ran");

    // What was purged says so, by an answer and by a stream.
    let (status, purged) = cluster.post(1, "/channels/shop/purge", Some(&json!({"keep": 5})));
    assert_eq!(status, 200, "{purged}");
    for path in ["/channels/shop/changes?after=10", "/channels/shop/stream?after=10"] {
        let (status, answer) = cluster.get(1, path);
        assert_eq!((status, &answer["code"]), (410, &json!("position_purged")), "{path}: {answer}");
    }
}
