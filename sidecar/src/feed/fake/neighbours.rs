//! What the database knows of other clusters.

use crate::feed::{Call, Given};
use serde_json::{Value, json};

/// Makes, changes or ends a subscription, where they are kept.
pub fn keep(kept: &mut Option<Vec<Value>>, call: &Call) {
    let Some(kept) = kept else { return };
    let given = |name: &str| match call.arguments.iter().find(|one| one.name == name).map(|one| &one.value) {
        Some(Given::Text(text)) => json!(text),
        Some(Given::Texts(texts)) => json!(texts),
        _ => Value::Null,
    };
    let name = given("name");
    match call.function {
        "subscribe" => kept
            .push(json!({"name": name, "channel": given("channel"), "remote": given("remote"),
            "remote_origin": null, "state": "starting", "code": null, "detail": null})),
        "alter_subscription" if !given("remote").is_null() => {
            kept.iter_mut().for_each(|one| one["remote"] = given("remote"));
        }
        "unsubscribe" => kept.retain(|one| one["name"] != name),
        _ => {}
    }
}

/// What a function of the extension returns; most return nothing.
pub fn answer(function: &str) -> String {
    let answer = match function {
        "neighbours" => {
            r#"{"node_name": "n1", "login": null, "has_secret": false, "ca": null,
                "hub": [{"host": "127.0.0.1", "port": 1}], "leaf": [], "nodes": []}"#
        }
        "set_neighbour_routes" => r#"{"set": [{"host": "a", "port": 1}], "skipped": []}"#,
        _ => "",
    };
    answer.to_owned()
}
