//! Logging in by OAuth2's password flow.

use super::users::{PASSWORD, view_with_users};
use super::*;
use crate::uri::encoded;
use serde_json::json;

const PATHS: [&str; 2] = ["/oauth/token", "/fact-finder/oauth/token"];

fn login(name: &str, password: &str) -> String {
    format!("grant_type=password&username={}&password={}", encoded(name), password.replace(' ', "+"))
}

/// Status and word of a refusal as the RFC has them.
fn refused(answer: &Answer) -> (u16, String) {
    let body = answer.json();
    assert!(body["error_description"].as_str().is_some_and(|text| text.len() > 10), "{answer:?}");
    assert!(answer.head.contains("cache-control: no-store"), "{answer:?}");
    assert_eq!(body.get("access_token"), None, "{answer:?}");
    (answer.status, body["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_token_for_a_password_is_a_login() {
    let config = RestConfig { cluster_key: Some("key-of-tests".to_owned()), ..open_config() };
    let served = serve_with(&config, view_with_users(1), accept).await;
    // The same secret: another node of the cluster.
    let other = serve_with(&config, view_with_users(2), accept).await;
    for path in PATHS {
        // Clients send who they are, and what they want to be let do.
        let body = format!("{}&client_id=shop&client_secret=x&scope=import", login("root", PASSWORD));
        let answer = served.send(&format!("POST {path}"), &[], &body).await;
        let got = answer.json();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(
            (&got["token_type"], &got["expires_in"], &got["scope"]),
            (&json!("bearer"), &json!(3600), &json!("import config"))
        );
        assert!(answer.head.contains("cache-control: no-store") && answer.head.contains("pragma: no-cache"));
        let header = format!("authorization: Bearer {}", got["access_token"].as_str().unwrap());
        let reset = "POST /rest/v5/cluster/reset/config/version/counters";
        assert_eq!(served.send(reset, &[&header], "").await.status, 200);
        // The fake knows no state: who is let in hears of that.
        let state = "GET /fact-finder/rest/v5/cluster/shop/state";
        assert_eq!(other.send(state, &[&header], "").await.status, 400);
        assert_eq!(other.send(state, &[&format!("{header}x")], "").await.status, 401);
    }
    // A user who may nothing in this interface.
    let bob = served.send("POST /oauth/token", &[], &login("bob", PASSWORD)).await;
    assert_eq!((bob.status, bob.json().get("scope")), (200, None), "{bob:?}");
}

#[tokio::test]
async fn what_is_no_login_is_refused_as_the_rfc_says() {
    let served = serve(view_with_users(1), accept).await;
    let good = login("root", PASSWORD);
    for path in PATHS {
        for (query, body, error) in [
            ("", "", "invalid_request"),
            ("", r#"{"grant_type": "password"}"#, "invalid_request"),
            ("", "grant_type=password&username=root", "invalid_request"),
            ("", "grant_type=password&username=root&password=", "invalid_request"),
            ("", "grant_type=password&username=%ff&password=x", "invalid_request"),
            ("", format!("{good}&username=bob").as_str(), "invalid_request"),
            (format!("?{good}").as_str(), "", "invalid_request"),
            ("", "grant_type=refresh_token&refresh_token=x", "unsupported_grant_type"),
            ("", "grant_type=client_credentials&client_id=a&client_secret=b", "unsupported_grant_type"),
            ("", login("nobody", PASSWORD).as_str(), "invalid_grant"),
            ("", login("root", "wrong password").as_str(), "invalid_grant"),
        ] {
            let answer = served.send(&format!("POST {path}{query}"), &[], body).await;
            assert_eq!(refused(&answer), (400, error.to_owned()), "{path}{query} {body}");
            assert!(!answer.body.contains("wrong password") && !answer.body.contains(PASSWORD), "{answer:?}");
        }
        let other = served.send(&format!("GET {path}"), &[], "").await;
        assert_eq!((other.status, &other.json()["error"]), (405, &json!("MethodNotAllowed")));
    }
    // Whoever is wrong often must wait.
    for _ in 0..5 {
        served.send("POST /oauth/token", &[], &login("bob", "wrong password")).await;
    }
    let late = served.send("POST /oauth/token", &[], &login("bob", "wrong password")).await;
    assert_eq!(refused(&late), (429, "invalid_grant".to_owned()));
    assert!(late.head.contains("retry-after: "), "{late:?}");
    // Where nobody has to log in, clients that insist get a token all the same.
    let free = serve(view(1), accept).await;
    let any = free.send("POST /oauth/token", &[], &login("root", "x")).await;
    assert!(any.json()["access_token"].is_string(), "{any:?}");
}
