//! What a former leader gave up when it came back: transactions that were in its WAL alone. It keeps that WAL, reads
//! it, and tells the cluster.

use crate::types::{Lsn, NodeId, Timeline};
use serde::{Deserialize, Serialize};

/// A report travels through the cluster's log, so it is small; what it leaves out it counts.
const REPORT_BYTES: usize = 24 << 10;

/// Whether a client may have been told that these transactions are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acknowledged {
    /// Commits waited for standbys, and no standby had these.
    No,
    /// Commits waited for nobody, or sessions were allowed not to wait.
    Possibly,
}

impl Acknowledged {
    pub fn as_str(self) -> &'static str {
        match self {
            Acknowledged::No => "no",
            Acknowledged::Possibly => "possibly",
        }
    }
}

/// What a lost transaction did to one table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LostTable {
    pub database: String,
    /// With its schema; `file N` where the name is not known any more.
    pub table: String,
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
    /// The table got a new file: it was created, truncated or rewritten.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_file: bool,
}

/// A transaction whose commit is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LostTransaction {
    pub xid: u32,
    /// RFC 3339, by the clock of the node that lost it.
    pub committed_at: String,
    pub tables: Vec<LostTable>,
    /// Further tables that are not listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_tables: usize,
    /// It changed the catalogs: tables, columns, roles, functions …
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub schema_changed: bool,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// All that one return to the cluster cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LostReport {
    /// The same for the same WAL, so that a report that is sent again is known.
    pub id: String,
    pub node: NodeId,
    /// The timeline on which the lost WAL ends, and its range.
    pub timeline: Timeline,
    pub from: Lsn,
    pub to: Lsn,
    pub acknowledged: Acknowledged,
    /// Committed transactions of clients, the first ones listed.
    pub committed: u64,
    pub transactions: Vec<LostTransaction>,
    /// Transactions of the cluster itself (its own tables, statistics), not listed.
    pub internal: u64,
    pub aborted: u64,
    pub unfinished: u64,
    /// Where that node keeps the lost WAL.
    pub kept: Option<String>,
    /// Why this is not the whole truth.
    pub problem: Option<String>,
}

impl LostReport {
    pub fn encoded_len(&self) -> usize {
        serde_json::to_vec(self).map_or(usize::MAX, |json| json.len())
    }

    /// With as many transactions as a report may list.
    pub fn bounded(mut self) -> LostReport {
        while self.encoded_len() > REPORT_BYTES && !self.transactions.is_empty() {
            // A quarter at a time: each look at the size costs as much as the report is long.
            let keep = self.transactions.len() * 3 / 4;
            self.transactions.truncate(keep);
        }
        self
    }

    /// Whether it may go into the cluster's log.
    pub fn is_bounded(&self) -> bool {
        self.id.len() <= 128 && self.encoded_len() <= 2 * REPORT_BYTES
    }

    /// One sentence for people.
    pub fn sentence(&self) -> String {
        let Self { node, timeline, from, to, committed, .. } = self;
        let told = match self.acknowledged {
            Acknowledged::No => "no client was told that they are committed",
            Acknowledged::Possibly => "clients may have been told that they are committed",
        };
        let (only, were) = match committed {
            1 => ("1 transaction that only it had".to_owned(), told.replace("they are", "it is")),
            n => (format!("{n} transactions that only it had"), told.to_owned()),
        };
        let mut text =
            format!("node {node} gave up {only} (WAL {from} to {to} of timeline {timeline}); {were}");
        if let Some(problem) = &self.problem {
            text.push_str(&format!("; there may be more: {problem}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(transactions: u32) -> LostReport {
        let transaction = |xid| LostTransaction {
            xid,
            committed_at: "2026-01-01T00:00:00Z".to_owned(),
            tables: vec![LostTable {
                table: "public.orders".to_owned(),
                inserted: 1,
                ..LostTable::default()
            }],
            more_tables: 0,
            schema_changed: false,
        };
        LostReport {
            id: "1-2-30-40".to_owned(),
            node: 1,
            timeline: 2,
            from: Lsn(0x30),
            to: Lsn(0x40),
            acknowledged: Acknowledged::No,
            committed: u64::from(transactions),
            transactions: (0..transactions).map(transaction).collect(),
            internal: 0,
            aborted: 0,
            unfinished: 0,
            kept: None,
            problem: None,
        }
    }

    #[test]
    fn a_long_report_is_cut_and_says_how_many_there_were() {
        let long = report(100_000).bounded();
        assert!(long.is_bounded() && long.transactions.len() > 50, "{}", long.transactions.len());
        assert_eq!(long.committed, 100_000);
        assert_eq!(long.transactions[0].xid, 0, "the first ones stay");
        assert_eq!(report(3).bounded(), report(3));
    }

    #[test]
    fn the_sentence_says_what_was_lost_and_whether_anybody_relied_on_it() {
        let text = report(1).sentence();
        assert!(
            text.contains("1 transaction that") && text.contains("no client was told that it is"),
            "{text}"
        );
        let text = LostReport { acknowledged: Acknowledged::Possibly, ..report(2) }.sentence();
        assert!(text.contains("2 transactions") && text.contains("may have been told"), "{text}");
    }
}
