//! Entries about the log as a whole, or about a collection.

use super::Writer;
use crate::feed::Position;
use crate::replication::collections::Index;
use crate::replication::error::{Failure, Result};
use crate::replication::lines;
use crate::replication::tick::Tick;
use pgquorum_change::{Change, Op};
use serde_json::Value;

impl Writer {
    pub(super) fn logger(&mut self, stopped: bool, at: Position) -> Result<()> {
        let (before, tick) = (Position { tick: at.tick.saturating_sub(1), ..at }, Tick::end(at)?);
        let last = if stopped { Some(Tick::end(before)?) } else { None };
        self.out.put(tick, |bytes| self.lines.logger(bytes, tick, last));
        Ok(())
    }

    pub(super) async fn about(&mut self, change: &Change<'_>, at: Position) -> Result<()> {
        let (version, tag) = (change.schema_version, change.ddl.map_or(&b""[..], |ddl| ddl.tag));
        let tick = Tick::end(at)?;
        if !self.out.wants(tick) {
            self.out.past |= tick > self.out.wanted.to;
            return Ok(());
        }
        match tag {
            // What is said of the old name; the entry of the new one follows.
            b"RENAME" => return Ok(()),
            b"INDEX" | b"UNINDEX" => return self.index(change, tick, tag == b"INDEX").await,
            _ => {}
        }
        let collection = self.collections.learn(version).await?;
        let (cid, name) = (collection.cid, collection.name.clone());
        let kind = match tag {
            _ if change.op == Op::Truncate => lines::TRUNCATED,
            b"TRACK" => lines::CREATED,
            b"UNTRACK" => lines::DROPPED,
            // What goes may be a partition only.
            tag if tag.starts_with(b"DROP") => match self.collections.is_tracked(cid).await? {
                true => lines::CHANGED,
                false => lines::DROPPED,
            },
            _ => match self.collections.name_before(version).await? {
                Some(before) if before != name => lines::RENAMED,
                _ => lines::CHANGED,
            },
        };
        if let Some(collection) = self.collections.get(version) {
            self.out.put(tick, |bytes| self.lines.about(bytes, tick, kind, collection));
        }
        Ok(())
    }

    async fn index(&mut self, change: &Change<'_>, tick: Tick, got: bool) -> Result<()> {
        let collection = self.collections.learn(change.schema_version).await?;
        let text = change.ddl.map_or(&b""[..], |ddl| ddl.sql);
        let described: Value = serde_json::from_slice(text).map_err(|error| {
            let name = &collection.name;
            Failure::internal(format!(
                "the entry at tick {tick} about an index of collection {name} does not read as the extension writes it: {error}"
            ))
        })?;
        if let Some(index) = Index::parse(&described, collection.edge) {
            self.out.put(tick, |bytes| self.lines.index(bytes, tick, collection, &index, got));
        }
        Ok(())
    }
}
