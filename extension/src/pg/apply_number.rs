//! Numbers of rows' keys, by which their versions are found: of the rows that a change is about, and of rows that are here.

use std::borrow::Cow;
use std::ffi::CStr;

use pgquorum_change::{Change, Image, KEY_BYTES, OldImage, Op, Schema, Value, key_hash};
use pgrx::pg_sys;

use super::apply_target::Target;
use super::apply_write::check_length;
use super::describe::attributes;
use super::encoding;
use super::trigger::OpenTable;

/// Types with lower numbers are the same in every PostgreSQL.
const FIRST_OF_USERS: u32 = pg_sys::FirstNormalObjectId;

/// A column of the key.
pub(super) struct Part {
    /// Which column of the schema version it is.
    column: usize,
    /// Which value of a key image it is.
    in_key: usize,
    /// Position in the table, from 0.
    place: usize,
    /// The source's text is what the type here prints.
    same: bool,
    output: pg_sys::FmgrInfo,
}

pub type Number = [u8; KEY_BYTES];

/// The rows that a change is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// The row that is no longer there: of a deletion, and of an update that changes the key.
    pub gone: Option<Number>,
    /// The row that is there.
    pub put: Option<Number>,
}

impl Target {
    /// Sees to it that keys are numbered by these columns, which are in the order of their names. False: they are not those by
    /// which the source names its rows, or are computed here.
    pub fn number_by(&mut self, schema: &Schema, names: &[String]) -> bool {
        self.parts.clear();
        if names.is_empty() || names.len() != schema.key.len() {
            return false;
        }
        let mut parts = Vec::with_capacity(names.len());
        for name in names {
            let in_key = schema.key.iter().position(|at| schema.columns[*at].name == *name);
            let found = in_key.map(|in_key| (in_key, schema.key[in_key]));
            let Some((in_key, column)) = found else { return false };
            let Some(place) = self.columns[column].place else { return false };
            // SAFETY: the relation is open; what the function keeps lives as long as this.
            unsafe {
                let attribute = &attributes(self.relation)[place];
                let (kind, modifier) = (attribute.atttypid, attribute.atttypmod);
                let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
                let mut output = pg_sys::FmgrInfo::default();
                pg_sys::getTypeOutputInfo(kind, &mut function, &mut varlena);
                pg_sys::fmgr_info_cxt(function, &mut output, self.memory);
                let name = CStr::from_ptr(pg_sys::format_type_with_typemod(kind, modifier));
                let same = kind.to_u32() < FIRST_OF_USERS
                    && name.to_bytes() == schema.columns[column].type_name.as_bytes();
                parts.push(Part { column, in_key, place, same, output });
            }
        }
        self.parts = parts;
        true
    }

    /// The numbers of the rows that a change is about.
    pub fn numbers(&mut self, change: &Change) -> Numbers {
        let old = change.old.map(|old| key_hash(self.key_texts(old)));
        let put = change.new.map(|new| key_hash(self.key_texts(OldImage::Full(new))));
        let gone = if change.op == Op::Insert { None } else { old.filter(|old| Some(*old) != put) };
        Numbers { gone, put }
    }

    /// The values of the key in an image as text, in the order of the columns' names, in UTF-8, as this database's log has
    /// them.
    pub fn key_texts<'a>(&mut self, image: OldImage<'a>) -> Vec<Cow<'a, [u8]>> {
        let (image, is_key): (Image, bool) = match image {
            OldImage::Key(image) => (image, true),
            OldImage::Full(image) => (image, false),
        };
        check_length(image, if is_key { self.parts.len() } else { self.columns.len() });
        let mut texts: Vec<Cow<[u8]>> = vec![Cow::Borrowed(&[]); self.parts.len()];
        for (at, value) in image.values().enumerate() {
            let is_here = |part: &Part| at == if is_key { part.in_key } else { part.column };
            if let (Some(part), Value::Text(text)) = (self.parts.iter().position(is_here), value) {
                texts[part] = text;
            }
        }
        if self.parts.iter().any(|part| !part.same) {
            self.print_as_here(&mut texts);
        }
        texts
    }

    /// Texts of the source into what the types here print.
    #[cold]
    fn print_as_here(&mut self, texts: &mut [Cow<[u8]>]) {
        let outer = self.begin();
        let Self { parts, columns, room, .. } = self;
        for (part, text) in parts.iter_mut().zip(texts).filter(|(part, _)| !part.same) {
            // SAFETY: the value is of the type whose function prints it; both are in the row's memory.
            let printed = unsafe {
                let value = columns[part.column].input.read(text, room);
                CStr::from_ptr(pg_sys::OutputFunctionCall(&mut part.output, value))
            };
            *text = Cow::Owned(encoding::to_utf8(printed.to_bytes()).into_owned().into_bytes());
        }
        self.finish(outer);
    }

    /// The number of the key of the row that was found.
    pub fn number_of_found(&mut self) -> Number {
        let outer = self.begin();
        let Self { parts, found, .. } = self;
        // SAFETY: the slot holds a row of this table; a key has no NULLs, and if it has, they are as empty texts.
        let texts = unsafe {
            pg_sys::slot_getallattrs(*found);
            let (values, nulls) = ((**found).tts_values, (**found).tts_isnull);
            parts.iter_mut().map(move |part| {
                if *nulls.add(part.place) {
                    return String::new();
                }
                let text = pg_sys::OutputFunctionCall(&mut part.output, *values.add(part.place));
                encoding::to_utf8(CStr::from_ptr(text).to_bytes()).into_owned()
            })
        };
        let number = key_hash(texts);
        self.finish(outer);
        number
    }

    /// For capture, which is to write what no trigger sees.
    pub fn open_table(&self) -> OpenTable {
        OpenTable(self.relation)
    }
}
