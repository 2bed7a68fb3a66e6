//! What must not be done to the tables of the log. Their writers append at the end, and their readers remember how far
//! they have read: rows must stay where they are, and the tables must not get shorter.

use std::ffi::{CStr, c_int};

use pgrx::PgSqlErrorCode::ERRCODE_OBJECT_IN_USE;
use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::table;
use super::worker::lock;
use crate::error::Refusal;

const EXTENSION: &CStr = c"pgquorum";
const OWN_SCHEMA: &CStr = c"quorum";
const LOG_SCHEMA: &CStr = c"quorum_log";
const LOG_PREFIX: &[u8] = b"log_";

/// May this statement move rows of tables, shorten them, or hide what they are? A quick look, for every utility statement.
///
/// # Safety
///
/// `pstmt` points to a valid utility statement.
pub unsafe fn concerns(pstmt: *const pg_sys::PlannedStmt) -> bool {
    // SAFETY: see above; the node's tag says what it is.
    unsafe {
        let node = (*pstmt).utilityStmt;
        !node.is_null()
            && matches!(
                (*node).type_,
                NodeTag::T_VacuumStmt
                    | NodeTag::T_ClusterStmt
                    | NodeTag::T_TruncateStmt
                    | NodeTag::T_AlterTableStmt
                    | NodeTag::T_RenameStmt
                    | NodeTag::T_AlterObjectSchemaStmt
                    | NodeTag::T_IndexStmt
            )
    }
}

/// Raises 55006 if the statement would do so to a table of the log.
///
/// # Safety
///
/// As [`concerns`], which is true.
pub unsafe fn check(pstmt: *const pg_sys::PlannedStmt) {
    // SAFETY: see above; the node's tag says what it is, and lists hold what they hold for such a statement. Two globals
    // of this process are read.
    unsafe {
        // pg_upgrade makes the tables as they were, and an update of the extension knows what it does.
        if pg_sys::IsBinaryUpgrade || pg_sys::creating_extension {
            return;
        }
        let node = (*pstmt).utilityStmt;
        match (*node).type_ {
            NodeTag::T_TruncateStmt => {
                items((*node.cast::<pg_sys::TruncateStmt>()).relations)
                    .for_each(|range| refuse_log(range.cast(), "TRUNCATE"));
            }
            NodeTag::T_ClusterStmt => refuse_log((*node.cast::<pg_sys::ClusterStmt>()).relation, "CLUSTER"),
            NodeTag::T_AlterTableStmt => {
                refuse_log((*node.cast::<pg_sys::AlterTableStmt>()).relation, "ALTER TABLE");
            }
            NodeTag::T_RenameStmt => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                refuse_schema(rename);
                refuse_log(rename.relation, "ALTER ... RENAME");
            }
            NodeTag::T_AlterObjectSchemaStmt => {
                refuse_log((*node.cast::<pg_sys::AlterObjectSchemaStmt>()).relation, "ALTER ... SET SCHEMA");
            }
            NodeTag::T_IndexStmt => refuse_log((*node.cast::<pg_sys::IndexStmt>()).relation, "CREATE INDEX"),
            NodeTag::T_VacuumStmt => check_vacuum(&*node.cast()),
            _ => {}
        }
    }
}

/// VACUUM FULL writes tables anew, and VACUUM (TRUNCATE) goes over what the log's tables say about themselves.
///
/// # Safety
///
/// The statement is a valid one.
unsafe fn check_vacuum(vacuum: &pg_sys::VacuumStmt) {
    // SAFETY: see above: options are `DefElem`s, and tables `VacuumRelation`s.
    unsafe {
        if !vacuum.is_vacuumcmd {
            return;
        }
        let asked = items(vacuum.options).map(|option| option.cast::<pg_sys::DefElem>()).filter(|option| {
            let name = CStr::from_ptr((**option).defname);
            (name == c"full" || name == c"truncate") && pg_sys::defGetBoolean(*option)
        });
        let Some(option) = asked.last() else { return };
        let action =
            if CStr::from_ptr((*option).defname) == c"full" { "VACUUM FULL" } else { "VACUUM (TRUNCATE)" };
        if vacuum.rels.is_null()
            && let Some(name) = any_log_table()
        {
            refuse(
                &name,
                action,
                "Name the tables that it is for: those of the log are for plain VACUUM only.",
            );
        }
        items(vacuum.rels)
            .for_each(|table| refuse_log((*table.cast::<pg_sys::VacuumRelation>()).relation, action));
    }
}

/// The items of a list of nodes.
///
/// # Safety
///
/// It is such a list or null, and lives as long as it is walked.
unsafe fn items(list: *mut pg_sys::List) -> impl Iterator<Item = *mut std::ffi::c_void> {
    // SAFETY: see above.
    let length = if list.is_null() { 0 } else { unsafe { (*list).length } };
    // SAFETY: as above; the place is one of the list's.
    (0..usize::try_from(length).unwrap_or(0)).map(move |at| unsafe { (*(*list).elements.add(at)).ptr_value })
}

/// # Safety
///
/// `range` names a relation.
unsafe fn refuse_log(range: *const pg_sys::RangeVar, action: &str) {
    // SAFETY: see above; catalogues are read, which a statement's transaction allows. No lock: what another session
    // renames meanwhile is no table of the log, since those belong to the extension.
    unsafe {
        if range.is_null() {
            return;
        }
        let oid = pg_sys::RangeVarGetRelidExtended(
            range,
            pg_sys::NoLock as c_int,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        );
        if oid != pg_sys::InvalidOid
            && let Some(name) = log_table(oid)
        {
            refuse(
                &name,
                action,
                "Plain VACUUM may be used on it. Old log goes by quorum.purge and the channel's limits.",
            );
        }
    }
}

/// The extension finds its tables, and the tables of the log, by the names of their schemas.
///
/// # Safety
///
/// The statement is a valid one, in a transaction.
unsafe fn refuse_schema(rename: &pg_sys::RenameStmt) {
    // SAFETY: see above: such a statement has the schema's present name.
    unsafe {
        if rename.renameType != pg_sys::ObjectType::OBJECT_SCHEMA || rename.subname.is_null() {
            return;
        }
        let name = CStr::from_ptr(rename.subname);
        if (name == OWN_SCHEMA || name == LOG_SCHEMA)
            && pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) != pg_sys::InvalidOid
        {
            let name = name.to_string_lossy();
            Refusal::new(ERRCODE_OBJECT_IN_USE, format!("the schema {name} cannot be renamed"))
                .detail("pgquorum finds its tables by this name: no transaction that changes a tracked table could commit.")
                .hint("Leave it as it is. DROP EXTENSION pgquorum CASCADE removes it with everything that is in it.")
                .raise();
        }
    }
}

/// The name of a table of the log that is in use; `None`: it is none, or not yet the extension's own.
///
/// # Safety
///
/// In a transaction.
unsafe fn log_table(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: see above; names are strings in the present memory context, or null.
    unsafe {
        if pg_sys::get_rel_namespace(oid) != pg_sys::get_namespace_oid(LOG_SCHEMA.as_ptr(), true) {
            return None;
        }
        let name = pg_sys::get_rel_name(oid);
        if name.is_null() || !CStr::from_ptr(name).to_bytes().starts_with(LOG_PREFIX) {
            return None;
        }
        table::is_member(oid).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

/// The name of some table of the log in this database. No SQL here: in a database without the extension anybody may have
/// made relations of its names.
///
/// # Safety
///
/// In a transaction.
unsafe fn any_log_table() -> Option<String> {
    // SAFETY: see above. VACUUM is allowed to look at catalogues before it begins its own transactions. A sequential scan
    // of a catalogue, closed again; its rows are of the struct's shape.
    unsafe {
        let schema = pg_sys::get_namespace_oid(LOG_SCHEMA.as_ptr(), true);
        if schema == pg_sys::InvalidOid {
            return None;
        }
        let no_keys = std::ptr::null_mut();
        let table = pg_sys::table_open(pg_sys::RelationRelationId, lock::ACCESS_SHARE);
        let scan =
            pg_sys::systable_beginscan(table, pg_sys::InvalidOid, false, std::ptr::null_mut(), 0, no_keys);
        let mut found = None;
        while found.is_none() {
            let row = pg_sys::systable_getnext(scan);
            if row.is_null() {
                break;
            }
            let row = pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_class>();
            if (*row).relnamespace == schema {
                found = log_table((*row).oid);
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, lock::ACCESS_SHARE);
        found
    }
}

fn refuse(name: &str, action: &str, hint: &str) -> ! {
    Refusal::new(
        ERRCODE_OBJECT_IN_USE,
        format!("{action} is not for quorum_log.{name}, a table of the change log"),
    )
    .detail(
        "Its rows must stay where they are, or changes would be missing for those who follow the channel.",
    )
    .hint(hint)
    .raise()
}
