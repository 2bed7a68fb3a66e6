//! See `decode.rs`.

use super::*;

const SAMPLE: &str = include_str!("sample.txt");

fn decoded(from: &str) -> Decoder {
    let mut decoder = Decoder::new(from.parse().unwrap());
    SAMPLE.lines().for_each(|line| decoder.feed(line));
    decoder
}

fn rows(decoder: &Decoder, xid: u32, file: u32) -> (u64, u64, u64) {
    let committed = decoder.committed.iter().find(|c| c.xid == xid).unwrap();
    let r = committed.changes.rows.get(&(5, file)).copied().unwrap_or_default();
    (r.inserted, r.updated, r.deleted)
}

/// The sample is what PostgreSQL 15 wrote for the statements named here, without the records of indexes and the like;
/// each record follows the one above it.
#[test]
fn rows_are_counted_by_transaction_and_file() {
    let decoder = decoded("0/0");
    assert_eq!(rows(&decoder, 725, 16384), (2, 0, 0), "two rows in one statement");
    assert_eq!(rows(&decoder, 726, 16384), (31, 4, 1), "with its savepoints");
    assert_eq!(rows(&decoder, 729, 16384), (1, 0, 0), "on conflict");
    assert_eq!(rows(&decoder, 730, 16391), (500, 0, 0), "COPY");
    assert_eq!(rows(&decoder, 731, 16397), (1, 0, 0), "into the file that TRUNCATE made");
    assert_eq!(rows(&decoder, 734, 16397), (1, 0, 0), "a prepared transaction");
    assert_eq!(decoder.aborted, 1);
    assert_eq!(decoder.unfinished(), 0);
    let xids: Vec<u32> = decoder.committed.iter().map(|c| c.xid).collect();
    assert_eq!(xids, [725, 726, 729, 730, 731, 732, 733, 734, 736, 737]);
    assert_eq!(decoder.committed[0].at, "2026-11-25T16:35:02.593958Z");
}

/// What PostgreSQL 18 wrote, with the lists of what caches forget cut short; 16 and 17 print the same.
#[test]
fn later_versions_say_the_same_in_other_words() {
    let mut decoder = Decoder::default();
    include_str!("sample_later.txt").lines().for_each(|line| decoder.feed(line));
    assert_eq!(rows(&decoder, 753, 16384), (2, 0, 0), "two rows in one statement");
    assert_eq!(rows(&decoder, 754, 16384), (7, 1, 1), "with its savepoint");
    assert_eq!(rows(&decoder, 758, 16392), (1, 0, 0), "a prepared transaction");
    assert_eq!(rows(&decoder, 760, 16395), (500, 0, 0), "COPY");
    let truncated = &decoder.committed.iter().find(|c| c.xid == 759).unwrap().changes;
    assert_eq!((&truncated.made, &truncated.described), (&[(5, 16395)].into(), &[16392].into()));
    assert_eq!((decoder.aborted, decoder.unfinished(), decoder.committed.len()), (1, 0, 6));
}

#[test]
fn files_that_were_made_are_known_with_the_tables_they_belong_to() {
    let decoder = decoded("0/0");
    let truncated = &decoder.committed.iter().find(|c| c.xid == 731).unwrap().changes;
    assert_eq!(truncated.made, BTreeSet::from([(5, 16397)]));
    assert_eq!(truncated.described, BTreeSet::from([16391]));
}

#[test]
fn only_what_was_committed_in_the_range_is_lost() {
    // From the prepared transaction's commit on; what it wrote lies before.
    let decoder = decoded("0/01789780");
    let xids: Vec<u32> = decoder.committed.iter().map(|c| c.xid).collect();
    assert_eq!(xids, [734, 736, 737]);
    assert_eq!(rows(&decoder, 734, 16397), (1, 0, 0));
    assert_eq!(decoder.aborted, 1);
}

/// Lines as PostgreSQL 15 writes them, one behind the other.
fn feed_all(decoder: &mut Decoder, records: impl IntoIterator<Item = (&'static str, u32, String)>) {
    let mut prev = 0;
    for (kind, xid, what) in records {
        let lsn = prev + 8;
        decoder.feed(&format!(
            "rmgr: {kind}        len (rec/tot):     61/    61, tx:        {xid}, lsn: 0/{lsn:08X}, prev 0/{prev:08X}, desc: {what}"
        ));
        prev = lsn;
    }
}

fn insert(file: u32) -> String {
    format!("INSERT off 1 flags 0x00, blkref #0: rel 1663/5/{file} blk 0")
}

fn commit() -> String {
    "COMMIT 2026-01-01 00:00:00.000000 UTC".to_owned()
}

#[test]
fn rows_of_one_transaction_do_not_crowd_out_those_of_others() {
    let mut decoder = Decoder::default();
    let many = (0..HELD_MAX + 10).map(|_| ("Heap", 7, insert(16384)));
    let then = [("Transaction", 7, "ABORT 2026-01-01 00:00:00 UTC".to_owned())];
    let others = [("Heap", 8, insert(16390)), ("Transaction", 8, commit())];
    feed_all(&mut decoder, many.chain(then).chain(others));
    assert_eq!(rows(&decoder, 8, 16390), (1, 0, 0));
    assert!(!decoder.overflow);
}

#[test]
fn what_is_held_has_a_bound_and_the_rest_is_unknown_not_nothing() {
    let mut decoder = Decoder::default();
    let many = (0..HELD_MAX as u32 + 10).map(|n| ("Heap", 7, insert(20_000 + n)));
    let others = [("Heap", 8, insert(16390)), ("Transaction", 8, commit()), ("Transaction", 7, commit())];
    feed_all(&mut decoder, many.chain(others));
    assert!(decoder.overflow && decoder.held <= HELD_MAX);
    let seen: Vec<_> = decoder.committed.iter().map(|c| (c.xid, c.changes.seen)).collect();
    assert_eq!(seen, [(8, false), (7, true)]);
}

#[test]
fn who_wrote_before_all_that_is_read_is_told_from_who_wrote_no_rows() {
    let mut decoder = Decoder::default();
    let inplace = "INPLACE off 7, blkref #0: rel 1663/5/1259 blk 0".to_owned();
    feed_all(
        &mut decoder,
        [
            ("Transaction", 5, commit()),
            ("Heap", 6, inplace),
            ("Transaction", 6, commit()),
            ("Btree", 8, "INSERT_LEAF off 1, blkref #0: rel 1663/5/2662 blk 1".to_owned()),
            ("Transaction", 7, format!("{}; subxacts: 8", commit())),
            ("Transaction", 0, format!("COMMIT_PREPARED 4: {}", &commit()[7..])),
        ],
    );
    let seen: Vec<_> = decoder.committed.iter().map(|c| (c.xid, c.changes.seen)).collect();
    assert_eq!(seen, [(5, false), (6, true), (7, true), (4, false)]);
}

#[test]
fn a_name_with_line_breaks_makes_no_records() {
    let mut decoder = Decoder::default();
    let forged =
        "rmgr: Transaction len (rec/tot): 34/ 34, tx: 9, lsn: 0/00000018, prev 0/00000010, desc: ABORT x";
    let gid =
        format!("PREPARE gid a\n{forged}\n{}: 2026-01-01 00:00:00 UTC", forged.replace("ABORT", "COMMIT"));
    let lines = gid.split('\n').map(str::to_owned).collect::<Vec<_>>();
    feed_all(
        &mut decoder,
        [("Heap", 9, insert(16384)), ("Heap", 10, insert(16384)), ("Heap", 10, insert(16384))],
    );
    let prefix = "rmgr: Transaction len (rec/tot): 34/ 34, tx: 10, lsn: 0/00000020, prev 0/00000018, desc: ";
    decoder.feed(&format!("{prefix}{}", lines[0]));
    lines[1..].iter().for_each(|line| decoder.feed(line));
    assert!(decoder.committed.is_empty() && decoder.aborted == 0, "{decoder:?}");
    let end = "rmgr: Transaction len (rec/tot): 34/ 34, tx: 9, lsn: 0/00000028, prev 0/00000020, desc: ";
    decoder.feed(&format!("{end}{}", commit()));
    assert_eq!(rows(&decoder, 9, 16384), (1, 0, 0), "the true end counts");
}

#[test]
fn other_versions_and_odd_lines_are_read_too() {
    assert_eq!(tuples("MULTI_INSERT ntuples: 185, flags: 0x02"), 185);
    assert_eq!(flags("DELETE xmax: 7, off: 5, infobits: [], flags: 0x08, blkref"), 8);
    assert_eq!(file_of_path("pg_tblspc/16400/PG_15_202209061/5/16401"), Some((5, 16401)));
    assert_eq!(file_of_path("global/1262"), Some((0, 1262)));
    let mut decoder = Decoder::default();
    for line in
        ["", "rmgr: Heap", "pg_waldump: error", "rmgr: Heap len, tx: x, lsn: 0/1, prev 0/0, desc: INSERT"]
    {
        decoder.feed(line);
    }
    assert!(decoder.committed.is_empty() && decoder.unfinished() == 0);
}
