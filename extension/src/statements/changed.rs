//! What a transaction has changed of the database's objects, and which statements that may concern.

use std::collections::BTreeSet;

use pgquorum_statement::{name_bits, words};

/// Objects and names.
#[derive(Clone, Debug, Default)]
pub struct Changed {
    oids: BTreeSet<u32>,
    /// In UTF-8, with their bits in a statement's filter.
    names: BTreeSet<(u64, Vec<u8>)>,
    everything: bool,
}

/// What is known of a statement.
pub trait Mentions {
    /// The objects that its verdict rests on.
    fn depends(&self, looked_for: &dyn Fn(u32) -> bool) -> bool;
    /// It rests on more objects than are known.
    fn depends_on_all(&self) -> bool;
    /// The filter of its names.
    fn words(&self) -> u64;
    /// Its normalised text; `None`: not known in full.
    fn text(&self) -> Option<Vec<u8>>;
}

impl Changed {
    /// More than this is not told apart.
    const MOST: usize = 4096;

    /// An object was made, changed or dropped.
    pub fn add_object(&mut self, oid: u32) {
        self.oids.insert(oid);
        self.limit();
    }

    /// There is an object of this name that was not there before, which the name may mean from now on.
    pub fn add_name(&mut self, name: &[u8]) {
        self.names.insert((name_bits(name), name.to_vec()));
        self.limit();
    }

    /// Any statement may mean something else now.
    pub fn add_everything(&mut self) {
        self.everything = true;
        self.oids.clear();
        self.names.clear();
    }

    fn limit(&mut self) {
        if self.everything || self.oids.len() + self.names.len() > Self::MOST {
            self.add_everything();
        }
    }

    pub fn is_nothing(&self) -> bool {
        !self.everything && self.oids.is_empty() && self.names.is_empty()
    }

    pub fn is_everything(&self) -> bool {
        self.everything
    }

    pub fn oids(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.oids.iter().copied()
    }

    /// The bits of the names.
    pub fn name_bits(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.names.iter().map(|(bits, _)| *bits)
    }

    /// May the statement's verdict be another one now?
    pub fn concerns(&self, statement: &impl Mentions) -> bool {
        if self.everything || statement.depends_on_all() && !self.is_nothing() {
            return true;
        }
        if !self.oids.is_empty() && statement.depends(&|oid| self.oids.contains(&oid)) {
            return true;
        }
        let words = statement.words();
        let mut likely = self.names.iter().filter(|(bits, _)| words & bits == *bits).peekable();
        if likely.peek().is_none() {
            return false;
        }
        match statement.text() {
            Some(text) => likely.any(|(_, name)| mentions(&text, name)),
            None => true,
        }
    }
}

/// Is the name in a normalised text of which the filter says so? Names that can be written in several ways are taken to be.
fn mentions(text: &[u8], name: &[u8]) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$');
    // Operators also stand behind words of SQL (LIKE, BETWEEN); letters beyond ASCII may be folded by the server.
    if !name.iter().all(is_word) || name.is_empty() || text.windows(3).any(|three| three == b"u&\"") {
        return true;
    }
    words(text).any(|word| {
        // The server cuts off longer names.
        word == name || word.len() > 63 && word.starts_with(&name[..name.len().min(60)])
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    struct Statement {
        depends: Vec<u32>,
        on_all: bool,
        text: Vec<u8>,
        complete: bool,
    }

    impl Statement {
        fn new(text: &str) -> Self {
            let mut normalised = Vec::new();
            pgquorum_statement::normalise(text.as_bytes(), &mut normalised);
            Self { depends: vec![20_000, 20_001], on_all: false, text: normalised, complete: true }
        }
    }

    impl Mentions for Statement {
        fn depends(&self, looked_for: &dyn Fn(u32) -> bool) -> bool {
            self.depends.iter().any(|oid| looked_for(*oid))
        }
        fn depends_on_all(&self) -> bool {
            self.on_all
        }
        fn words(&self) -> u64 {
            if self.complete { pgquorum_statement::names(&self.text) } else { u64::MAX }
        }
        fn text(&self) -> Option<Vec<u8>> {
            self.complete.then(|| self.text.clone())
        }
    }

    fn object(oid: u32) -> Changed {
        let mut changed = Changed::default();
        changed.add_object(oid);
        changed
    }

    fn name(name: &str) -> Changed {
        let mut changed = Changed::default();
        changed.add_name(name.as_bytes());
        changed
    }

    #[test]
    fn objects_concern_what_rests_on_them() {
        let statement = Statement::new("select f(1)");
        assert!(object(20_001).concerns(&statement));
        assert!(!object(20_002).concerns(&statement));
        assert!(object(20_002).concerns(&Statement { on_all: true, ..Statement::new("select f(1)") }));
        assert!(!Changed::default().concerns(&Statement { on_all: true, ..Statement::new("select 1") }));
    }

    #[test]
    fn names_concern_what_has_them() {
        let statement =
            Statement::new("select F(1), \"Odd\", a between 1 and 2 from some_table where b = any ($1)");
        for there in ["f", "some_table", "Odd", "=", ">="] {
            assert!(name(there).concerns(&statement), "{there}");
        }
        for other in ["g", "odd", "some_tabl", "tables", "name"] {
            assert!(!name(other).concerns(&statement), "{other}");
        }
        assert!(
            name("unknown").concerns(&Statement { complete: false, ..statement }),
            "its text is not known in full"
        );
    }

    #[test]
    fn names_that_can_be_written_otherwise_are_not_missed() {
        assert!(name("foo").concerns(&Statement::new(r#"select * from U&"\0066oo""#)));
        let long = "x".repeat(80);
        assert!(name(&long[..63]).concerns(&Statement::new(&format!("select {long}"))));
        assert!(name("a\"b").concerns(&Statement::new(r#"select "a""b""#)));
        assert!(name("straße").concerns(&Statement::new("select Straße")));
    }

    #[test]
    fn too_much_is_everything() {
        let mut changed = Changed::default();
        for oid in 0..5000 {
            changed.add_object(oid);
        }
        assert!(changed.is_everything() && changed.concerns(&Statement::new("select 1")));
        changed.add_name(b"x");
        assert!(changed.is_everything() && changed.oids().len() == 0);
    }
}
