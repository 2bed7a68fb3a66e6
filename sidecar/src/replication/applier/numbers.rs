//! What the remote's collections are called, for lines that have only their numbers.

use super::copy;
use super::events::{Collection, Event, Fate};
use super::fault::Result;
use super::remote::Remote;
use std::collections::HashMap;

/// Names by numbers, as an inventory had them.
#[derive(Debug, Default)]
pub struct Numbers(HashMap<String, String>);

impl Numbers {
    /// The name of the collection that an event is about; `None`: it is about none. Events are given in their order.
    ///
    /// # Errors
    /// The remote has to be asked, and does not answer.
    pub async fn name(&mut self, remote: &Remote, event: &Event) -> Result<Option<String>> {
        let collection = match event {
            Event::Change(_, change) => &change.collection,
            Event::Fate(fate, collection) => {
                // From here on a number may stand for another name.
                if matches!(fate, Fate::Created | Fate::Renamed) {
                    self.0.clear();
                }
                collection
            }
            _ => return Ok(None),
        };
        let id = match collection {
            Collection::Name(name) => return Ok(Some(name.clone())),
            Collection::Id(id) => id,
        };
        if !self.0.contains_key(id) {
            let batch = remote.begin_batch().await?;
            let inventory = remote.inventory(&batch.id).await;
            let _ = remote.end_batch(&batch.id).await;
            self.0.extend(copy::names(&inventory?));
        }
        // One that was dropped since has no name any more; its number is none that anybody wants.
        Ok(Some(self.0.get(id).cloned().unwrap_or_else(|| format!("_dropped.{id}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::events;
    use super::super::played::{Played, answer};
    use super::*;
    use serde_json::json;
    use std::sync::{Arc, Mutex};

    fn event(line: &str) -> Event {
        events::event(line).unwrap().1
    }

    #[tokio::test]
    async fn a_number_is_of_another_name_after_it_was_renamed() {
        let name = Arc::new(Mutex::new("old"));
        let present = Arc::clone(&name);
        let there = Played::start(move |line| {
            let name = *present.lock().unwrap();
            let body = if line.contains("/inventory") {
                json!({"collections": [{"parameters": {"cid": "5", "name": name}}]})
            } else {
                json!({"id": "9"})
            };
            answer(&[], &body.to_string())
        })
        .await;
        let (remote, mut numbers) = (there.remote(), Numbers::default());
        let change = event(r#"{"tick":"1","type":2302,"cid":"5","key":"1"}"#);
        assert_eq!(numbers.name(&remote, &change).await.unwrap().as_deref(), Some("old"));
        *name.lock().unwrap() = "new";
        // Not asked again as long as nothing of that kind happens.
        let emptied = event(r#"{"tick":"2","type":2004,"cid":"5"}"#);
        assert_eq!(numbers.name(&remote, &emptied).await.unwrap().as_deref(), Some("old"));
        let renamed = event(r#"{"tick":"3","type":2002,"cid":"5","collection":{"name":"new"}}"#);
        assert_eq!(numbers.name(&remote, &renamed).await.unwrap().as_deref(), Some("new"));
        assert_eq!(numbers.name(&remote, &change).await.unwrap().as_deref(), Some("new"));
        // What the remote does not know any more is still known here.
        let other = event(r#"{"tick":"4","type":2302,"cid":"6","key":"1"}"#);
        assert_eq!(numbers.name(&remote, &other).await.unwrap().as_deref(), Some("_dropped.6"));
        assert_eq!(numbers.name(&remote, &event(r#"{"tick":"5","type":2201}"#)).await, Ok(None));
    }
}
