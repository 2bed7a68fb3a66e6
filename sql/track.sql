-- Which tables are captured: track, untrack, and what statements may do to tracked tables (ddl.sql).
-- The triggers are written in Rust (extension/src/capture). They read tracked_table and schema_version themselves
-- (extension/src/pg/tracking.rs), and ask `tracking` only if a table is not what its newest version says.

CREATE FUNCTION quorum.capture_row() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'pgquorum_capture_row';
COMMENT ON FUNCTION quorum.capture_row() IS 'Internal. Row trigger of tracked tables; created by quorum.track.';
CREATE FUNCTION quorum.capture_truncate() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'pgquorum_capture_truncate';
COMMENT ON FUNCTION quorum.capture_truncate() IS 'Internal. TRUNCATE trigger of tracked tables; created by quorum.track.';

CREATE FUNCTION quorum.base_type(type oid) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE below AS (
        SELECT t.oid, t.typtype, t.typbasetype FROM pg_type AS t WHERE t.oid = base_type.type
        UNION ALL
        SELECT t.oid, t.typtype, t.typbasetype FROM below JOIN pg_type AS t ON t.oid = below.typbasetype AND below.typtype = 'd'
    )
    SELECT oid FROM below WHERE typtype <> 'd'
$$;
COMMENT ON FUNCTION quorum.base_type(oid) IS 'Internal. The type below all domains.';

-- The key is the primary key, else the index of REPLICA IDENTITY USING INDEX; without one of its columns it would tell
-- no rows apart, so then there is none. Columns that PostgreSQL computes are left out, unless the key has them: who
-- follows computes them too.
CREATE FUNCTION quorum.table_columns(relid oid, columns smallint[]) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH present AS (
        SELECT (i.indkey::smallint[])[0:i.indnkeyatts - 1] AS columns FROM pg_index AS i
        WHERE i.indrelid = table_columns.relid AND (i.indisprimary OR i.indisreplident) AND i.indisvalid
        ORDER BY i.indisprimary DESC LIMIT 1
    ), key AS (
        SELECT p.columns FROM present AS p WHERE table_columns.columns IS NULL OR p.columns <@ table_columns.columns
    ), captured AS (
        SELECT a.*, coalesce(a.attnum = ANY (key.columns), false) AS key
        FROM pg_attribute AS a LEFT JOIN key ON true
        WHERE a.attrelid = table_columns.relid AND a.attnum > 0 AND NOT a.attisdropped
          AND (table_columns.columns IS NULL OR a.attnum = ANY (table_columns.columns))
    )
    SELECT coalesce(jsonb_agg(jsonb_build_object(
               'name', c.attname, 'type', format_type(c.atttypid, c.atttypmod), 'type_oid', c.atttypid::bigint,
               'attnum', c.attnum, 'key', c.key, 'category', t.typcategory,
               'base', quorum.base_type(c.atttypid)::bigint) ORDER BY c.attnum), '[]')
    FROM captured AS c JOIN pg_type AS t ON t.oid = c.atttypid
    WHERE c.attgenerated = '' OR c.key
$$;
COMMENT ON FUNCTION quorum.table_columns(oid, smallint[]) IS 'Internal. The captured columns of a table as schema_version records them.';

-- A pg_node_tree is laid out as a text. The server's own function takes care of the database's encoding.
CREATE FUNCTION quorum.filter_text(tree text, relation oid) RETURNS text LANGUAGE internal STABLE STRICT AS 'pg_get_expr';
COMMENT ON FUNCTION quorum.filter_text(text, oid) IS
    'Internal. What a stored filter says in present names, qualified where the search path does not find them.';

CREATE FUNCTION quorum.tracking(
    relid oid, OUT root oid, OUT channel integer, OUT old_image text, OUT filter text, OUT schema_version bigint,
    OUT schema_name text, OUT table_name text, OUT columns text
) RETURNS SETOF record
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now jsonb;
    t quorum.tracked_table;
BEGIN
    SELECT x.* INTO t FROM quorum.tracked_table AS x
    WHERE x.relid = tracking.relid
       OR x.relid IN (SELECT a.relid FROM pg_partition_ancestors(tracking.relid::regclass) AS a(relid));
    IF NOT FOUND THEN
        RETURN;
    END IF;
    now := quorum.table_columns(t.relid, t.columns);
    SELECT t.relid, t.channel, t.old_image, t.filter, n.nspname, c.relname, now::text
    INTO root, channel, old_image, filter, schema_name, table_name, columns
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = t.relid;
    -- The newest version that says what is true now; NULL if something changed that no event trigger saw.
    SELECT max(v.id) INTO schema_version FROM quorum.schema_version AS v
    WHERE v.relid = t.relid AND v.channel = t.channel AND v.columns = now AND v.schema_name = tracking.schema_name
      AND v.table_name = tracking.table_name;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION quorum.tracking(oid) IS
    'Internal. How a table or partition is captured, in one row; no row: it is not. schema_version is NULL if none says what is true now.';

CREATE FUNCTION quorum.record_schema(root oid) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO quorum.schema_version (relid, channel, schema_name, table_name, columns)
    SELECT t.relid, t.channel, n.nspname, c.relname, quorum.table_columns(t.relid, t.columns)
    FROM quorum.tracked_table AS t JOIN pg_class AS c ON c.oid = t.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE t.relid = record_schema.root
    RETURNING id
$$;
COMMENT ON FUNCTION quorum.record_schema(oid) IS 'Internal. Records what a tracked table looks like now and returns the number.';

-- A lock that cannot be had at once is given up and asked for again, so that nobody queues behind it.
CREATE FUNCTION quorum.lock_briefly(relation regclass, mode text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
    give_up timestamptz := clock_timestamp() + interval '1 minute';
BEGIN
    LOOP
        BEGIN
            EXECUTE format('LOCK TABLE %s IN %s MODE', relation, mode);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > give_up THEN
                RAISE EXCEPTION 'table % is busy: no lock on it could be had for a minute', relation
                    USING ERRCODE = 'lock_not_available',
                          HINT = 'A transaction that wrote it is still open (see pg_locks, pg_stat_activity). Try again when it is over.';
            END IF;
        END;
        PERFORM pg_sleep(0.05 + random() / 5);
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.lock_briefly(regclass, text) IS 'Internal. Locks a table without letting others queue behind; 55P03 after a minute.';

CREATE FUNCTION quorum.require_trackable(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kind "char";
    persistence "char";
    space text;
    reason text;
BEGIN
    SELECT c.relkind, c.relpersistence, n.nspname INTO kind, persistence, space
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation;
    reason := CASE
        WHEN space IN ('pg_catalog', 'information_schema', 'pg_toast') THEN 'it is a system table'
        WHEN space IN ('quorum', 'quorum_log') THEN 'it is one of pgquorum''s own tables'
        WHEN kind = 'v' THEN 'it is a view, which holds no rows; track the tables below it'
        WHEN kind = 'm' THEN 'it is a materialized view, whose refresh no trigger sees'
        WHEN kind = 'f' THEN 'it is a foreign table, and others can change it without this server'
        WHEN kind NOT IN ('r', 'p') THEN 'it is not a table'
        WHEN persistence = 't' THEN 'it is a temporary table, seen by one session only'
        WHEN persistence = 'u' THEN 'it is an unlogged table: a crash empties it, and no standby has it'
    END;
    IF reason IS NOT NULL THEN
        RAISE EXCEPTION 'cannot track %: %', relation, reason USING ERRCODE = 'wrong_object_type';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.require_trackable(regclass) IS 'Internal. Raises 42809 with the reason if a table can never be tracked.';

-- The tables below a root, itself included.
CREATE FUNCTION quorum.table_tree(root oid) RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT table_tree.root UNION SELECT p.relid FROM pg_partition_tree(table_tree.root::regclass) AS p
$$;
COMMENT ON FUNCTION quorum.table_tree(oid) IS 'Internal. A table and its partitions on all levels.';

-- Our triggers, known by what they call: names can be given to others.
CREATE VIEW quorum.capture_trigger AS
    SELECT g.oid, g.tgrelid AS relid, g.tgname AS name, g.tgparentid <> 0 AS inherited, g.tgenabled = 'A' AS always, k.name AS kind,
           g.tgtype = k.type AND g.tgqual IS NULL AND g.tgattr = '' AND g.tgconstraint = 0
               AND g.tgoldtable IS NULL AND g.tgnewtable IS NULL AS fits
    FROM pg_catalog.pg_trigger AS g
    JOIN (VALUES ('quorum.capture_row()'::pg_catalog.regprocedure, 'pgquorum_row', 1 + 4 + 8 + 16),
                 ('quorum.capture_truncate()', 'pgquorum_truncate', 2 + 32)) AS k (function, name, type)
         ON g.tgfoid = k.function;
COMMENT ON VIEW quorum.capture_trigger IS
    'Internal. The triggers that capture. kind: the name it should have. fits: fires for all that it is to capture, at the right moment, whatever the row.';

CREATE FUNCTION quorum.trigger_fault(root oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('its trigger %s must be there once%s, as quorum.track made it', k.name,
                  CASE WHEN m.relid <> trigger_fault.root THEN format(' on the partition %s', m.relid::regclass) ELSE '' END)
    FROM quorum.table_tree(trigger_fault.root) AS m(relid)
    CROSS JOIN (VALUES ('pgquorum_row'), ('pgquorum_truncate')) AS k (name)
    LEFT JOIN quorum.capture_trigger AS g ON g.relid = m.relid AND g.kind = k.name
    GROUP BY m.relid, k.name
    -- A partition that has just come has no trigger for TRUNCATE yet.
    HAVING count(g.oid) > 1 OR NOT bool_and(coalesce(g.fits AND g.name = k.name,
        m.relid <> trigger_fault.root AND m.relid NOT IN (SELECT p.relid FROM quorum.tracked_partition AS p)))
    ORDER BY m.relid, k.name LIMIT 1
$$;
COMMENT ON FUNCTION quorum.trigger_fault(oid) IS
    'Internal. What is wrong with the triggers of a tracked table, apart from their being switched off; NULL: nothing.';

CREATE FUNCTION quorum.run_own(sql text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.next_is_own();
    EXECUTE sql;
END
$$;
COMMENT ON FUNCTION quorum.run_own(text) IS 'Internal. Runs a utility statement of pgquorum''s own, which its event triggers let pass.';

CREATE FUNCTION quorum.remove_triggers(root oid, unfit boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    member record;
BEGIN
    FOR member IN SELECT g.name, g.relid::regclass AS relation FROM quorum.capture_trigger AS g
                  WHERE g.relid IN (SELECT quorum.table_tree(remove_triggers.root)) AND NOT g.inherited
                    AND NOT (remove_triggers.unfit AND g.fits AND g.name = g.kind
                             AND (g.kind = 'pgquorum_truncate' OR g.relid = remove_triggers.root)) LOOP
        -- Else everybody would queue behind this while a reader is there.
        PERFORM quorum.lock_briefly(member.relation, 'ACCESS EXCLUSIVE');
        PERFORM quorum.run_own(format('DROP TRIGGER %I ON %s', member.name, member.relation));
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.remove_triggers(oid, boolean) IS
    'Internal. Takes the triggers that capture off a table and its partitions; unfit: only those that track() would not make.';

CREATE FUNCTION quorum.release_detached(root oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    member record;
BEGIN
    FOR member IN DELETE FROM quorum.tracked_partition AS p
                  WHERE p.root = release_detached.root AND p.relid NOT IN (SELECT quorum.table_tree(release_detached.root))
                  RETURNING p.relid LOOP
        PERFORM quorum.remove_triggers(member.relid);
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.release_detached(oid) IS 'Internal. Takes what is left of our triggers off partitions that were detached.';

-- Makes whatever trigger is missing, fires all of them always, and notes the present partitions.
CREATE FUNCTION quorum.equip(root oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    member record;
BEGIN
    -- PostgreSQL itself copies the row trigger of a partitioned table to its partitions, present and future.
    IF NOT EXISTS (SELECT FROM quorum.capture_trigger AS g WHERE g.relid = root AND g.kind = 'pgquorum_row') THEN
        PERFORM quorum.run_own(format('CREATE TRIGGER pgquorum_row AFTER INSERT OR UPDATE OR DELETE ON %s '
                                      'FOR EACH ROW EXECUTE FUNCTION quorum.capture_row()', root::regclass));
    END IF;
    FOR member IN SELECT m.relid::regclass AS relation FROM quorum.table_tree(root) AS m(relid)
                  WHERE NOT EXISTS (SELECT FROM quorum.capture_trigger AS g WHERE g.relid = m.relid AND g.kind = 'pgquorum_truncate') LOOP
        PERFORM quorum.require_trackable(member.relation);
        PERFORM quorum.run_own(format('CREATE TRIGGER pgquorum_truncate BEFORE TRUNCATE ON %s '
                                      'FOR EACH STATEMENT EXECUTE FUNCTION quorum.capture_truncate()', member.relation));
    END LOOP;
    FOR member IN SELECT g.relid::regclass AS relation, g.name FROM quorum.capture_trigger AS g
                  WHERE g.relid IN (SELECT quorum.table_tree(root)) AND NOT g.always LOOP
        PERFORM quorum.run_own(format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', member.relation, member.name));
    END LOOP;
    -- Here, and nowhere else: whoever comes first after a DETACH must do all of it.
    PERFORM quorum.release_detached(equip.root);
    INSERT INTO quorum.tracked_partition (relid, root)
    SELECT m.relid, equip.root FROM quorum.table_tree(equip.root) AS m(relid) WHERE m.relid <> equip.root
    ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION quorum.equip(oid) IS 'Internal. Sees to it that a tracked table and its partitions have their triggers.';

CREATE FUNCTION quorum.track(
    relation regclass, channel text, columns text[] DEFAULT NULL, "where" text DEFAULT NULL, old_image text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target integer := quorum.channel_id(channel);
    image text := coalesce(track.old_image, (SELECT c.old_image FROM quorum.channel AS c WHERE c.id = target));
    numbers smallint[];
    missing text;
    present jsonb;
    parsed record;
    version bigint;
BEGIN
    PERFORM quorum.require_input(relation IS NOT NULL, 'the table must not be null');
    PERFORM quorum.require_input(image IN ('none', 'key', 'full'),
        format('old_image is none, key or full, not %s', quote_literal(image)));
    PERFORM quorum.require_trackable(m.relid::regclass) FROM quorum.table_tree(relation) AS m(relid);
    -- Until this transaction ends the channel is not stopped.
    PERFORM FROM quorum.channel AS c WHERE c.id = target AND c.stopped_at IS NULL FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'channel "%" is stopped: nothing is captured in it', channel
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = format('SELECT quorum.start_channel(%L), then track the table.', channel);
    END IF;
    PERFORM quorum.lock_briefly(relation, 'SHARE ROW EXCLUSIVE');
    SELECT c.name INTO missing FROM quorum.tracked_table AS t JOIN quorum.channel AS c ON c.id = t.channel
    WHERE t.relid IN (SELECT quorum.table_tree(relation) UNION SELECT a.relid::oid FROM pg_partition_ancestors(relation) AS a(relid));
    IF FOUND THEN
        RAISE EXCEPTION 'table % is already in channel "%", itself or with its partitions', relation, missing
            USING ERRCODE = 'duplicate_object', HINT = 'A table is in one channel at most. quorum.untrack takes it out.';
    END IF;

    SELECT n.name INTO missing FROM unnest(track.columns) AS n(name)
    WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = n.name
                                                    AND a.attnum > 0 AND NOT a.attisdropped);
    IF FOUND THEN
        RAISE EXCEPTION 'table % has no column %', relation, coalesce(quote_ident(missing), 'NULL') USING ERRCODE = 'undefined_column';
    END IF;
    IF track.columns IS NOT NULL THEN
        SELECT array_agg(a.attnum ORDER BY a.attnum) INTO numbers FROM pg_attribute AS a
        WHERE a.attrelid = relation AND a.attname = ANY (track.columns) AND a.attnum > 0;
        PERFORM quorum.require_input(numbers IS NOT NULL, 'the list of columns is empty; leave it out to capture all of them');
    END IF;
    present := quorum.table_columns(relation, NULL);
    IF image <> 'full' AND NOT present @> '[{"key": true}]' THEN
        RAISE EXCEPTION 'cannot track %: it has no key by which its rows could be told apart', relation
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Add a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX, or track it with old_image => ''full''.';
    END IF;
    SELECT string_agg(e.value ->> 'name', ', ') INTO missing FROM jsonb_array_elements(present) AS e
    WHERE (e.value ->> 'key')::boolean AND NOT (e.value ->> 'attnum')::smallint = ANY (numbers);
    PERFORM quorum.require_input(missing IS NULL, format('the list of columns must have the key''s: %s', missing));
    IF track."where" IS NOT NULL THEN
        SELECT f.* INTO parsed FROM quorum.parse_filter(relation, convert_to(track."where", getdatabaseencoding())) AS f;
        PERFORM quorum.require_input(track."where" !~ '^\s*$', 'the filter is empty');
    ELSE
        SELECT NULL::text AS tree, NULL::smallint[] AS columns INTO parsed;
    END IF;

    -- Whatever a dump or somebody else has left.
    PERFORM quorum.remove_triggers(relation, unfit => true);
    PERFORM quorum.equip(relation);
    INSERT INTO quorum.tracked_table (relid, channel, columns, filter, filter_sql, filter_columns, old_image, schema_version)
    VALUES (relation, target, numbers, parsed.tree, track."where", parsed.columns, image, 0);
    version := quorum.record_schema(relation);
    UPDATE quorum.tracked_table AS t SET schema_version = version WHERE t.relid = relation;
    PERFORM quorum.record_entry(target, version, 'TRACK');
    PERFORM quorum.note_indexes(relation);
    PERFORM quorum.forget_cached(m.relid::regclass) FROM quorum.table_tree(relation) AS m(relid);
END
$$;
COMMENT ON FUNCTION quorum.track(regclass, text, text[], text, text) IS
    'Captures the changes of a table (of all present and future partitions) from this transaction''s commit on. columns: only these, the key among them. "where": only rows for which it is true, a row filter as in CREATE PUBLICATION. old_image: what is recorded of old rows (none, key, full). Errors: 42704 no such channel, 42809 not a table that can be tracked, 55000 no key, or the channel is stopped, 42710 already tracked, 42703 no such column, 22023 bad arguments, 55P03 the table is busy.';

CREATE FUNCTION quorum.untrack(relation regclass) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ended record;
BEGIN
    SELECT t.channel, t.schema_version INTO ended FROM quorum.tracked_table AS t WHERE t.relid = relation;
    IF NOT FOUND THEN
        -- One of a stopped channel: it is not to be tracked again.
        DELETE FROM quorum.resting_table AS r WHERE r.relid = relation;
        IF FOUND THEN
            RETURN;
        END IF;
        RAISE EXCEPTION 'table % is not tracked', coalesce(relation::text, 'NULL')
            USING ERRCODE = 'undefined_object', HINT = 'SELECT * FROM quorum.tracked_tables lists those that are. Partitions are tracked with their parent.';
    END IF;
    PERFORM quorum.lock_briefly(relation, 'ACCESS EXCLUSIVE');
    PERFORM quorum.record_entry(ended.channel, ended.schema_version, 'UNTRACK');
    DELETE FROM quorum.tracked_table AS t WHERE t.relid = relation;
    DELETE FROM quorum.tracked_partition AS p WHERE p.root = relation;
    DELETE FROM quorum.versioned_table AS v WHERE v.relid = relation;
    DELETE FROM quorum.tracked_index AS k WHERE k.relid = relation;
    PERFORM quorum.remove_triggers(relation);
END
$$;
COMMENT ON FUNCTION quorum.untrack(regclass) IS
    'Stops capturing a table. What is in the log stays; versions of its rows are forgotten. Errors: 42704 it is not tracked, 55P03 it is busy.';

CREATE VIEW quorum.channels AS
    SELECT c.name, c.old_image, c.retain_age, c.retain_rows, c.retain_bytes, c.cap_bytes, c.created_at,
           (SELECT count(*) FROM quorum.tracked_table AS t WHERE t.channel = c.id) AS tables
    FROM quorum.channel AS c;
COMMENT ON VIEW quorum.channels IS 'The channels, their rules of retention, and how many tables each has.';
