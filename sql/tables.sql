-- The cluster's state. Every row comes from the consensus log (quorum.apply_entry) or from an appointment
-- (quorum.open_epoch) and reaches the other nodes by streaming replication.
--
-- None of these tables is marked with pg_extension_config_dump: a dump carries data into another cluster, and there
-- the log index, the epochs and the addresses of this one would be wrong and would bar the new cluster's own.

CREATE TABLE quorum.cluster_log (
    index bigint PRIMARY KEY CHECK (index > 0),
    term bigint NOT NULL CHECK (term > 0),
    payload jsonb NOT NULL CHECK (jsonb_typeof(payload) = 'object'),
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE quorum.cluster_log IS
    'Committed entries of the cluster''s consensus log, as applied; the newest 10000 are kept.';
COMMENT ON COLUMN quorum.cluster_log.index IS 'Position in the consensus log; there may be gaps.';
COMMENT ON COLUMN quorum.cluster_log.term IS 'Term of the leader that proposed the entry.';
COMMENT ON COLUMN quorum.cluster_log.payload IS 'The entry as the sidecar wrote it.';
COMMENT ON COLUMN quorum.cluster_log.applied_at IS 'When the leader of that time recorded it.';

CREATE TABLE quorum.node (
    id bigint PRIMARY KEY CHECK (id > 0),
    ip text NOT NULL CHECK (ip <> ''),
    db_port integer CHECK (db_port BETWEEN 0 AND 65535),
    api_port integer CHECK (api_port BETWEEN 0 AND 65535),
    role text NOT NULL CHECK (role IN ('node', 'listener', 'witness')),
    down boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE quorum.node IS 'The members of the cluster.';
COMMENT ON COLUMN quorum.node.ip IS 'Address or host name at which the other nodes and clients reach it.';
COMMENT ON COLUMN quorum.node.db_port IS 'Port of PostgreSQL; NULL or 0 for a witness.';
COMMENT ON COLUMN quorum.node.api_port IS 'Port of the sidecar''s REST interface.';
COMMENT ON COLUMN quorum.node.role IS
    'node: votes and holds data. listener: holds data, never votes or acknowledges. witness: votes, holds no data.';
COMMENT ON COLUMN quorum.node.down IS 'Marked down: left out of votes and acknowledgements until it is well again.';

CREATE TABLE quorum.config (
    name text PRIMARY KEY CHECK (name <> ''),
    value text NOT NULL
);
COMMENT ON TABLE quorum.config IS 'Settings of the cluster. Changed through the sidecar, never here.';

CREATE TABLE quorum.db_config (
    name text PRIMARY KEY CHECK (name <> ''),
    value text NOT NULL
);
COMMENT ON TABLE quorum.db_config IS
    'Settings of PostgreSQL that the cluster keeps equal on all nodes. Changed through the sidecar, never here.';

CREATE TABLE quorum.event (
    index bigint PRIMARY KEY,
    term bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL CHECK (kind <> ''),
    node bigint,
    message text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE quorum.event IS 'What happened to the cluster, for people, and in this database; the newest 10000 of either are kept.';
COMMENT ON COLUMN quorum.event.index IS 'The entry of the consensus log that reported it; negative, and falling: reported by this database itself.';
COMMENT ON COLUMN quorum.event.at IS 'When it happened by the reporter''s clock, else when it was applied.';
COMMENT ON COLUMN quorum.event.kind IS 'Stable word for programs.';
COMMENT ON COLUMN quorum.event.node IS 'The node it is about; NULL: the whole cluster. The node may be gone since.';

CREATE TABLE quorum.lost_transactions (
    index bigint NOT NULL,
    node bigint NOT NULL,
    timeline bigint NOT NULL,
    xid bigint NOT NULL,
    committed_at timestamptz,
    acknowledged text NOT NULL CHECK (acknowledged IN ('no', 'possibly')),
    tables jsonb NOT NULL,
    schema_changed boolean NOT NULL DEFAULT false,
    PRIMARY KEY (index, xid)
);
COMMENT ON TABLE quorum.lost_transactions IS
    'Transactions that a node committed, that no other node had, and that it gave up when it came back; the newest 10000 are kept.';
COMMENT ON COLUMN quorum.lost_transactions.index IS
    'The entry of the consensus log that reported it; the event of this index has the counts of the whole report.';
COMMENT ON COLUMN quorum.lost_transactions.node IS 'The node that gave it up.';
COMMENT ON COLUMN quorum.lost_transactions.timeline IS 'The timeline on which the lost WAL ends.';
COMMENT ON COLUMN quorum.lost_transactions.xid IS
    'Its transaction id. The same id was given again to another transaction afterwards.';
COMMENT ON COLUMN quorum.lost_transactions.committed_at IS 'When it was committed by that node''s clock.';
COMMENT ON COLUMN quorum.lost_transactions.acknowledged IS
    'no: by the rule in force no client was told that it is committed. possibly: one may have been told so.';
COMMENT ON COLUMN quorum.lost_transactions.tables IS
    'Array of {database, table, inserted, updated, deleted, new-file}; new-file: created, truncated or rewritten.';
COMMENT ON COLUMN quorum.lost_transactions.schema_changed IS 'It changed the catalogs: DDL, roles, functions.';

CREATE TABLE quorum.leadership (
    epoch bigint PRIMARY KEY CHECK (epoch > 0),
    node bigint NOT NULL CHECK (node > 0),
    timeline integer NOT NULL CHECK (timeline > 0),
    switch_lsn pg_lsn NOT NULL,
    k integer NOT NULL CHECK (k >= 0),
    members bigint[] NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- Updated in its page over and over: room for that, and no index on what changes.
CREATE TABLE quorum.heartbeat (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    node bigint NOT NULL CHECK (node > 0),
    at timestamptz NOT NULL
) WITH (fillfactor = 10);
COMMENT ON TABLE quorum.heartbeat IS
    'One row that the leader''s sidecar commits twice per node-timeout; a leader that cannot is replaced.';
COMMENT ON COLUMN quorum.heartbeat.node IS 'The leader that wrote it.';
COMMENT ON COLUMN quorum.heartbeat.at IS
    'When, by its clock. On a standby: everything committed before is visible there.';

COMMENT ON TABLE quorum.leadership IS
    'Every epoch of the cluster: who was appointed the leader, and where its history branches off.';
COMMENT ON COLUMN quorum.leadership.epoch IS 'The consensus term of the appointment.';
COMMENT ON COLUMN quorum.leadership.timeline IS 'The timeline that the leader writes.';
COMMENT ON COLUMN quorum.leadership.switch_lsn IS 'Where that timeline begins; WAL beyond it on an older timeline is lost.';
COMMENT ON COLUMN quorum.leadership.k IS 'How many nodes beside the leader must have a transaction before its commit returns.';
COMMENT ON COLUMN quorum.leadership.members IS 'The nodes beside the leader of which any k had to have the epoch''s first row.';
