//! The types of what a tree computes, and what their values call to be read, shown and compared.

use pgrx::pg_sys;

use super::catalog;
use super::judged::{Kind, Stamp};
use super::query_objects::GONE;
use super::query_walk::Walk;
use crate::statements::proof::About;

/// How deep types may be nested.
const TYPE_DEPTH: u8 = 8;
/// Literals and parameters of these types look alike in a statement's hash.
const LITERALS: [pg_sys::Oid; 6] = [
    pg_sys::INT4OID,
    pg_sys::INT8OID,
    pg_sys::NUMERICOID,
    pg_sys::BITOID,
    pg_sys::TEXTOID,
    pg_sys::VARCHAROID,
];

impl Walk {
    /// The type of a value that is there. To show it, its output function is called.
    pub(super) fn value(&mut self, oid: u32) {
        if catalog::is_pinned(oid) {
            let oid = pg_sys::Oid::from(oid);
            self.containers |= oid == pg_sys::RECORDOID || oid == pg_sys::RECORDARRAYOID;
        } else {
            self.nested_type(oid, 0, false);
        }
    }

    /// The type of a value that is made here, of a literal or of another value: a domain's constraints are called, and
    /// another literal may be turned into it by a cast.
    pub(super) fn data_type(&mut self, oid: u32) {
        self.nested_type(oid, 0, true);
    }

    #[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
    fn nested_type(&mut self, oid: u32, depth: u8, made: bool) {
        if catalog::is_pinned(oid) {
            return;
        }
        self.containers |= depth > 0;
        self.found.depends.add(oid);
        let stamp = Stamp::new(Kind::Type, oid);
        if stamp.is_fine() {
            return;
        }
        let count = self.type_count;
        let at = self.types[..count].iter().position(|seen| *seen == oid).unwrap_or(count);
        if at == self.types.len() {
            return self.found.doubt(About::Type(oid), "comes with too many others to look at");
        }
        if at < count && (!made || self.made_types >> at & 1 == 1) {
            return;
        }
        self.types[at] = oid;
        self.type_count = count.max(at + 1);
        self.made_types |= u32::from(made) << at;
        if self.look_at_type(oid, at, depth, made) {
            stamp.keep();
        }
    }

    /// `true`: it is fine, also when it is made, and rests on nothing but itself.
    fn look_at_type(&mut self, oid: u32, at: usize, depth: u8, made: bool) -> bool {
        let about = About::Type(oid);
        let Some(found) = catalog::data_type(oid) else {
            self.found.doubt(about, GONE);
            return false;
        };
        if depth > TYPE_DEPTH {
            self.found.doubt(about, "is nested too deeply");
            return false;
        }
        if catalog::is_temporary(found.namespace) {
            self.found.use_temporary(about);
            return false;
        }
        let mut alone = self.casts(oid, made);
        let is_own = found.kind == pg_sys::TYPTYPE_BASE && found.element == 0;
        if is_own {
            self.own_types |= 1 << at;
        } else {
            alone &= self.comparisons(oid);
        }
        match found.kind {
            pg_sys::TYPTYPE_ENUM => return alone,
            pg_sys::TYPTYPE_COMPOSITE => self.columns(found.relation, depth),
            pg_sys::TYPTYPE_DOMAIN => {
                if made && !catalog::comes_with_server(oid) && catalog::has_constraints(oid) {
                    self.found.doubt(about, "is a domain with constraints, which can call anything");
                }
                self.nested_type(found.base, depth + 1, made);
            }
            pg_sys::TYPTYPE_RANGE => self.range(oid, false, depth),
            pg_sys::TYPTYPE_MULTIRANGE => self.range(oid, true, depth),
            _ if found.element != 0 => self.nested_type(found.element, depth + 1, true),
            _ => {
                for function in found.functions.into_iter().filter(|function| *function != 0) {
                    self.function(function);
                }
            }
        }
        false
    }

    /// The casts to a type from those of literals, if it is made here; and the one by which it is turned to JSON.
    /// `true`: there are none.
    fn casts(&mut self, oid: u32, made: bool) -> bool {
        let to_json = catalog::cast(oid, pg_sys::JSONOID.to_u32());
        let mut none = to_json == 0;
        if !none {
            self.function(to_json);
        }
        for literal in LITERALS {
            let function = catalog::cast(literal.to_u32(), oid);
            if function != 0 {
                none = false;
                if made {
                    self.function(function);
                }
            }
        }
        none
    }

    /// What compares and hashes values of a type where nobody names the operator: in rows, arrays and GREATEST. `true`: it
    /// is PostgreSQL's own.
    fn comparisons(&mut self, oid: u32) -> bool {
        let mut own = false;
        for family in catalog::families(oid) {
            if !catalog::is_pinned(family) {
                own = true;
                self.family(family);
            }
        }
        !own
    }

    /// Looks at the comparisons of types with functions of their own, if the tree may call them.
    pub(super) fn finish(&mut self) {
        if self.containers {
            for at in 0..self.type_count {
                if self.own_types >> at & 1 == 1 {
                    self.comparisons(self.types[at]);
                }
            }
        }
    }

    fn columns(&mut self, relation: u32, depth: u8) {
        self.found.depends.add(relation);
        let count = catalog::relation(relation).map_or(0, |found| found.columns);
        for column in 1..=count {
            if let Some(column) = catalog::column_type(relation, column) {
                // A function may make a row of these columns.
                self.nested_type(column, depth + 1, true);
            }
        }
    }

    fn range(&mut self, oid: u32, is_multirange: bool, depth: u8) {
        let Some(range) = catalog::range(oid, is_multirange) else {
            return self.found.doubt(About::Type(oid), GONE);
        };
        self.nested_type(range.element, depth + 1, true);
        self.family(range.family);
        for function in range.functions.into_iter().filter(|function| *function != 0) {
            self.function(function);
        }
    }
}
