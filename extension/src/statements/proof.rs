//! What can be said of a statement from its tree alone, and the rules by which it is said.
//!
//! A statement is **read-only** when its tree cannot write, whoever runs it and whatever its literals and parameters
//! are: its hash leaves literals out, so the proof may not rest on them. It is **refused** when it writes, cannot run
//! on a replica, or asks for something that belongs to one server or one session; such a statement is not to be
//! observed either. All else is **unproven**.
//!
//! The proof takes the word of `STABLE` and `IMMUTABLE` for functions in trusted languages. Words can lie: that is for
//! the learner to see when the statement runs.

use pgrx::pg_sys;

use super::functions::{self, Class};
use crate::pg::catalog::{self, Function, Language};
use crate::pg::{names, query_walk};

/// What the proof came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It cannot write, and a replica can run it.
    ReadOnly,
    /// Nothing is known for certain. It may be observed.
    Unproven(Reason),
    /// It writes, or it belongs to this server or this session. It is not to be observed.
    Refused(Reason),
}

impl Verdict {
    /// The word for it in SQL.
    pub fn word(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Unproven(_) => "unproven",
            Self::Refused(_) => "refused",
        }
    }

    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::ReadOnly => None,
            Self::Unproven(reason) | Self::Refused(reason) => Some(reason),
        }
    }
}

/// What a reason is about, by the OID it has in its catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    Statement,
    Function(u32),
    Operator(u32),
    Type(u32),
    Relation(u32),
}

/// Why a statement is not proven. Small and without memory of its own, since it is made at every planning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    pub about: About,
    /// The rest of the sentence that begins with what it is about.
    pub why: &'static str,
}

impl Reason {
    pub const fn statement(why: &'static str) -> Self {
        Self { about: About::Statement, why }
    }

    /// The sentence, for people. Looks names up in the catalogue: within a transaction only, and not to be called
    /// where every statement passes.
    pub fn text(self) -> String {
        let subject = match self.about {
            About::Statement => "the statement".to_owned(),
            About::Function(oid) => format!("function {}", names::function(oid)),
            About::Operator(oid) => format!("operator {}", names::operator(oid)),
            About::Type(oid) => format!("type {}", names::data_type(oid)),
            About::Relation(oid) => names::relation(oid),
        };
        format!("{subject} {}", self.why)
    }
}

/// Objects that a verdict rests on and that can change: at most [`Depends::MOST`], beyond that "everything".
#[derive(Clone, Copy, Debug, Default)]
pub struct Depends {
    oids: [u32; Self::MOST],
    count: u8,
    overflow: bool,
}

impl Depends {
    pub const MOST: usize = 16;

    /// Notes an object, once; those that PostgreSQL is born with and does not let go are left out.
    #[inline]
    #[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
    pub fn add(&mut self, oid: u32) {
        let count = usize::from(self.count);
        if catalog::is_pinned(oid) || self.oids[..count].contains(&oid) {
            return;
        }
        if count < Self::MOST {
            self.oids[count] = oid;
            self.count += 1;
        } else {
            self.overflow = true;
        }
    }

    /// The objects, of whatever catalogue: functions, operators, types, relations, views among them. Nothing is left
    /// out unless [`Depends::is_everything`].
    pub fn oids(&self) -> &[u32] {
        &self.oids[..usize::from(self.count)]
    }

    /// There are more than were kept: any change may concern the verdict.
    pub fn is_everything(&self) -> bool {
        self.overflow
    }

    /// Notes all of another's.
    pub fn add_all(&mut self, other: &Self) {
        other.oids().iter().for_each(|oid| self.add(*oid));
        self.overflow |= other.overflow;
    }
}

/// What is known of a statement before it runs.
#[derive(Clone, Copy, Debug)]
pub struct Examined {
    pub verdict: Verdict,
    pub depends: Depends,
    /// It uses temporary objects. In another session the same text means something else, so this planning says nothing
    /// about the text. The verdict is `Refused` then.
    pub temporary: bool,
}

impl Default for Examined {
    fn default() -> Self {
        Self { verdict: Verdict::ReadOnly, depends: Depends::default(), temporary: false }
    }
}

impl Examined {
    pub fn refused(reason: Reason) -> Self {
        Self { verdict: Verdict::Refused(reason), ..Self::default() }
    }

    /// The first refusal is kept; it outweighs doubts.
    pub fn refuse(&mut self, about: About, why: &'static str) {
        if !matches!(self.verdict, Verdict::Refused(_)) {
            self.verdict = Verdict::Refused(Reason { about, why });
        }
    }

    /// The first doubt is kept.
    pub fn doubt(&mut self, about: About, why: &'static str) {
        if self.verdict == Verdict::ReadOnly {
            self.verdict = Verdict::Unproven(Reason { about, why });
        }
    }

    pub fn use_temporary(&mut self, about: About) {
        self.temporary = true;
        self.refuse(about, "is temporary, so no other session has it");
    }

    /// Takes over what was found of another tree of the same statement.
    pub fn add(&mut self, other: &Self) {
        match other.verdict {
            Verdict::ReadOnly => {}
            Verdict::Unproven(reason) => self.doubt(reason.about, reason.why),
            Verdict::Refused(reason) => self.refuse(reason.about, reason.why),
        }
        self.depends.add_all(&other.depends);
        self.temporary |= other.temporary;
    }
}

/// Examines what the planner is given: an analysed and rewritten tree. Allocates nothing that lasts and has nothing to
/// drop, so that an ERROR of PostgreSQL (a broken catalogue, a cancelled statement) may jump over it; it raises none of
/// its own.
///
/// # Safety
///
/// The tree is valid and its relations are locked; in a transaction.
pub unsafe fn examine(query: *mut pg_sys::Query) -> Examined {
    // SAFETY: see above.
    unsafe { query_walk::examine(query, query_walk::Mode::Run) }
}

/// Examines a utility statement as the hook for them gets it: SHOW, EXPLAIN without ANALYZE and DECLARE CURSOR can be
/// read-only, all else is refused. May allocate in the current memory context, and raises what rewriting the statement
/// inside raises.
///
/// # Safety
///
/// The tree is valid; in a transaction, with a snapshot where the statement has one.
pub unsafe fn examine_utility(statement: *mut pg_sys::Node) -> Examined {
    // SAFETY: see above.
    unsafe { crate::pg::utility::examine(statement) }
}

/// How a function is judged by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Fine,
    Doubtful(&'static str),
    Refused(&'static str),
}

const VOLATILE: &str = "is VOLATILE, so it may write; if it does not, declare it STABLE";
const UNTRUSTED: &str = "is in a language in which a function can do anything, whatever it declares";

/// Judges one function, by what the catalogue says of it.
///
/// `alias` is the built-in function that runs under a user's name in language `internal`; `library` the base name of
/// the library that a function in C is in.
pub fn judge(
    oid: u32,
    function: &Function,
    alias: impl FnOnce() -> Option<(u32, Function)>,
    library: impl FnOnce() -> Option<&'static functions::Library>,
) -> Judgement {
    if catalog::is_pinned(oid) {
        return judge_builtin(oid, function);
    }
    match function.language {
        Language::Internal => match alias() {
            Some((oid, builtin)) => match judge_builtin(oid, &builtin) {
                Judgement::Fine if function.volatile && !functions::is_harmless(oid) => {
                    Judgement::Doubtful(VOLATILE)
                }
                judgement => judgement,
            },
            None => Judgement::Doubtful(UNTRUSTED),
        },
        Language::C => match library() {
            Some(library) => Judgement::Refused(library.why),
            None => Judgement::Doubtful(UNTRUSTED),
        },
        Language::Untrusted => Judgement::Doubtful(UNTRUSTED),
        Language::Sql | Language::Trusted if function.volatile => Judgement::Doubtful(VOLATILE),
        Language::Sql | Language::Trusted => Judgement::Fine,
    }
}

/// A built-in function by the list, else by its volatility. A superuser may have replaced its body: then the list, which
/// is about the original, can only forbid.
fn judge_builtin(oid: u32, function: &Function) -> Judgement {
    let original = matches!(function.language, Language::Internal | Language::C | Language::Sql);
    match functions::group_of(oid) {
        Some(group) => match group.class {
            Class::Harmless if original => Judgement::Fine,
            Class::Harmless => Judgement::Doubtful(VOLATILE),
            Class::Unproven => Judgement::Doubtful(group.why),
            Class::Refused => Judgement::Refused(group.why),
        },
        None if function.language == Language::Untrusted => Judgement::Doubtful(UNTRUSTED),
        None if function.volatile => Judgement::Doubtful(VOLATILE),
        None => Judgement::Fine,
    }
}

/// Is this a built-in function that forbids nothing? `false` may also mean that it takes a longer look to know.
#[inline]
pub fn is_plainly_harmless(funcid: u32) -> bool {
    catalog::is_pinned(funcid) && !functions::is_refused(funcid)
}

/// Does a function, run by whatever is inside a statement, forbid that the statement is served? Fast for built-in
/// functions; for others a look into the catalogue's cache. [`why_forbidden`] says why.
#[inline]
pub fn forbidden_at_run(funcid: u32) -> bool {
    if catalog::is_pinned(funcid) { functions::is_refused(funcid) } else { why_forbidden(funcid).is_some() }
}

/// The rest of the sentence "function … ".
pub fn why_forbidden(funcid: u32) -> Option<&'static str> {
    let refused =
        |oid| functions::group_of(oid).filter(|group| group.class == Class::Refused).map(|group| group.why);
    if catalog::is_pinned(funcid) {
        return refused(funcid);
    }
    match catalog::function(funcid)?.language {
        Language::Internal => refused(catalog::alias(funcid)?.0),
        Language::C => catalog::library(funcid).map(|library| library.why),
        _ => None,
    }
}
