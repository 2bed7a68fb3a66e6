//! A source and a target in memory: the source has one table with rows, its log is frames as tests write them; the target
//! counts ticks as the extension does.

mod source;
mod target;

pub use source::{FakeSource, Shared};
pub use target::{FakeTarget, Here};

use super::subscription::TableName;
use crate::feed::Position;

pub fn at(tick: u64) -> Position {
    Position { epoch: 5, tick }
}

pub fn orders() -> TableName {
    TableName { schema: "public".to_owned(), table: "orders".to_owned() }
}
