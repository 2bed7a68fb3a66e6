-- Types of users that a table needs: as another cluster is told of them, and made here as another cluster describes them.
-- docs/operations-interface.md says which. Who may do what is in grants.sql.

CREATE FUNCTION quorum.described_types(relation oid) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE needed (type, depth) AS (
        SELECT a.atttypid, 1 FROM pg_attribute AS a
        WHERE a.attrelid = described_types.relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        UNION
        SELECT m.type, needed.depth + 1 FROM needed JOIN pg_type AS t ON t.oid = needed.type, LATERAL (
            SELECT t.typelem AS type WHERE t.typelem <> 0
            UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
            UNION ALL SELECT a.atttypid FROM pg_attribute AS a
                      WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS m
    )
    SELECT coalesce(jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', t.typname) || CASE t.typtype
            WHEN 'e' THEN jsonb_build_object('kind', 'enum', 'labels', (
                SELECT coalesce(jsonb_agg(l.enumlabel ORDER BY l.enumsortorder), '[]') FROM pg_enum AS l WHERE l.enumtypid = t.oid))
            WHEN 'd' THEN jsonb_build_object('kind', 'domain', 'base', format_type(t.typbasetype, t.typtypmod))
            ELSE jsonb_build_object('kind', 'composite', 'attributes', (
                SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum), '[]')
                FROM pg_attribute AS a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped))
            END ORDER BY x.depth DESC, n.nspname, t.typname), '[]')
    FROM (SELECT needed.type, max(needed.depth) AS depth FROM needed GROUP BY needed.type) AS x
    JOIN pg_type AS t ON t.oid = x.type JOIN pg_namespace AS n ON n.oid = t.typnamespace
    WHERE t.typtype IN ('e', 'd', 'c') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('quorum', 'quorum_log', 'information_schema')
      -- Not the row type of a table, and nothing that comes with an extension.
      AND (t.typtype <> 'c' OR EXISTS (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind = 'c'))
      AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
$$;
COMMENT ON FUNCTION quorum.described_types(oid) IS
    'Internal. The enum, domain and composite types of users that the columns of a table need, each behind those that it needs itself: [{"schema", "name", "kind", "labels" | "base" | "attributes"}].';

CREATE FUNCTION quorum.is_type_here(type text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- A type is a name and, in brackets, numbers: nothing else may come from another cluster into a statement here.
    SELECT coalesce(r.bare !~ '[();]' AND to_regtype(r.bare) IS NOT NULL, false)
    FROM (SELECT regexp_replace(is_type_here.type, '\([0-9, -]*\)', '')) AS r (bare)
$$;
COMMENT ON FUNCTION quorum.is_type_here(text) IS 'Internal. Is a text from elsewhere the name of a type that there is here, and nothing else?';

CREATE FUNCTION quorum.create_described_types(types jsonb, owner name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one jsonb;
    named text;
    parts text;
    missing text;
BEGIN
    FOR one IN SELECT e FROM jsonb_array_elements(create_described_types.types) WITH ORDINALITY AS x (e, n) ORDER BY n LOOP
        PERFORM quorum.require_input(one ->> 'schema' !~ '^pg_' AND one ->> 'schema' NOT IN ('quorum', 'quorum_log', 'information_schema')
                AND one ->> 'name' <> '' AND one ->> 'kind' IN ('enum', 'domain', 'composite'),
            format('no type can be made as %s describes it', one));
        named := format('%I.%I', one ->> 'schema', one ->> 'name');
        -- Whatever it is here: it stays so, and what does not fit shows in the changes.
        CONTINUE WHEN to_regtype(named) IS NOT NULL;
        SELECT m.type INTO missing
        FROM (SELECT one ->> 'base' WHERE one ->> 'kind' = 'domain'
              UNION ALL SELECT a ->> 'type' FROM jsonb_array_elements(one -> 'attributes') AS a WHERE one ->> 'kind' = 'composite') AS m (type)
        WHERE NOT quorum.is_type_here(m.type) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'type % cannot be made here: there is no type %', named, coalesce(missing, 'that it is of')
                USING ERRCODE = 'undefined_object', HINT = 'Create the type, and try again.';
        END IF;
        IF to_regnamespace(quote_ident(one ->> 'schema')) IS NULL THEN
            EXECUTE format('CREATE SCHEMA %I AUTHORIZATION %I', one ->> 'schema', owner);
        END IF;
        CASE one ->> 'kind'
        WHEN 'enum' THEN
            SELECT string_agg(quote_literal(l), ', ' ORDER BY n) INTO parts
            FROM jsonb_array_elements_text(one -> 'labels') WITH ORDINALITY AS x (l, n);
            EXECUTE format('CREATE TYPE %s AS ENUM (%s)', named, coalesce(parts, ''));
        WHEN 'domain' THEN
            EXECUTE format('CREATE DOMAIN %s AS %s', named, one ->> 'base');
        ELSE
            SELECT string_agg(format('%I %s', a ->> 'name', a ->> 'type'), ', ' ORDER BY n) INTO parts
            FROM jsonb_array_elements(one -> 'attributes') WITH ORDINALITY AS x (a, n);
            EXECUTE format('CREATE TYPE %s AS (%s)', named, coalesce(parts, ''));
        END CASE;
        EXECUTE format('ALTER TYPE %s OWNER TO %I', named, owner);
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.create_described_types(jsonb, name) IS
    'Internal. Makes those types that there are not here yet, as quorum.described_types describes them: domains without their defaults and constraints, which the rows have passed where they come from. Errors: 42704 one needs a type that is not here, 22023 it is no such description.';
