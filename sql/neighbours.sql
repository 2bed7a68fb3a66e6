-- Clusters with which tables are exchanged, as the operations interface knows them (docs/operations-interface.md). The list is
-- in the admin database; what is done to tables is done in the database where they are.

CREATE TABLE quorum.neighbour_self (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    node_name text CHECK (node_name ~ '^[A-Za-z0-9_-]{1,50}$'),
    login text,
    secret text,
    ca text
);
COMMENT ON TABLE quorum.neighbour_self IS
    'Under which name other clusters know this one, and what it logs in with there. secret is for the sidecar alone.';

CREATE TABLE quorum.neighbour_route (
    host text NOT NULL,
    port integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
    server text NOT NULL CHECK (server IN ('hub', 'leaf')),
    place bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (host, port)
);
COMMENT ON TABLE quorum.neighbour_route IS 'Where sidecars of other clusters may be found.';

CREATE TABLE quorum.neighbour (
    name text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9_-]{1,50}$'),
    remote text[] NOT NULL,
    added_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE quorum.neighbour IS 'Clusters that were added, with the addresses of their sidecars.';

CREATE TABLE quorum.neighbour_table (
    neighbour text NOT NULL REFERENCES quorum.neighbour ON DELETE CASCADE,
    database text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    subscribe boolean NOT NULL,
    publish boolean NOT NULL,
    PRIMARY KEY (neighbour, database, schema_name, table_name)
);
COMMENT ON TABLE quorum.neighbour_table IS
    'Which tables are exchanged with a neighbour. subscribe: its changes come here; publish: the changes made here go there.';

CREATE FUNCTION quorum.neighbours() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
        'node_name', (SELECT s.node_name FROM quorum.neighbour_self AS s),
        'login', (SELECT s.login FROM quorum.neighbour_self AS s),
        'has_secret', EXISTS (SELECT FROM quorum.neighbour_self AS s WHERE s.secret IS NOT NULL),
        'ca', (SELECT s.ca FROM quorum.neighbour_self AS s),
        'hub', (SELECT coalesce(jsonb_agg(jsonb_build_object('host', r.host, 'port', r.port) ORDER BY r.place), '[]')
                FROM quorum.neighbour_route AS r WHERE r.server = 'hub'),
        'leaf', (SELECT coalesce(jsonb_agg(jsonb_build_object('host', r.host, 'port', r.port) ORDER BY r.place), '[]')
                 FROM quorum.neighbour_route AS r WHERE r.server = 'leaf'),
        'nodes', (SELECT coalesce(jsonb_agg(jsonb_build_object('name', n.name, 'remote', n.remote, 'tables', (
                      SELECT coalesce(jsonb_agg(jsonb_build_object('database', t.database, 'schema', t.schema_name, 'table', t.table_name,
                                                                   'subscribe', t.subscribe, 'publish', t.publish)
                                                ORDER BY t.database, t.schema_name, t.table_name), '[]')
                      FROM quorum.neighbour_table AS t WHERE t.neighbour = n.name)) ORDER BY n.name), '[]')
                  FROM quorum.neighbour AS n))
$$;
COMMENT ON FUNCTION quorum.neighbours() IS
    'What this cluster knows of others: its own name among them, how it logs in there (without the secret), routes, and which tables it exchanges with whom. In the admin database.';

CREATE FUNCTION quorum.neighbour_secret() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.secret FROM quorum.neighbour_self AS s
$$;
COMMENT ON FUNCTION quorum.neighbour_secret() IS 'Internal, for the sidecar alone. What this cluster proves with to others who it is.';

CREATE FUNCTION quorum.set_neighbour_self(
    node_name text DEFAULT NULL, login text DEFAULT NULL, secret text DEFAULT NULL, ca text DEFAULT NULL
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO quorum.neighbour_self AS s (node_name, login, secret, ca)
    VALUES (nullif(set_neighbour_self.node_name, ''), nullif(set_neighbour_self.login, ''), nullif(set_neighbour_self.secret, ''),
            nullif(set_neighbour_self.ca, ''))
    ON CONFLICT (one) DO UPDATE SET
        node_name = nullif(coalesce(set_neighbour_self.node_name, s.node_name), ''),
        login = nullif(coalesce(set_neighbour_self.login, s.login), ''),
        secret = nullif(coalesce(set_neighbour_self.secret, s.secret), ''),
        ca = nullif(coalesce(set_neighbour_self.ca, s.ca), '')
$$;
COMMENT ON FUNCTION quorum.set_neighbour_self(text, text, text, text) IS
    'Under which name other clusters know this one, and how it logs in there. NULL: stays as it is; an empty text: none.';

CREATE FUNCTION quorum.set_neighbour_routes(server text, routes jsonb) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    route jsonb;
    made jsonb := '[]';
    skipped jsonb := '[]';
BEGIN
    FOR route IN SELECT e FROM jsonb_array_elements(set_neighbour_routes.routes) AS e LOOP
        INSERT INTO quorum.neighbour_route (host, port, server)
        VALUES (route ->> 'host', (route ->> 'port')::integer, set_neighbour_routes.server) ON CONFLICT DO NOTHING;
        IF FOUND THEN
            made := made || jsonb_build_array(route);
        ELSE
            skipped := skipped || jsonb_build_array(route);
        END IF;
    END LOOP;
    RETURN jsonb_build_object('set', made, 'skipped', skipped);
END
$$;
COMMENT ON FUNCTION quorum.set_neighbour_routes(text, jsonb) IS
    'Adds routes, [{"host", "port"}], to the hub or the leaf server; those that one of them has are skipped. Returns which were set and which skipped.';

CREATE FUNCTION quorum.delete_neighbour_routes(routes jsonb) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    route jsonb;
    gone jsonb := '[]';
    skipped jsonb := '[]';
BEGIN
    FOR route IN SELECT e FROM jsonb_array_elements(delete_neighbour_routes.routes) AS e LOOP
        DELETE FROM quorum.neighbour_route AS r WHERE r.host = route ->> 'host' AND r.port = (route ->> 'port')::integer;
        IF FOUND THEN
            gone := gone || jsonb_build_array(route);
        ELSE
            skipped := skipped || jsonb_build_array(route);
        END IF;
    END LOOP;
    RETURN jsonb_build_object('deleted', gone, 'skipped', skipped);
END
$$;
COMMENT ON FUNCTION quorum.delete_neighbour_routes(jsonb) IS
    'Takes routes away, [{"host", "port"}]; those that there are not are skipped. Returns which were deleted and which skipped.';

CREATE FUNCTION quorum.put_neighbour(name text, remote text[], tables jsonb) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO quorum.neighbour AS n (name, remote) VALUES (put_neighbour.name, put_neighbour.remote)
    ON CONFLICT ON CONSTRAINT neighbour_pkey DO UPDATE SET remote = excluded.remote;
    INSERT INTO quorum.neighbour_table AS t (neighbour, database, schema_name, table_name, subscribe, publish)
    SELECT put_neighbour.name, e ->> 'database', e ->> 'schema', e ->> 'table', (e ->> 'subscribe')::boolean, (e ->> 'publish')::boolean
    FROM jsonb_array_elements(put_neighbour.tables) AS e
    ON CONFLICT ON CONSTRAINT neighbour_table_pkey DO UPDATE SET subscribe = excluded.subscribe, publish = excluded.publish
$$;
COMMENT ON FUNCTION quorum.put_neighbour(text, text[], jsonb) IS
    'Remembers a neighbour, and of the tables those that are given, [{"database", "schema", "table", "subscribe", "publish"}], each once; others stay as they are.';

CREATE FUNCTION quorum.drop_neighbour(name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM quorum.neighbour AS n WHERE n.name = drop_neighbour.name;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION quorum.drop_neighbour(text) IS 'Forgets a neighbour. False: there is none of that name.';

CREATE FUNCTION quorum.describe_table("schema" text, "table" text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object('columns', (
        SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum), '[]')
        FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    ), 'key', (
        SELECT coalesce(jsonb_agg(a.attname ORDER BY k.place), '[]')
        FROM pg_index AS i, unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_attribute AS a ON a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND k.place <= i.indnkeyatts
    ), 'types', quorum.described_types(c.oid))
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = describe_table."schema" AND c.relname = describe_table."table" AND c.relkind IN ('r', 'p')
$$;
COMMENT ON FUNCTION quorum.describe_table(text, text) IS
    'What is needed to make such a table elsewhere: its columns with their types, without those that are computed, its primary key, and the enum, domain and composite types of users that it needs. NULL: there is no such table.';

CREATE FUNCTION quorum.create_described_table("schema" text, "table" text, description jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner name := (SELECT pg_get_userbyid(d.datdba) FROM pg_database AS d WHERE d.datname = current_database());
    wrong text;
    columns text;
    key text;
BEGIN
    PERFORM quorum.require_input(create_described_table."schema" !~ '^pg_' AND create_described_table."schema" NOT IN ('quorum', 'quorum_log', 'information_schema'),
        format('no table can be made in schema %I', create_described_table."schema"));
    PERFORM quorum.require_input(jsonb_array_length(create_described_table.description -> 'columns') > 0
            AND jsonb_array_length(create_described_table.description -> 'key') > 0,
        format('table %s.%s has no primary key there, by which its rows could be told apart', "schema", "table"));
    PERFORM quorum.create_described_types(coalesce(create_described_table.description -> 'types', '[]'), owner);
    SELECT e ->> 'type' INTO wrong FROM jsonb_array_elements(create_described_table.description -> 'columns') AS e
    WHERE NOT quorum.is_type_here(e ->> 'type') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'table %.% cannot be made here: there is no type %', "schema", "table", wrong
            USING ERRCODE = 'undefined_object', HINT = 'Create the type, or the table itself, and try again.';
    END IF;
    SELECT string_agg(format('%I %s', e ->> 'name', e ->> 'type'), ', ' ORDER BY n) INTO columns
    FROM jsonb_array_elements(create_described_table.description -> 'columns') WITH ORDINALITY AS c (e, n);
    SELECT string_agg(quote_ident(e), ', ' ORDER BY n) INTO key
    FROM jsonb_array_elements_text(create_described_table.description -> 'key') WITH ORDINALITY AS c (e, n);
    IF to_regnamespace(quote_ident("schema")) IS NULL THEN
        EXECUTE format('CREATE SCHEMA %I AUTHORIZATION %I', "schema", owner);
    END IF;
    EXECUTE format('CREATE TABLE %I.%I (%s, PRIMARY KEY (%s))', "schema", "table", columns, key);
    EXECUTE format('ALTER TABLE %I.%I OWNER TO %I', "schema", "table", owner);
END
$$;
COMMENT ON FUNCTION quorum.create_described_table(text, text, jsonb) IS
    'Internal. Makes a table as quorum.describe_table describes one, with the types that it needs and are not here; they belong to the owner of the database. Errors: 42704 there is no such type here, 22023 it has no primary key.';

CREATE FUNCTION quorum.offer_table(
    channel text, "schema" text, "table" text, description jsonb DEFAULT NULL, versions boolean DEFAULT false
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation regclass;
    present text;
BEGIN
    -- One at a time: two would make the same.
    PERFORM pg_advisory_xact_lock(hashtext('quorum.offer_table'));
    IF quorum.describe_table("schema", "table") IS NULL THEN
        IF offer_table.description IS NULL THEN
            RAISE EXCEPTION 'there is no table %.%', "schema", "table" USING ERRCODE = 'undefined_table';
        END IF;
        PERFORM quorum.create_described_table("schema", "table", offer_table.description);
    END IF;
    IF NOT EXISTS (SELECT FROM quorum.channel AS c WHERE c.name = offer_table.channel) THEN
        PERFORM quorum.create_channel(offer_table.channel);
    END IF;
    relation := format('%I.%I', "schema", "table")::regclass;
    SELECT c.name INTO present FROM quorum.tracked_table AS t JOIN quorum.channel AS c ON c.id = t.channel WHERE t.relid = relation;
    IF present IS NULL THEN
        PERFORM quorum.track(relation, offer_table.channel);
    ELSIF present <> offer_table.channel THEN
        RAISE EXCEPTION 'table %.% is in channel % already, and clusters exchange those of channel % only', "schema", "table",
                quote_ident(present), quote_ident(offer_table.channel)
            USING ERRCODE = 'duplicate_object',
                  HINT = 'A table is in one channel at most. Take it out of the other one (pgquorum channel untrack), or follow that channel with a subscription of its own (pgquorum subscribe).';
    END IF;
    IF offer_table.versions THEN
        PERFORM quorum.keep_versions(relation);
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.offer_table(text, text, text, jsonb, boolean) IS
    'Puts a table into a channel, which is made if there is none of that name; also the table, if it is described. versions: it is kept who writes each row last. Errors: 42P01 there is no such table, 42710 it is in another channel, else as quorum.track and quorum.keep_versions.';

CREATE FUNCTION quorum.follow_neighbour(
    name text, remote text[], channel text, database text, tables text[], start text, policy text,
    login text DEFAULT NULL, secret text DEFAULT NULL, ca text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    present boolean := EXISTS (SELECT FROM quorum.subscription AS s WHERE s.name = follow_neighbour.name);
BEGIN
    IF coalesce(cardinality(follow_neighbour.tables), 0) = 0 THEN
        IF present THEN
            PERFORM quorum.unsubscribe(follow_neighbour.name);
        END IF;
    ELSIF present THEN
        PERFORM quorum.alter_subscription(follow_neighbour.name, remote => follow_neighbour.remote, tables => follow_neighbour.tables,
            policy => follow_neighbour.policy, login => coalesce(follow_neighbour.login, ''),
            secret => coalesce(follow_neighbour.secret, ''), ca => coalesce(follow_neighbour.ca, ''));
    ELSE
        PERFORM quorum.subscribe(follow_neighbour.name, follow_neighbour.remote, follow_neighbour.channel,
            database => follow_neighbour.database, tables => follow_neighbour.tables, copy => 'none', start => follow_neighbour.start,
            policy => follow_neighbour.policy, login => follow_neighbour.login, secret => follow_neighbour.secret,
            ca => follow_neighbour.ca);
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.follow_neighbour(text, text[], text, text, text[], text, text, text, text, text) IS
    'Follows exactly these tables of a neighbour with the subscription of this name, which is made, changed, or, without tables, ended. start: where a new one begins. Errors: as quorum.subscribe.';

CREATE FUNCTION quorum.replay_table(subscription_name text, "schema" text, "table" text, "position" text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    of integer := quorum.subscription_id(replay_table.subscription_name);
    at quorum.subscription_position;
    here bigint;
    fresh text;
    new_epoch bigint;
    new_tick bigint;
BEGIN
    PERFORM quorum.require_input(replay_table."position" ~ '^[0-9]{1,18}:[0-9]{1,18}$', 'position is EPOCH:TICK');
    new_epoch := split_part(replay_table."position", ':', 1)::bigint;
    new_tick := split_part(replay_table."position", ':', 2)::bigint;
    -- Not while changes are being applied.
    SELECT p.* INTO STRICT at FROM quorum.subscription_position AS p WHERE p.subscription = of FOR UPDATE;
    SELECT coalesce(at.tick, split_part(s.start, ':', 2)::bigint) INTO here FROM quorum.subscription AS s
    WHERE s.id = of AND (at.tick IS NOT NULL OR s.start ~ '^[0-9]+:[0-9]+$');
    fresh := CASE WHEN new_tick < here THEN 'catch-up' ELSE 'following' END;
    INSERT INTO quorum.subscription_table AS x (subscription, schema_name, table_name, state, after_epoch, after_tick)
    VALUES (of, replay_table."schema", replay_table."table", fresh, new_epoch, new_tick)
    ON CONFLICT ON CONSTRAINT subscription_table_pkey DO UPDATE
        SET state = excluded.state, after_epoch = excluded.after_epoch, after_tick = excluded.after_tick, code = NULL,
            message = NULL, since = clock_timestamp();
    RETURN fresh;
END
$$;
COMMENT ON FUNCTION quorum.replay_table(text, text, text, text) IS
    'Applies the changes of one table of a subscription again from a position of the source on, and returns the state of the table: catch-up, until it is where the others are, or following. Errors: 42704 no such subscription, 22023 no position.';
