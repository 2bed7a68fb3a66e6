//! What tables, rows and columns are called here. Every name can be told from every other one, whatever the tables hold.

use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The members of a JSON object, each as it is written: a number may be one that only the database can hold.
pub type Members<'a> = BTreeMap<String, &'a RawValue>;

/// The schema that is left out.
const USUAL_SCHEMA: &str = "public";

/// `public.orders` is `orders`, `shop.orders` is `shop.orders`. What is neither a letter or digit of ASCII nor `_` or `-`
/// is written as `%XX`, also a point, so the one point that there may be separates schema and table.
pub fn collection(schema: &str, table: &str) -> String {
    let mut name = String::with_capacity(schema.len() + table.len() + 1);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if schema != USUAL_SCHEMA {
        escape(&mut name, schema.as_bytes(), plain);
        name.push('.');
    }
    escape(&mut name, table.as_bytes(), plain);
    name
}

/// Appends one value of a key. A comma separates the values of a key of several columns, so one in a value is escaped, as is
/// all that ArangoDB does not allow in keys. An empty value is `%`.
pub fn key_value(key: &mut String, value: &[u8]) {
    if !key.is_empty() {
        key.push(',');
    }
    if value.is_empty() {
        key.push('%');
    }
    escape(key, value, |b| b.is_ascii_alphanumeric() || b"_:.@()+=;$!*'-".contains(&b));
}

fn escape(out: &mut String, bytes: &[u8], plain: impl Fn(u8) -> bool) {
    for byte in bytes {
        if plain(*byte) {
            out.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// The schema and the table of a collection's name; none: no collection can be called so.
pub fn table(name: &str) -> Option<(String, String)> {
    let (schema, table) = match name.split_once('.') {
        Some((_, table)) if table.contains('.') => return None,
        Some((schema, table)) => (unescape(schema)?, unescape(table)?),
        None => (USUAL_SCHEMA.to_owned(), unescape(name)?),
    };
    // PostgreSQL would cut longer names off.
    let proper = |name: &str| (1..=63).contains(&name.len()) && !name.contains('\0');
    (proper(&schema) && proper(&table)).then_some((schema, table))
}

/// The values of a key; none: no key is written so.
pub fn key(text: &str) -> Option<Vec<String>> {
    let value = |part: &str| if part == "%" { Some(String::new()) } else { unescape(part) };
    let values: Vec<String> = text.split(',').map(value).collect::<Option<_>>()?;
    values.iter().all(|value| !value.contains('\0')).then_some(values)
}

/// Undoes what [`escape`] does. A `%` without two digits behind it is one: others than this program wrote it.
fn unescape(text: &str) -> Option<String> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).ok()?);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).ok()
}

/// The column of an attribute's name.
pub fn column(attribute: &str) -> Cow<'_, str> {
    match attribute.get(..3) {
        Some("%25") => format!("%{}", &attribute[3..]).into(),
        Some("%5F") => format!("_{}", &attribute[3..]).into(),
        _ => attribute.into(),
    }
}

/// A column's name, unless it looks like one of the attributes that every document has.
pub fn attribute(column: &str) -> Cow<'_, str> {
    match column.as_bytes().first() {
        Some(b'%') => format!("%25{}", &column[1..]).into(),
        Some(b'_') if matches!(column, "_id" | "_key" | "_rev" | "_from" | "_to") => {
            format!("%5F{}", &column[1..]).into()
        }
        _ => column.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn collections_have_unambiguous_names() {
        for (schema, table, name) in [
            ("public", "orders", "orders"),
            ("shop", "orders", "shop.orders"),
            ("public", "shop.orders", "shop%2Eorders"),
            ("a.b", "c", "a%2Eb.c"),
            ("public", "50%", "50%25"),
            ("public", "Größe", "Gr%C3%B6%C3%9Fe"),
            ("public", "a b/c-d_e", "a%20b%2Fc-d_e"),
        ] {
            assert_eq!(collection(schema, table), name);
        }
    }

    #[test]
    fn keys_have_unambiguous_names() {
        let key = |values: &[&str]| {
            let mut key = String::new();
            values.iter().for_each(|value| key_value(&mut key, value.as_bytes()));
            key
        };
        assert_eq!(key(&["17"]), "17");
        assert_eq!(key(&["-3", "a@b.c"]), "-3,a@b.c");
        assert_eq!(key(&["2026-01-02 03:04:05+00"]), "2026-01-02%2003:04:05+00");
        assert_eq!(key(&["ä/ö%"]), "%C3%A4%2F%C3%B6%25");
        let keys: [&[&str]; 8] =
            [&["a,b"], &["a", "b"], &[""], &["", ""], &["%"], &["%", ""], &["", "%"], &["a", "b", ""]];
        let different: HashSet<String> = keys.iter().map(|values| key(values)).collect();
        assert_eq!(different.len(), keys.len(), "{different:?}");
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_:.@()+,=;$!*'%-".contains(&b);
        assert!(different.iter().all(|key| key.bytes().all(allowed) && !key.is_empty()));
    }

    #[test]
    fn columns_keep_their_names_but_for_a_few() {
        for (name, attribute) in [
            ("note", "note"),
            ("_note", "_note"),
            ("_key", "%5Fkey"),
            ("_id", "%5Fid"),
            ("%5Fkey", "%255Fkey"),
            ("a%", "a%"),
            ("", ""),
        ] {
            assert_eq!((super::attribute(name).as_ref(), column(attribute).as_ref()), (attribute, name));
        }
    }

    #[test]
    fn names_and_keys_are_read_as_they_are_written() {
        for (schema, name) in
            [("public", "orders"), ("a.b", "c%d"), ("public", "x.y"), ("Größe", "%"), ("s", "%41")]
        {
            assert_eq!(table(&collection(schema, name)), Some((schema.to_owned(), name.to_owned())));
        }
        for wrong in ["", ".", "a.", ".a", "a.b.c", "a%00", "%FF", &"x".repeat(64)] {
            assert_eq!(table(wrong), None, "{wrong}");
        }
        for values in [&["17"][..], &["a,b", ""], &["", "%", "ä/ö"], &[""], &["50%"]] {
            let mut text = String::new();
            values.iter().for_each(|value| key_value(&mut text, value.as_bytes()));
            assert_eq!(key(&text), Some(values.iter().map(|&value| value.to_owned()).collect()), "{text}");
        }
        assert_eq!(key("50%"), Some(vec!["50%".to_owned()]), "as somebody else writes it");
        assert_eq!((key("%00"), key("%FF")), (None, None));
    }
}
