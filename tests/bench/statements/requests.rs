//! How long `GET /sql/readonly` takes with ten thousand hashes, and how long when the client has them already.

use crate::Options;
use crate::keep_alive::{Pool, Question};
use crate::line::{Line, Must, Samples, rounded};
use pgquorum_tests::{Cluster, PATIENCE, await_until, get_with, served};
use serde_json::json;
use std::io::Error;
use std::net::SocketAddr;
use std::time::Duration;

pub const NAME: &str = "readonly-requests";

const MUST_P99_MS: f64 = 20.0;
const MUST_NOT_MODIFIED_P99_MS: f64 = 2.0;
const PATH: &str = "/sql/readonly?database=many";
const HASHES: usize = 10_000;
/// Drivers ask now and then: a few of them at the same time is a busy moment.
const CONNECTIONS: usize = 4;
const SLICES: usize = 10;
const SLICE: Duration = Duration::from_secs(1);

pub fn run(_: &Options) -> bool {
    let cluster = Cluster::start(3);
    cluster.await_replicas(2);
    learn(&cluster);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let mut measured = Vec::new();
    for id in [leader, follower] {
        let port = cluster.node(id).api_port();
        let tag = await_listed(port);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        measured.push(runtime.block_on(measure(to, &tag)).unwrap_or_else(|e| panic!("{NAME}: {e}")));
    }
    let [(whole, same, rate), (follower_whole, follower_same, _)] =
        <[_; 2]>::try_from(measured).expect("two nodes");
    let ms = |samples: &Samples, part| rounded(samples.quantile(part));
    let line = Line {
        bench: NAME,
        unit: "ms",
        samples: &whole,
        ratio: whole.median() / same.median(),
        against: "the answer 304 to a client that has them already",
        must: Must::AtMost(MUST_P99_MS),
        judged: whole.quantile(0.99).max(follower_whole.quantile(0.99)),
        kept: same.quantile(0.99).max(follower_same.quantile(0.99)) <= MUST_NOT_MODIFIED_P99_MS,
        more: json!({
            "hashes": HASHES, "connections": CONNECTIONS, "p50": ms(&whole, 0.5), "p99": ms(&whole, 0.99),
            "not_modified_p50": ms(&same, 0.5), "not_modified_p99": ms(&same, 0.99),
            "must_not_modified_p99": MUST_NOT_MODIFIED_P99_MS, "not_modified_per_second": rate.round(),
            "follower_p99": ms(&follower_whole, 0.99), "follower_not_modified_p99": ms(&follower_same, 0.99),
        }),
    };
    line.print()
}

/// So many statements in a database that nobody else uses.
fn learn(cluster: &Cluster) {
    let leader = cluster.leader();
    let mut admin = cluster.connect(leader).expect("a session on the leader");
    // The default is as many as shall be listed; what looks at them needs some room, too.
    for id in 1..=3 {
        let mut session = cluster.connect(id).expect("a session");
        for sql in ["ALTER SYSTEM SET pgquorum.statements_max = 12000", "SELECT pg_reload_conf()"] {
            session.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        }
    }
    admin.batch_execute("CREATE DATABASE many").expect("a database");
    drop(admin);
    cluster.down();
    cluster.up(3);
    cluster.await_replicas(2);
    let leader = cluster.leader();
    let mut session = cluster.connect_to(leader, "many").expect("a session on the leader");
    session.batch_execute("CREATE EXTENSION pgquorum").expect("the extension");
    for n in 0..HASHES {
        session.batch_execute(&format!("SELECT 1 AS n{n}")).expect("a statement");
    }
    await_until(PATIENCE, "all are served", || match served(&mut session).len() {
        n if n >= HASHES => Ok(()),
        n => Err(n.to_string()),
    });
}

/// Waits until the node lists them all; the answer's tag.
fn await_listed(port: u16) -> String {
    await_until(PATIENCE, "all are listed", || {
        let answer = get_with(PATIENCE, port, PATH, &[]).map_err(|e| e.to_string())?;
        let count = answer.body.as_array().map_or(0, Vec::len);
        let tag = answer.field("etag").unwrap_or_default().to_owned();
        if count >= HASHES && !tag.is_empty() { Ok(tag) } else { Err(format!("{} {count}", answer.status)) }
    })
}

/// Milliseconds of whole answers and of those that say that nothing is new, and how many of the latter a second.
async fn measure(to: SocketAddr, tag: &str) -> Result<(Samples, Samples, f64), Error> {
    let mut pool = Pool::open(to, CONNECTIONS).await?;
    let whole = Question::of(PATH);
    let same = Question { fields: format!("if-none-match: {tag}\r\n"), status: 304, ..Question::of(PATH) };
    let (mut whole_ms, mut same_ms, mut rates) = (Vec::new(), Vec::new(), Samples::default());
    pool.ask_question(&whole, SLICE / 5).await?;
    for _ in 0..SLICES {
        let slice = pool.ask_question(&whole, SLICE).await?;
        whole_ms.extend(slice.latencies.iter().map(|s| s * 1000.0));
        let slice = pool.ask_question(&same, SLICE).await?;
        rates.add(slice.latencies.len() as f64 / slice.took.as_secs_f64());
        same_ms.extend(slice.latencies.iter().map(|s| s * 1000.0));
    }
    Ok((Samples::from(whole_ms), Samples::from(same_ms), rates.median()))
}
