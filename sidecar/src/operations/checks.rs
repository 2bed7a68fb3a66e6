//! Reading fields and gathering what is wrong about them, in the sentences that clients of this interface know.

use super::fault::Fault;
use super::request::RouteTo;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// How long the name of a node may be: it is part of the name of a subscription.
const NAME_BYTES_MAX: usize = 50;

/// What is wrong, so far. A reading that fails gives something that is of no use, and [`Checks::done`] says so.
#[derive(Default)]
pub struct Checks {
    faults: Vec<String>,
}

type Body = Map<String, Value>;

impl Checks {
    pub fn fault(&mut self, sentence: impl Into<String>) {
        self.faults.push(sentence.into());
    }

    /// Notes that a text is missing.
    pub fn missing(&mut self, label: &str) -> String {
        self.fault(format!("'{label}' is required"));
        String::new()
    }

    /// The outcome, if nothing was wrong.
    pub fn done<T>(self, value: T) -> Result<T, Fault> {
        if self.faults.is_empty() { Ok(value) } else { Err(Fault::invalid(self.faults.join(". "))) }
    }

    /// A text that may be missing.
    pub fn text(&mut self, body: &Body, field: &str, prefix: &str) -> Option<String> {
        match body.get(field) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => {
                self.fault(format!("'{prefix}{field}' is not allowed to be empty"));
                Some(String::new())
            }
            Some(Value::String(text)) if !text.contains('\0') => Some(text.clone()),
            Some(_) => {
                self.fault(format!("'{prefix}{field}' must be a string"));
                Some(String::new())
            }
        }
    }

    /// The first of these fields that is there.
    pub fn alias(&mut self, body: &Body, fields: &[&str], prefix: &str) -> Option<String> {
        let given = |field: &&&str| body.get(**field).is_some_and(|value| !value.is_null());
        fields.iter().find(given).and_then(|field| self.text(body, field, prefix))
    }

    pub fn one_of(&mut self, body: &Body, field: &str, known: &[&str]) -> String {
        match body.get(field) {
            None | Some(Value::Null) => self.missing(field),
            Some(Value::String(text)) if known.contains(&text.as_str()) => text.clone(),
            Some(_) => {
                self.fault(format!("'{field}' must be one of [{}]", known.join(", ")));
                String::new()
            }
        }
    }

    pub fn flag(&mut self, body: &Body, field: &str, prefix: &str) -> Option<bool> {
        match body.get(field) {
            None | Some(Value::Null) => None,
            Some(Value::Bool(flag)) => Some(*flag),
            Some(Value::String(text)) if text == "true" || text == "false" => Some(text == "true"),
            Some(_) => {
                self.fault(format!("'{prefix}{field}' must be a boolean"));
                Some(false)
            }
        }
    }

    pub fn need_flag(&mut self, body: &Body, field: &str, prefix: &str) -> bool {
        self.flag(body, field, prefix).unwrap_or_else(|| {
            self.fault(format!("'{prefix}{field}' is required"));
            false
        })
    }

    /// A whole number, at least this.
    pub fn number(&mut self, body: &Body, field: &str, min: i64) -> Option<i64> {
        let number = match body.get(field) {
            None | Some(Value::Null) => return None,
            Some(Value::Number(number)) => number.as_i64().or_else(|| whole(number.as_f64()?)),
            Some(Value::String(text)) => text.parse().ok(),
            Some(_) => None,
        };
        match number {
            None => self.fault(format!("'{field}' must be a number")),
            Some(number) if number < min => {
                self.fault(format!("'{field}' must be greater than or equal to {min}"));
            }
            Some(_) => {}
        }
        number
    }

    pub fn port(&mut self, body: &Body, prefix: &str) -> u16 {
        let port = match body.get("port") {
            None | Some(Value::Null) => {
                self.missing(&format!("{prefix}port"));
                return 0;
            }
            Some(Value::Number(number)) => number.as_u64().and_then(|port| u16::try_from(port).ok()),
            Some(Value::String(text)) => text.parse().ok(),
            Some(_) => None,
        };
        port.filter(|port| *port > 0).unwrap_or_else(|| {
            self.fault(format!("'{prefix}port' must be a valid port"));
            0
        })
    }

    /// An array of objects, each with its label; `needed`: it must be there.
    pub fn objects(&mut self, body: &Body, label: &str, needed: bool) -> Vec<(String, Body)> {
        let field = label.rsplit('.').next().unwrap_or(label);
        let all = match body.get(field) {
            Some(Value::Array(all)) => all,
            None | Some(Value::Null) => {
                if needed {
                    self.missing(label);
                }
                return Vec::new();
            }
            Some(_) => {
                self.fault(format!("'{label}' must be an array"));
                return Vec::new();
            }
        };
        let mut objects = Vec::with_capacity(all.len());
        for (place, one) in all.iter().enumerate() {
            let label = format!("{label}[{place}]");
            match one {
                Value::Object(object) => objects.push((label, object.clone())),
                _ => self.fault(format!("'{label}' must be of type object")),
            }
        }
        objects
    }

    /// What another cluster has written.
    pub fn sent<T: DeserializeOwned + Default>(&mut self, object: Body, label: &str) -> T {
        serde_json::from_value(Value::Object(object)).unwrap_or_else(|error| {
            self.fault(format!("'{label}' is not what another cluster of this version sends: {error}"));
            T::default()
        })
    }

    pub fn texts(&mut self, body: &Body, field: &str) -> Vec<String> {
        let all = body.get(field).and_then(Value::as_array);
        let texts = all.map(|all| all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect());
        texts.filter(|texts: &Vec<String>| !texts.is_empty()).unwrap_or_else(|| {
            self.fault(format!("'{field}' must be an array of strings"));
            Vec::new()
        })
    }

    pub fn routes(&mut self, body: &Body) -> Vec<RouteTo> {
        let mut routes = Vec::new();
        for (label, route) in self.objects(body, "routes", true) {
            let prefix = format!("{label}.");
            let host = self.text(&route, "host", &prefix);
            let host = host.unwrap_or_else(|| self.missing(&format!("{label}.host")));
            if !host.is_empty() && !is_host(&host) {
                self.fault(format!("'{label}.host' must be a valid hostname"));
            }
            routes.push(RouteTo { host, port: self.port(&route, &prefix) });
        }
        routes
    }

    /// The name of a node; clients of older versions call the field `name`.
    pub fn node_name(&mut self, body: &Body, prefix: &str) -> String {
        let label = format!("{prefix}node_name");
        match self.alias(body, &["node_name", "name"], prefix) {
            None => self.missing(&label),
            Some(name) => {
                if !name.is_empty() {
                    self.name(&name, &label);
                }
                name
            }
        }
    }

    pub fn name(&mut self, name: &str, label: &str) {
        if name.contains(|c: char| ".,*>".contains(c) || c.is_whitespace()) {
            self.fault(format!("'{label}' invalid, must not contain ., * or >"));
        } else if name.len() > NAME_BYTES_MAX
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        {
            self.fault(format!("'{label}' invalid, it has 1 to {NAME_BYTES_MAX} letters, digits, _ and -"));
        }
    }
}

/// A number without a fraction, as JavaScript writes some.
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 9.0e15).then_some(number as i64)
}

/// A name or an address, without anything around it.
fn is_host(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.len() <= 253
        && (inner.parse::<std::net::IpAddr>().is_ok()
            || host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)))
}
