//! How many `GET /is-leader` a second the leader answers to a pool of connections, as load balancers ask it. The client
//! shares the machine with the three nodes.

use crate::Options;
use crate::keep_alive::Pool;
use crate::line::{Line, Must, Samples, rounded};
use pgquorum_tests::Cluster;
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;

pub const NAME: &str = "is-leader-requests";

const MUST: f64 = 10_000.0;
const MUST_P99_MS: f64 = 10.0;
const CONNECTIONS: usize = 32;
const SLICES: usize = 5;
const SLICE: Duration = Duration::from_secs(1);

pub fn run(_: &Options) -> bool {
    let cluster = Cluster::start(3);
    cluster.await_replicas(2);
    let port = cluster.node(cluster.leader()).api_port();
    // One thread, so that the client takes no more of the machine than it must.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let measured = runtime.block_on(measure(SocketAddr::from(([127, 0, 0, 1], port))));
    let (rates, map_rates, latencies) = measured.unwrap_or_else(|e| panic!("{NAME}: {e}"));
    let ms = |part| rounded(latencies.quantile(part) * 1000.0);
    let line = Line {
        bench: NAME,
        unit: "requests/s",
        samples: &rates,
        ratio: rates.median() / map_rates.median(),
        against: "GET /map of the same server",
        must: Must::AtLeast(MUST),
        judged: rates.median(),
        kept: ms(0.99) < MUST_P99_MS,
        more: json!({
            "p50_ms": ms(0.5), "p99_ms": ms(0.99), "max_ms": ms(1.0), "must_p99_ms": MUST_P99_MS,
            "map": rounded(map_rates.median()), "requests": latencies.len(), "connections": CONNECTIONS,
        }),
    };
    line.print()
}

async fn measure(to: SocketAddr) -> Result<(Samples, Samples, Samples), std::io::Error> {
    let mut pool = Pool::open(to, CONNECTIONS).await?;
    pool.ask("/is-leader", SLICE / 5).await?;
    let (mut rates, mut map_rates, mut latencies) = (Samples::default(), Samples::default(), Vec::new());
    for _ in 0..SLICES {
        let slice = pool.ask("/is-leader", SLICE).await?;
        rates.add(slice.latencies.len() as f64 / slice.took.as_secs_f64());
        latencies.extend(slice.latencies);
        let slice = pool.ask("/map", SLICE).await?;
        map_rates.add(slice.latencies.len() as f64 / slice.took.as_secs_f64());
    }
    Ok((rates, map_rates, Samples::from(latencies)))
}
