//! What clients of the registry send and get: names in camel case, times as text, ids that look like UUIDs.

use bytes::Bytes;
use pgquorum_agent::member::Member;
use pgquorum_agent::registry::{Registration, Server, Service};
use pgquorum_agent::types::Millis;
use pgquorum_agent::view::View;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::time::{Duration, SystemTime};

/// The type of this cluster's own nodes. They are there as long as they are members, and register nowhere.
pub const OWN_TYPE: &str = "pgquorum";

const TYPE_BYTES_MAX: usize = 64;
const SERVER_BYTES_MAX: usize = 128;
const URL_BYTES_MAX: usize = 512;
const LOCATION_BYTES_MAX: usize = 256;

/// How many servers a whole service that is sent may have.
pub const SERVERS_SENT_MAX: usize = 1000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItResource<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    public_base_url: &'a str,
    servers: Vec<ItServer<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItServer<'a> {
    server_id: &'a str,
    public_base_url: &'a str,
    cluster_base_url: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    location: &'a Value,
    created_at: String,
    updated_at: String,
}

impl<'a> ItServer<'a> {
    fn new(server: &'a Server) -> ItServer<'a> {
        let known = &server.registration;
        ItServer {
            server_id: &known.server,
            public_base_url: &known.public_url,
            cluster_base_url: &known.cluster_url,
            location: &known.location,
            created_at: time(server.created),
            updated_at: time(server.updated),
        }
    }
}

/// A service with all its servers.
pub fn resource(kind: &str, service: &Service) -> Bytes {
    written(kind, service, service.servers.values().map(|server| ItServer::new(server)).collect())
}

/// A service with this server alone.
pub fn resource_of(kind: &str, service: &Service, server: &str) -> Bytes {
    let found = service.servers.get(server);
    written(kind, service, found.map(|server| ItServer::new(server)).into_iter().collect())
}

fn written(kind: &str, service: &Service, servers: Vec<ItServer<'_>>) -> Bytes {
    let resource = ItResource { id: &service.id, kind, public_base_url: &service.public_url, servers };
    serde_json::to_vec(&resource).expect("a service is plain data").into()
}

/// One server.
pub fn server(server: &Server) -> Value {
    json!(ItServer::new(server))
}

/// The nodes of this cluster, as servers of a type of their own.
pub fn own_nodes(view: &View, scheme: &str) -> Value {
    let servers: Vec<Value> = view.cluster.members.values().map(|member| own_node(member, scheme)).collect();
    let url = view.leader.as_ref().map(|leader| format!("{scheme}://{}", leader.api));
    json!({"id": view.cluster.cluster_id, "type": OWN_TYPE, "publicBaseUrl": url, "servers": servers})
}

pub fn own_node(member: &Member, scheme: &str) -> Value {
    let url = format!("{scheme}://{}", member.api_address());
    json!({
        "serverId": format!("node-{}", member.id),
        "publicBaseUrl": url,
        "clusterBaseUrl": url,
        "node": member.id,
        "role": member.role,
        "down": member.down,
    })
}

/// The id of all servers of a type, the same whoever registers first and however often they come and go.
pub fn service_id(cluster: &str, kind: &str) -> String {
    let digest = Sha256::digest(format!("{cluster}\0{kind}"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid(bytes)
}

/// 16 bytes as a UUID of the version for those that are made as one likes.
pub fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// RFC 3339 with milliseconds.
pub fn time(unix_ms: Millis) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    at.map_or_else(String::new, |at| humantime::format_rfc3339_millis(at).to_string())
}

fn parse_time(text: &str) -> Option<Millis> {
    let at = humantime::parse_rfc3339(text).ok()?;
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// A server as a path names it: its id, or `id@time` for "only if it was not updated after that".
pub fn named(segment: &str) -> (String, Option<Millis>) {
    match segment.rsplit_once('@').and_then(|(id, at)| Some((id, parse_time(at)?))) {
        Some((id, at)) => (id.to_owned(), Some(at)),
        None => (segment.to_owned(), None),
    }
}

/// What `POST /itResources` brings.
#[derive(Debug, PartialEq)]
pub enum Posted {
    /// A server registers.
    Server { kind: String, server: Registration },
    /// A server tells what it knows of all servers of its type: with when each was updated.
    Service { id: String, kind: String, servers: Vec<(Registration, Millis)> },
}

/// Reads such a body. What is not known is left alone: others may send more than we use.
///
/// # Errors
/// In words: what is missing, or wrong.
pub fn posted(body: &Map<String, Value>) -> Result<Posted, String> {
    let kind = kind(body)?;
    let Some(servers) = body.get("servers") else {
        return Ok(Posted::Server { kind, server: registration(body)? });
    };
    let id = text(body, "id", SERVER_BYTES_MAX)?;
    let servers = servers.as_array().ok_or("servers must be an array")?;
    if servers.len() > SERVERS_SENT_MAX {
        return Err(format!("servers has {} elements; at most {SERVERS_SENT_MAX} are read", servers.len()));
    }
    let server = |server: &Value| {
        let server = server.as_object().ok_or("each of servers must be an object")?;
        let updated = text(server, "updatedAt", 64).or_else(|_| text(server, "createdAt", 64))?;
        let updated = parse_time(&updated)
            .ok_or_else(|| format!("{updated:?} is not a time; write 2026-01-01T00:00:00.000Z"))?;
        Ok::<_, String>((registration(server)?, updated))
    };
    Ok(Posted::Service { id, kind, servers: servers.iter().map(server).collect::<Result<_, _>>()? })
}

fn kind(body: &Map<String, Value>) -> Result<String, String> {
    let kind = text(body, "type", TYPE_BYTES_MAX)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !kind.bytes().all(plain) {
        return Err(format!("type is {kind:?}; it has letters, digits and . _ - only"));
    }
    Ok(kind)
}

fn registration(body: &Map<String, Value>) -> Result<Registration, String> {
    let server = text(body, "serverId", SERVER_BYTES_MAX)?;
    let plain = |b: u8| b.is_ascii_graphic() && !b"/?#%\\\"<>".contains(&b);
    if !server.bytes().all(plain) || server == "." || server == ".." {
        return Err(format!(
            "serverId is {server:?}; it may have letters, digits and signs, but no / ? # % \\ \" < > and no spaces"
        ));
    }
    if named(&server).1.is_some() {
        return Err(format!("serverId is {server:?}; it must not end with @ and a time"));
    }
    let location = body.get("location").cloned().unwrap_or_default();
    if !location.is_null() && location.to_string().len() > LOCATION_BYTES_MAX {
        return Err(format!("location is longer than {LOCATION_BYTES_MAX} bytes"));
    }
    let (public_url, cluster_url) = (url(body, "publicBaseUrl")?, url(body, "clusterBaseUrl")?);
    Ok(Registration { server, public_url, cluster_url, location })
}

fn url(body: &Map<String, Value>, name: &str) -> Result<String, String> {
    let url = text(body, name, URL_BYTES_MAX)?;
    let parsed = url.parse::<warp::http::Uri>().ok();
    let fits = parsed.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    });
    if fits { Ok(url) } else { Err(format!("{name} is {url:?}; write for example http://10.0.0.5:8080/api")) }
}

fn text(body: &Map<String, Value>, name: &str, max: usize) -> Result<String, String> {
    match body.get(name) {
        None | Some(Value::Null) => Err(format!("the body must have {name}")),
        Some(Value::String(text)) if text.is_empty() => Err(format!("{name} is empty")),
        Some(Value::String(text)) if text.len() > max => Err(format!("{name} is longer than {max} bytes")),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("{name} must be a text")),
    }
}

#[cfg(test)]
mod tests;
