//! Query parameters, with errors that name them.

use super::refusal::Refusal;
use crate::uri;
use pgquorum_agent::types::NodeId;

/// The decoded parameters of a request.
pub(super) struct Query {
    parameters: Vec<(String, String)>,
}

impl Query {
    /// Reads a query string in which nothing but `known` may occur, and nothing twice.
    pub(super) fn strict(raw: &str, known: &[&str]) -> Result<Query, Refusal> {
        let query = Query::lenient(raw)?;
        for (index, (name, _)) in query.parameters.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let message = format!("unknown parameter {name:?}; this route knows {}", known.join(", "));
                return Err(Refusal::bad_request("unknown_parameter", message));
            }
            if query.parameters[..index].iter().any(|(earlier, _)| earlier == name) {
                let message = format!("parameter {name} is there more than once");
                return Err(Refusal::bad_request("duplicate_parameter", message));
            }
        }
        Ok(query)
    }

    /// Reads a query string of which only some parameters matter.
    pub(super) fn lenient(raw: &str) -> Result<Query, Refusal> {
        let pairs = raw.split('&').filter(|pair| !pair.is_empty());
        let parameters = pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode(name)?, decode(value)?))
            })
            .collect::<Result<_, Refusal>>()?;
        Ok(Query { parameters })
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn need(&self, name: &str) -> Result<&str, Refusal> {
        self.get(name).filter(|value| !value.is_empty()).ok_or_else(|| {
            Refusal::bad_request(
                "missing_parameter",
                format!("parameter {name} is missing; write …?{name}=…"),
            )
        })
    }

    /// A port; `None` if the parameter is absent.
    pub(super) fn port(&self, name: &str) -> Result<Option<u16>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err(bad(name, text, "a port from 1 to 65535")),
        }
    }

    pub(super) fn need_port(&self, name: &str) -> Result<u16, Refusal> {
        self.need(name)?;
        self.port(name)?.ok_or_else(|| bad(name, "", "a port from 1 to 65535"))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| bad(name, text, "a number from 0 on"))
    }

    /// Values between commas; none if the parameter is absent.
    pub(super) fn list(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(Vec::new()) };
        let values: Vec<String> = text.split(',').map(|value| value.trim().to_owned()).collect();
        if values.iter().any(String::is_empty) {
            return Err(bad(name, text, "names with commas between them"));
        }
        Ok(values)
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some("true" | "on" | "1" | "yes") => Ok(Some(true)),
            Some("false" | "off" | "0" | "no") => Ok(Some(false)),
            Some(text) => Err(bad(name, text, "true or false")),
        }
    }
}

/// A node's number, from the path or from a parameter.
pub(super) fn node_id(name: &str, text: &str) -> Result<NodeId, Refusal> {
    match text.parse::<NodeId>() {
        Ok(id) if id > 0 => Ok(id),
        _ => Err(bad(name, text, "a node's number, 1 or more")),
    }
}

pub(super) fn bad(name: &str, text: &str, expected: &str) -> Refusal {
    Refusal::bad_request("bad_parameter", format!("parameter {name} is {text:?}; expected {expected}"))
}

/// Undoes the encoding of form parameters: `+` and `%XX`.
fn decode(text: &str) -> Result<String, Refusal> {
    uri::decoded(&text.replace('+', " ")).ok_or_else(|| {
        Refusal::bad_request("bad_query", format!("cannot decode {text:?} in the query string"))
    })
}
