-- Following another cluster: what people call and look at. Who may do so is in grants.sql.

CREATE FUNCTION quorum.check_subscription(s quorum.subscription) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bad text;
BEGIN
    PERFORM quorum.require_input(s.name ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$',
        format('%s cannot be the name of a subscription: it takes 1 to 63 letters, digits, ".", "_" and "-", the first a letter or "_"',
               coalesce(quote_literal(s.name), 'NULL')));
    PERFORM quorum.require_input(cardinality(s.remote) > 0,
        'remote must name at least one node of the source, as http(s)://host:port');
    SELECT a INTO bad FROM unnest(s.remote) AS a WHERE (a ~ '^https?://[^/?#@[:space:]]+:[0-9]{1,5}$') IS NOT TRUE LIMIT 1;
    -- Not shown: somebody may have put a password into it.
    PERFORM quorum.require_input(NOT FOUND, 'an address in remote is not of the form http://host:port or https://host:port (login and secret are arguments of their own)');
    PERFORM quorum.require_input(s.channel ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$',
        format('%s cannot be the name of a channel', coalesce(quote_literal(s.channel), 'NULL')));
    SELECT t INTO bad FROM unnest(s.tables) AS t WHERE (t ~ '^.+[.].+$') IS NOT TRUE LIMIT 1;
    PERFORM quorum.require_input(NOT FOUND, format('a table is named as schema.table, not %s', coalesce(quote_literal(bad), 'NULL')));
    PERFORM quorum.check_policy(s.policy);
    PERFORM quorum.require_input(s.ddl IN ('ignore', 'stop', 'apply'),
        format('ddl is ignore, stop or apply, not %s', coalesce(quote_literal(s.ddl), 'NULL')));
    PERFORM quorum.require_input(s.on_purged IN ('stop', 'reload'),
        format('on_purged is stop or reload, not %s', coalesce(quote_literal(s.on_purged), 'NULL')));
    PERFORM quorum.require_input(s.copy IN ('none', 'error', 'truncate', 'merge'),
        format('copy is none, error, truncate or merge, not %s', coalesce(quote_literal(s.copy), 'NULL')));
    PERFORM quorum.require_input(s.start IS NULL OR s.copy = 'none',
        'start is for copy => ''none'' only: where tables are copied, what is followed begins with the copy');
    IF s.start <> 'now' AND s.start !~ '^[0-9]{1,18}:[0-9]{1,18}$' THEN
        BEGIN
            PERFORM s.start::timestamptz;
        EXCEPTION WHEN others THEN
            PERFORM quorum.require_input(false,
                format('start is now, a position EPOCH:TICK or a time with time zone, not %s', quote_literal(s.start)));
        END;
    END IF;
    PERFORM quorum.require_input(s.jobs BETWEEN 1 AND 64, 'jobs, how many tables are copied at a time, is 1 to 64');
    PERFORM quorum.require_input(s.forward IS NOT NULL, 'forward is true or false');
END
$$;
COMMENT ON FUNCTION quorum.check_subscription(quorum.subscription) IS 'Internal. Raises 22023 with what is wrong with a subscription''s settings.';

CREATE FUNCTION quorum.check_policy(policy text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.require_input(check_policy.policy IN ('error', 'skip', 'apply_remote', 'keep_local', 'last_write_wins'),
        format('a policy is error, skip, apply_remote, keep_local or last_write_wins, not %s', coalesce(quote_literal(check_policy.policy), 'NULL')));
END
$$;
COMMENT ON FUNCTION quorum.check_policy(text) IS 'Internal. Raises 22023 unless it is a policy about conflicts.';

CREATE FUNCTION quorum.subscription_id(name text) RETURNS integer
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result integer;
BEGIN
    SELECT s.id INTO result FROM quorum.subscription AS s WHERE s.name = subscription_id.name;
    IF result IS NULL THEN
        RAISE EXCEPTION 'there is no subscription %', coalesce(quote_ident(subscription_id.name), 'NULL')
            USING ERRCODE = 'undefined_object', HINT = 'SELECT * FROM quorum.subscription_state lists them.';
    END IF;
    RETURN result;
END
$$;
COMMENT ON FUNCTION quorum.subscription_id(text) IS 'The id of a subscription. Error 42704: there is none of that name.';

CREATE FUNCTION quorum.subscribe(
    name text, remote text[], channel text, database text DEFAULT NULL, tables text[] DEFAULT NULL,
    copy text DEFAULT 'error', start text DEFAULT NULL, policy text DEFAULT 'error', ddl text DEFAULT 'ignore',
    on_purged text DEFAULT 'stop', forward boolean DEFAULT false, jobs integer DEFAULT 2, login text DEFAULT NULL,
    secret text DEFAULT NULL, ca text DEFAULT NULL, filter jsonb DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s quorum.subscription;
    made integer;
BEGIN
    s.name := subscribe.name;
    s.remote := subscribe.remote;
    s.remote_database := subscribe.database;
    s.channel := subscribe.channel;
    s.tables := nullif(subscribe.tables, '{}');
    s.filter := nullif(subscribe.filter, '{}');
    s.policy := subscribe.policy;
    s.ddl := subscribe.ddl;
    s.on_purged := subscribe.on_purged;
    s.forward := subscribe.forward;
    s.copy := subscribe.copy;
    s.start := subscribe.start;
    s.jobs := subscribe.jobs;
    PERFORM quorum.check_subscription(s);
    PERFORM quorum.check_filters(s);
    INSERT INTO quorum.subscription (name, remote, remote_database, channel, tables, filter, policy, ddl, on_purged, forward, copy, start,
                                     jobs, login, secret, ca)
    VALUES (s.name, s.remote, s.remote_database, s.channel, s.tables, s.filter, s.policy, s.ddl, s.on_purged, s.forward, s.copy,
            s.start, s.jobs, nullif(subscribe.login, ''), nullif(subscribe.secret, ''), nullif(subscribe.ca, ''))
    ON CONFLICT DO NOTHING RETURNING id INTO made;
    IF made IS NULL THEN
        RAISE EXCEPTION 'subscription % exists', quote_ident(s.name)
            USING ERRCODE = 'duplicate_object', HINT = 'quorum.alter_subscription changes its settings.';
    END IF;
    INSERT INTO quorum.subscription_position (subscription) VALUES (made);
    INSERT INTO quorum.subscription_status (subscription, state) VALUES (made, 'starting');
    RETURN made;
END
$$;
COMMENT ON FUNCTION quorum.subscribe(text, text[], text, text, text[], text, text, text, text, text, boolean, integer, text, text, text, jsonb) IS
    'Follows a channel of another cluster from now on, and returns the subscription''s id. copy: what to do about rows that are here (error, truncate, merge), or none to copy nothing; start: where to begin then. policy: what to do about conflicts. filter: which rows of tables, {"schema.table": condition}. Errors: 42710 it exists, 22023 bad arguments, as quorum.checked_filter.';

CREATE FUNCTION quorum.alter_subscription(
    name text, remote text[] DEFAULT NULL, tables text[] DEFAULT NULL, policy text DEFAULT NULL, ddl text DEFAULT NULL,
    on_purged text DEFAULT NULL, forward boolean DEFAULT NULL, jobs integer DEFAULT NULL, login text DEFAULT NULL,
    secret text DEFAULT NULL, ca text DEFAULT NULL, filter jsonb DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s quorum.subscription;
    before text;
    filtered jsonb;
BEGIN
    SELECT x.* INTO STRICT s FROM quorum.subscription AS x WHERE x.id = quorum.subscription_id(alter_subscription.name) FOR UPDATE;
    before := s.policy;
    filtered := s.filter;
    s.remote := coalesce(alter_subscription.remote, s.remote);
    s.tables := nullif(coalesce(alter_subscription.tables, s.tables), '{}');
    s.filter := nullif(coalesce(alter_subscription.filter, s.filter), '{}');
    s.policy := coalesce(alter_subscription.policy, s.policy);
    s.ddl := coalesce(alter_subscription.ddl, s.ddl);
    s.on_purged := coalesce(alter_subscription.on_purged, s.on_purged);
    s.forward := coalesce(alter_subscription.forward, s.forward);
    s.jobs := coalesce(alter_subscription.jobs, s.jobs);
    PERFORM quorum.check_subscription(s);
    PERFORM quorum.check_filters(s);
    UPDATE quorum.subscription AS x
    SET remote = s.remote, tables = s.tables, filter = s.filter, policy = s.policy, ddl = s.ddl, on_purged = s.on_purged, forward = s.forward,
        jobs = s.jobs, login = nullif(coalesce(alter_subscription.login, x.login), ''),
        secret = nullif(coalesce(alter_subscription.secret, x.secret), ''), ca = nullif(coalesce(alter_subscription.ca, x.ca), '')
    WHERE x.id = s.id;
    -- What is no longer wanted is forgotten; should it be wanted again, it is copied again.
    IF s.tables IS NOT NULL THEN
        PERFORM FROM quorum.subscription_position AS p WHERE p.subscription = s.id FOR UPDATE;
        DELETE FROM quorum.subscription_table AS t
        WHERE t.subscription = s.id AND t.schema_name || '.' || t.table_name <> ALL (s.tables);
    END IF;
    -- So is that the source does not track a table: the new filter may not name it.
    IF s.filter IS DISTINCT FROM filtered THEN
        DELETE FROM quorum.subscription_table AS t WHERE t.subscription = s.id AND t.code = 'PQ016' AND t.after_tick IS NULL;
    END IF;
    IF s.policy = 'last_write_wins' AND s.policy <> before THEN
        PERFORM FROM quorum.subscription_position AS p WHERE p.subscription = s.id FOR UPDATE;
        PERFORM quorum.require_versions(t) FROM quorum.subscription_table AS t
        WHERE t.subscription = s.id AND t.state <> 'stopped' AND quorum.is_last_write_wins(t);
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.alter_subscription(text, text[], text[], text, text, text, boolean, integer, text, text, text, jsonb) IS
    'Changes settings of a subscription; what is NULL stays. An empty array of tables: all; an empty filter: all rows; an empty login, secret or ca: none. Another filter counts for what comes from now on: rows that are here stay. Errors: 42704 there is none, 22023 bad arguments, as quorum.checked_filter, 55000 last_write_wins is not possible for a table, 55P03 a table is busy.';

CREATE FUNCTION quorum.set_table_policy(subscription_name text, "table" text, policy text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t quorum.subscription_table := quorum.subscribed_table(subscription_name, "table");
BEGIN
    IF set_table_policy.policy IS NOT NULL THEN
        PERFORM quorum.check_policy(set_table_policy.policy);
    END IF;
    PERFORM FROM quorum.subscription_position AS p WHERE p.subscription = t.subscription FOR UPDATE;
    t.policy := set_table_policy.policy;
    IF quorum.is_last_write_wins(t) THEN
        PERFORM quorum.require_input(
            NOT EXISTS (SELECT FROM quorum.subscription AS s
                        WHERE s.id = t.subscription AND quorum.filter_of(s.filter, t.schema_name, t.table_name) IS NOT NULL),
            format('last_write_wins is not possible for table %s.%s: it has a filter', t.schema_name, t.table_name));
        PERFORM quorum.require_versions(t);
    END IF;
    UPDATE quorum.subscription_table AS x SET policy = set_table_policy.policy
    WHERE (x.subscription, x.schema_name, x.table_name) = (t.subscription, t.schema_name, t.table_name);
END
$$;
COMMENT ON FUNCTION quorum.set_table_policy(text, text, text) IS
    'What to do about conflicts in one table of a subscription; NULL: as the subscription says. Errors: 42704 there is no such subscription, 42P01 no such table in it, 22023 no policy, 55000 last_write_wins is not possible, 55P03 the table is busy.';

CREATE FUNCTION quorum.subscribed_table(subscription_name text, "table" text) RETURNS quorum.subscription_table
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parts text[];
    found_table quorum.subscription_table;
    of integer := quorum.subscription_id(subscription_name);
BEGIN
    -- As it stands in the views, or as SQL writes it.
    SELECT x.* INTO found_table FROM quorum.subscription_table AS x
    WHERE x.subscription = of AND x.schema_name || '.' || x.table_name = subscribed_table."table";
    IF NOT FOUND THEN
        BEGIN
            parts := parse_ident(subscribed_table."table");
        EXCEPTION WHEN invalid_parameter_value THEN
            parts := NULL;
        END;
        IF cardinality(parts) = 1 THEN
            parts := ARRAY['public', parts[1]];
        END IF;
        SELECT x.* INTO found_table FROM quorum.subscription_table AS x
        WHERE x.subscription = of AND cardinality(parts) = 2 AND x.schema_name = parts[1] AND x.table_name = parts[2];
    END IF;
    IF found_table.subscription IS NULL THEN
        RAISE EXCEPTION 'subscription % has no table %', quote_ident(subscription_name), coalesce("table", 'NULL')
            USING ERRCODE = 'undefined_table', HINT = 'SELECT * FROM quorum.subscription_tables lists them.';
    END IF;
    RETURN found_table;
END
$$;
COMMENT ON FUNCTION quorum.subscribed_table(text, text) IS 'Internal. A table of a subscription by name. Errors: 42704 no such subscription, 42P01 no such table in it.';

CREATE FUNCTION quorum.unsubscribe(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone integer := quorum.subscription_id(name);
BEGIN
    -- Waits for whoever is applying.
    DELETE FROM quorum.subscription_position AS p WHERE p.subscription = gone;
    DELETE FROM quorum.subscription_status AS x WHERE x.subscription = gone;
    DELETE FROM quorum.subscription_table AS x WHERE x.subscription = gone;
    DELETE FROM quorum.subscription_schema AS x WHERE x.subscription = gone;
    DELETE FROM quorum.conflict_count AS x WHERE x.subscription = gone;
    DELETE FROM quorum.rejected_change AS x WHERE x.subscription = gone;
    DELETE FROM quorum.subscription_version AS x WHERE x.subscription = gone;
    DELETE FROM quorum.subscription AS x WHERE x.id = gone;
END
$$;
COMMENT ON FUNCTION quorum.unsubscribe(text) IS
    'Ends a subscription and forgets its rejected changes; the tables stay as they are. Error 42704: there is none of that name.';

CREATE FUNCTION quorum.enable_subscription(name text, enabled boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target integer := quorum.subscription_id(name);
BEGIN
    PERFORM quorum.require_input(enable_subscription.enabled IS NOT NULL, 'enabled is true or false');
    UPDATE quorum.subscription AS s SET enabled = enable_subscription.enabled, woken = false WHERE s.id = target;
    UPDATE quorum.subscription_status AS x
    SET state = CASE WHEN enable_subscription.enabled THEN 'starting' ELSE 'disabled' END, code = NULL, detail = NULL,
        since = clock_timestamp()
    WHERE x.subscription = target AND (x.state = 'disabled' OR x.state = 'stopped' OR NOT enable_subscription.enabled);
END
$$;
COMMENT ON FUNCTION quorum.enable_subscription(text, boolean) IS
    'Lets a subscription rest, or go on from where it is. Error 42704: there is none of that name.';

CREATE FUNCTION quorum.resume_table(subscription_name text, "table" text, copy boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t quorum.subscription_table := quorum.subscribed_table(subscription_name, "table");
    at quorum.subscription_position;
    fresh text;
BEGIN
    -- Not while changes are being applied.
    SELECT p.* INTO STRICT at FROM quorum.subscription_position AS p WHERE p.subscription = t.subscription FOR UPDATE;
    t := quorum.subscribed_table(subscription_name, "table");
    IF t.state <> 'stopped' AND NOT coalesce(resume_table.copy, false) THEN
        RAISE EXCEPTION 'table %.% is not stopped, its state is %', t.schema_name, t.table_name, t.state
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'copy => true copies it again whatever its state is.';
    END IF;
    IF quorum.is_last_write_wins(t) THEN
        PERFORM quorum.require_versions(t);
    END IF;
    IF resume_table.copy THEN
        fresh := 'copy';
    ELSIF t.after_tick IS NULL THEN
        RAISE EXCEPTION 'table %.% was never copied and has no position to go on from', t.schema_name, t.table_name
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'quorum.resume_table(…, copy => true) copies it.';
    ELSIF t.after_tick < at.tick THEN
        fresh := 'catch-up';
    ELSE
        fresh := 'following';
    END IF;
    UPDATE quorum.subscription_table AS x
    SET state = fresh, code = NULL, message = NULL, since = clock_timestamp(),
        after_epoch = CASE WHEN fresh <> 'copy' THEN x.after_epoch END,
        after_tick = CASE WHEN fresh <> 'copy' THEN x.after_tick END
    WHERE (x.subscription, x.schema_name, x.table_name) = (t.subscription, t.schema_name, t.table_name);
    RETURN fresh;
END
$$;
COMMENT ON FUNCTION quorum.resume_table(text, text, boolean) IS
    'Lets a stopped table go on: with the change at which it stopped, or copied anew. Returns its new state. Errors: 42704 no such subscription, 42P01 no such table in it, 55000 it is not stopped, has no position or last_write_wins is not possible, 55P03 the table is busy.';

CREATE FUNCTION quorum.drop_rejected(id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM quorum.rejected_change AS r WHERE r.id = drop_rejected.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no rejected change %', coalesce(drop_rejected.id::text, 'NULL')
            USING ERRCODE = 'undefined_object', HINT = 'SELECT * FROM quorum.rejected_changes lists them.';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.drop_rejected(bigint) IS 'Forgets a rejected change: it will never be applied. Error 42704: there is none of that id.';

CREATE VIEW quorum.subscription_tables AS
    SELECT s.name AS subscription, t.schema_name AS "schema", t.table_name AS "table", t.state,
           t.after_epoch || ':' || t.after_tick AS after, t.code, t.message, coalesce(t.policy, s.policy) AS policy,
           t.rows, t.bytes, t.since, s.filter ->> (t.schema_name || '.' || t.table_name) AS filter
    FROM quorum.subscription_table AS t JOIN quorum.subscription AS s ON s.id = t.subscription;
COMMENT ON VIEW quorum.subscription_tables IS 'The tables of subscriptions, how far each is, and why it stopped.';

CREATE VIEW quorum.rejected_changes AS
    SELECT r.id, s.name AS subscription, r.epoch || ':' || r.tick AS position, r.transaction, r.schema_name AS "schema",
           r.table_name AS "table", r.op, r.conflict, r.code, r.message, r.key, r.old, r.new, r.origin, r.committed_at, r.rejected_at
    FROM quorum.rejected_change AS r JOIN quorum.subscription AS s ON s.id = r.subscription;
COMMENT ON VIEW quorum.rejected_changes IS 'Changes that were left out, and why.';

CREATE VIEW quorum.conflicts AS
    SELECT s.name AS subscription, c.schema_name AS "schema", c.table_name AS "table", c.conflict, c.resolution, c.count, c.last_at
    FROM quorum.conflict_count AS c JOIN quorum.subscription AS s ON s.id = c.subscription;
COMMENT ON VIEW quorum.conflicts IS 'How often changes met something else here than at the source, and what was done.';

CREATE FUNCTION quorum.see_change_size(subscription integer, bytes bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE quorum.subscription_status AS x SET change_bytes = see_change_size.bytes
    WHERE x.subscription = see_change_size.subscription AND x.change_bytes IS DISTINCT FROM see_change_size.bytes
$$;
COMMENT ON FUNCTION quorum.see_change_size(integer, bigint) IS
    'How many bytes of log a change takes at the source of a subscription, on average; NULL: it does not say.';

CREATE VIEW quorum.subscription_state AS
    SELECT s.id, s.name, CASE WHEN s.enabled THEN x.state ELSE 'disabled' END AS state, x.code, x.detail,
           p.epoch || ':' || p.tick AS position, x.end_epoch || ':' || x.end_tick AS "end",
           greatest(x.end_tick - p.tick, 0) AS lag_ticks,
           (greatest(x.end_tick - p.tick, 0)::numeric * x.change_bytes)::bigint AS lag_bytes,
           CASE WHEN x.end_tick > p.tick THEN greatest(extract(epoch FROM clock_timestamp() - p.committed_at), 0)
                WHEN x.end_seen_at >= clock_timestamp() - interval '20 seconds' THEN 0
                ELSE extract(epoch FROM clock_timestamp() - x.end_seen_at) END::double precision AS lag_seconds,
           t.tables AS tables_known, t.copying AS tables_copying, t.stopped AS tables_stopped,
           coalesce((SELECT sum(c.count) FROM quorum.conflict_count AS c WHERE c.subscription = s.id), 0)::bigint AS conflicts,
           (SELECT count(*) FROM quorum.rejected_change AS r WHERE r.subscription = s.id) AS rejected,
           p.committed_at, p.applied_at, x.since, x.end_seen_at,
           s.enabled, s.remote, s.remote_database AS database, s.channel, s.tables, s.policy, s.ddl, s.on_purged, s.forward,
           s.copy, s.start, s.jobs, s.login, s.secret IS NOT NULL AS has_secret, s.ca, s.remote_origin, s.created_at, s.filter
    FROM quorum.subscription AS s
    JOIN quorum.subscription_position AS p ON p.subscription = s.id
    JOIN quorum.subscription_status AS x ON x.subscription = s.id
    CROSS JOIN LATERAL (SELECT count(*) AS tables, count(*) FILTER (WHERE y.state IN ('copy', 'catch-up')) AS copying,
                               count(*) FILTER (WHERE y.state = 'stopped') AS stopped
                        FROM quorum.subscription_table AS y WHERE y.subscription = s.id) AS t;
COMMENT ON VIEW quorum.subscription_state IS
    'Each subscription: how it is, how far, how far behind, and its settings. lag_bytes: of the source''s log, from the mean size of a change there; NULL: the source did not say. lag_seconds: the age of the last applied transaction; where everything that is known is applied 0, or, if the source was not heard of for 20 seconds, since when.';
