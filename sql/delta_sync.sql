-- Synchronisations that are asked for in SQL. The sidecar beside the leader finds them within a second, does what
-- POST …/database/sync and …/database/sync/full do, and writes down what came of it. docs/delta-interface.md says what that is.

CREATE TABLE quorum.sync_request (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel text,
    records boolean NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    done_at timestamptz,
    results jsonb,
    code text,
    message text
);
COMMENT ON TABLE quorum.sync_request IS 'Synchronisations that were asked for by quorum.sync and quorum.sync_full; those of the last day.';
COMMENT ON COLUMN quorum.sync_request.channel IS 'NULL: all that this database follows.';
COMMENT ON COLUMN quorum.sync_request.records IS 'The results are to have the changed rows.';
COMMENT ON COLUMN quorum.sync_request.code IS 'Why it failed; NULL: it did not.';

CREATE FUNCTION quorum.begin_sync(channel text, everything boolean, wait interval, records boolean) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    nothing boolean;
    made bigint;
BEGIN
    PERFORM quorum.require_input((begin_sync.channel IS NULL) = begin_sync.everything, 'the channel must be named');
    PERFORM quorum.require_input(begin_sync.wait > interval '0' AND begin_sync.wait <= interval '1 hour',
        format('wait is %s: it takes more than nothing and at most an hour', coalesce(begin_sync.wait::text, 'NULL')));
    PERFORM quorum.require_input(begin_sync.records IS NOT NULL, 'records must be true or false');
    IF begin_sync.everything THEN
        nothing := NOT EXISTS (SELECT FROM quorum.subscription);
    ELSE
        nothing := quorum.delta_subscription(begin_sync.channel) IS NULL;
        IF nothing THEN
            -- One of this database has everything.
            PERFORM quorum.channel_id(begin_sync.channel);
        END IF;
    END IF;
    DELETE FROM quorum.sync_request AS r WHERE r.requested_at < clock_timestamp() - interval '1 day';
    INSERT INTO quorum.sync_request (channel, records, expires_at, done_at, results)
    VALUES (begin_sync.channel, begin_sync.records, clock_timestamp() + begin_sync.wait,
            CASE WHEN nothing THEN clock_timestamp() END, CASE WHEN nothing AND NOT begin_sync.everything THEN '[]'::jsonb END)
    RETURNING id INTO made;
    RETURN made;
END
$$;
COMMENT ON FUNCTION quorum.begin_sync(text, boolean, interval, boolean) IS
    'Asks the sidecar for a synchronisation of a channel, or of everything, once this is committed, and returns its number. Errors: 42704 no such channel, 22023.';

CREATE FUNCTION quorum.end_sync(request bigint, results jsonb DEFAULT NULL, code text DEFAULT NULL, message text DEFAULT NULL) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE quorum.sync_request AS r
    SET done_at = clock_timestamp(), results = end_sync.results, code = end_sync.code, message = end_sync.message
    WHERE r.id = end_sync.request AND r.done_at IS NULL
$$;
COMMENT ON FUNCTION quorum.end_sync(bigint, jsonb, text, text) IS 'For the sidecar: what came of a synchronisation; code: it failed.';

CREATE FUNCTION quorum.sync_outcome(request bigint, OUT waiting boolean, OUT results jsonb, OUT code text, OUT message text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r quorum.sync_request;
BEGIN
    SELECT x.* INTO r FROM quorum.sync_request AS x WHERE x.id = sync_outcome.request;
    -- Whoever works for it says so himself when it was too late; should he not come to that, nobody waits for ever.
    waiting := r.id IS NOT NULL AND r.done_at IS NULL AND clock_timestamp() < r.expires_at + interval '10 seconds';
    results := r.results;
    code := r.code;
    message := r.message;
    IF NOT waiting AND r.done_at IS NULL THEN
        code := 'timed_out';
        message := 'no sidecar has answered in time. What was begun goes on: quorum.subscription_state says how far it is; if the sidecar beside this server does not run, start it';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.sync_outcome(bigint) IS 'What came of a synchronisation, or that it is waited for.';

-- What commits may neither have a search_path of its own nor the rights of somebody else.
CREATE PROCEDURE quorum.await_sync(request bigint, INOUT results jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    outcome record;
BEGIN
    LOOP
        -- The sidecar sees what is committed, and nothing is held while it works.
        COMMIT;
        SELECT o.* INTO outcome FROM quorum.sync_outcome(await_sync.request) AS o;
        EXIT WHEN NOT outcome.waiting;
        PERFORM pg_catalog.pg_sleep(0.1);
    END LOOP;
    IF outcome.code IS NOT NULL THEN
        RAISE EXCEPTION '%', outcome.message USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = outcome.code;
    END IF;
    results := outcome.results;
END
$$;
COMMENT ON PROCEDURE quorum.await_sync(bigint, jsonb) IS
    'Commits, waits for a synchronisation that quorum.begin_sync has asked for, and gives its results. Error 55000: it failed; the detail is a word for why.';

CREATE PROCEDURE quorum.sync(channel text, wait interval DEFAULT '60 seconds', records boolean DEFAULT false, INOUT results jsonb DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
    request bigint := quorum.begin_sync(sync.channel, false, sync.wait, sync.records);
BEGIN
    CALL quorum.await_sync(request, results);
END
$$;
COMMENT ON PROCEDURE quorum.sync(text, interval, boolean, jsonb) IS
    'Applies what is missing here of a channel that is followed, up to its end now, and gives what became of each change; records: with the rows. To be called outside a transaction block. Errors: 42704 no such channel, 22023, 55000 it failed, the detail says why: database_version_differs (quorum.sync_full), subscription_stopped, director_failed, timed_out, busy.';

CREATE PROCEDURE quorum.sync_full(wait interval DEFAULT '10 minutes')
LANGUAGE plpgsql AS $$
DECLARE
    request bigint := quorum.begin_sync(NULL, true, sync_full.wait, false);
    nothing jsonb;
BEGIN
    CALL quorum.await_sync(request, nothing);
END
$$;
COMMENT ON PROCEDURE quorum.sync_full(interval) IS
    'Brings everything that this database follows to where its source is; what is of another version is copied anew. To be called outside a transaction block. Errors: 22023, 55000 it failed, the detail says why.';
