//! What a client asks the nodes of such a cluster, over HTTP and in SQL, from its own place in the network.

use super::{API_PORT, DB_PORT, NetCluster};
use crate::{CLIENT, request_over_tls, request_to, request_within};
use postgres::{Client, Config, NoTls};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

impl NetCluster {
    /// The token of its nodes.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A request from the client's place.
    pub fn request(&self, id: u64, method: &str, path: &str) -> Result<(u16, Value), String> {
        self.send(id, method, path, None)
    }

    /// The same with a body.
    pub fn send(
        &self,
        id: u64,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        let to = SocketAddr::from((self.address(id), API_PORT));
        let (token, body) = (Some(self.token.as_str()), body.map(Value::to_string));
        let send = || match &self.authority {
            Some(authority) => request_over_tls(authority, to, token, method, path, body.as_deref()),
            None => request_to(to, token, method, path, body.as_deref()),
        };
        self.network.inside(CLIENT, send).map_err(|e| e.to_string())
    }

    /// The same with a limit for the answer.
    pub fn request_within(
        &self,
        limit: Duration,
        id: u64,
        method: &str,
        path: &str,
    ) -> Result<(u16, Value), String> {
        let to = SocketAddr::from((self.address(id), API_PORT));
        let send = || request_within(limit, to, Some(&self.token), method, path, None);
        self.network.inside(CLIENT, send).map_err(|e| e.to_string())
    }

    /// The connection string of all nodes.
    pub fn dsn(&self) -> String {
        let hosts: Vec<String> =
            self.ids().iter().map(|id| format!("{}:{DB_PORT}", self.address(*id))).collect();
        let (password, hosts) = (&self.password, hosts.join(","));
        format!("postgresql://postgres:{password}@{hosts}/postgres?target_session_attrs=read-write")
    }

    /// A session of the client on this very node.
    pub fn connect(&self, id: u64) -> Result<Client, postgres::Error> {
        self.connect_to(id, "postgres")
    }

    /// The same in another database.
    pub fn connect_to(&self, id: u64, database: &str) -> Result<Client, postgres::Error> {
        let mut config = Config::new();
        config.host(&self.address(id).to_string()).port(DB_PORT).user("postgres").dbname(database);
        config.password(&self.password).connect_timeout(Duration::from_secs(2));
        config.tcp_user_timeout(Duration::from_secs(5)).application_name("pgquorum-tests");
        self.network.inside(CLIENT, || config.connect(NoTls))
    }

    /// One value as text from one node.
    pub fn ask(&self, id: u64, query: &str) -> Result<String, String> {
        let mut client = self.connect(id).map_err(|e| format!("{e:?}"))?;
        let row = client.query_one(query, &[]).map_err(|e| format!("{e:?}"))?;
        row.try_get::<_, Option<String>>(0).map(Option::unwrap_or_default).map_err(|e| e.to_string())
    }

    /// Tries to write on a node; the answer of the server.
    pub fn write(&self, id: u64) -> Result<(), String> {
        let mut client = self.connect(id).map_err(|e| format!("{e:?}"))?;
        let sql = "SET statement_timeout = '3s'; CREATE TABLE IF NOT EXISTS pgquorum_writable (node bigint); \
                   INSERT INTO pgquorum_writable VALUES (0)";
        client.batch_execute(sql).map_err(|e| format!("{e:?}"))
    }
}
