//! A checker that never complains proves nothing: each rule is shown a history that breaks it, and an honest one.

use super::*;
use crate::state::Moved;

const ACCOUNTS: i64 = 2;
const START: i64 = 100;

/// A history and the end of it, to be bent.
#[derive(Clone)]
struct Run {
    calls: Vec<Call>,
    state: State,
    other: State,
    recoveries: Vec<(String, Option<f64>)>,
}

impl Run {
    fn rules(&self) -> Vec<&'static str> {
        let (found, _) = self.check();
        let mut rules: Vec<&str> = found.iter().map(|v| v.rule).collect();
        rules.dedup();
        rules
    }

    fn check(&self) -> (Vec<Violation>, Stale) {
        check(&Evidence {
            calls: &self.calls,
            states: &[(1, self.state.clone()), (2, self.other.clone())],
            accounts: ACCOUNTS,
            start_balance: START,
            recoveries: &self.recoveries,
            writable_within: 15.0,
        })
    }

    /// Something happens to the data of all nodes.
    fn change(&mut self, what: impl Fn(&mut State)) {
        what(&mut self.state);
        what(&mut self.other);
    }
}

fn call(op: Op, start: u64, end: u64, node: u64, epoch: u64, outcome: Outcome) -> Call {
    Call { client: 0, op, start, end, node, epoch, outcome, warned: false }
}

fn ok() -> Outcome {
    Outcome::Ok(Seen::Nothing)
}

fn list(numbers: &[u64]) -> Outcome {
    Outcome::Ok(Seen::List(numbers.to_vec()))
}

fn unknown() -> Outcome {
    Outcome::Unknown("lost".to_owned())
}

/// Node 1 leads in epoch 5, node 2 from 1000 on in epoch 6.
fn honest() -> Run {
    let transfer = Op::Transfer { id: 2, from: 1, to: 2, amount: 30 };
    let calls = vec![
        call(Op::Insert { id: 1 }, 10, 20, 1, 5, ok()),
        call(transfer, 30, 40, 1, 5, ok()),
        call(Op::Balances { anywhere: false }, 50, 60, 1, 5, Outcome::Ok(Seen::Balances(2, 200))),
        call(Op::Append { id: 3, key: 7 }, 70, 80, 1, 5, list(&[3])),
        call(Op::Append { id: 4, key: 7 }, 90, 900, 1, 5, unknown()),
        call(Op::Insert { id: 5 }, 100, 200, 1, 5, Outcome::Failed("25006".to_owned())),
        call(Op::Insert { id: 6 }, 300, 900, 1, 5, unknown()),
        call(Op::Insert { id: 7 }, 310, 910, 1, 5, unknown()),
        call(Op::Append { id: 8, key: 7 }, 1000, 1010, 2, 6, list(&[3, 4, 8])),
        call(Op::Read { key: 7 }, 1020, 1030, 2, 6, list(&[3, 4, 8])),
        call(Op::Insert { id: 9 }, 1040, 1050, 2, 6, ok()),
    ];
    let state = State {
        inserts: vec![1, 6, 9],
        transfers: [(2, Moved { from: 1, to: 2, amount: 30 })].into(),
        accounts: [(1, 70), (2, 130)].into(),
        lists: [(7, vec![3, 4, 8])].into(),
    };
    let recoveries = vec![("a power cut".to_owned(), Some(1.5))];
    Run { calls, other: state.clone(), state, recoveries }
}

/// What is shown when an honest history is bent like this.
fn bent(how: impl FnOnce(&mut Run)) -> Vec<&'static str> {
    let mut run = honest();
    how(&mut run);
    run.rules()
}

#[test]
fn an_honest_history_passes() {
    assert_eq!(honest().check(), (Vec::new(), Stale::default()));
}

#[test]
fn an_acknowledged_write_that_is_missing_is_found() {
    let insert = bent(|run| run.change(|s| s.inserts.retain(|id| *id != 1)));
    assert_eq!(insert, ["acknowledged is there"]);
    let transfer = bent(|run| {
        run.change(|s| {
            s.transfers.clear();
            s.accounts = [(1, 100), (2, 100)].into();
        });
    });
    assert_eq!(transfer, ["acknowledged is there"]);
    // Who lost an append has also seen it.
    let append = bent(|run| {
        run.calls.retain(|c| !matches!(c.op, Op::Read { .. }));
        run.change(|s| s.lists = [(7, vec![3, 4])].into());
    });
    assert!(append.contains(&"acknowledged is there"), "{append:?}");
}

#[test]
fn a_refused_write_that_is_there_is_found() {
    assert_eq!(bent(|run| run.change(|s| s.inserts = vec![1, 5, 6, 9])), ["refused is not there"]);
}

#[test]
fn an_unknown_write_may_be_there_or_not() {
    assert!(bent(|run| run.change(|s| s.inserts = vec![1, 6, 7, 9])).is_empty());
    assert!(bent(|run| run.change(|s| s.inserts = vec![1, 9])).is_empty());
}

#[test]
fn what_nobody_asked_for_or_is_there_twice_is_found() {
    assert_eq!(bent(|run| run.change(|s| s.inserts = vec![1, 6, 9, 99])), ["once and asked for"]);
    assert_eq!(bent(|run| run.change(|s| s.inserts = vec![1, 6, 6, 9])), ["once and asked for"]);
    let twice = bent(|run| run.change(|s| s.lists = [(7, vec![3, 4, 8, 3])].into()));
    assert_eq!(twice, ["once and asked for"]);
}

#[test]
fn money_that_appears_or_disappears_is_found() {
    let seen = Outcome::Ok(Seen::Balances(2, 170));
    let in_between = bent(|run| {
        run.calls.push(call(Op::Balances { anywhere: true }, 2000, 2010, 3, 6, seen));
    });
    assert_eq!(in_between, ["sums"]);
    let half = bent(|run| run.change(|s| s.accounts = [(1, 100), (2, 130)].into()));
    assert_eq!(half, ["balances add up"]);
    // The sum is right, and yet a transfer happened twice.
    let twice = bent(|run| run.change(|s| s.accounts = [(1, 40), (2, 160)].into()));
    assert_eq!(twice, ["balances add up"]);
}

#[test]
fn a_list_that_is_no_beginning_of_the_last_is_found() {
    let lost = bent(|run| run.calls.push(call(Op::Read { key: 7 }, 85, 88, 1, 5, list(&[3, 77]))));
    assert_eq!(lost, ["lists are beginnings of one order"]);
    let turned = bent(|run| {
        run.calls.push(call(Op::Read { key: 7 }, 1060, 1070, 2, 6, list(&[4, 3, 8])));
    });
    assert_eq!(turned, ["lists are beginnings of one order"]);
    let not_own = bent(|run| {
        run.calls.push(call(Op::Append { id: 4, key: 7 }, 1060, 1070, 2, 6, list(&[3, 4, 8])));
    });
    assert_eq!(not_own, ["lists are beginnings of one order"]);
}

#[test]
fn a_read_that_lacks_what_was_acknowledged_before_is_found() {
    let older = bent(|run| run.calls.push(call(Op::Read { key: 7 }, 1060, 1070, 2, 6, list(&[3]))));
    assert_eq!(older, ["the order agrees with real time"]);
    let nothing = bent(|run| run.calls.push(call(Op::Read { key: 7 }, 85, 88, 1, 5, list(&[]))));
    assert_eq!(nothing, ["the order agrees with real time"]);
    // While the append is under way, both answers are right.
    assert!(bent(|run| run.calls.push(call(Op::Read { key: 7 }, 75, 88, 1, 5, list(&[])))).is_empty());
}

#[test]
fn reads_that_go_back_are_found_even_if_nothing_was_acknowledged() {
    let back = bent(|run| {
        run.calls.push(call(Op::Read { key: 7 }, 910, 920, 1, 5, list(&[3, 4])));
        run.calls.push(call(Op::Read { key: 7 }, 930, 940, 1, 5, list(&[3])));
    });
    assert_eq!(back, ["the order agrees with real time"]);
}

#[test]
fn an_append_before_one_that_was_over_is_found() {
    let acknowledged = bent(|run| {
        run.calls.push(call(Op::Append { id: 10, key: 7 }, 2000, 2010, 2, 6, list(&[3, 10])));
        run.calls.retain(|c| c.start < 90 || c.op == Op::Insert { id: 9 } || c.start >= 2000 || c.end == 900);
        run.calls.push(call(Op::Append { id: 8, key: 7 }, 1000, 1010, 2, 6, unknown()));
        run.calls.push(call(Op::Read { key: 7 }, 1500, 1510, 2, 6, list(&[3, 10, 4])));
        run.change(|s| s.lists = [(7, vec![3, 10, 4, 8])].into());
    });
    assert_eq!(acknowledged, ["the order agrees with real time"]);
    let unanswered = bent(|run| {
        run.calls.push(call(Op::Append { id: 10, key: 7 }, 85, 89, 1, 5, list(&[3, 10])));
        run.calls.push(call(Op::Append { id: 11, key: 7 }, 2000, 2010, 2, 6, unknown()));
        run.calls.retain(|c| !matches!(c.op, Op::Append { id: 8, .. } | Op::Read { .. }));
        run.change(|s| s.lists = [(7, vec![3, 10, 4])].into());
    });
    assert!(unanswered.is_empty(), "{unanswered:?}");
}

#[test]
fn a_replaced_leader_that_answers_reads_is_counted_only() {
    let mut run = honest();
    run.calls.push(call(Op::Read { key: 7 }, 1060, 1070, 1, 5, list(&[3])));
    assert_eq!(run.check(), (Vec::new(), Stale { reads: 1, oldest: 50 }));
}

#[test]
fn two_writers_are_found() {
    let insert = |start, node, epoch| call(Op::Insert { id: 6 }, start, start + 10, node, epoch, ok());
    assert_eq!(bent(|run| run.calls.push(insert(1011, 1, 5))), ["one writer"]);
    // It began before the newer epoch had acknowledged anything.
    assert!(bent(|run| run.calls.push(insert(1005, 1, 5))).is_empty());
    // It leads again.
    assert!(bent(|run| run.calls.push(insert(2000, 1, 7))).is_empty());
    // The node that leads now goes on in a session from before; the one before it does not.
    let two = |run: &mut Run| {
        run.calls.push(call(Op::Insert { id: 6 }, 1100, 1110, 2, 8, ok()));
        run.calls.push(call(Op::Insert { id: 7 }, 1120, 1130, 2, 6, ok()));
        run.change(|s| s.inserts = vec![1, 6, 7, 9]);
    };
    assert!(bent(two).is_empty());
    let old = |run: &mut Run| {
        two(run);
        run.calls.push(call(Op::Insert { id: 1 }, 1140, 1150, 1, 7, ok()));
    };
    assert_eq!(bent(old), ["one writer"]);
}

#[test]
fn a_refusal_of_an_old_leader_is_no_second_writer() {
    let refused = Outcome::Failed("25006".to_owned());
    assert!(bent(|run| run.calls.push(call(Op::Insert { id: 12 }, 1200, 1210, 1, 5, refused))).is_empty());
}

#[test]
fn a_cluster_that_stays_unwritable_is_found() {
    assert_eq!(bent(|run| run.recoveries.push(("x".to_owned(), Some(15.1)))), ["writable soon"]);
    assert_eq!(bent(|run| run.recoveries.push(("x".to_owned(), None))), ["writable soon"]);
    assert!(bent(|run| run.recoveries.push(("x".to_owned(), Some(14.9)))).is_empty());
}

#[test]
fn nodes_that_differ_are_found() {
    assert_eq!(bent(|run| run.other.inserts = vec![1, 9]), ["the same on all nodes"]);
    assert_eq!(bent(|run| run.other.accounts = [(1, 69), (2, 131)].into()), ["the same on all nodes"]);
}

#[test]
fn data_that_cannot_be_read_is_no_success() {
    let run = honest();
    let evidence = Evidence {
        calls: &run.calls,
        states: &[],
        accounts: ACCOUNTS,
        start_balance: START,
        recoveries: &run.recoveries,
        writable_within: 15.0,
    };
    assert_eq!(check(&evidence).0.len(), 1);
}
