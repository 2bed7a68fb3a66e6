//! The feed's SQL functions on a channel that has no changes yet, who may call them, and what they refuse. What happens
//! when batches are cut needs commits, so it is tested from outside.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).expect("query runs").unwrap_or_default()
    }

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    #[pg_test]
    fn an_empty_channel_can_be_read() {
        run("SELECT quorum.create_channel('shop')");
        for position in ["start", "now", "0", "0:0", "7:0"] {
            assert_eq!(
                text(&format!("SELECT count(*)::text FROM quorum.changes('shop', '{position}')")),
                "0"
            );
            assert_eq!(
                text(&format!("SELECT count(*)::text FROM quorum.read_log('shop', '{position}')")),
                "0"
            );
            let packs = format!(
                "SELECT count(*)::text FROM (SELECT quorum.read_packed('shop', '{position}')) AS pack"
            );
            assert_eq!(text(&packs), "0");
            assert_eq!(text(&format!("SELECT quorum.wait('shop', '{position}', '1 ms')")), "0:0");
        }
        let state = "SELECT concat_ws(' ', channel, first_tick, last_tick, end_position, changes, segments, followers, \
                     database_version, delta_version) FROM quorum.channel_state";
        assert_eq!(text(state), "shop 1 0 0:0 0 1 0 1 0");
    }

    #[pg_test]
    fn followers_register_move_and_go() {
        run("SELECT quorum.create_channel('shop')");
        run("GRANT quorum_follower TO current_user; SET LOCAL ROLE quorum_follower");
        assert_eq!(text("SELECT quorum.register_follower('shop', 'cache', 'start', '1 day')"), "0:0");
        assert_eq!(text("SELECT quorum.register_follower('shop', 'cache')"), "0:0");
        assert_eq!(text("SELECT quorum.move_follower('shop', 'cache', 'now')"), "0:0");
        let state =
            "SELECT concat_ws(' ', followers, slowest_follower, slowest_tick) FROM quorum.channel_state";
        assert_eq!(text(state), "1 cache 0");
        let behind =
            "SELECT concat_ws(' ', name, position, lag_ticks, lag_bytes, lag_seconds) FROM quorum.followers";
        assert_eq!(text(behind), "cache 0:0 0 0 0");
        assert_eq!(text("SELECT quorum.drop_follower('shop', 'cache')::text"), "true");
        assert_eq!(text("SELECT quorum.drop_follower('shop', 'cache')::text"), "false");
    }

    #[pg_test]
    fn followers_that_are_not_seen_expire_with_an_event() {
        run("SELECT quorum.create_channel('shop'); SELECT quorum.register_follower('shop', 'cache', 'start', '1 hour');
             SELECT quorum.register_follower('shop', 'for-ever', 'start');
             UPDATE quorum.follower SET seen_at = seen_at - interval '2 hours'; SELECT quorum.expire_followers()");
        assert_eq!(text("SELECT string_agg(name, ' ') FROM quorum.follower"), "for-ever");
        let event = "SELECT concat_ws(' ', index, kind, details ->> 'follower') FROM quorum.event";
        assert_eq!(text(event), "-1 follower-expired cache");
    }

    #[pg_test]
    fn log_that_a_follower_has_not_read_is_dropped_only_by_force() {
        run("SELECT quorum.create_channel('shop')");
        let id = text("SELECT quorum.channel_id('shop')::text");
        run(&format!(
            "INSERT INTO quorum_log.batch_{id}_1 (last_tick, first_tick, epoch, confirmed, lowest_segment, cut_at, entries)
             VALUES (40, 1, 1, 40, 1, now(), ''); SELECT quorum.open_segment({id});
             SELECT quorum.register_follower('shop', 'cache', 'start')"
        ));
        let dropped = |asks: bool| {
            text(&format!(
                "SELECT coalesce(cardinality(quorum.drop_segments({id}, 1, 2, {asks}))::text, 'kept')"
            ))
        };
        assert_eq!(dropped(true), "kept");
        assert_eq!(dropped(false), "1");
        assert_eq!(
            text("SELECT kind || ' ' || (details ->> 'first-tick') FROM quorum.event"),
            "follower-overtaken 41"
        );
    }

    #[pg_test]
    fn a_late_answer_is_not_taken_for_that_to_the_next_request() {
        use crate::feed::shared::{Asking, State, answer, asked};
        // No database has this number, so nobody else answers.
        let database = 4_000_000_100;
        let late = {
            let _cancelled = Asking::new(database, 1, "").expect("there is room");
            asked(database).pop().expect("it is open")
        };
        let next = Asking::new(database, 1, "").expect("there is room");
        answer(late.0, &late.2, State::Done, 7);
        assert_eq!(next.answer().state, State::Asked);
        let (place, _, request) = asked(database).pop().expect("it is open");
        answer(place, &request, State::Done, 8);
        assert_eq!((next.answer().state, next.answer().tick), (State::Done, 8));
    }

    #[pg_test]
    fn of_many_events_of_a_database_and_of_the_cluster_the_newest_are_kept() {
        run("DELETE FROM quorum.event; INSERT INTO quorum.event (index, term, kind, message)
             SELECT i, 1, 'old', 'x' FROM generate_series(-10000, 10000) AS i WHERE i <> 0");
        run("SELECT quorum.record_feed_event('new', 'y', '{}')");
        run("SELECT quorum.trim_logs()");
        let kept = "SELECT format('%s below, from %s to %s; %s above, up to %s',
                        count(*) FILTER (WHERE index < 0), max(index) FILTER (WHERE index < 0), min(index),
                        count(*) FILTER (WHERE index > 0), max(index)) FROM quorum.event";
        assert_eq!(text(kept), "10000 below, from -2 to -10001; 10000 above, up to 10000");
        run("INSERT INTO quorum.event (index, term, kind, message) VALUES (10001, 1, 'new', 'z')");
        run("SELECT quorum.trim_logs()");
        assert_eq!(text(kept), "10000 below, from -2 to -10001; 10000 above, up to 10001");
    }

    #[pg_test]
    fn events_of_the_cluster_and_of_the_feed_do_not_meet() {
        run(
            r#"SELECT quorum.record_feed_event('a', 'first', '{}'), quorum.record_feed_event('b', 'second', '{}');
               SELECT quorum.apply_entry(1, 1, '{"event": {"kind": "c", "message": "third"}}')"#,
        );
        assert_eq!(
            text("SELECT string_agg(kind || index, ' ' ORDER BY index) FROM quorum.event"),
            "b-2 a-1 c1"
        );
    }

    #[pg_test]
    fn pruning_an_empty_channel_raises_its_version() {
        run("SELECT quorum.create_channel('shop')");
        assert_eq!(text("SELECT quorum.purge('shop', keep => 10)"), "0:0");
        assert_eq!(text("SELECT quorum.purge('shop', before => 'now')"), "0:0");
        assert_eq!(text("SELECT quorum.prune('shop')::text"), "2");
        assert_eq!(text("SELECT count(*)::text FROM quorum.changes('shop')"), "0");
    }

    #[pg_test]
    fn a_channel_made_anew_begins_above_the_old_one() {
        run("SELECT quorum.create_channel('shop')");
        let batches = text("SELECT batches::regclass::text FROM quorum.batch_segment");
        run(&format!(
            "INSERT INTO {batches} (last_tick, first_tick, epoch, confirmed, lowest_segment, cut_at, entries)
             VALUES (40, 1, 1, 0, 1, now(), '')"
        ));
        run("SELECT quorum.drop_channel('shop'); SELECT quorum.create_channel('shop')");
        let state = "SELECT concat_ws(' ', first_tick, last_tick, delta_version) FROM quorum.channel_state";
        assert_eq!(text(state), "42 41 0");
    }

    #[pg_test(error = "there is no channel \"nope\"")]
    fn unknown_channels_are_refused() {
        run("SELECT quorum.changes('nope')");
    }

    #[pg_test(error = "\"5:x\" is not a position in a channel")]
    fn nonsense_is_no_position() {
        run("SELECT quorum.create_channel('shop'); SELECT quorum.changes('shop', '5:x')");
    }

    #[pg_test(error = "position 5:1 of channel \"shop\" belongs to another history")]
    fn positions_of_another_history_are_refused() {
        run("SELECT quorum.create_channel('shop'); SELECT quorum.changes('shop', '5:1')");
    }

    #[pg_test(error = "position 1 of channel \"shop\" lies in the future")]
    fn positions_in_the_future_are_refused() {
        run("SELECT quorum.create_channel('shop'); SELECT quorum.read_log('shop', '1')");
    }

    #[pg_test(error = "limit must be at least 1")]
    fn a_limit_is_positive() {
        run("SELECT quorum.create_channel('shop'); SELECT quorum.changes('shop', 'start', 0)");
    }

    #[pg_test(error = "a timeout is 0 to 1 hour")]
    fn a_timeout_has_bounds() {
        run("SELECT quorum.create_channel('shop'); SELECT quorum.wait('shop', 'now', '-1 s')");
    }

    #[pg_test(error = "quorum.dump_start needs a transaction that keeps its snapshot")]
    fn a_copy_needs_one_snapshot() {
        run("SELECT quorum.create_channel('shop'); SELECT quorum.dump_start('shop')");
    }

    #[pg_test(error = "permission denied for function purge")]
    fn readers_do_not_purge() {
        run(
            "SELECT quorum.create_channel('shop'); SET LOCAL ROLE quorum_reader; SELECT quorum.purge('shop', keep => 0)",
        );
    }
}
