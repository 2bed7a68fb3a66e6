//! Nothing is allocated for a statement, whatever it is: it is looked at in the server's hooks and in drivers' hot paths.

use pgquorum_statement::{digest, hash, names, normalise, words};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

thread_local! {
    /// How often this thread has asked for memory. Needs none itself.
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which counts.
struct Counting;

fn count() {
    // What a thread does at its very end belongs to no test.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: everything is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How often memory was asked for meanwhile.
fn asked(act: impl FnOnce()) -> u64 {
    let before = ASKED.with(Cell::get);
    act();
    ASKED.with(Cell::get) - before
}

/// The documented statements, what the fuzzer kept, and long ones: longer than any buffer on the way.
fn texts() -> Vec<Vec<u8>> {
    let document = include_str!("../../../docs/statement-hash.md");
    let mut all: Vec<Vec<u8>> = document
        .lines()
        .filter(|line| line.starts_with("[\""))
        .map(|line| {
            let [text, ..]: [String; 3] = serde_json::from_str(line).expect("a test vector");
            text.into_bytes()
        })
        .collect();
    assert!(all.len() >= 80, "the document has {} test vectors", all.len());
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/normalise");
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        all.push(std::fs::read(entry.expect("an entry").path()).expect("an input"));
    }
    let units = ["select 'b' from \"T\" where x in (1, 2) ", "'", "a", "1, ", "(", ";", "$$", "/* ", "E'\\'"];
    for unit in units {
        all.push(unit.repeat(100_000 / unit.len()).into_bytes());
    }
    all
}

#[test]
fn no_statement_allocates() {
    // What is not counted would be none, too.
    assert!(asked(|| drop(black_box(vec![1_u8; 10]))) > 0, "the allocator counts");
    let mut normalised = Vec::new();
    let mut kept = vec![0; 1024];
    for text in texts() {
        let shown = || String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned();
        let hashing = asked(|| {
            black_box(hash(black_box(text.as_slice())));
        });
        assert_eq!(hashing, 0, "hash: {}", shown());
        for room in [0, 7, 1024] {
            let digesting = asked(|| {
                black_box(digest(black_box(text.as_slice()), &mut kept[..room]));
            });
            assert_eq!(digesting, 0, "digest with room for {room}: {}", shown());
        }
        // A buffer that is used again is large enough some time.
        normalise(&text, &mut normalised);
        normalised.clear();
        let normalising = asked(|| normalise(black_box(text.as_slice()), &mut normalised));
        assert_eq!(normalising, 0, "normalise: {}", shown());
        let naming = asked(|| {
            black_box(names(black_box(normalised.as_slice())));
            black_box(words(&normalised).count());
        });
        assert_eq!(naming, 0, "names: {}", shown());
        normalised.clear();
    }
}
