//! The work for a subscription against a source and a target in memory.

mod versions;

use super::fake::{FakeSource, FakeTarget, Here, Shared, at, orders};
use super::runner::{Runner, follower_name};
use super::subscription::Subscription;
use super::target::Report;
use super::trouble::{Kind, Trouble};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(20);
const FOLLOWER: &str = "sub-paris-3";

struct World {
    source: Arc<FakeSource>,
    target: Arc<FakeTarget>,
    runner: Option<JoinHandle<()>>,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(runner) = &self.runner {
            runner.abort();
        }
    }
}

fn world() -> World {
    let source = Arc::new(FakeSource::default());
    source.lock().tables = vec![orders()];
    World { source, target: Arc::default(), runner: None }
}

fn subscription() -> Subscription {
    let text = str::to_owned;
    Subscription {
        id: 3,
        name: text("s"),
        enabled: true,
        copy: text("error"),
        on_purged: text("stop"),
        jobs: 2,
        ..Subscription::default()
    }
}

impl World {
    fn start(&mut self, subscription: Subscription) {
        let (source, target) = (Shared(Arc::clone(&self.source)), Here(Arc::clone(&self.target)));
        self.runner = Some(tokio::spawn(Runner::new(subscription, Arc::new(source), Arc::new(target)).run()));
    }

    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let wait = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "never: {what}");
    }

    fn position(&self) -> Option<u64> {
        self.target.lock().standing.position.map(|at| at.tick)
    }

    fn said(&self, state: &str, code: Option<&str>) -> bool {
        self.target.last_state() == Some((state.to_owned(), code.map(str::to_owned)))
    }
}

#[tokio::test]
async fn tables_are_copied_and_then_followed() {
    let mut world = world();
    world.source.commit(3);
    world.start(subscription());
    world.until("the copy", |world| world.position() == Some(3)).await;
    assert_eq!(world.target.lock().copied, ["a\nb\n"]);
    world.source.commit(2);
    world.source.commit(1);
    world.until("the changes", |world| world.position() == Some(6)).await;
    // The source hears of it when a report has made it durable.
    world.until("the follower", |world| world.source.lock().followers.get(FOLLOWER) == Some(&at(6))).await;
    assert!(world.said("following", None));
    assert_eq!(world.source.lock().copies, 1);
}

#[tokio::test]
async fn what_a_change_takes_at_the_source_is_passed_on() {
    let mut world = world();
    world.source.lock().change_bytes = Some(120);
    world.start(subscription());
    world.until("it is told", |world| world.target.lock().change_bytes == Some(120)).await;
}

#[tokio::test]
async fn the_source_is_asked_for_the_rows_that_are_wanted() {
    let mut world = world();
    let filter = [(orders().to_string(), "note = 'a'".to_owned())].into();
    world.start(Subscription { filter: Some(filter), ..subscription() });
    world.until("the copy", |world| world.target.lock().copied.len() == 1).await;
    assert_eq!(world.source.lock().filters, [Some("note = 'a'".to_owned())]);
}

#[tokio::test]
async fn a_copy_that_breaks_off_begins_anew_and_leaves_nothing() {
    let mut world = world();
    world.source.lock().broken_copies = 2;
    world.start(subscription());
    world.until("the copy", |world| world.target.lock().copied.len() == 1).await;
    assert_eq!(world.target.lock().copied, ["a\nb\n"]);
    let state = world.target.lock();
    assert!(
        state
            .reports
            .iter()
            .any(|said| said.code.as_deref() == Some("copy_broken_off") && said.state == "waiting")
    );
}

#[tokio::test]
async fn a_table_that_does_not_fit_stops_alone() {
    let mut world = world();
    world.target.lock().refuses_copies = true;
    world.start(subscription());
    world
        .until("the table stops", |world| world.target.lock().stopped == [(orders(), "55000".to_owned())])
        .await;
    world.until("it is said", |world| world.said("stopped", Some("no_table_copied"))).await;
}

#[tokio::test]
async fn a_source_that_fails_is_waited_for_and_one_that_refuses_stops() {
    let mut world = world();
    let failures = [
        Trouble::waiting("unreachable", "x"),
        Trouble::from_source(401, "token_required", "x"),
        Trouble::from_source(404, "unknown_channel", "x"),
    ];
    world.source.lock().failures.extend(failures);
    world.start(subscription());
    world.until("it follows", |world| world.said("following", None)).await;
    let state = world.target.lock();
    let said = |code: &str, state_wanted: &str| {
        state.reports.iter().any(|said| said.code.as_deref() == Some(code) && said.state == state_wanted)
    };
    assert!(said("unreachable", "waiting") && said("login", "stopped") && said("unknown_channel", "stopped"));
}

#[tokio::test]
async fn what_was_purged_stops_or_is_loaded_anew() {
    for (on_purged, reloads) in [("stop", 0), ("reload", 1)] {
        let mut world = world();
        world.source.commit(9);
        {
            let mut state = world.target.lock();
            (state.standing.position, state.standing.tables) = (Some(at(2)), 1);
        }
        world.source.lock().purged = 5;
        world.start(Subscription { on_purged: on_purged.to_owned(), ..subscription() });
        if reloads == 0 {
            world.until("it stops", |world| world.said("stopped", Some("position_purged"))).await;
        } else {
            world.until("it goes on", |world| world.position() == Some(9)).await;
        }
        assert_eq!(world.target.lock().reloads, reloads, "{on_purged}");
    }
}

#[tokio::test]
async fn a_node_that_is_behind_is_no_reason_to_load_anew() {
    let mut world = world();
    {
        let mut state = world.target.lock();
        (state.standing.position, state.standing.tables) = (Some(at(0)), 1);
    }
    world.start(Subscription { on_purged: "reload".to_owned(), ..subscription() });
    world.until("it follows", |world| world.said("following", None)).await;
    world.source.lock().failures.push_back(Trouble::from_source(409, "position_in_future", "x"));
    world.until("another stream", |world| world.source.lock().streams.len() == 2).await;
    let state = world.target.lock();
    assert!(
        state
            .reports
            .iter()
            .any(|said| said.code.as_deref() == Some("position_in_future") && said.state == "waiting")
    );
    assert_eq!(state.reloads, 0);
}

#[tokio::test]
async fn nothing_is_copied_where_only_the_beginning_is_named() {
    for (start, expected) in [(None, 4), (Some("5:2"), 2), (Some("yes"), 3)] {
        let mut world = world();
        for _ in 0..4 {
            world.source.commit(1);
        }
        let start = start.map(str::to_owned);
        world.start(Subscription { copy: "none".to_owned(), start, ..subscription() });
        world.until("a stream", |world| !world.source.lock().streams.is_empty()).await;
        assert_eq!(world.source.lock().streams[0], at(expected));
        world.until("the changes", |world| world.position() == Some(4)).await;
        assert_eq!(world.source.lock().copies, 0);
    }
}

#[tokio::test]
async fn transactions_are_applied_together_unless_each_needs_its_own() {
    for one_by_one in [false, true] {
        let mut world = world();
        {
            let mut state = world.target.lock();
            (state.standing.position, state.standing.tables) = (Some(at(0)), 1);
        }
        for _ in 0..50 {
            world.source.commit(2);
        }
        // Known at the first refusal only.
        world.target.lock().one_by_one = one_by_one;
        world.start(subscription());
        world.until("the changes", |world| world.position() == Some(100)).await;
        let applied = world.target.lock().applied.clone();
        assert_eq!(applied.len(), if one_by_one { 50 } else { 1 }, "{one_by_one}");
        assert_eq!(applied.concat(), (1..=50).map(|n| n * 2).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_version_that_is_unknown_is_asked_for() {
    let mut world = world();
    {
        let mut state = world.target.lock();
        (state.standing.position, state.standing.tables, state.unknown) = (Some(at(0)), 1, 1);
    }
    world.source.commit(1);
    world.start(subscription());
    world.until("the change", |world| world.position() == Some(1)).await;
    assert_eq!(world.source.lock().schemas, 2);
    assert_eq!(world.source.lock().streams.len(), 1);
}

#[tokio::test]
async fn what_fails_on_the_way_is_read_again_from_where_it_was() {
    let mut world = world();
    {
        let mut state = world.target.lock();
        (state.standing.position, state.standing.tables) = (Some(at(0)), 1);
        state.failures.push_back(Trouble::new(Kind::Here, "40P01", "deadlock"));
        state.failures.push_back(Trouble::new(Kind::Again, "PQ013", "does not follow"));
    }
    world.source.commit(1);
    world.source.commit(1);
    world.start(subscription());
    world.until("the changes", |world| world.position() == Some(2)).await;
    assert_eq!(world.source.lock().streams, [at(0), at(0), at(0)]);
    assert_eq!(world.target.lock().applied.concat(), [1, 2]);
}

#[tokio::test]
async fn whoever_is_still_at_it_is_waited_for() {
    let mut world = world();
    for _ in 0..3 {
        world.source.commit(1);
    }
    {
        let mut state = world.target.lock();
        (state.standing.position, state.standing.tables, state.late) = (Some(at(0)), 1, Some(at(2)));
    }
    world.start(subscription());
    world.until("the rest", |world| world.position() == Some(3)).await;
    assert_eq!(world.target.lock().applied.concat(), [3]);
    // What was begun to be read from another place is not used.
    assert_eq!(world.source.lock().streams.last(), Some(&at(2)));
}

/// Where others write the same rows, that is every day's work.
#[tokio::test]
async fn what_fails_now_and_then_does_not_slow_down_what_moves() {
    let mut world = world();
    {
        let mut state = world.target.lock();
        (state.standing.position, state.standing.tables) = (Some(at(0)), 1);
        (state.one_by_one, state.hindrance) = (true, Some(Trouble::new(Kind::Here, "40P01", "deadlock")));
    }
    for _ in 0..12 {
        world.source.commit(1);
    }
    world.start(subscription());
    world.until("the changes", |world| world.position() == Some(12)).await;
    assert_eq!(world.target.lock().applied.concat(), (1..=12).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_table_that_is_behind_is_brought_to_the_others() {
    let mut world = world();
    for _ in 0..6 {
        world.source.commit(1);
    }
    {
        let mut state = world.target.lock();
        (state.standing.position, state.standing.tables) = (Some(at(4)), 1);
        state.standing.to_catch_up = vec![(orders(), at(1))];
    }
    world.start(subscription());
    world.until("everything", |world| world.position() == Some(6)).await;
    assert_eq!(world.source.lock().streams, [at(1), at(4)]);
    assert!(world.target.lock().standing.to_catch_up.is_empty());
}

#[tokio::test]
async fn a_table_that_stops_while_it_is_behind_is_no_matter_of_the_others() {
    let mut world = world();
    for _ in 0..6 {
        world.source.commit(1);
    }
    {
        let mut state = world.target.lock();
        (state.standing.position, state.standing.tables) = (Some(at(4)), 2);
        state.standing.to_catch_up = vec![(orders(), at(1))];
        // One by one, so that more comes for the table after the change with which it has stopped.
        (state.one_by_one, state.stops_behind) = (true, true);
    }
    world.start(subscription());
    world.until("the others go on", |world| world.position() == Some(6)).await;
    let state = world.target.lock();
    assert_eq!(state.standing.stopped, 1);
    let of_all = |said: &Report| matches!(said.state, "stopped" | "waiting");
    assert!(!state.reports.iter().any(of_all), "{:?}", state.reports);
}

#[tokio::test]
async fn new_tables_of_the_source_are_copied_too() {
    let mut world = world();
    world.source.lock().tables.clear();
    world.start(subscription());
    world.until("it waits", |world| world.said("following", Some("no_tables"))).await;
    world.source.lock().tables = vec![orders()];
    world.until("the copy", |world| world.target.lock().copied.len() == 1).await;
}

#[test]
fn followers_have_names_that_sources_take() {
    assert_eq!(follower_name("7300000000000000001.5", 12), "sub-7300000000000000001.5-12");
    for odd in ["a b", &"x".repeat(63)] {
        let name = follower_name(odd, i32::MAX);
        assert!(name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{name}");
    }
    assert_ne!(follower_name("a b", 1), follower_name("a c", 1));
}
