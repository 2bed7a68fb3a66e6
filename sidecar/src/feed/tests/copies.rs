//! Copies that several clients read.

use super::*;
use crate::feed::Copies;

const TTL: Duration = Duration::from_secs(30);

fn shop() -> ChannelId {
    ChannelId { database: "postgres".to_owned(), channel: "shop".to_owned() }
}

fn name(begun: &serde_json::Value) -> String {
    begun["id"].as_str().unwrap().to_owned()
}

async fn all(mut bytes: mpsc::Receiver<Bytes>) -> String {
    let mut text = Vec::new();
    while let Some(more) = bytes.recv().await {
        text.extend_from_slice(&more);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_table_that_is_whole_says_so() {
    let copies = Copies::new(Arc::new(Fake::default()));
    let begun = copies.begin(shop(), &[], TTL).await.unwrap();
    assert_eq!((&begun["position"], &begun["origin"]), (&"5:0".into(), &"berlin".into()));
    let id = name(&begun);
    let columns = ["note".to_owned()];
    let text = all(copies.read(&shop(), &id, "public.orders", Some(&columns), None).await.unwrap()).await;
    assert_eq!(text, "1\ta\n2\tCOPY (SELECT \"note\" FROM ) TO STDOUT\n\\.\n");
    let some = copies.read(&shop(), &id, "public.orders", Some(&columns), Some("id > 3")).await.unwrap();
    let statement = "COPY (SELECT \"note\" FROM (SELECT \"id\", \"note\" FROM  OFFSET 0) AS t WHERE (checked id > 3)) TO STDOUT";
    assert_eq!(all(some).await, format!("1\ta\n2\t{statement}\n\\.\n"));
    for (table, columns, kind) in
        [("orders", None, Kind::UnknownTable), ("public.orders", Some(["x".to_owned()]), Kind::UnknownColumn)]
    {
        let refused = copies.read(&shop(), &id, table, columns.as_ref().map(|c| c.as_slice()), None).await;
        assert_eq!(refused.unwrap_err().kind, kind, "{table}");
    }
    let other = ChannelId { channel: "other".to_owned(), ..shop() };
    assert_eq!(copies.renew(&other, &id, None).unwrap_err().kind, Kind::CopyGone);
}

#[tokio::test]
async fn a_copy_that_is_left_alone_ends_and_one_that_is_read_does_not() {
    let fake = Arc::new(Fake::default());
    let copies = Copies::new(Arc::<Fake>::clone(&fake));
    let short = Duration::from_millis(400);
    let held = || fake.snapshots.load(Ordering::Relaxed);
    let gone = async || {
        while held() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let begun = copies.begin(shop(), &[], short).await.unwrap();
    assert_eq!(held(), 1);
    tokio::time::timeout(DEADLINE, gone()).await.expect("the copy is still there");
    assert_eq!(copies.renew(&shop(), &name(&begun), None).unwrap_err().kind, Kind::CopyGone);
    // What is read stays, and so does what is renewed.
    fake.copies_hang.store(true, Ordering::Relaxed);
    let begun = copies.begin(shop(), &[], short).await.unwrap();
    let reading = copies.read(&shop(), &name(&begun), "public.orders", None, None).await.unwrap();
    tokio::time::sleep(short * 3).await;
    assert_eq!(copies.renew(&shop(), &name(&begun), Some(TTL)).unwrap()["ttl"], "30s");
    // Whoever ends it ends its readers, and what they have is not whole.
    copies.end(&shop(), &name(&begun)).unwrap();
    assert_eq!(all(reading).await, "");
    tokio::time::timeout(DEADLINE, gone()).await.expect("the copy is still there");
}
