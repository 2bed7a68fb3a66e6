-- The applier of the replication interface: what it follows, whether it runs, how far it is. One for each database.
-- docs/replication-interface.md says what all of it means. Each of the three tables has exactly one row.

CREATE TABLE quorum.applier (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    generation bigint NOT NULL DEFAULT 0,
    config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object' AND NOT config ? 'password'),
    password text,
    running boolean NOT NULL DEFAULT false,
    resync boolean NOT NULL DEFAULT false,
    started_at timestamptz
);
COMMENT ON TABLE quorum.applier IS
    'What this database''s applier follows, and whether it is to run. password is for the sidecar alone; quorum.applier_show gives everything else.';
COMMENT ON COLUMN quorum.applier.generation IS 'Grows whenever the applier is started, stopped or configured: what an earlier one writes is refused.';
COMMENT ON COLUMN quorum.applier.resync IS 'All tables are copied before anything is followed.';
INSERT INTO quorum.applier DEFAULT VALUES;

CREATE TABLE quorum.applier_position (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    applied numeric(20),
    processed numeric(20),
    resume numeric(20),
    events bigint NOT NULL DEFAULT 0,
    documents bigint NOT NULL DEFAULT 0,
    removals bigint NOT NULL DEFAULT 0,
    excluded bigint NOT NULL DEFAULT 0,
    applies bigint NOT NULL DEFAULT 0,
    apply_seconds double precision NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
COMMENT ON TABLE quorum.applier_position IS
    'Up to which tick the remote''s log is applied. Written by the transaction that applies it, so that nothing is applied twice or left out. NULL: nothing was yet.';
COMMENT ON COLUMN quorum.applier_position.resume IS 'After which tick the log is read again: before the first transaction that was not complete.';
INSERT INTO quorum.applier_position DEFAULT VALUES;

CREATE TABLE quorum.applier_status (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    phase text NOT NULL DEFAULT 'inactive' CHECK (phase IN ('inactive', 'initialized', 'connecting', 'dumping', 'running')),
    available numeric(20),
    message text NOT NULL DEFAULT 'applier initially created',
    message_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    failed_connects bigint NOT NULL DEFAULT 0,
    requests bigint NOT NULL DEFAULT 0,
    total_failed_connects bigint NOT NULL DEFAULT 0,
    resyncs bigint NOT NULL DEFAULT 0,
    fetches bigint NOT NULL DEFAULT 0,
    fetch_seconds double precision NOT NULL DEFAULT 0,
    error_number integer NOT NULL DEFAULT 0,
    error_message text,
    error_at timestamptz
) WITH (fillfactor = 20);
COMMENT ON TABLE quorum.applier_status IS 'What the sidecar that works for the applier has said last.';
INSERT INTO quorum.applier_status DEFAULT VALUES;

CREATE FUNCTION quorum.applier_configure(config jsonb, password text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a quorum.applier;
BEGIN
    -- Not left to the constraints of the table: their errors show the whole row, and the password is in it.
    PERFORM quorum.require_input(jsonb_typeof(applier_configure.config) = 'object' AND NOT applier_configure.config ? 'password',
        'the settings of the applier are an object without a password, which is an argument of its own');
    SELECT x.* INTO STRICT a FROM quorum.applier AS x FOR UPDATE;
    IF a.running THEN
        RAISE EXCEPTION 'the applier is running, and its settings cannot be changed now'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Stop it first: PUT /_api/replication/applier-stop.';
    END IF;
    UPDATE quorum.applier AS x
    SET generation = x.generation + 1, config = applier_configure.config,
        -- A password is shown to nobody but the server that it was given for.
        password = CASE WHEN applier_configure.password IS NOT NULL THEN nullif(applier_configure.password, '')
                        WHEN (x.config -> 'endpoint', x.config -> 'username') IS NOT DISTINCT FROM
                             (applier_configure.config -> 'endpoint', applier_configure.config -> 'username') THEN x.password END;
END
$$;
COMMENT ON FUNCTION quorum.applier_configure(jsonb, text) IS
    'What the applier follows, and how; the password as NULL stays while endpoint and username do. Errors: 55000 it is running, 22023 the settings are no object, or hold a password.';

CREATE FUNCTION quorum.applier_start("from" numeric DEFAULT NULL, resync boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a quorum.applier;
BEGIN
    SELECT x.* INTO STRICT a FROM quorum.applier AS x FOR UPDATE;
    IF a.running THEN
        RETURN;
    END IF;
    IF a.config ->> 'endpoint' IS NULL THEN
        RAISE EXCEPTION 'the applier has no endpoint yet'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Configure it first: PUT /_api/replication/applier-config.';
    END IF;
    IF applier_start."from" IS NOT NULL THEN
        UPDATE quorum.applier_position AS p
        SET applied = applier_start."from", processed = applier_start."from", resume = applier_start."from";
    END IF;
    UPDATE quorum.applier AS x
    SET generation = x.generation + 1, running = true, resync = applier_start.resync, started_at = clock_timestamp();
    UPDATE quorum.applier_status AS s
    SET phase = 'initialized', message = 'applier started', message_at = clock_timestamp(), failed_connects = 0,
        error_number = 0, error_message = NULL, error_at = NULL;
END
$$;
COMMENT ON FUNCTION quorum.applier_start(numeric, boolean) IS
    'Has the applier run, from this tick on or where it was; one that runs is left alone. resync: after a copy of all tables. Error 55000: it is not configured.';

CREATE FUNCTION quorum.applier_stop() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Waits for whoever is about to commit what is applied: afterwards nothing more is.
    UPDATE quorum.applier AS x SET generation = x.generation + 1, running = false, resync = false WHERE x.running;
    IF FOUND THEN
        UPDATE quorum.applier_status AS s
        SET phase = 'inactive', message = 'applier stopped', message_at = clock_timestamp(), failed_connects = 0;
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.applier_stop() IS 'Has the applier rest. When it returns, nothing more is applied.';

CREATE FUNCTION quorum.applier_forget() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.applier_stop();
    UPDATE quorum.applier SET started_at = NULL;
    DELETE FROM quorum.applier_position;
    INSERT INTO quorum.applier_position DEFAULT VALUES;
    DELETE FROM quorum.applier_status;
    INSERT INTO quorum.applier_status DEFAULT VALUES;
END
$$;
COMMENT ON FUNCTION quorum.applier_forget() IS 'Stops the applier and forgets how far it was. Its settings and the tables stay.';

CREATE FUNCTION quorum.applier_time(at timestamptz) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT to_char(applier_time.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
$$;
COMMENT ON FUNCTION quorum.applier_time(timestamptz) IS 'Internal. A time as the replication interface writes it.';

CREATE FUNCTION quorum.applier_show() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
        'config', a.config, 'generation', a.generation, 'running', a.running, 'resync', a.resync, 'has_password', a.password IS NOT NULL,
        'started', quorum.applier_time(a.started_at), 'phase', s.phase, 'applied', p.applied::text, 'processed', p.processed::text,
        'resume', p.resume::text, 'available', s.available::text, 'message', s.message,
        'message_at', quorum.applier_time(s.message_at), 'failed_connects', s.failed_connects)
        || jsonb_build_object(
        'requests', s.requests, 'total_failed_connects', s.total_failed_connects, 'events', p.events, 'documents', p.documents,
        'removals', p.removals, 'resyncs', s.resyncs, 'excluded', p.excluded, 'applies', p.applies, 'apply_seconds', p.apply_seconds,
        'fetches', s.fetches, 'fetch_seconds', s.fetch_seconds, 'error_number', s.error_number, 'error_message', s.error_message,
        'error_at', quorum.applier_time(s.error_at))
    FROM quorum.applier AS a, quorum.applier_position AS p, quorum.applier_status AS s
$$;
COMMENT ON FUNCTION quorum.applier_show() IS 'Everything about the applier of this database but the password.';

CREATE FUNCTION quorum.applier_databases() RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_agg(d.datname ORDER BY d.datname), '[]') FROM pg_database AS d WHERE d.datallowconn AND NOT d.datistemplate
$$;
COMMENT ON FUNCTION quorum.applier_databases() IS 'Internal. The databases in which there may be an applier.';

-- What the sidecar that works for the applier calls.

CREATE FUNCTION quorum.require_applier(generation bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM quorum.applier AS a WHERE a.running AND a.generation = require_applier.generation FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the applier is not enabled any more: it was stopped, or started anew'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.require_applier(bigint) IS
    'Internal. Keeps the applier from being stopped until the transaction ends. Error 55000: it was.';

CREATE FUNCTION quorum.applier_advance(
    generation bigint, before numeric, applied numeric, processed numeric, resume numeric, events bigint, documents bigint,
    removals bigint, excluded bigint, seconds double precision
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.require_applier(applier_advance.generation);
    UPDATE quorum.applier_position AS p
    SET applied = applier_advance.applied, processed = applier_advance.processed, resume = applier_advance.resume,
        events = p.events + applier_advance.events, documents = p.documents + applier_advance.documents,
        removals = p.removals + applier_advance.removals, excluded = p.excluded + applier_advance.excluded,
        applies = p.applies + CASE WHEN applier_advance.documents + applier_advance.removals > 0 THEN 1 ELSE 0 END,
        apply_seconds = p.apply_seconds + applier_advance.seconds
    WHERE coalesce(p.applied, 0) = applier_advance.before;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'somebody else has moved the applier''s position' USING ERRCODE = 'PQ013';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.applier_advance(bigint, numeric, numeric, numeric, numeric, bigint, bigint, bigint, bigint, double precision) IS
    'In the transaction that has applied something: up to where that was. Errors: 55000 the applier was stopped, PQ013 it was not at the tick before.';

CREATE FUNCTION quorum.applier_synced(generation bigint, tick numeric) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.require_applier(applier_synced.generation);
    UPDATE quorum.applier_position AS p
    SET applied = applier_synced.tick, processed = applier_synced.tick, resume = applier_synced.tick;
    UPDATE quorum.applier AS a SET resync = false;
    UPDATE quorum.applier_status AS s SET resyncs = s.resyncs + 1;
END
$$;
COMMENT ON FUNCTION quorum.applier_synced(bigint, numeric) IS
    'In the transaction that has copied all tables: the tick of the copy. Error 55000: the applier was stopped.';

CREATE FUNCTION quorum.applier_idle() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM quorum.applier AS a FOR UPDATE NOWAIT;
    IF (SELECT a.running FROM quorum.applier AS a) THEN
        RAISE EXCEPTION 'the applier is running, and would write into the tables that are to be copied'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Stop it first: PUT /_api/replication/applier-stop.';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.applier_idle() IS
    'In a transaction that copies tables: keeps the applier from being started before its end. Errors: 55000 it runs, 55P03 somebody else copies.';

CREATE FUNCTION quorum.applier_report(generation bigint, report jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM quorum.applier AS a WHERE a.running AND a.generation = applier_report.generation FOR SHARE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE quorum.applier_status AS s
    SET phase = coalesce(report ->> 'phase', s.phase), available = coalesce((report ->> 'available')::numeric, s.available),
        message = coalesce(report ->> 'message', s.message), message_at = clock_timestamp(),
        failed_connects = coalesce((report ->> 'failed_connects')::bigint, s.failed_connects),
        requests = s.requests + coalesce((report ->> 'requests')::bigint, 0),
        total_failed_connects = s.total_failed_connects + coalesce((report ->> 'failed')::bigint, 0),
        fetches = s.fetches + coalesce((report ->> 'fetches')::bigint, 0),
        fetch_seconds = s.fetch_seconds + coalesce((report ->> 'fetch_seconds')::double precision, 0),
        error_number = coalesce((report ->> 'error_number')::integer, s.error_number),
        error_message = CASE WHEN report ? 'error_number' THEN report ->> 'error_message' ELSE s.error_message END,
        error_at = CASE WHEN report ? 'error_number' THEN clock_timestamp() ELSE s.error_at END;
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.applier_report(bigint, jsonb) IS 'How the work goes on. False: the applier was stopped, and nothing is written.';

CREATE FUNCTION quorum.applier_failed(generation bigint, number integer, message text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE quorum.applier AS a SET generation = a.generation + 1, running = false, resync = false
    WHERE a.running AND a.generation = applier_failed.generation;
    IF FOUND THEN
        UPDATE quorum.applier_status AS s
        SET phase = 'inactive', message = 'applier stopped because of an error', message_at = clock_timestamp(),
            error_number = applier_failed.number, error_message = applier_failed.message, error_at = clock_timestamp();
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.applier_failed(bigint, integer, text) IS 'The applier cannot go on: it stops, and its state says why.';

CREATE FUNCTION quorum.applier_table("schema" text, "table" text) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
        'relation', c.oid::bigint,
        'columns', (
            SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
                'key', coalesce(a.attnum = ANY (k.columns), false), 'computed', a.attgenerated <> '', 'always', a.attidentity = 'a')
                ORDER BY a.attnum), '[]')
            FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
        'problem', CASE
            WHEN n.nspname IN ('pg_catalog', 'information_schema', 'quorum', 'quorum_log', 'pg_toast') OR n.nspname LIKE 'pg\_%'
                THEN 'it is one of the system''s or of pgquorum''s own'
            WHEN c.relkind NOT IN ('r', 'p') THEN 'it is no ordinary table'
            WHEN k.columns IS NULL THEN 'it has no primary key by which rows can be found (a deferrable one is none). ALTER TABLE … ADD PRIMARY KEY gives it one'
        END)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (SELECT (i.indkey::smallint[])[0:i.indnkeyatts - 1] AS columns FROM pg_index AS i
                       WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid) AS k ON true
    WHERE n.nspname = applier_table."schema" AND c.relname = applier_table."table" AND c.relkind NOT IN ('i', 'I', 'S', 'c', 't')
$$;
COMMENT ON FUNCTION quorum.applier_table(text, text) IS
    'What the applier needs to know of a table: its columns, which of them are its key, and why it cannot be written (problem). NULL: there is none.';

CREATE FUNCTION quorum.applier_make_table("table" text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.create_described_table('public', applier_make_table."table",
        '{"columns": [{"name": "_key", "type": "text"}, {"name": "data", "type": "jsonb"}], "key": ["_key"]}');
    EXECUTE format('ALTER TABLE public.%I ALTER COLUMN data SET NOT NULL', applier_make_table."table");
END
$$;
COMMENT ON FUNCTION quorum.applier_make_table(text) IS
    'Makes a table for documents, of which no columns are known; it belongs to the owner of the database.';

