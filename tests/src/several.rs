//! Several clusters of one node each, in whose databases tables are followed in any topology.

use crate::{Cluster, PATIENCE, await_until, request, run};
use postgres::{Client, Config, NoTls};
use serde_json::json;
use std::time::Duration;

/// The channel that is followed, in every database.
const CHANNEL: &str = "shop";

/// One of the clusters follows another one.
#[derive(Clone, Copy, Debug)]
pub struct Follow {
    pub source: usize,
    pub target: usize,
    /// It takes also what the source has from elsewhere.
    pub forward: bool,
}

impl Follow {
    /// What the subscription is called at the target.
    fn name(self) -> String {
        format!("from_{}", self.source)
    }
}

/// Clusters by number, from 0. They keep their ports, so a session on one that is down is just refused.
pub struct Several {
    clusters: Vec<Cluster>,
    servers: Vec<Config>,
    apis: Vec<u16>,
}

impl Several {
    /// # Panics
    /// They cannot be started.
    pub fn start(count: usize) -> Several {
        let clusters: Vec<Cluster> = std::thread::scope(|scope| {
            let started: Vec<_> = (0..count).map(|_| scope.spawn(|| Cluster::start_steady(1))).collect();
            started.into_iter().map(|cluster| cluster.join().expect("a cluster")).collect()
        });
        let (mut servers, mut apis) = (Vec::new(), Vec::new());
        for cluster in &clusters {
            let status = cluster.status();
            let node = &status.nodes[0];
            let known: Config = status.dsn.parse().expect("a connection string");
            let mut server = Config::new();
            server
                .host(&node.db_host)
                .port(node.db_port)
                .user("postgres")
                .connect_timeout(Duration::from_secs(2));
            server.password(known.get_password().unwrap_or_default()).application_name("pgquorum-tests");
            servers.push(server);
            apis.push(node.api_port());
        }
        Several { clusters, servers, apis }
    }

    pub fn cluster(&self, at: usize) -> &Cluster {
        &self.clusters[at]
    }

    pub fn numbers(&self) -> std::ops::Range<usize> {
        0..self.clusters.len()
    }

    /// A session in a database of one of them.
    ///
    /// # Errors
    /// The server's, or that there is none.
    pub fn try_connect(&self, at: usize, database: &str) -> Result<Client, postgres::Error> {
        self.servers[at].clone().dbname(database).connect(NoTls)
    }

    /// The same of one that is up.
    ///
    /// # Panics
    /// There is none in time.
    pub fn connect(&self, at: usize, database: &str) -> Client {
        await_until(PATIENCE, &format!("a session at cluster {at}"), || {
            self.try_connect(at, database).map_err(|error| format!("{error:?}"))
        })
    }

    /// Makes a database everywhere, with these tables and, in the channel, those that are named. Origins are named by the
    /// clusters' numbers.
    ///
    /// # Panics
    /// A statement fails.
    pub fn prepare(&self, database: &str, tables: &str, tracked: &[&str]) {
        let prepare = |at| {
            run(&mut self.connect(at, "postgres"), &format!("CREATE DATABASE {database}"));
            let mut client = self.connect(at, database);
            let named = format!("quorum.set_origin_name('cluster_{at}'), quorum.create_channel('{CHANNEL}')");
            run(&mut client, &format!("CREATE EXTENSION pgquorum; SELECT {named}; {tables}"));
            tracked
                .iter()
                .for_each(|t| run(&mut client, &format!("SELECT quorum.track('{t}', '{CHANNEL}')")));
        };
        std::thread::scope(|scope| {
            self.numbers().for_each(|at| drop(scope.spawn(move || prepare(at))));
        });
    }

    /// Subscribes everybody to whom these say, from now on, and waits until all follow. In the end the last write wins.
    ///
    /// # Panics
    /// One is refused, or does not follow in time.
    pub fn follow(&self, database: &str, all: &[Follow]) {
        for follow in all {
            let remote = format!("http://127.0.0.1:{}", self.apis[follow.source]);
            let body = json!({"name": follow.name(), "remote": [remote], "channel": CHANNEL, "remote_database": database,
                "copy": "none", "policy": "last_write_wins", "forward": follow.forward});
            let path = format!("/subscriptions?database={database}");
            let answer = request(self.apis[follow.target], "POST", &path, Some(&body.to_string()));
            assert!(answer.as_ref().is_ok_and(|(status, _)| *status == 200), "{body}: {answer:?}");
        }
        await_until(PATIENCE, &format!("everybody follows in {database}"), || {
            let resting = all.iter().filter_map(|follow| match self.state(database, *follow) {
                Ok((state, _, _)) if state == "following" => None,
                Ok((_, _, all)) => Some(all),
                Err(error) => Some(error),
            });
            let resting: Vec<String> = resting.collect();
            if resting.is_empty() { Ok(()) } else { Err(resting.join("; ")) }
        });
    }

    /// State and position of a subscription, and all of it for messages.
    fn state(&self, database: &str, follow: Follow) -> Result<(String, Option<u64>, String), String> {
        let mut client = self.try_connect(follow.target, database).map_err(|error| format!("{error:?}"))?;
        let sql = "SELECT state, split_part(\"position\", ':', 2), concat_ws(' ', state, code, detail, \"position\", \"end\") \
                   FROM quorum.subscription_state WHERE name = $1";
        let row = client.query_one(sql, &[&follow.name()]).map_err(|error| format!("{error:?}"))?;
        let tick = row.get::<_, Option<String>>(1).and_then(|tick| tick.parse().ok());
        Ok((row.get(0), tick, format!("{follow:?}: {}", row.get::<_, String>(2))))
    }

    /// Where the channel ends at each of them.
    fn ends(&self, database: &str) -> Vec<u64> {
        let end = |at| {
            await_until(PATIENCE, &format!("the end of the channel at cluster {at}"), || {
                let mut client = self.try_connect(at, database).map_err(|error| format!("{error:?}"))?;
                let row = client.query_one("SELECT split_part(quorum.cut($1), ':', 2)", &[&CHANNEL]);
                let tick: String = row.map_err(|error| format!("{error:?}"))?.get(0);
                tick.parse::<u64>().map_err(|error| format!("{tick}: {error}"))
            })
        };
        self.numbers().map(end).collect()
    }

    /// Waits until nothing is on its way any more: what one has applied is news for those who follow that one.
    ///
    /// # Panics
    /// It does not come to an end in time.
    pub fn await_quiet(&self, database: &str, all: &[Follow]) {
        let mut ends = self.ends(database);
        // Each change goes round once at most.
        for _ in 0..20 {
            for follow in all {
                let end = ends[follow.source];
                await_until(PATIENCE * 2, &format!("{follow:?} in {database} is at {end}"), || {
                    match self.state(database, *follow)? {
                        (_, Some(tick), _) if tick >= end => Ok(()),
                        (_, _, all) => Err(all),
                    }
                });
            }
            let now = self.ends(database);
            if now == ends {
                return;
            }
            ends = now;
        }
        panic!("changes in {database} do not come to rest: the channels end at {ends:?}");
    }
}
