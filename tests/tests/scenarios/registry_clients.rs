//! Servers that use the npm package `@mimik/cluster` 2.4.0 as it is: they register, renew, talk to each other, and take out
//! one that is dead.

use pgquorum_tests::{Cluster, Login, NpmServer, PATIENCE, await_until, pgquorum, request, request_as};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PASSWORD: &str = "correct horse";

/// Who is registered as a shop, at this node.
fn shops(port: u16) -> Result<Vec<String>, String> {
    let root = Login::basic("root", PASSWORD);
    let (status, answer) =
        request_as(&root, port, "GET", "/itResources?type=shop", None).map_err(|e| e.to_string())?;
    let servers = answer["data"][0]["servers"].as_array();
    match status {
        200 => Ok(servers
            .into_iter()
            .flatten()
            .filter_map(|s| s["serverId"].as_str())
            .map(str::to_owned)
            .collect()),
        _ => Err(format!("{status} {answer}")),
    }
}

fn await_shops(port: u16, expected: &[&str]) {
    await_until(PATIENCE, &format!("{expected:?} are registered"), || {
        let shops = shops(port)?;
        if shops == expected { Ok(()) } else { Err(format!("{shops:?}")) }
    });
}

#[test]
fn two_servers_of_another_maker_find_each_other_and_outlive_a_failover() {
    let cluster = Cluster::start_with(3, &[("registry-lease", "5s"), ("node-timeout", "3s")]);
    let leader = cluster.leader();
    let mut others = (1..=3).filter(|id| *id != leader).map(|id| cluster.node(id).api_port());
    let (one, two) = (others.next().expect("a follower"), others.next().expect("another"));
    let add = |user: &str, role: &str| {
        let body = json!({"name": user, "roles": [role], "password": PASSWORD}).to_string();
        let port = cluster.node(leader).api_port();
        let login = Login::basic("root", PASSWORD);
        let (status, answer) = request_as(&login, port, "POST", "/users", Some(&body)).expect("an answer");
        assert_eq!(status, 200, "{answer}");
    };
    add("root", "admin");
    add("shop", "cluster");
    let config = cluster.dir().join("node1/node.toml").display().to_string();
    let key = pgquorum(["registry", "key", "shop", "--config", &config]).expect("registry key");
    let key = key["key"].as_str().expect("a key").to_owned();
    assert_eq!(pgquorum(["registry", "key", "pgquorum", "--config", &config]).code, 2);
    let start = |id: &str, registry: u16| NpmServer::start(id, registry, one, ("shop", PASSWORD), &key);

    let (berlin, paris) = (start("berlin", one), start("paris", two));
    for server in [&berlin, &paris] {
        server.await_servers(2);
    }
    await_shops(one, &["berlin", "paris"]);
    let hello = |server: &NpmServer, expected: &Value| {
        await_until(PATIENCE, &format!("{} hears {expected}", server.id), || {
            let answer = server.get("/test/hello-to-all")?;
            if answer["data"] == *expected { Ok(answer) } else { Err(answer.to_string()) }
        })
    };
    let answer = hello(&berlin, &json!(["paris"]));
    assert_eq!(answer["results"][0]["server"]["serverId"], "paris");
    assert_eq!(answer["failures"], json!([]));
    assert_eq!(hello(&paris, &json!(["berlin"]))["results"][0]["result"]["server"]["serverId"], "berlin");

    // Their leases go on, whoever leads: for longer than one lasts both are there at every look.
    cluster.kill(leader, None);
    let since = Instant::now();
    await_until(PATIENCE, "some leases are over", || {
        let shops = shops(one).expect("an answer");
        assert_eq!(shops, ["berlin", "paris"], "after {:?}", since.elapsed());
        if since.elapsed() > Duration::from_secs(16) { Ok(()) } else { Err("not yet".to_owned()) }
    });

    // One dies, is found dead by the other, and is out, long before its lease is over.
    drop(paris);
    let answer = hello(&berlin, &json!([]));
    assert_eq!(answer, json!({"data": [], "results": [], "failures": []}), "the package does not list it");
    await_shops(one, &["berlin"]);
    let paris = start("paris", two);
    paris.await_servers(2);
    hello(&paris, &json!(["berlin"]));
    berlin.await_servers(2);

    let end = paris.get("/test/unregister").expect("it leaves");
    assert_eq!((&end["serverId"], &end["errors"]), (&json!("paris"), &json!([])), "{end}");
    await_shops(two, &["berlin"]);
    hello(&berlin, &json!([]));
    let (status, _) = request(one, "GET", "/itResources", None).expect("an answer");
    assert_eq!(status, 401, "nobody sees this without a login");
}
