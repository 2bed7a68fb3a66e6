//! What readers cost, and for how long.

use super::*;

#[tokio::test]
async fn a_copy_ends_with_its_client_though_the_server_brings_nothing() {
    let (feed, fake) = feed();
    fake.copies_hang.store(true, Ordering::Relaxed);
    let client = feed.dump(&shop(), &[]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fake.snapshots.load(Ordering::Relaxed), 1);
    drop(client);
    let begin = Instant::now();
    while fake.snapshots.load(Ordering::Relaxed) > 0 {
        assert!(begin.elapsed() < DEADLINE, "a snapshot stays behind");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_poll_passes_over_what_is_not_wanted_for_some_seconds() {
    let (feed, fake) = feed();
    let notes = vec!["x".repeat(1000); 200];
    for xid in 1..=400 {
        fake.commit(xid, &notes.iter().zip(1..).map(|(note, id)| insert(1, id, note)).collect::<Vec<_>>());
    }
    fake.commit(401, &[insert(2, 1, "wanted")]);
    *fake.slowness.lock().unwrap() = Duration::from_millis(500);
    let begin = Instant::now();
    let of_notes = |after: &str| Ask { tables: vec!["notes".to_owned()], ..ask(after, 9) };
    let found = feed.poll(&shop(), of_notes("start")).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    assert!(found.more && changes(&found).is_empty());
    let tick = found.position.tick().unwrap();
    assert!((1..80_000).contains(&tick), "{tick}");
    // Whoever goes on comes to it.
    *fake.slowness.lock().unwrap() = Duration::ZERO;
    let found = feed.poll(&shop(), of_notes(&found.position.to_string())).await.unwrap();
    assert_eq!((ids(&changes(&found)), found.more), (vec![1], false));
}
