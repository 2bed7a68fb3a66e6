//! The objects that a tree names, and those that they call in turn.

use std::ffi::{c_int, c_void};

use pgrx::pg_sys;

use super::judged::{self, Kind, Stamp};
use super::query_walk::{Mode, Walk, items, visit};
use super::{catalog, relcache};
use crate::statements::proof::{About, Judgement, judge};

unsafe extern "C-unwind" {
    // catalog/pg_inherits.h; missing from pgrx's bindings. utils/relcache.h, nodes/nodes.h, nodes/pg_list.h; guarded.
    pub(super) fn find_all_inheritors(
        parent: pg_sys::Oid,
        lock: pg_sys::LOCKMODE,
        parents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
    fn RelationIdGetRelation(oid: pg_sys::Oid) -> pg_sys::Relation;
    fn RelationClose(relation: pg_sys::Relation);
    fn copyObjectImpl(node: *const c_void) -> *mut c_void;
    fn lappend(list: *mut pg_sys::List, item: *mut c_void) -> *mut pg_sys::List;
    fn list_free(list: *mut pg_sys::List);
}

pub(super) const GONE: &str = "is gone";
/// How deep row security policies may look at tables that have some.
const POLICY_DEPTH: u8 = 4;
/// How many inheritors are looked at.
const INHERITORS: usize = 4096;

impl Walk {
    /// A function, however it comes to be called. `true`: it is fine and rests on nothing but itself.
    #[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
    pub(super) fn function(&mut self, oid: u32) -> bool {
        self.found.depends.add(oid);
        let stamp = Stamp::new(Kind::Function, oid);
        if stamp.is_fine() {
            return true;
        }
        let fine = self.look_at_function(oid);
        if fine {
            stamp.keep();
        }
        fine
    }

    fn look_at_function(&mut self, oid: u32) -> bool {
        let about = About::Function(oid);
        let Some(function) = catalog::function(oid) else {
            self.found.doubt(about, GONE);
            return false;
        };
        if !catalog::is_pinned(oid) && catalog::is_temporary(function.namespace) {
            self.found.use_temporary(about);
            return false;
        }
        if self.mode == Mode::Plan && function.volatile {
            return false;
        }
        if function.aggregate {
            return self.aggregate(oid);
        }
        match judge(oid, &function, || catalog::alias(oid), || catalog::library(oid)) {
            Judgement::Fine => return true,
            Judgement::Doubtful(why) => self.found.doubt(about, why),
            Judgement::Refused(why) => self.found.refuse(about, why),
        }
        false
    }

    fn aggregate(&mut self, oid: u32) -> bool {
        let Some(parts) = catalog::aggregate(oid) else {
            self.found.doubt(About::Function(oid), GONE);
            return false;
        };
        let mut fine = true;
        for function in parts.functions.into_iter().filter(|function| *function != 0) {
            fine &= self.function(function) && catalog::is_pinned(function);
        }
        for state in parts.state.into_iter().filter(|state| !catalog::is_pinned(*state)) {
            self.data_type(state);
            fine = false;
        }
        fine
    }

    /// A function that is called by its name. Which of the functions of that name it is, literals decide, and a
    /// statement's hash leaves them out.
    pub(super) fn call(&mut self, oid: u32, arguments: usize) {
        self.found.depends.add(oid);
        let stamp = Stamp::new(Kind::Call, oid);
        if stamp.is_fine() {
            return;
        }
        let fine = self.function(oid);
        if arguments > 0 && self.no_namesakes(oid, arguments) && fine {
            stamp.keep();
        }
    }

    fn no_namesakes(&mut self, oid: u32, arguments: usize) -> bool {
        let Some(called) = catalog::function(oid) else { return false };
        let arguments = i16::try_from(arguments).unwrap_or(i16::MAX);
        let mut none = true;
        catalog::each_namesake(&called.name, |other, function| {
            if other == oid {
                return;
            }
            none = false;
            if function.takes(arguments)
                && (function.namespace == called.namespace || catalog::is_searched(function.namespace))
            {
                self.found.depends.add(other);
                if function.volatile && self.mode == Mode::Run {
                    let why =
                        "is VOLATILE, and the types of literals decide whether it is the one that is called";
                    self.found.doubt(About::Function(other), why);
                }
            }
        });
        none
    }

    /// An operator; `function` is what it calls, 0: to be looked up.
    #[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
    pub(super) fn operator(&mut self, oid: u32, function: u32) {
        if !catalog::is_pinned(oid) {
            return self.own_operator(oid);
        }
        if function != 0 {
            self.function(function);
            return;
        }
        let stamp = Stamp::new(Kind::Operator, oid);
        if stamp.is_fine() {
            return;
        }
        match catalog::operator(oid) {
            Some(function) if self.function(function) => stamp.keep(),
            Some(_) => {}
            None => self.found.doubt(About::Operator(oid), GONE),
        }
    }

    /// An operator of somebody's own: a sort, a hash or an index calls, in its place, the support functions of its
    /// families.
    fn own_operator(&mut self, oid: u32) {
        self.found.depends.add(oid);
        match catalog::operator(oid) {
            Some(function) => self.function(function),
            None => return self.found.doubt(About::Operator(oid), GONE),
        };
        catalog::each_family(oid, |family| self.family(family));
    }

    /// All functions of an operator family: those of its operators, and those that support an index, a sort or a hash.
    pub(super) fn family(&mut self, family: u32) {
        catalog::each_support(family, |function| {
            self.function(function);
        });
        catalog::each_member(family, |operator| match catalog::operator(operator) {
            Some(function) => {
                self.function(function);
            }
            None => self.found.doubt(About::Operator(operator), GONE),
        });
    }

    /// A relation that is read, with its inheritors or without.
    ///
    /// # Safety
    ///
    /// It is locked, or was met in a policy.
    #[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
    pub(super) unsafe fn relation(&mut self, oid: u32, with_inheritors: bool) {
        if catalog::is_pinned(oid) {
            return;
        }
        self.found.depends.add(oid);
        let Some(found) = catalog::relation(oid) else {
            return self.found.doubt(About::Relation(oid), GONE);
        };
        self.one_relation(oid, &found);
        // SAFETY: see above.
        unsafe {
            if found.has_policies {
                self.policies(oid);
            }
            if with_inheritors && found.has_inheritors {
                self.inheritors(oid);
            }
        }
    }

    #[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
    fn one_relation(&mut self, oid: u32, found: &catalog::Relation) {
        let about = About::Relation(oid);
        match found.kind {
            pg_sys::RELKIND_SEQUENCE => {
                self.found.refuse(about, "is read, and a replica learns its state in steps");
            }
            pg_sys::RELKIND_FOREIGN_TABLE => {
                self.found.doubt(about, "is read, and what another server does for that is not seen here");
            }
            pg_sys::RELKIND_VIEW if self.policies > 0 => {
                self.found.doubt(about, "is read by a row security policy, where views are not looked into");
            }
            _ => {}
        }
        match found.persistence {
            pg_sys::RELPERSISTENCE_UNLOGGED => {
                self.found.refuse(about, "is unlogged, so a replica has no rows of it");
            }
            pg_sys::RELPERSISTENCE_TEMP => self.found.use_temporary(about),
            _ => {}
        }
    }

    /// # Safety
    ///
    /// As in [`Walk::relation`].
    unsafe fn inheritors(&mut self, root: u32) {
        if let Some(found) = judged::inheritors(root) {
            return self.found.add(&found);
        }
        let generation = relcache::generation();
        let before = std::mem::take(&mut self.found);
        // SAFETY: takes no locks; whoever vanishes meanwhile is not found.
        unsafe {
            let list = find_all_inheritors(root.into(), pg_sys::NoLock as c_int, std::ptr::null_mut());
            let oids = items(list);
            if oids.len() > INHERITORS {
                self.found.doubt(About::Relation(root), "has too many inheritors to look at");
            }
            for oid in oids.iter().take(INHERITORS).map(|cell| cell.oid_value.to_u32()) {
                match catalog::relation(oid) {
                    _ if oid == root => {}
                    // Nobody reads temporary tables of another session.
                    Some(found)
                        if found.persistence == pg_sys::RELPERSISTENCE_TEMP
                            && !catalog::is_temporary(found.namespace) => {}
                    Some(found) => {
                        self.found.depends.add(oid);
                        self.one_relation(oid, &found);
                    }
                    None => self.found.doubt(About::Relation(oid), GONE),
                }
            }
            list_free(list);
        }
        judged::keep_inheritors(root, generation, &self.found);
        let found = std::mem::replace(&mut self.found, before);
        self.found.add(&found);
    }

    /// The policies of a table for all roles: who plans the statement here may be another than who runs it elsewhere.
    ///
    /// # Safety
    ///
    /// As in [`Walk::relation`].
    unsafe fn policies(&mut self, table: u32) {
        if self.policies >= POLICY_DEPTH {
            let why = "has row security policies that read tables with policies, over and over";
            return self.found.doubt(About::Relation(table), why);
        }
        // SAFETY: the expressions are copied before anything else is looked up, since a table that is not locked may
        // be described anew then.
        unsafe {
            let relation = RelationIdGetRelation(table.into());
            if relation.is_null() {
                return self.found.doubt(About::Relation(table), GONE);
            }
            let mut conditions = std::ptr::null_mut();
            let described = (*relation).rd_rsdesc;
            if !described.is_null() {
                for cell in items((*described).policies) {
                    let policy = &*cell.ptr_value.cast::<pg_sys::RowSecurityPolicy>();
                    let reads = matches!(policy.polcmd as u8, b'*' | b'r');
                    if reads && !policy.qual.is_null() {
                        conditions = lappend(conditions, copyObjectImpl(policy.qual.cast()));
                    }
                }
            }
            RelationClose(relation);
            self.policies += 1;
            visit(conditions.cast(), std::ptr::from_mut(self).cast());
            self.policies -= 1;
        }
    }
}
