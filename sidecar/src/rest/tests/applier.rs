//! The applier's settings and state over HTTP, and what it asks of its remote's nodes. What it does with the answers is
//! tested from outside, with real servers.

use super::super::TlsFiles;
use super::replication::failure;
use super::transport::make_certificates;
use super::users::{PASSWORD, bearer, view_with_users};
use super::*;
use crate::feed::Given;
use crate::feed::fake::insert;
use crate::replication::applier::{Config, Remote};
use pgquorum_agent::users::UserRole;
use serde_json::json;

fn shown(config: &Value, running: bool) -> Value {
    json!({"config": config, "running": running, "resync": false, "phase": if running { "running" } else { "inactive" },
        "applied": "90", "available": "100", "message": "", "message_at": "2026-01-01T00:00:00Z", "error_number": 0})
}

fn say(served: &Served, config: &Value, running: bool) {
    served.database.says.lock().unwrap().insert("applier_show", shown(config, running));
}

#[tokio::test]
async fn settings_are_shown_with_defaults_and_without_the_password() {
    let served = serve(view(1), accept).await;
    say(&served, &json!({}), false);
    for (prefix, database) in [("", "_system"), ("/_db/postgres", "_system")] {
        let shown = served.get(&format!("{prefix}/_api/replication/applier-config")).await.json();
        assert_eq!((&shown["database"], &shown["chunkSize"]), (&json!(database), &json!(0)), "{prefix}");
        assert_eq!((&shown["requestTimeout"], &shown["idleMaxWaitTime"]), (&json!(600), &json!(2.5)));
        assert_eq!(shown.get("endpoint"), None);
    }
    let put =
        async |body: Value| served.send("PUT /_api/replication/applier-config", &[], &body.to_string()).await;
    let body = json!({"endpoint": "tcp://10.0.0.1:8529", "username": "root", "password": "hush", "database": "shop",
        "restrictType": "include", "restrictCollections": ["a"], "autoResyncRetries": 7});
    let answer = put(body.clone()).await;
    assert!(answer.status == 200 && !answer.body.contains("hush"), "{answer:?}");
    for (name, value) in body.as_object().unwrap().iter().filter(|(name, _)| *name != "password") {
        assert_eq!(&answer.json()[name], value, "{name}");
    }
    {
        let calls = served.database.calls.lock().unwrap();
        let (_, call) = calls.last().unwrap();
        assert_eq!(call.function, "applier_configure");
        assert!(call.arguments.iter().any(|one| one.value == Given::Text("hush".to_owned())));
        assert!(
            call.arguments.iter().all(|one| one.name == "password" || !format!("{one:?}").contains("hush"))
        );
    }
    for (wrong, expected) in [
        (json!({}), (400, 1410)),
        (json!({"endpoint": "nowhere"}), (400, 1410)),
        (json!({"endpoint": "ssl://a:1"}), (400, 1410)),
        (json!({"endpoint": "tcp://a:1", "chunkSize": "x"}), (400, 1410)),
        (json!({"endpoint": "tcp://a:1", "restrictType": "include"}), (400, 400)),
    ] {
        assert_eq!(failure(&put(wrong.clone()).await), expected, "{wrong}");
    }
    say(&served, &json!({"endpoint": "tcp://a:1"}), true);
    assert_eq!(failure(&put(json!({"chunkSize": 5})).await), (400, 1411));
}

#[tokio::test]
async fn it_is_started_and_stopped() {
    let served = serve(view(1), accept).await;
    let functions = || {
        let mut calls = served.database.calls.lock().unwrap();
        calls.drain(..).map(|(_, call)| call.function).collect::<Vec<_>>()
    };
    say(&served, &json!({}), false);
    assert_eq!(failure(&served.send("PUT /_api/replication/applier-start", &[], "").await), (400, 1410));
    let config = json!({"endpoint": "tcp://a:1", "database": "shop"});
    say(&served, &config, false);
    assert_eq!(
        failure(&served.send("PUT /_api/replication/applier-start?from=x", &[], "").await),
        (400, 400)
    );
    let started = served.send("PUT /_api/replication/applier-start?from=17", &[], "").await;
    assert_eq!(started.json()["endpoint"], "tcp://a:1", "{started:?}");
    assert_eq!(functions(), ["applier_start"]);
    say(&served, &config, true);
    let state = served.get("/_api/replication/applier-state").await.json();
    assert_eq!((&state["state"]["running"], &state["state"]["ticksBehind"]), (&json!(true), &json!(10)));
    assert_eq!(state["server"], json!({"version": "3.11.0", "serverId": "7"}));
    // One that runs is left alone.
    assert_eq!(served.send("PUT /_api/replication/applier-start", &[], "").await.status, 200);
    assert!(functions().is_empty());
    let body = json!({"endpoint": "tcp://a:1"}).to_string();
    assert_eq!(failure(&served.send("PUT /_api/replication/sync", &[], &body).await), (400, 1411));
    assert_eq!(served.send("PUT /_api/replication/applier-stop", &[], "").await.status, 200);
    assert_eq!(served.send("DELETE /_api/replication/applier-state", &[], "").await.status, 200);
    assert_eq!(functions(), ["applier_stop", "applier_forget"]);
    served.database.says.lock().unwrap().insert("applier_databases", json!(["postgres", "bare"]));
    let all = served.get("/_api/replication/applier-state-all").await.json();
    assert_eq!(all.as_object().unwrap().keys().collect::<Vec<_>>(), ["_system"]);
    for line in [
        "PUT /_api/replication/sync",
        "PUT /_api/replication/make-slave",
        "PUT /_api/replication/make-follower",
    ] {
        assert_eq!(failure(&served.send(line, &[], "{}").await), (400, 400), "{line}");
        assert_eq!(failure(&served.send(line, &[], "[]").await), (400, 600), "{line}");
    }
    let nobody = json!({"endpoint": "tcp://127.0.0.1:1", "connectTimeout": 1}).to_string();
    let unreachable = served.send("PUT /_api/replication/make-slave", &[], &nobody).await;
    assert_eq!(failure(&unreachable), (500, 1400));
    assert!(functions().is_empty(), "nothing is stopped for a remote that cannot be asked");
    let other = serve(view(2), accept).await;
    for line in [
        "PUT /_api/replication/applier-start",
        "PUT /_api/replication/sync",
        "DELETE /_api/replication/applier-state",
    ] {
        assert_eq!(failure(&other.send(line, &[], "{}").await), (503, 503), "{line}");
    }
}

#[tokio::test]
async fn who_may_not_copy_is_told_what_a_copy_destroys() {
    let served = serve(view_with_users(1), accept).await;
    // Whoever follows the log may not wipe tables.
    for role in [UserRole::Reader, UserRole::Follower] {
        let refused = served.send("PUT /_api/replication/sync", &[&bearer(role)], "{}").await;
        assert_eq!(failure(&refused), (401, 11));
        assert!(
            refused.body.contains("replication_sync") && refused.body.contains("delete all rows"),
            "{refused:?}"
        );
    }
    let may = served
        .send("PUT /_db/postgres/_api/replication/sync", &[&bearer(UserRole::ReplicationSync)], "{}")
        .await;
    assert_eq!(failure(&may), (400, 400));
    let start =
        served.send("PUT /_api/replication/applier-start", &[&bearer(UserRole::ReplicationSync)], "").await;
    assert_eq!(failure(&start), (401, 11));
}

/// The remote of an applier with these settings.
fn remote(endpoints: &[String], more: &Value) -> Remote {
    let mut settings = more.as_object().cloned().unwrap();
    settings.insert("endpoint".to_owned(), endpoints.join(",").into());
    let (config, password) = Config::default().merged(&settings).unwrap();
    Remote::new(&config, password.as_deref(), "_system").unwrap()
}

#[tokio::test]
async fn any_node_of_the_remote_is_asked_and_the_leader_for_a_copy() {
    let leader = serve(view(1), accept).await;
    let (standby, witness) = (serve(view(2), accept).await, serve(view(4), accept).await);
    for served in [&leader, &standby] {
        served.database.commit(7, &[insert(1, 1, "a")]);
    }
    let nobody = "tcp://127.0.0.1:1".to_owned();
    let tcp = |served: &Served| format!("tcp://{}", served.address);
    let all = [nobody.clone(), tcp(&witness), tcp(&standby), tcp(&leader)];
    let asked = remote(&all, &json!({}));
    let identity = asked.identify().await.unwrap();
    assert!(identity.ours && identity.server_id == "7", "{identity:?}");
    let batch = asked.begin_batch().await.unwrap();
    asked.renew_batch(&batch.id).await.unwrap();
    let rows = asked.dump("orders", &batch.id, None).await.unwrap();
    assert_eq!((rows.lines().unwrap().count(), rows.flag("checkmore")), (2, Some(false)));
    asked.end_batch(&batch.id).await.unwrap();
    assert_eq!(asked.follow(0, 9).await.unwrap().lines().unwrap().count(), 1);
    // Without the leader the log is followed all the same, and a copy waits for the next one.
    let left = remote(&all[..3], &json!({}));
    assert_eq!(left.follow(0, 9).await.unwrap().lines().unwrap().count(), 1);
    let refused = left.begin_batch().await.unwrap_err();
    assert_eq!((refused.number, refused.answered.0), (1402, 503), "{refused}");
    let down = remote(&[nobody.clone(), nobody], &json!({})).identify().await.unwrap_err();
    assert_eq!((down.number, down.answered.0), (1400, 0), "{down}");
}

#[tokio::test]
async fn over_tls_only_nodes_of_the_authority_are_asked() {
    let (folder, strange) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (files, other) = (make_certificates(folder.path()), make_certificates(strange.path()));
    let secured = |files: &TlsFiles| RestConfig { tls: Some(files.clone()), ..open_config() };
    let good = serve_with(&secured(&files), view_with_users(1), accept).await;
    let imposter = serve_with(&secured(&other), view_with_users(1), accept).await;
    let plain = serve(view(1), accept).await;
    let ca = std::fs::read_to_string(files.ca.as_ref().unwrap()).unwrap();
    let login = |password: &str| json!({"ca": ca, "username": "root", "password": password});
    let ssl = |served: &Served| format!("ssl://{}", served.address);
    let nobody = "ssl://127.0.0.1:1".to_owned();

    // One that is down, one that is another's, and one that speaks no TLS are passed over.
    let several = [nobody.clone(), ssl(&imposter), ssl(&plain), ssl(&good)];
    let asked = remote(&several, &login(PASSWORD));
    assert!(asked.identify().await.unwrap().ours);
    let batch = asked.begin_batch().await.unwrap();
    asked.end_batch(&batch.id).await.unwrap();
    let wrong = remote(&several, &login("a wrong password")).identify().await.unwrap_err();
    assert_eq!((wrong.number, wrong.answered.0), (1402, 401), "{wrong}");

    // Where there is no other, a person has to look; where one is down, it may come back.
    let untrusted = remote(&[ssl(&imposter)], &login(PASSWORD)).identify().await.unwrap_err();
    assert_eq!(untrusted.number, 1402, "{untrusted}");
    assert!(untrusted.message.contains("certificate that is not trusted"), "{untrusted}");
    for other in [nobody, ssl(&plain)] {
        let waits = remote(&[ssl(&imposter), other.clone()], &login(PASSWORD)).identify().await.unwrap_err();
        assert_eq!(waits.number, 1400, "{waits}");
        let named = waits.message.contains(&other.replace("ssl", "https"));
        assert!(named && waits.message.contains("certificate that is not trusted"), "{waits}");
    }
}
