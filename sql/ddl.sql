-- What statements do to tracked tables: noted in the log in its place, put right, or refused.

CREATE FUNCTION quorum.refuse_change(root oid, reason text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'table % is tracked by pgquorum: %', root::regclass, reason
        USING ERRCODE = 'object_in_use', HINT = format('To go on all the same: SELECT quorum.untrack(%L), then this, then quorum.track.', root::regclass);
END
$$;
COMMENT ON FUNCTION quorum.refuse_change(oid, text) IS 'Internal. Raises 55006 for a statement that a tracked table cannot bear.';

CREATE FUNCTION quorum.check_triggers(root oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fault text := quorum.trigger_fault(root);
BEGIN
    IF fault IS NOT NULL THEN
        PERFORM quorum.refuse_change(root, fault);
    END IF;
    PERFORM quorum.equip(root);
END
$$;
COMMENT ON FUNCTION quorum.check_triggers(oid) IS
    'Internal. Refuses a statement that took triggers of a tracked table away, changed or doubled them; switches them on and gives them to new partitions.';

-- Looked at before the new partitions are given triggers and noted. Nothing comes or goes with one that never held a row: it
-- has no page. The size says it whatever the transaction sees.
CREATE FUNCTION quorum.partitions_moved(root oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT v.tag FROM (
        SELECT 'ATTACH PARTITION' AS tag, m.relid FROM quorum.table_tree(partitions_moved.root) AS m(relid)
        WHERE m.relid <> partitions_moved.root
          AND m.relid NOT IN (SELECT p.relid FROM quorum.tracked_partition AS p WHERE p.root = partitions_moved.root)
        UNION ALL
        SELECT 'DETACH PARTITION', p.relid FROM quorum.tracked_partition AS p
        WHERE p.root = partitions_moved.root AND p.relid NOT IN (SELECT quorum.table_tree(partitions_moved.root))
    ) AS v
    WHERE pg_relation_size(v.relid::regclass) > 0 LIMIT 1
$$;
COMMENT ON FUNCTION quorum.partitions_moved(oid) IS
    'Internal. The tag of a statement by which rows have come to a tracked table, or gone, with a partition; NULL: it is no such one.';

CREATE FUNCTION quorum.table_changed(root oid, tag text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t quorum.tracked_table;
    version bigint;
    shown text;
    entry text := tag;
BEGIN
    SELECT x.* INTO STRICT t FROM quorum.tracked_table AS x WHERE x.relid = root;
    SELECT m.relid::regclass INTO shown FROM quorum.table_tree(root) AS m(relid) JOIN pg_class AS c ON c.oid = m.relid
    WHERE c.relpersistence <> 'p' OR c.relkind NOT IN ('r', 'p');
    IF FOUND THEN
        PERFORM quorum.refuse_change(root, format('%s would be a kind of table whose changes cannot be captured (unlogged or foreign)', shown));
    END IF;
    SELECT k.schema_version, k.columns INTO version, shown FROM quorum.tracking(root) AS k;
    IF t.old_image <> 'full' AND NOT shown::jsonb @> '[{"key": true}]' THEN
        PERFORM quorum.refuse_change(root, 'it would have no key among the captured columns by which its rows can be told apart');
    END IF;
    IF EXISTS (SELECT FROM unnest(t.filter_columns) AS f(attnum) JOIN pg_attribute AS a ON a.attrelid = root AND a.attnum = f.attnum
               WHERE a.attisdropped) THEN
        PERFORM quorum.refuse_change(root, 'its filter needs a column that would be dropped');
    END IF;
    -- A filter that no longer parses to the same would compare values of the wrong type.
    IF t.filter_sql IS NOT NULL AND tag = 'ALTER TABLE' AND NOT quorum.filter_holds(root, t.filter) THEN
        PERFORM quorum.refuse_change(root, 'its filter needs a column whose type would change');
    END IF;
    IF tag = 'ALTER TABLE' THEN
        entry := coalesce(quorum.partitions_moved(root), tag);
    END IF;
    PERFORM quorum.check_triggers(root);
    IF version IS NULL THEN
        version := quorum.record_schema(root);
    END IF;
    PERFORM quorum.versions_after_change(root, t.schema_version, version);
    -- Who follows the table by the name that it had hears of the new one from nothing else.
    IF EXISTS (SELECT FROM quorum.schema_version AS o, quorum.schema_version AS n
               WHERE o.id = t.schema_version AND n.id = version AND (o.schema_name, o.table_name) <> (n.schema_name, n.table_name)) THEN
        PERFORM quorum.record_entry(t.channel, t.schema_version, 'RENAME');
    END IF;
    UPDATE quorum.tracked_table AS x SET schema_version = version WHERE x.relid = root AND x.schema_version <> version;
    PERFORM quorum.record_entry(t.channel, version, entry);
    PERFORM quorum.note_indexes(root);
    -- A statement about a schema or a type tells nobody that the table is another one now.
    PERFORM quorum.forget_cached(m.relid::regclass) FROM quorum.table_tree(root) AS m(relid);
END
$$;
COMMENT ON FUNCTION quorum.table_changed(oid, text) IS 'Internal. A statement has changed a tracked table: checks it, records a new schema version and an entry in the log.';

CREATE FUNCTION quorum.after_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed record;
BEGIN
    -- Most databases have no channel, and most statements no tracked table. What pgquorum itself does is no change.
    IF NOT EXISTS (SELECT FROM quorum.tracked_table) OR quorum.statement_is_own() THEN
        RETURN;
    END IF;
    IF tg_tag IN ('ALTER SCHEMA', 'ALTER TYPE', 'ALTER DOMAIN') THEN
        -- The names of tables and types in the newest version may be wrong now.
        FOR changed IN SELECT t.relid FROM quorum.tracked_table AS t
                       WHERE (SELECT k.schema_version FROM quorum.tracking(t.relid) AS k) IS NULL LOOP
            PERFORM quorum.table_changed(changed.relid, tg_tag);
        END LOOP;
        RETURN;
    END IF;
    -- A partition that was detached is not found by its ancestors any more; its former root is among the objects.
    FOR changed IN SELECT DISTINCT t.relid FROM pg_event_trigger_ddl_commands() AS d
                   JOIN quorum.tracked_table AS t ON t.relid = d.objid
                        OR t.relid IN (SELECT a.relid FROM pg_partition_ancestors(d.objid::regclass) AS a(relid))
                   WHERE d.classid = 'pg_class'::regclass LOOP
        PERFORM quorum.table_changed(changed.relid, tg_tag);
    END LOOP;
    -- Whichever trigger it was: ours may have lost its place to it, its name, or its function.
    FOR changed IN SELECT DISTINCT t.relid FROM pg_event_trigger_ddl_commands() AS d
                   JOIN pg_trigger AS g ON g.oid = d.objid
                   JOIN quorum.tracked_table AS t ON t.relid = g.tgrelid
                        OR t.relid IN (SELECT a.relid FROM pg_partition_ancestors(g.tgrelid) AS a(relid))
                   WHERE d.classid = 'pg_trigger'::regclass LOOP
        PERFORM quorum.check_triggers(changed.relid);
    END LOOP;
    -- That of a partition may have been the last one that the whole table's waited for.
    FOR changed IN SELECT DISTINCT t.relid FROM pg_event_trigger_ddl_commands() AS d
                   JOIN pg_index AS i ON i.indexrelid = d.objid
                   JOIN quorum.tracked_table AS t ON t.relid = i.indrelid
                        OR t.relid IN (SELECT a.relid FROM pg_partition_ancestors(i.indrelid) AS a(relid))
                   WHERE d.classid = 'pg_class'::regclass LOOP
        PERFORM quorum.note_indexes(changed.relid);
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.after_ddl() IS
    'Internal. Event trigger: tracked tables after ALTER TABLE, CREATE TABLE ... PARTITION OF, and what changes triggers or indexes.';

CREATE FUNCTION quorum.after_drop() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    dropped record;
BEGIN
    IF NOT EXISTS (SELECT FROM quorum.tracked_table) THEN
        RETURN;
    END IF;
    FOR dropped IN DELETE FROM quorum.tracked_table AS t USING pg_event_trigger_dropped_objects() AS d
                   WHERE d.classid = 'pg_class'::regclass AND d.objid = t.relid AND d.objsubid = 0
                   RETURNING t.relid, t.channel, t.schema_version LOOP
        DELETE FROM quorum.tracked_partition AS p WHERE p.root = dropped.relid;
        DELETE FROM quorum.versioned_table AS v WHERE v.relid = dropped.relid;
        DELETE FROM quorum.tracked_index AS k WHERE k.relid = dropped.relid;
        -- Whatever dropped it: by this word those who follow the table know that it is gone.
        PERFORM quorum.record_entry(dropped.channel, dropped.schema_version, CASE WHEN tg_tag LIKE 'DROP %' THEN tg_tag ELSE 'DROP TABLE' END);
    END LOOP;
    -- The rows of a partition go with it, though nobody deleted them: followers of the table read it here.
    FOR dropped IN DELETE FROM quorum.tracked_partition AS p USING pg_event_trigger_dropped_objects() AS d, quorum.tracked_table AS t
                   WHERE d.classid = 'pg_class'::regclass AND d.objid = p.relid AND d.objsubid = 0 AND t.relid = p.root
                   RETURNING t.channel, t.schema_version LOOP
        PERFORM quorum.record_entry(dropped.channel, dropped.schema_version, 'DROP PARTITION');
    END LOOP;
    FOR dropped IN SELECT DISTINCT t.relid FROM pg_event_trigger_dropped_objects() AS d
                   JOIN quorum.tracked_table AS t
                        ON t.relid = to_regclass(format('%I.%I', d.address_names[1], d.address_names[2]))
                        OR t.relid = (SELECT p.root FROM quorum.tracked_partition AS p
                                      WHERE p.relid = to_regclass(format('%I.%I', d.address_names[1], d.address_names[2])))
                   WHERE d.classid = 'pg_trigger'::regclass AND NOT quorum.statement_is_own() LOOP
        -- Nothing else: a partition that was detached is still to be known as one when that is written down (after_ddl).
        PERFORM quorum.refuse_change(dropped.relid, f.fault) FROM quorum.trigger_fault(dropped.relid) AS f(fault) WHERE f.fault IS NOT NULL;
    END LOOP;
    -- DROP INDEX can take the key away that REPLICA IDENTITY named.
    IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() AS d WHERE d.object_type = 'index') THEN
        FOR dropped IN SELECT t.relid FROM quorum.tracked_table AS t
                       WHERE t.old_image <> 'full' AND NOT quorum.table_columns(t.relid, t.columns) @> '[{"key": true}]' LOOP
            PERFORM quorum.refuse_change(dropped.relid, 'it would have no key among the captured columns by which its rows can be told apart');
        END LOOP;
    END IF;
    -- Those that went with their table are of no interest: one that is not tracked is dropped more often than an index.
    IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() AS d
               WHERE (d.object_type = 'index' AND (d.original OR d.normal)) OR d.object_type = 'table column') THEN
        PERFORM quorum.note_lost_indexes();
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.after_drop() IS
    'Internal. Event trigger: tracked tables and partitions that were dropped, indexes of them, and our triggers, which must stay.';
