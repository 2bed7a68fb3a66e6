//! `pgquorum follow`: prints changes, and goes on where it was at another node when it loses the one that it reads from.

mod printer;

use super::client::{Base, Client, Lines, Opened, Target};
use super::failure::Failure;
use super::output::Out;
use super::status::Map;
use crate::uri::encoded;
use printer::{Printer, Seen};
use std::io::{BufWriter, Write};
use std::time::{Duration, Instant};

/// How long a node may say nothing, not even where it is, before another one is asked.
const SILENCE: Duration = Duration::from_secs(4);
/// How long a node may hear of no leader, or not know the channel's end: it may be cut off, or its database hang, and say
/// nothing new for ever.
const UNKNOWING: Duration = Duration::from_secs(4);
/// How long nodes may say that a position is not theirs: standbys can be behind the node that it came from.
const CATCH_UP: Duration = Duration::from_secs(15);
/// The code of a record that a node cannot read.
const RECORD_BROKEN: &str = "record_broken";
/// Between two attempts that brought nothing.
const PAUSE: Duration = Duration::from_millis(200);

/// Ends by itself only when its position cannot be had any more (exit code 4 if it was purged, else 1): the reader
/// must load the tables anew and follow from there.
#[derive(Debug, clap::Args)]
pub struct FollowArgs {
    #[command(flatten)]
    target: Target,
    channel: String,
    /// The database that the channel is in [default: the cluster's admin database].
    #[arg(long)]
    database: Option<String>,
    /// Where to begin: start, now, or after a position such as 5:1234.
    #[arg(long, default_value = "now")]
    from: String,
    /// Only changes of these tables.
    #[arg(long, value_delimiter = ',')]
    tables: Vec<String>,
    /// End after so many changes.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

pub async fn run(args: FollowArgs, out: Out) -> Result<(), Failure> {
    let client = args.target.client()?;
    let mut follower = Follower {
        nodes: client.bases().to_vec(),
        printer: Printer::new(args.from, args.count, out.json),
        filter: filter(args.database.as_deref(), &args.tables),
        channel: encoded(&args.channel),
        client,
        out,
    };
    follower.run().await
}

/// The part of the address that stays the same.
fn filter(database: Option<&str>, tables: &[String]) -> String {
    let database = database.map(|name| format!("&database={}", encoded(name))).unwrap_or_default();
    let tables: Vec<String> = tables.iter().map(|table| encoded(table)).collect();
    let tables = if tables.is_empty() { String::new() } else { format!("&tables={}", tables.join(",")) };
    database + &tables
}

struct Follower {
    client: Client,
    /// Those to ask, the next one first.
    nodes: Vec<Base>,
    channel: String,
    filter: String,
    printer: Printer,
    out: Out,
}

/// How a stream ended.
enum Ended {
    /// Everything that was wanted is printed, or nobody reads it.
    Done,
    /// Another node may go on.
    Lost(String),
    /// This node says no; others may be ahead of it.
    Behind(Failure),
    /// No node can go on.
    Gone(Failure),
}

impl Follower {
    async fn run(&mut self) -> Result<(), Failure> {
        let mut connected = false;
        let mut behind: Option<Instant> = None;
        loop {
            let mut tried = Vec::new();
            // Once round all nodes that are known by then, anew after each step forward.
            while tried.len() < self.nodes.len() {
                let base = self.nodes[0].clone();
                let before = self.printer.position.clone();
                let path =
                    format!("/channels/{}/stream?after={}{}", self.channel, encoded(&before), self.filter);
                let ended = match self.client.open(&base, &path, "application/x-ndjson").await {
                    Opened::Stream(lines) => {
                        if !tried.is_empty() || connected {
                            self.out.note(&format!("following {base} after {before}"));
                        }
                        connected = true;
                        self.learn_nodes(&base).await;
                        self.read(lines).await
                    }
                    Opened::Refused(status, failure) => sort(status, failure, connected),
                    Opened::Silent(why) => Ended::Lost(why),
                };
                if self.printer.position != before {
                    behind = None;
                    tried.clear();
                } else if connected || behind.is_some() {
                    tokio::time::sleep(PAUSE).await;
                }
                match ended {
                    Ended::Done => return Ok(()),
                    Ended::Gone(failure) => return Err(failure),
                    Ended::Lost(why) => tried.push(format!("{base} ({why})")),
                    Ended::Behind(failure) => {
                        let since = *behind.get_or_insert_with(Instant::now);
                        // The leader knows best which positions there are, but its disk is no better than others'.
                        let knows_best = failure.code != RECORD_BROKEN && self.leads(&base).await;
                        if since.elapsed() >= CATCH_UP || knows_best {
                            return Err(failure);
                        }
                        self.learn_nodes(&base).await;
                        tried.push(format!("{base} ({})", failure.message));
                    }
                }
                self.nodes.rotate_left(1);
            }
            let tried = tried.join(", ");
            if !connected && behind.is_none() {
                return Err(Failure::unreachable(
                    "unreachable",
                    format!("no node lets this channel be followed: {tried}. Name other nodes with --url"),
                ));
            }
            self.out.note(&format!("nobody goes on after {}: {tried}; trying again", self.printer.position));
        }
    }

    /// Puts the other nodes of the cluster behind the one that is read from.
    async fn learn_nodes(&mut self, base: &Base) {
        let Ok(map) = Map::read(&self.client.at(base)).await else { return };
        for node in map.nodes.iter().filter(|node| node.role != "witness") {
            let other = base.of(&node.ip, node.api_port);
            if !self.nodes.contains(&other) {
                self.nodes.push(other);
            }
        }
    }

    async fn leads(&self, base: &Base) -> bool {
        self.client.at(base).get("/is-leader").await.is_ok()
    }

    async fn read(&mut self, mut lines: Lines) -> Ended {
        let mut knew = Instant::now();
        self.printer.resumes = true;
        let mut stdout = BufWriter::with_capacity(64 * 1024, std::io::stdout().lock());
        loop {
            while let Some(line) = lines.ready() {
                match self.printer.line(line, &mut stdout) {
                    Ok(Seen::Change | Seen::Heartbeat { lacks: None }) => knew = Instant::now(),
                    Ok(Seen::Heartbeat { lacks: Some(_) }) if knew.elapsed() < UNKNOWING => {}
                    Ok(Seen::Heartbeat { lacks: Some(what) }) => return Ended::Lost(what.to_owned()),
                    Ok(Seen::Last) => {
                        let _ = stdout.flush();
                        return Ended::Done;
                    }
                    Ok(Seen::Failed(failure)) => return sort(0, failure, true),
                    Err(_) => return Ended::Done,
                }
            }
            if stdout.flush().is_err() {
                return Ended::Done;
            }
            match lines.more(Some(SILENCE)).await {
                Ok(true) => {}
                Ok(false) => return Ended::Lost("the stream ended".to_owned()),
                Err(why) => return Ended::Lost(why),
            }
        }
    }
}

/// Whether another node may do what this one refuses.
fn sort(status: u16, failure: Failure, connected: bool) -> Ended {
    match failure.code.as_str() {
        "position_in_future" | "position_unknown_epoch" => Ended::Behind(failure),
        // A standby may not have replayed yet that the channel was made.
        "unknown_channel" | "unknown_table" | "unknown_database" | "no_extension" if connected => {
            Ended::Behind(failure)
        }
        // Another node may hold a good copy.
        RECORD_BROKEN => Ended::Behind(failure),
        "position_purged" => Ended::Gone(failure),
        _ if matches!(status, 400..=411 | 413..=416 | 418..=419) => Ended::Gone(failure),
        _ => Ended::Lost(failure.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_node_can_do_ends_it_and_the_rest_does_not() {
        let failure = |code: &str| Failure::failed(code, "x");
        for (status, code, connected, expected) in [
            (410, "position_purged", true, 'g'),
            (409, "position_in_future", true, 'b'),
            (409, "position_unknown_epoch", false, 'b'),
            (404, "unknown_channel", false, 'g'),
            (404, "unknown_channel", true, 'b'),
            (400, "bad_position", true, 'g'),
            (401, "token_required", true, 'g'),
            (412, "holds_no_data", false, 'l'),
            (503, "too_many_streams", true, 'l'),
            (531, "database_unavailable", true, 'l'),
            (0, "database_unavailable", true, 'l'),
            (0, "position_purged", true, 'g'),
        ] {
            let found = match sort(status, failure(code), connected) {
                Ended::Done => 'd',
                Ended::Lost(_) => 'l',
                Ended::Behind(_) => 'b',
                Ended::Gone(_) => 'g',
            };
            assert_eq!(found, expected, "{status} {code} {connected}");
        }
    }

    #[test]
    fn the_address_holds_what_was_asked_for() {
        assert_eq!(filter(None, &[]), "");
        let tables = ["public.orders".to_owned(), "a&b".to_owned()];
        assert_eq!(filter(Some("my db"), &tables), "&database=my%20db&tables=public.orders,a%26b");
    }
}
