//! Before a server gives up WAL that only it has, that WAL is copied aside, and what was committed in it is read and
//! reported. Nothing of this ever keeps a node from coming back: what cannot be done is said in the report.

mod decode;
mod divergence;
mod keep;
mod names;

use super::config::{PostgresConfig, beside};
use super::control::ControlData;
use super::error::{Result, blocking, failure, io, sql};
use super::session::Session;
use super::state::Inner;
use super::{PgEvent, control, timeline};
use decode::Decoder;
use divergence::{History, Piece, only_own};
use pgquorum_agent::lost::{Acknowledged, LostReport};
use pgquorum_agent::types::{Lsn, Timeline};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

/// Reading the lost WAL takes no longer, or the rest of it stays unread.
const READ_LIMIT: Duration = Duration::from_secs(60);

fn root(config: &PostgresConfig) -> PathBuf {
    beside(&config.data_dir, ".lost")
}

/// Reports that were on disk when the sidecar started and that the cluster may not know yet.
pub fn report_again(inner: &Arc<Inner>) {
    for report in keep::open_reports(&root(&inner.config)) {
        inner.emit(PgEvent::Lost(Box::new(report)));
    }
}

/// The cluster's log holds this report.
pub fn reported(inner: &Arc<Inner>, id: &str) {
    let directory = root(&inner.config).join(id);
    inner.runtime.spawn_blocking(move || {
        if let Err(error) = keep::reported(&directory) {
            tracing::warn!(%error, directory = %directory.display(), "a report cannot be marked as told");
        }
    });
}

/// Keeps and reads what this server has and `source` has not. Its own server runs as a standby that receives nothing,
/// or does not run at all; then the names of tables are not known.
pub async fn keep_and_report(inner: &Arc<Inner>, source: &Session) {
    match keep_and_read(inner, source).await {
        Ok(Some(report)) => {
            tracing::warn!(committed = report.committed, "{}", report.sentence());
            inner.emit(PgEvent::Lost(Box::new(report)));
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "what is being given up could not be looked at"),
    }
}

/// Where this server's history leaves another one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parted {
    /// The last timeline that both have.
    pub timeline: Timeline,
    pub at: Lsn,
    /// The bytes of a segment of WAL.
    pub segment_bytes: u64,
}

/// Where this server's history leaves that of `source`. `None`: it does not leave it, or they have nothing in common.
pub async fn parted(inner: &Arc<Inner>, source: &Session) -> Result<Option<Parted>> {
    let seen = compare(inner, source).await?;
    if seen.pieces.is_none_or(|pieces| pieces.is_empty()) {
        return Ok(None);
    }
    let segment_bytes = seen.control.segment_bytes;
    Ok(seen.parted.map(|(timeline, at)| Parted { timeline, at, segment_bytes }))
}

/// What is known of the histories of this server and another one.
struct Seen {
    control: ControlData,
    local: Option<Arc<Session>>,
    /// What only this one has.
    pieces: Option<Vec<Piece>>,
    parted: Option<(Timeline, Lsn)>,
}

async fn compare(inner: &Arc<Inner>, source: &Session) -> Result<Seen> {
    let control = control::read(&inner.config).await?;
    let local = if inner.postmaster().is_some() { Some(inner.session().await?) } else { None };
    let (present, end) = match &local {
        Some(session) => session.position().await?.end(),
        None => (control.timeline(), Lsn(u64::MAX)),
    };
    let ancestors = timeline::read_history(&inner.config.wal_dir(), present).map_err(failure)?;
    let (own, other) = (History { ancestors, present }, history_of(source).await?);
    let pieces = only_own(&own, end, &other);
    Ok(Seen { control, local, pieces, parted: divergence::parted(&own, &other) })
}

async fn keep_and_read(inner: &Arc<Inner>, source: &Session) -> Result<Option<LostReport>> {
    let config = &inner.config;
    let Seen { control, local, pieces, .. } = compare(inner, source).await?;
    let Some(pieces) = pieces else { return Ok(None) };
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return Ok(None) };
    let known_end = last.to != Lsn(u64::MAX);
    if !known_end && control::wal_end(config, &control).await.1 <= first.from {
        return Ok(None);
    }
    let id = format!("{}-{}-{:X}-{:X}", config.node, last.timeline, first.from.0, last.to.0);
    let directory = root(config).join(&id);
    if keep::is_known(&directory) {
        return Ok(None);
    }
    let mut problems = Vec::new();
    let kept = if known_end {
        copy_aside(config, &pieces, control.segment_bytes, directory.clone(), &mut problems).await?
    } else {
        problems.push("the end of the WAL is not known, so it was not copied aside".to_owned());
        None
    };
    let decoder = read(config, &pieces, control.segment_bytes, known_end, &mut problems).await;
    let mut report = LostReport {
        id,
        node: config.node,
        timeline: last.timeline,
        from: first.from,
        to: if known_end { last.to } else { decoder.last },
        acknowledged: Acknowledged::Possibly,
        committed: decoder.more,
        transactions: Vec::new(),
        internal: 0,
        aborted: decoder.aborted,
        unfinished: decoder.unfinished(),
        kept,
        problem: None,
    };
    let names = match &local {
        Some(_) => names::look_up(config, &decoder.committed).await,
        None => Err(failure("the server does not run, so tables have numbers and no names")),
    };
    let names = names.unwrap_or_else(|error| {
        problems.push(error.to_string());
        names::Names::default()
    });
    problems.extend(names.problems.iter().cloned());
    let unseen = decoder.committed.iter().filter(|c| !c.changes.seen).count();
    if unseen > 0 {
        problems.push(format!(
            "of {unseen} transactions the tables are not known: all that they wrote, if anything, is in older WAL or was \
             too much to remember"
        ));
    }
    for committed in &decoder.committed {
        match names.describe(committed) {
            Some(transaction) => {
                report.committed += 1;
                report.transactions.push(transaction);
            }
            None => report.internal += 1,
        }
    }
    if let Some(session) = &local {
        match acknowledged(session, &pieces).await {
            Ok(acknowledged) => report.acknowledged = acknowledged,
            Err(error) => problems.push(error.to_string()),
        }
    }
    problems.truncate(3);
    report.problem =
        Some(problems.join("; ")).filter(|p| !p.is_empty()).map(|p| p.chars().take(600).collect());
    let report = report.bounded();
    let saved = report.clone();
    blocking(move || keep::save(&directory, &saved).map_err(io("writing the report of lost transactions")))
        .await?;
    Ok(Some(report))
}

/// The history of the server on the other end, as its own file has it.
async fn history_of(source: &Session) -> Result<History> {
    let present: Timeline = source.position().await?.timeline;
    if present <= 1 {
        return Ok(History { ancestors: Vec::new(), present });
    }
    let file = format!("pg_wal/{present:08X}.history");
    let row = source.query_one("SELECT pg_read_file($1)", &[&file]).await;
    let text: String = row.map_err(sql("reading the history of the server to follow"))?.get(0);
    Ok(History { ancestors: timeline::parse_history(&text).map_err(failure)?, present })
}

/// Copies the segments, if there is room for them by the configuration. Returns where they are.
async fn copy_aside(
    config: &PostgresConfig,
    pieces: &[Piece],
    segment_bytes: u64,
    directory: PathBuf,
    problems: &mut Vec<String>,
) -> Result<Option<String>> {
    let names = keep::segments(pieces, segment_bytes);
    let (limit, root, wal_dir) = (config.lost_wal_keep_bytes, root(config), config.wal_dir());
    let bytes = names.len() as u64 * segment_bytes;
    if bytes > limit {
        problems
            .push(format!("{bytes} bytes of WAL are more than lost-wal-keep-mb allows, and were not kept"));
        return Ok(None);
    }
    let place = directory.display().to_string();
    let copied = blocking(move || {
        keep::prune(&root, limit - bytes);
        let result = keep::create_private(&root).and_then(|()| keep::copy(&wal_dir, &names, &directory));
        result.map_err(io("copying the lost WAL aside"))
    });
    match copied.await {
        Ok(missing) if missing.is_empty() => Ok(Some(place)),
        Ok(missing) => {
            problems.push(format!("{} segments of WAL are not there any more", missing.len()));
            Ok(Some(place))
        }
        Err(error) => {
            problems.push(error.to_string());
            Ok(None)
        }
    }
}

/// Reads the WAL piece by piece.
async fn read(
    config: &PostgresConfig,
    pieces: &[Piece],
    segment_bytes: u64,
    known_end: bool,
    problems: &mut Vec<String>,
) -> Decoder {
    let mut decoder = Decoder::new(pieces.first().map_or(Lsn(0), |p| p.from));
    for (number, piece) in pieces.iter().enumerate() {
        // What a transaction wrote shortly before the histories parted belongs to it as well.
        let start = if number == 0 { keep::segment_start(piece.from, segment_bytes) } else { piece.from };
        let reading = read_piece(config, piece, start, known_end, &mut decoder);
        let result = tokio::time::timeout(READ_LIMIT, reading).await;
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) if known_end => problems.push(error.to_string()),
            Ok(Err(_)) => {}
            Err(_) => problems.push(format!("reading the WAL did not end within {READ_LIMIT:?}")),
        }
    }
    if decoder.overflow {
        problems.push("there were too many changes to remember them all".to_owned());
    }
    decoder
}

async fn read_piece(
    config: &PostgresConfig,
    piece: &Piece,
    start: Lsn,
    known_end: bool,
    decoder: &mut Decoder,
) -> Result<()> {
    let mut command = tokio::process::Command::new(config.program("pg_waldump"));
    command.arg("-p").arg(config.wal_dir()).arg("-t").arg(piece.timeline.to_string());
    command.arg("-s").arg(start.to_string());
    if known_end {
        command.arg("-e").arg(piece.to.to_string());
    }
    command.env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(io("starting pg_waldump"))?;
    let out = child.stdout.take().ok_or_else(|| failure("pg_waldump has no output"))?;
    decoder.begin_piece();
    feed_lines(BufReader::new(out), decoder).await.map_err(io("reading pg_waldump's output"))?;
    let ended = child.wait_with_output().await.map_err(io("waiting for pg_waldump"))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(failure(format!("pg_waldump stopped: {}", said.lines().last().unwrap_or_default())))
}

/// The lines may hold words of clients, in whatever encoding.
async fn feed_lines(mut out: impl AsyncBufRead + Unpin, decoder: &mut Decoder) -> std::io::Result<()> {
    let mut line = Vec::new();
    while out.read_until(b'\n', &mut line).await? > 0 {
        decoder.feed(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(())
}

/// Whether commits on these timelines waited for standbys, by what the database says: the rule of the epoch, as it was
/// last changed, and who is allowed to ask for less.
async fn acknowledged(session: &Session, pieces: &[Piece]) -> Result<Acknowledged> {
    let question = "SELECT EXISTS (SELECT FROM quorum.leadership l WHERE l.timeline = ANY($1) AND COALESCE( \
        (SELECT (c.payload #>> '{entry,k}')::int FROM quorum.cluster_log c WHERE c.term = l.epoch \
         AND c.payload #>> '{entry,type}' = 'durability' ORDER BY c.index DESC LIMIT 1), l.k) = 0) \
        OR EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) c WHERE \
         c ILIKE 'synchronous\\_commit=%' AND lower(split_part(c, '=', 2)) NOT IN ('on', 'remote_apply', 'true', 'yes', '1') \
         OR c ILIKE 'pgquorum.allow\\_weak\\_commits=%')";
    let timelines: Vec<i32> = pieces.iter().map(|p| p.timeline.cast_signed()).collect();
    let row = session.query_one(question, &[&timelines]).await;
    let possibly: bool = row.map_err(sql("asking how commits were acknowledged"))?.get(0);
    Ok(if possibly { Acknowledged::Possibly } else { Acknowledged::No })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_in_another_encoding_does_not_end_the_reading() {
        let (first, rest) = include_str!("sample.txt").split_once('\n').unwrap();
        let mut bytes = first.as_bytes().to_vec();
        bytes.extend(b"\n\xe4\xff of a name with line breaks\n");
        bytes.extend(rest.as_bytes());
        let mut decoder = Decoder::new(Lsn(0));
        feed_lines(bytes.as_slice(), &mut decoder).await.unwrap();
        assert_eq!(decoder.committed.len(), 10);
    }
}
