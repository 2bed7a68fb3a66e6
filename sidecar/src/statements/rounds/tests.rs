//! Rounds against a server in memory.

use super::*;
use crate::statements::fake::Fake;
use pgquorum_agent::logstore::Restored;
use pgquorum_agent::node::Node;
use pgquorum_agent::postgres::PgProcess;
use pgquorum_agent::request::LeaderAddress;

const KEEPS: Part = Part::Keeps { primary: true };

fn rounds() -> (Fast, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    let source: Arc<dyn Source> = Arc::<Fake>::clone(&fake);
    let statements = Arc::new(Statements::new(source));
    let rounds = Rounds { statements, listed: None, databases: BTreeMap::new() };
    (Fast { rounds, now: Instant::now() }, fake)
}

fn tells() -> Part {
    Part::Tells(Leader { id: 1, epoch: 7, server: "127.0.0.1:5001".parse().unwrap() })
}

/// Rounds whose time goes as fast as one likes.
struct Fast {
    rounds: Rounds,
    now: Instant,
}

impl Fast {
    /// The questions of the rounds of so many seconds.
    async fn go(&mut self, fake: &Fake, part: Part, seconds: u64) -> Vec<String> {
        fake.questions();
        for _ in 0..seconds / ROUND.as_secs() {
            self.now += ROUND;
            self.rounds.go(part, self.now).await;
        }
        fake.questions()
    }

    fn tally(&self) -> &Tally {
        self.rounds.statements.tally()
    }
}

fn times(questions: &[String], question: &str) -> usize {
    questions.iter().filter(|one| *one == question).count()
}

#[tokio::test]
async fn a_primary_only_counts_and_keeps_no_session() {
    let (mut rounds, fake) = rounds();
    fake.serve("00000000000000a1");
    let questions = rounds.go(&fake, KEEPS, 2).await;
    assert_eq!(questions, ["databases", "counts bare", "counts postgres", "counts shop"]);
    let counts = rounds.tally().counts();
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["postgres", "shop"], "one without the extension has none");
    assert_eq!(counts["shop"], Counts { served: 1, withdrawn: 1 });
    let questions = rounds.go(&fake, KEEPS, 300).await;
    assert!((9..=11).contains(&times(&questions, "counts shop")), "{questions:?}");
    assert!((9..=11).contains(&times(&questions, "counts bare")), "{questions:?}");
    assert_eq!(times(&questions, "databases"), 75, "new ones are seen soon");
    assert!(questions.iter().all(|one| one.starts_with("counts") || one == "databases"), "{questions:?}");
}

#[tokio::test]
async fn a_standby_carries_every_two_seconds() {
    let (mut rounds, fake) = rounds();
    fake.learn(0..3);
    rounds.go(&fake, tells(), 2).await;
    assert_eq!(fake.told(), [0, 1, 2]);
    let questions = rounds.go(&fake, tells(), 20).await;
    assert_eq!((times(&questions, "take shop"), times(&questions, "take postgres")), (10, 10));
    assert_eq!(times(&questions, "unsend bare"), 2, "it may have got the extension");
    assert_eq!(times(&questions, "unsend shop"), 0);
    fake.learn(3..4);
    rounds.go(&fake, tells(), 2).await;
    assert_eq!(fake.told(), [3]);
    let tally = rounds.tally();
    assert_eq!((tally.carried(), tally.failures()), (4, 0));
    assert_eq!(tally.counts().len(), 2);
}

#[tokio::test]
async fn failures_are_counted_and_slow_the_rounds_down() {
    let (mut rounds, fake) = rounds();
    rounds.go(&fake, tells(), 2).await;
    fake.fail("take shop", Kind::Unavailable);
    let questions = rounds.go(&fake, tells(), 120).await;
    let tries = times(&questions, "take shop");
    assert!((5..=9).contains(&tries), "{tries}");
    assert_eq!(times(&questions, "take postgres"), 60, "another database does not suffer");
    assert_eq!(rounds.tally().failures(), tries as u64);
    fake.mend();
    fake.learn(0..1);
    rounds.go(&fake, tells(), 30).await;
    assert_eq!(fake.told(), [0]);
    let questions = rounds.go(&fake, tells(), 20).await;
    assert_eq!(times(&questions, "take shop"), 10, "and then as before");
}

#[tokio::test]
async fn a_server_that_does_not_run_is_left_alone() {
    let (mut rounds, fake) = rounds();
    rounds.go(&fake, tells(), 2).await;
    assert_eq!(rounds.go(&fake, Part::None, 60).await, [""; 0]);
    assert!(rounds.tally().counts().is_empty(), "what was counted is not so any more");
    let questions = rounds.go(&fake, tells(), 2).await;
    assert_eq!(times(&questions, "databases"), 1);
    assert_eq!(times(&questions, "unsend shop"), 1, "its memory was lost with it");
    assert_eq!(rounds.tally().counts().len(), 2);
}

#[test]
fn the_view_says_whom_to_tell() {
    let mut view = Node::new(2, &Restored::default(), 0, 1).view();
    assert_eq!(Part::of(&view), Part::None, "no member");
    (view.member, view.epoch) = (true, 7);
    assert_eq!(Part::of(&view), Part::None, "no server");
    view.postgres.process = PgProcess::Running;
    assert_eq!(Part::of(&view), KEEPS);
    view.postgres.in_recovery = true;
    assert_eq!(Part::of(&view), Part::Keeps { primary: false }, "nobody leads");
    let (api, db) = ("127.0.0.1:8001".parse().unwrap(), "127.0.0.1:5001".parse().unwrap());
    view.leader = Some(LeaderAddress { id: 1, api, db });
    assert_eq!(Part::of(&view), tells());
    view.leader = Some(LeaderAddress { id: 2, api, db });
    assert_eq!(Part::of(&view), Part::Keeps { primary: false }, "this node is about to lead");
    view.removed = true;
    assert_eq!(Part::of(&view), Part::None);
}
