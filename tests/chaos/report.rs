//! The verdict and the numbers behind it, as tables in Markdown.

use crate::history::Outcome;
use crate::run::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// How many kinds of refusals and doubts are listed.
const REASONS: usize = 12;

pub fn render(result: &Result) -> String {
    let mut text = String::new();
    let minutes = (result.end - result.begin) as f64 / 6e7;
    let _ = writeln!(
        text,
        "\nseed {}, {} nodes, {minutes:.1} minutes, {} faults injected, {} not possible\n",
        result.seed,
        result.nodes,
        result.faults.len(),
        result.impossible.len()
    );
    operations(&mut text, result);
    faults(&mut text, result);
    let (available, all) = availability(result);
    let _ = writeln!(
        text,
        "\nWrite availability: a write was acknowledged in {available} of {all} seconds ({:.1} %).",
        100.0 * available as f64 / (all as f64).max(1.0)
    );
    let mut mended = result.mended.clone();
    mended.sort_by(f64::total_cmp);
    let _ = writeln!(
        text,
        "All nodes streamed again after a median of {} s, {} s at most ({} rounds).",
        shown(quantile(&mended, 0.5)),
        shown(quantile(&mended, 1.0)),
        mended.len()
    );
    let _ = writeln!(
        text,
        "Reads that a replaced leader answered with older data: {}, up to {:.2} s old.",
        result.stale.reads,
        result.stale.oldest as f64 / 1e6
    );
    let epochs: BTreeSet<u64> = result.calls.iter().filter(|c| c.acknowledged()).map(|c| c.epoch).collect();
    let _ = writeln!(text, "Epochs that acknowledged writes: {}.", epochs.len());
    let warned = result.calls.iter().filter(|c| c.acknowledged() && c.warned).count();
    let _ = writeln!(text, "Acknowledged with a warning that standbys were not waited for: {warned}.");
    text
}

fn operations(text: &mut String, result: &Result) {
    let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for call in &result.calls {
        let (column, why) = match &call.outcome {
            Outcome::Ok(_) => (0, None),
            Outcome::Failed(why) => (1, Some(("failed", why))),
            Outcome::Unknown(why) => (2, Some(("unknown", why))),
        };
        counts.entry(call.op.kind()).or_default()[column] += 1;
        if let Some((outcome, why)) = why {
            // Addresses and numbers differ from call to call.
            let same: String =
                why.chars().take(70).map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
            let code =
                why.get(..5).filter(|c| c.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()));
            *reasons.entry(format!("{outcome}: {} {same}", code.unwrap_or("-"))).or_default() += 1;
        }
    }
    let _ = writeln!(text, "| operation | ok | failed | unknown |\n|---|---|---|---|");
    for (kind, [ok, failed, unknown]) in counts {
        let _ = writeln!(text, "| {kind} | {ok} | {failed} | {unknown} |");
    }
    let mut reasons: Vec<(String, usize)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let _ = writeln!(text);
    for (why, n) in reasons.into_iter().take(REASONS) {
        let _ = writeln!(text, "{n:8} × {why}");
    }
}

/// Of one kind of fault.
#[derive(Default)]
struct Kind {
    count: usize,
    /// Seconds without an acknowledged write, of faults that were alone.
    still: Vec<f64>,
    /// How many of those lasted until everything was healed.
    until_healed: usize,
    after: Vec<f64>,
}

fn faults(text: &mut String, result: &Result) {
    let mut acks: Vec<u64> = result.calls.iter().filter(|c| c.acknowledged()).map(|c| c.end).collect();
    acks.sort_unstable();
    let mut kinds: BTreeMap<&str, Kind> = BTreeMap::new();
    for fault in &result.faults {
        let kind = kinds.entry(&fault.kind).or_default();
        kind.count += 1;
        kind.after.extend(fault.writable_after);
        if fault.alone {
            let (gap, open) = longest_gap(&acks, fault.at, fault.healed);
            kind.still.push(gap);
            kind.until_healed += usize::from(open);
        }
    }
    let _ = writeln!(
        text,
        "\n| fault | times | alone | writes stood still, median s | max s | until healed | writable after healing, median s | max s \
         |\n|---|---|---|---|---|---|---|---|"
    );
    for (name, mut kind) in kinds {
        kind.still.sort_by(f64::total_cmp);
        kind.after.sort_by(f64::total_cmp);
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} | {} |",
            kind.count,
            kind.still.len(),
            shown(quantile(&kind.still, 0.5)),
            shown(quantile(&kind.still, 1.0)),
            kind.until_healed,
            shown(quantile(&kind.after, 0.5)),
            shown(quantile(&kind.after, 1.0))
        );
    }
}

/// The longest time without an acknowledgement that touches this span, up to its end, in seconds; and whether writes still
/// stood still for more than a second when it ended.
fn longest_gap(acks: &[u64], from: u64, to: u64) -> (f64, bool) {
    let first = acks.partition_point(|end| *end < from).saturating_sub(1);
    let inside = acks[first.min(acks.len())..].iter().take_while(|end| **end < to).copied();
    let points: Vec<u64> = inside.chain([to]).collect();
    let gap =
        points.windows(2).map(|pair| pair[1] - pair[0].max(from.min(pair[1]))).max().unwrap_or(to - from);
    let last = points.iter().rev().nth(1).copied().unwrap_or(from).max(from);
    (gap as f64 / 1e6, to.saturating_sub(last) > 1_000_000)
}

/// Seconds with an acknowledged write, of all.
fn availability(result: &Result) -> (usize, usize) {
    let second = |moment: u64| (moment.saturating_sub(result.begin) / 1_000_000) as usize;
    let all = second(result.end);
    let mut good = vec![false; all];
    for call in result.calls.iter().filter(|c| c.acknowledged() && c.end >= result.begin) {
        if let Some(seen) = good.get_mut(second(call.end)) {
            *seen = true;
        }
    }
    (good.iter().filter(|seen| **seen).count(), all)
}

/// The smallest value that is not below this part of all.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

fn shown(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |v| format!("{v:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_measured_within_the_span() {
        let s = 1_000_000;
        let acks = [s, 2 * s, 5 * s, 5 * s + 1, 9 * s];
        assert_eq!(longest_gap(&acks, 2 * s, 6 * s), (3.0, false));
        assert_eq!(longest_gap(&acks, 3 * s, 6 * s), (2.0, false));
        assert_eq!(longest_gap(&acks, 6 * s, 8 * s), (2.0, true));
        assert_eq!(longest_gap(&[], 6 * s, 8 * s), (2.0, true));
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 10.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 10.0], 1.0), Some(10.0));
    }
}
