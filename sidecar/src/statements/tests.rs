//! Lists for those who ask, and rounds, against a server in memory.

use super::carry::{Carried, Leader};
use super::fake::Fake;
use super::*;
use std::time::Duration;

fn statements() -> (Arc<Statements>, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    let source: Arc<dyn Source> = Arc::<Fake>::clone(&fake);
    (Arc::new(Statements::new(source)), fake)
}

async fn now(statements: &Statements, database: &str) -> Arc<List> {
    statements.list(database, |_| false, Duration::ZERO).await.unwrap()
}

#[tokio::test]
async fn a_list_is_made_once_for_each_state() {
    let (statements, fake) = statements();
    fake.serve("00000000000000b2");
    fake.serve("00000000000000a1");
    let first = now(&statements, "postgres").await;
    assert_eq!(first.body, "[\"00000000000000a1\",\"00000000000000b2\"]");
    let again = now(&statements, "postgres").await;
    assert!(Arc::ptr_eq(&first, &again), "nothing has changed");
    fake.stir();
    let stirred = now(&statements, "postgres").await;
    assert_eq!(stirred.tag, first.tag, "the same statements are the same list");
    fake.withdraw("00000000000000b2");
    let last = now(&statements, "postgres").await;
    assert_eq!(last.body, "[\"00000000000000a1\"]");
    assert_ne!(last.tag, first.tag);
    let elsewhere = now(&statements, "shop").await;
    assert_eq!(elsewhere.body, last.body);
    assert_ne!(elsewhere.tag, last.tag, "another database is another list");
}

#[tokio::test]
async fn those_who_ask_together_share_a_look_that_began_after_they_came() {
    let (statements, fake) = statements();
    *fake.slowness.lock().unwrap() = Duration::from_millis(300);
    let ask = || {
        let statements = Arc::clone(&statements);
        tokio::spawn(async move { now(&statements, "postgres").await.body.clone() })
    };
    let first = ask();
    tokio::time::sleep(Duration::from_millis(100)).await;
    fake.serve("00000000000000a1");
    let others: Vec<_> = (0..20).map(|_| ask()).collect();
    first.await.unwrap();
    for other in others {
        assert_eq!(other.await.unwrap(), "[\"00000000000000a1\"]");
    }
    assert_eq!(fake.questions().len(), 2);
}

#[tokio::test]
async fn a_wait_ends_with_another_list_or_with_its_time() {
    let (statements, fake) = statements();
    fake.serve("00000000000000a1");
    let known = now(&statements, "postgres").await.tag.clone();
    let wait = |known: String, seconds: f64| {
        let statements = Arc::clone(&statements);
        let began = Instant::now();
        tokio::spawn(async move {
            let wait = Duration::from_secs_f64(seconds);
            let list = statements.list("postgres", |list| list.tag == known, wait).await;
            (list, began.elapsed())
        })
    };
    let (list, after) = wait(known.clone(), 0.5).await.unwrap();
    assert_eq!(list.unwrap().tag, known);
    assert!(after >= Duration::from_millis(500) && after < Duration::from_secs(5), "{after:?}");

    fake.questions();
    let waiting: Vec<_> = (0..50).map(|_| wait(known.clone(), 60.0)).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    fake.stir();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let questions = fake.questions().len();
    // One look each when they come, and then one every 200 ms for all.
    assert!(questions < 100, "{questions}: they look each for himself");
    fake.withdraw("00000000000000a1");
    for one in waiting {
        let (list, after) = one.await.unwrap();
        assert_eq!(list.unwrap().body, "[]");
        assert!(after >= Duration::from_millis(1500) && after < Duration::from_secs(10), "{after:?}");
    }

    let known = now(&statements, "postgres").await.tag.clone();
    let one = wait(known, 60.0);
    tokio::time::sleep(Duration::from_millis(100)).await;
    fake.fail("served", Kind::Unavailable);
    let (list, after) = one.await.unwrap();
    assert_eq!(list.unwrap_err().kind, Kind::Unavailable, "somebody else may know");
    assert!(after < Duration::from_secs(10), "{after:?}");
    fake.mend();
    assert_eq!(now(&statements, "postgres").await.body, "[]");
}

#[tokio::test]
async fn lists_of_databases_are_kept_within_bounds() {
    let (statements, fake) = statements();
    now(&statements, "postgres").await;
    for n in 0..200 {
        let error = statements.list(&format!("no{n}"), |_| false, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind, Kind::UnknownDatabase);
    }
    assert_eq!(statements.databases.lock().unwrap().len(), DATABASES_MAX);
    now(&statements, "postgres").await;
    fake.mend();
}

#[tokio::test]
async fn records_are_counted_until_the_last_byte_is_sent() {
    let (statements, fake) = statements();
    fake.serve("00000000000000a1");
    let mut sent = Vec::new();
    for _ in 0..RECORDS_MAX {
        sent.push(statements.records("postgres").await.unwrap());
    }
    assert!(sent[0].starts_with(b"[{"));
    assert_eq!(statements.records("postgres").await.unwrap_err().kind, Kind::Busy);
    let part = sent[0].slice(1..2);
    drop(sent.swap_remove(0));
    assert_eq!(statements.records("postgres").await.unwrap_err().kind, Kind::Busy);
    drop(part);
    statements.records("postgres").await.unwrap();
}

fn leader(id: u64, epoch: u64) -> Leader {
    Leader { id, epoch, server: format!("127.0.0.1:500{id}").parse().unwrap() }
}

#[tokio::test]
async fn what_was_learned_is_carried_in_bounded_parts() {
    let (_, fake) = statements();
    let mut carried = Carried::default();
    fake.learn(0..4600);
    for (expected, merges) in [(2000, 4), (2000, 4), (600, 2), (0, 0)] {
        assert_eq!(carried.carry(&*fake, "shop", leader(1, 7)).await.unwrap(), expected);
        let questions = fake.questions();
        assert_eq!(questions.iter().filter(|q| q.starts_with("merge")).count(), merges, "{questions:?}");
    }
    assert_eq!(fake.told(), (0..4600).collect::<Vec<_>>());
    fake.learn(0..1);
    carried.carry(&*fake, "shop", leader(1, 7)).await.unwrap();
    assert_eq!(fake.questions(), ["take shop", "merge shop at 127.0.0.1:5001: 1"]);
}

#[tokio::test]
async fn what_may_not_have_arrived_is_told_again() {
    let (_, fake) = statements();
    let mut carried = Carried::default();
    fake.learn(0..3);
    carried.carry(&*fake, "shop", leader(1, 7)).await.unwrap();
    assert_eq!(fake.told(), [0, 1, 2]);

    fake.learn(3..4);
    fake.fail("merge", Kind::TimedOut);
    let error = carried.carry(&*fake, "shop", leader(1, 7)).await.unwrap_err();
    assert!(error.kind == Kind::TimedOut && error.message.contains("node 1"), "{error}");
    fake.fail("unsend", Kind::Unavailable);
    carried.carry(&*fake, "shop", leader(1, 7)).await.unwrap_err();
    fake.mend();
    assert_eq!(carried.carry(&*fake, "shop", leader(1, 7)).await.unwrap(), 4);
    assert_eq!(fake.told(), [0, 1, 2, 3]);

    // Another leader may lack what the last one was told, and so may the same one in another epoch.
    assert_eq!(carried.carry(&*fake, "shop", leader(2, 8)).await.unwrap(), 4);
    assert_eq!(carried.carry(&*fake, "shop", leader(2, 9)).await.unwrap(), 4);
    assert_eq!(carried.carry(&*fake, "shop", leader(2, 9)).await.unwrap(), 0);
}
