//! Writers of the feed's model: everything that a transaction can do to tracked tables.

use postgres::Client;
use rand::Rng;
use rand::rngs::SmallRng;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

pub const TABLES: [&str; 3] = ["public.account", "public.entry", "public.part"];
const KEYS: i32 = 60;

pub const SCHEMA: &str = "
    CREATE TABLE account (id int PRIMARY KEY, n int NOT NULL, note text);
    CREATE TABLE entry (id int PRIMARY KEY, account int REFERENCES account ON UPDATE CASCADE ON DELETE CASCADE, n int);
    CREATE TABLE part (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
    CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (MINVALUE) TO (20);
    CREATE TABLE part_mid PARTITION OF part FOR VALUES FROM (20) TO (40);
    CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (40) TO (MAXVALUE);
    SELECT quorum.create_channel('shop');
    SELECT quorum.track('account', 'shop'), quorum.track('entry', 'shop'), quorum.track('part', 'shop')";

/// After [`SCHEMA`]: each change of a row is written down, for a copy that is checked batch by batch. What changes rows without
/// a trigger of theirs (a column that is dropped, a table that is emptied, a partition that comes or goes) is written down
/// by its own statement, which keeps everybody else away from these rows.
pub const RECORD: &str = r#"
    CREATE TABLE recorded (
        seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        "table" text NOT NULL, before int, after jsonb, dropped text);
    CREATE INDEX ON recorded (xid);
    CREATE FUNCTION record_row() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.recorded ("table", before, after)
        VALUES (TG_ARGV[0], CASE WHEN TG_OP <> 'INSERT' THEN OLD.id END, CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
        RETURN NULL;
    END $$;
    CREATE FUNCTION record_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE format('INSERT INTO public.recorded ("table", before) SELECT %L, t.id FROM %s AS t', TG_ARGV[0], TG_RELID::regclass);
        RETURN NULL;
    END $$;
    CREATE FUNCTION record_ddl() RETURNS event_trigger LANGUAGE plpgsql SET search_path = public AS $$
    DECLARE
        changed oid[] := ARRAY(SELECT d.objid FROM pg_event_trigger_ddl_commands() AS d WHERE d.classid = 'pg_class'::regclass);
    BEGIN
        IF 'entry'::regclass = ANY (changed) AND NOT EXISTS (
            SELECT FROM pg_attribute AS a WHERE a.attrelid = 'entry'::regclass AND a.attname = 'extra') THEN
            INSERT INTO recorded ("table", dropped) VALUES ('public.entry', 'extra');
        END IF;
        IF 'part'::regclass = ANY (changed) THEN
            IF EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = 'part_mid'::regclass) THEN
                INSERT INTO recorded ("table", after) SELECT 'public.part', to_jsonb(t) FROM part_mid AS t;
            ELSE
                INSERT INTO recorded ("table", before) SELECT 'public.part', t.id FROM part_mid AS t;
            END IF;
        END IF;
    END $$;
    CREATE TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON account FOR EACH ROW EXECUTE FUNCTION record_row('public.account');
    CREATE TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON entry FOR EACH ROW EXECUTE FUNCTION record_row('public.entry');
    CREATE TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON part FOR EACH ROW EXECUTE FUNCTION record_row('public.part');
    CREATE TRIGGER record_emptied BEFORE TRUNCATE ON entry EXECUTE FUNCTION record_emptied('public.entry');
    CREATE TRIGGER record_emptied BEFORE TRUNCATE ON part_low EXECUTE FUNCTION record_emptied('public.part');
    CREATE TRIGGER record_emptied BEFORE TRUNCATE ON part_mid EXECUTE FUNCTION record_emptied('public.part');
    CREATE TRIGGER record_emptied BEFORE TRUNCATE ON part_high EXECUTE FUNCTION record_emptied('public.part');
    CREATE EVENT TRIGGER record_ddl ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION record_ddl();
"#;

/// One statement of a transaction. Those that fail roll back to the savepoint before them.
fn statement(random: &mut SmallRng, partitions: bool) -> String {
    let (a, b, n) =
        (random.random_range(0..KEYS), random.random_range(0..KEYS), random.random_range(0..1000));
    match random.random_range(0..18) {
        0 | 1 => format!(
            "INSERT INTO account VALUES ({a}, {n}, repeat('x', {n} * {n} / 100)) ON CONFLICT (id) DO UPDATE SET n = account.n + 1"
        ),
        2 => format!("UPDATE account SET n = n + {n} WHERE id BETWEEN {a} AND {a} + 5"),
        3 => format!("UPDATE account SET id = {b} WHERE id = {a}"),
        4 => format!("DELETE FROM account WHERE id = {a}"),
        5 => format!(
            "INSERT INTO entry SELECT i, {a}, {n} FROM generate_series({b} * 10, {b} * 10 + 4) AS i ON CONFLICT DO NOTHING"
        ),
        6 => format!("UPDATE entry SET n = n + 1, account = {b} WHERE account = {a}"),
        7 => format!("DELETE FROM entry WHERE id % {KEYS} = {a}"),
        8 => format!("INSERT INTO part VALUES ({a}, {n}) ON CONFLICT (id) DO UPDATE SET n = excluded.n"),
        9 => format!("UPDATE part SET id = {b} WHERE id = {a}"),
        10 => format!("DELETE FROM part WHERE id = {a}"),
        11 => format!("UPDATE account SET note = md5(note) WHERE id = {a}"),
        // Longer than what stays in its row, and not to be compressed: later updates leave it alone.
        12 | 13 => format!(
            "UPDATE account SET note = (SELECT string_agg(md5(i::text || random()), '') FROM generate_series(1, 100) AS i)
             WHERE id BETWEEN {a} AND {a} + 3"
        ),
        14 | 15 => format!("UPDATE entry SET extra = {n} WHERE id BETWEEN {a} * 10 AND {b} * 10"),
        16 if n < 300 => "ALTER TABLE entry ADD COLUMN extra int".to_owned(),
        16 if n < 500 => "ALTER TABLE entry DROP COLUMN extra".to_owned(),
        16 if n < 550 => "TRUNCATE part".to_owned(),
        16 if n < 600 => "TRUNCATE entry".to_owned(),
        16 if n < 650 => "TRUNCATE part_low".to_owned(),
        17 if partitions && n < 80 => "ALTER TABLE part DETACH PARTITION part_mid".to_owned(),
        17 if partitions && n < 240 => {
            "ALTER TABLE part ATTACH PARTITION part_mid FOR VALUES FROM (20) TO (40)".to_owned()
        }
        // Whether it is a partition or not: while it is none, nobody hears of its rows.
        17 if partitions && n < 700 => format!(
            "INSERT INTO part_mid VALUES (20 + {a} % 20, {n}) ON CONFLICT (id) DO UPDATE SET n = excluded.n"
        ),
        17 if partitions => format!("DELETE FROM part_mid WHERE id % 5 = {a} % 5"),
        _ => format!("DELETE FROM entry WHERE account = {a}"),
    }
}

/// Tells writers to stop when it is dropped, also by a test that fails: who waits for them would wait for ever.
pub struct Stops<'a>(pub &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// What not every server allows its writers.
#[derive(Clone, Copy)]
pub struct Manner {
    /// Some commits do not wait for the disk.
    pub weak: bool,
    /// Some transactions are prepared first.
    pub prepared: bool,
    /// A partition goes and comes back, with other rows.
    pub partitions: bool,
}

/// Runs transactions until it is told to stop, or an error that is not one of the statements' own: the server is gone.
pub fn write(
    client: &mut Client,
    random: &mut SmallRng,
    name: &str,
    stop: &AtomicBool,
    manner: Manner,
) -> Result<(), postgres::Error> {
    client.batch_execute("SET statement_timeout = '20s'")?;
    for round in 0.. {
        if stop.load(SeqCst) {
            break;
        }
        let begin = if manner.weak && random.random_bool(0.5) {
            "BEGIN; SET LOCAL synchronous_commit = off"
        } else {
            "BEGIN"
        };
        client.batch_execute(begin)?;
        for _ in 0..random.random_range(1..6) {
            client.batch_execute("SAVEPOINT s")?;
            let kept = match client.batch_execute(&statement(random, manner.partitions)) {
                Ok(()) => random.random_bool(0.8),
                Err(error) if error.as_db_error().is_some() && !client.is_closed() => false,
                Err(error) => return Err(error),
            };
            client.batch_execute(if kept { "RELEASE s" } else { "ROLLBACK TO s" })?;
        }
        let end = match random.random_range(0..20) {
            0..2 => "ROLLBACK".to_owned(),
            2..16 => "COMMIT".to_owned(),
            _ if !manner.prepared => "COMMIT".to_owned(),
            16 => format!("PREPARE TRANSACTION '{name}{round}'; ROLLBACK PREPARED '{name}{round}'"),
            _ => format!(
                "PREPARE TRANSACTION '{name}{round}'; SELECT quorum.cut('shop'); COMMIT PREPARED '{name}{round}'"
            ),
        };
        for step in end.split("; ") {
            client.batch_execute(step)?;
        }
    }
    Ok(())
}
