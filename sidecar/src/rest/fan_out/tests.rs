use super::*;
use crate::rest::tests::view_of;

fn read(body: Value) -> Result<Call, String> {
    Call::read(body.as_object().unwrap(), &view_of(1)).map_err(|refusal| refusal.message().to_owned())
}

#[test]
fn a_call_is_read_with_what_it_leaves_out() {
    let call = read(json!({"path": "/map"})).unwrap();
    assert_eq!((call.method, call.path.as_str(), call.body.len()), (Method::GET, "/map", 0));
    assert_eq!((call.timeout.as_millis(), call.targets.len()), (10_000, 4));
    let call = read(json!({"method": "post", "path": "/node?ip=10.0.0.1&role=node", "timeout": 250,
        "targets": [1, "node-3"], "headers": {"If-None-Match": "*", "x-correlation-id": "a@1/b"}}))
    .unwrap();
    assert_eq!(
        (call.method, call.timeout.as_millis(), call.targets),
        (Method::POST, 250, BTreeSet::from([1, 3]))
    );
    assert_eq!(call.headers["if-none-match"], "*");
    assert!(!call.headers.contains_key("x-correlation-id"));
    let call = read(json!({"method": "POST", "path": "/config", "body": {"a": 1}})).unwrap();
    assert_eq!(&call.body[..], b"{\"a\":1}");
    assert_eq!(call.headers["content-type"], "application/json");
}

#[test]
fn nothing_but_routes_of_this_interface_is_asked_for() {
    for path in [
        "",
        "map",
        "//map",
        "//10.0.0.9/map",
        "http://10.0.0.9/map",
        "/map//",
        "/../map",
        "/node/../map",
        "/node/%2e%2e/map",
        "/node/.%2E",
        "/./map",
        "/map\\x",
        "\\\\x",
        "/map x",
        "/map\r\nx: y",
        "/map#x",
        "/mäp",
        "/nothing",
        "/MAP",
        "/%6Dap",
        "@10.0.0.9/map",
        "*",
        "/cluster/request",
        "/cluster/request/",
        "/cluster/token",
        "/oauth/token",
        "/fact-finder/oauth/token",
        "/_open/auth",
        "/_db/postgres/_open/auth",
        "/_db/postgres/_api/replication/dump?collection=t",
        "/channels/shop/stream",
        "/channels/shop/dump?table=x",
        "/channels/shop/copies/1/orders",
    ] {
        for method in ["GET", "POST"] {
            let error = read(json!({"method": method, "path": path})).unwrap_err();
            assert!(error.contains("path is"), "{method} {path}: {error}");
        }
    }
    assert!(read(json!({"method": "DELETE", "path": "/map"})).unwrap_err().contains("no route DELETE /map"));
    let long = format!("/map?x={}", "y".repeat(3000));
    assert!(read(json!({ "path": long })).unwrap_err().contains("longer"));
}

#[test]
fn what_is_wrong_is_named() {
    for (more, why) in [
        (json!({"url": "x"}), "unknown field"),
        (json!({"method": 7}), "method"),
        (json!({"method": "G T"}), "method"),
        (json!({"timeout": "1h"}), "timeout"),
        (json!({"timeout": 0}), "timeout"),
        (json!({"timeout": -1}), "timeout"),
        (json!({"targets": []}), "targets"),
        (json!({"targets": 1}), "targets"),
        (json!({"targets": [5]}), "no node 5"),
        (json!({"targets": ["1"]}), "no node"),
        (json!({"headers": []}), "headers"),
        (json!({"headers": {"authorization": "Basic x"}}), "not passed on"),
        (json!({"headers": {"host": "x"}}), "not passed on"),
        (json!({"headers": {"x-pgquorum-forwarded-by": "1"}}), "not passed on"),
        (json!({"headers": {"content-type": "a\r\nb: c"}}), "no proper value"),
    ] {
        let mut body = json!({"path": "/map"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = read(body).unwrap_err();
        assert!(error.contains(why), "{more}: {error}");
    }
}

#[test]
fn answers_and_refusals_are_told_apart() {
    assert_eq!(super::read(200, b"{\"a\":1}"), Ok(json!({"a": 1})));
    assert_eq!(super::read(304, b""), Ok(Value::Null));
    assert_eq!(super::read(200, b"text"), Ok(json!("text")));
    let refused = super::read(417, br#"{"code": "not_leader", "message": "node 2 leads"}"#).unwrap_err();
    assert_eq!((&refused["statusCode"], &refused["message"]), (&json!(417), &json!("node 2 leads")));
    assert_eq!(refused["info"]["code"], "not_leader");
    assert_eq!(super::read(500, b"oops").unwrap_err()["message"], "oops");
}
