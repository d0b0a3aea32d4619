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
    hash     BLOB    NOT NULL,
    body     BLOB    NOT NULL,
    UNIQUE (period, chain, seq)
) STRICT;

-- No serial is used twice. The period stands in the serial's first octets, so uniqueness within a period is global.
CREATE UNIQUE INDEX event_serial ON event (period, serial) WHERE kind = 'intent';

-- "What was issued to this workload?"
CREATE INDEX event_identity ON event (identity) WHERE identity IS NOT NULL;

-- The first and last rows of chains, which every start reads.
CREATE INDEX event_mark ON event (kind, chain) WHERE kind IN ('start', 'end', 'chain_ended');

CREATE TRIGGER event_is_never_updated BEFORE UPDATE ON event
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only: rows are never updated');
END;

CREATE TRIGGER event_is_never_deleted BEFORE DELETE ON event
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only: rows are never deleted');
END;
