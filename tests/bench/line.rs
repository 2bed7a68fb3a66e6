//! The line that a benchmark prints.

use serde_json::{Map, Value, json};

/// Measured values in order of size.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, value: f64) {
        let at = self.0.partition_point(|v| *v < value);
        self.0.insert(at, value);
    }

    /// The smallest value that is not below this part of all, from 0 to 1; 0 if nothing was measured.
    pub fn quantile(&self, part: f64) -> f64 {
        let rank = (self.0.len() as f64 * part).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }

    /// The middle, or the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let n = self.0.len();
        let at = |i: usize| self.0.get(i).copied().unwrap_or(0.0);
        if n.is_multiple_of(2) { (at((n / 2).saturating_sub(1)) + at(n / 2)) / 2.0 } else { at(n / 2) }
    }

    /// Between these the true median lies with 95 % probability, whatever the distribution (order statistics).
    pub fn median_within(&self) -> (f64, f64) {
        let n = self.0.len() as f64;
        let half = 0.98 * n.sqrt();
        let low = (n / 2.0 - half).floor().max(0.0) as usize;
        let high = ((n / 2.0 + half).ceil() as usize).min(self.0.len().saturating_sub(1));
        (self.0.get(low).copied().unwrap_or(0.0), self.0.get(high).copied().unwrap_or(0.0))
    }

    /// In order of size.
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(0.0)
    }

    pub fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }
}

impl From<Vec<f64>> for Samples {
    fn from(mut values: Vec<f64>) -> Samples {
        values.sort_by(f64::total_cmp);
        Samples(values)
    }
}

/// Which side of the mark is good.
#[derive(Clone, Copy)]
pub enum Must {
    AtMost(f64),
    AtLeast(f64),
}

impl Must {
    pub fn met_by(self, value: f64) -> bool {
        match self {
            Must::AtMost(mark) => value <= mark,
            Must::AtLeast(mark) => value >= mark,
        }
    }

    fn mark(self) -> f64 {
        match self {
            Must::AtMost(mark) | Must::AtLeast(mark) => mark,
        }
    }
}

/// One benchmark's result.
pub struct Line<'a> {
    pub bench: &'a str,
    pub unit: &'a str,
    pub samples: &'a Samples,
    /// Compared with what was measured in turns with it.
    pub ratio: f64,
    pub against: &'a str,
    pub must: Must,
    /// The number that the mark is for.
    pub judged: f64,
    /// Whether everything else that was promised held.
    pub kept: bool,
    pub more: Value,
}

impl Line<'_> {
    /// Prints the line; true if the mark was met and all promises held.
    pub fn print(self) -> bool {
        let ok = self.kept && self.must.met_by(self.judged);
        let mut line = Map::new();
        let samples = self.samples;
        for (name, value) in [
            ("bench", json!(self.bench)),
            ("unit", json!(self.unit)),
            ("value", json!(rounded(samples.median()))),
            ("p90", json!(rounded(samples.quantile(0.9)))),
            ("min", json!(rounded(samples.min()))),
            ("max", json!(rounded(samples.max()))),
            ("n", json!(samples.len())),
            ("ratio", json!(rounded(self.ratio))),
            ("against", json!(self.against)),
            ("must", json!(self.must.mark())),
            ("ok", json!(ok)),
        ] {
            line.insert(name.to_owned(), value);
        }
        line.extend(self.more.as_object().cloned().unwrap_or_default());
        println!("{}", Value::Object(line));
        ok
    }
}

/// A line for what cannot be measured here, with the reason. It is not good: a mark that was not measured is not met.
pub fn not_measured(bench: &str, why: &str) -> bool {
    println!("{}", json!({ "bench": bench, "value": null, "ok": false, "skipped": why }));
    false
}

/// Four digits that mean something are more than any of these measurements has.
pub fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut samples = Samples::default();
        assert_eq!((samples.median(), samples.quantile(0.9)), (0.0, 0.0));
        for value in [5.0, 1.0, 4.0, 2.0, 3.0, 10.0, 9.0, 8.0, 7.0, 6.0] {
            samples.add(value);
        }
        assert_eq!((samples.median(), samples.quantile(0.9), samples.quantile(1.0)), (5.5, 9.0, 10.0));
        assert_eq!(samples.median_within(), (2.0, 10.0));
        assert_eq!((samples.min(), samples.max(), samples.len()), (1.0, 10.0, 10));
        assert!(Must::AtMost(2.0).met_by(2.0) && !Must::AtLeast(2.0).met_by(1.9));
    }
}
