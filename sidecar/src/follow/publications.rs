//! Which publications of a database are worked for, and what that database is told of them.

use super::publication::{Own, Publication};
use super::publishing::{Here, Outcome, addresses, work};
use super::trouble::{Kind, Result, Trouble};
use crate::feed::{FeedError, ONLY_READ, Pool, Purpose, column, said, within};
use pgquorum_agent::view::View;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

const ORIGIN: &str = "SELECT quorum.origin_name()";
const REPORT: &str = "SELECT quorum.report_publication($1, $2, $3, $4, $5, $6)::text";
const ENDED: &str = "SELECT quorum.publication_ended($1)";
const DEADLINE: Duration = Duration::from_secs(22);

/// How this cluster looks from elsewhere.
#[derive(Clone, Debug)]
pub struct Face {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// PEM text of the authority that signed the certificates of its sidecars.
    pub ca: Option<String>,
}

/// What all publications are worked for with.
#[derive(Clone)]
pub struct Means {
    pub pool: Arc<Pool>,
    pub view: watch::Receiver<Arc<View>>,
    pub face: Arc<Face>,
}

/// Those of one database.
#[derive(Default)]
pub struct Publications(BTreeMap<i32, Running>);

struct Running {
    publication: Publication,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Publications {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Begins and ends what is to be begun and ended. With each publication: the revision that the other cluster was told last.
    pub fn work_for(&mut self, means: &Means, database: &str, found: Vec<(Publication, Option<i32>)>) {
        self.0.retain(|id, _| found.iter().any(|(publication, _)| publication.id == *id));
        for (publication, done) in found {
            let known = self.0.get(&publication.id);
            if known.is_some_and(|known| known.publication == publication && !known.task.is_finished()) {
                continue;
            }
            // What was begun by other settings ends first.
            self.0.remove(&publication.id);
            let teller = Teller { means: means.clone(), database: database.to_owned(), id: publication.id };
            let task = tokio::spawn(work(publication.clone(), done, teller));
            self.0.insert(publication.id, Running { publication, task });
        }
    }
}

/// The database with a publication.
struct Teller {
    means: Means,
    database: String,
    id: i32,
}

impl Teller {
    async fn ask(
        &self,
        purpose: Purpose,
        query: &str,
        values: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Row> {
        let pool = &self.means.pool;
        let asked = async {
            let session = pool.take(&self.database, purpose).await?;
            let row = within(DEADLINE, ONLY_READ, said(session.query_typed_one(query, values))).await;
            pool.done(session, row)
        };
        asked.await.map_err(here)
    }
}

fn here(error: FeedError) -> Trouble {
    Trouble::new(Kind::Here, error.kind.code(), error.message)
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl Here for Teller {
    fn own(&self) -> Answer<'_, Own> {
        Box::pin(async {
            let row = self.ask(Purpose::Follow, ORIGIN, &[]).await?;
            let origin = column(&row, 0).map_err(here)?;
            let face = &self.means.face;
            let addresses = addresses(&self.means.view.borrow(), face.scheme);
            Ok(Own { addresses, ca: face.ca.clone(), database: self.database.clone(), origin })
        })
    }

    fn report(&self, outcome: Outcome, revision: Option<i32>) -> Answer<'_, ()> {
        Box::pin(async move {
            let values: [(&(dyn ToSql + Sync), Type); 6] = [
                (&self.id, Type::INT4),
                (&outcome.state, Type::TEXT),
                (&outcome.code, Type::TEXT),
                (&outcome.detail, Type::TEXT),
                (&revision, Type::INT4),
                (&outcome.there, Type::JSONB),
            ];
            self.ask(Purpose::Change, REPORT, &values).await.map(drop)
        })
    }

    fn ended(&self) -> Answer<'_, ()> {
        Box::pin(async { self.ask(Purpose::Change, ENDED, &[(&self.id, Type::INT4)]).await.map(drop) })
    }
}
