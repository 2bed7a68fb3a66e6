-- Following another cluster where the last write wins: it must be kept who wrote each row last.

CREATE FUNCTION quorum.versions_lacking("schema" text, "table" text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation regclass := to_regclass(format('%I.%I', versions_lacking."schema", versions_lacking."table"));
    root regclass;
    fault text;
BEGIN
    IF relation IS NULL THEN
        RETURN NULL;
    END IF;
    -- Of a partition the versions are those of the table that it belongs to.
    SELECT t.relid INTO root FROM quorum.tracked_table AS t
    WHERE t.relid = relation OR t.relid IN (SELECT a.relid FROM pg_partition_ancestors(relation) AS a(relid));
    IF NOT FOUND THEN
        RETURN format('table %s is not tracked here, so it cannot be kept who wrote a row last', relation);
    END IF;
    IF EXISTS (SELECT FROM quorum.versioned_table AS v WHERE v.relid = root) THEN
        RETURN NULL;
    END IF;
    fault := quorum.versions_fault(root);
    IF fault IS NOT NULL THEN
        RETURN format('it cannot be kept who wrote the rows of %s last: %s', root, fault);
    END IF;
    PERFORM quorum.keep_versions(root);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION quorum.versions_lacking(text, text) IS
    'Internal. Sees to it that versions of the rows of a table are kept. NULL: they are, or there is no such table here; else why they cannot be. Error 55P03: the table is busy.';

CREATE FUNCTION quorum.require_versions(t quorum.subscription_table) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lacking text := quorum.versions_lacking(t.schema_name, t.table_name);
BEGIN
    IF lacking IS NOT NULL THEN
        RAISE EXCEPTION 'last_write_wins is not possible for table %.%: %', t.schema_name, t.table_name, lacking
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('SELECT quorum.track(%L, CHANNEL) first, then this again; or choose another policy (quorum.set_table_policy).',
                                format('%I.%I', t.schema_name, t.table_name));
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.require_versions(quorum.subscription_table) IS
    'Internal. Sees to it that versions of the rows of a table are kept. Errors: 55000 they cannot be, 55P03 the table is busy.';

CREATE FUNCTION quorum.is_last_write_wins(t quorum.subscription_table) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(t.policy, s.policy) = 'last_write_wins' FROM quorum.subscription AS s WHERE s.id = t.subscription
$$;
COMMENT ON FUNCTION quorum.is_last_write_wins(quorum.subscription_table) IS 'Internal. Does the last write win in this table of a subscription?';

-- Whoever can go on does; the others say why not.
CREATE FUNCTION quorum.keep_versions_of(subscription integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t quorum.subscription_table;
    lacking text;
BEGIN
    FOR t IN SELECT x.* FROM quorum.subscription_table AS x
             WHERE x.subscription = keep_versions_of.subscription AND x.state <> 'stopped' AND quorum.is_last_write_wins(x) LOOP
        lacking := quorum.versions_lacking(t.schema_name, t.table_name);
        UPDATE quorum.subscription_table AS x
        SET state = 'stopped', code = 'PQ020', since = clock_timestamp(),
            message = lacking || '. Mend that (quorum.track), then let it go on: quorum.resume_table, with copy => true if it was never copied. Or choose another policy than last_write_wins'
        WHERE lacking IS NOT NULL
          AND (x.subscription, x.schema_name, x.table_name) = (t.subscription, t.schema_name, t.table_name);
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.keep_versions_of(integer) IS
    'Internal. Sees to it that versions are kept of the rows of all tables of a subscription in which the last write wins; those of which they cannot be stop (PQ020). Error 55P03: a table is busy.';
