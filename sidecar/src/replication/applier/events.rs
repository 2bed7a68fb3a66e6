//! Lines of a log and of dumps, as every provider of the format writes them.

use super::fault::{Fault, Result};
use super::remote::number_of;
use super::reply::Reply;
use crate::replication::lines::{
    BEGIN, CHANGED, COMMIT, CREATED, DROPPED, EDGE, LOGGER_STARTED, LOGGER_STOPPED, REMOVAL, RENAMED,
    TRUNCATED, UPSERT,
};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::fmt;

const ABORT: u16 = 2202;

/// How a line names a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collection {
    Name(String),
    /// Its number, which an inventory has with the name.
    Id(String),
}

/// What happens to a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// It is made, or becomes this. Its attributes, sorted.
    Upsert(Vec<String>),
    Remove,
}

/// A change of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub tick: u64,
    pub collection: Collection,
    pub key: String,
    pub op: Op,
    /// As it came: the document in it is read by the database.
    pub line: String,
}

/// What becomes of a collection as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Created,
    Dropped,
    Renamed,
    Changed,
    Truncated,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Begin(u64),
    Commit(u64),
    Abort(u64),
    /// In a transaction; 0: it is one.
    Change(u64, Change),
    Fate(Fate, Collection),
    /// The logger was stopped or started: what was incomplete then stays so.
    Break,
    /// Nothing for us: indexes, views, databases.
    Other,
}

/// What a line holds beside the document, of which the names of the attributes are enough here: it may hold numbers that only
/// the database can read.
#[derive(Deserialize)]
#[serde(default)]
struct Line {
    tick: Value,
    #[serde(rename = "type")]
    kind: Value,
    tid: Value,
    cid: Value,
    cuid: Value,
    cname: Value,
    key: Value,
    collection: Value,
    data: Names,
}

impl Default for Line {
    fn default() -> Line {
        let [tick, kind, tid, cid, cuid, cname, key, collection] = [const { Value::Null }; 8];
        Line { tick, kind, tid, cid, cuid, cname, key, collection, data: Names(None) }
    }
}

/// The names in an object; `None`: it is none.
struct Names(Option<Vec<String>>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Names, D::Error> {
        deserializer.deserialize_any(NamesVisitor)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = Names;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Names, A::Error> {
        let mut names = Vec::new();
        while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
            names.push(name);
        }
        Ok(Names(Some(names)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Names, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Names(None))
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<Names, E> {
        Ok(Names(None))
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Names, E> {
        Ok(Names(None))
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Names, E> {
        Ok(Names(None))
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Names, E> {
        Ok(Names(None))
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Names, E> {
        Ok(Names(None))
    }

    fn visit_unit<E>(self) -> std::result::Result<Names, E> {
        Ok(Names(None))
    }
}

/// One attribute of what stands in `data`, where that is the only place for it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Inside {
    data: Known,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Known {
    _key: Option<String>,
    name: Option<String>,
}

fn inside(line: &str) -> Known {
    serde_json::from_str::<Inside>(line).map(|inside| inside.data).unwrap_or_default()
}

/// Reads a line of the log; with its tick.
///
/// # Errors
/// It is none.
pub fn event(line: &str) -> Result<(u64, Event)> {
    let read = read(line)?;
    let tick = number_of(&read.tick).ok_or_else(|| Fault::invalid("a line without a tick"))?;
    let kind = kind_of(&read)?;
    let tid = match &read.tid {
        Value::Null => 0,
        tid => number_of(tid).ok_or_else(|| Fault::invalid("a tid that is no number"))?,
    };
    let event = match kind {
        BEGIN => Event::Begin(tid),
        COMMIT => Event::Commit(tid),
        ABORT => Event::Abort(tid),
        UPSERT | EDGE | REMOVAL => Event::Change(tid, change(read, kind, tick, None, line)?),
        CREATED => Event::Fate(Fate::Created, named(&read, line)?),
        DROPPED => Event::Fate(Fate::Dropped, named(&read, line)?),
        RENAMED => Event::Fate(Fate::Renamed, named(&read, line)?),
        CHANGED => Event::Fate(Fate::Changed, named(&read, line)?),
        TRUNCATED => Event::Fate(Fate::Truncated, named(&read, line)?),
        LOGGER_STOPPED | LOGGER_STARTED => Event::Break,
        _ => Event::Other,
    };
    Ok((tick, event))
}

/// The events of an answer to a question about the log behind a tick, in the order of their ticks.
///
/// # Errors
/// They are not in that order, or one is none.
pub fn events(reply: &Reply, from: u64) -> Result<Vec<(u64, Event)>> {
    let mut last = from;
    let read = |line: &str| {
        let (tick, event) = event(line)?;
        if tick <= last {
            return Err(Fault::invalid(format!("tick {tick} comes after tick {last}")));
        }
        last = tick;
        Ok((tick, event))
    };
    let events = reply.lines()?.map(read).collect::<Result<Vec<_>>>()?;
    match (events.last(), reply.tick("lastincluded")) {
        (Some((tick, _)), Some(said)) if *tick != said => {
            Err(Fault::invalid(format!("the last line has tick {tick}, and -lastincluded says {said}")))
        }
        _ => Ok(events),
    }
}

/// Reads a line of the dump of a collection. `None`: nothing for us.
///
/// # Errors
/// It is none.
pub fn dumped(line: &str, collection: &str) -> Result<Option<Change>> {
    let read = read(line)?;
    match kind_of(&read)? {
        kind @ (UPSERT | EDGE | REMOVAL) => {
            let tick = number_of(&read.tick).unwrap_or(0);
            change(read, kind, tick, Some(collection), line).map(Some)
        }
        _ => Ok(None),
    }
}

fn read(line: &str) -> Result<Line> {
    // What it says is not shown: it may be what a row holds.
    let object = line.trim_start().starts_with('{');
    let read = serde_json::from_str(line).ok().filter(|_| object);
    read.ok_or_else(|| Fault::invalid("a line that is no JSON object"))
}

fn kind_of(line: &Line) -> Result<u16> {
    let kind = line.kind.as_u64().and_then(|kind| u16::try_from(kind).ok());
    kind.ok_or_else(|| Fault::invalid("a line without a type"))
}

fn change(read: Line, kind: u16, tick: u64, of: Option<&str>, line: &str) -> Result<Change> {
    let collection = match of {
        Some(name) => Collection::Name(name.to_owned()),
        None => collection(&read)?,
    };
    let key = read.key.as_str().map(str::to_owned).or_else(|| inside(line)._key);
    let key = key.ok_or_else(|| Fault::invalid("a document without a key"))?;
    let op = if kind == REMOVAL {
        Op::Remove
    } else {
        let names = read.data.0.ok_or_else(|| Fault::invalid("a document without its data"))?;
        let mut attributes = names;
        attributes.sort_unstable();
        attributes.dedup();
        Op::Upsert(attributes)
    };
    Ok(Change { tick, collection, key, op, line: line.to_owned() })
}

/// The collection of a document.
fn collection(read: &Line) -> Result<Collection> {
    if let Some(name) = read.cname.as_str() {
        return Ok(Collection::Name(name.to_owned()));
    }
    let id = [&read.cuid, &read.cid].into_iter().find(|id| !id.is_null());
    let id = id.and_then(|id| id.as_str().map(str::to_owned).or_else(|| Some(id.as_u64()?.to_string())));
    id.map(Collection::Id).ok_or_else(|| Fault::invalid("an event of no collection"))
}

/// The collection of which something becomes, by the name that it has then.
fn named(read: &Line, line: &str) -> Result<Collection> {
    let name = read.cname.as_str().or(read.collection["name"].as_str());
    match name.map(str::to_owned).or_else(|| inside(line).name) {
        Some(name) => Ok(Collection::Name(name)),
        None => collection(read),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Collection {
        Collection::Name(text.to_owned())
    }

    #[test]
    fn lines_of_all_providers_are_read() {
        let ours = r#"{"tick":"87960930222094","type":2300,"tid":"771","database":"5","cid":"16385","key":"7","rev":"8","cname":"orders","data":{"_id":"orders/7","_key":"7","_rev":"8","id":7,"paid":true}}"#;
        let Ok((87_960_930_222_094, Event::Change(771, change))) = event(ours) else { panic!() };
        assert_eq!((change.key.as_str(), &change.collection), ("7", &name("orders")));
        let attributes = ["_id", "_key", "_rev", "id", "paid"].map(str::to_owned).to_vec();
        assert_eq!(change.op, Op::Upsert(attributes));
        // The first version of the format: no tid, no name.
        let first = r#"{"tick":"11","type":2302,"cid":"5","key":"1","rev":"11"}"#;
        let Ok((11, Event::Change(0, change))) = event(first) else { panic!() };
        assert_eq!((change.collection, change.op), (Collection::Id("5".to_owned()), Op::Remove));
        // Its successor: the key is in the data alone.
        let tail =
            r#"{"tick":"12","type":2302,"db":"d","cuid":"h1/5","cname":"t","tid":"0","data":{"_key":"1"}}"#;
        let Ok((12, Event::Change(0, change))) = event(tail) else { panic!() };
        assert_eq!((change.collection, change.key.as_str()), (name("t"), "1"));
        // The revision that an update replaced is that server's own: no row here has one.
        let update = r#"{"tick":"13","type":2301,"tid":"0","cid":"5","key":"1","rev":"13","oldRev":"12","data":{"_key":"1","_from":"u/1"}}"#;
        let Ok((13, Event::Change(0, change))) = event(update) else { panic!() };
        assert_eq!(change.op, Op::Upsert(["_from", "_key"].map(str::to_owned).to_vec()));
        for (line, expected) in [
            (r#"{"tick":"1","type":2200,"tid":"7","collections":[]}"#, Event::Begin(7)),
            (r#"{"tick":"1","type":2201,"tid":"7"}"#, Event::Commit(7)),
            (r#"{"tick":"1","type":2202,"tid":"7"}"#, Event::Abort(7)),
            (r#"{"tick":"1","type":1000,"lastTick":"90"}"#, Event::Break),
            (r#"{"tick":1,"type":1001}"#, Event::Break),
            (r#"{"tick":"1","type":1100,"db":"d","data":{"name":"d","id":"7"}}"#, Event::Other),
            (r#"{"tick":"1","type":1101,"db":"d"}"#, Event::Other),
            (r#"{"tick":"1","type":2100,"cid":"5","index":{}}"#, Event::Other),
            (r#"{"tick":"1","type":2101,"cid":"5","id":"9"}"#, Event::Other),
            (
                r#"{"tick":"1","type":2100,"tid":"0","database":"5","cid":"16385","cname":"t","index":{"id":"1000","type":"persistent","unique":true,"sparse":true,"fields":["n"]}}"#,
                Event::Other,
            ),
            (
                r#"{"tick":"1","type":2101,"tid":"0","database":"5","cid":"16385","cname":"t","id":"1000"}"#,
                Event::Other,
            ),
            (
                r#"{"tick":"1","type":2100,"db":"d","cuid":"h1/5","data":{"fields":["n"],"id":"9","sparse":false,"type":"persistent"}}"#,
                Event::Other,
            ),
            (r#"{"tick":"1","type":2101,"db":"d","cuid":"h1/5","data":{"id":"9"}}"#, Event::Other),
            (r#"{"tick":"1","type":2110,"cuid":"h1/6","data":{"name":"v"}}"#, Event::Other),
            (r#"{"tick":"1","type":2004,"cid":"5","cname":"t"}"#, Event::Fate(Fate::Truncated, name("t"))),
            (
                r#"{"tick":"1","type":2002,"cid":"5","collection":{"name":"u"}}"#,
                Event::Fate(Fate::Renamed, name("u")),
            ),
            (
                r#"{"tick":"1","type":2000,"cuid":"x","data":{"name":"v"}}"#,
                Event::Fate(Fate::Created, name("v")),
            ),
        ] {
            assert_eq!(event(line), Ok((1, expected)), "{line}");
        }
    }

    #[test]
    fn what_only_the_database_can_read_is_left_to_it() {
        let deep = format!("{}1e999{}", "[".repeat(300), "]".repeat(300));
        let line = format!(
            r#"{{"tick":"1","type":2300,"cname":"t","key":"1","data":{{"_key":"1","huge":1e999,"deep":{deep}}}}}"#
        );
        let Ok((1, Event::Change(0, change))) = event(&line) else { panic!() };
        assert_eq!(
            (change.op, change.line),
            (Op::Upsert(["_key", "deep", "huge"].map(str::to_owned).to_vec()), line)
        );
    }

    #[test]
    fn what_is_no_line_is_refused_and_not_shown() {
        for line in [
            "",
            "secret",
            "[1]",
            r#"{"type":2300}"#,
            r#"{"tick":"x","type":2201}"#,
            r#"{"tick":"1","type":2300,"key":"1","data":{"secret":1}}"#,
            r#"{"tick":"1","type":2300,"cname":"t","data":{"secret":1}}"#,
            r#"{"tick":"1","type":2300,"cname":"t","key":"1","data":"secret"}"#,
            r#"{"tick":"1","type":70000}"#,
            r#"{"tick":"1","type":2201,"tid":{}}"#,
        ] {
            let fault = event(line).unwrap_err();
            assert!(fault.number == 1401 && !fault.message.contains("secret"), "{line}: {fault}");
        }
    }

    #[test]
    fn dumps_have_documents_without_names() {
        let line = r#"{"tick":"3","type":2300,"key":"1","data":{"_key":"1","a":1}}"#;
        let change = dumped(line, "t").unwrap().unwrap();
        assert_eq!((change.tick, change.collection), (3, name("t")));
        assert!(dumped(r#"{"type":2300,"data":{"_key":"1"}}"#, "t").unwrap().is_some());
        assert_eq!(dumped(r#"{"type":2100}"#, "t"), Ok(None));
    }
}
