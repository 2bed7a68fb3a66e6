-- Sequences of followed tables. Changes carry the values that a sequence gave, never the sequence: it is set on request,
-- and before a database that followed another one takes its place.

CREATE FUNCTION quorum.sequences_of(relation oid) RETURNS TABLE ("column" name, sequence oid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- Those that belong to a column (serial, identity), and those that its default takes numbers from.
    SELECT a.attname, d.objid
    FROM pg_depend AS d
    JOIN pg_class AS c ON c.oid = d.objid AND c.relkind = 'S'
    JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = relation
      AND d.deptype IN ('a', 'i')
    UNION
    SELECT a.attname, d.refobjid
    FROM pg_attrdef AS f
    JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
    JOIN pg_class AS c ON c.oid = d.refobjid AND c.relkind = 'S'
    JOIN pg_attribute AS a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
    WHERE f.adrelid = relation
$$;
COMMENT ON FUNCTION quorum.sequences_of(oid) IS 'Internal. The sequences that give values to columns of a table.';

CREATE FUNCTION quorum.channel_sequences(channel text)
RETURNS TABLE ("schema" name, "table" name, "column" name, sequence text, last_value bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    of integer := quorum.channel_id(channel_sequences.channel);
BEGIN
    RETURN QUERY
        SELECT n.nspname, r.relname, s."column", s.sequence::regclass::text, pg_sequence_last_value(s.sequence)
        FROM quorum.tracked_table AS t
        JOIN pg_class AS r ON r.oid = t.relid
        JOIN pg_namespace AS n ON n.oid = r.relnamespace
        CROSS JOIN LATERAL quorum.sequences_of(t.relid) AS s
        WHERE t.channel = of
        ORDER BY 1, 2, 3, 4;
END
$$;
COMMENT ON FUNCTION quorum.channel_sequences(text) IS
    'The sequences that give values to columns of a channel''s tables. last_value: the last number given; NULL: none yet. Error 42704: no such channel.';

CREATE FUNCTION quorum.advance_sequences(subscription_name text, step bigint DEFAULT 1000, source jsonb DEFAULT NULL)
RETURNS TABLE ("schema" text, "table" text, "column" name, sequence text, was bigint, now bigint, outcome text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target integer := quorum.subscription_id(subscription_name);
    one record;
    base numeric;
    reached numeric;
BEGIN
    PERFORM quorum.require_input(step BETWEEN 0 AND 1000000000000,
        'step, how many numbers to leave out for safety, is 0 to 1000000000000');
    PERFORM quorum.require_input(source IS NULL OR jsonb_typeof(source) = 'array',
        'source is an array of rows of quorum.channel_sequences, or NULL: go by the rows that are here');
    FOR one IN
        SELECT t.schema_name, t.table_name, r.oid AS relid, s."column", s.sequence, q.seqincrement AS increment,
               q.seqstart AS first, q.seqmin AS least, q.seqmax AS greatest,
               a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype) AS is_number
        FROM quorum.subscription_table AS t
        JOIN pg_namespace AS n ON n.nspname = t.schema_name
        JOIN pg_class AS r ON r.relnamespace = n.oid AND r.relname = t.table_name AND r.relkind IN ('r', 'p')
        CROSS JOIN LATERAL quorum.sequences_of(r.oid) AS s
        JOIN pg_sequence AS q ON q.seqrelid = s.sequence
        JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attname = s."column" AND NOT a.attisdropped
        WHERE t.subscription = target
        ORDER BY t.schema_name, t.table_name, s."column", s.sequence
    LOOP
        -- Nobody takes a number from it between the look and the new value.
        PERFORM quorum.lock_sequence(one.sequence);
        "schema" := one.schema_name;
        "table" := one.table_name;
        "column" := one."column";
        sequence := one.sequence::regclass::text;
        was := pg_sequence_last_value(one.sequence);
        now := was;
        base := NULL;
        IF source IS NOT NULL THEN
            SELECT CASE WHEN one.increment > 0 THEN max(o.last_value) ELSE min(o.last_value) END INTO base
            FROM jsonb_to_recordset(source) AS o ("schema" text, "table" text, "column" text, last_value numeric)
            WHERE o."schema" = one.schema_name AND o."table" = one.table_name AND o."column" = one."column";
        ELSIF one.is_number THEN
            EXECUTE format('SELECT %s(%I)::numeric FROM %I.%I', CASE WHEN one.increment > 0 THEN 'max' ELSE 'min' END,
                           one."column", one.schema_name, one.table_name) INTO base;
        END IF;
        -- On a number that the sequence itself would give: where two databases give odd and even ones, it stays so.
        reached := one.first + one.increment * ceil((base + sign(one.increment::numeric) * step - one.first) / one.increment);
        IF base IS NULL THEN
            outcome := 'nothing known';
        ELSIF (coalesce(was::numeric, one.first::numeric - one.increment) - reached) * sign(one.increment::numeric) >= 0 THEN
            outcome := 'ahead already';
        ELSIF reached NOT BETWEEN one.least AND one.greatest THEN
            outcome := 'beyond its limit';
        ELSE
            now := setval(one.sequence::regclass, reached::bigint);
            outcome := 'set';
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.advance_sequences(text, bigint, jsonb) IS
    'Sets the sequences of a subscription''s tables so far that they give no number that was given before: step numbers beyond those that the source gave (source: rows of its quorum.channel_sequences), or beyond those in the rows here (source NULL). A sequence never goes back. outcome: set; ahead already; nothing known; beyond its limit. Errors: 42704 no such subscription, 22023 bad arguments, 55P03 a sequence is in use by a transaction that stays open.';
