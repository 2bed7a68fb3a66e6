//! Commands for which nobody else may be connected to a database: DROP DATABASE, CREATE DATABASE from it as a template,
//! ALTER DATABASE ... RENAME and SET TABLESPACE. PostgreSQL waits 5 s for those who are, and ends nobody's background worker.

use std::ffi::CStr;

use pg_sys::{NodeTag, SysCacheIdentifier};
use pgrx::pg_sys;

use super::query_walk::items;
use super::worker;

/// What CREATE DATABASE copies if nothing else is said.
const TEMPLATE: &CStr = c"template1";

/// What such a command is about.
#[derive(Clone, Copy, Debug)]
pub struct Meant {
    pub database: u32,
    /// When it has ended without an error, there is no such database.
    pub drops: bool,
}

/// Can it be such a command?
///
/// # Safety
///
/// `pstmt` points to a valid utility statement.
#[inline]
pub unsafe fn concerns(pstmt: *const pg_sys::PlannedStmt) -> bool {
    // SAFETY: see above; the node's tag says what it is.
    unsafe {
        let node = (*pstmt).utilityStmt;
        !node.is_null()
            && matches!(
                (*node).type_,
                NodeTag::T_DropdbStmt
                    | NodeTag::T_CreatedbStmt
                    | NodeTag::T_AlterDatabaseStmt
                    | NodeTag::T_RenameStmt
            )
    }
}

/// The database that it is about. `None`: it is another command, there is no such database, it is this session's own, or
/// whoever runs it may not.
///
/// # Safety
///
/// As [`concerns`], which is true; in a transaction.
pub unsafe fn meant(pstmt: *const pg_sys::PlannedStmt) -> Option<Meant> {
    // SAFETY: see above; the node's tag says what it is. Names are strings of the statement.
    unsafe {
        let node = (*pstmt).utilityStmt;
        let (name, creates) = match (*node).type_ {
            NodeTag::T_DropdbStmt => ((*node.cast::<pg_sys::DropdbStmt>()).dbname.cast_const(), false),
            NodeTag::T_CreatedbStmt => {
                let create = &*node.cast::<pg_sys::CreatedbStmt>();
                let named =
                    option(create.options, c"template").filter(|template| !(**template).arg.is_null());
                let name =
                    named.map_or(TEMPLATE.as_ptr(), |template| pg_sys::defGetString(template).cast_const());
                (name, true)
            }
            NodeTag::T_AlterDatabaseStmt => {
                let alter = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                option(alter.options, c"tablespace")?;
                (alter.dbname.cast_const(), false)
            }
            NodeTag::T_RenameStmt => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                if rename.renameType != pg_sys::ObjectType::OBJECT_DATABASE {
                    return None;
                }
                (rename.subname.cast_const(), false)
            }
            _ => return None,
        };
        let database = pg_sys::get_database_oid(name, true);
        let is_meant = database != pg_sys::InvalidOid
            && database.to_u32() != worker::own_database()
            && (owns(database) || creates && creates_databases());
        let drops = (*node).type_ == NodeTag::T_DropdbStmt;
        is_meant.then(|| Meant { database: database.to_u32(), drops })
    }
}

/// The option of that name.
///
/// # Safety
///
/// It is a list of options or null.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: see above; options have names.
    unsafe {
        let mut all = items(options).iter().map(|cell| cell.ptr_value.cast::<pg_sys::DefElem>());
        all.rfind(|option| CStr::from_ptr((**option).defname) == name)
    }
}

fn owns(database: pg_sys::Oid) -> bool {
    // SAFETY: in a transaction; a superuser owns everything.
    #[cfg(any(feature = "pg14", feature = "pg15"))]
    return unsafe { pg_sys::pg_database_ownercheck(database, pg_sys::GetUserId()) };
    // SAFETY: as above.
    #[cfg(not(any(feature = "pg14", feature = "pg15")))]
    return unsafe { pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, pg_sys::GetUserId()) };
}

fn creates_databases() -> bool {
    // SAFETY: a row of the cache begins with the catalogue's structure, and stays until it is given back.
    unsafe {
        let user = pg_sys::Datum::from(pg_sys::GetUserId());
        let row = pg_sys::SearchSysCache1(SysCacheIdentifier::AUTHOID as i32, user);
        if row.is_null() {
            return false;
        }
        let may = (*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_authid>()).rolcreatedb;
        pg_sys::ReleaseSysCache(row);
        may
    }
}
