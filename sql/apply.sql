-- Functions that change the cluster's state. They run with the rights of the extension's owner and a fixed
-- search_path; who may call them is in grants.sql.

-- Refusals of input all look alike.
CREATE FUNCTION quorum.require_input(valid boolean, complaint text) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF valid IS NOT TRUE THEN
        RAISE EXCEPTION '%', complaint USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.require_input(boolean, text) IS
    'Internal. Raises 22023 with the complaint unless the condition is true.';

-- Applying is decided by what others have committed, so a snapshot taken earlier would decide wrongly.
CREATE FUNCTION quorum.require_read_committed() RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'the cluster''s state can only be changed at isolation level READ COMMITTED'
            USING ERRCODE = 'active_sql_transaction';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.require_read_committed() IS
    'Internal. Raises 25001 at any isolation level above READ COMMITTED.';

CREATE FUNCTION quorum.is_integer(item jsonb, lowest bigint, highest bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN jsonb_typeof(item) = 'number' AND item #>> '{}' ~ '^-?[0-9]{1,18}$'
                THEN (item #>> '{}')::bigint BETWEEN lowest AND highest
                ELSE false END
$$;
COMMENT ON FUNCTION quorum.is_integer(jsonb, bigint, bigint) IS
    'Internal. Is the JSON value an integer of at most 18 digits within the bounds?';

CREATE FUNCTION quorum.replace_nodes(nodes jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item jsonb;
    port text;
BEGIN
    PERFORM quorum.require_input(jsonb_typeof(nodes) = 'array',
        format('"nodes" must be an array, not %s', jsonb_typeof(nodes)));
    FOR item IN SELECT e.value FROM jsonb_array_elements(nodes) AS e LOOP
        PERFORM quorum.require_input(jsonb_typeof(item) = 'object',
            format('a node must be an object, not %s', jsonb_typeof(item)));
        PERFORM quorum.require_input(quorum.is_integer(item -> 'id', 1, 999999999999999999),
            format('the id of a node must be a positive integer, not %s', coalesce(item -> 'id', 'null')));
        PERFORM quorum.require_input(jsonb_typeof(item -> 'ip') = 'string' AND item ->> 'ip' <> '',
            format('the ip of node %s must be a text', item ->> 'id'));
        PERFORM quorum.require_input(item ->> 'role' IN ('node', 'listener', 'witness'),
            format('the role of node %s must be node, listener or witness, not %s',
                   item ->> 'id', coalesce(item -> 'role', 'null')));
        PERFORM quorum.require_input(coalesce(jsonb_typeof(item -> 'down'), 'null') IN ('boolean', 'null'),
            format('"down" of node %s must be true or false', item ->> 'id'));
        FOREACH port IN ARRAY ARRAY['db-port', 'api-port'] LOOP
            PERFORM quorum.require_input(
                coalesce(jsonb_typeof(item -> port), 'null') = 'null' OR quorum.is_integer(item -> port, 0, 65535),
                format('"%s" of node %s must be a port number, not %s', port, item ->> 'id', item -> port));
        END LOOP;
    END LOOP;
    PERFORM quorum.require_input(
        (SELECT count(*) = count(DISTINCT (e.value ->> 'id')::bigint) FROM jsonb_array_elements(nodes) AS e),
        'the id of every node must be unique');

    DELETE FROM quorum.node AS n WHERE n.id NOT IN (
        SELECT (e.value ->> 'id')::bigint FROM jsonb_array_elements(nodes) AS e);
    INSERT INTO quorum.node AS n (id, ip, db_port, api_port, role, down)
        SELECT (e.value ->> 'id')::bigint, e.value ->> 'ip', (e.value ->> 'db-port')::integer,
               (e.value ->> 'api-port')::integer, e.value ->> 'role', coalesce((e.value ->> 'down')::boolean, false)
        FROM jsonb_array_elements(nodes) AS e
    ON CONFLICT (id) DO UPDATE
        SET ip = excluded.ip, db_port = excluded.db_port, api_port = excluded.api_port,
            role = excluded.role, down = excluded.down
        WHERE (n.ip, n.db_port, n.api_port, n.role, n.down) IS DISTINCT FROM
              (excluded.ip, excluded.db_port, excluded.api_port, excluded.role, excluded.down);
END
$$;
COMMENT ON FUNCTION quorum.replace_nodes(jsonb) IS
    'Internal. Makes quorum.node equal to the array; touches only rows that differ. 22023 with what is wrong.';

CREATE FUNCTION quorum.replace_settings(target regclass, key text, settings jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bad text;
BEGIN
    PERFORM quorum.require_input(jsonb_typeof(settings) = 'object',
        format('"%s" must be an object, not %s', key, jsonb_typeof(settings)));
    SELECT e.key INTO bad FROM jsonb_each(settings) AS e
        WHERE e.key = '' OR jsonb_typeof(e.value) = 'null' LIMIT 1;
    PERFORM quorum.require_input(bad IS NULL,
        format('a setting in "%s" must have a name and a value: "%s"', key, bad));

    EXECUTE format('DELETE FROM %s AS s WHERE NOT $1 ? s.name', target) USING settings;
    EXECUTE format('INSERT INTO %s AS s (name, value)
                    SELECT e.key, e.value #>> ''{}'' FROM pg_catalog.jsonb_each($1) AS e
                    ON CONFLICT (name) DO UPDATE SET value = excluded.value
                    WHERE s.value <> excluded.value', target) USING settings;
END
$$;
COMMENT ON FUNCTION quorum.replace_settings(regclass, text, jsonb) IS
    'Internal. Makes a settings table equal to the object; touches only rows that differ. 22023 with what is wrong.';

CREATE FUNCTION quorum.record_event(index bigint, term bigint, event jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM quorum.require_input(jsonb_typeof(event) = 'object',
        format('"event" must be an object, not %s', jsonb_typeof(event)));
    PERFORM quorum.require_input(jsonb_typeof(event -> 'kind') = 'string' AND event ->> 'kind' <> '',
        'the kind of an event must be a text');
    PERFORM quorum.require_input(jsonb_typeof(event -> 'message') = 'string', 'the message of an event must be a text');
    PERFORM quorum.require_input(
        coalesce(jsonb_typeof(event -> 'node'), 'null') = 'null'
            OR quorum.is_integer(event -> 'node', 1, 999999999999999999),
        format('the node of an event must be a positive integer or null, not %s', event -> 'node'));
    PERFORM quorum.require_input(
        coalesce(jsonb_typeof(event -> 'at'), 'null') = 'null'
            OR event ->> 'at' ~ '^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$',
        format('"at" of an event must be a time as in RFC 3339, not %s', event -> 'at'));
    INSERT INTO quorum.event (index, term, at, kind, node, message, details)
    VALUES (record_event.index, record_event.term,
            coalesce((record_event.event ->> 'at')::timestamptz, clock_timestamp()),
            record_event.event ->> 'kind', (record_event.event ->> 'node')::bigint, record_event.event ->> 'message',
            coalesce(nullif(record_event.event -> 'details', 'null'), '{}'));
END
$$;
COMMENT ON FUNCTION quorum.record_event(bigint, bigint, jsonb) IS
    'Internal. Writes one row of quorum.event. 22023 with what is wrong.';

CREATE FUNCTION quorum.record_lost(index bigint, report jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    kept CONSTANT integer := 10000;
    item jsonb;
BEGIN
    PERFORM quorum.require_input(jsonb_typeof(report) = 'object',
        format('"lost" must be an object, not %s', jsonb_typeof(report)));
    PERFORM quorum.require_input(
        quorum.is_integer(report -> 'node', 1, 999999999999999999)
            AND quorum.is_integer(report -> 'timeline', 0, 4294967295),
        'node and timeline of a report of lost transactions must be numbers');
    PERFORM quorum.require_input(report ->> 'acknowledged' IN ('no', 'possibly'),
        format('"acknowledged" of a report must be no or possibly, not %s', coalesce(report -> 'acknowledged', 'null')));
    PERFORM quorum.require_input(jsonb_typeof(report -> 'transactions') = 'array',
        '"transactions" of a report must be an array');
    FOR item IN SELECT e.value FROM jsonb_array_elements(report -> 'transactions') AS e LOOP
        PERFORM quorum.require_input(quorum.is_integer(item -> 'xid', 0, 4294967295),
            format('the xid of a lost transaction must be a number, not %s', coalesce(item -> 'xid', 'null')));
        PERFORM quorum.require_input(jsonb_typeof(item -> 'tables') = 'array',
            format('the tables of lost transaction %s must be an array', item ->> 'xid'));
        INSERT INTO quorum.lost_transactions
            (index, node, timeline, xid, committed_at, acknowledged, tables, schema_changed)
        VALUES (record_lost.index, (record_lost.report ->> 'node')::bigint, (record_lost.report ->> 'timeline')::bigint,
                (item ->> 'xid')::bigint,
                -- A time that is no time is not worth losing the report for.
                CASE WHEN item ->> 'committed-at' ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$'
                     THEN (item ->> 'committed-at')::timestamptz END,
                record_lost.report ->> 'acknowledged', item -> 'tables',
                coalesce(item -> 'schema-changed' = 'true'::jsonb, false))
        ON CONFLICT DO NOTHING;
    END LOOP;
    DELETE FROM quorum.lost_transactions AS l USING
        (SELECT o.index, o.xid FROM quorum.lost_transactions AS o
         ORDER BY o.index DESC, o.xid DESC OFFSET kept LIMIT 1) AS o
        WHERE (l.index, l.xid) <= (o.index, o.xid);
END
$$;
COMMENT ON FUNCTION quorum.record_lost(bigint, jsonb) IS
    'Internal. Writes the listed transactions of a report to quorum.lost_transactions. 22023 with what is wrong.';

-- Indexes may have gaps, so only counting tells how many rows there are. The difference of the ends is an upper bound
-- that costs two index look-ups, and short logs stop there.
CREATE FUNCTION quorum.trim_logs() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept CONSTANT integer := 10000;
BEGIN
    IF (SELECT max(l.index) - min(l.index) >= kept FROM quorum.cluster_log AS l) THEN
        DELETE FROM quorum.cluster_log AS l WHERE l.index <=
            (SELECT o.index FROM quorum.cluster_log AS o ORDER BY o.index DESC OFFSET kept LIMIT 1);
    END IF;
    -- Those below are this database's own, of which the lowest is the newest.
    IF (SELECT max(e.index) - min(e.index) >= kept FROM quorum.event AS e WHERE e.index > 0) THEN
        DELETE FROM quorum.event AS e WHERE e.index > 0 AND e.index <=
            (SELECT o.index FROM quorum.event AS o WHERE o.index > 0 ORDER BY o.index DESC OFFSET kept LIMIT 1);
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.trim_logs() IS
    'Internal. Deletes all but the newest 10000 rows of quorum.cluster_log and of the cluster''s events in quorum.event.';

-- True if the entry is new, false if it is recorded already; else an error. Takes the lock that serialises applying.
CREATE FUNCTION quorum.admit_entry(index bigint, term bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    newest record;
    recorded_term bigint;
BEGIN
    PERFORM quorum.require_input(admit_entry.index > 0 AND admit_entry.term > 0,
        format('index and term must be positive, not %s and %s',
               coalesce(admit_entry.index::text, 'NULL'), coalesce(admit_entry.term::text, 'NULL')));
    PERFORM quorum.require_read_committed();
    LOCK TABLE quorum.cluster_log IN SHARE ROW EXCLUSIVE MODE;

    SELECT l.term INTO recorded_term FROM quorum.cluster_log AS l WHERE l.index = admit_entry.index;
    IF recorded_term = admit_entry.term THEN
        RETURN false;
    ELSIF recorded_term IS NOT NULL THEN
        RAISE EXCEPTION 'entry % of term % is recorded with term %',
                admit_entry.index, admit_entry.term, recorded_term
            USING ERRCODE = 'data_exception',
                  DETAIL = 'This database holds data of another history of the cluster.',
                  HINT = 'Rewind this node or clone it again.';
    END IF;

    SELECT l.index, l.term INTO newest FROM quorum.cluster_log AS l ORDER BY l.index DESC LIMIT 1;
    IF newest.index > admit_entry.index THEN
        RAISE EXCEPTION 'entry % is older than the newest applied entry, %, and is not recorded',
                admit_entry.index, newest.index
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'Entries are applied in order; entries older than the kept log cannot be told apart any more.';
    ELSIF newest.term > admit_entry.term THEN
        RAISE EXCEPTION 'entry % of term % follows entry % of the later term %',
                admit_entry.index, admit_entry.term, newest.index, newest.term
            USING ERRCODE = 'data_exception',
                  DETAIL = 'Terms never fall along one history, so this database holds data of another one.',
                  HINT = 'Rewind this node or clone it again.';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.admit_entry(bigint, bigint) IS
    'Internal. True: the entry is the next one. False: already recorded. Errors: 22000 another history, 55000 out of order.';

CREATE FUNCTION quorum.apply_entry(index bigint, term bigint, payload jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    entry CONSTANT jsonb := payload;
BEGIN
    PERFORM quorum.require_input(jsonb_typeof(entry) = 'object',
        format('the payload must be a JSON object, not %s', coalesce(jsonb_typeof(entry), 'NULL')));
    IF NOT quorum.admit_entry(apply_entry.index, apply_entry.term) THEN
        RETURN false;
    END IF;
    INSERT INTO quorum.cluster_log (index, term, payload)
        VALUES (apply_entry.index, apply_entry.term, entry);
    IF entry ? 'nodes' THEN
        PERFORM quorum.replace_nodes(entry -> 'nodes');
    END IF;
    IF entry ? 'config' THEN
        PERFORM quorum.replace_settings('quorum.config', 'config', entry -> 'config');
    END IF;
    IF entry ? 'db-config' THEN
        PERFORM quorum.replace_settings('quorum.db_config', 'db-config', entry -> 'db-config');
    END IF;
    IF entry ? 'lost' THEN
        PERFORM quorum.record_lost(apply_entry.index, entry -> 'lost');
    END IF;
    IF entry ? 'event' THEN
        PERFORM quorum.record_event(apply_entry.index, apply_entry.term, entry -> 'event');
    END IF;
    PERFORM quorum.trim_logs();
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.apply_entry(bigint, bigint, jsonb) IS
    'Applies one committed entry of the consensus log in the caller''s transaction. True: applied. False: it was recorded already, nothing changed. The keys nodes, config and db-config of the payload replace that state, event and lost are recorded. Errors: 22000 data of another history, 22023 bad payload, 55000 out of order.';

CREATE FUNCTION quorum.apply_snapshot(index bigint, term bigint, state jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    snapshot CONSTANT jsonb := state;
BEGIN
    PERFORM quorum.require_input(jsonb_typeof(snapshot) = 'object',
        format('the state must be a JSON object, not %s', coalesce(jsonb_typeof(snapshot), 'NULL')));
    -- Without this an incomplete snapshot would wipe the members out.
    PERFORM quorum.require_input(snapshot ? 'nodes', 'a snapshot must have "nodes"');
    IF NOT quorum.admit_entry(apply_snapshot.index, apply_snapshot.term) THEN
        RETURN false;
    END IF;
    INSERT INTO quorum.cluster_log (index, term, payload)
        VALUES (apply_snapshot.index, apply_snapshot.term, '{"type": "snapshot"}' || snapshot);
    PERFORM quorum.replace_nodes(snapshot -> 'nodes');
    PERFORM quorum.replace_settings('quorum.config', 'config', coalesce(snapshot -> 'config', '{}'));
    PERFORM quorum.replace_settings('quorum.db_config', 'db-config', coalesce(snapshot -> 'db-config', '{}'));
    IF snapshot ? 'event' THEN
        PERFORM quorum.record_event(apply_snapshot.index, apply_snapshot.term, snapshot -> 'event');
    END IF;
    PERFORM quorum.trim_logs();
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.apply_snapshot(bigint, bigint, jsonb) IS
    'Replaces the cluster''s state by a snapshot of it at a log index above every recorded one. "nodes" is required; without config or db-config those become empty. True: applied. False: exactly this index and term is recorded already. Errors as quorum.apply_entry.';

CREATE FUNCTION quorum.open_epoch(
    epoch bigint, node bigint, timeline integer, switch_lsn pg_lsn, k integer, members bigint[]
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    newest record;
BEGIN
    PERFORM quorum.require_input(
        open_epoch.epoch > 0 AND open_epoch.node > 0 AND open_epoch.timeline > 0 AND open_epoch.switch_lsn IS NOT NULL
            AND open_epoch.k >= 0 AND open_epoch.members IS NOT NULL AND array_position(open_epoch.members, NULL) IS NULL,
        'epoch, node and timeline must be positive, k not negative, switch_lsn and members not null');
    PERFORM quorum.require_read_committed();
    LOCK TABLE quorum.leadership IN SHARE ROW EXCLUSIVE MODE;

    IF EXISTS (SELECT FROM quorum.leadership AS l
               WHERE l.epoch = open_epoch.epoch AND l.node = open_epoch.node) THEN
        RETURN false;
    END IF;
    SELECT l.epoch, l.node INTO newest FROM quorum.leadership AS l ORDER BY l.epoch DESC LIMIT 1;
    IF newest.epoch >= open_epoch.epoch THEN
        RAISE EXCEPTION 'epoch % of node % is not newer than epoch % of node %',
                open_epoch.epoch, open_epoch.node, newest.epoch, newest.node
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'Each appointment has an epoch of its own, higher than all before.';
    END IF;
    INSERT INTO quorum.leadership (epoch, node, timeline, switch_lsn, k, members)
    VALUES (open_epoch.epoch, open_epoch.node, open_epoch.timeline, open_epoch.switch_lsn, open_epoch.k,
            open_epoch.members);
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.open_epoch(bigint, bigint, integer, pg_lsn, integer, bigint[]) IS
    'Records the appointment of a leader. True: recorded. False: exactly this epoch of this node is there already. Errors: 55000 the epoch is not newer than all others, 22023 bad arguments. With the fence on the commit needs pgquorum.bypass_fence, because there is no lease yet.';
