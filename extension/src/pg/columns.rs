//! A row's values as text, in the form in which the log keeps them.

use std::ffi::CStr;

use pgquorum_change::Encoder;
use pgrx::pg_sys;

use super::encoding;
use super::formats::{Formats, PlainPath};

unsafe extern "C-unwind" {
    /// access/htup_details.h. It raises nothing, so it is called without pgrx's guard, which would cost as much.
    fn heap_deform_tuple(
        tuple: pg_sys::HeapTuple,
        descriptor: pg_sys::TupleDesc,
        values: *mut pg_sys::Datum,
        nulls: *mut bool,
    );
}

/// `VARTAG_ONDISK` (postgres.h) and the size of such a pointer with its header.
const ON_DISK_TAG: u8 = 18;
const ON_DISK_BYTES: usize = 2 + 16;

/// How a column's values become text.
enum Form {
    Bool,
    Int2,
    Int4,
    Int8,
    /// The text is in the value itself: `text`, `varchar`, `json`.
    Text,
    /// `char(n)`: the same with trailing blanks, which are counted.
    Padded,
    /// By the type's output function.
    Function(Box<pg_sys::FmgrInfo>),
}

/// A captured column of a table or partition.
pub struct Column {
    /// Position in the row, from 0.
    at: usize,
    form: Form,
    variable_length: bool,
    pub key: bool,
}

/// What the columns of a table have in common.
pub struct Columns {
    pub all: Vec<Column>,
    /// An output function is needed, so settings must be right.
    formats: bool,
    /// Names in values depend on `search_path`.
    path: bool,
    /// Values must be converted to UTF-8.
    convert: bool,
}

/// A row taken apart; valid as long as the tuple it came from.
#[derive(Default)]
pub struct Row {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Row {
    /// # Safety
    ///
    /// The tuple is one of the table that the descriptor describes.
    pub unsafe fn take_apart(&mut self, tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) {
        // SAFETY: see above; there is room for all columns.
        unsafe {
            let count = usize::try_from((*descriptor).natts).unwrap_or(0);
            self.values.resize(count, pg_sys::Datum::from(0));
            self.nulls.resize(count, true);
            heap_deform_tuple(tuple, descriptor, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        }
    }
}

impl Columns {
    /// `columns` are position (from 0), type, and whether it is part of the key. What output functions keep lives in
    /// `context`.
    ///
    /// # Safety
    ///
    /// `context` outlives the result.
    pub unsafe fn new(columns: Vec<(usize, pg_sys::Oid, bool)>, context: pg_sys::MemoryContext) -> Self {
        let (mut formats, mut path) = (false, false);
        let all = columns
            .into_iter()
            .map(|(at, kind, key)| {
                // SAFETY: reads the catalogue; the record is filled in, and what it needs later lives in the context.
                unsafe {
                    let base = pg_sys::getBaseType(kind);
                    let form = match base {
                        pg_sys::BOOLOID => Form::Bool,
                        pg_sys::INT2OID => Form::Int2,
                        pg_sys::INT4OID => Form::Int4,
                        pg_sys::INT8OID => Form::Int8,
                        pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::JSONOID => Form::Text,
                        pg_sys::BPCHAROID => Form::Padded,
                        _ => {
                            let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
                            pg_sys::getTypeOutputInfo(kind, &mut function, &mut varlena);
                            let mut info = Box::new(pg_sys::FmgrInfo::default());
                            pg_sys::fmgr_info_cxt(function, &mut *info, context);
                            formats = true;
                            path |= names_objects(base);
                            Form::Function(info)
                        }
                    };
                    Column { at, form, variable_length: pg_sys::get_typlen(kind) == -1, key }
                }
            })
            .collect();
        Self { all, formats, path, convert: encoding::differs() }
    }

    /// Settings for as long as values are written.
    #[inline]
    pub fn settings(&self) -> (Option<Formats>, Option<PlainPath>) {
        (self.formats.then(Formats::take), self.path.then(PlainPath::take))
    }

    pub fn key_length(&self) -> usize {
        self.all.iter().filter(|column| column.key).count()
    }

    /// Writes the image of the whole row. Large values that are the same as in `old` are not repeated, except in the
    /// key: the old one may be nowhere else.
    ///
    /// # Safety
    ///
    /// The rows are of this table, their tuples are valid, and the settings hold.
    #[inline]
    pub unsafe fn put_row(&mut self, encoder: &mut Encoder, row: &Row, old: Option<&Row>) {
        encoder.image(self.all.len());
        for column in &mut self.all {
            // SAFETY: see above.
            unsafe {
                let may_be_left_out = column.variable_length && !column.key;
                if may_be_left_out && old.is_some_and(|old| column.is_unchanged(row, old)) {
                    encoder.unchanged();
                } else {
                    column.put(encoder, row, self.convert);
                }
            }
        }
    }

    /// Writes the image of the key.
    ///
    /// # Safety
    ///
    /// As [`Columns::put_row`].
    #[inline]
    pub unsafe fn put_key(&mut self, encoder: &mut Encoder, row: &Row) {
        encoder.image(self.key_length());
        for column in self.all.iter_mut().filter(|column| column.key) {
            // SAFETY: see above.
            unsafe { column.put(encoder, row, self.convert) }
        }
    }
}

impl Column {
    /// Both rows point to the same value outside the table: an update has not touched it.
    ///
    /// # Safety
    ///
    /// The column is of variable length, and both rows are of this table.
    #[inline]
    unsafe fn is_unchanged(&self, new: &Row, old: &Row) -> bool {
        if new.nulls[self.at] || old.nulls[self.at] {
            return false;
        }
        let (new, old) = (new.values[self.at].cast_mut_ptr::<u8>(), old.values[self.at].cast_mut_ptr::<u8>());
        // SAFETY: see above. A pointer begins with its tag; the rest is looked at only if both are pointers to disk.
        unsafe {
            is_on_disk(new)
                && is_on_disk(old)
                && std::slice::from_raw_parts(new, ON_DISK_BYTES)
                    == std::slice::from_raw_parts(old, ON_DISK_BYTES)
        }
    }

    /// # Safety
    ///
    /// As [`Columns::put_row`].
    #[inline]
    unsafe fn put(&mut self, encoder: &mut Encoder, row: &Row, convert: bool) {
        if row.nulls[self.at] {
            return encoder.null();
        }
        let value = row.values[self.at];
        // SAFETY: see above: the value is of the column's type.
        unsafe {
            match &mut self.form {
                Form::Bool => encoder.text(if value.value() & 0xff == 0 { b"f" } else { b"t" }),
                Form::Int2 => encoder.integer(i64::from(value.value() as i16)),
                Form::Int4 => encoder.integer(i64::from(value.value() as i32)),
                Form::Int8 => encoder.integer(value.value() as i64),
                Form::Text => encoder.text(in_utf8(text_of(value), convert)),
                Form::Padded => encoder.padded(in_utf8(text_of(value), convert)),
                Form::Function(function) => {
                    let text = CStr::from_ptr(pg_sys::OutputFunctionCall(&mut **function, value));
                    encoder.text(in_utf8(text.to_bytes(), convert));
                }
            }
        }
    }
}

/// # Safety
///
/// `value` points to a value of variable length.
#[inline]
unsafe fn is_on_disk(value: *const u8) -> bool {
    // SAFETY: see above; only a pointer has 1 in its first byte, and its tag behind it.
    unsafe { *value == 1 && *value.add(1) == ON_DISK_TAG }
}

/// The bytes of a text, fetched and decompressed if they must be; valid until the trigger returns.
///
/// # Safety
///
/// The value is of a type that is laid out as `text`.
#[inline]
unsafe fn text_of<'a>(value: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: see above. A short header (lowest bit) that is not a pointer, or an ordinary one (lowest bits 00), has
    // the bytes behind it.
    unsafe {
        let mut text = value.cast_mut_ptr::<pg_sys::varlena>();
        let first = *text.cast::<u8>();
        if first == 1 || first & 3 == 2 {
            text = pg_sys::pg_detoast_datum_packed(text);
        }
        std::slice::from_raw_parts(pgrx::vardata_any(text).cast(), pgrx::varsize_any_exhdr(text))
    }
}

#[inline]
fn in_utf8(text: &[u8], convert: bool) -> &[u8] {
    if convert && !text.is_ascii() { encoding::converted(text) } else { text }
}

/// Do values of this type print names of tables, functions, … whose schemas are left out when they are in the path?
/// What is made of other types is assumed to.
///
/// # Safety
///
/// In a transaction.
unsafe fn names_objects(base: pg_sys::Oid) -> bool {
    // SAFETY: reads the catalogue.
    let inner = unsafe { pg_sys::get_element_type(base) };
    let named = if inner == pg_sys::InvalidOid { base } else { inner };
    // SAFETY: as above.
    let kind = unsafe { pg_sys::get_typtype(named) } as u8;
    let registered = [
        pg_sys::REGPROCOID,
        pg_sys::REGPROCEDUREOID,
        pg_sys::REGOPEROID,
        pg_sys::REGOPERATOROID,
        pg_sys::REGCLASSOID,
        pg_sys::REGCOLLATIONOID,
        pg_sys::REGTYPEOID,
        pg_sys::REGCONFIGOID,
        pg_sys::REGDICTIONARYOID,
    ];
    registered.contains(&named) || matches!(kind, pg_sys::TYPTYPE_COMPOSITE | pg_sys::TYPTYPE_DOMAIN)
}
