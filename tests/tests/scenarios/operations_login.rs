//! Who may use the operations interface, how clusters log in at each other, and a published client of that interface.

use pgquorum_tests::{Cluster, Login, PATIENCE, await_until, pgquorum_reading, request, request_as};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

const PASSWORD: &str = "shared between clusters";
const CLIENT: &str = include_str!("../../data/operations_harperdb.py");

/// With an admin, a user that all clusters share, and one that may only look.
fn start() -> Cluster {
    let cluster = Cluster::start_with(1, &[("node-timeout", "3s")]);
    let url = cluster.node(1).api;
    let file = cluster.dir().join("password");
    std::fs::write(&file, PASSWORD).expect("the password");
    let add = |name: &str, role: &str, login: &[&str]| {
        let args = ["user", "add", name, "--role", role, "--url", &url];
        pgquorum_reading(&format!("{PASSWORD}\n"), args.iter().chain(login)).expect("user add");
    };
    add("root", "admin", &[]);
    let file = file.display().to_string();
    let login = ["--login", "root", "--login-password-file", &file];
    add("cluster_user", "super_user", &login);
    add("reader", "reader", &login);
    cluster
}

fn ask(cluster: &Cluster, login: &Login, body: &Value) -> (u16, Value) {
    let port = cluster.node(1).api_port();
    request_as(login, port, "POST", "/", Some(&body.to_string())).unwrap_or_else(|e| panic!("{body}: {e}"))
}

#[test]
fn clusters_share_a_user_and_a_client_of_old_works() {
    let (a, b) = (start(), start());
    let (mighty, reader) = (Login::basic("cluster_user", PASSWORD), Login::basic("reader", PASSWORD));
    let port = a.node(1).api_port();
    let status = json!({"operation": "cluster_status"});
    let nobody = request(port, "POST", "/", Some(&status.to_string())).expect("an answer");
    assert_eq!(nobody, (401, json!({"error": "Must login"})));
    let wrong = ask(&a, &Login::basic("cluster_user", "something else"), &status);
    assert_eq!(wrong, (401, json!({"error": "Login failed"})));
    let (code, forbidden) = ask(&a, &reader, &json!({"operation": "add_node"}));
    assert_eq!(code, 403);
    assert_eq!(
        forbidden,
        json!({"error": "This operation is not authorized due to role restrictions and/or invalid database items",
            "unauthorized_access": ["Operation 'addNode' is restricted to 'super_user' roles"], "invalid_schema_items": []})
    );
    for (cluster, name) in [(&a, "a"), (&b, "b")] {
        let body = json!({"operation": "set_configuration", "clustering_nodeName": name});
        assert_eq!(ask(cluster, &mighty, &body).0, 200);
        cluster.sql("CREATE DATABASE dev");
        let mut dev = cluster.connect_to(1, "dev").expect("dev");
        dev.batch_execute("CREATE TABLE dog (id int PRIMARY KEY, name text)").expect("a table");
    }

    // One that has nothing to show is not let in at the other.
    let other = b.node(1).api_port();
    let add = json!({"operation": "add_node", "name": "b", "host": "127.0.0.1", "port": other,
        "subscriptions": [{"channel": "dev:dog", "subscribe": true, "publish": true}]});
    let (code, answer) = ask(&a, &mighty, &add);
    assert!(
        code == 404 && answer["error"].as_str().is_some_and(|text| text.contains("Must login")),
        "{answer}"
    );
    for cluster in [&a, &b] {
        let body = json!({"operation": "set_configuration", "clustering_user": "cluster_user", "clustering_password": PASSWORD});
        let (code, answer) = ask(cluster, &mighty, &body);
        assert_eq!((code, answer.to_string().contains(PASSWORD)), (200, false), "{answer}");
        let shown = ask(cluster, &mighty, &json!({"operation": "get_configuration"})).1;
        assert_eq!(
            (&shown["clustering"]["user"], &shown["clustering"]["hasSecret"]),
            (&json!("cluster_user"), &json!(true))
        );
        assert!(!shown.to_string().contains(PASSWORD), "{shown}");
    }
    let (code, answer) = ask(&a, &mighty, &add);
    assert_eq!((code, &answer["message"]), (200, &json!("Successfully added 'b' to manifest")), "{answer}");
    for (from, to, id) in [(&a, &b, "1"), (&b, &a, "2")] {
        let mut here = from.connect_to(1, "dev").expect("dev");
        here.batch_execute(&format!("INSERT INTO dog VALUES ({id}, 'x')")).expect("a dog");
        await_until(PATIENCE, "the dog runs over", || {
            let mut there = to.connect_to(1, "dev").map_err(|e| e.to_string())?;
            let query = format!("SELECT count(*)::text FROM dog WHERE id = {id}");
            let found: String = there.query_one(&query, &[]).map_err(|e| e.to_string())?.get(0);
            if found == "1" { Ok(()) } else { Err(ask(to, &mighty, &status).1.to_string()) }
        });
    }
    assert_eq!(ask(&a, &mighty, &json!({"operation": "remove_node", "name": "b"})).0, 200);
    assert_eq!(ask(&b, &mighty, &status).1["connections"], json!([]), "the other side was told");

    // The package harperdb, as it is.
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned());
    let packages = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let out = Command::new(&python)
        .args(["-c", CLIENT, &format!("http://127.0.0.1:{port}"), "cluster_user", PASSWORD, "b", "127.0.0.1"])
        .arg(other.to_string())
        .env("PYTHONPATH", packages.join("python"))
        .output()
        .unwrap_or_else(|e| panic!("{python}: {e}"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said} (the package harperdb comes with `make test`)");
    let text = String::from_utf8_lossy(&out.stdout);
    let said: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(said.len(), 7, "{text}");
    assert_eq!((&said[0]["node_name"], &said[0]["connections"]), (&json!("a"), &json!([])));
    assert_eq!(said[1]["message"], "Successfully added 'b' to manifest");
    assert_eq!(said[2]["message"], "Successfully updated 'b'");
    let dog = &said[3]["connections"][0]["subscriptions"][0];
    assert_eq!(
        (&dog["table"], &dog["subscribe"], &dog["publish"]),
        (&json!("dog"), &json!(true), &json!(false))
    );
    assert_eq!(said[4]["message"], "Successfully removed 'b' from manifest");
    assert!(said[5]["HarperDBError"].as_str().is_some_and(|text| text.starts_with("Node 'b'")), "{text}");
    assert_eq!(said[6]["HarperDBError"], "Login failed");

    // The password is in no log.
    for cluster in [&a, &b] {
        for log in ["sidecar.log", "state/postgres.log"] {
            let file = cluster.dir().join(format!("node1/{log}"));
            let text = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            assert!(!String::from_utf8_lossy(&text).contains(PASSWORD), "{}", file.display());
        }
    }
}
