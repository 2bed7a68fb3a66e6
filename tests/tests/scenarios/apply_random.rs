//! Random writers at the source, and whoever follows has the same in the end.

use pgquorum_tests::{run, text};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::apply_statements::{assert_tidy, pair};

/// One random transaction, which may fail as a whole or in a savepoint.
fn transaction(random: &mut StdRng) -> String {
    let mut sql = String::from("BEGIN;");
    let mut savepoints = 0;
    for _ in 0..random.random_range(1..8) {
        let (id, other) = (random.random_range(1..60), random.random_range(1..60));
        sql += &match random.random_range(0..14) {
            0..=3 => format!("INSERT INTO t VALUES ({id}, {other}, 'new') ON CONFLICT DO NOTHING;"),
            4 | 5 => format!("UPDATE t SET v = v || {other} WHERE id = {id};"),
            6 => format!(
                "UPDATE t SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM t WHERE id = {other});"
            ),
            7 => format!(
                "UPDATE t SET u = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM t WHERE u = {other});"
            ),
            8 => format!("DELETE FROM t WHERE id BETWEEN {id} AND {id} + 3;"),
            9 => format!(
                "INSERT INTO big VALUES ({id}, repeat('{other}', 5000)) ON CONFLICT (id) DO UPDATE SET n = big.n + 1;"
            ),
            10 => format!(
                "UPDATE big SET doc = doc || '{other}' WHERE id = {id}; DELETE FROM big WHERE id = {other};"
            ),
            11 => {
                savepoints += 1;
                format!("SAVEPOINT s{savepoints};")
            }
            12 if savepoints > 0 => format!("ROLLBACK TO s{savepoints};"),
            13 if random.random_range(0..10) == 0 => "TRUNCATE big;".to_owned(),
            _ => format!("UPDATE t SET v = left(v, 5) WHERE id % 7 = {};", id % 7),
        };
    }
    sql + if random.random_range(0..8) == 0 { "ROLLBACK" } else { "COMMIT" }
}

#[test]
fn random_writes_arrive_as_they_were() {
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (source, target, mut a) = pair(
        "CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text); CREATE TABLE big (id int PRIMARY KEY, doc text, n int DEFAULT 0);
         ALTER TABLE big ALTER doc SET STORAGE EXTERNAL",
        &["t", "big"],
    );
    a.add_schemas();
    for round in 0..25 {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let (mut client, seed) = (source.connect(), random.random::<u64>());
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(seed);
                    for _ in 0..8 {
                        // Deadlocks and collisions are part of it.
                        if client.batch_execute(&transaction(&mut random)).is_err() {
                            let _ = client.batch_execute("ROLLBACK");
                        }
                    }
                });
            }
        });
        a.batch_bytes = [1, 3000, 1 << 20][round % 3];
        if round % 4 == 1 {
            // Begun and rolled back first.
            run(&mut a.target, "BEGIN");
            let at = a.call(&[], None).expect("a position").position;
            let rows = a.frames(&at);
            if let Some(first) = rows.first() {
                let mut batch = pgquorum_tests::piece_frame(first.row.first_tick - 1, &rows);
                rows.iter().take(rows.len() / 2).for_each(|frame| batch.extend_from_slice(&frame.bytes));
                let _ = a.call(&batch, None);
            }
            run(&mut a.target, "ROLLBACK");
        }
        let applied = a.pull();
        assert_eq!((applied.conflicts, applied.rejected), (0, 0), "round {round}");
        a.assert_same("t", "random writes");
        a.assert_same("big", "random writes");
    }
    let stopped = text(
        &mut a.target,
        "SELECT count(*)::text FROM quorum.subscription_tables WHERE state <> 'following'",
    );
    assert_eq!(stopped, "0");
    assert_tidy(&target);
}
