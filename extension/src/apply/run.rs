//! From frames to changes of tables.

use pgquorum_change::{Change, Event, Op, Position, Stop, Transaction};

use super::error::ApplyError;
use super::judged::Present;
use super::state::{Halt, Session, Way};
use super::tables::{self, OnDdl};
use super::{careful, judged, newest, quick};
use crate::capture;
use crate::pg::apply_session;
use crate::pg::apply_target;
use crate::pg::owner_rights;
use crate::pg::savepoint::attempt;
use crate::versions::Reader;

/// What is said of a table that is no longer captured at the source, and of one that is captured from now on only.
const UNTRACKED: &str = "The source does not track this table in its channel any more: what was changed up to then was applied, what \
     is changed since does not come. When the source tracks it again it is copied anew, or, if the subscription copies nothing, waits for \
     quorum.resume_table.";
const TRACKED_ANEW: &str = "The source tracks this table anew: it was dropped and made again, or another one has its name. What it held \
     before that is not in the log; it is copied.";
/// Of one that is no more, or has another name.
const DROPPED: &str = "The table was dropped at the source. What was changed up to then was applied, and the table here stays as it is. \
     When the source tracks one of this name again it is copied anew, or, if the subscription copies nothing, waits for \
     quorum.resume_table.";
const DROPPED_HERE: &str = "The table was dropped at the source, and the statement was run here, too, as the subscription's ddl says.";
const RENAMED: &str = "The table has another name or schema at the source now. What was changed up to then was applied, and the table here \
     stays as it is. Under the new name it is another table of the subscription, if that one is wanted: rename the table here, too, and \
     have it copied under that name (quorum.resume_table with copy => true).";
/// Of one whose rows are others, without a change of any.
const ROWS_CAME: &str = "At the source a partition was attached that may hold rows: they are not in its log one by one. Bring them here \
     yourself and call quorum.resume_table, or have the table copied anew (copy => true).";
const ROWS_WENT: &str = "At the source a partition was detached or dropped, and its rows with it: that is not in its log one by one. Delete \
     them here, or keep them, and call quorum.resume_table, or have the table copied anew (copy => true).";

/// Goes through the frames of a batch.
pub fn frames(session: &mut Session, batch: &[u8], way: Way) -> Result<(), Halt> {
    let Some(mut progress) = session.progress.take() else { return Ok(()) };
    let result = progress.feed(batch, |event| match event {
        Event::Begin(transaction) => begin(session, transaction),
        Event::Change { position, transaction, change, bytes } => {
            let result = one(session, position, transaction, &change, bytes, way);
            session.seen = position;
            result
        }
        Event::End(position, transaction) => {
            empty_tables(session, way)?;
            newest::bury(session)?;
            session.complete = Some((position, transaction.commit_us));
            session.counts.transactions += 1;
            Ok(())
        }
    });
    let at = progress.position();
    session.progress = Some(progress);
    match result {
        // The rest of the transaction may be long in coming, and what follows may need the tables to be empty.
        Ok(()) => {
            empty_tables(session, way)?;
            session.insert_gathered();
            Ok(())
        }
        Err(Stop::Misfit(misfit)) => Err(ApplyError::Misfit(misfit, at).into()),
        Err(Stop::Taker(halt)) => Err(halt),
    }
}

fn begin(session: &mut Session, transaction: &Transaction) -> Result<(), Halt> {
    let from = &session.subscription;
    let dropped = match &transaction.origin {
        // It was made here.
        Some(origin) if *origin == from.origin => true,
        Some(_) => !from.forward,
        None => false,
    };
    if dropped || !from.captures {
        session.present = Present { dropped, ..Present::default() };
        return Ok(());
    }
    if capture::holds_changes() {
        return Err(ApplyError::OneByOne.into());
    }
    // The source has said its name before there was a position. Whatever happens, it is not taken for a change made here.
    let origin = transaction.origin.as_deref().or(from.remote_origin.as_deref()).unwrap_or("unknown");
    let commit_us = transaction.origin_commit_us.unwrap_or(transaction.commit_us);
    apply_session::set_origin(origin, commit_us);
    session.present = Present { dropped, origin: origin.into(), commit_us };
    Ok(())
}

#[inline]
fn one(
    session: &mut Session,
    position: Position,
    transaction: &Transaction,
    change: &Change,
    bytes: &[u8],
    way: Way,
) -> Result<(), Halt> {
    if session.present.dropped {
        return Ok(());
    }
    let version = session.version(change.schema_version)?;
    let Some(table) = session.versions[version].table else { return Ok(()) };
    if !session.counts_here(table, position.tick) {
        return Ok(());
    }
    session.trying = Some(position.tick);
    let way = if session.suspects.contains(&position.tick) { Way::Careful } else { way };
    match change.op {
        Op::Ddl => {
            empty_tables(session, way)?;
            session.insert_gathered();
            if change.ddl.is_some_and(|entry| entry.tag == b"FLUSH CACHES") {
                // Whoever is caught up was told when the others were.
                if session.only.is_none() {
                    tables::caches_flushed(session.subscription.id, transaction.xid);
                    session.wrote = true;
                }
                return Ok(());
            }
            // What it means that the channel rests, or goes on, is said of each table. Indexes are this side's own affair.
            if change.ddl.is_some_and(|entry| matches!(entry.tag, b"STOP" | b"START" | b"INDEX" | b"UNINDEX"))
            {
                return Ok(());
            }
            ddl(session, table, version, position, change, way)
        }
        Op::Truncate => {
            if session.emptied.iter().all(|(known, _)| *known != version) {
                session.emptied.push((version, session.seen));
            }
            Ok(())
        }
        Op::Insert | Op::Update | Op::Delete => {
            if !session.emptied.is_empty() {
                empty_tables(session, way)?;
            }
            if let Err(fault) = session.open(version) {
                let after = session.seen;
                session.stop(table, after, fault.code, &fault.message);
                return Ok(());
            }
            if way == Way::Quick && change.op == Op::Insert && session.gathers(version) {
                return quick::gather(session, version, position, change, bytes.len());
            }
            session.insert_gathered();
            if way == Way::Careful {
                return careful::change(session, version, table, position, transaction, change, bytes);
            }
            match quick::write(session, version, change) {
                Ok(true) if judged::suits(session, version, table, change)? => {
                    session.counts.changes += 1;
                    Ok(())
                }
                Ok(_) | Err(_) => Err(Halt::Careful),
            }
        }
    }
}

/// A table that was emptied at the source.
struct Emptied {
    table: usize,
    /// The position before that.
    before: Position,
    oid: u32,
    owner: u32,
    name: String,
}

/// Empties the tables that were emptied at the source together.
fn empty_tables(session: &mut Session, way: Way) -> Result<(), Halt> {
    if session.emptied.is_empty() {
        return Ok(());
    }
    session.insert_gathered();
    let versions = std::mem::take(&mut session.emptied);
    let mut opened: Vec<Emptied> = Vec::new();
    for (version, before) in versions {
        let Some(table) = session.versions[version].table else { continue };
        match session.open(version) {
            Ok(()) => {
                if judged::was_emptied(session, version, table)? {
                    continue;
                }
                let target = &session.versions[version].targets[0];
                let (schema, name) = (&session.tables[table].schema, &session.tables[table].name);
                session.swept.extend(session.versions[version].judge.as_ref().map(Reader::root));
                opened.push(Emptied {
                    table,
                    before,
                    oid: target.oid(),
                    owner: target.owner(),
                    name: apply_session::qualified(schema, name),
                });
            }
            Err(fault) => session.stop(table, before, fault.code, &fault.message),
        }
    }
    // Statements want a table for themselves.
    session.close_targets(true);
    session.settle();
    session.wrote = true;
    session.counts.changes += opened.len() as i64;
    let oids: Vec<u32> = opened.iter().map(|table| table.oid).collect();
    let names: Vec<&str> = opened.iter().map(|table| table.name.as_str()).collect();
    let Some(owner) = opened.first().map(|table| table.owner) else { return Ok(()) };
    let same_owner = opened.iter().all(|table| table.owner == owner);
    let together = same_owner && !tables::referenced_from_elsewhere(&oids);
    let empty = || {
        if together {
            let statement = format!("TRUNCATE {}", names.join(", "));
            owner_rights::as_owner(owner, || apply_session::run(&statement));
        } else {
            // Other tables refer to these. At the source they were emptied as well, or are none of ours.
            for table in &opened {
                let statement = format!("DELETE FROM {}", table.name);
                owner_rights::as_owner(table.owner, || apply_session::run(&statement));
            }
        }
        Ok::<(), Halt>(())
    };
    if way == Way::Quick {
        return empty();
    }
    match attempt(empty) {
        Ok(result) => result,
        Err(failure) if super::attempts::is_of_the_server(&failure) => {
            Err(ApplyError::Failed(failure).into())
        }
        Err(failure) => {
            session.counts.changes -= opened.len() as i64;
            for emptied in opened {
                session.stop(emptied.table, emptied.before, &failure.sqlstate(), &failure.message);
            }
            Ok(())
        }
    }
}

/// Why a table stops behind an entry, whatever the subscription says of such statements; `None`: for no reason. `run`: the
/// statement was run here.
fn end_of(tag: &str, run: bool) -> Option<(&'static str, &'static str)> {
    match tag {
        "ATTACH PARTITION" => Some(("PQ018", ROWS_CAME)),
        // The rows that were there in it have gone here as well.
        "DETACH PARTITION" | "DROP PARTITION" if run => None,
        "DETACH PARTITION" | "DROP PARTITION" => Some(("PQ018", ROWS_WENT)),
        // DROP TABLE, DROP SCHEMA and others.
        _ if tag.starts_with("DROP ") => Some(("PQ016", if run { DROPPED_HERE } else { DROPPED })),
        _ => None,
    }
}

/// An entry about the table itself.
fn ddl(
    session: &mut Session,
    table: usize,
    version: usize,
    position: Position,
    change: &Change,
    way: Way,
) -> Result<(), Halt> {
    let Some(entry) = change.ddl else { return Ok(()) };
    let tag = String::from_utf8_lossy(entry.tag).into_owned();
    match tag.as_str() {
        // A copy is behind the beginning of capture. So this is another one, and what was written before it is not in the log.
        "TRACK" if !session.subscription.copies_nothing => {
            session.stop(table, position, "PQ016", TRACKED_ANEW);
            return Ok(());
        }
        "TRACK" => return Ok(()),
        // Nor is what is written from here on, even if the table is tracked again.
        "UNTRACK" => {
            session.stop(table, position, "PQ016", UNTRACKED);
            return Ok(());
        }
        // Not run: what follows is of the other name, and that one is copied.
        "RENAME" => {
            session.stop(table, position, "PQ016", RENAMED);
            return Ok(());
        }
        _ => {}
    }
    if let Some((code, message)) = end_of(&tag, false).filter(|_| session.subscription.ddl != OnDdl::Apply) {
        session.stop(table, position, code, message);
        return Ok(());
    }
    match session.subscription.ddl {
        OnDdl::Ignore => Ok(()),
        OnDdl::Stop => {
            let message = format!(
                "The table was changed at the source: {tag}. Make it fit here, then call quorum.resume_table."
            );
            session.stop(table, position, "PQ017", &message);
            Ok(())
        }
        OnDdl::Apply if way == Way::Quick => Err(Halt::Careful),
        OnDdl::Apply => {
            let statement = String::from_utf8_lossy(entry.sql).into_owned();
            // Not opened: it may not have the new form before the statement was run.
            let owner =
                apply_target::find(&session.versions[version].schema).and_then(apply_target::owner_of);
            let schema = session.tables[table].schema.clone();
            session.close_targets(true);
            session.settle();
            session.wrote = true;
            let Some(owner) = owner else {
                // Gone already, by the same statement maybe: it names all tables that it drops.
                if let Some((code @ "PQ016", message)) = end_of(&tag, true) {
                    session.stop(table, position, code, message);
                    return Ok(());
                }
                let after = session.seen;
                session.stop(table, after, "42P01", "The table was changed at the source, and is not here.");
                return Ok(());
            };
            let run = || {
                let _path = apply_session::path_of(&schema);
                owner_rights::as_owner(owner, || apply_session::run(&statement));
                Ok::<(), Halt>(())
            };
            match attempt(run) {
                Ok(result) => {
                    session.counts.changes += 1;
                    if let Some((code, message)) = end_of(&tag, true) {
                        session.stop(table, position, code, message);
                    }
                    result
                }
                Err(failure) if super::attempts::is_of_the_server(&failure) => {
                    Err(ApplyError::Failed(failure).into())
                }
                Err(failure) => {
                    let message = format!("{tag} of the source cannot be run here: {}", failure.message);
                    let after = session.seen;
                    session.stop(table, after, &failure.sqlstate(), &message);
                    Ok(())
                }
            }
        }
    }
}
