//! Health checks, as load balancers ask them.

use super::*;
use serde_json::json;

const PRIMARY: [&str; 5] = ["/", "/primary", "/master", "/read-write", "/leader-check"];
const SYNCHRONOUS: [&str; 3] = ["/synchronous", "/sync", "/quorum"];

#[tokio::test]
async fn each_kind_of_node_answers_to_its_checks() {
    let ready = ["/health", "/liveness", "/readiness"].as_slice();
    let cases: Vec<(&str, View, Vec<&str>)> = vec![
        ("leader", view(1), [&PRIMARY, ["/read-only"].as_slice(), ready].concat()),
        (
            "synchronous replica",
            view(2),
            [["/replica", "/read-only"].as_slice(), &SYNCHRONOUS, ready].concat(),
        ),
        (
            "listener that lags",
            view(3),
            vec!["/replica", "/read-only", "/asynchronous", "/async", "/health", "/liveness"],
        ),
        ("witness", view(4), vec!["/liveness"]),
        ("stalled leader", stalled(1), vec![]),
        ("stalled replica", stalled(2), vec![]),
        ("leader whose lease ran out", View { lease_until: 1, ..view(1) }, vec!["/health", "/liveness"]),
        ("removed", View { member: false, removed: true, ..view(2) }, vec!["/health", "/liveness"]),
    ];
    let rest = ["/replica", "/read-only", "/asynchronous", "/async", "/health", "/liveness", "/readiness"];
    for (name, view, good) in cases {
        let served = serve(view, accept).await;
        for path in PRIMARY.iter().chain(&SYNCHRONOUS).chain(&rest) {
            let expected = if good.contains(path) { 200 } else { 503 };
            let answer = served.get(path).await;
            assert_eq!(answer.status, expected, "{name} {path}: {answer:?}");
            assert!(answer.json()["patroni"]["version"].is_string());
            for method in ["HEAD", "OPTIONS"] {
                let bare = served.send(&format!("{method} {path}"), &[], "").await;
                assert_eq!((bare.status, bare.body.as_str()), (expected, ""), "{name} {method} {path}");
            }
        }
    }
}

#[tokio::test]
async fn lag_is_compared_in_the_units_of_postgresql() {
    // Node 3 wrote up to 10 MB and replayed up to 30 MB behind the leader.
    let served = serve(view(3), accept).await;
    for (path, status) in [
        ("/replica?lag=30000000", 200),
        ("/replica?lag=29999999", 503),
        ("/replica?lag=29MB", 200),
        ("/replica?lag=28MB", 503),
        ("/replica?lag=1GB&replication_state=streaming&tag_zone=a", 200),
        ("/async?lag=1kB", 503),
        ("/read-only?lag=1TB", 200),
        ("/readiness", 503),
        ("/readiness?lag=32MB", 200),
        ("/readiness?mode=write", 200),
        ("/readiness?mode=apply", 503),
        ("/replica?lag=lots", 400),
        ("/replica?lag=10mb", 400),
        ("/readiness?mode=both", 400),
    ] {
        assert_eq!(served.get(path).await.status, status, "{path}");
    }
    served.change_view(|view| view.leader = None);
    assert_eq!(served.get("/replica").await.status, 200);
    assert_eq!(served.get("/replica?lag=1TB").await.status, 503, "no leader, no known lag");
}

#[tokio::test]
async fn a_replica_must_run_stream_and_be_well() {
    let served = serve(view(2), accept).await;
    let changes: [fn(&mut View); 5] = [
        |view| view.postgres.closed = true,
        |view| view.postgres.process = PgProcess::Starting,
        |view| view.postgres.in_recovery = false,
        |view| view.postgres.streaming = false,
        |view| Arc::make_mut(&mut view.cluster).members.get_mut(&2).unwrap().down = true,
    ];
    for change in changes {
        served.change_view(|v| *v = view(2));
        assert_eq!(served.get("/replica").await.status, 200);
        served.change_view(change);
        for path in ["/replica", "/read-only", "/sync", "/readiness"] {
            assert_eq!(served.get(path).await.status, 503, "{path}");
        }
    }
    served.change_view(|v| {
        *v = view(2);
        Arc::make_mut(&mut v.cluster).durability.k = 0;
    });
    assert_eq!((served.get("/sync").await.status, served.get("/async").await.status), (503, 200));
}

/// The restart barrier holds clients, or the postmaster stands still: who is sent there hangs or is refused.
#[tokio::test]
async fn a_server_that_lets_nobody_in_is_starting() {
    for id in [1, 2] {
        let served = serve(view(id), accept).await;
        assert_eq!(served.get("/health").await.json()["state"], "running");
        served.change_view(|view| view.postgres.closed = true);
        for path in PRIMARY.iter().chain(&["/replica", "/read-only", "/sync", "/health", "/readiness"]) {
            let answer = served.get(path).await;
            assert_eq!(answer.status, 503, "node {id} {path}");
            assert_eq!(answer.json()["state"], "starting", "node {id} {path}");
        }
        assert_eq!(served.get("/liveness").await.status, 200);
    }
}

#[tokio::test]
async fn the_body_is_patronis() {
    let body = serve(view(1), accept).await.get("/").await.json();
    assert_eq!(
        (&body["state"], &body["role"], &body["timeline"]),
        (&json!("running"), &json!("primary"), &json!(3))
    );
    assert_eq!(body["xlog"], json!({"location": 50_000_000}));
    assert_eq!((&body["patroni"]["scope"], &body["patroni"]["name"]), (&json!("c0ffee"), &json!("1")));
    let body = serve(view(3), accept).await.get("/replica").await.json();
    assert_eq!((&body["role"], &body["replication_state"]), (&json!("replica"), &json!("streaming")));
    assert_eq!(body["xlog"], json!({"received_location": 40_000_000, "replayed_location": 20_000_000}));
    let body = serve(view(4), accept).await.get("/").await.json();
    assert_eq!((&body["state"], &body["role"]), (&json!("uninitialized"), &json!("witness")));
}
