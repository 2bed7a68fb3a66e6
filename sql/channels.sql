-- Channels and their segments. What is tracked, and how, is in track.sql; who reads a channel, and how far, in feed.sql.
--
-- None of these tables is marked with pg_extension_config_dump, and the log's own tables are members of the extension:
-- a dump carries rows into another database, where the log of this one would mean nothing.

CREATE SCHEMA quorum_log;
COMMENT ON SCHEMA quorum_log IS 'pgquorum: the change log itself. Read it through quorum.changes or the feed.';

CREATE TABLE quorum.channel (
    id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'),
    old_image text NOT NULL DEFAULT 'key' CHECK (old_image IN ('none', 'key', 'full')),
    retain_age interval CHECK (retain_age >= interval '0'),
    retain_rows bigint CHECK (retain_rows >= 0),
    retain_bytes bigint CHECK (retain_bytes >= 0),
    cap_bytes bigint CHECK (cap_bytes > 0),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    database_version bigint NOT NULL DEFAULT 1,
    version_tick bigint NOT NULL DEFAULT 0,
    stopped_at timestamptz
);
COMMENT ON TABLE quorum.channel IS 'The channels: named sets of tables, each with an ordered log of its changes.';
COMMENT ON COLUMN quorum.channel.old_image IS 'What tables record of an old row unless track() says otherwise.';
COMMENT ON COLUMN quorum.channel.retain_age IS 'Changes are kept at least so long; NULL: no promise.';
COMMENT ON COLUMN quorum.channel.retain_rows IS 'At least so many changes are kept; NULL: no promise.';
COMMENT ON COLUMN quorum.channel.retain_bytes IS 'At least so many bytes of log are kept; NULL: no promise.';
COMMENT ON COLUMN quorum.channel.cap_bytes IS
    'Above so many bytes old log goes, whoever has not read it; NULL: followers may hold it without limit.';
COMMENT ON COLUMN quorum.channel.database_version IS 'Grows when the channel is pruned or imported again.';
COMMENT ON COLUMN quorum.channel.version_tick IS 'The tick at which database_version last grew; delta_version counts from it.';
COMMENT ON COLUMN quorum.channel.stopped_at IS 'Since when nothing is captured in it, by quorum.stop_channel; NULL: it is not stopped.';

CREATE TABLE quorum.tracked_table (
    relid oid PRIMARY KEY,
    channel integer NOT NULL REFERENCES quorum.channel,
    columns smallint[],
    filter text,
    filter_sql text,
    filter_columns smallint[],
    old_image text NOT NULL CHECK (old_image IN ('none', 'key', 'full')),
    schema_version bigint NOT NULL,
    tracked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE quorum.tracked_table IS 'The tables whose changes are captured; a partitioned one stands for all its partitions.';
COMMENT ON COLUMN quorum.tracked_table.columns IS 'Numbers (pg_attribute.attnum) of the captured columns; NULL: all, also those added later.';
COMMENT ON COLUMN quorum.tracked_table.filter IS 'Only rows for which this is true; parsed. NULL: all.';
COMMENT ON COLUMN quorum.tracked_table.filter_sql IS 'The filter as it was given.';
COMMENT ON COLUMN quorum.tracked_table.filter_columns IS 'Numbers of the columns that the filter looks at.';
COMMENT ON COLUMN quorum.tracked_table.schema_version IS 'The newest version; changes refer to the one that held when they were made.';

CREATE TABLE quorum.tracked_partition (
    relid oid PRIMARY KEY,
    root oid NOT NULL
);
CREATE INDEX ON quorum.tracked_partition (root);
COMMENT ON TABLE quorum.tracked_partition IS 'The present partitions of tracked partitioned tables, on all levels.';

CREATE TABLE quorum.schema_version (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    relid oid NOT NULL,
    channel integer NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    columns jsonb NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON quorum.schema_version (relid);
COMMENT ON TABLE quorum.schema_version IS 'What tracked tables looked like; a change names the version that its values belong to.';
COMMENT ON COLUMN quorum.schema_version.columns IS
    'The captured columns in the order of the values: name, type, type_oid, attnum, key (part of the key), category, base (the type below all domains).';

CREATE TABLE quorum.log_segment (
    channel integer NOT NULL REFERENCES quorum.channel,
    number integer NOT NULL,
    heap oid NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at timestamptz,
    closed_xid xid8,
    PRIMARY KEY (channel, number)
);
COMMENT ON TABLE quorum.log_segment IS 'The pieces of a channel''s log, oldest first. Writers use the one that is not closed; old ones are dropped whole.';
COMMENT ON COLUMN quorum.log_segment.heap IS 'The table quorum_log.log_<channel>_<number>.';
COMMENT ON COLUMN quorum.log_segment.closed_xid IS 'The transaction that closed it. Those that began to write before it end may still add to it.';

-- The log's tables belong to the extension: dumps leave them out, and they go when it goes.
CREATE FUNCTION quorum.own_table(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('ALTER EXTENSION pgquorum ADD TABLE %s', relation);
    EXECUTE format('REVOKE ALL ON TABLE %s FROM PUBLIC', relation);
END
$$;
COMMENT ON FUNCTION quorum.own_table(regclass) IS 'Internal. Makes a table of the log a member of the extension.';

CREATE FUNCTION quorum.open_segment(channel integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fresh integer;
    heap text;
BEGIN
    -- One at a time.
    PERFORM FROM quorum.channel AS c WHERE c.id = open_segment.channel FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no channel with the id %', channel USING ERRCODE = 'undefined_object';
    END IF;
    SELECT coalesce(max(s.number), 0) + 1 INTO fresh FROM quorum.log_segment AS s WHERE s.channel = open_segment.channel;
    heap := format('quorum_log.log_%s_%s', channel, fresh);
    -- Nothing is ever deleted or updated in it. Vacuum comes only to freeze, and must not shorten the table: its
    -- writers append at the end and count on it.
    EXECUTE format('CREATE TABLE %s (order_lsn bigint NOT NULL, xid xid8 NOT NULL, part integer NOT NULL, changes integer NOT NULL, '
                   'flags integer NOT NULL) WITH (autovacuum_enabled = off, vacuum_truncate = off, toast_tuple_target = 8160)', heap);
    -- In one step, so that no table for values stored elsewhere is made: chunks fit a page.
    EXECUTE format('ALTER TABLE %s ADD COLUMN data bytea NOT NULL, ALTER COLUMN data SET STORAGE PLAIN', heap);
    PERFORM quorum.own_table(heap::regclass);
    UPDATE quorum.log_segment AS s SET closed_at = clock_timestamp(), closed_xid = pg_current_xact_id()
    WHERE s.channel = open_segment.channel AND s.closed_at IS NULL;
    INSERT INTO quorum.log_segment (channel, number, heap) VALUES (open_segment.channel, fresh, heap::regclass);
    IF to_regprocedure('quorum.make_batch_table(integer, integer)') IS NOT NULL THEN
        PERFORM quorum.make_batch_table(channel, fresh);
    END IF;
    PERFORM quorum.forget_cached('quorum.log_segment'::regclass);
    RETURN fresh;
END
$$;
COMMENT ON FUNCTION quorum.open_segment(integer) IS
    'Internal. Closes the present segment of a channel''s log, opens the next one, and returns its number.';

CREATE FUNCTION quorum.current_segment(channel oid, OUT segments oid, OUT heap oid) RETURNS SETOF record
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'quorum.log_segment'::regclass::oid, s.heap
    FROM quorum.channel AS c LEFT JOIN quorum.log_segment AS s ON s.channel = c.id AND s.closed_at IS NULL
    WHERE c.id = current_segment.channel::integer
$$;
COMMENT ON FUNCTION quorum.current_segment(oid) IS 'Internal. The list of segments, and the table that a channel''s log grows in; no row: there is no such channel.';

CREATE FUNCTION quorum.create_channel(
    name text, old_image text DEFAULT 'key', retain_age interval DEFAULT NULL, retain_rows bigint DEFAULT NULL,
    retain_bytes bigint DEFAULT NULL, cap_bytes bigint DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    created integer;
BEGIN
    PERFORM quorum.require_input(create_channel.name ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$',
        format('%s cannot be the name of a channel: it takes 1 to 63 letters, digits, ".", "_" and "-", the first a letter or "_"',
               coalesce(quote_literal(create_channel.name), 'NULL')));
    PERFORM quorum.require_input(create_channel.old_image IN ('none', 'key', 'full'),
        format('old_image is none, key or full, not %s', coalesce(quote_literal(create_channel.old_image), 'NULL')));
    PERFORM quorum.require_input(coalesce(least(retain_rows, retain_bytes, cap_bytes - 1), 0) >= 0
            AND coalesce(retain_age, interval '0') >= interval '0',
        'what is to be retained cannot be negative, and cap_bytes must be above 0');
    INSERT INTO quorum.channel (name, old_image, retain_age, retain_rows, retain_bytes, cap_bytes)
    VALUES (create_channel.name, create_channel.old_image, create_channel.retain_age, create_channel.retain_rows,
            create_channel.retain_bytes, create_channel.cap_bytes)
    ON CONFLICT DO NOTHING RETURNING id INTO created;
    IF created IS NULL THEN
        RAISE EXCEPTION 'channel "%" exists', name USING ERRCODE = 'duplicate_object';
    END IF;
    PERFORM quorum.open_segment(created);
    RETURN created;
END
$$;
COMMENT ON FUNCTION quorum.create_channel(text, text, interval, bigint, bigint, bigint) IS
    'Creates a channel and returns its id. old_image: what its tables record of old rows (none, key, full). retain_…: what is kept at least; cap_bytes: above it old log goes, whoever has not read it. Errors: 42710 it exists, 22023 bad arguments.';

CREATE FUNCTION quorum.channel_id(name text) RETURNS integer
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result integer;
BEGIN
    SELECT c.id INTO result FROM quorum.channel AS c WHERE c.name = channel_id.name;
    IF result IS NULL THEN
        RAISE EXCEPTION 'there is no channel %', coalesce(quote_ident(name), 'NULL')
            USING ERRCODE = 'undefined_object', HINT = 'SELECT * FROM quorum.channels lists them; quorum.create_channel makes one.';
    END IF;
    RETURN result;
END
$$;
COMMENT ON FUNCTION quorum.channel_id(text) IS 'The id of a channel. Error 42704: there is none of that name.';

CREATE FUNCTION quorum.drop_channel(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    dropped integer := quorum.channel_id(name);
    member record;
BEGIN
    PERFORM FROM quorum.channel AS c WHERE c.id = dropped FOR UPDATE;
    FOR member IN SELECT t.relid FROM quorum.tracked_table AS t WHERE t.channel = dropped ORDER BY t.relid LOOP
        PERFORM quorum.untrack(member.relid::regclass);
    END LOOP;
    DELETE FROM quorum.schema_version AS v WHERE v.channel = dropped;
    DELETE FROM quorum.log_segment AS s WHERE s.channel = dropped;
    FOR member IN SELECT c.oid::regclass AS relation FROM pg_class AS c
                  WHERE c.relnamespace = 'quorum_log'::regnamespace AND c.relkind = 'r'
                    AND c.relname ~ format('^(log|batch)_%s_[0-9]+$', dropped) LOOP
        EXECUTE format('ALTER EXTENSION pgquorum DROP TABLE %s', member.relation);
        EXECUTE format('DROP TABLE %s', member.relation);
    END LOOP;
    DELETE FROM quorum.channel AS c WHERE c.id = dropped;
    PERFORM quorum.forget_cached('quorum.log_segment'::regclass);
END
$$;
COMMENT ON FUNCTION quorum.drop_channel(text) IS
    'Drops a channel with its log, and stops capturing its tables. Error 42704: there is none of that name.';
