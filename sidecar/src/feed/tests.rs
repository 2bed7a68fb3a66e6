//! Readers against a log in memory.

mod copies;
mod limits;
mod resuming;

use super::fake::{Fake, insert};
use super::*;
use serde_json::Value;
use std::pin::Pin;
use std::sync::atomic::Ordering;

const DEADLINE: Duration = Duration::from_secs(10);

/// A cluster whose leader is node 1, and this node is it or is not.
struct Cluster {
    leads: bool,
}

impl Leadership for Cluster {
    fn leader(&self) -> Option<u64> {
        Some(1)
    }

    fn removed(&self) -> Option<FeedError> {
        None
    }

    fn leads(&self) -> bool {
        self.leads
    }

    fn demand(&self, _: ChannelId) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

fn feed() -> (Feed, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    let source: Arc<dyn Source> = Arc::<Fake>::clone(&fake);
    (Feed::new(source, Arc::new(Cluster { leads: true })), fake)
}

fn shop() -> ChannelId {
    ChannelId { database: "postgres".to_owned(), channel: "shop".to_owned() }
}

fn ask(after: &str, limit: usize) -> Ask {
    Ask { after: after.parse().unwrap(), limit, wait: Duration::ZERO, tables: vec![] }
}

fn changes(found: &Found) -> Vec<Value> {
    serde_json::from_str(&format!("[{}]", str::from_utf8(&found.changes).unwrap())).unwrap()
}

fn ids(values: &[Value]) -> Vec<u64> {
    values.iter().filter_map(|value| value["new"]["id"].as_u64()).collect()
}

/// The lines of a stream.
struct Lines {
    bytes: mpsc::Receiver<Bytes>,
    rest: Vec<u8>,
}

impl Lines {
    async fn of(feed: &Feed, after: &str, tables: &[&str]) -> Lines {
        let tables = tables.iter().map(|&table| table.to_owned()).collect();
        let bytes = feed.stream(shop(), after.parse().unwrap(), tables, Wire::Ndjson).await.unwrap();
        Lines { bytes, rest: Vec::new() }
    }

    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let more = tokio::time::timeout(DEADLINE, self.bytes.recv()).await.expect("nothing came");
            self.rest.extend_from_slice(&more.expect("the stream ended"));
        }
    }

    /// The next line that is no heartbeat.
    async fn change(&mut self) -> Value {
        loop {
            let line = self.next().await;
            if line["type"] != "heartbeat" {
                return line;
            }
        }
    }

    async fn changes(&mut self, count: usize) -> Vec<Value> {
        let mut found = Vec::new();
        while found.len() < count {
            found.push(self.change().await);
        }
        found
    }
}

#[tokio::test]
async fn transactions_are_marked_and_every_line_has_its_position() {
    let (feed, fake) = feed();
    fake.commit(770, &[insert(1, 1, "a"), insert(1, 2, "b")]);
    fake.commit_from(771, Some("berlin"), &[insert(2, 3, "c")]);
    let mut lines = Lines::of(&feed, "start", &[]).await;
    let found = lines.changes(7).await;
    let column = |name: &str| -> Vec<String> {
        found.iter().map(|line| line[name].as_str().unwrap_or("-").to_owned()).collect()
    };
    assert_eq!(column("type"), ["begin", "change", "change", "commit", "begin", "change", "commit"]);
    assert_eq!(column("position"), ["start", "5:1", "5:2", "5:2", "5:2", "5:3", "5:3"]);
    assert_eq!(column("transaction"), ["770", "770", "770", "770", "771", "771", "771"]);
    assert_eq!(found[0]["committed_at"], "2026-01-02T03:04:05.000006Z");
    assert_eq!((&found[0]["origin"], &found[4]["origin"]), (&Value::Null, &"berlin".into()));
    assert_eq!(found[5]["table"], "notes");
    let beat = lines.next().await;
    assert_eq!(
        (&beat["type"], &beat["end"], &beat["leader"]),
        (&"heartbeat".into(), &"5:3".into(), &1.into())
    );
}

#[tokio::test]
async fn every_position_can_be_read_from_without_gap_or_repeat() {
    let (feed, fake) = feed();
    let mut next = 1;
    // Small ones, one of many chunks, and changes longer than a chunk and than a piece.
    for (xid, lengths) in
        [(1, vec![3; 2]), (2, vec![60; 2000]), (3, vec![20_000, 5, 700_000, 9_000]), (4, vec![1])]
    {
        let rows: Vec<_> =
            lengths.iter().zip(next..).map(|(length, id)| insert(1, id, &"x".repeat(*length))).collect();
        next += rows.len() as u64;
        fake.commit(xid, &rows);
        fake.fail_over();
    }
    let last = next - 1;
    for after in (0..=last).filter(|tick| *tick < 10 || tick % 97 == 0 || *tick + 8 > last) {
        let mut lines = Lines::of(&feed, &after.to_string(), &[]).await;
        let mut seen = Vec::new();
        while seen.last() != Some(&last) && after != last {
            let line = lines.change().await;
            if line["type"] == "change" {
                let tick: u64 =
                    line["position"].as_str().unwrap().split_once(':').unwrap().1.parse().unwrap();
                assert_eq!(line["new"]["id"], tick);
                seen.push(tick);
            }
        }
        assert!(seen.iter().copied().eq(after + 1..=last), "after {after}: {seen:?}");
    }
    // The same by answers of any size.
    for limit in [1, 7, 1000] {
        let (mut after, mut seen) = ("start".to_owned(), Vec::new());
        loop {
            let found = feed.poll(&shop(), ask(&after, limit)).await.unwrap();
            let changes = changes(&found);
            assert!(changes.len() <= limit);
            seen.extend(ids(&changes));
            after = found.position.to_string();
            if !found.more {
                assert!(!found.in_transaction);
                break;
            }
        }
        assert!(seen.iter().copied().eq(1..=last), "limit {limit}");
    }
}

#[tokio::test]
async fn a_filter_shows_some_tables_and_the_position_moves_on() {
    let (feed, fake) = feed();
    fake.commit(1, &[insert(1, 1, "a"), insert(2, 2, "b"), insert(1, 3, "c")]);
    fake.commit(2, &[insert(1, 4, "d")]);
    for name in ["notes", "public.notes"] {
        let mut lines = Lines::of(&feed, "start", &[name]).await;
        let found = lines.changes(3).await;
        assert_eq!(ids(&found), [2]);
        // The transaction's end is the end of all of it, also of what was not shown.
        assert_eq!((&found[2]["type"], &found[2]["position"]), (&"commit".into(), &"5:3".into()));
        let beat = lines.next().await;
        assert_eq!((&beat["type"], &beat["position"]), (&"heartbeat".into(), &"5:4".into()));
    }
    let wanted = Ask { tables: vec!["nothing".to_owned()], ..ask("start", 9) };
    assert_eq!(feed.poll(&shop(), wanted).await.unwrap_err().kind, Kind::UnknownTable);
}

#[tokio::test]
async fn a_poll_waits_for_changes_but_not_longer_than_it_was_told() {
    let (feed, fake) = feed();
    let begin = Instant::now();
    let wait = |ms| Ask { wait: Duration::from_millis(ms), ..ask("now", 10) };
    let found = feed.poll(&shop(), wait(200)).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(200) && changes(&found).is_empty() && !found.more);
    assert_eq!(found.position.to_string(), "5:0");
    let id = shop();
    let (found, _) = tokio::join!(feed.poll(&id, wait(10_000)), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fake.commit(1, &[insert(1, 1, "a")])
    });
    assert_eq!(ids(&changes(&found.unwrap())), [1]);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn readers_of_a_channel_share_one_wait() {
    let (feed, fake) = feed();
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(Lines::of(&feed, "now", &[]).await);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.waits.load(Ordering::Relaxed), 1);
    fake.commit(1, &[insert(1, 1, "a")]);
    for stream in &mut streams {
        assert_eq!(ids(&stream.changes(2).await), [1]);
    }
    drop(streams);
    let begin = Instant::now();
    while fake.waits.load(Ordering::Relaxed) > 0 {
        assert!(begin.elapsed() < DEADLINE, "a wait stays behind");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_makes_nothing_be_read() {
    let (feed, fake) = feed();
    for xid in 1..=100 {
        fake.commit(xid, &(0..1000).map(|id| insert(1, id, &"x".repeat(100))).collect::<Vec<_>>());
    }
    let stream = Lines::of(&feed, "start", &[]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let read = fake.bytes_read.load(Ordering::Relaxed);
    // One piece is written, one waits, one is in the reader's hand.
    assert!(read <= 3 * 256 * 1024 + 64 * 1024, "{read} bytes were read for nobody");
    drop(stream);
}

#[tokio::test]
async fn positions_that_are_not_to_be_had_are_told_apart() {
    let (feed, fake) = feed();
    for xid in 1..=9 {
        fake.commit(xid, &[insert(1, xid, "a")]);
    }
    fake.purge(4);
    for (after, kind) in [
        ("3", Kind::PositionPurged),
        ("5:3", Kind::PositionPurged),
        ("6:5", Kind::PositionUnknownEpoch),
        ("5:10", Kind::PositionInFuture),
    ] {
        let refused = feed.poll(&shop(), ask(after, 9)).await.unwrap_err();
        assert_eq!(refused.kind, kind, "{after}");
        let refused = feed.stream(shop(), after.parse().unwrap(), vec![], Wire::Ndjson).await.unwrap_err();
        assert_eq!(refused.kind, kind, "{after}");
    }
    assert_eq!(ids(&changes(&feed.poll(&shop(), ask("start", 9)).await.unwrap())), [5, 6, 7, 8, 9]);
}

#[tokio::test]
async fn a_standby_that_is_behind_is_waited_for() {
    let fake = Arc::new(Fake::default());
    let source: Arc<dyn Source> = Arc::<Fake>::clone(&fake);
    let feed = Feed::new(source, Arc::new(Cluster { leads: false }));
    fake.commit(1, &[insert(1, 1, "a")]);
    let id = shop();
    let (found, _) = tokio::join!(feed.poll(&id, ask("5:2", 9)), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        fake.commit(2, &[insert(1, 2, "b"), insert(1, 3, "c")])
    });
    assert_eq!(ids(&changes(&found.unwrap())), [3]);
}

#[tokio::test]
async fn a_damaged_record_ends_the_stream_after_what_is_good() {
    for in_the_server in [true, false] {
        let (feed, fake) = feed();
        for xid in 1..=3 {
            fake.commit(xid, &[insert(1, xid, "a")]);
        }
        fake.damage(3, in_the_server);
        let mut lines = Lines::of(&feed, "start", &[]).await;
        let found = lines.changes(7).await;
        assert_eq!(ids(&found), [1, 2]);
        assert_eq!((&found[6]["type"], &found[6]["code"]), (&"error".into(), &"record_broken".into()));
        assert_eq!(found[6]["position"], "5:2");
        // An answer ends before it; the next one says why.
        let found = feed.poll(&shop(), ask("start", 9)).await.unwrap();
        assert_eq!((ids(&changes(&found)), found.position.to_string()), (vec![1, 2], "5:2".to_owned()));
        assert!(found.more);
        assert_eq!(feed.poll(&shop(), ask("5:2", 9)).await.unwrap_err().kind, Kind::RecordBroken);
    }
}

#[tokio::test]
async fn a_stream_survives_a_short_failure_and_ends_with_a_long_one() {
    let (feed, fake) = feed();
    let mut lines = Lines::of(&feed, "now", &[]).await;
    *fake.failure.lock().unwrap() = Some(Kind::Unavailable);
    tokio::time::sleep(Duration::from_millis(300)).await;
    *fake.failure.lock().unwrap() = None;
    fake.commit(1, &[insert(1, 1, "a")]);
    assert_eq!(ids(&lines.changes(3).await), [1]);
    *fake.failure.lock().unwrap() = Some(Kind::Unavailable);
    let last = lines.change().await;
    assert_eq!((&last["type"], &last["code"]), (&"error".into(), &"database_unavailable".into()));
}

#[tokio::test]
async fn a_history_that_is_gone_ends_the_stream() {
    let (feed, fake) = feed();
    fake.commit(1, &[insert(1, 1, "a")]);
    let mut lines = Lines::of(&feed, "start", &[]).await;
    lines.changes(3).await;
    *fake.failure.lock().unwrap() = Some(Kind::UnknownChannel);
    let last = lines.change().await;
    assert_eq!((&last["type"], &last["code"]), (&"error".into(), &"unknown_channel".into()));
}

#[tokio::test]
async fn a_reader_hears_how_far_it_is_though_nothing_is_wanted() {
    let (feed, fake) = feed();
    fake.commit(1, &[insert(1, 1, "a"), insert(2, 2, "b")]);
    let mut lines = Lines::of(&feed, "5:2", &["notes"]).await;
    let writer = tokio::spawn(async move {
        for xid in 2.. {
            fake.commit(xid, &[insert(1, xid, "a")]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    for _ in 0..3 {
        assert_eq!(lines.next().await["type"], "heartbeat");
    }
    writer.abort();
}

/// Not a benchmark, but far below it something is badly wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_fast() {
    let (feed, fake) = feed();
    const COUNT: u64 = 200_000;
    for xid in 0..COUNT / 1000 {
        let ids = xid * 1000 + 1..=(xid + 1) * 1000;
        fake.commit(xid, &ids.map(|id| insert(1, id, "a note of usual length")).collect::<Vec<_>>());
    }
    for (wire, least) in [(Wire::Ndjson, 20_000.0), (Wire::Events, 20_000.0), (Wire::Binary, 100_000.0)] {
        let begin = Instant::now();
        let mut bytes = feed.stream(shop(), After::Start, vec![], wire).await.unwrap();
        let (mut size, mut tail) = (0, Vec::new());
        let mut end = format!("\"5:{COUNT}\"").into_bytes();
        if wire == Wire::Binary {
            // The last row's last tick, and its transaction.
            end = [COUNT.to_le_bytes(), (COUNT / 1000 - 1).to_le_bytes()].concat();
        }
        while !tail.windows(end.len()).any(|window| window == end) {
            let more = tokio::time::timeout(DEADLINE * 3, bytes.recv()).await.expect("nothing came").unwrap();
            size += more.len();
            tail = more[more.len().saturating_sub(16 * 1024)..].to_vec();
        }
        let rate = COUNT as f64 / begin.elapsed().as_secs_f64();
        println!("{wire:?}: {rate:.0} changes/s, {size} bytes");
        assert!(rate > least, "{wire:?}: {rate}");
    }
}
