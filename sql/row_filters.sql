-- Following some rows of a table only: the filters of subscriptions, checked as those of tracked tables are.

CREATE FUNCTION quorum.checked_filter(relation regclass, condition text, sent text[] DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parsed record;
    bad text;
BEGIN
    BEGIN
        SELECT f.* INTO STRICT parsed FROM quorum.parse_filter(relation, convert_to(checked_filter.condition, getdatabaseencoding())) AS f;
    EXCEPTION WHEN others THEN
        RAISE EXCEPTION 'the filter of table % cannot be used: %', relation, SQLERRM
            USING ERRCODE = SQLSTATE,
                  HINT = 'A filter is one condition, as behind WHERE, on columns of the table, constants, and built-in operators and functions that always give the same.';
    END;
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO bad FROM pg_attribute AS a
    WHERE a.attrelid = relation AND a.attnum = ANY (parsed.columns) AND (a.attgenerated <> '' OR a.attname <> ALL (checked_filter.sent));
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION 'the filter of table % looks at columns that are computed here, or that the source does not send: %', relation, bad
            USING ERRCODE = 'undefined_column', HINT = 'Filter by columns that the source sends.';
    END IF;
    RETURN quorum.filter_text(parsed.tree, relation);
END
$$;
COMMENT ON FUNCTION quorum.checked_filter(regclass, text, text[]) IS
    'Internal. A filter of a table as this database understands it; sent: the columns that it may look at (NULL: all that are not computed). Errors: 42601 it is no condition, 42703 a column is not there, 0A000 it is none that filters take, others of the parser.';

CREATE FUNCTION quorum.filter_of(filter jsonb, "schema" text, "table" text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT filter_of.filter ->> (filter_of."schema" || '.' || filter_of."table")
$$;
COMMENT ON FUNCTION quorum.filter_of(jsonb, text, text) IS 'Internal. What a subscription''s filter says of a table; NULL: all rows are wanted.';

CREATE FUNCTION quorum.check_filters(s quorum.subscription) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one record;
    relation regclass;
BEGIN
    IF s.filter IS NULL THEN
        RETURN;
    END IF;
    PERFORM quorum.require_input(jsonb_typeof(s.filter) = 'object',
        format('filter is an object with a condition for each table, such as {"public.orders": "region = ''eu''"}, not %s', jsonb_typeof(s.filter)));
    FOR one IN SELECT e.key AS name, e.value #>> '{}' AS condition, jsonb_typeof(e.value) AS type FROM jsonb_each(s.filter) AS e LOOP
        PERFORM quorum.require_input(one.name ~ '^.+[.].+$', format('in filter a table is named as schema.table, not %s', quote_literal(one.name)));
        PERFORM quorum.require_input(one.type = 'string' AND one.condition <> '', format('the filter of table %s must be a condition, as a text', one.name));
        PERFORM quorum.require_input(s.tables IS NULL OR one.name = ANY (s.tables),
            format('filter names table %s, which is not among the tables of the subscription', one.name));
        FOR relation IN SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                        WHERE n.nspname || '.' || c.relname = one.name AND c.relkind IN ('r', 'p') LOOP
            PERFORM quorum.checked_filter(relation, one.condition);
        END LOOP;
        PERFORM quorum.require_input(
            s.policy <> 'last_write_wins' AND NOT EXISTS (
                SELECT FROM quorum.subscription_table AS t
                WHERE t.subscription = s.id AND t.policy = 'last_write_wins' AND t.schema_name || '.' || t.table_name = one.name),
            format('table %s cannot have a filter where the last write wins: a row that leaves the filter is deleted here, and other databases would take that for a deletion of the row', one.name));
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.check_filters(quorum.subscription) IS
    'Internal. Raises what is wrong with the filters of a subscription; those of tables that are not here yet are looked at when these are. Errors: 22023, and as quorum.checked_filter.';
