//! Clusters exchange tables over the operations interface: `POST /`.

use pgquorum_tests::{Cluster, PATIENCE, await_until, request};
use postgres::error::SqlState;
use serde_json::{Value, json};

/// Two clusters are much for one machine: it is not to be taken for a dead node.
const SETTINGS: [(&str, &str); 1] = [("node-timeout", "3s")];

/// Asks any node of a cluster.
fn ask(cluster: &Cluster, node: u64, body: &Value) -> (u16, Value) {
    let port = cluster.node(node).api_port();
    request(port, "POST", "/", Some(&body.to_string())).unwrap_or_else(|e| panic!("{body}: {e}"))
}

/// The same for what is to succeed.
fn done(cluster: &Cluster, body: &Value) -> Value {
    let (status, answer) = ask(cluster, cluster.leader(), body);
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

/// The same for what is to be refused: the sentence.
fn refused(cluster: &Cluster, status: u16, body: &Value) -> String {
    let (got, answer) = ask(cluster, cluster.leader(), body);
    assert_eq!(got, status, "{body}: {answer}");
    answer["error"].as_str().unwrap_or_else(|| panic!("{body}: {answer}")).to_owned()
}

fn name(cluster: &Cluster, name: &str) {
    let body = json!({"operation": "set_configuration", "clustering_nodeName": name});
    assert_eq!(done(cluster, &body)["message"], "Configuration successfully set.");
}

fn route(cluster: &Cluster) -> Value {
    json!({"host": "127.0.0.1", "port": cluster.node(cluster.leader()).api_port()})
}

/// Runs statements in database `dev` of the leader; again where those that apply changes were in the way, or there was no
/// lease for a moment.
fn dev(cluster: &Cluster, statements: &str) {
    let again = [
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::READ_ONLY_SQL_TRANSACTION,
    ];
    await_until(PATIENCE, statements, || {
        let mut client = cluster.connect_to(cluster.leader(), "dev").map_err(|e| format!("{e:?}"))?;
        match client.batch_execute(statements) {
            Err(e) if e.code().is_some_and(|code| again.contains(code)) => Err(format!("{e:?}")),
            done => {
                done.unwrap_or_else(|e| panic!("{statements}: {e:?}"));
                Ok(())
            }
        }
    });
}

fn value(cluster: &Cluster, query: &str) -> Result<String, String> {
    let mut client = cluster.connect_to(cluster.leader(), "dev").map_err(|e| format!("{e:?}"))?;
    let row = client.query_one(query, &[]).map_err(|e| format!("{query}: {e:?}"))?;
    row.try_get::<_, Option<String>>(0).map(Option::unwrap_or_default).map_err(|e| e.to_string())
}

fn await_value(cluster: &Cluster, query: &str, expected: &str) {
    await_until(PATIENCE, &format!("{query}: {expected}"), || match value(cluster, query)? {
        found if found == expected => Ok(()),
        found => Err(format!(
            "{found}; {:?}",
            value(cluster, "SELECT jsonb_agg(s)::text FROM quorum.subscription_state s")
        )),
    });
}

const DOGS: &str = "SELECT string_agg(id || ' ' || name, ', ' ORDER BY id) FROM dog";

fn subscription(table: &str, subscribe: bool, publish: bool) -> Value {
    json!({"schema": "dev", "table": table, "subscribe": subscribe, "publish": publish})
}

fn update(node: &str, subscription: &Value) -> Value {
    json!({"operation": "update_node", "node_name": node, "subscriptions": [subscription]})
}

/// With a table come the types of its columns; one that cannot be made is named.
fn types_are_made(a: &Cluster, b: &Cluster) {
    dev(
        b,
        "CREATE TYPE wild.mood AS ENUM ('calm', 'it''s angry'); CREATE DOMAIN wild.kilo AS numeric(6, 2) CHECK (VALUE > 0); \
         CREATE TYPE wild.size AS (weight wild.kilo, length int); CREATE TYPE wild.span AS RANGE (subtype = int4); \
         CREATE TABLE wild.lion (id int PRIMARY KEY, mood wild.mood, moods wild.mood[], weight wild.kilo, size wild.size); \
         CREATE TABLE wild.path (id int PRIMARY KEY, span wild.span)",
    );
    assert_eq!(
        done(a, &update("b", &subscription("wild.lion", true, true)))["message"],
        "Successfully updated 'b'"
    );
    dev(b, "INSERT INTO wild.lion VALUES (1, 'calm', '{calm,it''s angry}', 1.5, '(2.5,3)')");
    let lion = "SELECT concat_ws(' ', mood, moods, weight, size) FROM wild.lion WHERE id = 1";
    await_value(a, lion, "calm {calm,\"it's angry\"} 1.50 (2.50,3)");
    dev(a, "UPDATE wild.lion SET mood = 'it''s angry', weight = 2 WHERE id = 1");
    await_value(b, lion, "it's angry {calm,\"it's angry\"} 2.00 (2.50,3)");
    let missing = refused(a, 400, &update("b", &subscription("wild.path", true, false)));
    assert!(missing.contains("table wild.path cannot be made here: there is no type wild.span"), "{missing}");
}

#[test]
fn tables_flow_both_ways_and_nodes_come_and_go() {
    let (a, b) = (Cluster::start_with(2, &SETTINGS), Cluster::start_with(1, &SETTINGS));
    // Before it has a name of its own a cluster has one all the same.
    let own = done(&a, &json!({"operation": "cluster_status"}));
    assert!(own["node_name"].as_str().is_some_and(|name| name.starts_with("cluster-")), "{own}");
    name(&a, "a");
    name(&b, "b");

    // Routes, asked of a node that does not lead.
    let set = json!({"operation": "cluster_set_routes", "server": "hub", "routes": [route(&b), {"host": "no.such.host", "port": 1}]});
    let (status, answer) = ask(&a, a.follower(), &set);
    assert_eq!((status, &answer["message"]), (200, &json!("cluster routes successfully set")), "{answer}");
    assert_eq!((&answer["set"], &answer["skipped"]), (&set["routes"], &json!([])));
    let again = json!({"operation": "cluster_set_routes", "server": "leaf", "routes": [route(&b)]});
    assert_eq!(
        done(&a, &again),
        json!({"message": "cluster routes successfully set", "set": [], "skipped": [route(&b)]})
    );
    let delete = json!({"operation": "cluster_delete_routes", "routes": [{"host": "no.such.host", "port": 1}, {"host": "x", "port": 2}]});
    assert_eq!(
        done(&a, &delete),
        json!({"message": "cluster routes successfully deleted", "deleted": [{"host": "no.such.host", "port": 1}],
            "skipped": [{"host": "x", "port": 2}]})
    );
    let get = json!({"operation": "cluster_get_routes"});
    assert_eq!(done(&a, &get), json!({"hub": [route(&b)], "leaf": []}));

    // What is wrong.
    let add = |subscription: &Value| json!({"operation": "add_node", "node_name": "b", "subscriptions": [subscription]});
    assert_eq!(
        request(a.node(1).api_port(), "POST", "/", Some("{")).expect("an answer").1["error"],
        "Invalid JSON."
    );
    assert_eq!(refused(&a, 400, &json!({})), "Request body must include an 'operation' property.");
    assert_eq!(refused(&a, 400, &json!({"operation": "x"})), "Operation 'x' not found");
    assert_eq!(
        refused(&a, 400, &json!({"operation": "add_node", "subscriptions": []})),
        "'node_name' is required"
    );
    assert_eq!(
        refused(&a, 400, &json!({"operation": "add_node", "node_name": "a"})),
        "'node_name' cannot be this nodes name"
    );
    let lost = refused(&a, 404, &json!({"operation": "add_node", "node_name": "c"}));
    assert!(lost.starts_with("Node 'c' was not found") && lost.contains("is 'b'"), "{lost}");
    assert_eq!(refused(&a, 404, &add(&subscription("dog", true, true))), "database 'dev' does not exist");
    a.sql("CREATE DATABASE dev");
    assert_eq!(refused(&a, 404, &add(&subscription("dog", true, true))), "Table 'dev.dog' does not exist");
    let unknown = refused(&a, 400, &update("b", &subscription("dog", true, true)));
    assert_eq!(unknown, "Node 'b' has not been added, perform add_node to proceed.");
    assert!(refused(&a, 404, &json!({"operation": "remove_node", "name": "b"})).starts_with("Node 'b'"));

    // Database and table are made at the other side.
    dev(&a, "CREATE TABLE dog (id int PRIMARY KEY, name varchar(20), seen timestamptz(3))");
    let added = done(&a, &add(&subscription("dog", true, true)));
    assert_eq!(added["message"], "Successfully added 'b' to manifest");
    assert_eq!(
        refused(&a, 400, &add(&subscription("dog", true, true))),
        "Node 'b' has already been added, perform update_node to proceed."
    );
    let columns = "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute \
                   WHERE attrelid = 'dog'::regclass AND attnum > 0";
    assert_eq!(
        value(&b, columns).expect("columns"),
        "id integer, name character varying(20), seen timestamp(3) with time zone"
    );
    dev(&a, "INSERT INTO dog VALUES (1, 'from a')");
    dev(&b, "INSERT INTO dog VALUES (2, 'from b')");
    for cluster in [&a, &b] {
        await_value(cluster, DOGS, "1 from a, 2 from b");
    }
    dev(&a, "UPDATE dog SET name = 'changed by a' WHERE id = 2");
    dev(&b, "DELETE FROM dog WHERE id = 1");
    for cluster in [&a, &b] {
        await_value(cluster, DOGS, "2 changed by a");
    }

    // Both write the same rows at the same time: in the end both have the later write of each.
    for round in 0..20 {
        for (cluster, who) in [(&a, "a"), (&b, "b")] {
            dev(
                cluster,
                &format!(
                    "INSERT INTO dog VALUES (100 + {round} % 3, '{who} {round}') ON CONFLICT (id) DO UPDATE SET name = excluded.name"
                ),
            );
        }
    }
    await_until(PATIENCE, "the same rows on both sides", || {
        let (here, there) = (value(&a, DOGS)?, value(&b, DOGS)?);
        let last = here.contains("100 b 18") && here.contains("101 b 19") && here.contains("102 b 17");
        if here == there && last { Ok(()) } else { Err(format!("{here}; {there}")) }
    });
    dev(&a, "DELETE FROM dog WHERE id >= 100");
    await_value(&b, DOGS, "2 changed by a");

    // A table that is there only, in one direction, in a schema of its own.
    dev(
        &b,
        "CREATE SCHEMA wild; CREATE TABLE wild.\"Cat\" (kind text, nr int, weight numeric(5, 2), PRIMARY KEY (kind, nr))",
    );
    let updated = done(&a, &update("b", &subscription("wild.Cat", true, false)));
    assert_eq!(updated, json!({"message": "Successfully updated 'b'"}));
    dev(&b, "INSERT INTO wild.\"Cat\" VALUES ('lynx', 1, 18.25)");
    await_value(&a, "SELECT (weight)::text FROM wild.\"Cat\"", "18.25");
    dev(&a, "INSERT INTO wild.\"Cat\" VALUES ('puma', 2, 60)");

    // How it is, from both sides, and after a change of leader.
    let lead = a.follower();
    assert_eq!(a.hand_over(lead).0, 200);
    assert_eq!(a.await_leader(None), lead);
    let status = json!({"operation": "cluster_status"});
    let found = await_until(PATIENCE, "b is followed", || {
        let found = done(&a, &status);
        let connection = &found["connections"][0];
        let good = connection["status"] == "open" && connection["databases"][0]["state"] == "following";
        if good { Ok(found) } else { Err(found.to_string()) }
    });
    let connection = &found["connections"][0];
    assert_eq!((&found["node_name"], &found["is_enabled"]), (&json!("a"), &json!(true)));
    assert_eq!((&connection["node_name"], &connection["status"]), (&json!("b"), &json!("open")), "{found}");
    assert!(connection["latency_ms"].is_u64() && connection["uptime"].is_string(), "{found}");
    assert_eq!(connection["ports"]["operations_api"], route(&b)["port"]);
    let shown = |table: &str, publish: bool, subscribe: bool| json!({"schema": "dev", "database": "dev", "table": table, "publish": publish, "subscribe": subscribe});
    assert_eq!(
        connection["subscriptions"],
        json!([shown("dog", true, true), shown("wild.Cat", false, true)])
    );
    let there = done(&b, &status);
    assert_eq!(there["connections"][0]["node_name"], "a");
    assert_eq!(
        there["connections"][0]["subscriptions"],
        json!([shown("dog", true, true), shown("wild.Cat", true, false)])
    );
    let network = done(&b, &json!({"operation": "cluster_network", "timeout": 20_000}));
    let nodes = network["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 2, "{network}");
    assert_eq!(
        (&nodes[0]["name"], &nodes[0]["connected_nodes"], &nodes[0]["routes"]),
        (&json!("b"), &json!(["a"]), &json!([]))
    );
    assert_eq!((&nodes[1]["name"], &nodes[1]["routes"]), (&json!("a"), &json!([route(&b)])), "{network}");
    assert!(nodes[1]["response_time"].is_u64(), "{network}");
    let bare = done(
        &b,
        &json!({"operation": "cluster_network", "timeout": 20_000, "connected_nodes": true, "routes": true}),
    );
    assert!(
        bare["nodes"][1].get("routes").is_none() && bare["nodes"][1].get("connected_nodes").is_none(),
        "{bare}"
    );
    dev(&a, "INSERT INTO dog VALUES (3, 'from the new leader')");
    await_value(&b, DOGS, "2 changed by a, 3 from the new leader");

    // Nothing flows; then again, from a time on that has passed.
    assert_eq!(
        done(&a, &update("b", &subscription("dog", false, true)))["message"],
        "Successfully updated 'b'"
    );
    let start = value(
        &b,
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')",
    )
    .expect("the time");
    dev(&b, "INSERT INTO dog VALUES (4, 'while away')");
    dev(&b, "INSERT INTO wild.\"Cat\" VALUES ('lion', 3, 1)");
    await_value(&a, "SELECT count(*)::text FROM wild.\"Cat\"", "3");
    assert_eq!(value(&a, "SELECT count(*)::text FROM dog").expect("dogs"), "2");
    assert_eq!(
        value(&b, "SELECT count(*)::text FROM wild.\"Cat\"").expect("cats"),
        "2",
        "nothing goes there"
    );
    let mut again = subscription("dog", true, true);
    again["start_time"] = json!(start);
    done(&a, &json!({"operation": "set_node_replication", "node_name": "b", "subscriptions": [again]}));
    await_value(&a, DOGS, "2 changed by a, 3 from the new leader, 4 while away");

    // What was read can go.
    dev(&b, "INSERT INTO dog VALUES (5, 'last')");
    await_value(&a, "SELECT count(*)::text FROM dog", "4");
    let purge = |table: &str, options: Value| json!({"operation": "purge_stream", "database": "dev", "table": table, "options": options});
    let kept = done(&b, &purge("dog", json!({"keep": 1})));
    assert_eq!(kept["message"], "Successfully purged table 'dev.dog'");
    assert!(kept["purged"].as_u64().is_some_and(|purged| purged > 0), "{kept}");
    let left = "SELECT changes::text FROM quorum.channel_state WHERE channel = 'cluster'";
    assert_eq!(value(&b, left).expect("changes"), "1");
    let last = value(&b, "SELECT last_tick::text FROM quorum.channel_state WHERE channel = 'cluster'")
        .expect("a tick");
    let seq: u64 = last.parse().expect("a tick");
    assert_eq!(done(&b, &purge("dog", json!({"seq": seq})))["purged"], 0);
    assert_eq!(refused(&b, 404, &purge("cow", Value::Null)), "Table 'dev.cow' does not exist");

    // All anew.
    let configure = json!({"operation": "configure_cluster", "connections": [
        {"node_name": "b", "subscriptions": [subscription("dog", true, true)]}]});
    assert_eq!(done(&a, &configure), json!({"message": "Cluster successfully configured."}));
    let found = done(&a, &status);
    assert_eq!(found["connections"][0]["subscriptions"], json!([shown("dog", true, true)]));
    dev(&b, "INSERT INTO dog VALUES (6, 'configured')");
    await_value(&a, "SELECT name::text FROM dog WHERE id = 6", "configured");

    types_are_made(&a, &b);

    // The other side is gone.
    b.down();
    let found = done(&a, &status);
    assert_eq!(found["connections"][0]["status"], "closed", "{found}");
    let removed = done(&a, &json!({"operation": "remove_node", "node_name": "b"}));
    assert_eq!(removed["message"], "Successfully removed 'b' from manifest");
    assert!(removed["warning"].is_string(), "{removed}");
    assert_eq!(done(&a, &status)["connections"], json!([]));
    assert_eq!(
        value(&a, "SELECT count(*)::text FROM quorum.subscription_state").expect("subscriptions"),
        "0"
    );
    let alone = done(&a, &json!({"operation": "configure_cluster", "connections": []}));
    assert_eq!(alone["message"], "Cluster successfully configured.");
    b.up(1);
    assert_eq!(done(&b, &status)["connections"][0]["node_name"], "a", "it could not be told");
    let removed = done(&b, &json!({"operation": "remove_node", "name": "a"}));
    assert_eq!(removed, json!({"message": "Successfully removed 'a' from manifest"}));
    assert_eq!(
        value(&b, "SELECT count(*)::text FROM quorum.subscription_state").expect("subscriptions"),
        "0"
    );
}
