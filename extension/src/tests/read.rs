//! What the cluster looks like in SQL.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn text(sql: &str) -> Option<String> {
        Spi::get_one::<String>(sql).expect("query runs")
    }

    #[pg_test]
    fn an_empty_cluster() {
        assert_eq!(text("SELECT quorum.map()::text").as_deref(), Some(r#"{"nodes": [], "leader": null}"#));
        let info = r#"{"logs": [], "term": 0, "config": {}, "applied-index": 0}"#;
        assert_eq!(text("SELECT quorum.info()::text").as_deref(), Some(info));
        assert_eq!(text("SELECT count(*)::text FROM quorum.leader()").as_deref(), Some("0"));
    }

    #[pg_test]
    fn map_info_and_leader() {
        Spi::run(
            r#"SELECT quorum.apply_entry(1, 4, '{"nodes": [
                   {"id": 2, "ip": "b", "db-port": 5433, "api-port": 8002, "role": "node"},
                   {"id": 1, "ip": "a", "db-port": 5432, "api-port": 8001, "role": "node"}], "config": {"x": "y"}}');
               SELECT quorum.open_epoch(4, 1, 1, '0/1', 1, '{1,2}');
               SELECT quorum.open_epoch(6, 2, 2, '0/2000000', 1, '{1,2}')"#,
        )
        .expect("the cluster is set up");
        assert_eq!(
            text("SELECT (quorum.map() = '{\"leader\": 2, \"nodes\": [
                     {\"id\": 1, \"ip\": \"a\", \"db-port\": 5432, \"api-port\": 8001, \"role\": \"node\"},
                     {\"id\": 2, \"ip\": \"b\", \"db-port\": 5433, \"api-port\": 8002, \"role\": \"node\"}]}')::text")
                .as_deref(),
            Some("true")
        );
        let leader = "SELECT format('%s %s %s %s %s %s', id, ip, db_port, api_port, epoch, timeline) FROM quorum.leader()";
        assert_eq!(text(leader).as_deref(), Some("2 b 5433 8002 6 2"));
        let info = "SELECT format('%s %s %s %s', i -> 'term', i -> 'applied-index', i -> 'config', i #> '{logs,0,index}')
                    FROM quorum.info() AS i";
        assert_eq!(text(info).as_deref(), Some(r#"4 1 {"x": "y"} 1"#));
    }

    #[pg_test]
    fn info_shows_the_newest_hundred_oldest_first() {
        Spi::run("SELECT quorum.apply_entry(i, 1, '{}') FROM generate_series(1, 120) AS i")
            .expect("entries apply");
        let ends = "SELECT format('%s %s %s', jsonb_array_length(i -> 'logs'), i #> '{logs,0,index}', i #> '{logs,-1,index}')
                    FROM quorum.info() AS i";
        assert_eq!(text(ends).as_deref(), Some("100 21 120"));
    }

    #[pg_test]
    fn epochs_only_grow() {
        let open = |epoch: i64, node: i64| {
            let sql = format!("SELECT quorum.open_epoch({epoch}, {node}, 1, '0/1', 1, '{{1,2}}')");
            Spi::get_one::<bool>(&sql).expect("query runs").expect("not null")
        };
        assert!(open(4, 1));
        assert!(!open(4, 1), "twice changes nothing");
        assert!(open(5, 2));
        assert!(!open(4, 1));
    }

    #[pg_test(error = "epoch 5 of node 1 is not newer than epoch 5 of node 2")]
    fn an_epoch_has_one_leader() {
        Spi::run("SELECT quorum.open_epoch(5, 2, 1, '0/1', 1, '{1,2}')").expect("the epoch is opened");
        let _ = Spi::run("SELECT quorum.open_epoch(5, 1, 1, '0/1', 1, '{1,2}')");
    }

    #[pg_test]
    fn wal_position_of_a_primary() {
        let row =
            "SELECT format('%s %s %s %s', in_recovery, timeline, flush_lsn <= pg_current_wal_insert_lsn(),
                                 num_nonnulls(receive_lsn, receive_timeline, replay_lsn, replay_timeline))
                   FROM quorum.wal_position()";
        assert_eq!(text(row).as_deref(), Some("f 1 t 0"));
    }
}
