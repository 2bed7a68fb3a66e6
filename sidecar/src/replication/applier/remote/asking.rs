//! What is asked of nodes, and which of their answers is taken.

use super::super::played::{self, Played, answer};
use super::*;
use std::sync::Arc;

#[tokio::test]
async fn what_went_there_from_here_is_not_asked_for() {
    let asked = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&asked);
    let there = Played::start(move |line| {
        line.clone_into(&mut noted.lock().unwrap());
        answer(&[("frompresent", "true")], "")
    })
    .await;
    let names = vec!["shop".to_owned(), "_system".to_owned()];
    there.remote().known_as(names).follow(5, 7).await.unwrap();
    let except = encoded(r#"["arango.7.shop","arango.7._system"]"#);
    let line = asked.lock().unwrap().clone();
    assert!(line.contains("from=5&") && line.contains(&format!("&exceptOrigins={except} ")), "{line}");
    // And whole documents are wanted as rows.
    assert!(line.contains("&inColumns=true&"), "{line}");
    there.remote().dump("t", "9", None).await.unwrap();
    let line = asked.lock().unwrap().clone();
    assert!(line.contains("/dump?collection=t&") && line.contains("&inColumns=true "), "{line}");
}

#[tokio::test]
async fn a_node_that_is_behind_is_passed_over() {
    let node = async |present: &'static str, last: &'static str| {
        Played::start(move |_| answer(&[("frompresent", present), ("lasttick", last)], "")).await
    };
    let (behind, lagging) = (node("false", "5").await, node("false", "6").await);
    let (ahead, purged) = (node("true", "9").await, node("false", "9").await);
    let nobody = "tcp://127.0.0.1:1".to_owned();
    let of = |nodes: &[&Played]| nodes.iter().map(|node| node.endpoint()).collect::<Vec<_>>();
    let remote = played::remote(&of(&[&behind, &lagging, &ahead]));
    for _ in 0..2 {
        assert_eq!(remote.follow(7, 1).await.unwrap().flag("frompresent"), Some(true));
        // It is the first that is asked from now on.
        assert_eq!(remote.bases()[0].to_string(), ahead.endpoint().replace("tcp", "http"));
    }
    // One that has lost it knows more than one that does not know of it yet.
    let lost = played::remote(&of(&[&behind, &purged])).follow(7, 1).await.unwrap();
    assert!(!lost.is_behind(7) && lost.tick("lasttick") == Some(9), "{lost:?}");
    let all = played::remote(&of(&[&behind, &lagging])).follow(7, 1).await.unwrap();
    assert!(all.is_behind(7) && all.unasked.is_none(), "{all:?}");
    let some = played::remote(&[nobody, behind.endpoint()]).follow(7, 1).await.unwrap();
    assert!(some.is_behind(7) && some.unasked.is_some_and(|fault| fault.number == NO_RESPONSE));
    assert_eq!(played::remote(&of(&[&behind])).follow(5, 1).await.unwrap().unasked, None);
}
