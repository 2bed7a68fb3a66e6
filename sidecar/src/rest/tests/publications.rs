//! Publications: what is asked of the database and not shown, and what another cluster is asked to do.

use super::*;
use crate::feed::Given;
use crate::follow::{Outcome, Own, Publication, Remote, Step, step};
use serde_json::json;

#[tokio::test]
async fn a_publication_is_made_changed_and_ended() {
    let served = serve(view(1), accept).await;
    let shown =
        json!([{"name": "mirror", "state": "removing", "code": "unreachable", "detail": "nobody answers"}]);
    served.database.says.lock().unwrap().insert("publications_state", shown);
    let new = json!({"name": "mirror", "remote": ["http://a:1"], "channel": "shop", "secret": "s3cret", "own_secret": "t0ken",
        "remote_database": "sales", "filter": {"public.orders": "id > 3"}, "own_addresses": ["http://b:1"]});
    let made = served.send("POST /publications", &[], &new.to_string()).await;
    assert_eq!((made.status, &made.json()["name"]), (200, &json!("mirror")), "{made:?}");
    let patch = json!({"secret": "other", "own_login": null, "own_addresses": null}).to_string();
    assert_eq!(served.send("PATCH /publications/mirror", &[], &patch).await.status, 200);
    assert_eq!(served.get("/publications").await.json()[0]["state"], "removing");
    let ended = served.send("DELETE /publications/mirror", &[], "").await;
    let body = ended.json();
    assert_eq!((&body["ended"], &body["code"]), (&json!(false), &json!("unreachable")), "{ended:?}");
    let forced = served.send("DELETE /publications/mirror?force=true", &[], "").await.json();
    assert_eq!((&forced["ended"], &forced["code"]), (&json!(true), &json!("not_told")), "{forced}");
    let calls = served.database.calls.lock().unwrap();
    let functions: Vec<&str> = calls.iter().map(|(_, call)| call.function).collect();
    assert_eq!(functions, ["publish", "alter_publication", "unpublish", "unpublish"]);
    let given = |call: usize, name: &str| {
        let arguments = &calls[call].1.arguments;
        arguments.iter().find(|one| one.name == name).map(|one| one.value.clone())
    };
    assert_eq!(given(0, "database"), Some(Given::Text("sales".to_owned())));
    assert_eq!(given(0, "own_secret"), Some(Given::Text("t0ken".to_owned())));
    assert_eq!(given(1, "own_login"), Some(Given::Text(String::new())));
    assert_eq!(given(1, "own_addresses"), Some(Given::Texts(Vec::new())));
    assert_eq!(given(1, "ca"), None);
    assert_eq!(given(3, "force"), Some(Given::Text("true".to_owned())));
}

#[tokio::test]
async fn what_is_wrong_with_a_publication_is_said_without_secrets() {
    let served = serve(view(1), accept).await;
    served.database.says.lock().unwrap().insert("publications_state", json!([]));
    for (body, code) in [
        (json!({"name": "a", "channel": "shop"}), "missing_field"),
        (
            json!({"name": "a", "channel": "shop", "remote": ["http://a:1"], "own_secret": ["s3cret"]}),
            "bad_field",
        ),
        (
            json!({"name": "a", "channel": "shop", "remote": ["http://a:1"], "password": "s3cret"}),
            "unknown_field",
        ),
    ] {
        let answer = served.send("POST /publications", &[], &body.to_string()).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{body}");
        assert!(!answer.body.contains("s3cret"), "{answer:?}");
    }
    for request in ["GET /publications/other", "PATCH /publications/other", "DELETE /publications/other"] {
        let body = if request.starts_with("PATCH") { "{}" } else { "" };
        let answer = served.send(request, &[], body).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_publication"), "{request}");
    }
    let other = serve(view(2), accept).await;
    assert_eq!(other.send("DELETE /publications/mirror", &[], "").await.code(), "not_leader");
}

/// Another cluster that keeps what subscriptions it is given, and a publication to it.
async fn other() -> (Served, Remote, Publication, Own) {
    let served = serve(view(1), accept).await;
    *served.database.kept.lock().unwrap() = Some(Vec::new());
    let publication = Publication {
        name: "mirror".to_owned(),
        remote: vec!["http://127.0.0.1:1".to_owned(), format!("http://{}", served.address)],
        channel: "shop".to_owned(),
        copy: "error".to_owned(),
        policy: "error".to_owned(),
        ddl: "ignore".to_owned(),
        on_purged: "stop".to_owned(),
        jobs: 2,
        revision: 1,
        ..Publication::default()
    };
    let remote = Remote::new(&publication.way()).unwrap();
    let own = Own {
        addresses: vec!["http://b:1".to_owned()],
        database: "sales".to_owned(),
        origin: "berlin".to_owned(),
        ..Own::default()
    };
    (served, remote, publication, own)
}

fn told(step: Step) -> Outcome {
    match step {
        Step::Told(outcome) => outcome,
        Step::Ended => panic!("it has ended"),
    }
}

fn functions(served: &Served) -> Vec<&'static str> {
    served.database.calls.lock().unwrap().drain(..).map(|(_, call)| call.function).collect()
}

#[tokio::test]
async fn a_subscription_is_made_at_the_other_cluster_looked_at_and_ended() {
    let (served, remote, mut publication, mut own) = other().await;
    let made = told(step(&publication, &remote, &own, None).await);
    assert_eq!(
        (made.state, made.there),
        ("established", Some(json!({"state": "starting", "code": null, "detail": null})))
    );
    assert_eq!(functions(&served), ["subscribe"]);
    // It is there, and nothing is to be done.
    assert_eq!(told(step(&publication, &remote, &own, Some(1)).await).state, "established");
    assert_eq!(functions(&served), Vec::<&str>::new());
    // That it was made is not known, another login, other nodes: it is told.
    for (revision, done, addresses) in [
        (1, None, vec!["http://b:1"]),
        (2, Some(1), vec!["http://b:1"]),
        (2, Some(2), vec!["http://b:1", "http://c:1"]),
    ] {
        publication.revision = revision;
        own.addresses = addresses.into_iter().map(str::to_owned).collect();
        assert_eq!(told(step(&publication, &remote, &own, done).await).state, "established");
        assert_eq!(functions(&served), ["alter_subscription"], "{revision} {done:?}");
    }
    publication.removing = true;
    assert_eq!(step(&publication, &remote, &own, Some(2)).await, Step::Ended);
    assert_eq!(functions(&served), ["unsubscribe"]);
    assert_eq!(step(&publication, &remote, &own, Some(2)).await, Step::Ended);
    // The leader was asked whether that is so.
    assert_eq!(functions(&served), ["alter_subscription"]);
    // Somebody else has ended it.
    publication.removing = false;
    let gone = told(step(&publication, &remote, &own, Some(2)).await);
    assert_eq!((gone.state, gone.code.as_deref()), ("failed", Some("ended_there")));
    assert_eq!(functions(&served), ["alter_subscription"]);
}

#[tokio::test]
async fn what_the_other_cluster_says_is_told() {
    let (served, remote, mut publication, own) = other().await;
    // A subscription of that name to somebody else is left alone.
    let theirs =
        json!({"name": "mirror", "channel": "shop", "remote": ["http://x:1"], "remote_origin": "rome"});
    *served.database.kept.lock().unwrap() = Some(vec![theirs]);
    let taken = told(step(&publication, &remote, &own, None).await);
    assert_eq!((taken.state, taken.code.as_deref()), ("failed", Some("name_taken")));
    publication.removing = true;
    assert_eq!(step(&publication, &remote, &own, None).await, Step::Ended);
    assert_eq!(functions(&served), ["alter_subscription"]);
    publication.removing = false;
    served.database.failure.lock().unwrap().replace(crate::feed::Kind::Unavailable);
    let silent = told(step(&publication, &remote, &own, None).await);
    assert_eq!((silent.state, silent.code.as_deref()), ("waiting", Some("database_unavailable")));
    served.database.failure.lock().unwrap().replace(crate::feed::Kind::UnknownDatabase);
    let nowhere = told(step(&publication, &remote, &own, None).await);
    assert_eq!((nowhere.state, nowhere.code.as_deref()), ("failed", Some("unknown_database")));
    // Nobody is there at all.
    publication.remote.pop();
    let alone = Remote::new(&publication.way()).unwrap();
    assert_eq!(told(step(&publication, &alone, &own, None).await).state, "waiting");
    publication.removing = true;
    let left = told(step(&publication, &alone, &own, None).await);
    assert_eq!((left.state, left.code.as_deref()), ("removing", Some("unreachable")));
    assert!(left.detail.unwrap().contains("force => true"));
}

#[tokio::test]
async fn whoever_is_not_let_in_is_told_so() {
    let config = RestConfig { token: Some("token-of-the-others".to_owned()), ..open_config() };
    let served = serve_with(&config, view(1), accept).await;
    let publication = Publication {
        name: "mirror".to_owned(),
        remote: vec![format!("http://{}", served.address)],
        channel: "shop".to_owned(),
        secret: Some("wrong".to_owned()),
        ..Publication::default()
    };
    let remote = Remote::new(&publication.way()).unwrap();
    let refused = told(step(&publication, &remote, &Own::default(), None).await);
    assert_eq!((refused.state, refused.code.as_deref()), ("failed", Some("login")));
    assert!(!refused.detail.unwrap().contains("wrong\""), "the secret is not shown");
}
