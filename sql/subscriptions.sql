-- Following another cluster: what is followed, how far, and what could not be applied.
-- docs/apply.md says what all of it means.

CREATE TABLE quorum.identity (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    origin_name text NOT NULL CHECK (origin_name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,62}$')
);
COMMENT ON TABLE quorum.identity IS
    'The name under which the changes of this database are known elsewhere, if one was given (quorum.set_origin_name).';

CREATE TABLE quorum.subscription (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'),
    enabled boolean NOT NULL DEFAULT true,
    woken boolean NOT NULL DEFAULT false,
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
    remote_origin text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE quorum.subscription IS
    'Channels of other clusters that this database follows. secret is for the sidecar alone; everything else is in quorum.subscription_state.';
COMMENT ON COLUMN quorum.subscription.woken IS
    'It rests, and was enabled for as long as somebody brings it to its source''s end. The sidecar lets it rest again, whatever becomes of him.';
COMMENT ON COLUMN quorum.subscription.remote IS 'Addresses of the source''s nodes, as http(s)://host:port.';
COMMENT ON COLUMN quorum.subscription.tables IS 'Which tables of the channel, as schema.table; NULL: all.';
COMMENT ON COLUMN quorum.subscription.filter IS 'Which rows of tables: {"schema.table": condition}; NULL, and a table that is not in it: all.';
COMMENT ON COLUMN quorum.subscription.remote_origin IS 'The origin name that the source gave when it was first asked.';

CREATE TABLE quorum.subscription_status (
    subscription integer PRIMARY KEY REFERENCES quorum.subscription,
    state text NOT NULL CHECK (state IN ('starting', 'copying', 'following', 'waiting', 'stopped', 'disabled')),
    code text,
    detail text,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    end_epoch bigint,
    end_tick bigint,
    end_seen_at timestamptz,
    change_bytes bigint
) WITH (fillfactor = 20);
COMMENT ON TABLE quorum.subscription_status IS 'What the sidecar that works for a subscription has said last.';
COMMENT ON COLUMN quorum.subscription_status.change_bytes IS 'How many bytes of log a change takes at the source, on average; NULL: it did not say.';

CREATE TABLE quorum.subscription_position (
    subscription integer PRIMARY KEY REFERENCES quorum.subscription,
    epoch bigint,
    tick bigint,
    committed_at timestamptz,
    applied_at timestamptz,
    CHECK ((epoch IS NULL) = (tick IS NULL))
) WITH (fillfactor = 10);
COMMENT ON TABLE quorum.subscription_position IS
    'Up to where the changes of a subscription are applied. Written by the transaction that applies them, so that nothing is applied twice or left out. NULL: nothing was copied yet.';
COMMENT ON COLUMN quorum.subscription_position.committed_at IS 'When the last applied transaction was committed at the source.';

CREATE TABLE quorum.subscription_table (
    subscription integer NOT NULL REFERENCES quorum.subscription,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    state text NOT NULL CHECK (state IN ('copy', 'catch-up', 'following', 'stopped')),
    after_epoch bigint,
    after_tick bigint,
    code text,
    message text,
    policy text,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (subscription, schema_name, table_name),
    CHECK ((after_epoch IS NULL) = (after_tick IS NULL))
);
COMMENT ON TABLE quorum.subscription_table IS 'The tables of subscriptions; the table here has the same schema and name.';
COMMENT ON COLUMN quorum.subscription_table.state IS
    'copy: its rows are to be copied. catch-up: it is behind the subscription''s position and is brought there on its own. following. stopped: code and message say why.';
COMMENT ON COLUMN quorum.subscription_table.after_tick IS
    'Only changes above it count; of a stopped table the change before the one at which it stopped.';
COMMENT ON COLUMN quorum.subscription_table.policy IS 'What to do about conflicts in this table; NULL: as the subscription says.';
COMMENT ON COLUMN quorum.subscription_table.rows IS 'How many rows were copied.';

CREATE TABLE quorum.subscription_schema (
    subscription integer NOT NULL REFERENCES quorum.subscription,
    id bigint NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    columns jsonb NOT NULL,
    PRIMARY KEY (subscription, id)
);
COMMENT ON TABLE quorum.subscription_schema IS 'What the source''s tables looked like when changes were made.';

CREATE TABLE quorum.conflict_count (
    subscription integer NOT NULL REFERENCES quorum.subscription,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    conflict text NOT NULL,
    resolution text NOT NULL,
    count bigint NOT NULL,
    last_at timestamptz NOT NULL,
    PRIMARY KEY (subscription, schema_name, table_name, conflict, resolution)
);
COMMENT ON TABLE quorum.conflict_count IS 'How often changes met something else here than at the source, and what was done.';

CREATE TABLE quorum.rejected_change (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription integer NOT NULL REFERENCES quorum.subscription,
    epoch bigint NOT NULL,
    tick bigint NOT NULL,
    transaction bigint NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    op text NOT NULL,
    conflict text,
    code text NOT NULL,
    message text NOT NULL,
    key jsonb,
    old jsonb,
    new jsonb,
    origin text,
    committed_at timestamptz,
    rejected_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    change bytea NOT NULL
);
COMMENT ON TABLE quorum.rejected_change IS
    'Changes that were left out. quorum.retry_rejected(id) tries one again, quorum.drop_rejected(id) forgets it.';
COMMENT ON COLUMN quorum.rejected_change.change IS 'The change as the source encoded it.';

CREATE FUNCTION quorum.origin_name() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT i.origin_name FROM quorum.identity AS i),
                    (SELECT c.system_identifier || '.' || d.oid FROM pg_control_system() AS c, pg_database AS d
                     WHERE d.datname = current_database()))
$$;
COMMENT ON FUNCTION quorum.origin_name() IS
    'The name under which the changes of this database are known elsewhere: SYSTEM IDENTIFIER.DATABASE OID unless quorum.set_origin_name gave another one.';

CREATE FUNCTION quorum.set_origin_name(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    present text;
BEGIN
    PERFORM quorum.require_input(set_origin_name.name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,62}$',
        format('%s cannot be an origin name: it takes 1 to 63 letters, digits, "_", ".", ":" and "-", the first a letter, digit or "_"',
               coalesce(quote_literal(set_origin_name.name), 'NULL')));
    INSERT INTO quorum.identity (origin_name) VALUES (set_origin_name.name) ON CONFLICT (one) DO NOTHING;
    SELECT i.origin_name INTO STRICT present FROM quorum.identity AS i;
    IF present <> set_origin_name.name THEN
        RAISE EXCEPTION 'this database has the origin name % already', quote_literal(present)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'Others have seen changes under that name, and would take the same changes for those of a third database.',
                  HINT = 'Keep it. A name is given once, before anybody follows this database.';
    END IF;
END
$$;
COMMENT ON FUNCTION quorum.set_origin_name(text) IS
    'Gives this database its origin name, once, before anybody follows it. Errors: 22023 it cannot be one, 55000 it has another one.';
