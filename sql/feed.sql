-- What the feed keeps of a channel: its batches, epochs, what is confirmed, what was purged, and who reads it.
--
-- Functions in Rust read these tables by the order of their columns.

CREATE TABLE quorum.batch_segment (
    channel integer NOT NULL REFERENCES quorum.channel ON DELETE CASCADE,
    number integer NOT NULL,
    batches oid NOT NULL,
    first_tick bigint NOT NULL,
    lowest_segment integer,
    PRIMARY KEY (channel, number)
);
COMMENT ON TABLE quorum.batch_segment IS 'The tables in which a channel''s batches are listed, one for each segment, oldest first.';
COMMENT ON COLUMN quorum.batch_segment.batches IS 'The table quorum_log.batch_<channel>_<number>.';
COMMENT ON COLUMN quorum.batch_segment.first_tick IS 'The tick that came next when it was made.';
COMMENT ON COLUMN quorum.batch_segment.lowest_segment IS
    'The oldest segment whose log its batches need: transactions that were open for long are in an old one. NULL: not closed yet.';

CREATE TABLE quorum.channel_epoch (
    channel integer NOT NULL REFERENCES quorum.channel ON DELETE CASCADE,
    epoch bigint NOT NULL CHECK (epoch >= 0),
    first_tick bigint NOT NULL,
    source text NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (channel, epoch)
);
COMMENT ON TABLE quorum.channel_epoch IS 'The epochs in which a channel got changes. A position names one, so that what a failover has lost is not mistaken for what came instead.';
COMMENT ON COLUMN quorum.channel_epoch.first_tick IS 'The first tick that was given in it.';
COMMENT ON COLUMN quorum.channel_epoch.source IS 'lease:N is the cluster''s epoch N, timeline:N the timeline of a server outside a cluster.';

CREATE TABLE quorum.channel_confirmed (
    channel integer PRIMARY KEY REFERENCES quorum.channel ON DELETE CASCADE,
    tick bigint NOT NULL
) WITH (fillfactor = 10);
COMMENT ON TABLE quorum.channel_confirmed IS 'Up to which tick a channel may be shown on standbys: what is durable, and on as many nodes as the cluster promises.';

CREATE TABLE quorum.channel_start (
    channel integer PRIMARY KEY REFERENCES quorum.channel ON DELETE CASCADE,
    first_tick bigint NOT NULL
);
COMMENT ON TABLE quorum.channel_start IS 'The oldest tick of a channel that may be read, where that is not simply the oldest that there is: it was purged or created again.';

CREATE TABLE quorum.follower (
    channel integer NOT NULL REFERENCES quorum.channel ON DELETE CASCADE,
    name text NOT NULL CHECK (name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,62}$'),
    epoch bigint NOT NULL,
    tick bigint NOT NULL,
    ttl interval CHECK (ttl > interval '0'),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (channel, name)
) WITH (fillfactor = 50);
COMMENT ON TABLE quorum.follower IS 'Registered readers of channels. The log behind the slowest one is kept.';
COMMENT ON COLUMN quorum.follower.tick IS 'It has everything up to this tick.';
COMMENT ON COLUMN quorum.follower.ttl IS 'It is forgotten when it was not seen for so long; NULL: never.';
COMMENT ON COLUMN quorum.follower.seen_at IS 'When it registered or moved last.';

CREATE TABLE quorum.retired_channel (
    name text PRIMARY KEY,
    last_tick bigint NOT NULL,
    retired_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE quorum.retired_channel IS 'Where the ticks of dropped channels ended. A channel of the same name goes on above, so that an old position is not taken for a new one.';

-- Called by quorum.open_segment.
CREATE FUNCTION quorum.make_batch_table(channel integer, number integer) RETURNS oid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made text := format('quorum_log.batch_%s_%s', channel, number);
    before record;
    next_tick bigint := 1;
BEGIN
    EXECUTE format('CREATE TABLE %s (last_tick bigint PRIMARY KEY, first_tick bigint NOT NULL, epoch bigint NOT NULL, '
                   'confirmed bigint NOT NULL, lowest_segment integer NOT NULL, cut_at timestamptz NOT NULL, snapshot text, '
                   'scan_segments integer[], scan_blocks bigint[], entries bytea NOT NULL)', made);
    EXECUTE format('ALTER TABLE %s ALTER COLUMN entries SET STORAGE EXTERNAL', made);
    PERFORM quorum.own_table(made::regclass);
    SELECT b.batches, b.first_tick INTO before FROM quorum.batch_segment AS b
    WHERE b.channel = make_batch_table.channel ORDER BY b.number DESC LIMIT 1;
    IF FOUND THEN
        EXECUTE format('SELECT coalesce(max(b.last_tick) + 1, $1) FROM %s AS b', before.batches::regclass)
        INTO next_tick USING before.first_tick;
    ELSE
        -- One tick is left out: whoever had all of the old channel must not go on with the new one unawares.
        SELECT r.last_tick + 2 INTO next_tick FROM quorum.retired_channel AS r
        JOIN quorum.channel AS c ON c.name = r.name WHERE c.id = make_batch_table.channel;
        next_tick := coalesce(next_tick, 1);
        INSERT INTO quorum.channel_confirmed (channel, tick) VALUES (make_batch_table.channel, next_tick - 1);
        UPDATE quorum.channel AS c SET version_tick = next_tick - 1 WHERE c.id = make_batch_table.channel;
    END IF;
    INSERT INTO quorum.batch_segment (channel, number, batches, first_tick)
    VALUES (make_batch_table.channel, make_batch_table.number, made::regclass, next_tick);
    PERFORM quorum.start_cutter();
    RETURN made::regclass;
END
$$;
COMMENT ON FUNCTION quorum.make_batch_table(integer, integer) IS 'Internal. Makes the table of batches that belongs to a segment.';

-- When a channel is dropped, and not when retention drops a closed segment.
CREATE FUNCTION quorum.retire_channel() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part record;
    newest bigint;
BEGIN
    SELECT b.batches, b.first_tick INTO part FROM quorum.batch_segment AS b
    WHERE b.channel = OLD.channel ORDER BY b.number DESC LIMIT 1;
    IF FOUND THEN
        -- A batch that is being made now, and is shown when its commit returns, counts too. Whoever keeps an old snapshot
        -- (REPEATABLE READ) would not see it.
        EXECUTE format('LOCK TABLE %s IN SHARE MODE', part.batches::regclass);
        newest := coalesce(quorum.newest_tick(OLD.channel), part.first_tick - 1);
        INSERT INTO quorum.retired_channel AS r (name, last_tick)
        SELECT c.name, newest FROM quorum.channel AS c WHERE c.id = OLD.channel
        ON CONFLICT (name) DO UPDATE SET last_tick = greatest(r.last_tick, excluded.last_tick), retired_at = clock_timestamp();
    END IF;
    RETURN OLD;
END
$$;
COMMENT ON FUNCTION quorum.retire_channel() IS 'Internal. Remembers where the ticks of a dropped channel end.';
CREATE TRIGGER retire_channel BEFORE DELETE ON quorum.log_segment
    FOR EACH ROW WHEN (OLD.closed_at IS NULL) EXECUTE FUNCTION quorum.retire_channel();

-- quorum.event is numbered by the consensus log. What happens in a database gets numbers below it, falling.
CREATE FUNCTION quorum.record_feed_event(kind text, message text, details jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    newest bigint;
BEGIN
    INSERT INTO quorum.event AS n (index, term, kind, message, details)
    SELECT least(coalesce(min(e.index), 0), 0) - 1, 0, record_feed_event.kind, record_feed_event.message,
           record_feed_event.details
    FROM quorum.event AS e
    RETURNING n.index INTO newest;
    DELETE FROM quorum.event AS e WHERE e.index < 0 AND e.index >= newest + 10000;
END
$$;
COMMENT ON FUNCTION quorum.record_feed_event(text, text, jsonb) IS
    'Internal. Writes an event of this database, with a negative index; the newest 10000 are kept.';

CREATE FUNCTION quorum.drop_segments(channel integer, number integer, below integer, asks_followers boolean) RETURNS oid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone record;
    heaps oid[] := '{}';
    next_tick bigint;
BEGIN
    -- Who registers or moves a follower keeps a lock on the channel too. From here on nobody does, so what this
    -- transaction sees of followers from now on is all that there is. Where nobody is asked, a transaction that is left
    -- open must not keep the log from getting shorter.
    IF asks_followers THEN
        PERFORM FROM quorum.channel AS c WHERE c.id = drop_segments.channel FOR UPDATE NOWAIT;
    END IF;
    SELECT b.first_tick INTO next_tick FROM quorum.batch_segment AS b
    WHERE b.channel = drop_segments.channel AND b.number > drop_segments.number ORDER BY b.number LIMIT 1;
    IF asks_followers AND EXISTS (SELECT FROM quorum.follower AS f
                                  WHERE f.channel = drop_segments.channel AND f.tick < next_tick - 1) THEN
        RETURN NULL;
    END IF;
    FOR gone IN DELETE FROM quorum.batch_segment AS b
                WHERE b.channel = drop_segments.channel AND b.number = drop_segments.number RETURNING b.batches::regclass AS relation LOOP
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', gone.relation);
        EXECUTE format('ALTER EXTENSION pgquorum DROP TABLE %s', gone.relation);
        EXECUTE format('DROP TABLE %s', gone.relation);
    END LOOP;
    FOR gone IN DELETE FROM quorum.log_segment AS s
                WHERE s.channel = drop_segments.channel AND s.number < below AND s.closed_at IS NOT NULL
                RETURNING s.heap, s.heap::regclass AS relation LOOP
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', gone.relation);
        EXECUTE format('ALTER EXTENSION pgquorum DROP TABLE %s', gone.relation);
        EXECUTE format('DROP TABLE %s', gone.relation);
        heaps := heaps || gone.heap;
    END LOOP;
    IF NOT asks_followers THEN
        PERFORM quorum.record_feed_event('follower-overtaken',
            format('channel "%s" reached its cap or was purged: follower "%s" had not read the log up to tick %s, which is gone', c.name, f.name, next_tick - 1),
            jsonb_build_object('channel', c.name, 'follower', f.name, 'tick', f.tick, 'first-tick', next_tick))
        FROM quorum.follower AS f JOIN quorum.channel AS c ON c.id = f.channel
        WHERE f.channel = drop_segments.channel AND f.tick < next_tick - 1;
    END IF;
    RETURN heaps;
END
$$;
COMMENT ON FUNCTION quorum.drop_segments(integer, integer, integer, boolean) IS
    'Internal. Drops a table of batches and the closed segments below a number; returns the dropped heaps. NULL: with asks_followers, if a follower has not read it. 55P03 if one is being read, or, with asks_followers, somebody registers as a follower.';

CREATE FUNCTION quorum.expire_followers() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone record;
BEGIN
    -- One that is being moved just now is alive, and is not waited for.
    FOR gone IN WITH due AS (SELECT f.channel, f.name FROM quorum.follower AS f
                             WHERE f.seen_at + f.ttl < clock_timestamp() FOR UPDATE SKIP LOCKED)
                DELETE FROM quorum.follower AS f USING due, quorum.channel AS c
                WHERE f.channel = due.channel AND f.name = due.name AND c.id = f.channel
                RETURNING c.name AS channel, f.name AS follower, f.tick, f.ttl, f.seen_at LOOP
        PERFORM quorum.record_feed_event('follower-expired',
            format('follower "%s" of channel "%s" was not seen for %s and is forgotten: the log is not kept for it any more',
                   gone.follower, gone.channel, gone.ttl),
            jsonb_build_object('channel', gone.channel, 'follower', gone.follower, 'tick', gone.tick, 'seen-at', gone.seen_at));
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.expire_followers() IS 'Internal. Forgets followers that were not seen within their ttl.';

CREATE FUNCTION quorum.register_follower(channel text, name text, after text DEFAULT 'now', ttl interval DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    at record;
    of integer := quorum.channel_id(register_follower.channel);
BEGIN
    PERFORM quorum.require_input(register_follower.name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,62}$',
        format('%s cannot be the name of a follower: it takes 1 to 63 letters, digits, ".", "_", ":" and "-"',
               coalesce(quote_literal(register_follower.name), 'NULL')));
    PERFORM quorum.require_input(register_follower.ttl IS NULL OR register_follower.ttl > interval '0', 'ttl must be above 0');
    -- From here on no log is dropped that the follower may need.
    PERFORM FROM quorum.channel AS c WHERE c.id = of FOR KEY SHARE;
    SELECT p.epoch, p.tick INTO at FROM quorum.find_position_now(register_follower.channel, register_follower.after) AS p;
    INSERT INTO quorum.follower AS f (channel, name, epoch, tick, ttl)
    VALUES (of, register_follower.name, at.epoch, at.tick, register_follower.ttl)
    ON CONFLICT (channel, name) DO UPDATE
        SET epoch = excluded.epoch, tick = excluded.tick, ttl = excluded.ttl, seen_at = clock_timestamp();
    RETURN at.epoch || ':' || at.tick;
END
$$;
COMMENT ON FUNCTION quorum.register_follower(text, text, text, interval) IS
    'Registers a reader of a channel, or registers it anew, and returns its position: the log after it is kept, until it moves on, is dropped, was not seen for ttl (NULL: for ever), or the channel reaches cap_bytes. Errors: 42704 no such channel, 22023 bad arguments, PQ001 to PQ003 as quorum.read_log.';

CREATE FUNCTION quorum.move_follower(channel text, name text, "position" text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    at record;
    of integer := quorum.channel_id(move_follower.channel);
BEGIN
    -- From here on no log is dropped that the follower may need.
    PERFORM FROM quorum.channel AS c WHERE c.id = of FOR KEY SHARE;
    SELECT p.epoch, p.tick INTO at FROM quorum.find_position_now(move_follower.channel, move_follower.position) AS p;
    UPDATE quorum.follower AS f SET epoch = at.epoch, tick = at.tick, seen_at = clock_timestamp()
    WHERE f.channel = of AND f.name = move_follower.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'channel "%" has no follower "%"', move_follower.channel, move_follower.name
            USING ERRCODE = 'undefined_object',
                  HINT = 'It may have been forgotten after its ttl: SELECT * FROM quorum.event WHERE kind = ''follower-expired''. Register it again: quorum.register_follower.';
    END IF;
    RETURN at.epoch || ':' || at.tick;
END
$$;
COMMENT ON FUNCTION quorum.move_follower(text, text, text) IS
    'Says that a follower has everything up to a position, which may also lie further back, and that it is alive. Errors: 42704 no such channel or follower, PQ001 to PQ003 as quorum.read_log.';

CREATE FUNCTION quorum.drop_follower(channel text, name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    of integer := quorum.channel_id(drop_follower.channel);
BEGIN
    DELETE FROM quorum.follower AS f WHERE f.channel = of AND f.name = drop_follower.name;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION quorum.drop_follower(text, text) IS 'Forgets a follower. False: there is none of this name. Error 42704: no such channel.';

CREATE FUNCTION quorum.purge(channel text, keep bigint DEFAULT NULL, before text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    of integer := quorum.channel_id(purge.channel);
    ends record;
    first bigint;
BEGIN
    PERFORM quorum.require_input((purge.keep IS NULL) <> (purge.before IS NULL) AND coalesce(purge.keep, 0) >= 0,
        'give either keep (so many of the newest changes stay) or before (changes with lower ticks go)');
    PERFORM FROM quorum.channel AS c WHERE c.id = of FOR NO KEY UPDATE;
    SELECT e.first_tick, e.last_tick INTO ends FROM quorum.channel_ends(of) AS e;
    IF purge.keep IS NOT NULL THEN
        first := ends.last_tick + 1 - least(purge.keep, ends.last_tick);
    ELSE
        BEGIN
            SELECT p.tick INTO first FROM quorum.find_position(purge.channel, purge.before) AS p;
        EXCEPTION WHEN SQLSTATE 'PQ001' THEN
            first := 0; -- it has gone already
        END;
    END IF;
    IF first > ends.first_tick THEN
        INSERT INTO quorum.channel_start AS s (channel, first_tick) VALUES (of, first)
        ON CONFLICT (channel) DO UPDATE SET first_tick = greatest(s.first_tick, excluded.first_tick);
    END IF;
    RETURN (SELECT e.start_position FROM quorum.channel_ends(of) AS e);
END
$$;
COMMENT ON FUNCTION quorum.purge(text, bigint, text) IS
    'Makes the oldest changes of a channel unreadable, whoever has not read them: all but the newest keep ones, or those with ticks below that of the position before. Returns the position from which can be read. Disk space comes back as whole segments become free. Errors: 42704, 22023, PQ002, PQ003.';

CREATE FUNCTION quorum.prune(channel text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    of integer := quorum.channel_id(prune.channel);
    last bigint;
    version bigint;
BEGIN
    PERFORM FROM quorum.channel AS c WHERE c.id = of FOR NO KEY UPDATE;
    SELECT e.last_tick INTO last FROM quorum.channel_ends(of) AS e;
    PERFORM quorum.purge(prune.channel, keep => 0);
    UPDATE quorum.channel AS c SET database_version = c.database_version + 1, version_tick = last
    WHERE c.id = of RETURNING c.database_version INTO version;
    RETURN version;
END
$$;
COMMENT ON FUNCTION quorum.prune(text) IS
    'Purges all changes of a channel and raises its database_version, which it returns: whoever goes by versions copies the tables again. Error 42704: no such channel.';

CREATE FUNCTION quorum.unread_since(channel integer, tick bigint) RETURNS timestamptz
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part oid;
    result timestamptz;
BEGIN
    SELECT b.batches INTO part FROM quorum.batch_segment AS b WHERE b.channel = unread_since.channel
    ORDER BY b.first_tick <= unread_since.tick + 1 DESC,
             CASE WHEN b.first_tick <= unread_since.tick + 1 THEN -b.number ELSE b.number END LIMIT 1;
    IF FOUND THEN
        EXECUTE format('SELECT b.cut_at FROM %s AS b WHERE b.last_tick > $1 ORDER BY b.last_tick LIMIT 1', part::regclass)
        INTO result USING unread_since.tick;
    END IF;
    RETURN result;
EXCEPTION WHEN undefined_table OR syntax_error THEN
    RETURN NULL; -- it was dropped just now
END
$$;
COMMENT ON FUNCTION quorum.unread_since(integer, bigint) IS
    'Internal. When the first change after a tick became readable; NULL: there is none.';

CREATE VIEW quorum.channel_state AS
    SELECT c.name AS channel, e.epoch, e.first_tick, e.last_tick, e.start_position, e.end_position, c.database_version,
           e.last_tick - c.version_tick AS delta_version, e.last_tick - e.first_tick + 1 AS changes,
           (SELECT coalesce(sum(pg_catalog.pg_total_relation_size(s.heap)), 0) FROM quorum.log_segment AS s WHERE s.channel = c.id)::bigint
               + (SELECT coalesce(sum(pg_catalog.pg_total_relation_size(b.batches)), 0) FROM quorum.batch_segment AS b WHERE b.channel = c.id)::bigint AS bytes,
           (SELECT count(*) FROM quorum.log_segment AS s WHERE s.channel = c.id) AS segments, e.last_cut_at,
           (SELECT count(*) FROM quorum.follower AS f WHERE f.channel = c.id) AS followers,
           (SELECT f.name FROM quorum.follower AS f WHERE f.channel = c.id ORDER BY f.tick, f.seen_at LIMIT 1) AS slowest_follower,
           (SELECT min(f.tick) FROM quorum.follower AS f WHERE f.channel = c.id) AS slowest_tick, e.pending_transactions,
           c.retain_age, c.retain_rows, c.retain_bytes, c.cap_bytes, c.stopped_at
    FROM quorum.channel AS c, LATERAL quorum.channel_ends(c.id) AS e;
COMMENT ON VIEW quorum.channel_state IS
    'One row for each channel of this database: what can be read of it here, its versions and size, and who follows it. pending_transactions: those that are writing to this database''s log now or are prepared (primary only).';

CREATE VIEW quorum.followers AS
    SELECT c.channel, f.name, f.epoch || ':' || f.tick AS position, greatest(c.last_tick - f.tick, 0) AS lag_ticks,
           (c.bytes::numeric * greatest(c.last_tick - f.tick, 0) / greatest(c.changes, 1))::bigint AS lag_bytes,
           CASE WHEN f.tick >= c.last_tick THEN 0
                ELSE extract(epoch FROM clock_timestamp() - quorum.unread_since(f.channel, f.tick)) END::double precision AS lag_seconds,
           f.ttl, f.seen_at
    FROM quorum.follower AS f JOIN quorum.channel AS h ON h.id = f.channel
    JOIN quorum.channel_state AS c ON c.channel = h.name;
COMMENT ON VIEW quorum.followers IS
    'Registered readers of channels and how far behind each is, by what it has said (seen_at). lag_bytes: of the log, taken from the mean size of a change. lag_seconds: for how long the first change that it has not confirmed can be read.';
