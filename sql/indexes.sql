-- The indexes of the tables that are tracked in channel _logger, which are the collections of the replication interface
-- (docs/replication-interface.md): its log says which come and go, and its inventory which there are. Other channels know
-- nothing of indexes.
--
-- To those who read it, an index is what it is over, how, and whether it is unique. Neither its name nor its OID matters:
-- REINDEX CONCURRENTLY changes the one without a word to anybody, and of several that are alike in all that is told of
-- them a reader could keep only one.

-- The ids below 1000 are for the indexes that collections of ArangoDB have by themselves.
CREATE TABLE quorum.tracked_index (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY (START WITH 1000),
    relid oid NOT NULL,
    described jsonb NOT NULL,
    UNIQUE (relid, described)
);
COMMENT ON TABLE quorum.tracked_index IS 'The indexes that the log of channel _logger has told of, and their ids.';
COMMENT ON COLUMN quorum.tracked_index.described IS
    'method (btree, hash), unique, fields: the columns in the order of the index. Those that are alike in this are one.';

-- Without the key's own index, those over expressions, those that do not hold every row, and those over columns that are
-- not captured. Of a partitioned table its own, which all partitions have: it is valid when they do.
CREATE VIEW quorum.present_index AS
    SELECT one.relid, one.described, min(one.indexrelid) AS since
    FROM (
        SELECT i.indrelid AS relid, i.indexrelid,
               jsonb_build_object('method', m.amname, 'unique', i.indisunique, 'fields', jsonb_agg(a.attname ORDER BY k.place)) AS described
        FROM quorum.tracked_table AS t JOIN quorum.channel AS c ON c.id = t.channel AND c.name = '_logger'
        JOIN quorum.schema_version AS v ON v.id = t.schema_version
        JOIN pg_catalog.pg_index AS i ON i.indrelid = t.relid
        JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid JOIN pg_catalog.pg_am AS m ON m.oid = x.relam
        CROSS JOIN LATERAL unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indisvalid AND NOT i.indisprimary AND i.indexprs IS NULL AND i.indpred IS NULL AND m.amname IN ('btree', 'hash')
        GROUP BY i.indrelid, i.indexrelid, m.amname, i.indisunique
        HAVING bool_and(v.columns @> jsonb_build_array(jsonb_build_object('attnum', a.attnum)))
    ) AS one
    GROUP BY one.relid, one.described;
COMMENT ON VIEW quorum.present_index IS 'Internal. The indexes that there are of the tables of channel _logger. since: the oldest of those that are alike.';

CREATE FUNCTION quorum.note_indexes(root oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t quorum.tracked_table;
    news record;
BEGIN
    SELECT x.* INTO t FROM quorum.tracked_table AS x JOIN quorum.channel AS c ON c.id = x.channel
    WHERE x.relid = root AND c.name = '_logger';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    FOR news IN SELECT k.id, k.described FROM quorum.tracked_index AS k
                WHERE k.relid = root
                  AND NOT EXISTS (SELECT FROM quorum.present_index AS p WHERE p.relid = root AND p.described = k.described)
                ORDER BY k.id LOOP
        DELETE FROM quorum.tracked_index AS k WHERE k.id = news.id;
        -- Else somebody else was quicker, and has said so.
        IF FOUND THEN
            PERFORM quorum.record_index(t.channel, t.schema_version, 'UNINDEX', quorum.index_text(news.id, news.described));
        END IF;
    END LOOP;
    FOR news IN INSERT INTO quorum.tracked_index AS k (relid, described)
                SELECT p.relid, p.described FROM quorum.present_index AS p
                WHERE p.relid = root
                  AND NOT EXISTS (SELECT FROM quorum.tracked_index AS o WHERE o.relid = root AND o.described = p.described)
                ORDER BY p.since
                -- Two sessions may make two at a time that are alike.
                ON CONFLICT DO NOTHING
                RETURNING k.id, k.described LOOP
        PERFORM quorum.record_index(t.channel, t.schema_version, 'INDEX', quorum.index_text(news.id, news.described));
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.note_indexes(oid) IS
    'Internal. Puts an entry into the log of channel _logger for each index that a table of it has lost or got since this was last called. Does nothing for other tables.';

-- In the encoding of the database, as the text of a statement is.
CREATE FUNCTION quorum.index_text(id bigint, described jsonb) RETURNS bytea
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT convert_to((jsonb_build_object('id', index_text.id) || index_text.described)::text, getdatabaseencoding())
$$;
COMMENT ON FUNCTION quorum.index_text(bigint, jsonb) IS 'Internal. The text of an entry about an index.';

CREATE FUNCTION quorum.note_lost_indexes() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lost record;
BEGIN
    FOR lost IN SELECT DISTINCT k.relid FROM quorum.tracked_index AS k
                WHERE NOT EXISTS (SELECT FROM quorum.present_index AS p WHERE p.relid = k.relid AND p.described = k.described) LOOP
        PERFORM quorum.note_indexes(lost.relid);
    END LOOP;
END
$$;
COMMENT ON FUNCTION quorum.note_lost_indexes() IS
    'Internal. Calls quorum.note_indexes for each table that has lost one: of which table an index was that was dropped, PostgreSQL does not say.';
