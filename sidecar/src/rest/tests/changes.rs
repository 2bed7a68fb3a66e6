//! What administrators ask for: parameters, the driver's refusals, forwarding.

use super::*;
use serde_json::json;

/// One request of each kind that the driver decides.
const CHANGES: [(&str, &str); 8] = [
    ("POST /config", "{\"replication-factor\": 2}"),
    ("PATCH /db-config", "{\"work_mem\": \"8MB\"}"),
    ("POST /db-config", "{\"work_mem\": null}"),
    ("POST /leader?node=2", ""),
    ("POST /node?ip=10.0.0.4&role=node", ""),
    ("PATCH /node/3?db-port=5432&api-port=8080", ""),
    ("DELETE /node/3", ""),
    ("POST /node-down/3", ""),
];

#[tokio::test]
async fn the_drivers_refusals_have_their_status() {
    let drivers: [(Driver, u16); 9] = [
        (|_| Err(refuse_with(RejectionKind::InvalidValue)), 400),
        (|_| Err(refuse_with(RejectionKind::Gone)), 410),
        (|_| Err(refuse_with(RejectionKind::UnknownNode)), 410),
        (|_| Err(refuse_with(RejectionKind::Precondition)), 412),
        (|_| Err(refuse_with(RejectionKind::NotLeader)), 417),
        (|_| Err(refuse_with(RejectionKind::ChangeInFlight)), 420),
        (|_| Err(refuse_with(RejectionKind::NoLeader)), 530),
        (|_| Err(refuse_with(RejectionKind::Unavailable)), 531),
        (|_| Err(refuse_with(RejectionKind::Internal)), 500),
    ];
    for (driver, status) in drivers {
        let served = serve(view(1), driver).await;
        for (line, body) in CHANGES {
            let answer = served.send(line, &[], body).await;
            let expected = match (line.starts_with("POST /leader"), status) {
                (true, 410 | 420) => 412,
                (true, 417) => 530,
                _ => status,
            };
            assert_eq!(answer.status, expected, "{line}: {answer:?}");
            assert_eq!(answer.code(), "as_told");
            assert_eq!(answer.json()["leader"]["db"], "127.0.0.1:5001");
        }
    }
    // An answer to another question.
    let served = serve(view(1), |r| {
        if matches!(r, Request::RemoveNode { .. }) {
            accept(&Request::ChangeLeader { node: 2 })
        } else {
            accept(&Request::RemoveNode { node: 3 })
        }
    })
    .await;
    for (line, body) in CHANGES {
        assert_eq!(served.send(line, &[], body).await.status, 500, "{line}");
    }
}

#[tokio::test]
async fn changes_need_a_member_whose_driver_runs() {
    for (view, status) in [(stranger(), 412), (removed(), 410), (stalled(1), 531)] {
        let served = serve(view, accept).await;
        for (line, body) in CHANGES {
            let expected = if status == 410 && line.starts_with("POST /leader") { 412 } else { status };
            let answer = served.send(line, &[], body).await;
            assert_eq!(answer.status, expected, "{line}: {answer:?}");
            assert!(!answer.code().is_empty());
        }
        assert_eq!(served.asked(), []);
    }
}

#[tokio::test]
async fn changes_reach_the_driver_as_they_were_meant() {
    let served = serve(view(1), accept).await;
    let ip: IpAddr = "10.0.0.4".parse().unwrap();
    let add =
        |role, auto_upgrade, db_port| Request::AddNode { ip, db_port, api_port: None, role, auto_upgrade };
    let cases = [
        ("POST /node?ip=10.0.0.4&role=node", add(Role::Listener, true, None)),
        ("POST /node?ip=10.0.0.4&role=listener", add(Role::Listener, false, None)),
        ("POST /node?ip=10.0.0.4&role=listener&auto-upgrade=on", add(Role::Listener, true, None)),
        (
            "POST /node?ip=10.0.0.4&role=node&auto-upgrade=false&db-port=6000",
            add(Role::Listener, false, Some(6000)),
        ),
        ("POST /node?ip=10.0.0.4&role=witness", add(Role::Witness, false, None)),
        ("PATCH /node/3?db-port=1&api-port=2", Request::UpgradeNode { node: 3, db_port: 1, api_port: 2 }),
        ("DELETE /node/3", Request::RemoveNode { node: 3 }),
        ("POST /node-down/3?reason=a%20b+c%21", Request::NodeDown { node: 3, reason: "a b c!".to_owned() }),
        ("POST /leader?node=2", Request::ChangeLeader { node: 2 }),
    ];
    for (line, request) in cases {
        let answer = served.send(line, &[], "").await;
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
        assert_eq!(served.asked(), [request], "{line}");
    }
    let node = served.send("POST /node?ip=fd00::4&role=node", &[], "").await.json();
    assert_eq!((&node["id"], &node["ip"], &node["role"]), (&json!(4), &json!("fd00::4"), &json!("listener")));
    assert_eq!(served.send("DELETE /node/3", &[], "").await.json(), json!({"id": 3, "removed": true}));
    let leader = served.send("POST /leader?node=2", &[], "").await.json();
    assert_eq!((&leader["id"], &leader["api"]), (&json!(2), &json!("http://127.0.0.1:8002")));
}

#[tokio::test]
async fn wrong_parameters_are_named() {
    let served = serve(view(1), accept).await;
    for (line, named) in [
        ("POST /node", "ip"),
        ("POST /node?ip=10.0.0.4", "role"),
        ("POST /node?role=node", "ip"),
        ("POST /node?ip=here&role=node", "ip"),
        ("POST /node?ip=0.0.0.0&role=node", "ip"),
        ("POST /node?ip=10.0.0.4&role=king", "role"),
        ("POST /node?ip=10.0.0.4&role=node&db-port=0", "db-port"),
        ("POST /node?ip=10.0.0.4&role=node&api-port=70000", "api-port"),
        ("POST /node?ip=10.0.0.4&role=node&auto-upgrade=maybe", "auto-upgrade"),
        ("POST /node?ip=10.0.0.4&role=witness&auto-upgrade=true", "auto-upgrade"),
        ("POST /node?ip=10.0.0.4&role=node&db_port=1", "db_port"),
        ("POST /node?ip=10.0.0.4&ip=10.0.0.5&role=node", "ip"),
        ("POST /node?ip=%zz&role=node", "%zz"),
        ("PATCH /node/3", "db-port"),
        ("PATCH /node/3?db-port=5432", "api-port"),
        ("PATCH /node/x?db-port=1&api-port=2", "node"),
        ("DELETE /node/0", "node"),
        ("DELETE /node/-1", "node"),
        ("DELETE /node/3?force=1", "force"),
        ("POST /node-down/3?reason=a%0ab", "reason"),
        ("POST /leader", "node"),
        ("POST /leader?node=one", "node"),
        ("GET /events?after=x", "after"),
        ("GET /rpc?limit=-1", "limit"),
    ] {
        let answer = served.send(line, &[], "").await;
        assert_eq!(answer.status, 400, "{line}: {answer:?}");
        assert!(answer.json()["message"].as_str().unwrap().contains(named), "{line}: {answer:?}");
    }
    assert_eq!(served.asked(), []);
}

#[tokio::test]
async fn bodies_are_checked_field_by_field() {
    let served = serve(view(1), accept).await;
    for (line, body, code, named) in [
        ("POST /config", "", "malformed_json", "JSON"),
        ("POST /config", "{\"a\"", "malformed_json", "line 1"),
        ("POST /config", "[1]", "not_an_object", "object"),
        ("POST /config", "{\"node_timeout\": \"1s\"}", "unknown_setting", "node_timeout"),
        ("POST /config", "{\"node-timeout\": \"soon\"}", "bad_setting", "node-timeout"),
        ("POST /config", "{\"heartbeat-interval\": 5}", "bad_setting", "heartbeat-interval"),
        ("POST /config", "{\"replication-factor\": -1}", "bad_setting", "replication-factor"),
        ("POST /config", "{\"quorum-replication\": \"yes\"}", "bad_setting", "quorum-replication"),
        ("PATCH /db-config", "{\"Work Mem\": 1}", "bad_parameter_name", "Work Mem"),
        ("PATCH /db-config", "{\"\": 1}", "bad_parameter_name", "small letters"),
        ("PATCH /db-config", "{\"work_mem\": [1]}", "bad_parameter_value", "work_mem"),
        ("PATCH /db-config", "{\"work_mem\": \"1\\nfsync = off\"}", "bad_parameter_value", "work_mem"),
    ] {
        let answer = served.send(line, &[], body).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{body}: {answer:?}");
        assert!(answer.json()["message"].as_str().unwrap().contains(named), "{body}: {answer:?}");
    }
    assert_eq!(served.asked(), []);
    let config = served.get("/config").await.body;
    assert_eq!(
        served.send("POST /config", &[], &config).await.status,
        200,
        "an answer can be sent back as it is"
    );
    let weak = "{\"quorum-replication\": false, \"replication-factor\": 0}";
    let answer = served.send("POST /config", &[], weak).await.json();
    assert_eq!(
        (&answer["replication-factor"], &answer["effective"]["acknowledging-standbys"]),
        (&json!(0), &json!(0))
    );
    assert!(answer["warning"].is_string());
    served.asked();
    let set = "{\"a.b_1\": \"x\", \"work_mem\": 8, \"jit\": false, \"seed\": 0.5, \"gone\": null}";
    let answer = served.send("PATCH /db-config", &[], set).await.json();
    let parameters = json!({"a.b_1": "x", "work_mem": "8", "jit": "off", "seed": "0.5"});
    assert_eq!(answer, json!({"parameters": parameters, "restart-required": {"1": ["shared_buffers"]}}));
    let Request::SetDbConfig { set } = &served.asked()[0] else { panic!("another request") };
    assert_eq!((set["gone"].as_deref(), set["jit"].as_deref()), (None, Some("off")));
}

#[tokio::test]
async fn a_follower_passes_a_change_of_leader_on_once() {
    let config = RestConfig { token: Some("secret-of-tests".to_owned()), ..open_config() };
    let token = "authorization: Bearer secret-of-tests";
    let leader = serve_with(&config, view(1), accept).await;
    let follower = serve_with(&config, view(2), |_| Err(refuse_with(RejectionKind::NotLeader))).await;
    let point = |address| move |view: &mut View| view.leader.as_mut().unwrap().api = address;
    follower.change_view(point(leader.address));
    let answer = follower.send("POST /leader?node=2", &[token], "").await;
    assert_eq!((answer.status, &answer.json()["id"]), (200, &json!(2)), "{answer:?}");
    assert_eq!((follower.asked(), leader.asked()), (vec![], vec![Request::ChangeLeader { node: 2 }]));
    // The leader's refusals come through as they are.
    let refusing = serve_with(&config, view(1), |_| Err(refuse_with(RejectionKind::Precondition))).await;
    follower.change_view(point(refusing.address));
    let answer = follower.send("POST /leader?node=3", &[token], "").await;
    assert_eq!((answer.status, answer.code().as_str()), (412, "as_told"));
    // Two followers that take each other for the leader do not send the request round and round.
    let other = serve_with(&config, view(3), |_| Err(refuse_with(RejectionKind::NotLeader))).await;
    other.change_view(point(follower.address));
    follower.change_view(point(other.address));
    let answer = follower.send("POST /leader?node=3", &[token], "").await;
    assert_eq!((answer.status, other.asked().len(), follower.asked().len()), (530, 1, 0), "{answer:?}");
    // Nobody there; nobody known.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    follower.change_view(point(free));
    let answer = follower.send("POST /leader?node=3", &[token], "").await;
    assert_eq!((answer.status, answer.code().as_str()), (531, "leader_unreachable"));
    assert!(!answer.body.contains("secret-of-tests"));
    follower.change_view(|view| view.leader = None);
    assert_eq!(follower.send("POST /leader?node=3", &[token], "").await.status, 530);
}
