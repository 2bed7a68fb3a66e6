//! Counts of weak commits, read from the server now and then for those who watch.

use super::error::{Result, sql};
use super::session::Session;

const FUNCTION: &str = "quorum.weak_commits()";
/// Pairs whose database or role was dropped since have no name any more, and nor have those that are counted together.
const COUNTS: &str = "SELECT coalesce(database, ''), coalesce(role, ''), sum(commits)::int8 FROM quorum.weak_commits() \
    GROUP BY 1, 2 ORDER BY 1, 2";

/// Commits that an administrator allowed to return before the cluster's standbys had them, since the server started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeakCommits {
    /// Empty, like the role: all that have no name of their own.
    pub database: String,
    pub role: String,
    pub commits: u64,
}

/// One entry for each database and role that has committed weakly. Few: the server counts 128 pairs one by one.
pub async fn read(session: &Session) -> Result<Vec<WeakCommits>> {
    if !session.has_function(FUNCTION).await? {
        return Ok(Vec::new());
    }
    let rows = session.query(COUNTS, &[]).await.map_err(sql("reading the counts of weak commits"))?;
    let count = |row: &tokio_postgres::Row| WeakCommits {
        database: row.get(0),
        role: row.get(1),
        commits: row.get::<_, i64>(2).max(0).cast_unsigned(),
    };
    Ok(rows.iter().map(count).collect())
}
