//! What a session works out of a table for itself is what SQL records of it: else each look-up would take the long way.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    use crate::pg::describe::Description;

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    fn require_same(table: &str, captured: Option<&[i16]>) {
        let oid =
            Spi::get_one::<pg_sys::Oid>(&format!("SELECT '{table}'::regclass::oid")).expect("it is there");
        let oid = oid.expect("an oid");
        let here = Description::of_other(oid.to_u32(), captured).expect("nobody has locked it");
        let list = captured.map_or("NULL".to_owned(), |numbers| format!("'{{{}}}'", join(numbers)));
        let sql = format!(
            "SELECT quorum.table_columns({0}, {list})::text, n.nspname::text, c.relname::text
             FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = {0}",
            oid.to_u32()
        );
        let (columns, schema, name) = Spi::get_three::<String, String, String>(&sql).expect("it is there");
        let text = |bytes: Vec<u8>| Some(String::from_utf8(bytes).expect("UTF-8"));
        assert_eq!((text(here.schema_name), text(here.table_name)), (schema, name));
        assert_eq!(text(here.columns), columns);
    }

    fn join(numbers: &[i16]) -> String {
        numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    #[pg_test]
    fn columns_are_described_as_sql_does() {
        run(r#"CREATE SCHEMA "the ""odd"" one"; CREATE SCHEMA shadow;
               CREATE TYPE "the ""odd"" one"."Mood.2" AS ENUM ('a');
               CREATE DOMAIN shadow.date AS "the ""odd"" one"."Mood.2"[];
               CREATE DOMAIN shadow.below AS shadow.date; CREATE TYPE public.pair AS (a int, b text);
               CREATE TABLE "the ""odd"" one"."t\1" (
                   gone int, b int, a bigint, "quoted ""name"" \ back" text, "größe" numeric(10,2), v varchar(5)[],
                   c char(3), c1 bpchar, c2 "char", at timestamptz(3), day pg_catalog.date, mine shadow.date,
                   low shadow.below, mood "the ""odd"" one"."Mood.2", many public.pair[], span interval day to second(1),
                   bits bit(3), var bit varying, n name, oid oid, class regclass, vector int2vector, j jsonb, x xml,
                   g bigint GENERATED ALWAYS AS (b + 1) STORED, f float4, PRIMARY KEY (a, b) INCLUDE (f));
               ALTER TABLE "the ""odd"" one"."t\1" DROP COLUMN gone"#);
        run(
            "DO $$ BEGIN EXECUTE format('ALTER TABLE \"the \"\"odd\"\" one\".\"t\\1\" RENAME COLUMN n TO %I',
             E'tab\\t line\\n return\\r feed\\f back\\b bell\\x07 end\\x7f'); END $$",
        );
        let table = r#""the ""odd"" one"."t\1""#;
        for path in ["public", r#""the ""odd"" one", public, shadow"#, "shadow, pg_catalog", ""] {
            run(&format!("SET LOCAL search_path = {}", if path.is_empty() { "''" } else { path }));
            require_same(table, None);
            require_same(table, Some(&[2, 3, 6]));
            // Without one of the key's.
            require_same(table, Some(&[2, 6]));
        }
    }

    #[pg_test]
    fn keys_are_those_that_sql_finds() {
        run("CREATE TABLE keyless (id int); CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE, v int);
             CREATE TABLE replica (a int NOT NULL UNIQUE, b int, c int NOT NULL GENERATED ALWAYS AS (b * 2) STORED UNIQUE);
             CREATE TABLE two (id int PRIMARY KEY, u int NOT NULL UNIQUE);
             ALTER TABLE two REPLICA IDENTITY USING INDEX two_u_key;
             CREATE TABLE parted (v text, id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE part (id int PRIMARY KEY, v text); ALTER TABLE parted ATTACH PARTITION part DEFAULT;
             CREATE TABLE empty ()");
        for table in ["keyless", "deferred", "replica", "two", "parted", "part", "empty"] {
            require_same(table, None);
        }
        for index in ["replica_a_key", "replica_c_key"] {
            run(&format!("ALTER TABLE replica REPLICA IDENTITY USING INDEX {index}"));
            require_same("replica", None);
        }
        // As DROP INDEX CONCURRENTLY does first.
        run("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'replica_c_key'::regclass");
        require_same("replica", None);
        run("ALTER TABLE two DROP CONSTRAINT two_pkey");
        require_same("two", None);
    }
}
