//! What this node does for subscriptions now: for `/metrics`, kept in memory, so that a scrape asks no database; which of those
//! that rest it has woken, so that none stays awake of which nobody here knows; and what is asked for in SQL, for whoever does it.

use super::target::Report;
use crate::feed::Position;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Database and subscription.
pub type Key = (String, String);

/// How one is.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub state: &'static str,
    /// Up to where changes are applied.
    pub applied: Option<Position>,
    /// Where the source's channel ended when that was heard last, and when that was.
    pub end: Option<(Position, Instant)>,
}

impl Seen {
    /// Changes that are known of and not applied; `None`: neither is known.
    pub fn lag(&self) -> Option<u64> {
        Some(self.end?.0.tick.saturating_sub(self.applied?.tick))
    }
}

/// A synchronisation that `quorum.sync` or `quorum.sync_full` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SyncRequest {
    pub id: i64,
    /// `None`: everything that the database follows.
    pub channel: Option<String>,
    /// Results are to have the changed rows.
    pub records: bool,
    /// How long it may take from now on.
    pub left_ms: u64,
}

/// All subscriptions that this node works for. Clones are the same board.
#[derive(Clone, Debug, Default)]
pub struct Board {
    places: Arc<Mutex<Places>>,
    asked: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Places {
    taken: BTreeMap<Key, (u64, Seen)>,
    next: u64,
    awake: BTreeSet<Key>,
    /// Synchronisations that nobody works for yet, each with its database, and the numbers of all that are not done.
    waiting: VecDeque<(String, SyncRequest)>,
    known: BTreeSet<(String, i64)>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are asked for in a database. Those that are known already are not taken again.
    pub fn ask(&self, database: &str, requests: Vec<SyncRequest>) {
        let mut places = self.lock();
        for request in requests {
            if places.known.insert((database.to_owned(), request.id)) {
                places.waiting.push_back((database.to_owned(), request));
                self.asked.notify_one();
            }
        }
    }

    /// The next one, when there is one. One at a time may wait for it.
    pub async fn asked(&self) -> (String, SyncRequest) {
        loop {
            let next = self.lock().waiting.pop_front();
            if let Some(next) = next {
                return next;
            }
            self.asked.notified().await;
        }
    }

    /// It was written down what came of one; should that have failed, it is asked for again.
    pub fn answered(&self, database: &str, request: i64) {
        self.lock().known.remove(&(database.to_owned(), request));
    }

    pub fn all(&self) -> BTreeMap<Key, Seen> {
        self.lock().taken.iter().map(|(key, (_, seen))| (key.clone(), seen.clone())).collect()
    }

    /// A place on the board, for as long as it is worked for. Whoever had it before has lost it.
    pub fn place(&self, database: &str, subscription: &str) -> Place {
        let key = (database.to_owned(), subscription.to_owned());
        let mut places = self.lock();
        places.next += 1;
        let number = places.next;
        places.taken.insert(key.clone(), (number, Seen { state: "starting", ..Seen::default() }));
        Place { board: self.clone(), key, number }
    }

    /// To be taken before a subscription that rests is woken, and kept until it rests again. One at a time.
    pub fn awake(&self, database: &str, subscription: &str) -> Awake {
        let key = (database.to_owned(), subscription.to_owned());
        self.lock().awake.insert(key.clone());
        Awake { board: self.clone(), key }
    }

    /// Whether somebody here has woken it.
    pub fn is_awake(&self, database: &str, subscription: &str) -> bool {
        self.lock().awake.contains(&(database.to_owned(), subscription.to_owned()))
    }
}

/// A subscription is awake as long as this lives.
#[derive(Debug)]
pub struct Awake {
    board: Board,
    key: Key,
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.board.lock().awake.remove(&self.key);
    }
}

/// One subscription's place; with it the subscription leaves the board.
#[derive(Debug)]
pub struct Place {
    board: Board,
    key: Key,
    number: u64,
}

impl Place {
    pub fn report(&self, report: &Report) {
        self.change(|seen| {
            seen.state = report.state;
            seen.end = report.end.map(|end| (end, Instant::now())).or(seen.end);
        });
    }

    pub fn applied(&self, position: Option<Position>) {
        self.change(|seen| seen.applied = position.or(seen.applied));
    }

    fn change(&self, change: impl FnOnce(&mut Seen)) {
        match self.board.lock().taken.get_mut(&self.key) {
            Some((number, seen)) if *number == self.number => change(seen),
            _ => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.board.lock();
        if places.taken.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            places.taken.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_how_far_and_is_gone_with_its_work() {
        let board = Board::default();
        let place = board.place("shop", "mirror");
        let key = ("shop".to_owned(), "mirror".to_owned());
        assert_eq!((board.all()[&key].state, board.all()[&key].lag()), ("starting", None));
        place.report(&Report {
            state: "following",
            end: Some(Position { epoch: 2, tick: 90 }),
            ..Report::default()
        });
        place.applied(Some(Position { epoch: 2, tick: 70 }));
        place.applied(None);
        assert_eq!((board.all()[&key].state, board.all()[&key].lag()), ("following", Some(20)));
        // What was heard stays when the source does not answer.
        place.report(&Report { state: "waiting", ..Report::default() });
        assert_eq!((board.all()[&key].state, board.all()[&key].lag()), ("waiting", Some(20)));
        // Work that was begun anew has it; the old one's end is none of it.
        let anew = board.place("shop", "mirror");
        place.applied(Some(Position { epoch: 2, tick: 80 }));
        drop(place);
        assert_eq!((board.all()[&key].state, board.all()[&key].applied), ("starting", None));
        drop(anew);
        assert!(board.all().is_empty());
    }

    #[tokio::test]
    async fn what_is_asked_for_is_done_once() {
        let board = Board::default();
        let request = |id| SyncRequest { id, channel: None, records: false, left_ms: 1000 };
        board.ask("shop", vec![request(1), request(2)]);
        // As it is seen until it is done.
        board.ask("shop", vec![request(1), request(2)]);
        board.ask("other", vec![request(1)]);
        assert_eq!(board.asked().await, ("shop".to_owned(), request(1)));
        assert_eq!(board.asked().await, ("shop".to_owned(), request(2)));
        assert_eq!(board.asked().await, ("other".to_owned(), request(1)));
        board.answered("shop", 1);
        board.ask("shop", vec![request(1), request(2)]);
        assert_eq!(board.asked().await, ("shop".to_owned(), request(1)));
        let (asked, ()) = tokio::join!(board.asked(), async { board.ask("shop", vec![request(3)]) });
        assert_eq!(asked, ("shop".to_owned(), request(3)));
    }

    #[test]
    fn who_is_awake_is_known_as_long_as_somebody_sees_to_it() {
        let board = Board::default();
        let awake = board.awake("shop", "mirror");
        assert!(board.clone().is_awake("shop", "mirror") && !board.is_awake("other", "mirror"));
        drop(awake);
        assert!(!board.is_awake("shop", "mirror"));
    }
}
