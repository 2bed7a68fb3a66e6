//! What a node that rejoins is shown of this server's files.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    /// As PostgreSQL's `libpq_source.c` asks.
    const LISTING: &str = "WITH RECURSIVE files (path, filename, size, isdir) AS (
  SELECT '' AS path, filename, size, isdir FROM
  (SELECT pg_ls_dir('.', true, false) AS filename) AS fn,
        pg_stat_file(fn.filename, true) AS this
  UNION ALL
  SELECT parent.path || parent.filename || '/' AS path,
         fn, this.size, this.isdir
  FROM files AS parent,
       pg_ls_dir(parent.path || parent.filename, true, false) AS fn,
       pg_stat_file(parent.path || parent.filename || '/' || fn, true) AS this
       WHERE parent.isdir = 't'
)
SELECT path || filename, size, isdir,
       pg_tablespace_location(pg_tablespace.oid) AS link_target
FROM files
LEFT OUTER JOIN pg_tablespace ON files.path = 'pg_tblspc/'
                             AND oid::text = files.filename
";

    fn listed(name: &str) -> Vec<String> {
        Spi::run_with_args("SELECT set_config('application_name', $1, true)", &[name.into()])
            .expect("a name");
        Spi::connect(|client| {
            let rows = client.select(LISTING, None, &[]).expect("the list");
            rows.map(|row| row.get::<String>(1).expect("a text").expect("not NULL")).collect()
        })
    }

    /// The places of segments, as their names have them.
    fn segments(paths: &[String]) -> Vec<&str> {
        let of = |path: &str| path.strip_prefix("pg_wal/").is_some_and(|name| name.len() == 24);
        paths.iter().filter(|path| of(path)).map(|path| &path[15..]).collect()
    }

    #[pg_test]
    fn a_rewind_is_not_shown_the_wal_that_both_have() {
        for _ in 0..3 {
            Spi::run("SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()")
                .expect("a segment");
        }
        let lsn = Spi::get_one::<String>("SELECT pg_current_wal_insert_lsn()::text")
            .expect("asked")
            .expect("a place");
        let present =
            Spi::get_one::<String>("SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 9)")
                .expect("asked")
                .expect("a name");
        // There is a file of that segment when something of it was written; whole pages are, by and by.
        Spi::run("SELECT pg_logical_emit_message(false, 'test', repeat('x', 50000))").expect("some WAL");
        let written = format!("SELECT pg_current_wal_flush_lsn() > '{lsn}' FROM pg_sleep(0.01)");
        let is_written = || Spi::get_one::<bool>(&written).expect("asked") == Some(true);
        assert!((0..3000).any(|_| is_written()), "the walwriter writes");
        // Others work on this server: what is there before and after is what must be there in between.
        let before = listed("psql");
        let shown = listed(&format!("pgquorum rewind 1@{lsn}"));
        let later = listed(&format!("pgquorum rewind 2@{lsn}"));
        let without_place = listed("pgquorum rewind");
        let after = listed("psql");
        let lasting: Vec<&String> = before.iter().filter(|path| after.contains(path)).collect();
        let wal = |path: &str| !segments(&[path.to_owned()]).is_empty();
        assert!(lasting.iter().any(|path| wal(path) && path[15..] < present[..]), "there is WAL of before");
        assert!(
            segments(&shown).iter().all(|place| **place >= present[..]),
            "{present}: {:?}",
            segments(&shown)
        );
        assert!(!segments(&shown).is_empty(), "the segment in which the histories part is shown");
        for path in &lasting {
            assert!(wal(path) || shown.contains(path), "everything else is shown: {path}");
            assert!(without_place.contains(path), "without a place everything is shown: {path}");
        }
        assert_eq!(segments(&later).len(), 0, "this server is on timeline 1");
        assert!(shown.iter().any(|path| path == "global/pg_control"));
    }
}
