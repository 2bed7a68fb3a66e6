//! What tables, rows and columns are called here. Every name can be told from every other one, whatever the tables hold.

use std::borrow::Cow;
use std::fmt::Write;

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
        for (column, name) in [
            ("note", "note"),
            ("_note", "_note"),
            ("_key", "%5Fkey"),
            ("_id", "%5Fid"),
            ("%5Fkey", "%255Fkey"),
            ("a%", "a%"),
            ("", ""),
        ] {
            assert_eq!(attribute(column), name);
        }
    }
}
