//! Readers that go on where another stream of theirs ended.

use super::*;

/// The lines of a stream of `notes`, as `type position`.
async fn shown(feed: &Feed, after: &str, count: usize) -> Vec<String> {
    let lines = Lines::of(feed, after, &["notes"]).await.changes(count).await;
    let word = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    lines.iter().map(|line| format!("{} {}", word(line, "type"), word(line, "position"))).collect()
}

#[tokio::test]
async fn a_transaction_in_whose_middle_a_reader_was_ends_for_it() {
    let (feed, fake) = feed();
    // Nothing of the rest is wanted, and the first change goes over several rows of the log.
    let long = "x".repeat(30_000);
    fake.commit(7, &[insert(2, 1, &long), insert(1, 2, "b"), insert(1, 3, &long), insert(1, 4, "c")]);
    fake.commit(8, &[insert(2, 5, "d")]);
    let next = ["begin 5:4", "change 5:5", "commit 5:5"];
    assert_eq!(shown(&feed, "start", 6).await[..3], ["begin start", "change 5:1", "commit 5:4"]);
    for after in ["5:1", "5:2", "5:3", "3"] {
        let found = shown(&feed, after, 5).await;
        let begin = format!("begin 5:{}", after.trim_start_matches("5:"));
        assert_eq!(found[..2], [begin, "commit 5:4".to_owned()], "{after}");
        assert_eq!(found[2..], next, "{after}");
    }
    // Whoever had the last change hears of the next transaction only.
    assert_eq!(shown(&feed, "5:4", 3).await, next);
    assert_eq!(shown(&feed, "5:0", 3).await, ["begin 5:0", "change 5:1", "commit 5:4"]);
}

#[tokio::test]
async fn the_last_change_of_a_transaction_says_so() {
    let (feed, fake) = feed();
    let many: Vec<_> = (1..=2000).map(|id| insert(1 + id % 2, id, "a note of usual length")).collect();
    fake.commit(1, &many);
    fake.commit(2, &[insert(1, 2001, "a")]);
    let marked = |lines: &[Value]| -> Vec<String> {
        let last = lines.iter().filter(|line| line["last"] == true);
        last.map(|line| line["position"].as_str().unwrap().to_owned()).collect()
    };
    let lines = Lines::of(&feed, "start", &[]).await.changes(2005).await;
    assert_eq!(marked(&lines), ["5:2000", "5:2001"]);
    assert_eq!(
        marked(&changes(&feed.poll(&shop(), ask("start", 9000)).await.unwrap())),
        ["5:2000", "5:2001"]
    );
    // Of the other table the first transaction shows none that is its last.
    let lines = Lines::of(&feed, "start", &["notes"]).await.changes(1002).await;
    assert_eq!(marked(&lines), Vec::<String>::new());
}

#[tokio::test]
async fn a_tick_alone_is_bound_to_its_history_at_once() {
    let (feed, fake) = feed();
    fake.commit(1, &[insert(1, 1, "a"), insert(1, 2, "b")]);
    let found = feed.poll(&shop(), ask("2", 9)).await.unwrap();
    assert_eq!(found.position.to_string(), "5:2");
    let beat = Lines::of(&feed, "2", &[]).await.next().await;
    assert_eq!((&beat["type"], &beat["position"]), (&"heartbeat".into(), &"5:2".into()));
}
