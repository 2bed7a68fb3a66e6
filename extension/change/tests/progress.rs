//! The way through the stream: every change once and in order, however the stream is cut, repeated or broken off.

use pgquorum_change::{
    Chunker, Encoder, Event, Header, LogRow, Misfit, Old, Op, Position, Progress, Stop, put_row,
};

/// Frames of transactions with so many changes each, from a tick on. Each change is about 3 kB, so that they span chunks.
fn stream(epoch: u64, first_tick: u64, changes: &[u64]) -> Vec<Vec<u8>> {
    let mut rows = Vec::new();
    let mut tick = first_tick;
    for (xid, count) in changes.iter().enumerate() {
        let xid = 100 + xid as u64 + first_tick;
        let header = Header { origin: Some("berlin"), origin_commit_us: None, commit_us: 7 };
        let mut chunker = Chunker::new(&header);
        let mut next = tick;
        let mut store = |chunk: pgquorum_change::Chunk| {
            let flags = u32::from(chunk.part == 0) | if chunk.last { 2 } else { 0 };
            let row = LogRow {
                epoch,
                first_tick: next,
                last_tick: next + u64::from(chunk.changes) - 1,
                xid,
                flags,
            };
            next += u64::from(chunk.changes);
            let mut bytes = Vec::new();
            put_row(&mut bytes, &row, chunk.data);
            rows.push(bytes);
            Ok::<(), std::convert::Infallible>(())
        };
        for number in tick..tick + count {
            let mut change = Vec::new();
            let mut encoder = Encoder::begin(&mut change, Op::Insert, number, Old::None, true);
            encoder.image(1);
            encoder.text(&vec![b'x'; if number % 3 == 0 { 20_000 } else { 3_000 }]);
            let Ok(()) = chunker.push(&change, &mut store);
        }
        let Ok(()) = chunker.finish(&mut store);
        tick += count;
    }
    rows
}

fn piece(after: u64) -> Vec<u8> {
    let mut frame = vec![b'P', 24, 0, 0, 0];
    frame.extend_from_slice(&after.to_le_bytes());
    frame.extend_from_slice(&[0; 16]);
    frame
}

/// What is new in the frames: `b` for a begin, a tick for a change, `e` for an end.
fn feed(progress: &mut Progress, frames: &[Vec<u8>]) -> Result<String, Misfit> {
    let mut seen = Vec::new();
    let fed = progress.feed(&frames.concat(), |event| {
        seen.push(match event {
            Event::Begin(transaction) => {
                assert_eq!((transaction.origin.as_deref(), transaction.commit_us), (Some("berlin"), 7));
                "b".to_owned()
            }
            Event::Change { position, change, bytes, .. } => {
                assert_eq!(change.schema_version, position.tick, "each change has its own tick");
                assert_eq!(pgquorum_change::change(&mut &*bytes), Ok(change));
                position.tick.to_string()
            }
            Event::End(position, _) => format!("e{position}"),
        });
        Ok::<(), std::convert::Infallible>(())
    });
    match fed {
        Ok(()) => Ok(seen.join(" ")),
        Err(Stop::Misfit(misfit)) => Err(misfit),
        Err(Stop::Taker(never)) => match never {},
    }
}

fn at(tick: u64) -> Progress {
    Progress::new(Position { epoch: 5, tick })
}

#[test]
fn changes_come_once_however_the_frames_are_cut() {
    let frames = stream(5, 11, &[1, 4, 2]);
    let whole = "b 11 e5:11 b 12 13 14 15 e5:15 b 16 17 e5:17";
    assert_eq!(feed(&mut at(10), &frames).as_deref(), Ok(whole));
    let mut progress = at(10);
    let pieces: Vec<String> = frames
        .iter()
        .map(|frame| feed(&mut progress, std::slice::from_ref(frame)).expect("it follows"))
        .filter(|seen| !seen.is_empty())
        .collect();
    assert_eq!(pieces.join(" "), whole);
    assert_eq!((progress.in_transaction(), progress.position().tick), (false, 17));
}

#[test]
fn what_was_seen_is_passed_over() {
    let frames = stream(5, 11, &[1, 4, 2]);
    assert_eq!(feed(&mut at(15), &frames).as_deref(), Ok("b 16 17 e5:17"));
    assert_eq!(feed(&mut at(17), &frames).as_deref(), Ok(""));
    // The position lies inside a transaction.
    assert_eq!(feed(&mut at(13), &frames).as_deref(), Ok("b 14 15 e5:15 b 16 17 e5:17"));
    let mut progress = at(10);
    feed(&mut progress, &frames).expect("it follows");
    let again = [vec![piece(u64::MAX)], frames].concat();
    assert_eq!(feed(&mut progress, &again).as_deref(), Ok(""));
}

#[test]
fn a_transaction_goes_on_in_another_piece() {
    let frames = stream(5, 11, &[9]);
    for cut in 1..frames.len() {
        let mut progress = at(10);
        let before = feed(&mut progress, &frames[..cut]).expect("it follows");
        // Only in the first row of a transaction no change may have ended yet.
        assert!(progress.in_transaction() || before.is_empty());
        // As the source gives it: the first row for the header, then those from the one in which a change begins that is new.
        for skipped in 1..=cut {
            let mut rest = vec![piece(progress.position().tick), frames[0].clone()];
            rest.extend_from_slice(&frames[skipped..]);
            let mut resumed = progress.clone();
            match feed(&mut resumed, &rest) {
                Ok(after) => {
                    let all = format!("{before} {after}").replace("b ", "").trim().to_owned();
                    assert_eq!(all, "11 12 13 14 15 16 17 18 19 e5:19", "cut {cut}, skipped {skipped}");
                    assert!(!resumed.in_transaction());
                }
                Err(misfit) => {
                    assert!(matches!(misfit, Misfit::Gap { .. }), "cut {cut}, skipped {skipped}: {misfit:?}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_follow_is_refused() {
    let frames = stream(5, 11, &[1, 4, 2]);
    let gap = |expected, found| Err(Misfit::Gap { expected, found });
    assert_eq!(feed(&mut at(9), &frames), gap(10, 11));
    assert_eq!(feed(&mut at(10), &frames[1..]), gap(11, 12));
    assert_eq!(feed(&mut at(10), &[piece(11)]), gap(11, 12));
    let broken = [&frames[..2], &frames[frames.len() - 1..]].concat();
    assert!(matches!(feed(&mut at(10), &broken), Err(Misfit::Record(pgquorum_change::Error::Gap { .. }))));
    let broken = [&frames[..2], &[piece(u64::MAX)], &frames[frames.len() - 1..]].concat();
    assert!(feed(&mut at(10), &broken).is_err(), "a transaction that was begun is not left");
    let later = stream(6, 11, &[1]);
    let history = |at_tick, found| {
        let at = Position { epoch: 5, tick: at_tick };
        Err(Misfit::History { at, found: Position { epoch: found, tick: 11 } })
    };
    assert_eq!(feed(&mut at(11), &later), history(11, 6));
    assert_eq!(feed(&mut at(10), &later).as_deref(), Ok("b 11 e6:11"));
    assert_eq!(feed(&mut at(10), &stream(4, 11, &[1])), history(10, 4));
}

#[test]
fn what_is_no_frame_is_refused() {
    let frames = stream(5, 11, &[1]);
    for (bytes, kind) in
        [(&b"H\x10\0\0\0"[..], 'H'), (b"P\x18\0\0\0", 'P'), (b"P\x17\0\0\0", 'P'), (b"R", 'R')]
    {
        assert_eq!(feed(&mut at(10), &[bytes.to_vec()]), Err(Misfit::Frame(Some(kind))));
    }
    for length in 1..frames[0].len() {
        assert!(feed(&mut at(10), &[frames[0][..length].to_vec()]).is_err());
    }
    let mut miscounted = frames[0].clone();
    // The last tick.
    miscounted[5 + 16] += 1;
    assert_eq!(feed(&mut at(10), &[miscounted]), Err(Misfit::Miscounted { said: 12, found: 11 }));
}

#[test]
fn an_error_of_the_taker_ends_it() {
    let frames = stream(5, 11, &[2]).concat();
    let fed =
        at(10).feed(&frames, |event| if matches!(event, Event::Begin(_)) { Ok(()) } else { Err("full") });
    assert_eq!(fed, Err(Stop::Taker("full")));
}
