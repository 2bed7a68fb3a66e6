-- What the sidecar that works for a subscription calls, beside quorum.apply.

CREATE FUNCTION quorum.require_subscription(subscription integer) RETURNS quorum.subscription
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s quorum.subscription;
BEGIN
    SELECT x.* INTO s FROM quorum.subscription AS x WHERE x.id = require_subscription.subscription;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no subscription with the id %', coalesce(require_subscription.subscription::text, 'NULL')
            USING ERRCODE = 'undefined_object', HINT = 'It may have been ended meanwhile: SELECT * FROM quorum.subscription_state.';
    END IF;
    RETURN s;
END
$$;
COMMENT ON FUNCTION quorum.require_subscription(integer) IS 'Internal. A subscription. Error 42704: there is none of that id.';

CREATE FUNCTION quorum.subscription_tables_found(
    subscription integer, remote_origin text, tables jsonb, epoch bigint DEFAULT NULL, tick bigint DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s quorum.subscription := quorum.require_subscription(subscription_tables_found.subscription);
    at quorum.subscription_position;
    added integer;
BEGIN
    PERFORM quorum.require_input(subscription_tables_found.remote_origin ~ '^.{1,63}$', 'the source must say its origin name');
    PERFORM quorum.require_input(jsonb_typeof(subscription_tables_found.tables) = 'array'
        AND NOT EXISTS (SELECT FROM jsonb_array_elements(subscription_tables_found.tables) AS e
                        WHERE coalesce(jsonb_typeof(e -> 'schema') <> 'string' OR jsonb_typeof(e -> 'table') <> 'string', true)),
        'tables is an array of {"schema": …, "table": …}');
    PERFORM quorum.require_input((subscription_tables_found.epoch IS NULL) = (subscription_tables_found.tick IS NULL),
        'epoch and tick belong together');
    IF subscription_tables_found.remote_origin = quorum.origin_name() THEN
        RAISE EXCEPTION 'the source of subscription % is this database itself', quote_ident(s.name)
            USING ERRCODE = 'PQ014',
                  DETAIL = format('Both have the origin name %L.', subscription_tables_found.remote_origin),
                  HINT = 'Look at the addresses in remote. If one of the two was made of a copy of the other''s data directory, give the copy a name of its own: '
                         || CASE WHEN EXISTS (SELECT FROM quorum.identity) THEN 'as a superuser DELETE FROM quorum.identity, and then ' ELSE '' END
                         || 'SELECT quorum.set_origin_name(…). Whoever follows the copy already must subscribe anew.';
    END IF;
    SELECT p.* INTO STRICT at FROM quorum.subscription_position AS p WHERE p.subscription = s.id FOR NO KEY UPDATE;
    IF s.remote_origin IS NULL THEN
        UPDATE quorum.subscription AS x SET remote_origin = subscription_tables_found.remote_origin WHERE x.id = s.id;
    ELSIF s.remote_origin <> subscription_tables_found.remote_origin THEN
        RAISE EXCEPTION 'the source of subscription % is another database than before', quote_ident(s.name)
            USING ERRCODE = 'PQ015',
                  DETAIL = format('It was %L, now it is %L: the position of the one means nothing at the other.',
                                  s.remote_origin, subscription_tables_found.remote_origin),
                  HINT = 'Look at the addresses in remote and at database. To follow the other one: quorum.unsubscribe, then quorum.subscribe.';
    END IF;
    -- Where nothing is copied, the beginning is where the subscription says.
    IF at.tick IS NULL AND s.copy = 'none' THEN
        IF subscription_tables_found.tick IS NOT NULL THEN
            at.epoch := subscription_tables_found.epoch;
            at.tick := subscription_tables_found.tick;
        ELSIF s.start ~ '^[0-9]+:[0-9]+$' THEN
            at.epoch := split_part(s.start, ':', 1)::bigint;
            at.tick := split_part(s.start, ':', 2)::bigint;
        ELSE
            PERFORM quorum.require_input(false, format('the position that %s stands for must be given', coalesce(quote_literal(s.start), 'now')));
        END IF;
        UPDATE quorum.subscription_position AS p SET epoch = at.epoch, tick = at.tick WHERE p.subscription = s.id;
    END IF;
    INSERT INTO quorum.subscription_table AS x (subscription, schema_name, table_name, state, after_epoch, after_tick)
    SELECT s.id, f.schema_name, f.table_name, CASE WHEN s.copy = 'none' THEN 'following' ELSE 'copy' END,
           CASE WHEN s.copy = 'none' THEN at.epoch END, CASE WHEN s.copy = 'none' THEN at.tick END
    FROM (SELECT DISTINCT e ->> 'schema', e ->> 'table' FROM jsonb_array_elements(subscription_tables_found.tables) AS e)
         AS f (schema_name, table_name)
    WHERE s.tables IS NULL OR f.schema_name || '.' || f.table_name = ANY (s.tables)
    -- Where nothing is copied, what was changed meanwhile is missing here; that it goes on all the same somebody must say.
    ON CONFLICT ON CONSTRAINT subscription_table_pkey DO UPDATE
        SET state = CASE WHEN s.copy = 'none' AND x.after_tick IS NOT NULL THEN 'stopped' ELSE excluded.state END,
            after_epoch = CASE WHEN s.copy = 'none' THEN coalesce(x.after_epoch, excluded.after_epoch) END,
            after_tick = CASE WHEN s.copy = 'none' THEN coalesce(x.after_tick, excluded.after_tick) END,
            code = CASE WHEN s.copy = 'none' AND x.after_tick IS NOT NULL THEN 'PQ018' END,
            message = CASE WHEN s.copy = 'none' AND x.after_tick IS NOT NULL THEN
                'The source tracks this table again. What was changed there while it did not is not in its log, and this subscription copies nothing. Bring those rows here yourself, or do without them, and call quorum.resume_table: it goes on with what was changed since. Or empty the table and have it copied: quorum.resume_table(…, copy => true).' END,
            since = clock_timestamp()
        WHERE x.code = 'PQ016';
    GET DIAGNOSTICS added = ROW_COUNT;
    INSERT INTO quorum.subscription_table (subscription, schema_name, table_name, state, code, message)
    SELECT s.id, split_part(w, '.', 1), substr(w, strpos(w, '.') + 1), 'stopped', 'PQ016',
           'The source does not track this table in its channel. It is followed as soon as it does.'
    FROM (SELECT unnest(s.tables) UNION SELECT jsonb_object_keys(s.filter)) AS wanted (w)
    WHERE NOT EXISTS (SELECT FROM quorum.subscription_table AS x WHERE x.subscription = s.id AND x.schema_name || '.' || x.table_name = w);
    PERFORM quorum.keep_versions_of(s.id);
    RETURN added;
END
$$;
COMMENT ON FUNCTION quorum.subscription_tables_found(integer, text, jsonb, bigint, bigint) IS
    'What the source tracks, with its origin name, as [{"schema", "table"}]; epoch and tick: where to begin if nothing is copied. Returns how many tables are new. Errors: 42704 no such subscription, 22023 bad arguments, PQ014 the source is this database, PQ015 it is another one than before.';

CREATE FUNCTION quorum.add_schemas(subscription integer, schemas jsonb) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s quorum.subscription := quorum.require_subscription(add_schemas.subscription);
    added integer;
BEGIN
    PERFORM quorum.require_input(jsonb_typeof(add_schemas.schemas) = 'array'
        AND NOT EXISTS (SELECT FROM jsonb_array_elements(add_schemas.schemas) AS e
                        WHERE coalesce(NOT quorum.is_integer(e -> 'id', 1, 999999999999999999)
                                       OR jsonb_typeof(e -> 'schema') <> 'string' OR jsonb_typeof(e -> 'table') <> 'string'
                                       OR jsonb_typeof(e -> 'columns') <> 'array', true)),
        'schemas is an array of {"id": …, "schema": …, "table": …, "columns": […]}');
    INSERT INTO quorum.subscription_schema AS x (subscription, id, schema_name, table_name, columns)
    SELECT s.id, (e ->> 'id')::bigint, e ->> 'schema', e ->> 'table', e -> 'columns' FROM jsonb_array_elements(add_schemas.schemas) AS e
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added;
END
$$;
COMMENT ON FUNCTION quorum.add_schemas(integer, jsonb) IS
    'Schema versions of the source, as its /channels/{c}/schemas gives them, to which changes refer. Returns how many are new. Errors: 42704 no such subscription, 22023 bad arguments.';

CREATE FUNCTION quorum.require_table(subscription integer, "schema" text, "table" text) RETURNS quorum.subscription_table
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t quorum.subscription_table;
BEGIN
    SELECT x.* INTO t FROM quorum.subscription_table AS x
    WHERE x.subscription = require_table.subscription AND x.schema_name = require_table."schema" AND x.table_name = require_table."table";
    IF NOT FOUND THEN
        RAISE EXCEPTION 'subscription % has no table %.%', require_table.subscription, require_table."schema", require_table."table"
            USING ERRCODE = 'undefined_table';
    END IF;
    RETURN t;
END
$$;
COMMENT ON FUNCTION quorum.require_table(integer, text, text) IS 'Internal. A table of a subscription. Error 42P01: it has no such table.';

CREATE FUNCTION quorum.table_copied(
    subscription integer, "schema" text, "table" text, epoch bigint, tick bigint, rows bigint, bytes bigint
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at quorum.subscription_position;
    t quorum.subscription_table;
    fresh text;
BEGIN
    PERFORM quorum.require_input(table_copied.epoch >= 0 AND table_copied.tick >= 0, 'the position of the copy must be given');
    -- Whoever applies changes has this row: it sees the table either before or after.
    SELECT p.* INTO at FROM quorum.subscription_position AS p WHERE p.subscription = table_copied.subscription FOR NO KEY UPDATE;
    t := quorum.require_table(table_copied.subscription, table_copied."schema", table_copied."table");
    IF t.state <> 'copy' THEN
        RAISE EXCEPTION 'table %.% is not to be copied, its state is %', t.schema_name, t.table_name, t.state
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Somebody else has copied it, or the subscription was changed. This copy is rolled back.';
    END IF;
    IF at.tick IS NULL THEN
        UPDATE quorum.subscription_position AS p SET epoch = table_copied.epoch, tick = table_copied.tick
        WHERE p.subscription = table_copied.subscription;
    END IF;
    fresh := CASE WHEN at.tick > table_copied.tick THEN 'catch-up' ELSE 'following' END;
    UPDATE quorum.subscription_table AS x
    SET state = fresh, after_epoch = table_copied.epoch, after_tick = table_copied.tick, rows = coalesce(table_copied.rows, 0),
        bytes = coalesce(table_copied.bytes, 0), code = NULL, message = NULL, since = clock_timestamp()
    WHERE (x.subscription, x.schema_name, x.table_name) = (t.subscription, t.schema_name, t.table_name);
    RETURN fresh;
END
$$;
COMMENT ON FUNCTION quorum.table_copied(integer, text, text, bigint, bigint, bigint, bigint) IS
    'In the transaction that has copied a table: the position of the copy. Returns the table''s state: following, or catch-up where the subscription is already further (quorum.apply with only brings it there). Errors: 42P01 no such table in the subscription, 55000 it is not to be copied, 22023.';

CREATE FUNCTION quorum.require_empty(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one integer;
BEGIN
    EXECUTE format('SELECT 1 FROM %s LIMIT 1', relation) INTO one;
    IF one IS NOT NULL THEN
        RAISE EXCEPTION 'table % holds rows already, and the subscription says copy => ''error''', relation
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Empty the table and call quorum.resume_table(…, copy => true); or subscribe with copy => ''truncate'' (the rows here go) or ''merge'' (rows with the same key are overwritten, others stay).';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.require_empty(regclass) IS 'Internal. Error 55000: the table holds rows.';

CREATE FUNCTION quorum.copy_plan(
    subscription integer, "schema" text, "table" text, columns text[],
    OUT before text, OUT copy text, OUT after text, OUT copied_columns text[]
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s quorum.subscription := quorum.require_subscription(copy_plan.subscription);
    t quorum.subscription_table := quorum.require_table(copy_plan.subscription, copy_plan."schema", copy_plan."table");
    relation regclass := to_regclass(format('%I.%I', copy_plan."schema", copy_plan."table"));
    owner oid := (SELECT c.relowner FROM pg_class AS c WHERE c.oid = relation);
    kind text := (SELECT c.relkind FROM pg_class AS c WHERE c.oid = relation);
    fired text;
    missing text;
    list text;
    keys text;
    updates text;
    prelude text;
    wanted text := quorum.filter_of(s.filter, copy_plan."schema", copy_plan."table");
BEGIN
    PERFORM quorum.require_input(cardinality(copy_plan.columns) > 0, 'the columns that the source copies must be given');
    IF relation IS NULL THEN
        RAISE EXCEPTION 'there is no table %.% here', copy_plan."schema", copy_plan."table"
            USING ERRCODE = 'undefined_table', HINT = 'Create it as it is at the source, then call quorum.resume_table(…, copy => true).';
    END IF;
    IF copy_plan."schema" IN ('pg_catalog', 'information_schema', 'quorum', 'quorum_log', 'pg_toast') THEN
        RAISE EXCEPTION 'table %.% is one of the system''s or of pgquorum''s own', copy_plan."schema", copy_plan."table"
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF kind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '%.% is no ordinary table here', copy_plan."schema", copy_plan."table" USING ERRCODE = 'wrong_object_type';
    END IF;
    -- Everything runs with the rights of the table's owner, also what belongs to somebody else who may less.
    SELECT string_agg(quote_ident(g.tgname), ', ') INTO fired FROM pg_trigger AS g
    JOIN pg_class AS c ON c.oid = g.tgrelid JOIN pg_roles AS o ON o.oid = c.relowner
    WHERE g.tgrelid IN (SELECT p.relid FROM pg_partition_tree(relation) AS p) AND c.relowner <> owner
      AND g.tgparentid = 0 AND g.tgenabled IN ('A', 'R') AND NOT g.tgisinternal AND NOT o.rolsuper
      AND NOT EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'pgquorum'
                      WHERE d.classid = 'pg_proc'::regclass AND d.objid = g.tgfoid AND d.refclassid = 'pg_extension'::regclass);
    IF fired IS NOT NULL THEN
        RAISE EXCEPTION 'triggers of partitions of table % that belong to somebody else would run with the rights of the table''s owner when rows are copied: %', relation, fired
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Disable them (ALTER TABLE … DISABLE TRIGGER), call quorum.resume_table(…, copy => true), and enable them when the table is copied. Or give all partitions one owner.';
    END IF;
    IF EXISTS (SELECT FROM pg_class AS c JOIN pg_roles AS o ON o.oid = c.relowner
               WHERE c.oid = relation AND c.relrowsecurity AND c.relforcerowsecurity AND NOT o.rolsuper AND NOT o.rolbypassrls) THEN
        RAISE EXCEPTION 'row level security is forced on the owner of table %, with whose rights rows are copied', relation
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'ALTER TABLE … NO FORCE ROW LEVEL SECURITY, call quorum.resume_table(…, copy => true), and force it again when the table is copied: changes are written in either case.';
    END IF;
    SELECT string_agg(quote_ident(c), ', ') INTO missing FROM unnest(copy_plan.columns) AS c
    WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = c);
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'table % lacks columns that the source copies: %', relation, missing
            USING ERRCODE = 'undefined_column', HINT = 'Add them here (ALTER TABLE … ADD COLUMN), then call quorum.resume_table(…, copy => true).';
    END IF;
    SELECT array_agg(c ORDER BY n), string_agg(quote_ident(c), ', ' ORDER BY n) INTO copied_columns, list
    FROM unnest(copy_plan.columns) WITH ORDINALITY AS u (c, n)
    JOIN pg_attribute AS a ON a.attrelid = relation AND a.attname = c AND a.attgenerated = '';
    -- The source is asked for those rows only; what they are is decided here, as for all that comes afterwards.
    IF wanted IS NOT NULL THEN
        BEGIN
            wanted := format(' WHERE (%s)', quorum.checked_filter(relation, wanted, copied_columns));
        EXCEPTION WHEN others THEN
            RAISE EXCEPTION '%', SQLERRM
                USING ERRCODE = CASE WHEN SQLSTATE ~ '^(0A|22|42)' THEN 'PQ022' ELSE SQLSTATE END,
                      HINT = 'Correct it (quorum.alter_subscription(…, filter => …)), then call quorum.resume_table(…, copy => true).';
        END;
    END IF;
    copy := format('COPY %s (%s) FROM STDIN%s', relation, list, coalesce(wanted, ''));
    -- When the rows were written at the source is not known: any write from elsewhere is later.
    IF quorum.is_versioned(relation) THEN
        prelude := 'SET LOCAL pgquorum.origin_commit_time = ''1970-01-01 00:00:00+00''';
    END IF;
    CASE s.copy
    WHEN 'truncate' THEN
        -- Not TRUNCATE: that would be refused where other tables refer to this one.
        before := format('SELECT quorum.run_as_owner(%L::regclass, %L)', relation, format('DELETE FROM %s', relation));
    WHEN 'merge' THEN
        SELECT string_agg(quote_ident(a.attname), ', ') INTO keys
        FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
        WHERE i.indrelid = relation AND i.indisprimary AND a.attname = ANY (copied_columns);
        IF keys IS NULL THEN
            RAISE EXCEPTION 'table % has no primary key among the copied columns, by which rows could be merged', relation
                USING ERRCODE = 'invalid_table_definition', HINT = 'Give it one, or subscribe with copy => ''truncate''.';
        END IF;
        SELECT string_agg(format('%1$I = excluded.%1$I', c), ', ') INTO updates FROM unnest(copied_columns) AS c
        WHERE quote_ident(c) <> ALL (string_to_array(keys, ', '));
        before := format('CREATE TEMPORARY TABLE pgquorum_copy ON COMMIT DROP AS SELECT %s FROM %s WITH NO DATA; GRANT SELECT, INSERT ON pg_temp.pgquorum_copy TO %I',
                         list, relation, pg_get_userbyid(owner));
        copy := format('COPY pg_temp.pgquorum_copy (%s) FROM STDIN%s', list, coalesce(wanted, ''));
        after := format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM pg_temp.pgquorum_copy ON CONFLICT (%s) DO %s',
                        relation, list, list, keys, coalesce('UPDATE SET ' || updates, 'NOTHING'));
        after := format('SELECT quorum.run_as_owner(%L::regclass, %L); DROP TABLE pg_temp.pgquorum_copy', relation, after);
    ELSE
        before := format('SELECT quorum.require_empty(%L)', relation);
    END CASE;
    before := concat_ws('; ', prelude, before, format('SELECT quorum.copy_as_owner(%L::regclass)', relation));
END
$$;
COMMENT ON FUNCTION quorum.copy_plan(integer, text, text, text[]) IS
    'How to copy a table of the source into the one here: statements to run before, the COPY, statements to run after (NULL: none), and the columns to ask the source for, in this order. All in one transaction with session_replication_role = replica, and quorum.table_copied at its end. Errors: 42P01 no such table, 42703 it lacks columns, 42P16 no key to merge by, PQ022 the filter cannot be used, 42809 no ordinary table, 42501 a system table, triggers of somebody else would run, or row level security is forced.';

CREATE FUNCTION quorum.reload_subscription(subscription integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.require_subscription(reload_subscription.subscription);
    -- Waits for whoever is applying.
    UPDATE quorum.subscription_position AS p SET epoch = NULL, tick = NULL WHERE p.subscription = reload_subscription.subscription;
    -- The rows of the last copy are there, and must go.
    UPDATE quorum.subscription AS s SET copy = 'truncate', start = NULL
    WHERE s.id = reload_subscription.subscription AND s.copy IN ('none', 'error');
    UPDATE quorum.subscription_table AS t
    SET state = 'copy', after_epoch = NULL, after_tick = NULL, code = NULL, message = NULL, since = clock_timestamp()
    -- Rows that are not in the log come with the copy.
    WHERE t.subscription = reload_subscription.subscription AND (t.state <> 'stopped' OR t.code = 'PQ018');
    INSERT INTO quorum.subscription_version AS v (subscription, loading) VALUES (reload_subscription.subscription, true)
    ON CONFLICT ON CONSTRAINT subscription_version_pkey DO UPDATE SET loading = true, load_version = NULL, load_tick = NULL;
END
$$;
COMMENT ON FUNCTION quorum.reload_subscription(integer) IS
    'All tables of a subscription that have not stopped, or only because rows are not in the log (PQ018), are to be copied anew, and what is in them goes: where the source no longer has what comes next. Error 42704: no such subscription.';

CREATE FUNCTION quorum.report_subscription(
    subscription integer, state text, code text DEFAULT NULL, detail text DEFAULT NULL, end_epoch bigint DEFAULT NULL, end_tick bigint DEFAULT NULL
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE quorum.subscription_status AS x
    SET since = CASE WHEN (x.state, x.code) IS DISTINCT FROM (report_subscription.state, report_subscription.code)
                     THEN clock_timestamp() ELSE x.since END,
        state = report_subscription.state, code = report_subscription.code, detail = report_subscription.detail,
        end_epoch = coalesce(report_subscription.end_epoch, x.end_epoch), end_tick = coalesce(report_subscription.end_tick, x.end_tick),
        end_seen_at = CASE WHEN report_subscription.end_tick IS NULL THEN x.end_seen_at ELSE clock_timestamp() END
    WHERE x.subscription = report_subscription.subscription
$$;
COMMENT ON FUNCTION quorum.report_subscription(integer, text, text, text, bigint, bigint) IS
    'How a subscription is (starting, copying, following, waiting, stopped, disabled), and where the source''s channel ends.';

CREATE FUNCTION quorum.report_table(
    subscription integer, "schema" text, "table" text, rows bigint DEFAULT NULL, bytes bigint DEFAULT NULL, state text DEFAULT NULL,
    code text DEFAULT NULL, message text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t quorum.subscription_table;
BEGIN
    PERFORM quorum.require_input(coalesce(report_table.state, 'stopped') = 'stopped', 'a table can be reported as stopped only');
    PERFORM FROM quorum.subscription_position AS p WHERE p.subscription = report_table.subscription FOR NO KEY UPDATE;
    t := quorum.require_table(report_table.subscription, report_table."schema", report_table."table");
    UPDATE quorum.subscription_table AS x
    SET rows = coalesce(report_table.rows, x.rows), bytes = coalesce(report_table.bytes, x.bytes),
        state = coalesce(report_table.state, x.state),
        code = CASE WHEN report_table.state IS NULL THEN x.code ELSE report_table.code END,
        message = CASE WHEN report_table.state IS NULL THEN x.message ELSE report_table.message END,
        since = CASE WHEN report_table.state IS NULL OR x.state = 'stopped' THEN x.since ELSE clock_timestamp() END
    WHERE (x.subscription, x.schema_name, x.table_name) = (t.subscription, t.schema_name, t.table_name);
END
$$;
COMMENT ON FUNCTION quorum.report_table(integer, text, text, bigint, bigint, text, text, text) IS
    'How far the copy of a table is, or that it has stopped and why. Errors: 42P01 no such table in the subscription, 22023.';

CREATE FUNCTION quorum.find_subscription(subscription integer, "only" text,
    OUT enabled boolean, OUT policy text, OUT ddl text, OUT forward boolean, OUT copy text, OUT tables text[], OUT remote_origin text,
    OUT origin text, OUT captured boolean, OUT captures boolean, OUT epoch bigint, OUT tick bigint, OUT name text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t quorum.subscription_table;
BEGIN
    -- The lock is what lets one apply at a time; it is held until the transaction ends.
    SELECT p.epoch, p.tick INTO epoch, tick FROM quorum.subscription_position AS p
    WHERE p.subscription = find_subscription.subscription FOR NO KEY UPDATE;
    SELECT s.enabled, s.policy, s.ddl, s.forward, s.copy, s.tables, s.remote_origin, s.name,
           (SELECT i.origin_name FROM quorum.identity AS i), EXISTS (SELECT FROM quorum.tracked_table)
    INTO enabled, policy, ddl, forward, copy, tables, remote_origin, name, origin, captures
    FROM quorum.subscription AS s WHERE s.id = find_subscription.subscription;
    captured := captures AND EXISTS (
        SELECT FROM quorum.subscription_table AS x JOIN pg_namespace AS n ON n.nspname = x.schema_name
        JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = x.table_name
        WHERE x.subscription = find_subscription.subscription AND x.state <> 'stopped'
          AND (EXISTS (SELECT FROM quorum.tracked_table AS k WHERE k.relid = c.oid)
               OR EXISTS (SELECT FROM quorum.tracked_partition AS k WHERE k.relid = c.oid)));
    IF find_subscription."only" IS NOT NULL AND enabled IS NOT NULL THEN
        SELECT x.* INTO t FROM quorum.subscription_table AS x
        WHERE x.subscription = find_subscription.subscription AND x.schema_name || '.' || x.table_name = find_subscription."only";
        IF t.state IS DISTINCT FROM 'catch-up' THEN
            RAISE EXCEPTION 'table % of subscription % is not to be caught up', find_subscription."only", quote_ident(name)
                USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = format('Its state is %s.', coalesce(t.state, 'unknown'));
        END IF;
        epoch := t.after_epoch;
        tick := t.after_tick;
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.find_subscription(integer, text) IS
    'Internal. What quorum.apply needs to know of a subscription, whose position it locks; origin is NULL where no name was given. Error 55000: the table is not to be caught up.';

CREATE FUNCTION quorum.save_position(subscription integer, "only" text, epoch bigint, tick bigint, committed_at timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF save_position."only" IS NULL THEN
        UPDATE quorum.subscription_position AS p
        SET epoch = save_position.epoch, tick = save_position.tick, committed_at = save_position.committed_at,
            applied_at = clock_timestamp()
        WHERE p.subscription = save_position.subscription;
    ELSE
        -- Once it is where the others are, it goes on with them.
        UPDATE quorum.subscription_table AS x
        SET after_epoch = save_position.epoch, after_tick = save_position.tick,
            state = CASE WHEN save_position.tick >= p.tick THEN 'following' ELSE x.state END,
            since = CASE WHEN save_position.tick >= p.tick THEN clock_timestamp() ELSE x.since END
        FROM quorum.subscription_position AS p
        WHERE p.subscription = save_position.subscription AND x.subscription = p.subscription
          AND x.schema_name || '.' || x.table_name = save_position."only" AND x.state = 'catch-up';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.save_position(integer, text, bigint, bigint, timestamptz) IS 'Internal. Up to where changes are applied, of the subscription or of one table.';
