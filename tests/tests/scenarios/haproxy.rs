//! HAProxy, set up as for Patroni, finds the primary and the standbys.

use pgquorum_tests::{Cluster, PATIENCE, await_until, free_ports};
use postgres::{Client, Config, NoTls};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The parts of docs/rest.md, HAProxy; checked more often, so that the test need not wait, and with time for the answer to each
/// check, so that a machine that stands still is not taken for a dead node.
fn configuration(cluster: &Cluster, write: u16, read: u16) -> String {
    let nodes = cluster.status().nodes;
    let servers: Vec<String> = nodes
        .iter()
        .map(|node| {
            format!(
                "    server node{} {}:{} check port {}\n",
                node.id,
                node.db_host,
                node.db_port,
                node.api_port()
            )
        })
        .collect();
    let servers = servers.concat();
    format!(
        "defaults\n    mode tcp\n    timeout connect 2s\n    timeout check 10s\n    timeout client 30m\n    timeout server 30m\n\n\
         listen postgres_write\n    bind 127.0.0.1:{write}\n    option httpchk OPTIONS /primary\n    \
         http-check expect status 200\n    \
         default-server inter 200ms fastinter 100ms fall 2 rise 1 on-marked-down shutdown-sessions\n{servers}\n\
         listen postgres_read\n    bind 127.0.0.1:{read}\n    balance leastconn\n    \
         option httpchk OPTIONS /replica?lag=16MB\n    http-check expect status 200\n    \
         default-server inter 200ms fall 2 rise 1 on-marked-down shutdown-sessions\n{servers}"
    )
}

struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(cluster: &Cluster, port: u16) -> Result<Client, String> {
    let known: Config = cluster.status().dsn.parse().map_err(|e| format!("{e}"))?;
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
    config.password(known.get_password().unwrap_or_default()).connect_timeout(Duration::from_secs(2));
    config.connect(NoTls).map_err(|e| format!("{e:?}"))
}

/// Which node answers on this port, by the port of its server, and whether it is a standby.
fn behind(cluster: &Cluster, port: u16) -> Result<(i32, bool), String> {
    let asked = "SELECT current_setting('port')::int, pg_is_in_recovery()";
    let row = connect(cluster, port)?.query_one(asked, &[]).map_err(|e| format!("{e:?}"))?;
    Ok((row.get(0), row.get(1)))
}

#[test]
fn it_sends_writes_to_the_primary_and_reads_to_standbys() {
    let cluster = Cluster::start_steady(3);
    cluster.await_replicas(2);
    let [write, read] = free_ports();
    let file = cluster.dir().join("haproxy.cfg");
    std::fs::write(&file, configuration(&cluster, write, read)).expect("the configuration");
    let log = std::fs::File::create(cluster.dir().join("haproxy.log")).expect("a file for its log");
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let _proxy = Proxy(command.spawn().expect("haproxy; `make setup` installs it"));

    let old = cluster.leader();
    let port_of = |id: u64| i32::from(cluster.node(id).db_port);
    let is_at = |id: u64| {
        let expected = port_of(id);
        await_until(PATIENCE, &format!("writes go to node {id}"), || match behind(&cluster, write)? {
            (port, false) if port == expected => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    is_at(old);
    let writes = |sql: &str| {
        await_until(PATIENCE, sql, || {
            connect(&cluster, write)?.batch_execute(sql).map_err(|e| format!("{e:?}"))
        });
    };
    writes("CREATE TABLE IF NOT EXISTS t (n int)");
    await_until(PATIENCE, "reads go to a standby", || match behind(&cluster, read)? {
        (port, true) if port != port_of(old) => Ok(()),
        other => Err(format!("{other:?}")),
    });

    // A session that went to the primary is ended with it, and does not stay at a server that takes no writes.
    let mut open = await_until(PATIENCE, "a session", || connect(&cluster, write));
    cluster.kill(old, None);
    let new = cluster.await_leader(Some(old));
    is_at(new);
    assert!(open.batch_execute("INSERT INTO t VALUES (0)").is_err(), "the session was at the old primary");
    writes("INSERT INTO t VALUES (1)");
    cluster.start_node(old);
    cluster.await_replicas(2);
    await_until(PATIENCE, "reads go to the node that came back, too", || match behind(&cluster, read)? {
        (port, true) if port == port_of(old) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
