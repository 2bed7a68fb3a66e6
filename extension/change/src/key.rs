//! The key of a row as a number of fixed size, by which versions of rows are found.
//!
//! It is the first half of SHA-256 over the values of the key's columns, in the order of the columns' names (by their bytes
//! in UTF-8). Of each value goes in its length in bytes, 4 bytes with the highest first, and then its text in UTF-8, as the
//! log has it. So it depends neither on where the columns stand nor on what types they have, as long as the values print
//! the same, and two keys that are not the same do not get the same number, not even on purpose.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::{Image, Value};

/// Length of a key's number in bytes.
pub const KEY_BYTES: usize = 16;

/// The number of a key, from its values' texts in the order of the columns' names.
#[must_use]
pub fn key_hash<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> [u8; KEY_BYTES] {
    let mut sha = Sha256::new();
    for value in values {
        let value = value.as_ref();
        // A value of PostgreSQL is shorter than 1 GB.
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        sha.update(length.to_be_bytes());
        sha.update(value);
    }
    let all = sha.finalize();
    let mut half = [0; KEY_BYTES];
    half.copy_from_slice(&all[..KEY_BYTES]);
    half
}

impl Image<'_> {
    /// The number of a key, of which this is the image. `order` says where its values stand, in the order of the columns'
    /// names ([`by_name`]).
    #[must_use]
    pub fn number(&self, order: &[usize]) -> [u8; KEY_BYTES] {
        let text = |value| match value {
            Value::Text(text) => text,
            // A key has neither.
            Value::Null | Value::Unchanged => Cow::Borrowed(b"".as_slice()),
        };
        if let [_] = order {
            return key_hash(self.values().map(text));
        }
        let values: Vec<_> = self.values().map(text).collect();
        key_hash(order.iter().filter_map(|at| values.get(*at)))
    }
}

/// Where the columns with these names stand, in the order of their names.
#[must_use]
pub fn by_name<N: AsRef<str>>(names: &[N]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by_key(|at| names[*at].as_ref());
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encoder, Old, OldImage, Op};

    fn hex(values: &[&str]) -> String {
        key_hash(values).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The same as in docs/row-versions.md; made with `printf … | sha256sum`.
    #[test]
    fn vectors() {
        assert_eq!(hex(&["1"]), "86e1b5d0cd65e7681ee285f08a12933f");
        assert_eq!(hex(&["42", "DE"]), "07095ce3409f4c11c86ab2eabf221808");
        assert_eq!(hex(&["Zürich"]), "cae562bc27854af445a292541df3a376");
        assert_eq!(hex(&[""]), "df3f619804a92fdb4057192dc43dd748");
    }

    #[test]
    fn the_image_of_a_key_has_the_number_of_its_values() {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::begin(&mut bytes, Op::Delete, 1, Old::Key, false);
        encoder.image(2);
        encoder.padded(b"DE      ");
        encoder.integer(42);
        let found = crate::change(&mut bytes.as_slice()).expect("a change");
        let Some(OldImage::Key(image)) = found.old else { panic!("{found:?}") };
        assert_eq!(image.number(&[1, 0]), key_hash(["42", "DE      "]));
        assert_eq!(image.number(&[0, 1]), key_hash(["DE      ", "42"]));
    }

    #[test]
    fn where_a_value_ends_counts() {
        let all = [["ab", "c"], ["a", "bc"], ["abc", ""], ["", "abc"]];
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                assert_ne!(hex(one), hex(other));
            }
        }
    }

    #[test]
    fn columns_are_taken_by_name() {
        assert_eq!(by_name(&["id", "country", "ä", "Z"]), [3, 1, 0, 2]);
        assert_eq!(by_name(&["id"]), [0]);
    }
}
