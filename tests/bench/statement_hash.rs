//! How many megabytes of statements a second can be normalised and hashed on one core, as a proxy does with each statement
//! that passes. Beside it: XXH64 of the same texts as they are, which is about as fast as they can be read at all.

use crate::Options;
use crate::line::{Line, Must, Samples, rounded};
use nix::time::ClockId;
use pgquorum_statement::{digest, hash};
use serde_json::json;
use std::fmt::Write;
use std::hint::black_box;
use std::time::Duration;
use twox_hash::XxHash64;

pub const NAME: &str = "statement-hash";

const MUST_MB: f64 = 200.0;
const ROUNDS: usize = 31;
/// Texts of each kind; many, and all different, so that the processor does not learn them by heart.
const TEXTS: usize = 2000;

pub fn run(_: &Options) -> bool {
    let kinds: Vec<(&str, Vec<String>)> = KINDS
        .iter()
        .map(|(name, patterns)| (*name, Writer(0x9e37_79b9_7f4a_7c15).texts(patterns, TEXTS)))
        .collect();
    // One kind after the other in turns, as sessions of all kinds come.
    let mixed: Vec<&str> =
        (0..TEXTS).flat_map(|n| kinds.iter().map(move |(_, texts)| texts[n].as_str())).collect();
    let mut large = String::new();
    for text in mixed.iter().cycle() {
        large.push('\n');
        large.push_str(text);
        if large.len() >= 1 << 20 {
            break;
        }
    }
    let (mut rates, mut plain, mut digests, mut one) = Default::default();
    let mut by_kind = vec![Samples::default(); kinds.len()];
    for _ in 0..ROUNDS {
        add(&mut rates, &mixed, hash);
        add(&mut plain, &mixed, |text| XxHash64::oneshot(0, text));
        let mut kept = [0; 1024];
        add(&mut digests, &mixed, |text| digest(text, &mut kept).hash);
        add(&mut one, &[&large], hash);
        for (samples, (_, texts)) in by_kind.iter_mut().zip(&kinds) {
            add(samples, &texts.iter().map(String::as_str).collect::<Vec<_>>(), hash);
        }
    }
    let bytes: usize = mixed.iter().map(|text| text.len()).sum();
    let mean = bytes as f64 / mixed.len() as f64;
    let mut more = json!({
        "digest": rounded(digests.median()), "one_megabyte": rounded(one.median()), "plain": rounded(plain.median()),
        "statements": mixed.len(), "mean_bytes": rounded(mean), "mean_ns": rounded(mean / rates.median() * 1000.0),
    });
    for (samples, (name, _)) in by_kind.iter().zip(&kinds) {
        more[*name] = json!(rounded(samples.median()));
    }
    let line = Line {
        bench: NAME,
        unit: "MB/s",
        samples: &rates,
        ratio: rates.median() / plain.median(),
        against: "XXH64 of the texts as they are",
        must: Must::AtLeast(MUST_MB),
        judged: rates.median(),
        kept: true,
        more,
    };
    line.print()
}

/// One pass over all texts, in 10⁶ bytes a second of this thread's own time: others may be using the machine.
fn add(samples: &mut Samples, texts: &[&str], mut work: impl FnMut(&[u8]) -> u64) {
    let began = own_time();
    let bytes: usize = texts
        .iter()
        .map(|text| {
            black_box(work(black_box(text.as_bytes())));
            text.len()
        })
        .sum();
    samples.add(bytes as f64 / (own_time() - began).as_secs_f64() / 1e6);
}

fn own_time() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("the thread's clock").into()
}

/// What clients of four kinds send. `{t}` is a name, `{n}` a number, `{s}` a string, `{l}` a list of numbers, `{p}` a parameter.
const KINDS: [(&str, &[&str]); 4] = [
    (
        "short",
        &[
            "SELECT abalance FROM pgbench_accounts WHERE aid = {n};",
            "UPDATE {t} SET {t} = {t} + {n} WHERE {t} = {n};",
            "select {t}, {t}, {t} from {t} where {t} = {p} and {t} = {s} order by {t} desc limit {n}",
            "INSERT INTO {t} ({t}, {t}, {t}, mtime) VALUES ({n}, {n}, {s}, CURRENT_TIMESTAMP)",
            "SELECT count(*) FROM {t} WHERE {t} > now() - interval '1 hour' AND {t} IS NOT NULL",
            "SELECT {t}->>'name', {t} #> '{{a,b}}' FROM {t} WHERE {t} @> {p}::jsonb",
            "BEGIN",
            "SET search_path TO {t}, public",
        ],
    ),
    (
        "orm",
        &[
            r#"SELECT "{t}"."id", "{t}"."{t}", "{t}"."{t}", "{t}"."created_at", "{t}"."updated_at" FROM "{t}" WHERE "{t}"."{t}" = {p} AND "{t}"."id" = {p} LIMIT {p} /*application:Shop,controller:{t}*/"#,
            r#"SELECT "{t}"."id", "{t}"."{t}", "{t}"."{t}", T3."{t}" FROM "{t}" INNER JOIN "{t}" ON ("{t}"."{t}_id" = "{t}"."id") LEFT OUTER JOIN "{t}" T3 ON (T3."{t}_id" = "{t}"."id") WHERE ("{t}"."{t}" IN ({l}) AND NOT "{t}"."{t}" AND UPPER("{t}"."{t}"::text) LIKE UPPER({s})) ORDER BY "{t}"."{t}" ASC LIMIT 21"#,
            "select {t}1_0.id,{t}1_0.{t},{t}1_0.{t},{t}1_0.version,{t}2_0.{t} from {t} {t}1_0 left join {t} {t}2_0 on {t}2_0.id={t}1_0.{t}_id where {t}1_0.{t}={p} and {t}1_0.{t} in ({p},{p},{p}) order by {t}1_0.{t} offset {p} rows fetch first {p} rows only",
            "SELECT {t}_1.id AS {t}_1_id, {t}_1.{t} AS {t}_1_{t}, {t}_1.{t} AS {t}_1_{t} \nFROM {t} AS {t}_1 JOIN {t} ON {t}_1.id = {t}.{t}_id \nWHERE {t}.{t} = %({t}_1)s AND {t}.{t} IN ({l})",
        ],
    ),
    (
        "report",
        &[
            "-- {t} by month\nWITH {t} AS (\n    SELECT\n        date_trunc('month', o.{t}) AS month,\n        c.{t},\n        sum(o.{t} * (1 - o.discount)) AS revenue,\n        count(DISTINCT o.{t}) FILTER (WHERE o.{t} > {n}) AS customers\n    FROM {t} o\n    JOIN {t} c ON c.id = o.{t}_id\n    WHERE o.{t} >= date {s}\n      AND o.{t} < date {s} + interval '1' year\n      AND c.{t} IN ({s}, {s}, {s})\n    GROUP BY 1, 2\n)\nSELECT\n    month,\n    {t},\n    revenue,\n    revenue - lag(revenue) OVER (PARTITION BY {t} ORDER BY month) AS growth, -- since the month before\n    round(100.0 * revenue / nullif(sum(revenue) OVER (PARTITION BY month), 0), 2) AS share\nFROM {t}\nWHERE revenue > {n}\nORDER BY month DESC, share DESC NULLS LAST\nLIMIT {n};\n",
            "select\n\t{t}, {t}, extract(year from {t}) as {t}, sum(volume) as revenue\nfrom (\n\tselect n1.{t} as {t}, n2.{t} as {t}, l_extendedprice * (1 - l_discount) as volume\n\tfrom {t}, {t}, {t}, nation n1, nation n2\n\twhere s_suppkey = l_suppkey and o_orderkey = l_orderkey\n\t\tand ((n1.n_name = {s} and n2.n_name = {s}) or (n1.n_name = {s} and n2.n_name = {s}))\n\t\tand {t} between date {s} and date {s}\n) as shipping\ngroup by {t}, {t}, {t}\norder by {t}, {t}, {t}",
            "/*\n * Stock that runs out.\n * Owner: {t}\n */\nSELECT p.{t}, p.{t}, coalesce(s.{t}, 0) - coalesce(r.{t}, 0) AS available,\n       CASE WHEN s.{t} < {n} THEN {s} WHEN s.{t} < {n} * 2 THEN {s} ELSE {s} END AS state\n  FROM {t} p\n  LEFT JOIN LATERAL (SELECT sum({t}) AS {t} FROM {t} x WHERE x.{t}_id = p.id AND x.{t} <> 'gone') s ON true\n  LEFT JOIN {t} r ON r.{t}_id = p.id AND r.{t} > now() - '7 days'::interval\n WHERE p.{t} = ANY ({p}::int[]) AND (p.{t} ->> 'colour') ILIKE {s} || '%'\n",
        ],
    ),
    (
        "lists",
        &[
            "SELECT {t}, {t} FROM {t} WHERE id IN ({l}, {l}, {l}, {l}, {l}, {l}, {l}, {l})",
            "INSERT INTO {t} ({t}, {t}, {t}) VALUES ({n}, {s}, {s}), ({n}, {s}, {s}), ({n}, {s}, {s}), ({n}, {s}, {s}), ({n}, {s}, {s})",
            "SELECT * FROM {t} WHERE {t} = ANY(ARRAY[{l}]) AND lon BETWEEN -{n}.5 AND -{n}.25 AND {t} IN ({s}, {s}, {s}, {s}, {s})",
        ],
    ),
];

const NAMES: [&str; 40] = [
    "id",
    "name",
    "orders",
    "customer",
    "price",
    "quantity",
    "created_at",
    "status",
    "email",
    "product_id",
    "line_items",
    "address",
    "city",
    "country",
    "warehouse",
    "stock_level",
    "description",
    "category",
    "supplier",
    "invoice_number",
    "amount",
    "currency",
    "tax_rate",
    "shipped_on",
    "user_account",
    "last_login",
    "session_token",
    "is_active",
    "parent",
    "position",
    "title",
    "body",
    "tags",
    "rating",
    "reviews",
    "payment_method",
    "discount",
    "region",
    "total_amount",
    "x",
];

/// Fills patterns, always in the same way.
struct Writer(u64);

impl Writer {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn texts(mut self, patterns: &[&str], count: usize) -> Vec<String> {
        let mut text = |_| {
            let pattern = patterns[self.below(patterns.len())];
            self.text(pattern)
        };
        (0..count).map(&mut text).collect()
    }

    fn text(&mut self, pattern: &str) -> String {
        let mut text = String::new();
        let mut rest = pattern;
        let mut parameters = 0;
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (what, behind) = after.split_once('}').expect("a closing brace");
            rest = behind;
            match what {
                "t" => text.push_str(NAMES[self.below(NAMES.len())]),
                "n" => self.number(&mut text),
                "s" => self.string(&mut text),
                "p" => {
                    parameters += 1;
                    write!(text, "${parameters}").expect("room");
                }
                "l" => {
                    self.number(&mut text);
                    for _ in 0..self.below(20) {
                        text.push_str(if parameters % 2 == 0 { ", " } else { "," });
                        self.number(&mut text);
                    }
                }
                // `{{` is a brace.
                other => text.push_str(other),
            }
        }
        text + rest
    }

    fn number(&mut self, text: &mut String) {
        let digits = 1 + self.below(7) as u32;
        write!(text, "{}", self.below(10_usize.pow(digits))).expect("room");
    }

    fn string(&mut self, text: &mut String) {
        text.push('\'');
        for _ in 0..=self.below(3) {
            text.push_str(NAMES[self.below(NAMES.len())]);
            text.push_str([" ", "-", "''", "%"][self.below(4)]);
        }
        text.push('\'');
    }
}
