-- Runs last: comments of the functions written in Rust, all rights (nothing is for PUBLIC), and what would fire while
-- the rest is made.

COMMENT ON SCHEMA quorum IS 'pgquorum: the cluster''s state and the lease of this server.';
COMMENT ON FUNCTION quorum.lease_renew(bigint, integer, bigint) IS
    'Grants or renews the lease of an epoch for so many milliseconds after sent_at_ns (CLOCK_BOOTTIME, nanoseconds; NULL: now) and returns the milliseconds that remain. Within an epoch a lease never gets shorter. Errors: 25006 in recovery, 55000 the epoch is old, revoked or not opened, 22023 bad arguments.';
COMMENT ON FUNCTION quorum.lease_revoke(bigint, text) IS
    'Ends the lease of all epochs up to this one now, and refuses to renew them until the server restarts. leader_hint: where the leader is; NULL leaves the hint. In recovery only the hint is set.';
COMMENT ON FUNCTION quorum.set_leader_hint(text) IS
    'Where the leader is, in words (at most 200 bytes), for the hint that a refused writer gets; NULL: unknown.';
COMMENT ON FUNCTION quorum.lease() IS
    'The lease of this server: epoch (0: none since the start), valid now, milliseconds that remain, fenced: ordinary writers are being refused now, highest revoked epoch.';
COMMENT ON FUNCTION quorum.admit_clients() IS
    'Lets clients log in on a server that was a primary when it stopped, until it is started again. The sidecar calls it when the server has replayed the beginning of a later epoch that is open.';
COMMENT ON FUNCTION quorum.admits_clients() IS
    'May clients log in on this server? False while it is held after a restart because it was the primary.';
COMMENT ON FUNCTION quorum.weak_commits() IS
    'Commits, since this server started, that pgquorum.allow_weak_commits let return before the cluster''s standbys had them: by database and role (NULL: dropped since; in the last row all that there was no room for).';
COMMENT ON FUNCTION quorum.is_leader() IS
    'Does this server accept writes now? Not in recovery and, with the fence on, a valid lease.';
COMMENT ON FUNCTION quorum.wal_position() IS
    'Where this server''s WAL stands. Primary: timeline and flush_lsn, the rest NULL. In recovery: received (NULL: nothing streamed since the start) and replayed, flush_lsn and timeline being those of the one further on.';

COMMENT ON FUNCTION quorum.explain_readonly(text) IS
    'Is a statement proven read-only, and if not, why? It is examined under the caller''s search_path, not run. Verdicts: read-only, unproven (may be observed), refused (writes, or belongs to one server or session). Errors: those of the statement, 22023 not one statement.';

COMMENT ON FUNCTION quorum.parse_filter(oid, bytea) IS
    'Internal. Parses and checks a row filter, in the encoding of the database. Errors: 42601 it is no condition, 0A000 it is none that filters take.';
COMMENT ON FUNCTION quorum.filter_holds(oid, text) IS
    'Internal. Do the columns that a stored filter looks at still have the types that it was parsed with?';
COMMENT ON FUNCTION quorum.record_entry(integer, bigint, text) IS
    'Internal. Puts an entry about a tracked table into the log, with the text of the statement that runs.';
COMMENT ON FUNCTION quorum.record_index(integer, bigint, text, bytea) IS
    'Internal. Puts an entry about an index of a tracked table into the log: which one it is, in the encoding of the database.';
COMMENT ON FUNCTION quorum.next_is_own() IS 'Internal. The next utility statement is pgquorum''s own, which its event triggers let pass.';
COMMENT ON FUNCTION quorum.statement_is_own() IS 'Internal. Is the utility statement that runs now pgquorum''s own?';
COMMENT ON FUNCTION quorum.forget_cached(oid) IS 'Internal. Tells all sessions to look up anew what they keep about a table.';

REVOKE ALL ON SCHEMA quorum, quorum_log FROM PUBLIC;
REVOKE ALL ON TABLE quorum.channel, quorum.tracked_table, quorum.tracked_partition, quorum.schema_version,
    quorum.log_segment, quorum.channels, quorum.tracked_tables, quorum.capture_fault, quorum.known_fault,
    quorum.tracked_index, quorum.present_index FROM PUBLIC;
REVOKE ALL ON TABLE quorum.origin, quorum.versioned_table, quorum.row_version, quorum.versioned_tables FROM PUBLIC;
REVOKE ALL ON TABLE quorum.cluster_log, quorum.node, quorum.config, quorum.db_config, quorum.event,
    quorum.lost_transactions, quorum.leadership, quorum.heartbeat, quorum.readonly_statement, quorum.statements_counter,
    quorum.readonly_statements FROM PUBLIC;

-- Every function of the extension, found and not listed: one forgotten in a list would be open to everybody.
DO $$
DECLARE
    member record;
BEGIN
    FOR member IN SELECT d.objid::pg_catalog.regprocedure AS signature
                  FROM pg_catalog.pg_depend AS d JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
                  WHERE e.extname = 'pgquorum' AND d.deptype = 'e'
                    AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                    AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', member.signature);
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA quorum TO quorum_reader, quorum_admin;
GRANT SELECT ON TABLE quorum.cluster_log, quorum.node, quorum.config, quorum.db_config, quorum.event,
    quorum.lost_transactions, quorum.leadership, quorum.heartbeat TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.applied_index(), quorum.leader(), quorum.map(), quorum.info(), quorum.lease(),
    quorum.is_leader(), quorum.wal_position(), quorum.weak_commits(),
    quorum.admits_clients() TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.lease_renew(bigint, integer, bigint), quorum.lease_revoke(bigint, text),
    quorum.admit_clients(), quorum.set_leader_hint(text), quorum.open_epoch(bigint, bigint, integer, pg_lsn, integer, bigint[]),
    quorum.apply_entry(bigint, bigint, jsonb), quorum.apply_snapshot(bigint, bigint, jsonb) TO quorum_admin;

-- Whoever may track a table reads it through the log: administrators only. Readers see what there is.
GRANT EXECUTE ON FUNCTION quorum.explain_readonly(text) TO quorum_reader, quorum_admin;
GRANT SELECT ON TABLE quorum.channel, quorum.schema_version, quorum.channels, quorum.tracked_tables TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.channel_id(text) TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.create_channel(text, text, interval, bigint, bigint, bigint), quorum.drop_channel(text),
    quorum.track(regclass, text, text[], text, text), quorum.untrack(regclass) TO quorum_admin;
DO $$
BEGIN
    IF pg_catalog.current_setting('server_version_num')::integer >= 150000 THEN
        EXECUTE 'GRANT SET ON PARAMETER pgquorum.origin, pgquorum.origin_commit_time TO quorum_admin';
    END IF;
END
$$;

-- The feed: comments of its functions in Rust.
COMMENT ON FUNCTION quorum.read_log(text, text, integer) IS
    'The log of a channel after a position, for programs that decode it: log rows in the order of their ticks. A row holds the ends of the changes first_tick to last_tick; where none ends, first_tick is the one under way and last_tick one below. When the position lies inside a transaction, that one''s first row and the row in which the change at the position ends come first. Stops when max_bytes were given and one change is complete. Errors: 42704 no such channel, 22023 not a position, PQ001 purged, PQ002 of another history, PQ003 in the future, XX001 a damaged row.';
COMMENT ON FUNCTION quorum.read_packed(text, text, integer) IS
    'The log rows of quorum.read_log, many in a value: for programs that read much, with take_row of the crate pgquorum-change. max_bytes counts what is said of the rows, too. Call it in the list of a SELECT, so that rows go to the client as they are read. Errors: as quorum.read_log.';
COMMENT ON FUNCTION quorum.changes(text, text, integer, text[]) IS
    'The changes of a channel after a position, at most so many, optionally only of some tables. To go on, give the position of the last row. key: the row, as it was before an update or delete; new lacks the columns in unchanged; sql: the statement of a ddl. Errors: as quorum.read_log; 42P01 the channel never had such a table.';
COMMENT ON FUNCTION quorum.wait(text, text, interval) IS
    'Waits until a channel has changes after a position, at most for the timeout, and returns the position of its end then. Errors: as quorum.read_log.';
COMMENT ON FUNCTION quorum.cut(text) IS
    'Has a batch cut now and returns the position of the channel''s end; all transactions that committed before the call are in it. Errors: 42704 no such channel, 25006 on a standby, 55000 it could not be cut.';
COMMENT ON FUNCTION quorum.dump_start(text) IS
    'The position of a copy that is made in this transaction, which must be REPEATABLE READ; as its first statement. Errors: 25000 it is not, 25006 on a standby, PQ004 the snapshot is too old (begin again), else as quorum.cut.';
COMMENT ON FUNCTION quorum.find_position(text, text) IS 'Checks a position and gives it as epoch and tick. Errors: as quorum.read_log.';
COMMENT ON FUNCTION quorum.find_position_now(text, text) IS
    'Internal. As quorum.find_position, and whatever the caller''s snapshot sees: what an old one still shows may have been dropped.';
COMMENT ON FUNCTION quorum.newest_tick(integer) IS 'Internal. The newest tick of a channel now, shown already or not; NULL: it has no batch.';
COMMENT ON FUNCTION quorum.channel_ends(integer) IS
    'What can be read of a channel on this server, by its id; no row: it does not exist. quorum.channel_state shows it with more.';
COMMENT ON FUNCTION quorum.start_cutter() IS 'Internal. Lets a worker be started for this database when the transaction commits.';

-- One row: else the planner expects a thousand, and compiles for them.
ALTER FUNCTION quorum.channel_ends(integer) ROWS 1;
ALTER FUNCTION quorum.find_position(text, text) ROWS 1;
ALTER FUNCTION quorum.find_position_now(text, text) ROWS 1;

REVOKE ALL ON SCHEMA quorum_log FROM PUBLIC;
GRANT USAGE ON SCHEMA quorum TO quorum_follower;
GRANT quorum_reader TO quorum_follower;
GRANT SELECT ON TABLE quorum.channel_state, quorum.channel_epoch, quorum.follower, quorum.followers, quorum.retired_channel
    TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.read_log(text, text, integer), quorum.read_packed(text, text, integer),
    quorum.changes(text, text, integer, text[]), quorum.wait(text, text, interval), quorum.find_position(text, text), quorum.channel_ends(integer), quorum.dump_start(text),
    quorum.unread_since(integer, bigint)
    TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.register_follower(text, text, text, interval), quorum.move_follower(text, text, text),
    quorum.drop_follower(text, text) TO quorum_follower, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.cut(text), quorum.purge(text, bigint, text), quorum.prune(text) TO quorum_admin;

-- Versions of rows: comments of the functions in Rust.
COMMENT ON FUNCTION quorum.version_of_key(oid, uuid) IS
    'Internal. The version of a row of a table, by quorum.key_number of its key. No row: none is known.';
COMMENT ON FUNCTION quorum.judge_write(oid, uuid, bigint, bytea, bytea) IS 'Internal. quorum.who_wins without its comforts.';
COMMENT ON FUNCTION quorum.origin_number(bytea) IS
    'The number of an origin, by its name in UTF-8, which gets one if it has none. Others that need a new one wait until the transaction ends, so give it one in a transaction of its own. Error 54000: there are no more numbers.';
ALTER FUNCTION quorum.version_of_key(oid, uuid) ROWS 1;

GRANT SELECT ON TABLE quorum.origin, quorum.versioned_tables TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.row_version_of(regclass, jsonb), quorum.key_number(bytea[]),
    quorum.who_wins(regclass, jsonb, timestamptz, text, text) TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.keep_versions(regclass), quorum.drop_versions(regclass),
    quorum.origin_number(bytea) TO quorum_admin;

-- Learned statements: comments of the functions in Rust.
COMMENT ON FUNCTION quorum.statement_hash(text) IS
    'The hash of a statement''s normalised text (literals replaced, case and blanks folded, comments dropped), as 16 hexadecimal digits. docs/statement-hash.md says how it is computed elsewhere.';
COMMENT ON FUNCTION quorum.served_statements() IS
    'The hashes of the statements of this database that can be sent to a standby, sorted: those that are known to write nothing under every search_path under which they are known, without what this server knows better.';
COMMENT ON FUNCTION quorum.statements_state() IS
    'A short text that changes whenever quorum.served_statements() may give something else on this server. To be asked for before that.';
COMMENT ON FUNCTION quorum.take_learned(integer) IS
    'On a standby: what was learned there that the leader does not know, at most so many statements, for quorum.merge_statements on the leader. It is taken to be handed over. On a primary nothing. Errors: 22023 the number is not positive.';
COMMENT ON FUNCTION quorum.mark_unsent() IS
    'What quorum.take_learned has given may not have arrived: it gives it again. Counters that were under way are lost.';
COMMENT ON FUNCTION quorum.statements_here() IS 'Internal. What this server has counted that the table does not have yet.';
COMMENT ON FUNCTION quorum.unchanged_since(bigint, oid[], boolean, bigint) IS
    'Internal. Is it certain that nothing on which a verdict rests was changed after a WAL position?';
COMMENT ON FUNCTION quorum.forget_here(bigint) IS 'Internal. Forgets what is in this server''s memory, of one hash or of all.';
ALTER FUNCTION quorum.statements_here() ROWS 1000;

GRANT SELECT ON TABLE quorum.readonly_statements TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.statement_hash(text), quorum.served_statements(), quorum.statements_state(),
    quorum.statements_here() TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.take_learned(integer), quorum.mark_unsent(), quorum.merge_statements(jsonb),
    quorum.forget_statements(text) TO quorum_admin;

-- Following another cluster: comments of the functions in Rust. They write into whatever tables a subscription names.
COMMENT ON FUNCTION quorum.apply(integer, bytea, text) IS
    'Applies whole frames P and R of the source''s binary stream in this transaction, with the new position; an empty batch tells where the subscription is. only: a table, as schema.table, that is brought to where the others are. in_transaction: it cannot be committed yet. one_by_one: commit after each transaction of the source. Errors: PQ010 unknown schema version (the detail), PQ012 one by one, PQ013 the frames do not follow, XX001 damaged, 42704, 55000, 25001, 25006.';
COMMENT ON FUNCTION quorum.retry_rejected(bigint) IS
    'Tries a rejected change again, as it came, and says what happened: applied, or why not. Errors: 42704 there is none of this id, 25001, 25006, PQ012.';
ALTER FUNCTION quorum.apply(integer, bytea, text) SECURITY DEFINER;
ALTER FUNCTION quorum.apply(integer, bytea, text) SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION quorum.apply(integer, bytea, text) ROWS 1;
ALTER FUNCTION quorum.retry_rejected(bigint) SECURITY DEFINER;
ALTER FUNCTION quorum.retry_rejected(bigint) SET search_path = pg_catalog, pg_temp;

-- Whoever could call these could do whatever any owner of a table can.
COMMENT ON FUNCTION quorum.copy_as_owner(oid) IS
    'Internal. The next statement of this session, if it is a COPY FROM, has the rights of a table''s owner and no more. Error 42P01: there is no such table.';
COMMENT ON FUNCTION quorum.run_as_owner(oid, text) IS
    'Internal. Runs a statement with the rights of a table''s owner and no more. Errors: 42P01 there is no such table, and those of the statement.';

COMMENT ON FUNCTION quorum.lock_sequence(oid) IS
    'Internal. Keeps others from taking numbers from a sequence until the transaction ends. Errors: 42809 it is none, 55P03 a transaction that used it stays open.';
ALTER FUNCTION quorum.lock_sequence(oid) SET lock_timeout = '5s';

REVOKE ALL ON TABLE quorum.identity, quorum.subscription, quorum.subscription_status, quorum.subscription_position,
    quorum.subscription_table, quorum.subscription_schema, quorum.conflict_count, quorum.rejected_change,
    quorum.subscription_state, quorum.subscription_tables, quorum.rejected_changes, quorum.conflicts FROM PUBLIC;
-- quorum.subscription itself is for nobody: it holds secrets.
GRANT SELECT ON TABLE quorum.subscription_state, quorum.subscription_tables, quorum.rejected_changes, quorum.conflicts
    TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.origin_name(), quorum.channel_sequences(text) TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.advance_sequences(text, bigint, jsonb) TO quorum_admin;
GRANT EXECUTE ON FUNCTION
    quorum.set_origin_name(text), quorum.subscription_id(text),
    quorum.subscribe(text, text[], text, text, text[], text, text, text, text, text, boolean, integer, text, text, text, jsonb),
    quorum.alter_subscription(text, text[], text[], text, text, text, boolean, integer, text, text, text, jsonb),
    quorum.set_table_policy(text, text, text), quorum.unsubscribe(text), quorum.enable_subscription(text, boolean),
    quorum.resume_table(text, text, boolean), quorum.retry_rejected(bigint), quorum.drop_rejected(bigint),
    quorum.subscription_tables_found(integer, text, jsonb, bigint, bigint), quorum.add_schemas(integer, jsonb),
    quorum.apply(integer, bytea, text), quorum.table_copied(integer, text, text, bigint, bigint, bigint, bigint),
    quorum.copy_plan(integer, text, text, text[]), quorum.report_subscription(integer, text, text, text, bigint, bigint),
    quorum.see_change_size(integer, bigint),
    quorum.report_table(integer, text, text, bigint, bigint, text, text, text)
    TO quorum_admin;

-- The other direction. quorum.publication itself is for nobody: it holds secrets.
REVOKE ALL ON TABLE quorum.publication, quorum.publication_status, quorum.publications FROM PUBLIC;
GRANT SELECT ON TABLE quorum.publications TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.publications_state(text) TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION
    quorum.publish(text, text[], text, text, text[], jsonb, text, text, text, text, text, boolean, integer, text, text, text, text[], text, text, text),
    quorum.alter_publication(text, text[], text, text, text, text[], text, text, text), quorum.unpublish(text, boolean),
    quorum.publication_id(text), quorum.report_publication(integer, text, text, text, integer, jsonb), quorum.publication_ended(integer)
    TO quorum_admin;

-- The delta interface.
REVOKE ALL ON TABLE quorum.channel_count, quorum.subscription_version, quorum.sync_request FROM PUBLIC;
GRANT SELECT ON TABLE quorum.channel_count, quorum.subscription_version TO quorum_reader, quorum_admin;
-- Results may hold rows of tables that a reader must not see.
GRANT SELECT ON TABLE quorum.sync_request TO quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.begin_sync(text, boolean, interval, boolean), quorum.end_sync(bigint, jsonb, text, text),
    quorum.sync_outcome(bigint) TO quorum_admin;
GRANT EXECUTE ON PROCEDURE quorum.await_sync(bigint, jsonb), quorum.sync(text, interval, boolean, jsonb), quorum.sync_full(interval)
    TO quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.delta_state(text, text) TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.flush_caches(text), quorum.count_import(text, text), quorum.reload(text), quorum.confirm_applied(text),
    quorum.wake_subscription(text), quorum.rest_subscription(text), quorum.reset_config_versions(), quorum.delta_outcome(text, bigint, bigint, integer), quorum.end_load(integer),
    quorum.begin_load(integer, bigint, bigint), quorum.see_source(integer, bigint, bigint) TO quorum_admin;

-- Who the neighbours are may be seen; changes go through the sidecar, which checks them and tells the neighbours.
REVOKE ALL ON TABLE quorum.neighbour_self, quorum.neighbour_route, quorum.neighbour, quorum.neighbour_table FROM PUBLIC;
GRANT SELECT ON TABLE quorum.neighbour_route, quorum.neighbour, quorum.neighbour_table TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.neighbours() TO quorum_reader, quorum_admin;

-- The applier of the replication interface. quorum.applier itself is for nobody: it holds a password.
COMMENT ON FUNCTION quorum.applier_write(oid, text, text[]) IS
    'Internal. Runs a statement that writes into a table, with the rights of its owner; the lines are its $1. Errors: 42P01 there is no such table, else its own.';
REVOKE ALL ON TABLE quorum.applier, quorum.applier_position, quorum.applier_status FROM PUBLIC;
GRANT EXECUTE ON FUNCTION quorum.applier_show() TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.applier_configure(jsonb, text), quorum.applier_start(numeric, boolean), quorum.applier_stop(),
    quorum.applier_forget() TO quorum_admin;
-- The replication interface. What restores tables and rows is for the sidecar alone: it writes whatever table is named.
REVOKE ALL ON TABLE quorum.resting_table FROM PUBLIC;
GRANT SELECT ON TABLE quorum.resting_table TO quorum_reader, quorum_admin;
GRANT EXECUTE ON FUNCTION quorum.stop_channel(text), quorum.start_channel(text), quorum.keep_log(text, bigint, bigint) TO quorum_admin;

CREATE EVENT TRIGGER pgquorum_ddl ON ddl_command_end EXECUTE FUNCTION quorum.after_ddl();
ALTER EVENT TRIGGER pgquorum_ddl ENABLE ALWAYS;
CREATE EVENT TRIGGER pgquorum_drop ON sql_drop EXECUTE FUNCTION quorum.after_drop();
ALTER EVENT TRIGGER pgquorum_drop ENABLE ALWAYS;
