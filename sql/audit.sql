-- Is what is tracked captured? A superuser can switch off the event triggers of ddl.sql, and then triggers of a tracked
-- table, or drop them. That cannot be prevented, but it is found: here, and about once a minute by the cutter.

CREATE VIEW quorum.capture_fault AS
    WITH RECURSIVE member AS (
        SELECT t.relid AS root, t.relid FROM quorum.tracked_table AS t
        UNION ALL
        -- Not by quorum.table_tree, which would wait for whoever has locked a partition.
        SELECT m.root, i.inhrelid
        FROM member AS m JOIN pg_catalog.pg_class AS c ON c.oid = m.relid AND c.relkind = 'p'
        JOIN pg_catalog.pg_inherits AS i ON i.inhparent = m.relid
    ), expected AS (
        SELECT m.root, m.relid, k.name, count(g.oid) AS triggers, bool_and(g.fits AND g.name = k.name) AS fits,
               bool_and(g.always) AS always
        FROM member AS m CROSS JOIN (VALUES ('pgquorum_row'), ('pgquorum_truncate')) AS k (name)
        LEFT JOIN quorum.capture_trigger AS g ON g.relid = m.relid AND g.kind = k.name
        GROUP BY m.root, m.relid, k.name
    ), broken AS (
        SELECT DISTINCT ON (e.root) e.root,
               format('its trigger %s%s %s', e.name,
                      CASE WHEN e.relid <> e.root THEN format(' on the partition %s', e.relid::pg_catalog.regclass) ELSE '' END,
                      CASE WHEN e.triggers = 0 THEN 'is missing'
                           WHEN e.triggers > 1 THEN 'is there more than once'
                           WHEN NOT e.fits THEN 'is not as quorum.track made it'
                           ELSE 'is switched off, or not on in all sessions' END) AS fault
        FROM expected AS e
        WHERE e.triggers <> 1 OR NOT e.fits OR NOT e.always
        ORDER BY e.root, e.relid, e.name
    ), unseen AS (
        SELECT format('event trigger %s is missing, switched off, or not on in all sessions', k.name) AS fault,
               format('ALTER EVENT TRIGGER %s ENABLE ALWAYS', k.name) AS cure
        FROM (VALUES ('pgquorum_ddl', 'ddl_command_end', 'quorum.after_ddl()'::pg_catalog.regprocedure),
                     ('pgquorum_drop', 'sql_drop', 'quorum.after_drop()')) AS k (name, event, function)
        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger AS e
                          WHERE e.evtfoid = k.function AND e.evtevent = k.event AND e.evtenabled = 'A' AND e.evttags IS NULL)
        UNION ALL
        SELECT 'the setting event_triggers is off', 'switch it on'
        WHERE pg_catalog.current_setting('event_triggers', true) = 'off'
    ), blind AS (
        SELECT string_agg(u.fault, '; ' ORDER BY u.fault) AS fault, string_agg(u.cure, '; ' ORDER BY u.fault) AS cure FROM unseen AS u
    )
    SELECT t.relid, t.channel,
           format('%s: changes may be missing in the log. To go on: %sSELECT quorum.stop_channel(%L); and after its commit '
                  'SELECT quorum.start_channel(%3$L), which makes the triggers anew and has readers load the tables again',
                  concat_ws('; ', b.fault, w.fault), w.cure || '; ', c.name) AS fault
    FROM quorum.tracked_table AS t JOIN quorum.channel AS c ON c.id = t.channel
    CROSS JOIN blind AS w LEFT JOIN broken AS b ON b.root = t.relid
    WHERE b.fault IS NOT NULL OR w.fault IS NOT NULL;
COMMENT ON VIEW quorum.capture_fault IS
    'Internal. Tracked tables of which not every change is captured, or not every statement noticed: what is wrong, and what to do.';

CREATE VIEW quorum.tracked_tables AS
    SELECT c.name AS channel, n.nspname AS schema, r.relname AS table,
           (SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = t.relid AND a.attnum = ANY (t.columns)) AS columns,
           t.filter_sql AS "where", t.old_image, t.tracked_at,
           (SELECT count(*) FROM quorum.tracked_partition AS p WHERE p.root = t.relid) AS partitions,
           t.schema_version, f.fault
    FROM quorum.tracked_table AS t JOIN quorum.channel AS c ON c.id = t.channel
    JOIN pg_catalog.pg_class AS r ON r.oid = t.relid JOIN pg_catalog.pg_namespace AS n ON n.oid = r.relnamespace
    LEFT JOIN quorum.capture_fault AS f ON f.relid = t.relid;
COMMENT ON VIEW quorum.tracked_tables IS
    'The tables whose changes are captured. columns, where: NULL is all. fault: why changes may be missing all the same, and what to do; NULL: nothing is wrong.';

CREATE TABLE quorum.known_fault (
    relid oid PRIMARY KEY,
    channel integer NOT NULL REFERENCES quorum.channel ON DELETE CASCADE,
    relation text NOT NULL,
    fault text NOT NULL,
    found_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE quorum.known_fault IS 'Tracked tables that are not captured as they should be, as was said last: so it is said once, whoever is the primary.';

CREATE FUNCTION quorum.audit_capture() RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    news record;
    said text;
    noted integer := 0;
BEGIN
    FOR news IN SELECT coalesce(f.relid, k.relid) AS relid, f.fault, f.channel,
                       coalesce(f.relid::regclass::text, k.relation) AS relation, c.name AS channel_name,
                       EXISTS (SELECT FROM quorum.tracked_table AS t WHERE t.relid = k.relid) AS tracked
                FROM quorum.capture_fault AS f FULL JOIN quorum.known_fault AS k ON k.relid = f.relid
                JOIN quorum.channel AS c ON c.id = coalesce(f.channel, k.channel)
                WHERE f.fault IS DISTINCT FROM k.fault
                ORDER BY 1 LOOP
        noted := noted + 1;
        IF news.fault IS NULL THEN
            DELETE FROM quorum.known_fault AS k WHERE k.relid = news.relid;
            said := format('table %s of channel "%s" is %s', news.relation, news.channel_name,
                CASE WHEN news.tracked THEN 'captured again; what was changed meanwhile is missing to readers that have not loaded it since'
                     ELSE 'not tracked any more' END);
            RAISE LOG 'pgquorum feed: %', said;
        ELSE
            INSERT INTO quorum.known_fault AS k (relid, channel, relation, fault)
            VALUES (news.relid, news.channel, news.relation, news.fault)
            ON CONFLICT ON CONSTRAINT known_fault_pkey DO UPDATE
                SET channel = excluded.channel, relation = excluded.relation, fault = excluded.fault, found_at = excluded.found_at;
            said := format('table %s of channel "%s" is not captured as it should be: %s', news.relation, news.channel_name, news.fault);
            RAISE WARNING 'pgquorum feed: %', said;
        END IF;
        PERFORM quorum.record_feed_event(CASE WHEN news.fault IS NULL THEN 'capture-fault-gone' ELSE 'capture-fault' END, said,
            jsonb_build_object('channel', news.channel_name, 'table', news.relation));
    END LOOP;
    RETURN noted;
END
$$;
COMMENT ON FUNCTION quorum.audit_capture() IS
    'Internal. Says of tracked tables that are not captured as they should be, and of those that are again, in the server''s log and in quorum.event, once; returns of how many.';
