//! What a subscription's task asks of a source, against real connections.

use super::transport::make_certificates;
use super::*;
use crate::feed::Position as At;
use crate::feed::fake::insert;
use crate::follow::{Kind, Remote, Source, Subscription, TableName};

fn subscription(remote: &[String]) -> Subscription {
    let channel = "shop".to_owned();
    Subscription { remote: remote.to_vec(), channel, ..Subscription::default() }
}

fn url(served: &Served) -> String {
    format!("http://{}", served.address)
}

fn orders() -> TableName {
    TableName { schema: "public".to_owned(), table: "orders".to_owned() }
}

#[tokio::test]
async fn any_node_is_asked_and_the_leader_where_only_that_can_answer() {
    let leader = serve(view(1), accept).await;
    let other = serve(view(2), accept).await;
    other.change_view(|view| view.leader.as_mut().unwrap().api = leader.address);
    other.database.commit(7, &[insert(1, 1, "a")]);
    // The first address is nobody's.
    let remote = Remote::new(&subscription(&["http://127.0.0.1:1".to_owned(), url(&other)])).unwrap();
    let channel = remote.channel().await.unwrap();
    assert_eq!(
        (channel.origin.as_str(), channel.end, channel.tables),
        ("berlin", At { epoch: 5, tick: 1 }, vec![orders()])
    );
    let mut stream = remote.stream(At { epoch: 5, tick: 0 }).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap()[0], b'P');
    let schemas = remote.schemas().await.unwrap();
    assert_eq!((&schemas[0]["schema"], &schemas[0]["table"]), (&"public".into(), &"orders".into()));
    let copy = remote.begin_copy(&[orders()]).await.unwrap();
    assert_eq!(copy.tables, [(orders(), vec!["id".to_owned(), "note".to_owned()])]);
    remote.renew_copy(&copy.id).await.unwrap();
    let mut lines = remote.copy(&copy.id, &orders(), &["note".to_owned()], None).await.unwrap();
    let mut all = Vec::new();
    while let Some(bytes) = lines.next().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    assert_eq!(String::from_utf8(all).unwrap(), "1\ta\n2\tCOPY (SELECT \"note\" FROM ) TO STDOUT\n\\.\n");
    // Only some rows, whatever the condition is written with.
    let condition = "note = 'a&b+c%' OR id > 3";
    let mut some = remote.copy(&copy.id, &orders(), &["note".to_owned()], Some(condition)).await.unwrap();
    let mut all = Vec::new();
    while let Some(bytes) = some.next().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    let said = String::from_utf8(all).unwrap();
    assert!(said.contains(&format!("WHERE (checked {condition})")), "{said}");
    remote.end_copy(&copy.id).await.unwrap();
    assert_eq!(remote.renew_copy(&copy.id).await.unwrap_err().code, "copy_gone");
    remote.register("cache", None).await.unwrap();
    assert!(remote.move_to("cache", At { epoch: 5, tick: 0 }).await.unwrap());
    assert!(!remote.move_to("other", At { epoch: 5, tick: 0 }).await.unwrap());
    remote.forget("cache").await.unwrap();
}

#[tokio::test]
async fn what_a_source_refuses_has_its_kind() {
    let served = serve(view(1), accept).await;
    for _ in 0..5 {
        served.database.commit(7, &[insert(1, 1, "a")]);
    }
    served.database.purge(3);
    let remote = Remote::new(&subscription(&[url(&served)])).unwrap();
    let position = |tick| At { epoch: 5, tick };
    for (at, kind) in
        [(position(1), Kind::Lost), (position(99), Kind::Behind), (At { epoch: 9, tick: 1 }, Kind::Behind)]
    {
        assert_eq!(remote.stream(at).await.err().unwrap().kind, kind, "{at}");
    }
    let unknown = Subscription { channel: "none".to_owned(), ..subscription(&[url(&served)]) };
    assert_eq!(Remote::new(&unknown).unwrap().channel().await.unwrap_err().code, "unknown_channel");
    let nobody = Remote::new(&subscription(&["http://127.0.0.1:1".to_owned()])).unwrap();
    let silent = nobody.channel().await.unwrap_err();
    assert_eq!((silent.kind, silent.code.as_str()), (Kind::Waiting, "unreachable"));
    let config = RestConfig { token: Some("0123456789abcdef".to_owned()), ..open_config() };
    let guarded = serve_with(&config, view(1), accept).await;
    let refused = Remote::new(&subscription(&[url(&guarded)])).unwrap().channel().await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_str()), (Kind::Stopped, "login"));
    let secret = Some("0123456789abcdef".to_owned());
    let admitted = Subscription { secret, ..subscription(&[url(&guarded)]) };
    assert!(Remote::new(&admitted).unwrap().channel().await.is_ok());
}

#[tokio::test]
async fn only_whom_the_authority_has_signed_is_asked() {
    let (folder, strange) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = make_certificates(folder.path());
    let other = make_certificates(strange.path());
    let config = RestConfig { tls: Some(files.clone()), ..open_config() };
    let served = serve_with(&config, view(1), accept).await;
    let ca = |files: &super::super::TlsFiles| std::fs::read_to_string(files.ca.as_ref().unwrap()).unwrap();
    let address = format!("https://{}", served.address);
    let trusting =
        |files| Subscription { ca: Some(ca(files)), ..subscription(std::slice::from_ref(&address)) };
    assert!(Remote::new(&trusting(&files)).unwrap().channel().await.is_ok());
    let refused = Remote::new(&trusting(&other)).unwrap().channel().await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_str()), (Kind::Stopped, "certificate"));
}
