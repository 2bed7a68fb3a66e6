-- Channels that rest, and what they keep, as the replication interface has it (docs/replication-interface.md).

CREATE TABLE quorum.resting_table (
    relid oid PRIMARY KEY,
    channel integer NOT NULL REFERENCES quorum.channel ON DELETE CASCADE,
    columns smallint[],
    filter_sql text,
    old_image text NOT NULL,
    versions boolean NOT NULL,
    schema_version bigint
);
COMMENT ON TABLE quorum.resting_table IS 'What a stopped channel tracked, and will track again when it is started.';
COMMENT ON COLUMN quorum.resting_table.versions IS 'It was kept who wrote its rows last.';
COMMENT ON COLUMN quorum.resting_table.schema_version IS 'Its newest version when the channel was stopped; NULL: it was made later.';

-- All of them or none: nobody waits for one table because another one is busy.
CREATE FUNCTION quorum.lock_together(relations oid[], mode text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
    give_up timestamptz := clock_timestamp() + interval '15 seconds';
    relation regclass;
BEGIN
    LOOP
        BEGIN
            FOR relation IN SELECT c.oid::regclass FROM pg_class AS c WHERE c.oid = ANY (relations) ORDER BY c.oid LOOP
                EXECUTE format('LOCK TABLE %s IN %s MODE', relation, mode);
            END LOOP;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > give_up THEN
                RAISE EXCEPTION 'table % is busy: no lock on it could be had for 15 seconds', relation
                    USING ERRCODE = 'lock_not_available',
                          HINT = 'A transaction that uses it is still open (see pg_locks, pg_stat_activity). Try again when it is over.';
            END IF;
        END;
        PERFORM pg_sleep(0.05 + random() / 5);
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.lock_together(oid[], text) IS
    'Internal. Locks several tables at once without letting others queue behind; 55P03 after 15 seconds.';

CREATE FUNCTION quorum.stop_channel(channel text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    of integer := quorum.channel_id(stop_channel.channel);
    noted bigint;
    member record;
BEGIN
    -- Waits for those who track a table just now; whoever comes later waits for this.
    PERFORM FROM quorum.channel AS c WHERE c.id = of FOR UPDATE;
    UPDATE quorum.channel AS c SET stopped_at = clock_timestamp() WHERE c.id = of AND c.stopped_at IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- Waits for those who have written them.
    PERFORM quorum.lock_together(ARRAY(SELECT t.relid FROM quorum.tracked_table AS t WHERE t.channel = of), 'ACCESS EXCLUSIVE');
    FOR member IN SELECT t.relid, t.columns, t.filter_sql, t.old_image, t.schema_version,
                         EXISTS (SELECT FROM quorum.versioned_table AS v WHERE v.relid = t.relid) AS versions
                  FROM quorum.tracked_table AS t WHERE t.channel = of ORDER BY t.relid LOOP
        -- Puts the entry into the log that it is not tracked any more.
        PERFORM quorum.untrack(member.relid::regclass);
        noted := member.schema_version;
        INSERT INTO quorum.resting_table (relid, channel, columns, filter_sql, old_image, versions, schema_version)
        VALUES (member.relid, of, member.columns, member.filter_sql, member.old_image, member.versions, member.schema_version)
        -- Another stopped channel had it before.
        ON CONFLICT ON CONSTRAINT resting_table_pkey DO UPDATE
            SET channel = excluded.channel, columns = excluded.columns, filter_sql = excluded.filter_sql,
                old_image = excluded.old_image, versions = excluded.versions, schema_version = excluded.schema_version;
    END LOOP;
    -- It is about all of them; an entry is of one table.
    IF noted IS NOT NULL THEN
        PERFORM quorum.record_entry(of, noted, 'STOP');
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.stop_channel(text) IS
    'Stops capturing all tables of a channel, with an entry for each, until quorum.start_channel. What is in the log can be read on; no table can be tracked in it meanwhile. False: it was stopped already. Errors: 42704 no such channel, 55P03 a table is busy.';

CREATE FUNCTION quorum.start_channel(channel text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    of integer := quorum.channel_id(start_channel.channel);
    last bigint;
    entry bigint;
    names text[];
    member record;
BEGIN
    -- Everything that came before is in a batch then, so that the place of the gap is known. Not while the channel is
    -- locked: who makes the batch may need it.
    IF EXISTS (SELECT FROM quorum.resting_table AS r WHERE r.channel = of AND r.schema_version IS NOT NULL) THEN
        last := split_part(quorum.cut(start_channel.channel), ':', 2)::bigint;
    END IF;
    UPDATE quorum.channel AS c SET stopped_at = NULL WHERE c.id = of AND c.stopped_at IS NOT NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM quorum.lock_together(ARRAY(SELECT r.relid FROM quorum.resting_table AS r WHERE r.channel = of), 'SHARE ROW EXCLUSIVE');
    SELECT max(r.schema_version) INTO entry FROM quorum.resting_table AS r WHERE r.channel = of;
    IF entry IS NOT NULL THEN
        -- One entry is written that nobody may read: so whoever has the whole log up to the stop misses something too, and
        -- is told so.
        PERFORM quorum.record_entry(of, entry, 'UNTRACK');
        INSERT INTO quorum.channel_start AS s (channel, first_tick) VALUES (of, last + 2)
        ON CONFLICT (channel) DO UPDATE SET first_tick = greatest(s.first_tick, excluded.first_tick);
        UPDATE quorum.channel AS c SET database_version = c.database_version + 1, version_tick = last WHERE c.id = of;
        -- The first one that is read.
        PERFORM quorum.record_entry(of, entry, 'START');
    END IF;
    FOR member IN DELETE FROM quorum.resting_table AS r USING pg_class AS c
                  WHERE r.channel = of AND c.oid = r.relid
                    AND NOT EXISTS (SELECT FROM quorum.tracked_table AS t WHERE t.relid = r.relid)
                  RETURNING r.relid::regclass AS relation, r.columns, r.filter_sql, r.old_image, r.versions LOOP
        -- Columns may have gone meanwhile.
        SELECT array_agg(a.attname) INTO names FROM pg_attribute AS a
        WHERE a.attrelid = member.relation AND a.attnum = ANY (member.columns) AND NOT a.attisdropped;
        BEGIN
            -- No names would mean all columns, those too that were not to be captured.
            IF member.columns IS NOT NULL AND names IS NULL THEN
                RAISE EXCEPTION 'all columns that were captured were dropped' USING ERRCODE = 'undefined_column';
            END IF;
            PERFORM quorum.track(member.relation, start_channel.channel, names, member.filter_sql, member.old_image);
            IF member.versions THEN
                PERFORM quorum.keep_versions(member.relation);
            END IF;
        EXCEPTION WHEN OTHERS THEN
            RAISE EXCEPTION 'channel "%" cannot be started: table % cannot be tracked as it was: %', start_channel.channel,
                    member.relation, SQLERRM
                USING ERRCODE = SQLSTATE,
                      HINT = format('Make the table fit, or leave it out with SELECT quorum.untrack(%L), and start the channel again.', member.relation);
        END;
    END LOOP;
    -- Those that were dropped meanwhile, or have found another channel.
    DELETE FROM quorum.resting_table AS r WHERE r.channel = of;
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.start_channel(text) IS
    'Captures the tables of a stopped channel again, as they were captured before. What was in the log up to here is purged, and database_version grows: whoever reads on learns that something is missing, and copies the tables anew. False: it was not stopped. Errors: 42704 no such channel, 25006 on a standby, else as quorum.track and quorum.cut.';

CREATE FUNCTION quorum.databases() RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_agg(d.datname ORDER BY d.datname), '[]') FROM pg_database AS d WHERE d.datallowconn AND NOT d.datistemplate
$$;
COMMENT ON FUNCTION quorum.databases() IS 'Internal. The names of the databases that somebody may connect to.';

CREATE FUNCTION quorum.keep_log(channel text, rows bigint DEFAULT NULL, bytes bigint DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    of integer := quorum.channel_id(keep_log.channel);
BEGIN
    PERFORM quorum.require_input(coalesce(least(keep_log.rows, keep_log.bytes), 0) >= 0, 'what is to be kept cannot be negative');
    UPDATE quorum.channel AS c
    SET retain_rows = nullif(coalesce(keep_log.rows, c.retain_rows), 0),
        retain_bytes = nullif(coalesce(keep_log.bytes, c.retain_bytes), 0)
    WHERE c.id = of;
END
$$;
COMMENT ON FUNCTION quorum.keep_log(text, bigint, bigint) IS
    'How many changes and bytes of a channel''s log are kept at least; 0: no promise, NULL: as it is. Errors: 42704 no such channel, 22023 a negative number.';
