//! What a node tells: every route with every status it can have.

use super::*;
use serde_json::json;

#[tokio::test]
async fn is_leader_says_what_this_node_is() {
    let cases: [(&str, View, u16, &str); 9] = [
        ("leader", view(1), 200, ""),
        ("follower", view(2), 417, "not_the_leader"),
        ("stranger", stranger(), 412, "not_a_member"),
        ("removed", removed(), 412, "removed"),
        ("no leader", leaderless(2), 530, "no_leader"),
        ("not open yet", View { is_open_leader: false, ..view(1) }, 530, "no_leader"),
        ("stalled follower", stalled(2), 531, "driver_stalled"),
        ("stalled leader", stalled(1), 531, "driver_stalled"),
        // The process slept: the view is young enough, but the lease it speaks of is over.
        ("lease over", View { lease_until: 1, ..view(1) }, 530, "no_leader"),
    ];
    for (name, view, status, code) in cases {
        let served = serve(view, accept).await;
        let answer = served.get("/is-leader").await;
        assert_eq!(answer.status, status, "{name}: {answer:?}");
        if status == 200 {
            assert_eq!(answer.json(), json!({"leader": true, "id": 1, "epoch": 7}));
        } else {
            assert_eq!(answer.code(), code, "{name}");
        }
        if status == 417 {
            let leader = json!({"id": 1, "api": "127.0.0.1:8001", "db": "127.0.0.1:5001"});
            assert_eq!(answer.json()["leader"], leader);
        }
        for method in ["HEAD", "OPTIONS"] {
            let bare = served.send(&format!("{method} /is-leader"), &[], "").await;
            assert_eq!((bare.status, bare.body.as_str()), (status, ""), "{name} {method}");
        }
    }
}

#[tokio::test]
async fn reads_need_a_member_whose_driver_runs() {
    let paths = ["/map", "/info", "/config", "/db-config", "/leader", "/node", "/node/1", "/sql/readonly"];
    let cases: [(fn() -> View, u16); 5] =
        [(|| view(1), 200), (|| view(3), 200), (stranger, 412), (removed, 412), (|| stalled(1), 531)];
    for (view, status) in cases {
        let served = serve(view(), accept).await;
        for path in paths {
            let answer = served.get(path).await;
            assert_eq!(answer.status, status, "{path}: {answer:?}");
            assert!(answer.head.contains("content-type: application/json"), "{answer:?}");
            let bare = served.send(&format!("HEAD {path}"), &[], "").await;
            assert_eq!((bare.status, bare.body.as_str()), (status, ""), "{path}");
        }
    }
}

#[tokio::test]
async fn the_map_shows_members_and_what_is_known_of_them() {
    let served = serve(view(2), accept).await;
    served.change_view(|view| {
        let node = view.nodes.get_mut(&2).unwrap();
        node.trouble = Some("disk is slow".to_owned());
        node.pending_restart = vec!["max_connections".to_owned()];
        node.copy_progress = Some((1, 10));
        view.nodes.remove(&3);
    });
    let map = served.get("/map").await.json();
    assert_eq!(map["leader"], 1);
    assert_eq!(
        map["nodes"][1],
        json!({
            "id": 2, "ip": "127.0.0.1", "db-port": 5002, "api-port": 8002, "role": "node", "down": false,
            "auto-upgrade": false, "state": "replica", "epoch": 7, "lsn": "0/2FAF080", "replay-lsn": "0/2FAEC98",
            "lag-bytes": 1000, "streaming": true, "pending-restart": ["max_connections"],
            "trouble": "disk is slow", "copy-progress": [1, 10],
        })
    );
    assert_eq!(map["nodes"][0]["lag-bytes"], 0);
    assert_eq!((&map["nodes"][2]["state"], &map["nodes"][2]["lsn"]), (&json!("unknown"), &Value::Null));
    assert_eq!((&map["nodes"][3]["state"], &map["nodes"][3]["lsn"]), (&json!("witness"), &Value::Null));
    served.change_view(|view| view.leader = None);
    let map = served.get("/map").await.json();
    assert_eq!((&map["leader"], &map["nodes"][1]["lag-bytes"]), (&Value::Null, &Value::Null));
    assert_eq!(served.get("/node").await.json(), map["nodes"]);
    assert_eq!(served.get("/node/4").await.json(), map["nodes"][3]);
    for (path, status, code) in [
        ("/node/9", 410, "unknown_node"),
        ("/node/0", 400, "bad_parameter"),
        ("/node/x", 400, "bad_parameter"),
    ] {
        let answer = served.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
    }
}

#[tokio::test]
async fn info_has_what_a_node_needs_to_start() {
    let info = serve(view(2), accept).await.get("/info").await.json();
    assert_eq!((&info["term"], &info["applied-index"], &info["id"]), (&json!(8), &json!(6), &json!(2)));
    assert_eq!(info["config"]["node-timeout"], "1s");
    assert_eq!(info["system-identifier"], "7300000000000000001");
    assert_eq!((&info["cluster-id"], &info["appointment"]["epoch"]), (&json!("c0ffee"), &json!(7)));
    assert_eq!(info["durability"], json!({"voters": [1, 2], "k": 1}));
    let logs = info["logs"].as_array().unwrap();
    assert_eq!((logs.len(), &logs[0]["index"], &logs[0]["term"]), (6, &json!(1), &json!(6)));
    assert_eq!(logs[0]["payload"]["type"], "add-node");
}

#[tokio::test]
async fn the_leader_has_addresses() {
    let served = serve(view(3), accept).await;
    assert_eq!(
        served.get("/leader").await.json(),
        json!({"id": 1, "ip": "127.0.0.1", "db-port": 5001, "api-port": 8001, "api": "http://127.0.0.1:8001", "epoch": 7})
    );
    served.change_view(|view| view.leader = None);
    let answer = served.get("/leader").await;
    assert_eq!((answer.status, answer.code().as_str()), (530, "no_leader"));
}

#[tokio::test]
async fn config_says_what_follows_from_it_and_warns_of_loss() {
    let served = serve(view(1), accept).await;
    let config = served.get("/config").await.json();
    assert_eq!(
        (&config["heartbeat-interval"], &config["quorum-replication"]),
        (&json!("100ms"), &json!(true))
    );
    assert_eq!(config["effective"], json!({"acknowledging-standbys": 1, "data-nodes": 2, "lease": "750ms"}));
    assert!(config.get("warning").is_none());
    served.change_view(|view| Arc::make_mut(&mut view.cluster).durability.k = 0);
    assert!(served.get("/config").await.json()["warning"].as_str().unwrap().contains("may be lost"));
    let db_config = served.get("/db-config").await.json();
    assert_eq!(db_config, json!({"parameters": {}, "restart-required": {}}));
    served.change_view(|view| {
        Arc::make_mut(&mut view.cluster).db_config.insert("work_mem".to_owned(), "8MB".to_owned());
        view.nodes.get_mut(&2).unwrap().pending_restart = vec!["shared_buffers".to_owned()];
        view.postgres.pending_restart = vec!["wal_level".to_owned()];
    });
    assert_eq!(
        served.get("/db-config").await.json(),
        json!({"parameters": {"work_mem": "8MB"}, "restart-required": {"1": ["wal_level"], "2": ["shared_buffers"]}})
    );
}

#[tokio::test]
async fn metrics_are_for_prometheus() {
    let served = serve(view(1), accept).await;
    let answer = served.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"));
    for line in [
        "pgquorum_is_leader 1",
        "pgquorum_epoch 7",
        "pgquorum_raft_term 8",
        "pgquorum_applied_index 6",
        "pgquorum_wal_lsn_bytes 50000000",
        "pgquorum_lag_bytes{node=\"2\"} 1000",
        "pgquorum_members{role=\"listener\"} 1",
        "pgquorum_acknowledging_standbys 1",
    ] {
        assert!(answer.body.lines().any(|l| l == line), "{line} is missing in\n{}", answer.body);
    }
    served.change_view(|view| *view = stranger());
    assert!(served.get("/metrics").await.body.contains("pgquorum_member 0\n"));
}

#[tokio::test]
async fn weak_commits_are_counted_by_database_and_role() {
    let served = serve(view(1), accept).await;
    let lines = |body: &str| -> Vec<String> {
        let ours = body.lines().filter(|l| l.starts_with("pgquorum_weak_commits_total{"));
        ours.map(str::to_owned).collect()
    };
    let none = "pgquorum_weak_commits_total{database=\"\",role=\"\"} 0";
    assert_eq!(lines(&served.get("/metrics").await.body), [none], "the series is there before it grows");
    let count = |database: &str, role: &str, commits| WeakCommits {
        database: database.to_owned(),
        role: role.to_owned(),
        commits,
    };
    served.weak_commits.send_replace(vec![count("shop", "a\"b\\c\nd", 3)]);
    let shown = lines(&served.get("/metrics").await.body);
    assert_eq!(shown, ["pgquorum_weak_commits_total{database=\"shop\",role=\"a\\\"b\\\\c\\nd\"} 3", none]);
    served.weak_commits.send_replace(vec![count("", "", 2), count("shop", "app", 1)]);
    let shown = lines(&served.get("/metrics").await.body);
    assert_eq!(
        shown,
        [
            "pgquorum_weak_commits_total{database=\"\",role=\"\"} 2",
            "pgquorum_weak_commits_total{database=\"shop\",role=\"app\"} 1"
        ]
    );
}
