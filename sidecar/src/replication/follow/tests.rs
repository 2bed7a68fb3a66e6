//! Followers against a log in memory.

use super::*;
use crate::feed::Leadership;
use crate::feed::fake::{DOCUMENTS, Fake, insert};
use pgquorum_change::{Encoder, Old};
use serde_json::Value;
use std::pin::Pin;
use std::sync::atomic::Ordering;

const MANY: usize = 1 << 20;

/// A cluster that this node leads.
struct Leader;

impl Leadership for Leader {
    fn leader(&self) -> Option<u64> {
        Some(1)
    }

    fn removed(&self) -> Option<FeedError> {
        None
    }

    fn leads(&self) -> bool {
        true
    }

    fn demand(&self, _: ChannelId) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

fn feed() -> (Feed, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    let source: Arc<dyn Source> = Arc::<Fake>::clone(&fake);
    (Feed::new(source, Arc::new(Leader)), fake)
}

fn update(key: u64, id: u64, note: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut out, Op::Update, 1, Old::Key, true);
    encoder.image(1);
    encoder.text(key.to_string().as_bytes());
    encoder.image(2);
    encoder.text(id.to_string().as_bytes());
    encoder.text(note.as_bytes());
    out
}

fn delete(key: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut out, Op::Delete, 1, Old::Key, false);
    encoder.image(1);
    encoder.text(key.to_string().as_bytes());
    out
}

fn truncate() -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::begin(&mut out, Op::Truncate, 1, Old::None, false);
    out
}

fn ddl(tag: &str) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::ddl(&mut out, 1, tag, "");
    out
}

fn tick(epoch: u64, tick: u64, step: Step) -> Tick {
    Tick::new(Position { epoch, tick }, step).unwrap()
}

async fn ask(feed: &Feed, from: Tick, to: Tick, chunk_bytes: usize) -> Followed {
    ask_except(feed, from, to, chunk_bytes, &[]).await
}

async fn ask_except(feed: &Feed, from: Tick, to: Tick, chunk_bytes: usize, except: &[&str]) -> Followed {
    let except = except.iter().map(|&origin| origin.to_owned()).collect();
    let id = ChannelId { database: "postgres".to_owned(), channel: "_logger".to_owned() };
    let log = Log::read(feed.source(), &id).await.unwrap();
    let wanted = Wanted { from, to, chunk_bytes, dialect: Dialect::Logger, except, in_columns: false };
    follow(feed, &id, &log, wanted).await.unwrap()
}

fn lines(followed: &Followed) -> Vec<Value> {
    let text = std::str::from_utf8(&followed.lines).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Type, transaction and key of each line.
fn summary(followed: &Followed) -> Vec<String> {
    let short = |line: &Value| {
        let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", line["type"], text("tid"), text("key"))
    };
    lines(followed).iter().map(short).collect()
}

/// Transactions of all kinds; 12 changes.
fn fill(fake: &Fake) {
    fake.commit(1, &[ddl("TRACK")]);
    fake.commit(2, &[insert(1, 1, "alone")]);
    fake.commit(3, &[insert(1, 2, "a"), insert(2, 9, "other table"), update(2, 2, "b"), delete(1)]);
    fake.commit(4, &[update(2, 3, "another key")]);
    fake.commit(5, &[insert(1, 4, "c"), truncate(), insert(1, 5, "d")]);
    fake.commit(6, &[delete(5), ddl("ALTER TABLE")]);
}

const FILLED: [&str; 18] = [
    "2000 0 -", "2300 0 1", "2200 3 -", "2300 3 2", "2300 3 9", "2300 3 2", "2302 3 1", "2201 3 -",
    // A document keeps its key.
    "2302 0 2", "2300 0 3", // What concerns a collection stands alone.
    "2200 5 -", "2300 5 4", "2201 5 -", "2004 0 -", "2200 5 -", "2300 5 5", "2201 5 -", "2200 6 -",
];

#[tokio::test]
async fn transactions_are_uninterrupted_and_single_changes_alone() {
    let (feed, fake) = feed();
    fill(&fake);
    let all = ask(&feed, Tick(0), Tick::MAX, MANY).await;
    let found = summary(&all);
    assert_eq!(found[..18], FILLED);
    assert_eq!(found[18..], ["2302 6 5", "2201 6 -", "2003 0 -"]);
    assert!(all.from_present && !all.more);
    assert_eq!(
        (all.last_included, all.last, all.last_scanned),
        (Some(all.last), tick(5, 12, Step::End), all.last)
    );
    let lines = lines(&all);
    let ticks: Vec<u64> = lines.iter().map(|line| line["tick"].as_str().unwrap().parse().unwrap()).collect();
    assert!(ticks.windows(2).all(|two| two[0] < two[1]), "{ticks:?}");
    assert_eq!(lines[2]["collections"][0]["operations"], 3);
    assert_eq!(lines[2]["collections"][1]["name"], "notes");
    assert_eq!(lines[10]["collections"][0]["operations"], 1, "up to what stands alone");
    assert_eq!(lines[3]["data"]["note"], "a");
    assert_eq!((&lines[3]["cname"], &lines[3]["database"]), (&"orders".into(), &"16000".into()));
    // At the end there is nothing.
    let end = ask(&feed, all.last, Tick::MAX, MANY).await;
    assert!(end.lines.is_empty() && end.from_present && !end.more && end.last_included.is_none(), "{end:?}");
}

#[tokio::test]
async fn a_reader_may_go_on_after_every_line() {
    let (feed, fake) = feed();
    fill(&fake);
    let all = ask(&feed, Tick(0), Tick::MAX, MANY).await;
    let whole = lines(&all);
    // By the smallest answers that there are.
    let (mut from, mut found) = (Tick(0), Vec::new());
    loop {
        let some = ask(&feed, from, Tick::MAX, 1).await;
        assert!(some.from_present && !some.lines.is_empty(), "{some:?}");
        found.extend(lines(&some));
        from = some.last_included.unwrap();
        assert_eq!(some.more, from < all.last);
        if !some.more {
            break;
        }
    }
    assert_eq!(found, whole);
    // Between any two lines: what is behind one, up to another one.
    for (at, line) in whole.iter().enumerate() {
        let from = Tick::parse(line["tick"].as_str().unwrap()).unwrap();
        assert_eq!(lines(&ask(&feed, from, Tick::MAX, MANY).await), whole[at + 1..], "after {line}");
        let until = ask(&feed, Tick(0), from, MANY).await;
        assert_eq!((lines(&until).as_slice(), until.more), (&whole[..=at], false), "up to {line}");
    }
}

#[tokio::test]
async fn what_is_not_in_the_log_any_more_is_admitted() {
    let (feed, fake) = feed();
    fill(&fake);
    fake.purge(5);
    let from = |at: Tick| ask(&feed, at, Tick::MAX, MANY);
    for gone in [Tick(0), Tick(7), tick(4, 3, Step::End), tick(5, 3, Step::End), tick(5, 5, Step::Change)] {
        let some = from(gone).await;
        assert!(!some.from_present, "{gone}");
        // The rest of the third transaction, which begins anew for the reader.
        assert_eq!(summary(&some)[..3], ["2200 3 -", "2302 3 1", "2201 3 -"], "{gone}");
    }
    assert!(from(tick(5, 5, Step::End)).await.from_present);
    for future in [tick(5, 100, Step::End), tick(9, 1, Step::End), Tick::MAX] {
        let none = from(future).await;
        assert!(!none.from_present && none.lines.is_empty() && !none.more, "{future}");
    }
    // Another history begins; ticks go on growing.
    let last = from(Tick(0)).await.last;
    fake.fail_over();
    fake.commit(20, &[insert(1, 20, "new")]);
    let new = from(last).await;
    assert!(new.from_present && new.last_included > Some(last), "{new:?}");
    assert_eq!(new.last_included, Some(tick(6, 13, Step::End)));
}

#[tokio::test]
async fn a_reader_does_not_get_back_what_came_from_it() {
    let (feed, fake) = feed();
    fake.commit(1, &[insert(1, 1, "made here")]);
    fake.commit_from(2, Some("arango.7.shop"), &[insert(1, 2, "a"), truncate(), insert(1, 3, "b")]);
    fake.commit_from(3, Some("arango.7.shop"), &[insert(1, 4, "alone")]);
    fake.commit_from(4, Some("arango.7.shopping"), &[insert(1, 5, "of another one")]);
    let many: Vec<Vec<u8>> = (10..1010).map(|id| insert(1, id, "many")).collect();
    fake.commit_from(5, Some("arango.7.shop"), &many);
    fake.commit(6, &[insert(1, 6, "made here")]);
    let ask = async |from: Tick, chunk_bytes: usize| {
        ask_except(&feed, from, Tick::MAX, chunk_bytes, &["arango.9.shop", "arango.7.shop"]).await
    };
    let all = ask(Tick(0), MANY).await;
    let found = summary(&all);
    let begun = ["2300 0 1", "2200 2 -", "2201 2 -", "2200 3 -", "2201 3 -", "2300 0 5", "2200 5 -"];
    assert_eq!(found[..7], begun);
    // A long one comes in parts, so that there is always a place to go on from.
    let parts = found[6..].iter().filter(|line| *line == "2200 5 -").count();
    assert_eq!((parts, found.len()), (1000 / 256 + 1, 6 + 2 * parts + 1), "{found:?}");
    assert_eq!(lines(&all)[1]["collections"], serde_json::json!([]));
    let whole = lines(&all);
    for (at, line) in whole.iter().enumerate() {
        let from = Tick::parse(line["tick"].as_str().unwrap()).unwrap();
        assert_eq!(lines(&ask(from, MANY).await), whole[at + 1..], "after {line}");
        assert_eq!(lines(&ask(from, 1).await).first(), whole.get(at + 1), "after {line}");
    }
    assert_eq!(all.last_included, Some(all.last));
}

#[tokio::test]
async fn whole_documents_are_their_members_or_columns_like_all_rows() {
    let (feed, fake) = feed();
    fake.commit(1, &[insert(DOCUMENTS, 7, r#"{"a": 1e400}"#)]);
    let id = ChannelId { database: "postgres".to_owned(), channel: "_logger".to_owned() };
    let log = Log::read(feed.source(), &id).await.unwrap();
    let forms = [(false, r#","a":1e400}}"#), (true, r#","%5Fkey":"7","data":{"a": 1e400}}}"#)];
    for (in_columns, expected) in forms {
        let wanted = Wanted {
            from: Tick(0),
            to: Tick::MAX,
            chunk_bytes: MANY,
            dialect: Dialect::Logger,
            except: Vec::new(),
            in_columns,
        };
        let followed = follow(&feed, &id, &log, wanted).await.unwrap();
        let line = std::str::from_utf8(&followed.lines).unwrap().trim_end();
        assert!(line.contains(r#""cname":"people""#) && line.ends_with(expected), "{line}");
    }
}

#[tokio::test]
async fn a_large_transaction_comes_in_pieces_and_without_counts() {
    let (feed, fake) = feed();
    let note = "x".repeat(2000);
    fake.commit(1, &(1..=1000).map(|id| insert(1, id, &note)).collect::<Vec<_>>());
    let (mut from, mut seen) = (Tick(0), 0);
    loop {
        let some = ask(&feed, from, Tick::MAX, 100_000).await;
        assert!(some.lines.len() < 110_000, "an answer is bounded");
        let lines = lines(&some);
        if from == Tick(0) {
            assert!(lines[0]["type"] == 2200 && lines[0].get("collections").is_none(), "{}", lines[0]);
        }
        seen += lines.iter().filter(|line| line["type"] == 2300).count();
        from = some.last_included.unwrap();
        if !some.more {
            assert_eq!(lines.last().unwrap()["type"], 2201);
            break;
        }
    }
    assert_eq!(seen, 1000);
    // One row is a line, however long.
    let row = "y".repeat(1 << 20);
    fake.commit(2, &[insert(1, 1, &row)]);
    let some = ask(&feed, from, Tick::MAX, 1).await;
    assert_eq!(summary(&some), ["2300 0 1"]);
    assert!(some.lines.len() > row.len() && !some.more);
}

#[tokio::test]
async fn what_a_transaction_does_is_told_wherever_the_log_is_cut_into_pieces() {
    let (feed, fake) = feed();
    let note = "z".repeat(2000);
    for xid in 1..=30 {
        fake.commit(xid, &(1..=20).map(|id| insert(1, id, &note)).collect::<Vec<_>>());
    }
    let all = ask(&feed, Tick(0), Tick::MAX, 1 << 22).await;
    let begins: Vec<Value> = lines(&all).into_iter().filter(|line| line["type"] == 2200).collect();
    assert_eq!(begins.len(), 30);
    assert!(begins.iter().all(|begin| begin["collections"][0]["operations"] == 20), "{begins:?}");
}

#[tokio::test]
async fn values_that_are_nowhere_are_no_silent_loss() {
    let (feed, fake) = feed();
    fake.commit(1, &[insert(1, 1, "a")]);
    let mut partial = Vec::new();
    let mut encoder = Encoder::begin(&mut partial, Op::Update, 1, Old::None, true);
    encoder.image(2);
    encoder.text(b"1");
    encoder.unchanged();
    fake.commit(2, &[partial]);
    fake.commit(3, &[insert(1, 3, "c")]);
    // What comes before it is given, and that there is more.
    let before = ask(&feed, Tick(0), Tick::MAX, MANY).await;
    assert_eq!((summary(&before).len(), before.more), (1, true));
    let id = ChannelId { database: "postgres".to_owned(), channel: "_logger".to_owned() };
    let log = Log::read(feed.source(), &id).await.unwrap();
    let from = before.last_included.unwrap();
    let wanted = Wanted {
        from,
        to: Tick::MAX,
        chunk_bytes: MANY,
        dialect: Dialect::Wal,
        except: Vec::new(),
        in_columns: false,
    };
    let failure = follow(&feed, &id, &log, wanted).await.unwrap_err();
    assert!(failure.code == 500 && failure.message.contains("old_image"), "{failure:?}");
    // Whoever knows it goes on behind it.
    let behind = ask(&feed, tick(5, 2, Step::End), Tick::MAX, MANY).await;
    assert_eq!(summary(&behind), ["2300 0 3"]);
}

#[tokio::test]
async fn a_logger_that_stops_and_goes_on_says_so() {
    let (feed, fake) = feed();
    fake.commit(1, &[insert(1, 1, "a"), insert(1, 2, "b"), ddl("UNTRACK"), ddl("STOP")]);
    fake.commit(2, &[ddl("START"), ddl("TRACK")]);
    let all = ask(&feed, Tick(0), Tick::MAX, MANY).await;
    let found =
        ["2200 1 -", "2300 1 1", "2300 1 2", "2201 1 -", "2001 0 -", "1000 0 -", "1001 0 -", "2000 0 -"];
    assert_eq!(summary(&all), found);
    let whole = lines(&all);
    let stopped = serde_json::json!({"tick": tick(5, 4, Step::End).to_string(), "type": 1000, "tid": "0", "database": "16000",
        "lastTick": whole[4]["tick"]});
    let started = serde_json::json!({"tick": tick(5, 5, Step::End).to_string(), "type": 1001, "tid": "0", "database": "16000"});
    assert_eq!((&whole[5], &whole[6]), (&stopped, &started));
    for (at, line) in whole.iter().enumerate() {
        let from = Tick::parse(line["tick"].as_str().unwrap()).unwrap();
        assert_eq!(lines(&ask(&feed, from, Tick::MAX, MANY).await), whole[at + 1..], "after {line}");
        assert_eq!(lines(&ask(&feed, Tick(0), from, MANY).await), whole[..=at], "up to {line}");
    }
}

#[tokio::test]
async fn indexes_are_told_of_in_their_place() {
    let (feed, fake) = feed();
    let about = |tag: &str| {
        let mut out = Vec::new();
        let text = r#"{"id": 1000, "fields": ["note"], "method": "btree", "unique": true}"#;
        Encoder::ddl(&mut out, 1, tag, text);
        out
    };
    fake.commit(1, &[ddl("TRACK"), about("INDEX")]);
    fake.commit(2, &[insert(1, 1, "a"), insert(1, 2, "b"), about("UNINDEX"), insert(1, 3, "c")]);
    let all = ask(&feed, Tick(0), Tick::MAX, MANY).await;
    let found = [
        "2000 0 -", "2100 0 -", "2200 2 -", "2300 2 1", "2300 2 2", "2201 2 -", "2101 0 -", "2200 2 -",
        "2300 2 3", "2201 2 -",
    ];
    assert_eq!(summary(&all), found);
    let whole = lines(&all);
    assert_eq!(
        whole[1]["index"],
        serde_json::json!({"id": "1000", "type": "persistent", "unique": true, "sparse": true, "fields": ["note"]})
    );
    assert_eq!((&whole[1]["cname"], &whole[6]["cid"]), (&"orders".into(), &whole[1]["cid"]));
    assert_eq!(whole[6]["id"], "1000");
    for (at, line) in whole.iter().enumerate() {
        let from = Tick::parse(line["tick"].as_str().unwrap()).unwrap();
        assert_eq!(lines(&ask(&feed, from, Tick::MAX, MANY).await), whole[at + 1..], "after {line}");
        assert_eq!(lines(&ask(&feed, Tick(0), from, MANY).await), whole[..=at], "up to {line}");
    }
}

/// The entry of the old name is for those who follow by names.
#[tokio::test]
async fn another_name_is_said_once() {
    let (feed, fake) = feed();
    fake.commit(1, &[insert(1, 1, "a"), insert(1, 2, "b"), ddl("RENAME"), ddl("ALTER TABLE")]);
    let all = ask(&feed, Tick(0), Tick::MAX, MANY).await;
    assert_eq!(summary(&all), ["2200 1 -", "2300 1 1", "2300 1 2", "2201 1 -", "2003 0 -"]);
    assert!(all.from_present && !all.more);
}

#[tokio::test]
async fn without_a_log_there_is_nothing() {
    let (feed, fake) = feed();
    fake.unknown_logger.store(true, Ordering::Relaxed);
    let none = ask(&feed, Tick(0), Tick::MAX, MANY).await;
    assert!(none.lines.is_empty() && none.from_present && none.last == Tick(0));
    assert!(!ask(&feed, Tick(1), Tick::MAX, MANY).await.from_present);
}
