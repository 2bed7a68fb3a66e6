//! Data: the built-in functions that are not judged by their volatility, with a reason each.
//!
//! Built-in functions keep their OID as long as they are there, so they are listed by OID, each with its name. A VOLATILE
//! function that is not listed is unproven, so a list that is behind is safe.

mod list;
mod newer;

/// How many groups of the one list come before those of the other, and how many there are.
const LISTED: usize = list::GROUPS.len();
const COUNT: usize = LISTED + newer::GROUPS.len();

/// What a call of a function means for the statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It writes nothing and works on a replica, whatever its volatility says.
    Harmless,
    /// It runs what is not in the statement's tree.
    Unproven,
    /// It writes, fails on a replica, or is about one server or one session.
    Refused,
}

/// Functions that are judged alike.
pub struct Group {
    pub class: Class,
    /// The rest of the sentence "function … ".
    pub why: &'static str,
    /// OID and name; a name stands once for each of its overloads.
    pub functions: &'static [(u32, &'static str)],
}

/// One more than the greatest OID of the list.
const END: usize = 6431;

/// A group by its number, from 0.
const fn group(number: usize) -> &'static Group {
    if number < LISTED { &list::GROUPS[number] } else { &newer::GROUPS[number - LISTED] }
}

/// For each OID the number of its group, from 1; 0: not listed.
static NUMBERS: [u8; END] = {
    let mut numbers = [0; END];
    let mut group = 0;
    while group < COUNT {
        let functions = self::group(group).functions;
        let mut at = 0;
        while at < functions.len() {
            let oid = functions[at].0 as usize;
            assert!(numbers[oid] == 0, "a function is listed twice");
            numbers[oid] = group as u8 + 1;
            at += 1;
        }
        group += 1;
    }
    numbers
};

/// A bit for each OID: its function is refused. Looked at whenever a function is executed, by anything, so it is small.
static REFUSED: [u64; END.div_ceil(64)] = {
    let mut refused = [0; END.div_ceil(64)];
    let mut oid = 0;
    while oid < END {
        let number = NUMBERS[oid];
        if number != 0 && matches!(group(number as usize - 1).class, Class::Refused) {
            refused[oid / 64] |= 1 << (oid % 64);
        }
        oid += 1;
    }
    refused
};

/// The group that a built-in function is listed in.
#[inline]
pub fn group_of(oid: u32) -> Option<&'static Group> {
    match NUMBERS.get(oid as usize) {
        None | Some(0) => None,
        Some(number) => Some(group(usize::from(*number) - 1)),
    }
}

/// All groups, those of functions that this version of PostgreSQL does not have among them.
#[cfg(any(test, feature = "pg_test"))]
pub fn groups() -> impl Iterator<Item = &'static Group> {
    (0..COUNT).map(group)
}

pub fn is_harmless(oid: u32) -> bool {
    group_of(oid).is_some_and(|group| group.class == Class::Harmless)
}

#[inline]
pub fn is_refused(oid: u32) -> bool {
    let word = REFUSED.get(oid as usize / 64).copied().unwrap_or(0);
    word >> (oid % 64) & 1 != 0
}

/// A library whose functions in C are refused, not only unproven: what they do is not seen by the learner.
pub struct Library {
    /// Its file's name without folder and ending.
    pub name: &'static str,
    /// The rest of the sentence "function … ".
    pub why: &'static str,
}

pub static LIBRARIES: &[Library] = &[
    Library { name: "pgquorum", why: "is about this node, or changes the cluster's state" },
    Library { name: "dblink", why: "talks to another server, which may write" },
    Library { name: "postgres_fdw", why: "works on this session's connections to other servers" },
    Library { name: "adminpack", why: "writes files of this server" },
    Library { name: "lo", why: "works on large objects" },
    Library { name: "pg_surgery", why: "changes rows behind PostgreSQL's back" },
    Library { name: "pg_visibility", why: "reads or cuts the visibility maps of this server" },
    Library { name: "pg_prewarm", why: "fills the cache of this server" },
    Library { name: "pg_buffercache", why: "shows the cache of this server" },
    Library { name: "pg_stat_statements", why: "counts what has happened on this server" },
    Library { name: "pg_walinspect", why: "reads the write-ahead log of this server" },
    Library { name: "pg_logicalinspect", why: "reads files of this server" },
];

/// Settings that tell whether a server is a replica: clients look for the primary by them.
pub static SETTINGS: &[&str] = &["transaction_read_only", "default_transaction_read_only", "in_hot_standby"];
