//! Which version of the source's channel a database has: what a [`Target`](super::target::Target) is told of it, beside what
//! is to be written. The delta interface shows it.

use super::local::{Local, number};
use super::source::Answer;
use tokio_postgres::types::Type;

const SEE: &str = "SELECT quorum.see_source($1, $2, $3)";
const BEGIN: &str = "SELECT quorum.begin_load($1, $2, $3)::text";
const END: &str = "SELECT quorum.end_load($1)";
pub(super) const SEE_SIZE: &str = "SELECT quorum.see_change_size($1, $2)::text";

/// The version of a channel's contents: it grows when the channel is pruned, and whoever has an older one copies it anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    pub number: u64,
    /// The last tick before it began.
    pub tick: u64,
}

impl Version {
    fn numbers(self) -> (i64, i64) {
        (i64::try_from(self.number).unwrap_or(i64::MAX), i64::try_from(self.tick).unwrap_or(i64::MAX))
    }
}

/// What a database that follows is told of versions.
pub trait Versions {
    /// The source has this one, and the description of its tables was fetched. True: what is here is of an older one.
    fn see_source(&self, version: Version) -> Answer<'_, bool>;
    /// Tables are copied now from a snapshot of this version.
    fn begin_load(&self, version: Version) -> Answer<'_, ()>;
    /// Tables were copied. If that were all of the subscription, they have the version of the copy from now on.
    fn end_load(&self) -> Answer<'_, ()>;
    /// So many bytes of log a change takes at the source, on average; `None`: it does not say.
    fn see_change_size(&self, bytes: Option<u64>) -> Answer<'_, ()>;
}

impl Versions for Local {
    fn see_source(&self, version: Version) -> Answer<'_, bool> {
        Box::pin(async move {
            let (number, tick) = version.numbers();
            self.one(SEE, &[(&self.id, Type::INT4), (&number, Type::INT8), (&tick, Type::INT8)]).await
        })
    }

    fn begin_load(&self, version: Version) -> Answer<'_, ()> {
        Box::pin(async move {
            let (number, tick) = version.numbers();
            let values = [(&self.id as _, Type::INT4), (&number as _, Type::INT8), (&tick as _, Type::INT8)];
            self.ask(BEGIN, &values).await.map(drop)
        })
    }

    fn end_load(&self) -> Answer<'_, ()> {
        Box::pin(async move { self.ask(END, &[(&self.id, Type::INT4)]).await.map(drop) })
    }

    fn see_change_size(&self, bytes: Option<u64>) -> Answer<'_, ()> {
        Box::pin(async move {
            let bytes = bytes.map(number);
            self.ask(SEE_SIZE, &[(&self.id, Type::INT4), (&bytes, Type::INT8)]).await.map(drop)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_database_cannot_hold_is_its_largest_number() {
        assert_eq!(Version { number: u64::MAX, tick: 7 }.numbers(), (i64::MAX, 7));
    }
}
