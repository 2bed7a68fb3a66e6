//! The test vectors of `docs/statement-hash.md`.

use pgquorum_statement::{hash, normalise};

const DOCUMENT: &str = include_str!("../../../docs/statement-hash.md");

#[test]
fn the_documented_statements_have_the_documented_hashes() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for line in DOCUMENT.lines().filter(|line| line.starts_with("[\"")) {
        let [text, normalised, digits]: [String; 3] =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        let mut out = Vec::new();
        normalise(text.as_bytes(), &mut out);
        let out = String::from_utf8(out).expect("UTF-8");
        let hash = format!("{:016x}", hash(text.as_bytes()));
        if (out.as_str(), hash.as_str()) != (normalised.as_str(), digits.as_str()) {
            wrong.push(serde_json::to_string(&[&text, &out, &hash]).expect("JSON"));
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "these lines should read:\n{}", wrong.join("\n"));
    assert!(seen >= 80, "the document has {seen} test vectors");
}
