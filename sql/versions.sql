-- Who wrote a row last, and when: for tables whose conflicts with other clusters the last write wins.
--
-- Functions in Rust read and write these tables by the order of their columns.

CREATE TABLE quorum.origin (
    id smallint PRIMARY KEY CHECK (id > 0),
    name text COLLATE "C" NOT NULL UNIQUE
);
COMMENT ON TABLE quorum.origin IS 'Numbers for the origins of changes that were made elsewhere; 0 is this database itself.';

CREATE TABLE quorum.versioned_table (
    relid oid PRIMARY KEY,
    keeping integer NOT NULL UNIQUE GENERATED ALWAYS AS IDENTITY,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    truncated_us bigint,
    truncated_origin smallint
);
COMMENT ON TABLE quorum.versioned_table IS 'The tracked tables of whose rows it is kept who wrote them last.';
COMMENT ON COLUMN quorum.versioned_table.keeping IS 'The number under which row_version keeps them. Another one when the table is emptied or its key changes: what is left under the old one counts no more, and is removed.';
COMMENT ON COLUMN quorum.versioned_table.truncated_us IS
    'When the table was emptied last, in microseconds since 1970: rows of which no version is kept since were deleted then. NULL: not since versions are kept.';
COMMENT ON COLUMN quorum.versioned_table.truncated_origin IS 'Where that was done: 0 here, else quorum.origin.id.';

-- Updated in their pages over and over: room for that, and no index on what changes.
CREATE TABLE quorum.row_version (
    commit_us bigint NOT NULL,
    keeping integer NOT NULL,
    origin smallint NOT NULL,
    deleted boolean NOT NULL,
    key uuid NOT NULL,
    PRIMARY KEY (keeping, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE quorum.row_version IS
    'Who wrote a row last, and when. Written by the transaction that writes the row. quorum.row_version_of shows it.';
COMMENT ON COLUMN quorum.row_version.commit_us IS 'Time of the commit by the origin''s clock, in microseconds since 1970.';
COMMENT ON COLUMN quorum.row_version.keeping IS 'The table: quorum.versioned_table.keeping.';
COMMENT ON COLUMN quorum.row_version.origin IS 'Where it was written: 0 here, else quorum.origin.id.';
COMMENT ON COLUMN quorum.row_version.deleted IS 'The row was deleted, or its key changed. Removed after pgquorum.tombstone_age.';
COMMENT ON COLUMN quorum.row_version.key IS '128 bits of a hash of the key''s values; docs/row-versions.md says which.';

-- Two keys that are equal must print the same: else they would have two versions.
CREATE FUNCTION quorum.versions_fault(root oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH t AS (
        SELECT x.relid, x.columns, x.filter FROM quorum.tracked_table AS x WHERE x.relid = versions_fault.root
    ), key AS (
        SELECT a.attname AS name, a.atttypid, a.atttypmod, b.oid AS base, b.typtype, a.attcollation
        FROM t, jsonb_array_elements(quorum.table_columns(t.relid, t.columns)) AS c
        JOIN pg_attribute AS a ON a.attrelid = versions_fault.root AND a.attnum = (c.value ->> 'attnum')::smallint
        JOIN pg_type AS b ON b.oid = (c.value ->> 'base')::oid
        WHERE (c.value ->> 'key')::boolean
    ), fault AS (
        SELECT 1 AS rank, 'its changes are filtered (where => ...), so those that are left out would have no version' AS fault
        FROM t WHERE t.filter IS NOT NULL
        UNION ALL
        SELECT 2, 'it has no key' WHERE NOT EXISTS (SELECT FROM key)
        UNION ALL
        SELECT 3, 'the constraint of its key is DEFERRABLE, so two transactions could write the same key'
        FROM pg_index AS i WHERE i.indrelid = versions_fault.root AND i.indisprimary AND NOT i.indimmediate
        UNION ALL
        SELECT 4, format('keys of type %s that are equal may print differently (column %I)', format_type(k.atttypid, k.atttypmod), k.name)
        FROM key AS k
        WHERE NOT (k.base IN ('bool'::regtype, 'int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'oid'::regtype,
                              'text'::regtype, 'varchar'::regtype, 'name'::regtype, '"char"'::regtype, 'uuid'::regtype,
                              'bytea'::regtype, 'date'::regtype, 'time'::regtype, 'timetz'::regtype, 'timestamp'::regtype,
                              'timestamptz'::regtype, 'inet'::regtype, 'cidr'::regtype, 'macaddr'::regtype,
                              'macaddr8'::regtype, 'bit'::regtype, 'varbit'::regtype, 'pg_lsn'::regtype, 'xid8'::regtype)
                   OR k.typtype = 'e'
                   -- As many blanks, or digits behind the point, in all values.
                   OR k.atttypid IN ('bpchar'::regtype, 'numeric'::regtype) AND k.atttypmod >= 0)
           OR EXISTS (SELECT FROM pg_collation AS l WHERE l.oid = k.attcollation AND NOT l.collisdeterministic)
    )
    SELECT f.fault FROM fault AS f ORDER BY f.rank, f.fault LIMIT 1
$$;
COMMENT ON FUNCTION quorum.versions_fault(oid) IS 'Internal. Why no versions can be kept of a tracked table''s rows; NULL: they can.';

CREATE FUNCTION quorum.keep_versions(relation regclass) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fault text;
BEGIN
    PERFORM quorum.require_tracked(relation);
    -- Whoever has written the table without versions ends first.
    PERFORM quorum.lock_briefly(relation, 'SHARE ROW EXCLUSIVE');
    PERFORM quorum.require_tracked(relation);
    fault := quorum.versions_fault(relation);
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'cannot keep versions of the rows of %: %', relation, fault
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Change that, or choose another policy for conflicts than last_write_wins.';
    END IF;
    INSERT INTO quorum.versioned_table (relid) VALUES (relation) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM quorum.forget_versions(relation);
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.keep_versions(regclass) IS
    'From this transaction''s commit on it is kept who writes each row of a tracked table last, and when; rows that nobody writes since count as older than everything. False: it was kept already. Errors: 42704 not tracked, 55000 no versions can be kept of it, 55P03 the table is busy.';

CREATE FUNCTION quorum.drop_versions(relation regclass) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.require_tracked(relation);
    PERFORM quorum.lock_briefly(relation, 'SHARE ROW EXCLUSIVE');
    DELETE FROM quorum.versioned_table AS t WHERE t.relid = relation;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM quorum.forget_versions(relation);
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.drop_versions(regclass) IS
    'Ends what quorum.keep_versions began, and forgets what was kept. False: nothing was kept. Errors: 42704 not tracked, 55P03 the table is busy.';

CREATE FUNCTION quorum.require_tracked(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF relation IS NULL OR NOT EXISTS (SELECT FROM quorum.tracked_table AS t WHERE t.relid = relation) THEN
        RAISE EXCEPTION 'table % is not tracked', coalesce(relation::text, 'NULL')
            USING ERRCODE = 'undefined_object',
                  HINT = 'quorum.track it first. SELECT * FROM quorum.tracked_tables lists those that are; of a partition name the table that it belongs to.';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.require_tracked(regclass) IS 'Internal. Raises 42704 if a table is not tracked.';

CREATE FUNCTION quorum.is_versioned(relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM quorum.versioned_table AS t
                   WHERE t.relid = relation OR t.relid IN (SELECT a.relid FROM pg_partition_ancestors(relation) AS a(relid)))
$$;
COMMENT ON FUNCTION quorum.is_versioned(regclass) IS 'Internal. Are versions kept of the rows of a table or partition?';

CREATE FUNCTION quorum.require_versioned(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.require_tracked(relation);
    IF NOT EXISTS (SELECT FROM quorum.versioned_table AS t WHERE t.relid = relation) THEN
        RAISE EXCEPTION 'no versions are kept of the rows of %', relation
            USING ERRCODE = 'undefined_object', HINT = 'quorum.keep_versions begins it.';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.require_versioned(regclass) IS 'Internal. Raises 42704 if no versions are kept of a table''s rows.';

CREATE FUNCTION quorum.forget_versions(root oid) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT quorum.forget_cached(m.relid) FROM quorum.table_tree(forget_versions.root) AS m(relid)
    UNION ALL SELECT quorum.forget_cached('quorum.versioned_table'::regclass)
$$;
COMMENT ON FUNCTION quorum.forget_versions(oid) IS 'Internal. Tells all sessions to look up anew whether versions of a table''s rows are kept.';

-- Called when a statement has changed a tracked table (quorum.table_changed).
CREATE FUNCTION quorum.versions_after_change(root oid, old_version bigint, new_version bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fault text;
BEGIN
    IF NOT EXISTS (SELECT FROM quorum.versioned_table AS t WHERE t.relid = root) THEN
        RETURN;
    END IF;
    fault := quorum.versions_fault(root);
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'table % keeps versions of its rows: %', root::regclass, fault
            USING ERRCODE = 'object_in_use',
                  HINT = format('To go on all the same: SELECT quorum.drop_versions(%L), then this.', root::regclass);
    END IF;
    -- Rows are found by other keys now.
    IF quorum.key_columns(old_version) IS DISTINCT FROM quorum.key_columns(new_version) THEN
        UPDATE quorum.versioned_table AS t
        SET keeping = DEFAULT, since = clock_timestamp(), truncated_us = NULL, truncated_origin = NULL WHERE t.relid = root;
        PERFORM quorum.forget_versions(root);
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.versions_after_change(oid, bigint, bigint) IS
    'Internal. Refuses what versions of a table''s rows cannot bear; where the key is another one now, they begin anew.';

CREATE FUNCTION quorum.key_columns(version bigint) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_object_agg(c.value ->> 'name', c.value ->> 'type')
    FROM quorum.schema_version AS v, jsonb_array_elements(v.columns) AS c
    WHERE v.id = key_columns.version AND (c.value ->> 'key')::boolean
$$;
COMMENT ON FUNCTION quorum.key_columns(bigint) IS 'Internal. Names and types of the key''s columns in a schema version.';

CREATE FUNCTION quorum.key_number(key bytea[]) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(substr(sha256(string_agg(int4send(length(k.value)) || k.value, '' ORDER BY k.place)), 1, 16), 'hex')::uuid
    FROM unnest(key) WITH ORDINALITY AS k(value, place)
$$;
COMMENT ON FUNCTION quorum.key_number(bytea[]) IS
    'The number under which a key is kept in quorum.row_version, from the texts of its values in the order of the columns'' names, in UTF-8.';

-- Of a table whose versions are kept, so types of keys are built in, or enums: no code of its owner runs here.
CREATE FUNCTION quorum.key_texts(relation oid, key jsonb) RETURNS bytea[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD' SET timezone = 'UTC' SET bytea_output = 'hex' AS $$
DECLARE
    part record;
    value text;
    texts bytea[] := '{}';
    names text[] := '{}';
BEGIN
    FOR part IN SELECT a.attname::text AS name,
                       format_type(b.oid, CASE WHEN b.oid = a.atttypid THEN a.atttypmod END) AS type
                FROM quorum.tracked_table AS t, jsonb_array_elements(quorum.table_columns(t.relid, t.columns)) AS c
                JOIN pg_attribute AS a ON a.attrelid = key_texts.relation AND a.attnum = (c.value ->> 'attnum')::smallint
                JOIN pg_type AS b ON b.oid = (c.value ->> 'base')::oid
                WHERE t.relid = key_texts.relation AND (c.value ->> 'key')::boolean
                ORDER BY convert_to(a.attname::text, 'UTF8') LOOP
        -- What the type's output function prints, and not what a cast makes of it.
        EXECUTE format('SELECT concat($1::%s)', part.type) INTO value USING key ->> part.name;
        PERFORM quorum.require_input(key ->> part.name IS NOT NULL,
            format('the key must have the column %I, as a JSON object with all columns of the key and no others', part.name));
        texts := texts || convert_to(value, 'UTF8');
        names := names || part.name;
    END LOOP;
    PERFORM quorum.require_input(key - names = '{}', format('the key has other columns than %s', array_to_string(names, ', ')));
    RETURN texts;
END
$$;
COMMENT ON FUNCTION quorum.key_texts(oid, jsonb) IS
    'Internal. The texts of a key''s values in the order of the columns'' names, in UTF-8, as the log has them. Error 22023: it is not the table''s key.';

CREATE FUNCTION quorum.row_version_of(
    relation regclass, key jsonb, OUT committed_at timestamptz, OUT origin text, OUT deleted boolean
) RETURNS SETOF record
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp ROWS 1 AS $$
BEGIN
    PERFORM quorum.require_versioned(relation);
    RETURN QUERY
        SELECT timestamptz 'epoch' + v.commit_us * interval '1 microsecond', convert_from(v.origin, 'UTF8'), v.deleted
        FROM quorum.version_of_key(relation, quorum.key_number(quorum.key_texts(relation, key))) AS v;
END
$$;
COMMENT ON FUNCTION quorum.row_version_of(regclass, jsonb) IS
    'Who wrote a row last: when, where (NULL: here), and whether that deleted it. The key is given as {"column": value, …}. No row: it was not written since versions are kept, which counts as older than everything. Errors: 42704 no versions are kept of the table, 22023 that is not its key.';

CREATE FUNCTION quorum.who_wins(relation regclass, key jsonb, committed_at timestamptz, origin text, here text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM quorum.require_versioned(relation);
    PERFORM quorum.require_input(num_nulls(key, committed_at, origin, here) = 0 AND isfinite(committed_at),
        'the key, a finite time, the origin and the name of this database must be given');
    RETURN quorum.judge_write(relation, quorum.key_number(quorum.key_texts(relation, key)),
        (extract(epoch FROM committed_at) * 1000000)::bigint, convert_to(origin, 'UTF8'), convert_to(here, 'UTF8'));
END
$$;
COMMENT ON FUNCTION quorum.who_wins(regclass, jsonb, timestamptz, text, text) IS
    'What the last write to a row would be if one came that was committed at that time at that origin; here: the name of this database as an origin. remote: that one. local: the one that is here. same: they are one and the same. future: it is further in the future than pgquorum.clock_skew_max, and is refused. Errors: as quorum.row_version_of.';

CREATE VIEW quorum.versioned_tables AS
    SELECT n.nspname AS schema, r.relname AS table, t.since,
           timestamptz 'epoch' + t.truncated_us * interval '1 microsecond' AS truncated_at, o.name AS truncated_origin
    FROM quorum.versioned_table AS t JOIN pg_catalog.pg_class AS r ON r.oid = t.relid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = r.relnamespace LEFT JOIN quorum.origin AS o ON o.id = t.truncated_origin;
COMMENT ON VIEW quorum.versioned_tables IS 'The tables of whose rows it is kept who wrote them last. truncated_at, truncated_origin: when, where they were emptied last.';

-- A piece of the table at a time. Rows that somebody writes just now are left for the next time.
CREATE FUNCTION quorum.remove_old_versions(
    first_page bigint, pages integer, most integer, age_s bigint, OUT removed integer, OUT total_pages bigint
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    old tid[];
    before_us CONSTANT bigint := ((extract(epoch FROM clock_timestamp()) - age_s) * 1000000)::bigint;
BEGIN
    total_pages := pg_relation_size('quorum.row_version') / current_setting('block_size')::integer;
    SELECT array_agg(v.place) INTO old FROM (
        SELECT v.ctid AS place FROM quorum.row_version AS v LEFT JOIN quorum.versioned_table AS t ON t.keeping = v.keeping
        WHERE v.ctid >= format('(%s,0)', first_page)::tid AND v.ctid < format('(%s,0)', first_page + pages)::tid
          AND (t.keeping IS NULL OR v.deleted AND v.commit_us < before_us)
        LIMIT most FOR UPDATE OF v SKIP LOCKED) AS v;
    DELETE FROM quorum.row_version AS v WHERE v.ctid = ANY (old);
    GET DIAGNOSTICS removed = ROW_COUNT;
END
$$;
COMMENT ON FUNCTION quorum.remove_old_versions(bigint, integer, integer, bigint) IS
    'Internal. Removes, from some pages of quorum.row_version, tombstones that are older than so many seconds and what counts no more; at most so many rows.';
