//! `pgquorum each`

use super::client::Target;
use super::failure::Failure;
use super::output::{Out, plain, table};
use clap::Args;
use hyper::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// The longest that nodes are given.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// As much of an answer as a line of a table has room for.
const ANSWER_CHARACTERS: usize = 120;

/// Sends one REST request to every node at the same time, with your login, and shows what each of them answers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgquorum each -- GET /map
  pgquorum each --node 2,3 --timeout 5s -- GET '/sql/readonly?database=shop'
  pgquorum each --json -- GET /db-config

The exit code is 1 if a node refused, or did not answer.")]
pub struct EachArgs {
    #[command(flatten)]
    target: Target,
    /// Only these nodes; several with commas [default: all].
    #[arg(long = "node", value_name = "N", value_delimiter = ',')]
    nodes: Vec<u64>,
    /// How long nodes may take to answer, at most 1m.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    timeout: String,
    /// GET, POST, PUT, PATCH or DELETE.
    #[arg(value_name = "METHOD")]
    method: String,
    /// A path of the REST interface, with its query, such as /map.
    #[arg(value_name = "PATH")]
    path: String,
    /// The body as JSON.
    #[arg(value_name = "BODY")]
    body: Option<String>,
}

pub async fn run(args: EachArgs, out: Out) -> Result<(), Failure> {
    let body = match &args.body {
        None => Value::Null,
        Some(text) => serde_json::from_str(text).map_err(|e| {
            Failure::usage(format!("the body is not JSON ({e}); write for example '{{\"a\": 1}}'"))
        })?,
    };
    let mut request =
        json!({"method": args.method, "path": args.path, "body": body, "timeout": args.timeout});
    if !args.nodes.is_empty() {
        request["targets"] = json!(args.nodes);
    }
    let client = args.target.client()?.patient(TIMEOUT_MAX);
    let answer = client.call(Method::POST, "/cluster/request", Some(&request)).await?;
    out.show(&answer, || list(&answer));
    let failed = answer["failures"].as_array().map_or(0, Vec::len);
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::failed("some_failed", format!("{failed} of the nodes refused, or did not answer")))
}

fn list(answer: &Value) -> String {
    let part = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
    let mut rows: Vec<(u64, Vec<String>)> = Vec::new();
    for one in part("results") {
        rows.push(row(&one["server"], "ok".to_owned(), &one["result"]));
    }
    for one in part("failures") {
        rows.push(row(&one["server"], plain(&one["error"]["statusCode"]), &one["error"]["message"]));
    }
    rows.sort_by_key(|(node, _)| *node);
    table(&["NODE", "ADDRESS", "STATUS", "ANSWER"], rows.into_iter().map(|(_, row)| row).collect())
}

fn row(server: &Value, status: String, answer: &Value) -> (u64, Vec<String>) {
    let mut text: String = plain(answer).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Some((end, _)) = text.char_indices().nth(ANSWER_CHARACTERS) {
        text.truncate(end);
        text.push('…');
    }
    let node = &server["node"];
    (node.as_u64().unwrap_or(0), vec![plain(node), plain(&server["clusterBaseUrl"]), status, text])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_shown_node_by_node() {
        let server = |n: u64| json!({"node": n, "clusterBaseUrl": format!("http://10.0.0.{n}:8008")});
        let text = list(&json!({
            "results": [{"server": server(3), "result": "y".repeat(200)}, {"server": server(1), "result": {"a": "b\n"}}],
            "failures": [{"server": server(2), "error": {"statusCode": 503, "message": "it could not be asked"}}],
        }));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("10.0.0.1") && lines[1].contains(r#"{"a":"b\n"}"#), "{text}");
        assert!(lines[2].contains("503") && lines[2].contains("could not"), "{text}");
        assert!(text.contains("y…") && !text.contains(&"y".repeat(150)), "{text}");
    }
}
