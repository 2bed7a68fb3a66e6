//! What the fuzzer found worth keeping, through the same checks.

#[path = "../fuzz/check.rs"]
mod check;

#[test]
fn what_the_fuzzer_kept_does_no_harm() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/decode");
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let input = std::fs::read(entry.expect("an entry").path()).expect("an input");
        check::decode(&input);
        seen += 1;
    }
    assert!(seen > 50, "the corpus has {seen} inputs");
}
