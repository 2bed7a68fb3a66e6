//! Read-only statements: the list, its tag, waiting for another one, the records, counts.

use super::*;
use crate::feed::Kind;
use serde_json::json;
use std::time::Instant;

const A: &str = "00000000000000a1";
const B: &str = "00000000000000b2";

/// The answer's tag, as it is sent back.
fn tag(answer: &Answer) -> String {
    let line = answer.head.lines().find_map(|line| line.strip_prefix("etag: "));
    line.unwrap_or_else(|| panic!("no tag: {answer:?}")).to_owned()
}

async fn ask(served: &Served, query: &str, tag: &str) -> Answer {
    served.send(&format!("GET /sql/readonly{query}"), &[&format!("if-none-match: {tag}")], "").await
}

#[tokio::test]
async fn every_node_with_data_lists_what_is_served() {
    for node in [1, 2, 3] {
        let served = serve(view(node), accept).await;
        assert_eq!(served.get("/sql/readonly").await.json(), json!([]));
        served.learner.serve(B);
        served.learner.serve(A);
        let list = served.get("/sql/readonly?database=postgres").await;
        assert_eq!((list.status, list.json()), (200, json!([A, B])));
        assert!(list.head.contains("cache-control: private, no-cache"), "{}", list.head);
        assert!(list.head.contains("content-type: application/json"), "{}", list.head);
        served.learner.withdraw(A);
        assert_eq!(served.get("/sql/readonly").await.json(), json!([B]), "withdrawn at once");
    }
    for (view, status, code) in [
        (view(4), 412, "holds_no_data"),
        (stranger(), 412, "not_a_member"),
        (removed(), 412, "removed"),
        (stalled(1), 531, "driver_stalled"),
    ] {
        let served = serve(view, accept).await;
        for query in ["", "?details=true", "?wait=1s"] {
            let answer = served.get(&format!("/sql/readonly{query}")).await;
            assert_eq!((answer.status, answer.code().as_str()), (status, code), "{query}");
        }
        assert!(served.learner.questions().is_empty());
    }
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let served = serve(view(1), accept).await;
    for (query, status, code) in [
        ("?database=none", 404, "unknown_database"),
        ("?database=bare", 404, "no_extension"),
        ("?database=bare&details=true", 404, "no_extension"),
        ("?database=", 400, "bad_parameter"),
        ("?details=perhaps", 400, "bad_parameter"),
        ("?wait=5", 400, "bad_parameter"),
        ("?wait=61s", 400, "bad_parameter"),
        ("?limit=5", 400, "unknown_parameter"),
        ("?wait=1s&wait=2s", 400, "duplicate_parameter"),
    ] {
        let answer = served.get(&format!("/sql/readonly{query}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{query}");
        assert!(!answer.head.contains("etag"), "{answer:?}");
    }
    for (kind, status, code) in [
        (Kind::Unavailable, 531, "database_unavailable"),
        (Kind::TimedOut, 531, "timed_out"),
        (Kind::Busy, 503, "busy"),
        (Kind::Internal, 500, "database_error"),
    ] {
        served.learner.fail("served", kind);
        let answer = served.get("/sql/readonly").await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
    }
}

#[tokio::test]
async fn what_a_client_has_is_not_sent_again() {
    let (served, other) = (serve(view(1), accept).await, serve(view(2), accept).await);
    served.learner.serve(A);
    other.learner.stir();
    other.learner.serve(A);
    let list = served.get("/sql/readonly").await;
    let known = tag(&list);
    assert!(known.starts_with('"') && known.len() == 34, "{known}");
    for (asked, known) in [
        (&served, known.clone()),
        (&other, known.clone()),
        (&other, format!("\"x\", W/{known}")),
        (&served, "*".to_owned()),
    ] {
        let answer = ask(asked, "", &known).await;
        assert_eq!((answer.status, answer.body.as_str()), (304, ""), "{known}");
        assert_eq!(tag(&answer), tag(&list));
        assert!(!answer.head.contains("content-type"), "{}", answer.head);
    }
    assert_eq!(ask(&served, "?database=shop", &known).await.status, 200, "another database");
    served.learner.serve(B);
    let next = ask(&served, "", &known).await;
    assert_eq!((next.status, next.json()), (200, json!([A, B])));
    assert_ne!(tag(&next), known);
    let head = served.send("HEAD /sql/readonly", &[], "").await;
    assert_eq!((head.status, tag(&head), head.body.as_str()), (200, tag(&next), ""));
}

#[tokio::test]
async fn a_client_may_wait_for_another_list() {
    let served = Arc::new(serve(view(2), accept).await);
    served.learner.serve(A);
    let known = tag(&served.get("/sql/readonly").await);
    let begin = Instant::now();
    let list = served.get("/sql/readonly?wait=30s").await;
    assert_eq!(list.json(), json!([A]), "who has nothing yet waits for nothing");
    assert!(begin.elapsed() < Duration::from_secs(5));
    let same = ask(&served, "?wait=300ms", &known).await;
    assert_eq!(same.status, 304);
    assert!(begin.elapsed() >= Duration::from_millis(300));

    let waiting = tokio::spawn({
        let (served, known) = (Arc::clone(&served), known.clone());
        async move { ask(&served, "?wait=30s", &known).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    served.learner.withdraw(A);
    let begin = Instant::now();
    assert_eq!(waiting.await.unwrap().json(), json!([]));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_wait_ends_with_the_nodes_part_in_the_cluster_and_with_the_server() {
    let served = Arc::new(serve(view(2), accept).await);
    let known = tag(&served.get("/sql/readonly").await);
    let wait = |wait: &'static str| {
        let (address, known) = (served.address, format!("if-none-match: {known}"));
        tokio::spawn(
            async move { send(address, &format!("GET /sql/readonly?wait={wait}"), &[&known], "").await },
        )
    };
    let waiting = wait("500ms");
    tokio::time::sleep(Duration::from_millis(100)).await;
    served.change_view(|view| *view = removed());
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (412, "removed"));

    served.change_view(|now| *now = view(2));
    let waiting = wait("60s");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let served = Arc::into_inner(served).unwrap();
    served.stop.send(()).unwrap();
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (531, "stopping"));
    tokio::time::timeout(DEADLINE, served.done).await.expect("it stops").unwrap();
}

#[tokio::test]
async fn details_show_the_records() {
    let served = serve(view(1), accept).await;
    served.learner.serve(A);
    let list = served.get("/sql/readonly").await;
    let details = served.get("/sql/readonly?details=true").await;
    let record = &details.json()[0];
    assert_eq!((&record["hash"], &record["how"], &record["calls"]), (&json!(A), &json!("proven"), &json!(7)));
    let weak = tag(&details);
    assert!(weak.starts_with("w/\"") || weak.starts_with("W/\""), "calls are not part of it: {weak}");
    assert_eq!(ask(&served, "?details=true", &weak.replace("w/", "W/")).await.status, 304);
    assert_eq!(ask(&served, "?details=true", &tag(&list)).await.status, 200, "the list alone is not enough");
    assert_eq!(ask(&served, "?details=false", &tag(&list)).await.status, 304);
}

#[tokio::test]
async fn statements_are_counted_by_database() {
    let (served, followed) = (serve(view(2), accept).await, view(2));
    let lines = |body: &str, name: &str| -> Vec<String> {
        body.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    };
    let metrics = served.get("/metrics").await.body;
    assert!(lines(&metrics, "pgquorum_readonly_statements{").is_empty());
    assert_eq!(lines(&metrics, "pgquorum_carried_statements_total"), ["pgquorum_carried_statements_total 0"]);
    served.learner.serve(A);
    served.learner.learn(0..3);
    let (_sender, seen) = watch::channel(Arc::new(followed));
    let rounds = tokio::spawn(statements::rounds(Arc::clone(&served.statements), seen));
    let counted = async {
        loop {
            let metrics = served.get("/metrics").await.body;
            if lines(&metrics, "pgquorum_readonly_statements{").len() == 2 {
                return metrics;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let metrics = tokio::time::timeout(DEADLINE, counted).await.expect("counts");
    rounds.abort();
    for line in [
        "pgquorum_readonly_statements{database=\"postgres\"} 1",
        "pgquorum_readonly_statements{database=\"shop\"} 1",
        "pgquorum_withdrawn_statements{database=\"shop\"} 1",
        "pgquorum_carried_statements_total 3",
        "pgquorum_statement_failures_total 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is missing in\n{metrics}");
    }
    assert_eq!(served.learner.told(), [0, 1, 2]);
}
