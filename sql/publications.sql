-- The other direction: channels of this database that other clusters are to follow, set up from here. What is wanted stands here;
-- the leader's sidecar sees to it that it is so there. Who may do what is in grants.sql.

CREATE TABLE quorum.publication (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'),
    remote text[] NOT NULL,
    remote_database text,
    channel text NOT NULL,
    tables text[],
    filter jsonb,
    policy text NOT NULL,
    ddl text NOT NULL,
    on_purged text NOT NULL,
    forward boolean NOT NULL,
    copy text NOT NULL,
    start text,
    jobs integer NOT NULL,
    login text,
    secret text,
    ca text,
    own_addresses text[],
    own_login text,
    own_secret text,
    own_ca text,
    removing boolean NOT NULL DEFAULT false,
    revision integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE quorum.publication IS
    'Subscriptions that other clusters are to have of channels of this database. secret and own_secret are for the sidecar alone; everything else is in quorum.publications.';
COMMENT ON COLUMN quorum.publication.name IS 'The name of the subscription there.';
COMMENT ON COLUMN quorum.publication.remote IS 'Addresses of the other cluster''s nodes, as http(s)://host:port.';
COMMENT ON COLUMN quorum.publication.remote_database IS 'The database there that follows; NULL: that cluster''s admin database.';
COMMENT ON COLUMN quorum.publication.login IS 'Name, secret and ca: how the other cluster is asked. own_…: what it is given to ask this one.';
COMMENT ON COLUMN quorum.publication.own_addresses IS 'Where the other cluster reaches this one; NULL: the nodes as the cluster knows them.';
COMMENT ON COLUMN quorum.publication.removing IS 'It is to be ended there; then the row goes.';
COMMENT ON COLUMN quorum.publication.revision IS 'Grows with each change that the other cluster must be told.';

CREATE TABLE quorum.publication_status (
    publication integer PRIMARY KEY REFERENCES quorum.publication,
    state text NOT NULL CHECK (state IN ('wanted', 'established', 'waiting', 'failed', 'removing')),
    code text,
    detail text,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_revision integer,
    established_at timestamptz,
    there jsonb,
    seen_at timestamptz
) WITH (fillfactor = 20);
COMMENT ON TABLE quorum.publication_status IS 'What the sidecar that works for a publication has said last.';
COMMENT ON COLUMN quorum.publication_status.done_revision IS 'What the other cluster was told; NULL: nothing yet.';
COMMENT ON COLUMN quorum.publication_status.there IS 'State, code and detail of the subscription, as the other cluster showed it.';

CREATE FUNCTION quorum.check_addresses(addresses text[]) RETURNS void
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    -- Not shown: somebody may have put a password into it.
    SELECT quorum.require_input(cardinality(check_addresses.addresses) > 0 AND bool_and((a ~ '^https?://[^/?#@[:space:]]+:[0-9]{1,5}$') IS TRUE),
        'own_addresses are where the other cluster reaches this one, each of the form http://host:port or https://host:port')
    FROM unnest(check_addresses.addresses) AS a
$$;
COMMENT ON FUNCTION quorum.check_addresses(text[]) IS 'Internal. Raises 22023 unless all are addresses of sidecars.';

CREATE FUNCTION quorum.publication_id(name text) RETURNS integer
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result integer;
BEGIN
    SELECT p.id INTO result FROM quorum.publication AS p WHERE p.name = publication_id.name;
    IF result IS NULL THEN
        RAISE EXCEPTION 'there is no publication %', coalesce(quote_ident(publication_id.name), 'NULL')
            USING ERRCODE = 'undefined_object', HINT = 'SELECT * FROM quorum.publications lists them.';
    END IF;
    RETURN result;
END
$$;
COMMENT ON FUNCTION quorum.publication_id(text) IS 'The id of a publication. Error 42704: there is none of that name.';

CREATE FUNCTION quorum.publish(
    name text, remote text[], channel text, database text DEFAULT NULL, tables text[] DEFAULT NULL, filter jsonb DEFAULT NULL,
    copy text DEFAULT 'error', start text DEFAULT NULL, policy text DEFAULT 'error', ddl text DEFAULT 'ignore',
    on_purged text DEFAULT 'stop', forward boolean DEFAULT false, jobs integer DEFAULT 2, login text DEFAULT NULL,
    secret text DEFAULT NULL, ca text DEFAULT NULL, own_addresses text[] DEFAULT NULL, own_login text DEFAULT NULL,
    own_secret text DEFAULT NULL, own_ca text DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- What it will be there.
    s quorum.subscription;
    made integer;
BEGIN
    s.name := publish.name;
    s.remote := publish.remote;
    s.channel := publish.channel;
    s.tables := nullif(publish.tables, '{}');
    s.filter := nullif(publish.filter, '{}');
    s.policy := publish.policy;
    s.ddl := publish.ddl;
    s.on_purged := publish.on_purged;
    s.forward := publish.forward;
    s.copy := publish.copy;
    s.start := publish.start;
    s.jobs := publish.jobs;
    PERFORM quorum.check_subscription(s);
    PERFORM quorum.check_filters(s);
    PERFORM quorum.channel_id(s.channel);
    IF publish.own_addresses IS NOT NULL THEN
        PERFORM quorum.check_addresses(publish.own_addresses);
    END IF;
    INSERT INTO quorum.publication (name, remote, remote_database, channel, tables, filter, policy, ddl, on_purged, forward, copy, start,
                                    jobs, login, secret, ca, own_addresses, own_login, own_secret, own_ca)
    VALUES (s.name, s.remote, publish.database, s.channel, s.tables, s.filter, s.policy, s.ddl, s.on_purged, s.forward, s.copy, s.start,
            s.jobs, nullif(publish.login, ''), nullif(publish.secret, ''), nullif(publish.ca, ''), publish.own_addresses,
            nullif(publish.own_login, ''), nullif(publish.own_secret, ''), nullif(publish.own_ca, ''))
    ON CONFLICT DO NOTHING RETURNING id INTO made;
    IF made IS NULL THEN
        RAISE EXCEPTION 'publication % exists', quote_ident(s.name)
            USING ERRCODE = 'duplicate_object', HINT = 'quorum.alter_publication changes its addresses and logins; quorum.unpublish ends it.';
    END IF;
    INSERT INTO quorum.publication_status (publication, state) VALUES (made, 'wanted');
    RETURN made;
END
$$;
COMMENT ON FUNCTION quorum.publish(text, text[], text, text, text[], jsonb, text, text, text, text, text, boolean, integer, text, text, text, text[], text, text, text) IS
    'Has another cluster follow a channel of this database, by a subscription of this name there: remote, login, secret, ca are for asking that cluster, where the login must be an admin''s; own_… are what it gets to ask this one. The rest is as in quorum.subscribe, database being the one there. Returns the publication''s id. Errors: 42710 it exists, 42704 no such channel, 22023 bad arguments.';

CREATE FUNCTION quorum.alter_publication(
    name text, remote text[] DEFAULT NULL, login text DEFAULT NULL, secret text DEFAULT NULL, ca text DEFAULT NULL,
    own_addresses text[] DEFAULT NULL, own_login text DEFAULT NULL, own_secret text DEFAULT NULL, own_ca text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target integer := quorum.publication_id(alter_publication.name);
BEGIN
    IF alter_publication.remote IS NOT NULL THEN
        PERFORM quorum.check_addresses(alter_publication.remote);
    END IF;
    IF alter_publication.own_addresses <> '{}' THEN
        PERFORM quorum.check_addresses(alter_publication.own_addresses);
    END IF;
    UPDATE quorum.publication AS p
    SET remote = coalesce(alter_publication.remote, p.remote), login = nullif(coalesce(alter_publication.login, p.login), ''),
        secret = nullif(coalesce(alter_publication.secret, p.secret), ''), ca = nullif(coalesce(alter_publication.ca, p.ca), ''),
        own_addresses = nullif(coalesce(alter_publication.own_addresses, p.own_addresses), '{}'),
        own_login = nullif(coalesce(alter_publication.own_login, p.own_login), ''),
        own_secret = nullif(coalesce(alter_publication.own_secret, p.own_secret), ''),
        own_ca = nullif(coalesce(alter_publication.own_ca, p.own_ca), ''), revision = p.revision + 1
    WHERE p.id = target;
END
$$;
COMMENT ON FUNCTION quorum.alter_publication(text, text[], text, text, text, text[], text, text, text) IS
    'Changes how the other cluster is reached, and what it is given to reach this one; what is NULL stays. Empty own_addresses: the nodes as the cluster knows them; an empty login, secret or ca: none. If its subscription was ended there, it is made again. Errors: 42704 there is none, 22023 bad arguments.';

CREATE FUNCTION quorum.unpublish(name text, force boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target integer := quorum.publication_id(unpublish.name);
BEGIN
    IF coalesce(unpublish.force, false) THEN
        DELETE FROM quorum.publication_status AS x WHERE x.publication = target;
        DELETE FROM quorum.publication AS p WHERE p.id = target;
        RETURN 'forgotten';
    END IF;
    UPDATE quorum.publication AS p SET removing = true WHERE p.id = target;
    UPDATE quorum.publication_status AS x SET state = 'removing', code = NULL, detail = NULL, since = clock_timestamp()
    WHERE x.publication = target;
    RETURN 'removing';
END
$$;
COMMENT ON FUNCTION quorum.unpublish(text, boolean) IS
    'Has the subscription ended at the other cluster, and then forgets it; as long as that cluster does not answer it is asked again. force: forgets it at once, and what is there stays. Error 42704: there is none of that name.';

CREATE FUNCTION quorum.report_publication(
    publication integer, state text, code text DEFAULT NULL, detail text DEFAULT NULL, revision integer DEFAULT NULL, there jsonb DEFAULT NULL
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE quorum.publication_status AS x
    SET since = CASE WHEN (x.state, x.code) IS DISTINCT FROM (report_publication.state, report_publication.code)
                     THEN clock_timestamp() ELSE x.since END,
        state = report_publication.state, code = report_publication.code, detail = report_publication.detail,
        done_revision = coalesce(report_publication.revision, x.done_revision),
        established_at = CASE WHEN report_publication.state = 'established' THEN coalesce(x.established_at, clock_timestamp())
                              ELSE x.established_at END,
        there = coalesce(report_publication.there, x.there),
        seen_at = CASE WHEN report_publication.there IS NULL THEN x.seen_at ELSE clock_timestamp() END
    -- Somebody may have asked for its end meanwhile.
    FROM quorum.publication AS p
    WHERE x.publication = report_publication.publication AND p.id = x.publication
      AND p.removing = (report_publication.state = 'removing')
$$;
COMMENT ON FUNCTION quorum.report_publication(integer, text, text, text, integer, jsonb) IS
    'How a publication is (wanted, established, waiting, failed, removing), what the other cluster was told, and how its subscription is.';

CREATE FUNCTION quorum.publication_ended(publication integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM quorum.publication AS p WHERE p.id = publication_ended.publication AND p.removing FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM quorum.publication_status AS x WHERE x.publication = publication_ended.publication;
    DELETE FROM quorum.publication AS p WHERE p.id = publication_ended.publication;
    RETURN true;
END
$$;
COMMENT ON FUNCTION quorum.publication_ended(integer) IS 'The other cluster has no such subscription any more: forgets it, if that was wanted.';

CREATE VIEW quorum.publications AS
    SELECT p.name, CASE WHEN p.removing THEN 'removing' ELSE x.state END AS state, x.code, x.detail, x.since, x.established_at,
           x.there ->> 'state' AS there_state, x.there ->> 'code' AS there_code, x.there ->> 'detail' AS there_detail, x.seen_at,
           p.remote, p.remote_database AS database, p.channel, p.tables, p.filter, p.policy, p.ddl, p.on_purged, p.forward, p.copy, p.start,
           p.jobs, p.login, p.secret IS NOT NULL AS has_secret, p.ca IS NOT NULL AS has_ca, p.own_addresses, p.own_login,
           p.own_secret IS NOT NULL AS has_own_secret, p.own_ca IS NOT NULL AS has_own_ca, p.created_at
    FROM quorum.publication AS p JOIN quorum.publication_status AS x ON x.publication = p.id;
COMMENT ON VIEW quorum.publications IS
    'Subscriptions that other clusters are to have of channels of this database: whether they are there, how they are, and their settings.';

CREATE FUNCTION quorum.publications_state(name text DEFAULT NULL) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_agg(to_jsonb(p) || jsonb_build_object('database', current_database(), 'remote_database', p.database)
                              ORDER BY p.name), '[]')
    FROM quorum.publications AS p WHERE publications_state.name IS NULL OR p.name = publications_state.name
$$;
COMMENT ON FUNCTION quorum.publications_state(text) IS 'quorum.publications as a JSON array: all, or the one of this name.';
