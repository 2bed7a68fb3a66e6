-- Tables and rows as the replication interface restores them, from what an inventory and a dump say
-- (docs/replication-interface.md).

-- Whatever documents have: what is in no column of its own is in `data`.
CREATE FUNCTION quorum.document_table(edge boolean) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object('key', '["_key"]'::jsonb, 'columns', '[{"name": "_key", "type": "text"}]'::jsonb
        || CASE WHEN document_table.edge THEN '[{"name": "_from", "type": "text"}, {"name": "_to", "type": "text"}]'::jsonb ELSE '[]' END
        || '[{"name": "data", "type": "jsonb"}]'::jsonb)
$$;
COMMENT ON FUNCTION quorum.document_table(boolean) IS
    'Internal. The description, as that of quorum.describe_table, of a table for documents of which nothing is known.';

CREATE FUNCTION quorum.restore_collection(
    "schema" text, "table" text, description jsonb DEFAULT NULL, edge boolean DEFAULT false, overwrite boolean DEFAULT false,
    channel text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    wanted jsonb := coalesce(restore_collection.description, quorum.document_table(restore_collection.edge));
    present jsonb;
    relation regclass;
    target quorum.channel;
BEGIN
    PERFORM quorum.require_input(restore_collection."schema" !~ '^pg_'
            AND restore_collection."schema" NOT IN ('quorum', 'quorum_log', 'information_schema'),
        format('no table can be made in schema %I', restore_collection."schema"));
    -- One at a time, with quorum.offer_table, too: two would make the same.
    PERFORM pg_advisory_xact_lock(hashtext('quorum.offer_table'));
    present := quorum.describe_table(restore_collection."schema", restore_collection."table");
    IF present IS NOT NULL THEN
        relation := format('%I.%I', restore_collection."schema", restore_collection."table")::regclass;
        IF NOT restore_collection.overwrite THEN
            RAISE EXCEPTION 'table % exists', relation USING ERRCODE = 'duplicate_object',
                HINT = 'With overwrite=true it is emptied, or, if it has other columns, dropped and made anew.';
        END IF;
        IF present -> 'columns' @> (wanted -> 'columns') AND present -> 'columns' <@ (wanted -> 'columns')
           AND present -> 'key' @> (wanted -> 'key') AND present -> 'key' <@ (wanted -> 'key') THEN
            -- What refers to it, and who may use it, stays.
            PERFORM quorum.run_as_owner(relation, format('TRUNCATE %s', relation));
        ELSE
            EXECUTE format('DROP TABLE %s', relation);
            present := NULL;
        END IF;
    END IF;
    IF present IS NULL THEN
        PERFORM quorum.create_described_table(restore_collection."schema", restore_collection."table", wanted);
        relation := format('%I.%I', restore_collection."schema", restore_collection."table")::regclass;
        IF restore_collection.edge AND (SELECT count(*) FROM pg_attribute AS a
                                        WHERE a.attrelid = relation AND a.attname IN ('_from', '_to')) = 2 THEN
            EXECUTE format('CREATE INDEX ON %s ("_from")', relation);
            EXECUTE format('CREATE INDEX ON %s ("_to")', relation);
        END IF;
    END IF;
    SELECT c.* INTO target FROM quorum.channel AS c WHERE c.name = restore_collection.channel;
    IF FOUND AND NOT EXISTS (SELECT FROM quorum.tracked_table AS t WHERE t.relid = relation) THEN
        IF target.stopped_at IS NULL THEN
            PERFORM quorum.track(relation, target.name);
        ELSE
            INSERT INTO quorum.resting_table (relid, channel, old_image, versions) VALUES (relation, target.id, target.old_image, false)
            ON CONFLICT DO NOTHING;
        END IF;
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.restore_collection(text, text, jsonb, boolean, boolean, text) IS
    'Makes a table as quorum.describe_table describes one; without a description one for documents: _key and data, for edges also _from and _to. overwrite: one that is there is emptied, or dropped if it has other columns or another key. channel: the table is tracked in it, if there is one of that name and no other one has the table. Errors: 42710 the table exists, 42704 there is no such type here, 22023 it has no key or no proper schema, 2BP01 others depend on the table that would be dropped, else as quorum.track.';

CREATE FUNCTION quorum.restore_indexes("schema" text, "table" text, indexes jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation regclass := quorum.restored_table(restore_indexes."schema", restore_indexes."table");
    one jsonb;
    fields text[];
    parts text[];
    missing text;
BEGIN
    FOR one IN SELECT e FROM jsonb_array_elements(restore_indexes.indexes) AS e LOOP
        fields := ARRAY(SELECT jsonb_array_elements_text(one -> 'fields'));
        CONTINUE WHEN EXISTS (
            SELECT FROM pg_index AS i WHERE i.indrelid = relation AND i.indisvalid AND i.indexprs IS NULL AND i.indpred IS NULL
                AND i.indisunique = (one ->> 'unique')::boolean
                AND (SELECT array_agg(a.attname::text ORDER BY k.place) FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
                     JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum WHERE k.place <= i.indnkeyatts) = fields);
        SELECT array_agg(CASE WHEN a.attname IS NOT NULL THEN quote_ident(f.name)
                              WHEN quorum.holds_documents(relation) THEN format('(data #> %L)', string_to_array(f.name, '.')) END ORDER BY f.place),
               min(f.name) FILTER (WHERE a.attname IS NULL AND NOT quorum.holds_documents(relation))
        INTO parts, missing
        FROM unnest(fields) WITH ORDINALITY AS f (name, place)
        LEFT JOIN pg_attribute AS a ON a.attrelid = relation AND a.attname = f.name AND a.attnum > 0 AND NOT a.attisdropped;
        IF missing IS NOT NULL THEN
            RAISE EXCEPTION 'table % has no column % for an index', relation, quote_ident(missing) USING ERRCODE = 'undefined_column';
        END IF;
        -- The same index has the same name each time.
        EXECUTE format('CREATE %s INDEX IF NOT EXISTS %I ON %s USING %s (%s)', CASE WHEN (one ->> 'unique')::boolean THEN 'UNIQUE' ELSE '' END,
            'restored_' || md5(concat_ws(E'\n', relation::oid, one ->> 'unique', array_to_string(parts, E'\n'))),
            relation, CASE WHEN one ->> 'type' = 'hash' AND cardinality(parts) = 1 AND NOT (one ->> 'unique')::boolean THEN 'hash' ELSE 'btree' END,
            array_to_string(parts, ', '));
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.restore_indexes(text, text, jsonb) IS
    'Makes those of these indexes that a table has not, [{"type", "unique", "fields"}]; fields are columns, or, of a table for documents, members of data with points between them. Errors: 42P01 there is no such table, 42703 no such column, else as CREATE INDEX.';

CREATE FUNCTION quorum.restored_table("schema" text, "table" text) RETURNS regclass
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation oid := (SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                     WHERE n.nspname = restored_table."schema" AND c.relname = restored_table."table" AND c.relkind IN ('r', 'p')
                       AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('quorum', 'quorum_log', 'information_schema'));
BEGIN
    IF relation IS NULL THEN
        RAISE EXCEPTION 'schema % has no table %', quote_ident(restored_table."schema"), quote_ident(restored_table."table")
            USING ERRCODE = 'undefined_table';
    END IF;
    RETURN relation;
END
$$;
COMMENT ON FUNCTION quorum.restored_table(text, text) IS 'Internal. A table of users'' that is restored; error 42P01.';

CREATE FUNCTION quorum.holds_documents(relation oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FILTER (WHERE (a.attname, a.atttypid) IN (('_key', 'text'::regtype), ('data', 'jsonb'::regtype))) = 2
           AND count(*) FILTER (WHERE (a.attname, a.atttypid) NOT IN (('_key', 'text'::regtype), ('data', 'jsonb'::regtype),
                                                                      ('_from', 'text'::regtype), ('_to', 'text'::regtype))) = 0
           AND count(*) IN (2, 4)
    FROM pg_attribute AS a WHERE a.attrelid = holds_documents.relation AND a.attnum > 0 AND NOT a.attisdropped
$$;
COMMENT ON FUNCTION quorum.holds_documents(oid) IS
    'Internal. Is it a table as quorum.document_table describes it? The members of data are the documents'' attributes then.';

-- What the columns of a table are as attributes of documents, and how a value of each is found in e, one of the rows of
-- restore_rows.
CREATE FUNCTION quorum.restored_columns(relation oid) RETURNS TABLE (name text, attribute text, key boolean, value text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH found AS (
        SELECT c.value ->> 'name' AS name, (c.value ->> 'key')::boolean AS key, c.place,
               format_type((c.value ->> 'type_oid')::oid, -1) AS type, (c.value ->> 'base')::oid AS base
        FROM jsonb_array_elements(quorum.table_columns(restored_columns.relation, NULL)) WITH ORDINALITY AS c (value, place)
    ), form AS (
        SELECT quorum.holds_documents(restored_columns.relation) AS documents,
               count(*) FILTER (WHERE f.name IN ('_from', '_to') AND f.base = 'text'::regtype) = 2 AS edge, count(*) FILTER (WHERE f.key) AS keys
        FROM found AS f
    ), named AS (
        SELECT f.*, form.*, CASE
            WHEN f.name LIKE '\%%' THEN '%25' || substr(f.name, 2)
            WHEN f.name IN ('_id', '_key', '_rev') OR f.name IN ('_from', '_to') AND NOT form.edge THEN '%5F' || substr(f.name, 2)
            ELSE f.name END AS attribute,
            count(*) FILTER (WHERE f.key) OVER (ORDER BY f.place) - 1 AS key_place
        FROM found AS f, form
    )
    SELECT n.name, n.attribute, n.key, CASE
        WHEN n.key AND n.keys = 1 THEN format('(e ->> ''joined'')::%s', n.type)
        WHEN n.key THEN format('(e -> ''key'' ->> %s)::%s', n.key_place, n.type)
        WHEN n.documents AND n.name = 'data' THEN format('(e -> ''data'') - %L::text[]', CASE WHEN n.edge THEN '{_from,_to}' ELSE '{}' END)
        WHEN n.base IN ('json'::regtype, 'jsonb'::regtype) THEN format('nullif(e -> ''data'' -> %L, ''null'')::%s', n.attribute, n.type)
        ELSE format('(e -> ''data'' ->> %L)::%s', n.attribute, n.type) END
    FROM named AS n ORDER BY n.place
$$;
COMMENT ON FUNCTION quorum.restored_columns(oid) IS
    'Internal. The columns of a table, what attribute of a document each is, and the expression for its value in a row of quorum.restore_rows.';

CREATE FUNCTION quorum.restore_rows("schema" text, "table" text, rows jsonb, force boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    relation regclass := quorum.restored_table(restore_rows."schema", restore_rows."table");
    documents boolean := quorum.holds_documents(relation);
    given text[];
    unknown text;
    keys text[];
    matches text;
    names text;
    sources text;
    changes text;
BEGIN
    SELECT array_agg(DISTINCT k) INTO given
    FROM jsonb_array_elements(restore_rows.rows) AS e, jsonb_object_keys(CASE jsonb_typeof(e -> 'data') WHEN 'object' THEN e -> 'data' ELSE '{}' END) AS k;
    SELECT array_agg(quote_ident(c.name)) FILTER (WHERE c.key), string_agg(format('t.%I = %s', c.name, c.value), ' AND ') FILTER (WHERE c.key),
           string_agg(quote_ident(c.name), ', '), string_agg(c.value, ', '),
           string_agg(format('%I = excluded.%I', c.name, c.name), ', ') FILTER (WHERE NOT c.key)
    INTO keys, matches, names, sources, changes
    FROM quorum.restored_columns(relation) AS c
    -- What none of the documents has is left to the table's defaults.
    WHERE c.key OR c.attribute = ANY (given) OR documents;
    IF keys IS NULL THEN
        RAISE EXCEPTION 'table % has no key by which its rows could be told apart', relation
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Add a primary key.';
    END IF;
    IF cardinality(keys) > 1 THEN
        SELECT e ->> 'joined' INTO unknown FROM jsonb_array_elements(restore_rows.rows) AS e
        WHERE jsonb_array_length(e -> 'key') <> cardinality(keys) LIMIT 1;
        PERFORM quorum.require_input(unknown IS NULL, format('the key %s does not have %s values, as those of table %s', unknown, cardinality(keys), relation));
    END IF;
    SELECT g INTO unknown FROM unnest(given) AS g
    WHERE NOT documents AND NOT restore_rows.force AND g NOT IN (SELECT c.attribute FROM quorum.restored_columns(relation) AS c) LIMIT 1;
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'table % has no column for the attribute %', relation, quote_literal(unknown)
            USING ERRCODE = 'undefined_column', HINT = 'Add the column, or leave such attributes out with force=true.';
    END IF;
    -- The rows are a parameter: what is reported meanwhile, to the server's log too, shows the statement.
    PERFORM quorum.applier_write(relation, format(
        'DELETE FROM %s AS t USING jsonb_array_elements(($1)[1]::jsonb) AS e WHERE jsonb_typeof(e -> ''data'') = ''null'' AND %s',
        relation, matches), ARRAY[restore_rows.rows::text]);
    PERFORM quorum.applier_write(relation, format(
        'INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM jsonb_array_elements(($1)[1]::jsonb) AS e '
        'WHERE jsonb_typeof(e -> ''data'') = ''object'' ON CONFLICT (%s) DO %s',
        relation, names, sources, array_to_string(keys, ', '), coalesce('UPDATE SET ' || changes, 'NOTHING')),
        ARRAY[restore_rows.rows::text]);
END
$$;
COMMENT ON FUNCTION quorum.restore_rows(text, text, jsonb, boolean) IS
    'Writes documents into a table, [{"key": [its values], "joined": the same as one text, "data": {attributes} or null: the row goes}], each key once, with the rights of the table''s owner. force: attributes for which there is no column are left out. Errors: 42P01 there is no such table, 42703 no column for an attribute, 22023 a key with too few values, 55000 no key, else those of INSERT and DELETE.';
