-- The ledger: one table that only grows. `body` is the truth, deterministic CBOR; `hash` chains it to the row before; every
-- other column is a projection that `audit verify` derives again from the body. See docs/ledger-format.md.
CREATE TABLE event (
    period   INTEGER NOT NULL,
    chain    BLOB    NOT NULL,
    seq      INTEGER NOT NULL,
    kind     TEXT    NOT NULL,
    time     INTEGER NOT NULL,
    serial   BLOB,
    identity TEXT,
    issuer   TEXT,
    profile  BLOB,
    ended    BLOB,
    hash     BLOB    NOT NULL,
    body     BLOB    NOT NULL,
    UNIQUE (period, chain, seq),

    -- A row that breaks one of these would be found by no search, and no reader could say where it stands.
    CONSTRAINT event_period_is_a_month CHECK (period BETWEEN 197001 AND 999912 AND period % 100 BETWEEN 1 AND 12),
    CONSTRAINT event_chain_has_16_octets CHECK (length(chain) = 16),
    CONSTRAINT event_seq_counts_from_0 CHECK (seq >= 0),
    CONSTRAINT event_time_is_before_10000 CHECK (time BETWEEN 0 AND 253402300799000000),
    CONSTRAINT event_hash_has_32_octets CHECK (length(hash) = 32),
    CONSTRAINT event_body_has_at_most_65535_octets CHECK (length(body) BETWEEN 1 AND 65535)
) STRICT;

-- No serial is used twice. The period stands in the serial's first octets, so uniqueness within a period is global.
CREATE UNIQUE INDEX event_serial ON event (period, serial) WHERE kind = 'intent';

-- "What was issued to this workload?"
CREATE INDEX event_identity ON event (identity) WHERE identity IS NOT NULL;

-- The first and last rows of chains. They are a few for each process life, and found among any number of issuances.
CREATE INDEX event_mark ON event (kind, time, chain) WHERE kind IN ('start', 'end', 'chain_ended');

-- By which row a chain ended. A chain with a start and nothing here is being written, or its process is dead.
CREATE INDEX event_ended ON event (ended) WHERE ended IS NOT NULL;

CREATE TRIGGER event_is_never_updated BEFORE UPDATE ON event
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only: rows are never updated');
END;

CREATE TRIGGER event_is_never_deleted BEFORE DELETE ON event
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only: rows are never deleted');
END;

-- The newest row says how many migrations a program must know at least to write here. A later migration that older programs can live with
-- leaves it alone; one that they cannot live with adds a row.
CREATE TABLE oldest_writer (
    version INTEGER NOT NULL
) STRICT;
INSERT INTO oldest_writer VALUES (1);
