use super::*;

fn body(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap()
}

const SERVER: &str = r#"{"type": "shop", "serverId": "s1", "location": "eu", "more": [1],
    "publicBaseUrl": "https://shop.example.org/v1", "clusterBaseUrl": "http://10.0.0.5:8080/v1"}"#;

#[test]
fn a_server_is_read_as_its_clients_send_it() {
    let Posted::Server { kind, server } = posted(&body(SERVER)).unwrap() else { panic!("a service") };
    assert_eq!((kind.as_str(), server.server.as_str()), ("shop", "s1"));
    assert_eq!(server.location, json!("eu"));
    let mut none = body(SERVER);
    none.remove("location");
    let Posted::Server { server, .. } = posted(&none).unwrap() else { panic!("a service") };
    assert!(server.location.is_null());
}

#[test]
fn what_is_wrong_is_named() {
    for (name, value, why) in [
        ("type", json!(null), "must have type"),
        ("type", json!("a/b"), "letters"),
        ("type", json!("x".repeat(65)), "longer than 64"),
        ("serverId", json!(7), "must be a text"),
        ("serverId", json!(""), "empty"),
        ("serverId", json!("a b"), "no spaces"),
        ("serverId", json!(".."), "no spaces"),
        ("serverId", json!("s1@2026-01-01T00:00:00.000Z"), "a time"),
        ("publicBaseUrl", json!("ftp://x"), "publicBaseUrl"),
        ("publicBaseUrl", json!("/v1"), "publicBaseUrl"),
        ("clusterBaseUrl", json!("http://"), "clusterBaseUrl"),
        ("clusterBaseUrl", json!(format!("http://x/{}", "y".repeat(512))), "longer than 512"),
        ("location", json!("x".repeat(300)), "location"),
        ("servers", json!({}), "must have id"),
    ] {
        let mut body = body(SERVER);
        body.insert(name.to_owned(), value);
        let error = posted(&body).unwrap_err();
        assert!(error.contains(why), "{name}: {error}");
    }
}

#[test]
fn what_is_written_can_be_read() {
    let Posted::Server { server, .. } = posted(&body(SERVER)).unwrap() else { panic!("a service") };
    let mut registry = pgquorum_agent::registry::Registry::default();
    let service = service_id("c0ffee", "shop");
    let register = pgquorum_agent::registry::RegistryChange::Register {
        kind: "shop".to_owned(),
        service: service.clone(),
        server: server.clone(),
        at: 1_767_225_600_123,
    };
    registry.apply(7, &[register]);
    let known = registry.of_type("shop").unwrap();
    let written: Value = serde_json::from_slice(&resource("shop", known)).unwrap();
    assert_eq!(written["servers"][0]["createdAt"], "2026-01-01T00:00:00.123Z");
    assert_eq!(written["publicBaseUrl"], "https://shop.example.org/v1");
    let read = posted(written.as_object().unwrap()).unwrap();
    let servers = vec![(server, 1_767_225_600_123)];
    assert_eq!(read, Posted::Service { id: service, kind: "shop".to_owned(), servers });
    let none: Value = serde_json::from_slice(&resource_of("shop", known, "s2")).unwrap();
    assert_eq!(none["servers"], json!([]));
}

#[test]
fn a_path_may_say_as_of_when() {
    assert_eq!(named("s1"), ("s1".to_owned(), None));
    assert_eq!(named("s1@2026-01-01T00:00:00.123Z"), ("s1".to_owned(), Some(1_767_225_600_123)));
    assert_eq!(named("s@1@2026-01-01T00:00:00Z"), ("s@1".to_owned(), Some(1_767_225_600_000)));
    assert_eq!(named("s@1"), ("s@1".to_owned(), None));
}

#[test]
fn ids_are_the_same_each_time_and_look_like_uuids() {
    let id = service_id("c0ffee", "shop");
    assert_eq!(id, service_id("c0ffee", "shop"));
    assert!(id != service_id("c0ffee", "shops") && id != service_id("c0ffe", "shop"));
    assert!(id.len() == 36 && id.as_bytes()[14] == b'8', "{id}");
}
