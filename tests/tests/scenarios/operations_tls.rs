//! Three clusters whose sidecars use TLS exchange a table with each other over the operations interface; what is said of one
//! whose certificate is not trusted.

use pgquorum_tests::{
    Authority, CLIENT, NetCluster, Network, PATIENCE, await_until, pgquorum_program, run, skipped,
};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;

const PASSWORD: &str = "shared between clusters";
const NAMES: [&str; 3] = ["a", "b", "c"];
/// That of the sidecars.
const PORT: u16 = 8008;

/// Clusters `a`, `b` and `c`, each with a user for the others.
fn start(network: &Arc<Network>, authority: &Arc<Authority>) -> Vec<NetCluster> {
    let clusters: Vec<NetCluster> = std::thread::scope(|scope| {
        let start = |place| NetCluster::start_at(network, place, Some(authority));
        let started: Vec<_> = (1..=3).map(|place| scope.spawn(move || start(place))).collect();
        started.into_iter().map(|cluster| cluster.join().expect("a cluster")).collect()
    });
    for cluster in &clusters {
        for (name, role) in [("root", "admin"), ("cluster_user", "super_user")] {
            add_user(cluster, name, role);
        }
    }
    clusters
}

/// As an administrator does it, from another machine.
fn add_user(cluster: &NetCluster, name: &str, role: &str) {
    let file = |name: &str| cluster.node_dir(1).join("state").join(name);
    let mut command = cluster.network.command(CLIENT, &pgquorum_program());
    command.args(["--json", "user", "add", name, "--role", role, "--url", &cluster.api(1)]);
    command.arg("--token-file").arg(file("token")).arg("--tls-ca").arg(file("ca.pem"));
    let mut child =
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("user add");
    child
        .stdin
        .take()
        .expect("its input")
        .write_all(format!("{PASSWORD}\n").as_bytes())
        .expect("the password");
    let out = child.wait_with_output().expect("its end");
    assert!(out.status.success(), "user add {name}: {}", String::from_utf8_lossy(&out.stderr));
}

fn ask(cluster: &NetCluster, body: &Value) -> (u16, Value) {
    cluster.send(1, "POST", "/", Some(body)).unwrap_or_else(|error| panic!("{body}: {error}"))
}

fn done(cluster: &NetCluster, body: &Value) -> Value {
    let (status, answer) = ask(cluster, body);
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

/// Its password and its certificates are to be those of all.
fn configure(cluster: &NetCluster, name: &str, ca: &str) {
    done(
        cluster,
        &json!({"operation": "set_configuration", "clustering_nodeName": name, "clustering_user": "cluster_user",
            "clustering_password": PASSWORD, "clustering_ca": ca}),
    );
}

fn add(node: &str) -> Value {
    let dog = json!({"database": "dev", "table": "dog", "subscribe": true, "publish": true});
    json!({"operation": "add_node", "node_name": node, "subscriptions": [dog]})
}

fn route(from: &NetCluster, to: &NetCluster) {
    let body = json!({"operation": "cluster_set_routes", "server": "hub",
        "routes": [{"host": to.address(1).to_string(), "port": PORT}]});
    assert_eq!(done(from, &body)["message"], "cluster routes successfully set");
}

fn dev(cluster: &NetCluster, statements: &str) {
    run(&mut cluster.connect_to(1, "dev").expect("a session in dev"), statements);
}

fn dogs(cluster: &NetCluster) -> Result<String, String> {
    let mut client = cluster.connect_to(1, "dev").map_err(|error| format!("{error:?}"))?;
    let sql = "SELECT coalesce(string_agg(id || ' ' || name, ', ' ORDER BY id), '-') FROM dog";
    Ok(client.query_one(sql, &[]).map_err(|error| format!("{error:?}"))?.get(0))
}

fn status(cluster: &NetCluster) -> Value {
    done(cluster, &json!({"operation": "cluster_status"}))
}

fn await_dogs(cluster: &NetCluster, expected: &str) {
    await_until(PATIENCE, &format!("{expected} at {}", cluster.api(1)), || match dogs(cluster)? {
        found if found == expected => Ok(()),
        found => Err(format!("{found}; {}", status(cluster))),
    });
}

/// What a cluster says of how it follows another one.
fn database<'a>(status: &'a Value, node: &str) -> &'a Value {
    let mut all = status["connections"].as_array().into_iter().flatten();
    let found = all.find(|one| one["node_name"] == node);
    found.map_or(&Value::Null, |one| &one["databases"][0])
}

#[test]
fn three_clusters_find_each_other_over_tls_and_trust_only_their_authority() {
    if let Some(why) = Network::refused() {
        skipped(&why);
        return;
    }
    let network = Arc::new(Network::new(3));
    let (authority, stranger) = (Arc::new(Authority::new("ours")), Authority::new("somebody else's"));
    let clusters = start(&network, &authority);
    let [a, b, c] = [&clusters[0], &clusters[1], &clusters[2]];

    // Without an authority, and with another one, nothing is sent to anybody.
    route(a, b);
    done(a, &json!({"operation": "set_configuration", "clustering_nodeName": "a"}));
    let lost = |words: &[&str]| {
        let (status, answer) = ask(a, &add("b"));
        let said = answer["error"].as_str().unwrap_or_default();
        assert!(status == 404 && words.iter().all(|word| said.contains(word)), "{status} {answer}");
    };
    lost(&["Node 'b' was not found", "clustering_ca"]);
    configure(a, "a", &stranger.pem());
    lost(&["Node 'b' was not found", &b.api(1), "certificate that is not trusted", "has expired"]);
    for (cluster, name) in clusters.iter().zip(NAMES) {
        configure(cluster, name, &authority.pem());
    }

    // From a to b, from b to c; c is found by what b knows of it. The table is made where it is not.
    run(&mut a.connect(1).expect("a session"), "CREATE DATABASE dev");
    dev(a, "CREATE TABLE dog (id int PRIMARY KEY, name text)");
    route(b, c);
    done(a, &add("b"));
    done(b, &add("c"));
    done(a, &add("c"));
    for (cluster, id) in [(a, 1), (b, 2), (c, 3)] {
        dev(cluster, &format!("INSERT INTO dog VALUES ({id}, 'of {id}')"));
    }
    for cluster in &clusters {
        await_dogs(cluster, "1 of 1, 2 of 2, 3 of 3");
    }
    dev(c, "UPDATE dog SET name = 'by c' WHERE id = 1");
    await_dogs(a, "1 by c, 2 of 2, 3 of 3");
    dev(a, "DELETE FROM dog WHERE id = 2");
    for cluster in &clusters {
        await_dogs(cluster, "1 by c, 3 of 3");
    }
    for (cluster, own) in clusters.iter().zip(NAMES) {
        await_until(PATIENCE, &format!("{own} follows both others"), || {
            let found = status(cluster);
            let all = found["connections"].as_array().into_iter().flatten();
            let well = |one: &&Value| one["status"] == "open" && one["databases"][0]["state"] == "following";
            let names: Vec<&str> = all.filter(well).filter_map(|one| one["node_name"].as_str()).collect();
            let others: Vec<&str> = NAMES.into_iter().filter(|name| *name != own).collect();
            if names == others { Ok(()) } else { Err(found.to_string()) }
        });
    }
    let seen = done(b, &json!({"operation": "cluster_network", "timeout": 20_000}));
    let names: Vec<&str> =
        seen["nodes"].as_array().into_iter().flatten().filter_map(|node| node["name"].as_str()).collect();
    assert_eq!(names, ["b", "a", "c"], "{seen}");

    // One trusts somebody else from now on: it says so, and what it makes goes on to the others.
    configure(a, "a", &stranger.pem());
    let found = await_until(PATIENCE, "a does not trust the others", || {
        let found = status(a);
        let stopped = |node| {
            database(&found, node)["code"] == "certificate" && database(&found, node)["state"] == "stopped"
        };
        if ["b", "c"].into_iter().all(stopped) { Ok(found) } else { Err(found.to_string()) }
    });
    for node in ["b", "c"] {
        let detail = database(&found, node)["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("certificate that is not trusted"), "{found}");
    }
    let closed = |one: &Value| {
        one["status"] == "closed" && one["error"].as_str().is_some_and(|text| text.contains("certificate"))
    };
    assert!(found["connections"].as_array().is_some_and(|all| all.iter().all(closed)), "{found}");
    let mut client = a.connect_to(1, "dev").expect("a session in dev");
    let sql =
        "SELECT count(*) FROM quorum.subscription_state WHERE state = 'stopped' AND code = 'certificate'";
    assert_eq!(client.query_one(sql, &[]).expect("states").get::<_, i64>(0), 2);
    dev(a, "INSERT INTO dog VALUES (4, 'of a')");
    dev(b, "INSERT INTO dog VALUES (5, 'of b')");
    for cluster in [b, c] {
        await_dogs(cluster, "1 by c, 3 of 3, 4 of a, 5 of b");
    }
    assert_eq!(dogs(a), Ok("1 by c, 3 of 3, 4 of a".to_owned()));
    configure(a, "a", &authority.pem());
    await_dogs(a, "1 by c, 3 of 3, 4 of a, 5 of b");

    // One leaves; the two others go on.
    let removed = done(c, &json!({"operation": "remove_node", "node_name": "a"}));
    assert!(removed.get("warning").is_none(), "{removed}");
    dev(b, "INSERT INTO dog VALUES (6, 'of b')");
    for cluster in &clusters {
        await_dogs(cluster, "1 by c, 3 of 3, 4 of a, 5 of b, 6 of b");
    }
    dev(c, "INSERT INTO dog VALUES (7, 'of c')");
    await_dogs(b, "1 by c, 3 of 3, 4 of a, 5 of b, 6 of b, 7 of c");
    assert_eq!(dogs(a), Ok("1 by c, 3 of 3, 4 of a, 5 of b, 6 of b".to_owned()));
    // The password is in no log.
    for cluster in &clusters {
        let log = std::fs::read_to_string(cluster.node_dir(1).join("sidecar.log")).expect("the log");
        assert!(!log.contains(PASSWORD), "{}", cluster.api(1));
    }
}
