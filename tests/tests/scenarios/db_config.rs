//! PostgreSQL's parameters for all nodes.

use pgquorum_tests::{Cluster, PATIENCE, await_until};
use serde_json::{Value, json};

#[test]
fn parameters_reach_every_node_and_survive_a_failover() {
    let cluster = Cluster::start_steady(3);
    let leader = cluster.leader();
    let change =
        json!({"work_mem": "7MB", "max_connections": "123", "pgquorum.serve_observed_statements": true});
    let (code, answer) = cluster.send(leader, "PATCH", "/db-config", Some(&change));
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["parameters"]["work_mem"], json!("7MB"));
    for id in 1..=3 {
        await_until(PATIENCE, "the parameter is in force", || {
            let now = cluster.try_ask(
                id,
                "SELECT current_setting('work_mem') || current_setting('pgquorum.serve_observed_statements')",
            )?;
            if now == "7MBon" { Ok(()) } else { Err(now) }
        });
    }
    await_until(PATIENCE, "the restart is asked for on every node", || {
        let (_, now) = cluster.get(leader, "/db-config");
        let asks = |names: &Value| names.as_array().into_iter().flatten().any(|n| n == "max_connections");
        let count =
            now["restart-required"].as_object().into_iter().flatten().filter(|(_, n)| asks(n)).count();
        if count == 3 { Ok(()) } else { Err(now.to_string()) }
    });
    cluster.kill(leader, None);
    let new = cluster.await_leader(Some(leader));
    assert_eq!(cluster.ask(new, "SHOW work_mem"), "7MB");
    let (code, answer) = cluster.settled("PATCH", "/db-config", Some(&json!({"work_mem": null})));
    assert_eq!(code, 200, "{answer}");
    await_until(PATIENCE, "the parameter is out again", || {
        let now = cluster.try_ask(new, "SHOW work_mem")?;
        if now == "4MB" { Ok(()) } else { Err(now) }
    });
}

#[test]
fn what_the_cluster_needs_itself_cannot_be_changed() {
    let cluster = Cluster::start_steady(1);
    let bad = [
        json!({"synchronous_standby_names": ""}),
        json!({"fsync": "off"}),
        json!({"pgquorum.fence": "off"}),
        json!({"no_such_parameter": "1"}),
        json!({"pgquorum.statements_max": "lots"}),
        json!({"work_mem": "lots"}),
        json!({"Work Mem": "1MB"}),
    ];
    for change in bad {
        let (code, answer) = cluster.send(1, "PATCH", "/db-config", Some(&change));
        assert!(code == 400 || code == 412, "{change}: {code} {answer}");
        assert!(answer["code"].is_string(), "{answer}");
    }
    let (_, now) = cluster.get(1, "/db-config");
    assert_eq!(now["parameters"], json!({}), "nothing was changed");
    cluster.sql("CREATE TABLE still_writable (n int)");
}
