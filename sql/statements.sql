-- Statements that were learned, and which of them write nothing.
--
-- Functions in Rust read and change these tables by the order of their columns.

CREATE TABLE quorum.readonly_statement (
    hash bigint NOT NULL,
    search_path text COLLATE "C" NOT NULL,
    words bigint NOT NULL,
    depends oid[] NOT NULL,
    depends_on_all boolean NOT NULL,
    verdict smallint NOT NULL CHECK (verdict BETWEEN 0 AND 3),
    barred boolean NOT NULL,
    clean_calls bigint NOT NULL,
    withdrawn timestamptz,
    reason text,
    proven_lsn pg_lsn,
    calls bigint NOT NULL,
    last_use timestamptz NOT NULL,
    check_hash bigint NOT NULL,
    length bigint NOT NULL,
    query_id bigint,
    statement text NOT NULL,
    PRIMARY KEY (hash, search_path)
) WITH (fillfactor = 70);
COMMENT ON TABLE quorum.readonly_statement IS
    'Statements that were learned, of all nodes; quorum.readonly_statements shows them. Written by the primary only.';
COMMENT ON COLUMN quorum.readonly_statement.hash IS 'Hash of the normalised text, its 64 bits as a signed number.';
COMMENT ON COLUMN quorum.readonly_statement.search_path IS 'The schemas in which its names are looked up.';
COMMENT ON COLUMN quorum.readonly_statement.words IS 'A filter of the names in its text; -1: any name may be in it.';
COMMENT ON COLUMN quorum.readonly_statement.depends IS 'The objects that the verdict rests on.';
COMMENT ON COLUMN quorum.readonly_statement.depends_on_all IS 'There are more of them than were kept: any change may concern it.';
COMMENT ON COLUMN quorum.readonly_statement.verdict IS
    'What all plannings since the last change of its objects came to: 0 not planned since, 1 it cannot write, 2 not known, 3 not to be served.';
COMMENT ON COLUMN quorum.readonly_statement.barred IS 'Not to be served until quorum.forget_statements: it was seen writing, or another statement has its hash.';
COMMENT ON COLUMN quorum.readonly_statement.clean_calls IS 'Executions since the last change in which it wrote nothing.';
COMMENT ON COLUMN quorum.readonly_statement.withdrawn IS 'When it was withdrawn, if it was proven or observed before.';
COMMENT ON COLUMN quorum.readonly_statement.proven_lsn IS 'Where the WAL was when it was proven last.';
COMMENT ON COLUMN quorum.readonly_statement.check_hash IS 'Of a text of which only the beginning is kept, another hash, by which two texts with the same hash are told apart.';
COMMENT ON COLUMN quorum.readonly_statement.length IS 'Bytes of the whole normalised text.';
COMMENT ON COLUMN quorum.readonly_statement.statement IS 'The beginning of the normalised text, at most 1 kB.';

CREATE TABLE quorum.statements_counter (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    served bigint NOT NULL,
    forgotten bigint NOT NULL
) WITH (fillfactor = 10);
COMMENT ON TABLE quorum.statements_counter IS 'Counts the changes of what is served of quorum.readonly_statement.';
COMMENT ON COLUMN quorum.statements_counter.served IS 'Grows when statements become served or are withdrawn.';
COMMENT ON COLUMN quorum.statements_counter.forgotten IS 'Grows with quorum.forget_statements.';
INSERT INTO quorum.statements_counter (served, forgotten) VALUES (1, 0);

-- Verdicts only get worse here: they are joined over all plannings on all nodes. A change of what a statement depends on
-- sets its row back (in Rust, in the transaction that makes the change).
--
-- Few rows are joined with a table that may be large, by its key, and again and again: without statistics, and with plans
-- from when the table was empty, all of it would be read each time.
CREATE FUNCTION quorum.save_statements(learned jsonb) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off AS $$
DECLARE
    min_calls CONSTANT bigint := current_setting('pgquorum.statements_min_calls');
    most CONSTANT bigint := current_setting('pgquorum.statements_max');
    saved integer;
    moved integer;
    lies jsonb;
    lie record;
    said text;
    surplus bigint;
BEGIN
    -- The transactions that change functions, tables and so on take back verdicts under a lock that conflicts with this one.
    LOCK TABLE quorum.readonly_statement IN SHARE ROW EXCLUSIVE MODE;
    WITH new AS (
        SELECT n.hash, convert_from(decode(n.path, 'hex'), 'UTF8') COLLATE "C" AS search_path, n.words, n.depends, n."all",
               n.verdict, n.barred, coalesce(n.lied, false) AS lied, n.clean,
               convert_from(decode(n.reason, 'hex'), 'UTF8') AS reason, n.calls,
               to_timestamp(n.used / 1000000.0) AS last_use, n."check", n.length, n.query_id,
               convert_from(decode(n.text, 'hex'), 'UTF8') AS statement
        FROM jsonb_to_recordset(learned) AS n(hash bigint, path text, words bigint, depends oid[], "all" boolean,
             verdict smallint, barred boolean, lied boolean, clean bigint, reason text, calls bigint, used numeric,
             "check" bigint, length bigint, query_id bigint, text text)
    ), joined AS (
        SELECT n.*, r.hash IS NOT NULL AS known, r.verdict AS old_verdict, coalesce(r.barred, false) AS old_barred,
               coalesce((r.check_hash, r.length, r.statement) <> (n."check", n.length, n.statement), false) AS collides,
               r.barred OR n.barred AS any_barred, coalesce(r.clean_calls, 0) + n.clean AS all_clean,
               CASE WHEN r.barred OR r.verdict = 3 THEN 0 WHEN r.verdict = 1 THEN 2
                    WHEN r.clean_calls >= min_calls THEN 1 ELSE 0 END AS old_standing
        FROM new AS n LEFT JOIN quorum.readonly_statement AS r USING (hash, search_path)
    ), judged AS (
        SELECT j.*, greatest(coalesce(j.old_verdict, 0), j.verdict) AS now_verdict,
               coalesce(j.any_barred, j.barred) OR j.collides AS now_barred
        FROM joined AS j
    ), standing AS (
        SELECT j.*, CASE WHEN j.now_barred OR j.now_verdict = 3 THEN 0 WHEN j.now_verdict = 1 THEN 2
                         WHEN j.all_clean >= min_calls THEN 1 ELSE 0 END AS now_standing,
               CASE WHEN j.collides THEN 'two different statements have this hash' ELSE j.reason END AS now_reason
        FROM judged AS j
    ), updated AS (
        UPDATE quorum.readonly_statement AS r SET
            words = r.words | s.words,
            depends = CASE WHEN s.old_verdict = 0 THEN s.depends
                           ELSE ARRAY(SELECT DISTINCT d.oid FROM unnest(r.depends || s.depends) AS d(oid) ORDER BY 1 LIMIT 65) END,
            depends_on_all = CASE WHEN s.old_verdict = 0 THEN s."all"
                                  ELSE r.depends_on_all OR s."all" OR cardinality(r.depends || s.depends) > 64 END,
            verdict = s.now_verdict, barred = s.now_barred, clean_calls = s.all_clean,
            withdrawn = CASE WHEN s.now_standing > 0 THEN NULL WHEN s.old_standing > 0 THEN clock_timestamp()
                             ELSE r.withdrawn END,
            reason = CASE WHEN s.now_standing = 2 THEN NULL ELSE coalesce(s.now_reason, r.reason) END,
            proven_lsn = CASE WHEN s.now_verdict = 1 AND s.old_verdict <> 1 THEN pg_current_wal_insert_lsn()
                              ELSE r.proven_lsn END,
            calls = r.calls + s.calls, last_use = greatest(r.last_use, s.last_use),
            query_id = coalesce(s.query_id, r.query_id)
        FROM standing AS s WHERE r.hash = s.hash AND r.search_path = s.search_path
        RETURNING (s.now_standing <> s.old_standing)::integer AS moved
    ), inserted AS (
        INSERT INTO quorum.readonly_statement AS r (hash, search_path, words, depends, depends_on_all, verdict, barred, clean_calls,
            reason, proven_lsn, calls, last_use, check_hash, length, query_id, statement)
        SELECT s.hash, s.search_path, s.words, s.depends, s."all", s.now_verdict, s.now_barred, s.all_clean,
               CASE WHEN s.now_standing < 2 THEN s.now_reason END,
               CASE WHEN s.now_verdict = 1 THEN pg_current_wal_insert_lsn() END,
               s.calls, s.last_use, s."check", s.length, s.query_id, s.statement
        FROM standing AS s WHERE NOT s.known
        ON CONFLICT DO NOTHING
        -- Another row of a hash, under another search_path, may take it away.
        RETURNING (r.verdict = 1 AND NOT r.barred OR r.clean_calls >= min_calls
                   OR EXISTS (SELECT FROM quorum.readonly_statement AS o WHERE o.hash = r.hash))::integer AS moved
    )
    SELECT count(*), coalesce(sum(a.moved), 0),
           (SELECT jsonb_agg(jsonb_build_object('hash', lpad(to_hex(s.hash), 16, '0'), 'path', s.search_path,
                                                'why', s.reason, 'text', s.statement))
            FROM standing AS s WHERE s.lied AND s.now_barred AND NOT s.old_barred)
    INTO saved, moved, lies
    FROM (SELECT u.moved FROM updated AS u UNION ALL SELECT i.moved FROM inserted AS i) AS a;

    IF saved > 0 THEN
        -- The same hash under another search_path: whoever computes it cannot tell the texts apart either.
        UPDATE quorum.readonly_statement AS r SET barred = true, withdrawn = coalesce(r.withdrawn, clock_timestamp()),
            reason = 'two different statements have this hash'
        WHERE NOT r.barred
          AND r.hash = ANY (ARRAY(SELECT (n.value ->> 'hash')::bigint FROM jsonb_array_elements(learned) AS n))
          AND EXISTS (SELECT FROM quorum.readonly_statement AS o
                      WHERE o.hash = r.hash AND (o.check_hash, o.length, o.statement) <> (r.check_hash, r.length, r.statement));
        IF FOUND THEN
            moved := moved + 1;
        END IF;
        SELECT count(*) - most INTO surplus FROM quorum.readonly_statement AS r;
        IF surplus > 0 THEN
            -- Here all rows are looked at.
            PERFORM set_config('enable_hashjoin', 'on', true), set_config('enable_seqscan', 'on', true);
            -- Some more, so that this is not done each time. What was seen writing is remembered longest; then what is in
            -- use: a row's counters are older than those in memory, and its statement is not saved anew for the row's sake.
            DELETE FROM quorum.readonly_statement AS r USING (
                SELECT o.hash, o.search_path FROM quorum.readonly_statement AS o
                LEFT JOIN quorum.statements_here() AS h
                    ON h.hash = o.hash AND convert_from(h.search_path, 'UTF8') = o.search_path
                ORDER BY o.barred, h.hash IS NOT NULL, o.calls > 1, o.last_use LIMIT surplus + most / 10) AS o
            WHERE r.hash = o.hash AND r.search_path = o.search_path;
            moved := moved + 1;
        END IF;
    END IF;
    IF moved > 0 THEN
        UPDATE quorum.statements_counter AS c SET served = c.served + 1;
    END IF;
    -- A function's declaration is a lie: whoever administers the database is to know, whichever node has seen it, and once
    -- for each withdrawal.
    FOR lie IN SELECT l.value ->> 'hash' AS hash, l.value ->> 'path' AS path, l.value ->> 'why' AS why, l.value ->> 'text' AS statement
               FROM jsonb_array_elements(lies) AS l LOOP
        said := format('statement %s, which could not write by the declarations of its functions, was seen writing', lie.hash);
        RAISE WARNING 'pgquorum: %', said USING
            DETAIL = format('It is not served to run on standbys any more. What was seen: %s. Its text without literals: %s',
                            lie.why, lie.statement),
            HINT = format('A function in it, or one that such a function calls, is declared STABLE or IMMUTABLE and writes all the same: declare it VOLATILE. SELECT quorum.forget_statements(''%s'') lets the statement be learned again.',
                          lie.hash);
        BEGIN
            PERFORM quorum.record_feed_event('statement-withdrawn', format('%s (%s)', said, lie.why),
                jsonb_build_object('hash', lie.hash, 'search-path', lie.path));
        EXCEPTION WHEN OTHERS THEN
            -- For people only, and the server's log has it, too: nothing is served longer for its sake.
            RAISE LOG 'pgquorum: the event of this cannot be written: %', SQLERRM;
        END;
    END LOOP;
    RETURN saved;
END
$$;
COMMENT ON FUNCTION quorum.save_statements(jsonb) IS
    'Internal. Joins what was learned, as quorum.take_learned gives it, to what is known, whatever has changed since. A proven statement that was seen writing gives a WARNING and an event. Returns how many statements.';

CREATE FUNCTION quorum.merge_statements(learned jsonb) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'cannot merge statements: this server is in recovery'
            USING ERRCODE = 'read_only_sql_transaction', HINT = 'Give them to the cluster''s leader.';
    END IF;
    PERFORM quorum.require_input(jsonb_typeof(learned) = 'array',
        format('what was learned must be an array, not %s', coalesce(jsonb_typeof(learned), 'NULL')));
    PERFORM quorum.require_input(jsonb_array_length(learned) <= 10000,
        format('at most 10000 statements are merged at once, not %s', jsonb_array_length(learned)));
    PERFORM quorum.require_read_committed();
    -- First, so that what is changed meanwhile is either seen below or taken back afterwards.
    LOCK TABLE quorum.readonly_statement IN SHARE ROW EXCLUSIVE MODE;
    RETURN quorum.save_statements(coalesce((
        SELECT jsonb_agg(CASE WHEN quorum.unchanged_since(((e.value ->> 'lsn')::pg_lsn - '0/0')::bigint,
                                       ARRAY(SELECT d.oid::oid FROM jsonb_array_elements_text(e.value -> 'depends') AS d(oid)),
                                       (e.value ->> 'all')::boolean, (e.value ->> 'words')::bigint)
                              THEN e.value ELSE e.value || '{"verdict": 0, "clean": 0}' END)
        FROM jsonb_array_elements(learned) AS e), '[]'));
END
$$;
COMMENT ON FUNCTION quorum.merge_statements(jsonb) IS
    'Joins what another node has learned (quorum.take_learned) to what is known here. A verdict counts only if nothing that it rests on has changed since, as far as this server knows. A proven statement that was seen writing there gives a WARNING and an event, once. Returns how many statements. Errors: 25006 on a standby, 22023 not an array, 25001 isolation level above READ COMMITTED.';

CREATE FUNCTION quorum.forget_statements(hash text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    wanted bigint;
    gone bigint;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'cannot forget statements: this server is in recovery'
            USING ERRCODE = 'read_only_sql_transaction', HINT = 'Call it on the cluster''s leader; the others follow.';
    END IF;
    IF forget_statements.hash IS NOT NULL THEN
        PERFORM quorum.require_input(forget_statements.hash ~ '^[0-9a-f]{16}$',
            format('a hash is 16 hexadecimal digits in lower case, not "%s"', forget_statements.hash));
        wanted := ('x' || forget_statements.hash)::bit(64)::bigint;
    END IF;
    LOCK TABLE quorum.readonly_statement IN SHARE ROW EXCLUSIVE MODE;
    PERFORM quorum.forget_here(wanted);
    DELETE FROM quorum.readonly_statement AS r WHERE wanted IS NULL OR r.hash = wanted;
    GET DIAGNOSTICS gone = ROW_COUNT;
    UPDATE quorum.statements_counter AS c SET served = c.served + 1, forgotten = c.forgotten + 1;
    RETURN gone;
END
$$;
COMMENT ON FUNCTION quorum.forget_statements(text) IS
    'Forgets all learned statements of this database on all nodes, or those with one hash, also that they were seen writing. Returns how many there were. They are learned again as they run. Errors: 25006 on a standby, 22023 not a hash.';

CREATE VIEW quorum.readonly_statements AS
    SELECT lpad(to_hex(r.hash), 16, '0') AS hash, r.query_id, current_database()::text AS database, r.search_path::text AS search_path,
           CASE WHEN pg_has_role('quorum_admin', 'USAGE') OR pg_has_role('pg_read_all_stats', 'USAGE') THEN r.statement END AS statement,
           CASE WHEN r.barred OR r.verdict = 3 THEN NULL WHEN r.verdict = 1 THEN 'proven'
                WHEN r.clean_calls >= current_setting('pgquorum.statements_min_calls')::bigint THEN 'observed' END AS how,
           s.hash IS NOT NULL AS served, r.calls + coalesce(h.calls, 0) AS calls, greatest(r.last_use, h.last_use) AS last_use,
           r.withdrawn, r.reason
    FROM quorum.readonly_statement AS r
    LEFT JOIN unnest(quorum.served_statements()) AS s(hash) ON s.hash = lpad(to_hex(r.hash), 16, '0')
    LEFT JOIN quorum.statements_here() AS h ON h.hash = r.hash AND convert_from(h.search_path, 'UTF8') = r.search_path;
COMMENT ON VIEW quorum.readonly_statements IS
    'The learned statements of this database, also those that are not served: how is NULL then, and reason says why. statement is the normalised text, for superusers, quorum_admin and pg_read_all_stats. withdrawn: when it was, and has not been proven since.';
