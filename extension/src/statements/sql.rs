//! The learner's SQL functions. Those that touch nothing but tables are in `sql/statements.sql`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
use pgrx::prelude::*;

use super::entry::{Known, flag};
use super::records::{Urgency, Wanted};
use super::ring::{self, Statement};
use super::rows::{self, Standing};
use super::{databases, identity, records, settings, shared, table};
use crate::error::Refusal;
use crate::pg::datum::JsonText;
use crate::pg::table::View;
use crate::pg::{encoding, process, snapshot, worker};

/// The hash of a statement's normalised text, as 16 hexadecimal digits.
///
/// A `text` is taken as the bytes that it is, in whatever encoding.
#[pg_extern(sql = r#"
CREATE FUNCTION quorum."statement_hash"("statement" text) RETURNS text
IMMUTABLE STRICT PARALLEL SAFE LANGUAGE c AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
"#)]
fn statement_hash(statement: &[u8]) -> String {
    identity::shown(identity::hash(statement))
}

/// What is known here of the statements of this database that the table does not have, or not yet.
struct Here {
    hash: u64,
    /// In UTF-8.
    path: Vec<u8>,
    negative: Negative,
    calls: u64,
    used_us: u64,
}

/// What is known against serving it.
enum Negative {
    No,
    Always,
    Unproven,
    /// On a standby, which had replayed the WAL up to there.
    UnprovenAt(u64),
}

fn here() -> Vec<Here> {
    let in_recovery = process::in_recovery();
    let _kept = shared::share();
    table::of_database(worker::own_database())
        .map(|(_, entry, texts)| {
            let negative = match entry.known_on(in_recovery) {
                _ if entry.has(flag::BARRED) => Negative::Always,
                Known::Refused if !in_recovery => Negative::Always,
                Known::Unproven if !in_recovery => Negative::Unproven,
                Known::Refused | Known::Unproven => Negative::UnprovenAt(entry.lsn.load(Relaxed)),
                Known::Nothing | Known::Proven => Negative::No,
            };
            Here {
                hash: entry.hash.load(Relaxed),
                path: texts.path.get(),
                negative,
                calls: entry.calls.load(Relaxed),
                used_us: entry.used_us.load(Relaxed),
            }
        })
        .collect()
}

/// Internal: what this server has counted that the table does not have yet. The search path is in UTF-8.
#[pg_extern(parallel_restricted)]
#[allow(clippy::type_complexity)]
fn statements_here() -> TableIterator<
    'static,
    (
        name!(hash, i64),
        name!(search_path, Vec<u8>),
        name!(calls, i64),
        name!(last_use, Option<TimestampWithTimeZone>),
    ),
> {
    let rows: Vec<_> = here()
        .into_iter()
        .map(|known| {
            let calls = i64::try_from(known.calls).unwrap_or(i64::MAX);
            let path = encoding::valid_utf8(&known.path).into_bytes();
            (known.hash.cast_signed(), path, calls, process::time_of_us(known.used_us))
        })
        .collect();
    TableIterator::new(rows)
}

/// May a row be served, for what the table says of it?
fn is_served(row: &Standing) -> bool {
    let known = Known::of(row.verdict);
    !row.barred && (known == Known::Proven || known != Known::Refused && is_observed(row))
}

/// Has it run often enough without writing, where that counts?
fn is_observed(row: &Standing) -> bool {
    settings::SERVE_OBSERVED.get() && row.clean_calls >= settings::min_calls()
}

/// The hashes that are served, sorted: of statements that are known to write nothing under every `search_path` under which
/// they are known. Of this database; none where nothing is learned.
#[pg_extern(stable, parallel_restricted)]
fn served_statements() -> Vec<String> {
    follow_forgotten();
    if !table::is_there() || databases::is_to_be_swept(worker::own_database()) {
        return Vec::new();
    }
    let mut served: BTreeMap<u64, bool> = BTreeMap::new();
    // Of each row: whether it is observed enough, and where it was proven.
    let mut known_rows: HashMap<(u64, Vec<u8>), (bool, u64)> = HashMap::new();
    rows::standings(View::Statement, |row| {
        let every = served.entry(row.hash).or_insert(true);
        *every &= is_served(&row);
        let path = encoding::to_utf8(&row.search_path).into_owned().into_bytes();
        known_rows.insert((row.hash, path), (is_observed(&row), row.proven_lsn));
    });
    served.retain(|_, every| *every);
    // In this order: what is learned from now on counts as a change of what is given out here.
    shared::note_given(served.keys().copied());
    for known in here() {
        let (observed, proven_lsn) = known_rows.get(&(known.hash, known.path)).copied().unwrap_or_default();
        let negative = match known.negative {
            Negative::No => false,
            Negative::Always => true,
            Negative::Unproven if observed => false,
            Negative::Unproven => true,
            // A standby's own word holds until the table was told something newer.
            Negative::UnprovenAt(_) if observed => false,
            Negative::UnprovenAt(lsn) => proven_lsn <= lsn,
        };
        if negative {
            served.remove(&known.hash);
        }
    }
    served.into_keys().map(identity::shown).collect()
}

/// A short text that changes whenever `quorum.served_statements()` may give something else on this server. To be asked for
/// before that.
#[pg_extern(parallel_restricted)]
fn statements_state() -> String {
    follow_forgotten();
    let counter = rows::counters(View::Statement).map_or(0, |(served, _)| served);
    let database = worker::own_database();
    let off = !table::is_there() || databases::is_to_be_swept(database);
    let observed = if settings::SERVE_OBSERVED.get() { settings::min_calls() } else { 0 };
    let negatives = shared::globals().negatives.load(SeqCst);
    let mut state = format!("{counter}-{observed}-{}", u8::from(off));
    if negatives > 0 {
        // What only this server knows, since it started.
        state.push_str(&format!("-{:x}-{negatives}", process::server_start_us()));
    }
    state
}

/// On a standby: everything was forgotten on the primary, so it is here.
fn follow_forgotten() {
    if !process::in_recovery() || !table::is_there() {
        return;
    }
    let database = worker::own_database();
    if let Some((_, forgotten)) = rows::counters(View::Statement)
        && databases::is_forgotten_anew(database, forgotten)
    {
        table::forget(database, None);
    }
}

/// On a standby: what was learned there that the table does not have, at most so many statements, for
/// `quorum.merge_statements` on the primary. It is taken to be handed over. Elsewhere nothing.
#[pg_extern]
fn take_learned(max_rows: i32) -> JsonText {
    let most = usize::try_from(max_rows).ok().filter(|most| *most > 0).unwrap_or_else(|| {
        Refusal::new(ERRCODE_INVALID_PARAMETER_VALUE, format!("max_rows must be positive, not {max_rows}"))
            .raise()
    });
    follow_forgotten();
    let (database, now_us) = (worker::own_database(), process::now_us_unsigned());
    if !process::in_recovery() || !records::is_anything_due(database, now_us, Urgency::Young) {
        return JsonText(b"[]".to_vec());
    }
    let mut standings = HashMap::new();
    let found = rows::standings(View::Statement, |row| {
        let path = encoding::to_utf8(&row.search_path).into_owned().into_bytes();
        standings.insert((row.hash, path), row);
    });
    if !found {
        return JsonText(b"[]".to_vec());
    }
    let mut taken = records::take(database, now_us, Wanted::any(most), true);
    records::saved(&taken, true);
    taken.retain_mut(|record| {
        // What the table says already need not be said again.
        if let Some(row) = standings.get(&(record.hash, record.path.clone())) {
            let known = Known::of(row.verdict);
            if record.known.is_some_and(|mine| mine <= known) {
                record.known = None;
            }
            record.barred &= !row.barred;
            record.lied &= record.barred;
        }
        !record.says_nothing()
    });
    JsonText(records::to_json(&taken).into_bytes())
}

/// What `quorum.take_learned` has given may not have arrived: it gives it again.
#[pg_extern]
fn mark_unsent() {
    if process::in_recovery() && table::is_there() {
        records::not_handed_over(worker::own_database());
    }
}

/// Internal: is it certain that nothing on which a verdict rests was changed after a WAL position?
#[pg_extern]
fn unchanged_since(
    lsn: Option<i64>,
    depends: Option<Vec<pg_sys::Oid>>,
    on_all: Option<bool>,
    words: Option<i64>,
) -> bool {
    let (Some(lsn), Some(depends), Some(on_all), Some(words)) = (lsn, depends, on_all, words) else {
        return false;
    };
    if process::in_recovery() || !table::is_there() {
        return false;
    }
    let depends: Vec<u32> = depends.into_iter().map(pg_sys::Oid::to_u32).collect();
    let statement = Statement {
        database: worker::own_database(),
        depends: &depends,
        on_all,
        words: words.cast_unsigned(),
    };
    !ring::has_changed_since(lsn.cast_unsigned(), &statement, snapshot::insert_lsn())
}

/// Internal: forgets what is in this server's memory, of one hash or of all.
#[pg_extern]
fn forget_here(hash: Option<i64>) {
    if table::is_there() {
        table::forget(worker::own_database(), hash.map(i64::cast_unsigned));
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn row(verdict: u32, barred: bool, clean_calls: u64) -> Standing {
        Standing { hash: 1, search_path: Vec::new(), verdict, barred, clean_calls, proven_lsn: 0 }
    }

    #[test]
    fn only_what_is_proven_is_served_unless_asked_for_more() {
        assert!(is_served(&row(1, false, 0)));
        assert!(!is_served(&row(1, true, 1000)));
        for verdict in [0, 2, 3] {
            assert!(!is_served(&row(verdict, false, 1_000_000)));
        }
    }
}
