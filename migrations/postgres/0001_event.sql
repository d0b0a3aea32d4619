-- The ledger: one table that only grows, split by month. `body` is the truth, deterministic CBOR; `hash` chains it to the row before;
-- every other column is a projection that `audit verify` derives again from the body. See docs/ledger-format.md.
--
-- `ca-server migrate` runs this as the owner's role, in the schema ca_server, and makes the partitions of the coming months.
CREATE TABLE event (
    period   integer NOT NULL,
    chain    bytea   NOT NULL,
    seq      bigint  NOT NULL,
    kind     text    NOT NULL,
    time     bigint  NOT NULL,
    serial   bytea,
    identity text,
    issuer   text,
    profile  bytea,
    ended    bytea,
    hash     bytea   NOT NULL,
    body     bytea   NOT NULL,

    -- A row that breaks one of these would be found by no search, and no reader could say where it stands.
    CONSTRAINT event_period_is_a_month CHECK (period BETWEEN 197001 AND 999912 AND period % 100 BETWEEN 1 AND 12),
    CONSTRAINT event_chain_has_16_octets CHECK (octet_length(chain) = 16),
    CONSTRAINT event_seq_counts_from_0 CHECK (seq >= 0),
    CONSTRAINT event_time_is_before_10000 CHECK (time BETWEEN 0 AND 253402300799000000),
    CONSTRAINT event_hash_has_32_octets CHECK (octet_length(hash) = 32),
    CONSTRAINT event_body_has_at_most_65535_octets CHECK (octet_length(body) BETWEEN 1 AND 65535)
) PARTITION BY LIST (period);

CREATE UNIQUE INDEX event_place ON event (period, chain, seq);

-- No serial is used twice. The period stands in the serial's first octets, so uniqueness within a period is global.
CREATE UNIQUE INDEX event_serial ON event (period, serial) WHERE kind = 'intent';

-- "What was issued to this workload?"
CREATE INDEX event_identity ON event (identity) WHERE identity IS NOT NULL;

-- The first and last rows of chains. They are a few for each process life, and found among any number of issuances.
CREATE INDEX event_mark ON event (kind, time, chain) WHERE kind IN ('start', 'end', 'chain_ended');

-- By which row a chain ended. A chain with a start and nothing here is being written, or its process is dead.
CREATE INDEX event_ended ON event (ended) WHERE ended IS NOT NULL;

-- What no partition was made for; a missing partition must never stop issuing.
CREATE TABLE event_default PARTITION OF event DEFAULT;

CREATE FUNCTION event_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER event_is_never_changed BEFORE UPDATE OR DELETE ON event FOR EACH ROW EXECUTE FUNCTION event_only_grows();

-- Statement triggers are not handed down: every partition gets its own when it is made.
CREATE TRIGGER event_is_never_truncated BEFORE TRUNCATE ON event FOR EACH STATEMENT EXECUTE FUNCTION event_only_grows();
CREATE TRIGGER event_is_never_truncated BEFORE TRUNCATE ON event_default FOR EACH STATEMENT EXECUTE FUNCTION event_only_grows();

-- The newest row says how many migrations a program must know at least to write here. A later migration that older programs can live with
-- leaves it alone; one that they cannot live with adds a row.
CREATE TABLE oldest_writer (
    version bigint NOT NULL
);
INSERT INTO oldest_writer VALUES (1);

-- The application adds and reads, the auditor reads; the roles are named after the database, which makes them its own.
DO $$
DECLARE
    application text := quote_ident(current_database() || '_application');
    auditor     text := quote_ident(current_database() || '_auditor');
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA ca_server TO %s, %s', application, auditor);
    EXECUTE format('GRANT SELECT, INSERT ON event TO %s', application);
    EXECUTE format('GRANT SELECT ON event TO %s', auditor);
    EXECUTE format('GRANT SELECT ON oldest_writer, _sqlx_migrations TO %s, %s', application, auditor);
END
$$;
