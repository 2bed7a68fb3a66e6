//! The route table against the filters and against the description.

use super::super::table::ROUTES;
use super::*;
use warp::http::Method;

/// A path that the route matches.
pub(super) fn example(path: &str) -> String {
    let path = path.replace("{node}", "2").replace("{channel}", "shop");
    path.replace("{table}", "orders")
        .replace("{follower}", "cache")
        .replace("{user}", "bob")
        .replace("{token}", "t1")
        .replace("{copy}", "0a1b")
        .replace("{name}", "mirror")
        .replace("{id}", "c0ffee")
        .replace("{server}", "node-1")
        .replace("{database}", "postgres")
        .replace("{batch}", "57")
}

#[tokio::test]
async fn every_route_of_the_table_answers_and_nothing_else_does() {
    let config = RestConfig { cluster_key: Some("key-of-tests".to_owned()), ..open_config() };
    // With a user bob, because there is a path for him.
    let served = serve_with(&config, users::view_with_users(1), accept).await;
    let key = ["authorization: Bearer key-of-tests"];
    let methods = [
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::POST,
        Method::PATCH,
        Method::DELETE,
        Method::PUT,
    ];
    for route in ROUTES {
        // A stream does not end, so it has tests of its own.
        for method in methods.iter().filter(|m| **m != Method::GET || !route.path.ends_with("/stream")) {
            let answer = served.send(&format!("{method} {}", example(route.path)), &key, "").await;
            let known = route.methods().any(|known| known == method);
            // There is no batch 57, and that is the answer of its route.
            let no_batch = answer.body.contains("\"errorNum\":1600");
            assert_eq!(
                no_batch || answer.status != 405 && answer.status != 404,
                known,
                "{method} {}: {answer:?}",
                route.path
            );
            if !known {
                assert_eq!(answer.status, 405);
                let allow = route.methods().map(Method::as_str).collect::<Vec<_>>().join(", ").to_lowercase();
                assert!(answer.head.contains(&format!("allow: {allow}")), "{answer:?}");
            }
        }
    }
    for path in [
        "/nothing",
        "/map/1",
        "/node/",
        "/node/1/2",
        "/map//",
        "/%6Dap",
        "/node-down",
        "/sql",
        "/MAP",
        "//map",
    ] {
        let answer = served.send(&format!("GET {path}"), &key, "").await;
        let expected = if path == "/node/" { 200 } else { 404 };
        assert_eq!(answer.status, expected, "{path}");
    }
    assert_eq!(served.send("GET /nothing", &key, "").await.code(), "no_such_route");
    assert_eq!(served.send("PUT /", &key, "{}").await.code(), "method_not_allowed");
}

#[test]
fn the_description_has_every_route_and_no_other() {
    let mut described = Vec::new();
    let mut path = String::new();
    for line in include_str!("../openapi.yaml").lines() {
        if let Some(name) = line.strip_prefix("  /").and_then(|line| line.strip_suffix(':')) {
            path = format!("/{name}");
        } else if let Some((name, _)) = line.strip_prefix("    ").and_then(|line| line.split_once(':'))
            && ["get", "head", "options", "post", "patch", "put", "delete"].contains(&name)
        {
            described.push(format!("{} {path}", name.to_uppercase()));
        }
    }
    // HEAD goes with GET everywhere, OPTIONS with every health check; the description says so once.
    let served = |method: &&'static Method| **method != Method::HEAD && **method != Method::OPTIONS;
    let mut listed: Vec<String> = ROUTES
        .iter()
        .flat_map(|route| {
            route.methods().filter(served).map(move |method| format!("{method} {}", route.path))
        })
        .collect();
    described.sort();
    listed.sort();
    assert_eq!(described, listed);
}

#[tokio::test]
async fn the_fixed_documents_are_served() {
    let served = serve(stranger(), accept).await;
    let openapi = served.get("/openapi.yaml").await;
    assert!(openapi.status == 200 && openapi.body.starts_with("openapi: 3"), "{}", openapi.head);
    let page = served.get("/dashboard").await;
    assert!(page.status == 200 && page.head.contains("content-security-policy: default-src 'none'"));
    assert!(
        !page.body.contains("http://") && !page.body.contains("https://"),
        "the page needs nothing from outside"
    );
}
