-- Versions of what this database has of the channels that it follows, and counts of loads and cache flushes: what the delta
-- interface shows. docs/delta-interface.md says what they mean. Who may do what is in grants.sql.

CREATE TABLE quorum.channel_count (
    channel text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('DATA', 'ATTRIBUTES_AND_DATA', 'SUGGEST', 'RECOMMENDATION', 'RANKING',
                                       'CUSTOMER_SPECIFIC_PRICING', 'GEO', 'CACHE_FLUSH')),
    count bigint NOT NULL,
    last_at timestamptz NOT NULL,
    PRIMARY KEY (channel, kind)
) WITH (fillfactor = 50);
COMMENT ON TABLE quorum.channel_count IS
    'How often a channel, of this database or one that it follows, was loaded anew, and its caches flushed. By name: a channel that is made again goes on counting.';

CREATE TABLE quorum.subscription_version (
    subscription integer PRIMARY KEY REFERENCES quorum.subscription,
    database_version bigint,
    version_tick bigint,
    loading boolean NOT NULL,
    load_version bigint,
    load_tick bigint,
    rejected_before bigint NOT NULL DEFAULT 0,
    stopped_before bigint NOT NULL DEFAULT 0,
    config_version bigint NOT NULL DEFAULT 0,
    flushed_in bigint,
    CHECK ((database_version IS NULL) = (version_tick IS NULL) AND (load_version IS NULL) = (load_tick IS NULL))
) WITH (fillfactor = 50);
COMMENT ON TABLE quorum.subscription_version IS 'Which version of the source''s channel a subscription has.';
COMMENT ON COLUMN quorum.subscription_version.database_version IS 'That of the source when its tables were copied; NULL: they were not yet.';
COMMENT ON COLUMN quorum.subscription_version.version_tick IS 'The source''s tick at which that version began: delta_version counts from it.';
COMMENT ON COLUMN quorum.subscription_version.loading IS 'All tables are being copied; load_version is that of the copy, once it was begun.';
COMMENT ON COLUMN quorum.subscription_version.rejected_before IS 'How many changes had been rejected when that was done, and tables stopped by conflicts.';
COMMENT ON COLUMN quorum.subscription_version.config_version IS 'How often the description of the source''s tables was fetched; 0: it is to be fetched anew.';
COMMENT ON COLUMN quorum.subscription_version.flushed_in IS 'The source''s transaction that flushed caches last.';

CREATE FUNCTION quorum.count_kind(channel text, kind text) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO quorum.channel_count AS n (channel, kind, count, last_at)
    VALUES (count_kind.channel, count_kind.kind, 1, clock_timestamp())
    ON CONFLICT ON CONSTRAINT channel_count_pkey DO UPDATE SET count = n.count + 1, last_at = excluded.last_at
    RETURNING n.count
$$;
COMMENT ON FUNCTION quorum.count_kind(text, text) IS 'Internal. Counts a load or a flush of a channel, and returns how many there were.';

CREATE FUNCTION quorum.delta_subscription(channel text) RETURNS integer
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result integer;
    others integer;
BEGIN
    SELECT s.id, count(*) OVER () INTO result, others FROM quorum.subscription AS s
    WHERE s.channel = delta_subscription.channel ORDER BY s.name <> s.channel, s.id LIMIT 1;
    PERFORM quorum.require_input(coalesce(others, 1) = 1
            OR EXISTS (SELECT FROM quorum.subscription AS s WHERE s.id = result AND s.name = s.channel),
        format('several subscriptions follow a channel %s, and none of them has its name: say which is meant', quote_ident(delta_subscription.channel)));
    RETURN result;
END
$$;
COMMENT ON FUNCTION quorum.delta_subscription(text) IS
    'Internal. The subscription by which this database follows a channel of this name; NULL: it does not. Error 22023: there are several, and none has the channel''s name.';

CREATE FUNCTION quorum.count_import(channel text, kind text DEFAULT 'DATA') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.require_input(count_import.kind IN ('DATA', 'ATTRIBUTES_AND_DATA', 'SUGGEST', 'RECOMMENDATION', 'RANKING',
                                                       'CUSTOMER_SPECIFIC_PRICING', 'GEO'),
        format('%s is no kind of import: DATA, ATTRIBUTES_AND_DATA, SUGGEST, RECOMMENDATION, RANKING, CUSTOMER_SPECIFIC_PRICING or GEO',
               coalesce(quote_literal(count_import.kind), 'NULL')));
    IF NOT EXISTS (SELECT FROM quorum.subscription AS s WHERE s.channel = count_import.channel) THEN
        PERFORM quorum.channel_id(count_import.channel);
    END IF;
    RETURN quorum.count_kind(count_import.channel, count_import.kind);
END
$$;
COMMENT ON FUNCTION quorum.count_import(text, text) IS
    'Counts an import that somebody has made into the tables of a channel, and returns how many of this kind there were. Loads of whole subscriptions are counted by themselves, as DATA. Errors: 42704 no such channel, 22023 no such kind.';

CREATE FUNCTION quorum.flush_caches(channel text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    of integer;
    member record;
BEGIN
    -- What is only followed here has no log here: its caches in this database are told alone.
    IF NOT EXISTS (SELECT FROM quorum.subscription AS s WHERE s.channel = flush_caches.channel)
       OR EXISTS (SELECT FROM quorum.channel AS c WHERE c.name = flush_caches.channel) THEN
        of := quorum.channel_id(flush_caches.channel);
        -- One for each table: whoever reads some of them only is told, too.
        FOR member IN SELECT t.schema_version FROM quorum.tracked_table AS t WHERE t.channel = of ORDER BY t.relid LOOP
            PERFORM quorum.record_entry(of, member.schema_version, 'FLUSH CACHES');
        END LOOP;
    END IF;
    PERFORM pg_notify('quorum_flush_caches', flush_caches.channel);
    RETURN quorum.count_kind(flush_caches.channel, 'CACHE_FLUSH');
END
$$;
COMMENT ON FUNCTION quorum.flush_caches(text) IS
    'Tells everybody who reads a channel to drop what was cached of it: an entry ''ddl'' with the tag FLUSH CACHES for each of its tables, in its place among the changes, and a NOTIFY quorum_flush_caches here and in databases that follow it. Returns how many flushes there were. Error 42704: no such channel.';

CREATE FUNCTION quorum.caches_flushed(subscription integer, transaction bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- One transaction of the source has an entry for each table.
    UPDATE quorum.subscription_version AS v SET flushed_in = caches_flushed.transaction
    WHERE v.subscription = caches_flushed.subscription AND v.flushed_in IS DISTINCT FROM caches_flushed.transaction;
    IF FOUND THEN
        PERFORM quorum.count_kind(s.channel, 'CACHE_FLUSH'), pg_notify('quorum_flush_caches', s.channel)
        FROM quorum.subscription AS s WHERE s.id = caches_flushed.subscription;
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.caches_flushed(integer, bigint) IS 'Internal. A transaction of the source has flushed caches: counts it, and tells those who listen here.';

CREATE FUNCTION quorum.end_load(subscription integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE quorum.subscription_version AS v
    SET loading = false, database_version = v.load_version, version_tick = v.load_tick, load_version = NULL, load_tick = NULL,
        rejected_before = (SELECT coalesce(sum(c.count), 0) FROM quorum.conflict_count AS c
                           WHERE c.subscription = v.subscription AND c.resolution = 'rejected'),
        stopped_before = (SELECT coalesce(sum(c.count), 0) FROM quorum.conflict_count AS c
                          WHERE c.subscription = v.subscription AND c.resolution = 'stopped')
    WHERE v.subscription = end_load.subscription AND v.loading AND v.load_version IS NOT NULL
      AND EXISTS (SELECT FROM quorum.subscription_position AS p WHERE p.subscription = v.subscription AND p.tick IS NOT NULL)
      AND NOT EXISTS (SELECT FROM quorum.subscription_table AS t WHERE t.subscription = v.subscription AND t.state = 'copy');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM quorum.count_kind(s.channel, 'DATA') FROM quorum.subscription AS s WHERE s.id = end_load.subscription;
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.end_load(integer) IS
    'Counts a load of a whole subscription, if one was under way and no table is left to be copied. True: it is done.';

CREATE FUNCTION quorum.begin_load(subscription integer, database_version bigint, version_tick bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    -- A load that goes on after it was broken off has tables of the version that it began with.
    UPDATE quorum.subscription_version AS v
    SET load_version = begin_load.database_version, load_tick = begin_load.version_tick
    WHERE v.subscription = begin_load.subscription AND v.loading AND v.load_version IS NULL
$$;
COMMENT ON FUNCTION quorum.begin_load(integer, bigint, bigint) IS 'The version of the source in the snapshot from which tables are copied now.';

CREATE FUNCTION quorum.see_source(subscription integer, database_version bigint, version_tick bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s quorum.subscription := quorum.require_subscription(see_source.subscription);
    loads boolean := s.copy <> 'none' AND (SELECT p.tick IS NULL FROM quorum.subscription_position AS p WHERE p.subscription = s.id);
    v quorum.subscription_version;
BEGIN
    PERFORM quorum.require_input(see_source.database_version >= 0 AND see_source.version_tick >= 0, 'the source must say its version');
    -- Where nothing is copied, what is here is taken for what the source has.
    INSERT INTO quorum.subscription_version AS x (subscription, loading, database_version, version_tick, config_version)
    VALUES (s.id, loads, CASE WHEN NOT loads THEN see_source.database_version END, CASE WHEN NOT loads THEN see_source.version_tick END, 1)
    ON CONFLICT ON CONSTRAINT subscription_version_pkey DO UPDATE SET config_version = x.config_version + 1;
    -- Whoever copied may not have come as far as to say so.
    PERFORM quorum.end_load(s.id);
    SELECT x.* INTO STRICT v FROM quorum.subscription_version AS x WHERE x.subscription = s.id;
    RETURN NOT v.loading AND v.database_version < see_source.database_version;
END
$$;
COMMENT ON FUNCTION quorum.see_source(integer, bigint, bigint) IS
    'The source has this version, and the description of its tables was fetched. True: what is here is of an older one. Errors: 42704 no such subscription, 22023.';

CREATE FUNCTION quorum.reload(subscription_name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target integer := quorum.subscription_id(subscription_name);
BEGIN
    PERFORM quorum.reload_subscription(target);
    -- Those that had stopped as well: what did not fit goes with the rows that are here.
    UPDATE quorum.subscription_table AS t SET state = 'copy', after_epoch = NULL, after_tick = NULL, code = NULL, message = NULL, since = clock_timestamp()
    WHERE t.subscription = target AND t.state = 'stopped' AND t.code IS DISTINCT FROM 'PQ016';
END
$$;
COMMENT ON FUNCTION quorum.reload(text) IS
    'All tables of a subscription are copied anew, and what is in them goes. Error 42704: there is no such subscription.';

CREATE FUNCTION quorum.wake_subscription(subscription_name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target integer := quorum.subscription_id(wake_subscription.subscription_name);
BEGIN
    UPDATE quorum.subscription AS s SET enabled = true, woken = true WHERE s.id = target AND NOT s.enabled;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE quorum.subscription_status AS x SET state = 'starting', code = NULL, detail = NULL, since = clock_timestamp()
    WHERE x.subscription = target;
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.wake_subscription(text) IS
    'Enables a subscription that rests until quorum.rest_subscription. False: it did not rest. Error 42704: there is no such subscription.';

CREATE FUNCTION quorum.rest_subscription(subscription_name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target integer := quorum.subscription_id(rest_subscription.subscription_name);
BEGIN
    UPDATE quorum.subscription AS s SET enabled = false, woken = false WHERE s.id = target AND s.woken;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE quorum.subscription_status AS x SET state = 'disabled', code = NULL, detail = NULL, since = clock_timestamp()
    WHERE x.subscription = target;
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.rest_subscription(text) IS
    'Lets a subscription rest again that quorum.wake_subscription has woken. False: it was not, or somebody has enabled or disabled it since. Error 42704: there is no such subscription.';

CREATE FUNCTION quorum.confirm_applied(subscription_name text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    -- Something must be written for a commit to wait for.
    UPDATE quorum.subscription_version AS v SET config_version = v.config_version
    WHERE v.subscription = quorum.subscription_id(confirm_applied.subscription_name)
$$;
COMMENT ON FUNCTION quorum.confirm_applied(text) IS
    'When its transaction is committed synchronously, what was applied before is as durable as the cluster promises: changes are applied without waiting for that. Error 42704: there is no such subscription.';

CREATE FUNCTION quorum.reset_config_versions() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH reset AS (UPDATE quorum.subscription_version AS v SET config_version = 0 RETURNING 1)
    SELECT count(*) FROM reset
$$;
COMMENT ON FUNCTION quorum.reset_config_versions() IS
    'Has the description of the sources'' tables fetched anew by all subscriptions of this database, and returns how many there are.';

CREATE FUNCTION quorum.delta_errors(v quorum.subscription_version) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(sum(c.count) FILTER (WHERE c.resolution = 'rejected'), 0)::bigint - v.rejected_before
           + greatest(coalesce(sum(c.count) FILTER (WHERE c.resolution = 'stopped'), 0)::bigint - v.stopped_before,
                      (SELECT count(*) FROM quorum.subscription_table AS t
                       WHERE t.subscription = v.subscription AND t.state = 'stopped' AND t.code IS DISTINCT FROM 'PQ016'))
    FROM quorum.conflict_count AS c WHERE c.subscription = v.subscription
$$;
COMMENT ON FUNCTION quorum.delta_errors(quorum.subscription_version) IS
    'Internal. Changes that were rejected since the last load, and those at which tables stopped.';

CREATE FUNCTION quorum.delta_state(
    channel text, subscription_name text DEFAULT NULL, OUT role text, OUT subscription text, OUT state text, OUT code text, OUT detail text,
    OUT loading boolean, OUT database_version bigint, OUT delta_version bigint, OUT delta_error_count bigint, OUT cache_flush bigint,
    OUT import_counts jsonb, OUT epoch bigint, OUT tick bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    of integer := CASE WHEN subscription_name IS NULL THEN quorum.delta_subscription(delta_state.channel)
                       ELSE quorum.subscription_id(subscription_name) END;
    counted text := delta_state.channel;
BEGIN
    IF of IS NOT NULL THEN
        role := 'worker';
        SELECT s.name, s.channel, CASE WHEN s.enabled THEN x.state ELSE 'disabled' END, x.code, x.detail, coalesce(v.loading, true),
               coalesce(v.database_version, 0), greatest(coalesce(p.tick - v.version_tick, 0), 0), coalesce(quorum.delta_errors(v), 0), p.epoch, p.tick
        INTO subscription, counted, state, code, detail, loading, database_version, delta_version, delta_error_count, epoch, tick
        FROM quorum.subscription AS s
        JOIN quorum.subscription_status AS x ON x.subscription = s.id
        JOIN quorum.subscription_position AS p ON p.subscription = s.id
        LEFT JOIN quorum.subscription_version AS v ON v.subscription = s.id
        WHERE s.id = of;
    ELSE
        role := 'director';
        of := quorum.channel_id(delta_state.channel);
        SELECT false, c.database_version, coalesce(e.last_tick - c.version_tick, 0), 0, e.epoch, e.last_tick
        INTO loading, database_version, delta_version, delta_error_count, epoch, tick
        FROM quorum.channel AS c, LATERAL quorum.channel_ends(c.id) AS e
        WHERE c.id = of;
    END IF;
    cache_flush := coalesce((SELECT n.count FROM quorum.channel_count AS n WHERE n.channel = counted AND n.kind = 'CACHE_FLUSH'), 0);
    SELECT jsonb_agg(jsonb_build_object('type', k.kind, 'count', coalesce(n.count, 0)) ORDER BY k.place) INTO import_counts
    FROM unnest(ARRAY['DATA', 'ATTRIBUTES_AND_DATA', 'SUGGEST', 'RECOMMENDATION', 'RANKING', 'CUSTOMER_SPECIFIC_PRICING', 'GEO'])
         WITH ORDINALITY AS k (kind, place)
    LEFT JOIN quorum.channel_count AS n ON n.channel = counted AND n.kind = k.kind
    WHERE k.kind = 'DATA' OR n.count IS NOT NULL;
END
$$;
COMMENT ON FUNCTION quorum.delta_state(text, text) IS
    'A channel as the delta interface shows it: one that this database follows (worker, by the named subscription or the one that follows a channel of this name), else one of its own (director). Errors: 42704 there is none, 22023 several follow it.';

CREATE FUNCTION quorum.delta_outcome(subscription_name text, after_tick bigint, last_tick bigint, most integer) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH s AS (SELECT x.* FROM quorum.subscription AS x WHERE x.id = quorum.subscription_id(delta_outcome.subscription_name)),
         r AS (SELECT x.tick, x.conflict, x.code, x.message FROM quorum.rejected_change AS x JOIN s ON s.id = x.subscription
               WHERE x.tick > delta_outcome.after_tick AND x.tick <= delta_outcome.last_tick)
    SELECT jsonb_build_object(
        'rejected', (SELECT coalesce(jsonb_agg(f ORDER BY f.tick), '[]') FROM (SELECT * FROM r ORDER BY r.tick LIMIT delta_outcome.most) AS f),
        'rejected_count', (SELECT count(*) FROM r),
        'wanted', (SELECT to_jsonb(s.tables) FROM s),
        'stopped', (SELECT coalesce(jsonb_agg(jsonb_build_object('table', t.schema_name || '.' || t.table_name, 'after', t.after_tick,
                                                                'code', t.code, 'message', t.message)), '[]')
                    FROM quorum.subscription_table AS t JOIN s ON s.id = t.subscription WHERE t.state = 'stopped'))
$$;
COMMENT ON FUNCTION quorum.delta_outcome(text, bigint, bigint, integer) IS
    'What became of the changes between two ticks that a subscription has passed: those that were rejected, and which tables have stopped. Error 42704: there is no such subscription.';
