-- What the cluster looks like. Plain SQL with the caller's rights.

CREATE FUNCTION quorum.applied_index() RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT max(l.index) FROM quorum.cluster_log AS l), 0)
$$;
COMMENT ON FUNCTION quorum.applied_index() IS 'Index of the newest applied entry of the consensus log; 0: none.';

CREATE FUNCTION quorum.leader(
    OUT id bigint, OUT ip text, OUT db_port integer, OUT api_port integer,
    OUT epoch bigint, OUT timeline integer, OUT since timestamptz
) RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT l.node, n.ip, n.db_port, n.api_port, l.epoch, l.timeline, l.opened_at
    FROM quorum.leadership AS l LEFT JOIN quorum.node AS n ON n.id = l.node
    ORDER BY l.epoch DESC LIMIT 1
$$;
COMMENT ON FUNCTION quorum.leader() IS
    'The leader of the newest epoch that this server knows, in one row; no row: none was ever appointed. Its addresses are NULL if it is no member.';

CREATE FUNCTION quorum.map() RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
        'leader', (SELECT l.node FROM quorum.leadership AS l ORDER BY l.epoch DESC LIMIT 1),
        'nodes', (SELECT coalesce(jsonb_agg(jsonb_build_object('id', n.id, 'ip', n.ip, 'db-port', n.db_port,
                                                               'api-port', n.api_port, 'role', n.role)
                                            ORDER BY n.id), '[]')
                  FROM quorum.node AS n))
$$;
COMMENT ON FUNCTION quorum.map() IS 'The members and the leader''s id (null: none) as JSON, as GET /map answers them.';

CREATE FUNCTION quorum.info() RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    WITH newest AS (
        SELECT l.index, l.term, l.payload FROM quorum.cluster_log AS l ORDER BY l.index DESC LIMIT 100
    )
    SELECT jsonb_build_object(
        'term', coalesce(max(l.term), 0),
        'applied-index', coalesce(max(l.index), 0),
        'config', (SELECT coalesce(jsonb_object_agg(c.name, c.value), '{}') FROM quorum.config AS c),
        'logs', coalesce(jsonb_agg(jsonb_build_object('index', l.index, 'term', l.term, 'payload', l.payload)
                                   ORDER BY l.index), '[]'))
    FROM newest AS l
$$;
COMMENT ON FUNCTION quorum.info() IS
    'Term, applied index, settings and the newest 100 entries (oldest first) as JSON, as GET /info answers them.';
