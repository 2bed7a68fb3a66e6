//! Batches over a database in memory, whose copies have two rows: `1 a`, and one with what was asked for.

use super::*;
use crate::feed::fake::Fake;

const ALL: Asked = Asked { from: None, to: u64::MAX, chunk_bytes: 1, ticks: true, in_columns: false };

fn id(database: &str) -> ChannelId {
    ChannelId { database: database.to_owned(), channel: "_logger".to_owned() }
}

fn batches() -> (Arc<Fake>, Arc<Batches>) {
    let fake = Arc::new(Fake::default());
    (Arc::clone(&fake), Batches::new(fake))
}

fn keys(dumped: &Dumped) -> Vec<String> {
    let text = String::from_utf8(dumped.lines.clone()).unwrap();
    let key = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["key"].as_str().map(str::to_owned)
    };
    text.lines().filter_map(key).collect()
}

#[tokio::test]
async fn a_dump_goes_on_where_it_was_or_where_its_reader_wants() {
    let (_, batches) = batches();
    let (number, batch) = batches.begin(id("postgres"), TTL).await.unwrap();
    assert!(batch.has("orders") && !batch.has("public.orders"));
    let name = number.to_string();
    let dump = async |asked: Asked| batches.dump(&id("postgres"), &name, "orders", asked).await;
    let first = dump(ALL).await.unwrap();
    assert_eq!((keys(&first), first.last_included, first.more), (vec!["1".to_owned()], Some(1), true));
    let line = String::from_utf8(first.lines.clone()).unwrap();
    let tick = batch.tick();
    assert!(line.starts_with(&format!(
        r#"{{"tick":"1","type":2300,"key":"1","rev":"{tick}","data":{{"_id":"orders/1""#
    )));
    // The second row holds the statement, which is in the order of the key.
    let second = dump(ALL).await.unwrap();
    assert_eq!((keys(&second), second.last_included, second.more), (vec!["2".to_owned()], Some(2), false));
    assert!(String::from_utf8(second.lines.clone()).unwrap().contains(r#"ORDER BY \"id\""#), "{second:?}");
    assert_eq!(dump(ALL).await.unwrap(), Dumped::default());
    // From the beginning, and from the middle.
    let again = dump(Asked { from: Some(0), chunk_bytes: 1 << 20, ..ALL }).await.unwrap();
    assert_eq!((keys(&again).len(), again.last_included, again.more), (2, Some(2), false));
    assert_eq!(dump(Asked { from: Some(1), ..ALL }).await.unwrap(), second);
    assert_eq!(dump(Asked { from: Some(0), to: 1, ..ALL }).await.unwrap().last_included, Some(1));
    assert_eq!(dump(Asked { from: Some(7), ..ALL }).await.unwrap_err().code, 400);
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let (fake, batches) = batches();
    let (number, _) = batches.begin(id("postgres"), TTL).await.unwrap();
    let name = number.to_string();
    let failed = async |database: &str, name: &str, collection: &str| {
        batches.dump(&id(database), name, collection, ALL).await.unwrap_err().number
    };
    assert_eq!(failed("postgres", &name, "nothing").await, 1203);
    assert_eq!(failed("postgres", "17", "orders").await, 1600);
    assert_eq!(failed("postgres", "x", "orders").await, 1600);
    assert_eq!(failed("other", &name, "orders").await, 1600, "a batch belongs to its database");
    batches.renew(&id("postgres"), &name, TTL).unwrap();
    batches.end(&id("postgres"), &name).unwrap();
    assert_eq!(batches.renew(&id("postgres"), &name, TTL).unwrap_err().number, 1600);
    assert_eq!(batches.end(&id("postgres"), &name).unwrap_err().number, 1600);
    assert_eq!(failed("postgres", &name, "orders").await, 1600);
    assert_eq!(batches.begin(id("other"), TTL).await.err().unwrap().number, 1228);
    // Its snapshot goes with it.
    while fake.snapshots.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_batch_that_nobody_asks_for_ends() {
    let (fake, batches) = batches();
    let (number, batch) = batches.begin(id("postgres"), Duration::from_millis(50)).await.unwrap();
    drop(batch);
    let ended = async {
        while fake.snapshots.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("it is still held");
    assert_eq!(batches.find(&id("postgres"), &number.to_string()).err().unwrap().number, 1600);
}
