//! Names and keys as the remote writes them, read back: the inverse of [`crate::replication::names`] where the remote is one
//! of ours, and as they stand where it is not.

/// The schema and table of a collection. `None`: there can be no such table.
pub fn table_of(collection: &str, ours: bool) -> Option<(String, String)> {
    let (schema, table) = match (ours, collection.split_once('.')) {
        (true, Some((schema, table))) => (unescaped(schema)?, unescaped(table)?),
        (true, None) => ("public".to_owned(), unescaped(collection)?),
        (false, _) => ("public".to_owned(), collection.to_owned()),
    };
    let fits = |name: &String| !name.is_empty() && name.len() <= 63 && !name.contains('\0');
    (fits(&schema) && fits(&table)).then_some((schema, table))
}

/// The values of a key of so many columns. `None`: it is no key of that many.
pub fn values_of(key: &str, columns: usize, ours: bool) -> Option<Vec<String>> {
    if !ours {
        return (columns == 1).then(|| vec![key.to_owned()]);
    }
    let value = |text: &str| if text == "%" { Some(String::new()) } else { unescaped(text) };
    let values = key.split(',').map(value).collect::<Option<Vec<_>>>()?;
    (values.len() == columns && values.iter().all(|value| !value.contains('\0'))).then_some(values)
}

/// `%XX` as the byte that it stands for. `None`: a `%` without its digits, or bytes that are no UTF-8.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::names;

    #[test]
    fn names_come_back_as_they_were() {
        for (schema, table) in [
            ("public", "orders"),
            ("shop", "orders"),
            ("public", "a.b"),
            ("a.b", "c%d"),
            ("public", "Größe x"),
        ] {
            let name = names::collection(schema, table);
            assert_eq!(table_of(&name, true), Some((schema.to_owned(), table.to_owned())), "{name}");
        }
        assert_eq!(table_of("a%2Eb", false), Some(("public".to_owned(), "a%2Eb".to_owned())));
        for wrong in ["", ".a", "a.", "%", "%zz", "%00", "%FF"] {
            assert_eq!(table_of(wrong, true), None, "{wrong}");
        }
        assert_eq!(table_of(&"x".repeat(64), false), None);
    }

    #[test]
    fn keys_come_back_as_they_were() {
        for values in [&["17"][..], &["a,b", "%"], &["", ""], &["ä/ö%", "2026-01-02 03:04:05+00", "x"]] {
            let mut key = String::new();
            values.iter().for_each(|value| names::key_value(&mut key, value.as_bytes()));
            let back = values_of(&key, values.len(), true).unwrap();
            assert_eq!(back, values.to_vec(), "{key}");
            assert_eq!(values_of(&key, values.len() + 1, true), None);
        }
        assert_eq!(values_of("a%20b,c", 1, false), Some(vec!["a%20b,c".to_owned()]));
        assert_eq!(values_of("a,b", 2, false), None);
        assert_eq!(values_of("%0", 1, true), None);
    }
}
