//! Which rows of the source are wanted here: a condition on the row as it is here, or would be.

use std::convert::Infallible;

use pgquorum_change::{Change, Image, OldImage, Schema, Value};

use super::apply_slot as slot;
use super::apply_target::{Fault, Lasting, Target};
use super::apply_value::in_server_encoding;
use super::filter::{self, Filter};
use super::savepoint::attempt;

/// A filter of a table, parsed.
pub struct Condition {
    /// The table that it was parsed for, of which others may be partitions.
    root: u32,
    tree: String,
    /// Which columns of the schema version it looks at.
    columns: Vec<usize>,
}

/// A filter of a target, ready to be asked.
pub(super) struct RowFilter {
    filter: Filter,
    columns: Vec<usize>,
}

/// Is a row wanted here?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Yes,
    No,
    /// A value on which it depends was not sent, because it did not change.
    Unknown,
}

impl Target {
    /// Parses a filter of this table.
    pub fn condition(&self, text: &str, schema: &Schema) -> Result<Condition, Fault> {
        let root = self.oid();
        let parsed = attempt(|| {
            // SAFETY: in a transaction, in whose memory a converted text is.
            let text = unsafe { in_server_encoding(text.as_bytes()) };
            Ok::<_, Infallible>(filter::parse(root.into(), text))
        });
        let parsed = match parsed {
            Ok(Ok(parsed)) => parsed,
            Err(failure) => return Err(useless(schema, &failure.message)),
        };
        let mut columns = Vec::with_capacity(parsed.columns.len());
        for number in parsed.columns {
            let place = usize::try_from(number - 1).ok();
            let sent = self.columns.iter().position(|column| column.place.is_some() && column.place == place);
            let Some(at) = sent else {
                return Err(useless(schema, "it looks at columns that the source does not send"));
            };
            columns.push(at);
        }
        Ok(Condition { root, tree: parsed.tree, columns })
    }

    /// From now on rows are wanted only if they fulfil this.
    pub fn filter_by(&mut self, condition: &Condition) {
        let _lasting = Lasting::new(self.memory);
        // SAFETY: the relation is open, and is the table that the filter was parsed for or a partition of it; its memory lives
        // as long as this.
        let filter =
            unsafe { Filter::new(&condition.tree, self.relation, condition.root.into(), self.memory) };
        self.filter = Some(RowFilter { filter, columns: condition.columns.clone() });
    }

    pub fn is_filtered(&self) -> bool {
        self.filter.is_some()
    }

    /// Is this row wanted, by the values that the source sends?
    pub fn wants(&mut self, image: Image) -> Wanted {
        let Some(row_filter) = self.filter.take() else { return Wanted::Yes };
        let wanted = self.evaluate(&row_filter, image, Some);
        self.filter = Some(row_filter);
        wanted
    }

    /// Is the row wanted that was made last?
    pub fn wants_prepared(&mut self) -> bool {
        let outer = self.begin();
        // SAFETY: the slot holds a row of this table.
        let wanted = self.filter.as_ref().is_none_or(|known| unsafe { known.filter.takes(self.incoming) });
        self.finish(outer);
        wanted
    }

    /// May the row be here that a change was made of? False where its old values, as far as they were sent, say that it
    /// was never wanted.
    pub fn may_be_here(&mut self, change: &Change) -> bool {
        let (image, is_key) = match (change.old, change.new) {
            (Some(OldImage::Key(image)), _) => (image, true),
            (Some(OldImage::Full(image)), _) => (image, false),
            // The key is as it was; of the rest that is not known.
            (None, Some(image)) => (image, false),
            (None, None) => return true,
        };
        let of_key = self.key.as_ref().map(|key| key.key_columns.clone()).unwrap_or_default();
        let Some(row_filter) = self.filter.take() else { return true };
        let whole = matches!(change.old, Some(OldImage::Full(_)));
        let known = whole || row_filter.columns.iter().all(|column| of_key.contains(column));
        let wanted = if known {
            let column = |at: usize| if is_key { of_key.get(at).copied() } else { Some(at) };
            self.evaluate(&row_filter, image, column)
        } else {
            Wanted::Unknown
        };
        self.filter = Some(row_filter);
        wanted != Wanted::No
    }

    /// Asks a filter about the values of an image; `column`: which column of the schema version a value of it is.
    fn evaluate(
        &mut self,
        row_filter: &RowFilter,
        image: Image,
        column: impl Fn(usize) -> Option<usize>,
    ) -> Wanted {
        let outer = self.begin();
        let mut unknown = false;
        // SAFETY: the slot has room for all columns of the table; values are in the row's memory, which is the present one.
        let wanted = unsafe {
            let (values, nulls) = slot::cleared(self.incoming);
            for (at, value) in image.values().enumerate() {
                let Some(at) = column(at).filter(|at| row_filter.columns.contains(at)) else { continue };
                let one = &mut self.columns[at];
                match (value, one.place) {
                    (Value::Text(text), Some(place)) => {
                        *values.add(place) = one.input.read(&text, &mut self.room);
                        *nulls.add(place) = false;
                    }
                    (Value::Unchanged, _) => unknown = true,
                    (Value::Null, _) | (Value::Text(_), None) => {}
                }
            }
            slot::filled(self.incoming);
            !unknown && row_filter.filter.takes(self.incoming)
        };
        self.finish(outer);
        self.tidy();
        match (unknown, wanted) {
            (true, _) => Wanted::Unknown,
            (false, true) => Wanted::Yes,
            (false, false) => Wanted::No,
        }
    }
}

#[cold]
fn useless(schema: &Schema, why: &str) -> Fault {
    let message = format!(
        "the filter of table {}.{} cannot be used: {why}. Correct it (quorum.alter_subscription(…, filter => …)), then let the \
         table go on",
        schema.schema, schema.table
    );
    Fault { code: "PQ022", message }
}
