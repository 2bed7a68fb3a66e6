//! Whether anything but PostgreSQL's own code runs while rows of a table are found and written. Where nothing does, it makes no
//! difference whose rights are in force: the executor's routines for replication look at nobody's.

use pgrx::pg_sys;

use super::apply_target::Target;
use super::describe::attributes;
use super::filter;

/// Types whose values name objects: reading one asks whether the schema that it names may be used.
const NAMES: [pg_sys::Oid; 11] = [
    pg_sys::REGPROCOID,
    pg_sys::REGPROCEDUREOID,
    pg_sys::REGOPEROID,
    pg_sys::REGOPERATOROID,
    pg_sys::REGCLASSOID,
    pg_sys::REGCOLLATIONOID,
    pg_sys::REGTYPEOID,
    pg_sys::REGROLEOID,
    pg_sys::REGNAMESPACEOID,
    pg_sys::REGCONFIGOID,
    pg_sys::REGDICTIONARYOID,
];

/// Must what is done with rows of this table be done with the rights of its owner? False only where it is certain that no code of
/// others runs: no trigger fires; values, constraints and indexes need nothing but functions that are built in and look at nothing
/// but their arguments.
///
/// # Safety
///
/// The table and its indexes are open, and everything about it is known but this.
pub(super) unsafe fn needs_owner(target: &Target) -> bool {
    // SAFETY: see above.
    unsafe {
        let relation = &*target.relation;
        let class = &*relation.rd_rel;
        // What belongs into a partition is said by expressions and operators of the tables above it.
        class.relkind as u8 != pg_sys::RELKIND_RELATION
            || class.relispartition
            || !is_built_in(relation.rd_amhandler)
            || !owner_sees_rows(class, relation.rd_id)
            || fires((*target.result).ri_TrigDesc)
            || attributes(target.relation)
                .iter()
                .any(|attribute| !attribute.attisdropped && type_calls(attribute.atttypid))
            || expressions(target).into_iter().any(|node| !filter::is_plain(relation.rd_id, node))
            || keys_call(target)
            || indexes_call(target)
    }
}

fn is_built_in(object: pg_sys::Oid) -> bool {
    object.to_u32() < pg_sys::FirstNormalObjectId
}

/// Errors show the values of a row only to who may read the table; they are to show no more than they do to the owner.
///
/// # Safety
///
/// In a transaction.
unsafe fn owner_sees_rows(class: &pg_sys::FormData_pg_class, oid: pg_sys::Oid) -> bool {
    // SAFETY: reads the catalogue.
    let may_read =
        unsafe { pg_sys::pg_class_aclcheck(oid, class.relowner, pg_sys::ACL_SELECT as pg_sys::AclMode) };
    may_read == pg_sys::AclResult::ACLCHECK_OK && !(class.relrowsecurity && class.relforcerowsecurity)
}

/// Are there triggers that fire while changes are applied? Ordinary ones rest, and those of foreign keys are such.
///
/// # Safety
///
/// The description is that of an open table, or null.
unsafe fn fires(triggers: *mut pg_sys::TriggerDesc) -> bool {
    if triggers.is_null() {
        return false;
    }
    // SAFETY: see above.
    let triggers = unsafe {
        let count = usize::try_from((*triggers).numtriggers).unwrap_or(0);
        items((*triggers).triggers, count)
    };
    triggers.iter().any(|trigger| {
        let fires = trigger.tgenabled as u8;
        fires != pg_sys::TRIGGER_FIRES_ON_ORIGIN && fires != pg_sys::TRIGGER_DISABLED
    })
}

/// May reading a value of this type call code of others, or ask who is reading?
///
/// # Safety
///
/// In a transaction.
unsafe fn type_calls(oid: pg_sys::Oid) -> bool {
    // SAFETY: reads the catalogue's cache.
    unsafe {
        match pg_sys::get_typtype(oid) as u8 {
            // Whoever has made it: the labels are in the catalogue.
            pg_sys::TYPTYPE_ENUM => false,
            pg_sys::TYPTYPE_BASE => {
                let element = pg_sys::get_element_type(oid);
                if element == pg_sys::InvalidOid {
                    !is_built_in(oid) || NAMES.contains(&oid)
                } else {
                    type_calls(element)
                }
            }
            // What is in one that is built in is built in.
            pg_sys::TYPTYPE_RANGE | pg_sys::TYPTYPE_MULTIRANGE => !is_built_in(oid),
            // Domains have constraints, and rows have columns of any type.
            _ => true,
        }
    }
}

/// The expressions that are evaluated for a row, but for those of indexes.
///
/// # Safety
///
/// As [`needs_owner`].
unsafe fn expressions(target: &Target) -> Vec<*mut pg_sys::Node> {
    // SAFETY: see above; constraints are stored as texts of expressions.
    unsafe {
        let mut found: Vec<*mut pg_sys::Node> =
            target.defaults.iter().map(|(_, default)| (**default).expr.cast()).collect();
        let constraints = (*(*target.relation).rd_att).constr;
        if constraints.is_null() {
            return found;
        }
        let constraints = &*constraints;
        for check in items(constraints.check, constraints.num_check.into()) {
            found.push(pg_sys::stringToNode(check.ccbin).cast());
        }
        let columns = attributes(target.relation);
        for default in items(constraints.defval, constraints.num_defval.into()) {
            let column = usize::try_from(default.adnum - 1).ok().and_then(|at| columns.get(at));
            // Other defaults are used for columns that the source does not send, which are known.
            if column.is_some_and(|column| column.attgenerated != 0) {
                found.push(pg_sys::stringToNode(default.adbin).cast());
            }
        }
        found
    }
}

/// Is a row looked for with functions of others?
fn keys_call(target: &Target) -> bool {
    target.key.iter().flat_map(|key| &key.scan).any(|key| !is_built_in(key.sk_func.fn_oid))
}

/// # Safety
///
/// As [`needs_owner`].
unsafe fn indexes_call(target: &Target) -> bool {
    // SAFETY: see above; what is known of an index is as long as its key, times the functions of its method.
    unsafe {
        let result = &*target.result;
        let table = (*target.relation).rd_id;
        let count = usize::try_from(result.ri_NumIndices).unwrap_or(0);
        (0..count).any(|at| {
            let index = &**result.ri_IndexRelationDescs.add(at);
            let info = &**result.ri_IndexRelationInfo.add(at);
            let keys = usize::from((*index.rd_index).indnkeyatts.unsigned_abs());
            let functions = keys * usize::from((*index.rd_indam).amsupport);
            let uniques = if info.ii_UniqueProcs.is_null() { 0 } else { keys };
            !is_built_in(index.rd_amhandler)
                || !info.ii_ExclusionOps.is_null()
                || !filter::is_plain(table, info.ii_Expressions.cast())
                || !filter::is_plain(table, info.ii_Predicate.cast())
                || !items(index.rd_support, functions).iter().all(|function| is_built_in(*function))
                || !items(info.ii_UniqueProcs, uniques).iter().all(|function| is_built_in(*function))
        })
    }
}

/// # Safety
///
/// There are so many of them, one behind the other.
unsafe fn items<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if count == 0 || first.is_null() {
        return &[];
    }
    // SAFETY: see above.
    unsafe { std::slice::from_raw_parts(first, count) }
}
