//! The same statement through all clients, protocols and ways to give its values: one hash, the one that drivers compute.

use pgquorum_tests::{
    LearningServer, PATIENCE, Plain, await_until, hash_of, postgres_program, psql, psql_with, run, text,
};
use postgres::types::ToSql;
use postgres::{Client, NoTls};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// How often each client runs each statement. Beyond the fifth call psycopg prepares by itself, and plans are kept.
const TIMES: usize = 8;
const DATABASE: &str = "clients";

const PSYCOPG: &str = include_str!("../../data/statements_psycopg.py");

const TABLES: &str = r#"CREATE TABLE t (id bigint PRIMARY KEY, v text NOT NULL);
    INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 50) g;
    CREATE TABLE "Quoted ""T""" ("V" text); INSERT INTO "Quoted ""T""" VALUES ('it''s'), (E'back\\slash')"#;

enum Value {
    Number(i64),
    Text(&'static str),
}
use Value::{Number, Text};

/// A statement with `{}` where its values go.
struct Statement {
    text: &'static str,
    values: &'static [Value],
}

const STATEMENTS: [Statement; 12] = [
    Statement { text: "SELECT v FROM t WHERE id = {}", values: &[Number(42)] },
    Statement {
        text: "select   v, COUNT(*)\tfrom  T -- a comment; with 'a quote\n where id\n BETWEEN {} and {} /* nested /* one */ */ \
               GROUP BY v ORDER BY 1 LIMIT {}",
        values: &[Number(1), Number(40), Number(3)],
    },
    Statement {
        text: "SELECT id FROM t WHERE id IN ({}, {}, {})",
        values: &[Number(1), Number(2), Number(3)],
    },
    Statement { text: "SELECT id, v FROM t WHERE id = {}", values: &[Number(-7)] },
    Statement { text: "SELECT v, id FROM t WHERE id + {} > {}", values: &[Number(-1), Number(-2)] },
    Statement { text: r#"SELECT "V" FROM "Quoted ""T""" WHERE "V" = {}"#, values: &[Text("it's")] },
    Statement {
        text: r#"SELECT "V" AS v FROM "Quoted ""T""" WHERE "V" = {}"#,
        values: &[Text("back\\slash")],
    },
    Statement {
        text: "SELECT v || E'\\n' || $q$a;b$q$ FROM t WHERE v <> {} AND v <> ''",
        values: &[Text("x; y -- z")],
    },
    Statement { text: "SELECT id % 2 FROM t WHERE id = {} AND v LIKE 'v%'", values: &[Number(3)] },
    Statement {
        text: "WITH x AS (SELECT id FROM t WHERE id > {}) SELECT max(id) FROM x ;",
        values: &[Number(10)],
    },
    Statement { text: "SHOW work_mem", values: &[] },
    Statement { text: "EXPLAIN (COSTS off) SELECT v FROM t", values: &[] },
];

impl Statement {
    /// With each value written by `each`, which is given its number, from 1 on.
    fn with(&self, mut each: impl FnMut(usize, &Value) -> String) -> String {
        let mut parts = self.text.split("{}");
        let mut text = parts.next().unwrap_or_default().to_owned();
        for (number, (value, part)) in self.values.iter().zip(parts).enumerate() {
            text += &each(number + 1, value);
            text += part;
        }
        text
    }

    fn with_literals(&self) -> String {
        self.with(|_, value| literal(value))
    }

    fn with_numbers(&self) -> String {
        self.with(|number, _| format!("${number}"))
    }
}

fn literal(value: &Value) -> String {
    match value {
        Number(n) => n.to_string(),
        Text(text) => format!("'{}'", text.replace('\'', "''")),
    }
}

/// A server, and a session to look from: its own statements are told apart by what they name.
struct Watched {
    servers: LearningServer,
    look: Client,
    dsn: String,
}

impl Watched {
    fn start() -> Watched {
        let servers = LearningServer::start("");
        run(&mut servers.connect(), &format!("CREATE DATABASE {DATABASE}"));
        let mut look = servers.primary.connect_to(DATABASE).expect("a session");
        run(&mut look, "CREATE EXTENSION pgquorum");
        run(&mut look, TABLES);
        let dsn = Plain::dsn(&[&servers.primary]).replace("/postgres?", &format!("/{DATABASE}?"));
        Watched { servers, look, dsn }
    }

    /// Calls by hash, of everything that is not this scenario's or the clients' own.
    fn calls(&mut self) -> BTreeMap<String, i64> {
        let sql = "SELECT hash, sum(calls)::bigint FROM quorum.readonly_statements WHERE statement !~ 'quorum|pgbench|pg_catalog|transaction_read_only'
                   GROUP BY hash HAVING sum(calls) > 0";
        self.look.query(sql, &[]).expect("the view").iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Runs a client. Each statement is then known by its hash, as often as the client ran it, and nothing else is.
    fn check(&mut self, client: &str, statements: &[&Statement], times: usize, act: impl FnOnce(&str)) {
        run(&mut self.look, "SELECT quorum.forget_statements()");
        act(&self.dsn);
        let mut expected = BTreeMap::new();
        for statement in statements {
            *expected.entry(hash_of(&statement.with_literals())).or_default() += times as i64;
        }
        await_until(PATIENCE, &format!("{client}: {times} calls of each statement"), || match self.calls() {
            calls if calls == expected => Ok(()),
            calls => Err(format!("{calls:?} instead of {expected:?}")),
        });
    }
}

fn all() -> Vec<&'static Statement> {
    STATEMENTS.iter().collect()
}

#[test]
fn a_driver_computes_what_the_server_does() {
    let mut watched = Watched::start();
    for statement in &STATEMENTS {
        let hash = hash_of(&statement.with_literals());
        for form in [statement.with_literals(), statement.with_numbers()] {
            assert_eq!(hash_of(&form), hash, "{form}");
            let sql = "SELECT quorum.statement_hash($1)";
            let by_server: String = watched.look.query_one(sql, &[&form]).expect("a hash").get(0);
            assert_eq!(by_server, hash, "{form}");
        }
    }
    let mut hashes: Vec<String> = STATEMENTS.iter().map(|s| hash_of(&s.with_literals())).collect();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), STATEMENTS.len(), "different statements, different hashes");
}

#[test]
fn psql_tokio_postgres_and_the_protocols() {
    let mut watched = Watched::start();
    let script: String =
        STATEMENTS.iter().map(|s| format!("{}\n;\n", s.with_literals())).collect::<String>().repeat(TIMES);
    watched.check("psql, a script", &all(), TIMES, |dsn| drop(psql(dsn, script.as_bytes())));
    let texts: Vec<String> = STATEMENTS.iter().map(Statement::with_literals).collect();
    watched.check("psql -c", &all(), 1, |dsn| {
        let args: Vec<&str> = texts.iter().flat_map(|text| ["-c", text]).collect();
        drop(psql_with(dsn, &args, b""));
    });
    watched.check("simple protocol", &all(), TIMES, |dsn| {
        let mut client = Client::connect(dsn, NoTls).expect("a session");
        texts.iter().for_each(|text| (0..TIMES).for_each(|_| run(&mut client, text)));
    });
    let values = |statement: &Statement| -> Vec<Box<dyn ToSql + Sync>> {
        let one = |value: &Value| -> Box<dyn ToSql + Sync> {
            match value {
                Number(n) => Box::new(*n),
                Text(text) => Box::new(*text),
            }
        };
        statement.values.iter().map(one).collect()
    };
    // Prepared anew for each call, and once for all.
    for keep in [false, true] {
        watched.check(&format!("extended protocol, kept: {keep}"), &all(), TIMES, |dsn| {
            let mut client = Client::connect(dsn, NoTls).expect("a session");
            for statement in &STATEMENTS {
                let text = statement.with_numbers();
                let prepared = client.prepare(&text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
                let values = values(statement);
                let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(Box::as_ref).collect();
                for _ in 0..TIMES {
                    let answer =
                        if keep { client.query(&prepared, &values) } else { client.query(&text, &values) };
                    answer.unwrap_or_else(|e| panic!("{text}: {e:?}"));
                }
            }
        });
    }
    // A portal that is read in pieces is one call; a cursor is its query's business, and FETCH nobody's.
    let big = [&STATEMENTS[0]];
    watched.check("a portal", &big, 1, |dsn| {
        let mut client = Client::connect(dsn, NoTls).expect("a session");
        let mut transaction = client.transaction().expect("a transaction");
        let portal = transaction.bind("SELECT v FROM t WHERE id = $1", &[&42_i64]).expect("a portal");
        for _ in 0..3 {
            transaction.query_portal(&portal, 1).expect("rows");
        }
    });
    drop(watched.servers);
}

#[test]
fn pgbench_in_its_three_modes() {
    let mut watched = Watched::start();
    let dir = tempfile::tempdir().expect("a directory");
    for mode in ["simple", "extended", "prepared"] {
        // Its own language has no texts: they come as variables, and in the simple mode as they shall stand in the statement.
        let mut defined = Vec::new();
        let mut script = String::new();
        for (at, statement) in STATEMENTS.iter().enumerate() {
            script += &statement.with(|number, value| {
                let name = format!("v_{at}_{number}");
                let plain = match value {
                    Text(text) if mode != "simple" => (*text).to_owned(),
                    value => literal(value),
                };
                defined.extend(["-D".to_owned(), format!("{name}={plain}")]);
                format!(":{name}")
            });
            script += "\n;\n";
        }
        let file = dir.path().join(mode);
        std::fs::write(&file, script).expect("the script");
        watched
            .check(&format!("pgbench -M {mode}"), &all(), TIMES, |dsn| pgbench(dsn, mode, &file, &defined));
    }
}

fn pgbench(dsn: &str, mode: &str, script: &Path, defined: &[String]) {
    let mut command = Command::new(postgres_program("pgbench"));
    command.args(["-n", "-M", mode, "-c", "2", "-t", &(TIMES / 2).to_string()]).args(defined);
    let out = command.arg("-f").arg(script).arg(dsn).stdin(Stdio::null()).output().expect("pgbench");
    assert!(out.status.success(), "pgbench -M {mode}: {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn psycopg_prepared_and_not() {
    let mut watched = Watched::start();
    let statements: Vec<serde_json::Value> = STATEMENTS
        .iter()
        .map(|statement| {
            // Per cent signs of the statement itself are written twice.
            let text = statement.with(|_, _| "\0".to_owned()).replace('%', "%%").replace('\0', "%s");
            let value = |value: &Value| match value {
                Number(n) => json!(n),
                Text(text) => json!(text),
            };
            json!([text, statement.values.iter().map(value).collect::<Vec<_>>(), TIMES])
        })
        .collect();
    for way in ["plain", "prepared", "client", "pipeline"] {
        let input = json!(statements).to_string();
        watched.check(&format!("psycopg, {way}"), &all(), TIMES, |dsn| psycopg(dsn, way, &input));
    }
    assert_eq!(text(&mut watched.look, "SELECT 1::text"), "1");
}

/// The system's Python: that is the one for which `make setup` installs psycopg. `PYTHON` names another one.
fn psycopg(dsn: &str, way: &str, statements: &str) {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned());
    let mut command = Command::new(&python);
    command
        .args(["-c", PSYCOPG, dsn, way])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{python}: {e}"));
    child.stdin.take().expect("its input").write_all(statements.as_bytes()).expect("it reads");
    let out = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "psycopg, {way} (python3-psycopg comes with `make setup`): {said}");
    let version = String::from_utf8_lossy(&out.stdout);
    assert!(version.starts_with("3."), "{version}");
}
