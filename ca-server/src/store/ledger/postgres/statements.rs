//! Every statement on PostgreSQL that is no DDL: those of the daemon, of `audit`, of `doctor` and
//! of `migrate`. Each says what it may read, and a test holds its plan against that on a ledger
//! with many rows and partitions.

use crate::store::ledger::statement::statements;

/// Whole rows, in the order in which `stored` reads them.
macro_rules! rows {
    ($rest:literal) => {
        concat!("SELECT period, chain, seq, kind, time, serial, identity, issuer, profile, ended, hash, body FROM event ", $rest)
    };
}

/// The chains that have begun and not ended, the older first. Both sides are read from the indexes
/// of marks.
macro_rules! unended {
    () => {
        "SELECT started.chain FROM event AS started WHERE started.kind = 'start' \
         AND NOT EXISTS (SELECT FROM event AS ending WHERE ending.ended IS NOT NULL AND ending.ended = started.chain) \
         ORDER BY started.time"
    };
}

/// Whether the statement runs on the session that was opened, and nobody else has it: behind a
/// pooler it may be any.
macro_rules! on_this_session {
    ($session:literal, $token:literal) => {
        concat!(
            "pg_backend_pid() = ",
            $session,
            " AND current_setting('ca_server.session', true) = ",
            $token
        )
    };
}

/// All rows in the order of their writing.
#[cfg(test)]
pub(in crate::store::ledger) const IN_ORDER_OF_WRITING: &str = rows!("ORDER BY period, ctid");

statements! {
    TAKES_NO_WRITES(""): Few, "SELECT current_setting('transaction_read_only')";
    /// Set in any case: from then on a change of the server's own setting does not reach this
    /// session.
    NEVER_LESS_DURABLE(""): Few,
        "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' \
         ELSE current_setting('synchronous_commit') END, false)";
    MIGRATIONS_ARE_READABLE(""): Few, "SELECT coalesce(has_table_privilege(to_regclass('_sqlx_migrations'), 'SELECT'), false)";
    LAST_MIGRATION(""): Few, "SELECT max(version) FROM _sqlx_migrations WHERE success";
    OLDEST_WRITER_IS_READABLE(""): Few, "SELECT coalesce(has_table_privilege(to_regclass('oldest_writer'), 'SELECT'), false)";
    OLDEST_WRITER(""): Few, "SELECT max(version) FROM oldest_writer";

    // Locks. One bigint key is shown as its two halves, with objsubid 1.
    END_FORMER_SESSIONS("1, '{}'"): Few,
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND pid = ANY($2::int4[]) \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND (classid::bigint << 32 | objid::bigint) = $1::int8";
    HELD_LOCKS(""): Few,
        "SELECT (classid::bigint << 32 | objid::bigint) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    /// Null on another session than this connection's own, where no lock is tried.
    TRY_LOCK("1, 1, ''"): Few,
        concat!("SELECT CASE WHEN ", on_this_session!("$2::int4", "$3::text"), " THEN pg_try_advisory_lock($1::int8) END");
    UNLOCK("1"): Few, "SELECT pg_advisory_unlock($1::int8)";

    TIME(""): Few, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";
    PARTITIONS(""): Few,
        "SELECT substring(relname FROM '^event_([0-9]{6})$')::int4 AS period FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
         WHERE inhparent = to_regclass('event')";

    // The row's order is that of the columns.
    INSERT("'{202611}', ARRAY[decode(md5('7'), 'hex')], '{1}', '{device}', '{1}', ARRAY[NULL::bytea], ARRAY[NULL], ARRAY[NULL], ARRAY[NULL::bytea], \
           ARRAY[NULL::bytea], ARRAY['\\x'::bytea], ARRAY['\\x'::bytea], pg_backend_pid(), ''"): Few,
        concat!(
            "INSERT INTO event (period, chain, seq, kind, time, serial, identity, issuer, profile, ended, hash, body) \
             SELECT * FROM unnest($1::int4[], $2::bytea[], $3::int8[], $4::text[], $5::int8[], $6::bytea[], $7::text[], $8::text[], \
             $9::bytea[], $10::bytea[], $11::bytea[], $12::bytea[]) WHERE ",
            on_this_session!("$13::int4", "$14::text")
        );
    /// Between BEGIN and ROLLBACK. The chain is nobody's, so that no other probe waits for these
    /// rows.
    ROOM(""): Few,
        "INSERT INTO event (period, chain, seq, kind, time, hash, body) \
         SELECT 999912, decode(md5(random()::text), 'hex'), number, 'probe', 0, decode(repeat('00', 32), 'hex'), decode(repeat('00', 1000), 'hex') \
         FROM generate_series(1, 16) AS number";
    EMIT(""): Few, "SELECT pg_logical_emit_message(true, 'ca-server', 'probe')";

    UNENDED(""): Marks, unended!();
    IS_ENDED("decode(md5('7'), 'hex')"): Few, "SELECT EXISTS (SELECT FROM event WHERE ended IS NOT NULL AND ended = $1::bytea)";
    ENDING("decode(md5('7'), 'hex')"): Few, rows!("WHERE ended IS NOT NULL AND ended = $1::bytea ORDER BY time LIMIT 1");
    NEWEST_MARKS("'start', 256"): Few, rows!("WHERE kind IN ('start', 'end', 'chain_ended') AND kind = $1::text ORDER BY time DESC LIMIT $2::int8");
    MARKS_BEFORE("1"): Much("verify from a time on takes all chains for granted that ended before it"),
        rows!("WHERE kind IN ('start', 'end', 'chain_ended') AND time < $1::int8 ORDER BY time, period, chain, seq");

    /// The months that hold rows, each found from the one after it.
    PERIODS(""): Few,
        "WITH RECURSIVE found AS (SELECT max(period) AS period FROM event UNION ALL \
         SELECT (SELECT max(event.period) FROM event WHERE event.period < found.period) FROM found WHERE found.period IS NOT NULL) \
         SELECT period::int8 FROM found WHERE period IS NOT NULL ORDER BY period";
    LAST_ROW("202611, decode(md5('7'), 'hex')"): Few, rows!("WHERE period = $1::int4 AND chain = $2::bytea ORDER BY seq DESC LIMIT 1");
    ROW("202611, decode(md5('7'), 'hex'), 1"): Few, rows!("WHERE period = $1::int4 AND chain = $2::bytea AND seq = $3::int8");
    CHAIN_PAGE("202611, decode(md5('7'), 'hex'), 1, 500"): Few,
        rows!("WHERE period = $1::int4 AND chain = $2::bytea AND seq >= $3::int8 ORDER BY seq LIMIT $4::int8");
    PAGE("202611, decode(md5('7'), 'hex'), 1, 500"): Few,
        rows!("WHERE period = $1::int4 AND (chain, seq) > ($2::bytea, $3::int8) ORDER BY chain, seq LIMIT $4::int8");
    INTENTS_OF_SERIAL("202611, decode(md5('7'), 'hex')"): Few, rows!("WHERE kind = 'intent' AND period = $1::int4 AND serial = $2::bytea");
    ROWS_OF_IDENTITY("202611, 'spiffe://cluster.local/ns/a/sa/7', 20"): Few,
        rows!("WHERE period = $1::int4 AND identity = $2::text ORDER BY time DESC, chain DESC, seq DESC LIMIT $3::int8");
    PLACES_OF_IDENTITY("202611, 'spiffe://cluster.local/ns/a/sa/7'"): Few,
        "SELECT chain, seq FROM event WHERE period = $1::int4 AND identity = $2::text ORDER BY chain, seq";
    OUTCOMES_NAMING("202611, decode(md5('7'), 'hex'), 1, 500, '\\x02'"): Few,
        rows!("WHERE period = $1::int4 AND chain = $2::bytea AND seq >= $3::int8 AND seq < $4::int8 \
               AND kind IN ('issued', 'failed', 'unknown') AND position($5::bytea IN body) > 0 ORDER BY seq");

    PAGE_BETWEEN("202611, decode(md5('7'), 'hex'), 1, 1, 2, 500"): Much("export reads whole months and passes over what is outside the time"),
        rows!("WHERE period = $1::int4 AND (chain, seq) > ($2::bytea, $3::int8) AND time >= $4::int8 AND time < $5::int8 \
               ORDER BY chain, seq LIMIT $6::int8");
    LAST_ROW_BEFORE("202611, decode(md5('7'), 'hex'), 1"): Much("verify from a time on looks back from a chain's last row to that time"),
        rows!("WHERE period = $1::int4 AND chain = $2::bytea AND time < $3::int8 ORDER BY seq DESC LIMIT 1");
    ISSUER_ROWS("202611, decode(md5('7'), 'hex'), 1"): Much("verify from a time on looks through the chains that had not ended by then"),
        rows!("WHERE period = $1::int4 AND chain = $2::bytea AND seq <= $3::int8 AND kind = 'issuer' ORDER BY seq");
    REPEATED_SERIALS("202611"): Much("verify asks each month that it reads"),
        "SELECT serial FROM event WHERE kind = 'intent' AND period = $1::int4 GROUP BY serial HAVING count(*) > 1 LIMIT 100";
    ROWS_FROM("202611"): Much("verify says how far it is"), "SELECT count(*) FROM event WHERE period >= $1::int4";
    ROW_COUNT(""): Much("verify says how far it is"), "SELECT count(*) FROM event";
    IN_DEFAULT(""): Few,
        "WITH RECURSIVE found AS (SELECT min(period) AS period FROM event_default UNION ALL \
         SELECT (SELECT min(other.period) FROM event_default AS other WHERE other.period > found.period) FROM found \
         WHERE found.period IS NOT NULL) SELECT period FROM found WHERE period IS NOT NULL ORDER BY period";

    // Doctor.
    SERVER_FACTS(""): Few,
        "SELECT current_setting('server_version'), current_setting('server_version_num')::int4, host(inet_server_addr()), \
         (SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl), pg_database_size(current_database()), \
         (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), \
         (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted \
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
    SETTINGS(""): Few,
        "SELECT name, current_setting(name) FROM unnest(ARRAY['fsync', 'synchronous_commit', 'full_page_writes', 'max_connections', \
         'superuser_reserved_connections', 'synchronous_standby_names']) AS name";
    RIGHTS(""): Few,
        "SELECT current_user::text, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), \
         coalesce(has_table_privilege(event, 'INSERT') AND has_table_privilege(event, 'SELECT'), false), \
         coalesce(has_table_privilege(event, 'UPDATE, DELETE, TRUNCATE'), false) \
         OR EXISTS (SELECT FROM pg_inherits WHERE inhparent = event AND has_table_privilege(inhrelid, 'UPDATE, DELETE, TRUNCATE')) \
         FROM to_regclass('event') AS event";
    MEMBERSHIPS(""): Few,
        "SELECT rolname::text, pg_has_role(current_user, oid, 'MEMBER') FROM pg_roles \
         WHERE rolname IN (SELECT current_database() || part FROM unnest(ARRAY['_owner', '_application', '_auditor']) AS part)";
    DEFAULT_SIZE(""): Few, "SELECT coalesce(pg_relation_size(to_regclass('event_default')), 0)";
    /// The newest row of all stands in the newest month. Its chain ended with it, or has not ended;
    /// the row of a chain that was declared ended is followed by one in the chain that says so.
    NEWEST(""): Marks,
        concat!(
            "SELECT max(time) FROM (SELECT max(time) AS time FROM event WHERE kind IN ('start', 'end', 'chain_ended') AND kind = 'end' \
             UNION ALL SELECT last.time FROM (",
            unended!(),
            ") AS open, LATERAL (SELECT time FROM event WHERE event.period = (SELECT max(period) FROM event) \
             AND event.chain = open.chain ORDER BY seq DESC LIMIT 1) AS last) AS times"
        );
    MIGRATIONS(""): Few, "SELECT version, checksum FROM _sqlx_migrations WHERE success";
    TABLES(""): Few,
        "SELECT c.relname::text, c.relrowsecurity OR c.relhasrules FROM pg_class c WHERE c.oid = to_regclass('event') \
         OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('event')) ORDER BY 1";
    FUNCTION_BODY(""): Few, "SELECT prosrc FROM pg_proc WHERE pronamespace = 'ca_server'::regnamespace AND proname = 'event_only_grows'";
    INDEXES(""): Few,
        "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
         WHERE i.indrelid = to_regclass('event') AND i.indisvalid";
    /// Those of a partition that were handed down count as internal on some versions.
    TRIGGERS(""): Few,
        "SELECT c.relname::text, t.tgname::text, t.tgtype, \
         t.tgenabled IN ('O', 'A') AND t.tgqual IS NULL AND cardinality(t.tgattr) = 0 AND p.proname = 'event_only_grows' \
         AND p.pronamespace = 'ca_server'::regnamespace \
         FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid \
         WHERE (NOT t.tgisinternal OR t.tgparentid <> 0) AND (t.tgrelid = to_regclass('event') \
         OR t.tgrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('event')))";

    CONSTRAINTS(""): Few,
        "SELECT conname::text FROM pg_constraint WHERE conrelid = to_regclass('event') AND contype = 'c' AND convalidated";

    // Migrate and detach.
    FENCE_IS_THERE("'a'"): Few,
        "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass('event_default') AND conname = $1::text)";
    UNVALIDATED(""): Few,
        "SELECT c.relname::text, o.conname::text FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid \
         WHERE o.contype = 'c' AND NOT o.convalidated AND (c.oid = to_regclass('event') \
         OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('event'))) ORDER BY c.relkind <> 'r', c.relname";
    UNBUILT(""): Few,
        "SELECT c.relname::text, pg_get_indexdef(c.oid), i.indisunique FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
         WHERE i.indrelid = to_regclass('event') AND NOT i.indisvalid ORDER BY 1";
    WITHOUT_INDEX("'event_place'"): Few,
        "SELECT p.relname::text, p.relname || substring($1::text FROM length('event') + 1), \
         EXISTS (SELECT FROM pg_index j JOIN pg_class n ON n.oid = j.indexrelid WHERE j.indrelid = p.oid AND NOT j.indisvalid \
         AND n.relname = p.relname || substring($1::text FROM length('event') + 1)) \
         FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhrelid WHERE h.inhparent = to_regclass('event') \
         AND NOT EXISTS (SELECT FROM pg_inherits a JOIN pg_index j ON j.indexrelid = a.inhrelid \
         WHERE a.inhparent = to_regclass($1::text) AND j.indrelid = p.oid) ORDER BY 1";
    HOLDERS(""): Few,
        "SELECT DISTINCT format('process %s (%s)', l.pid, coalesce(nullif(a.application_name, ''), 'unnamed')) \
         FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.granted AND l.pid <> pg_backend_pid() \
         AND l.relation IN (SELECT to_regclass('event') UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('event'))";
    TABLE_SIZE("'event_202611'"): Few, "SELECT pg_total_relation_size(to_regclass($1::text))";
    OWNER(""): Few,
        "SELECT current_user::text, current_database() || '_owner', current_database() || '_auditor', \
         EXISTS (SELECT FROM pg_roles WHERE rolname = current_database() || '_owner')";
    IS_ATTACHED("'event_202611', 202611"): Few,
        "SELECT to_regclass($1::text) IS NOT NULL, EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass($1::text) \
         AND inhparent = to_regclass('event')), EXISTS (SELECT FROM event_default WHERE period = $2::int4)";
    /// The chains that have rows in the month, each found by the index.
    CHAINS_IN("202612"): Few,
        "WITH RECURSIVE found AS ((SELECT chain FROM event WHERE period = $1::int4 ORDER BY chain LIMIT 1) UNION ALL \
         SELECT (SELECT chain FROM event WHERE period = $1::int4 AND chain > found.chain ORDER BY chain LIMIT 1) FROM found \
         WHERE found.chain IS NOT NULL) SELECT chain FROM found WHERE chain IS NOT NULL";
    MIGRATOR(""): Few,
        "SELECT current_setting('server_version_num')::int4, current_setting('server_version'), current_database()::text, \
         current_user::text, (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user)";
    ROLE_CAN_LOG_IN("'a'"): Few, "SELECT rolcanlogin OR rolsuper FROM pg_roles WHERE rolname = $1::text";
    HAS_ROLE("'postgres', 'MEMBER'"): Few, "SELECT pg_has_role(current_user, $1::text, $2::text)";
    SCHEMA_OWNER("'ca_server'"): Few, "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = $1::text";
    TABLE_IS_THERE("'event'"): Few, "SELECT to_regclass($1::text) IS NOT NULL";
}
