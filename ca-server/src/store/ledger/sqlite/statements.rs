//! Every statement on SQLite: those of the daemon, of `audit` and of `doctor`. Each says what it
//! may read, and a test holds its plan against that.

use crate::store::ledger::statement::statements;

/// Whole rows, in the order in which `stored` reads them.
macro_rules! rows {
    ($rest:literal) => {
        concat!("SELECT period, chain, seq, kind, time, serial, identity, issuer, profile, ended, hash, body FROM event ", $rest)
    };
}

/// All rows in the order of their writing.
#[cfg(test)]
pub(in crate::store::ledger) const IN_ORDER_OF_WRITING: &str = rows!("ORDER BY rowid");

// Where the conditions are a partial index's own, they are repeated word for word: only then is it
// used.
statements! {
    HAS_TABLE(""): Few, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?";
    OLDEST_WRITER(""): Few, "SELECT max(version) FROM oldest_writer";
    /// As many rows in one statement as there are tuples of twelve question marks behind it.
    INSERT("(1,2,3,4,5,6,7,8,9,10,11,12)"): Few,
        "INSERT OR ROLLBACK INTO event (period, chain, seq, kind, time, serial, identity, issuer, profile, ended, hash, body) VALUES ";
    BEGIN_WRITING(""): Few, "BEGIN IMMEDIATE";
    BEGIN_READING(""): Few, "BEGIN DEFERRED";
    COMMIT(""): Few, "COMMIT";
    /// A number that means nothing, outside the ledger's table.
    PROBE(""): Few, "PRAGMA user_version = 1";

    UNENDED(""): Marks,
        "SELECT chain FROM event AS started WHERE kind IN ('start', 'end', 'chain_ended') AND kind = 'start' \
         AND NOT EXISTS (SELECT 1 FROM event AS ending WHERE ending.ended IS NOT NULL AND ending.ended = started.chain)";
    IS_ENDED(""): Few, "SELECT EXISTS (SELECT 1 FROM event WHERE ended IS NOT NULL AND ended = ?)";
    ENDING(""): Few, rows!("WHERE ended IS NOT NULL AND ended = ? ORDER BY rowid LIMIT 1");
    NEWEST_MARKS(""): Few, rows!("WHERE kind IN ('start', 'end', 'chain_ended') AND kind = ? ORDER BY time DESC LIMIT ?");
    MARKS_BEFORE(""): Much("verify from a time on takes all chains for granted that ended before it"),
        rows!("WHERE kind IN ('start', 'end', 'chain_ended') AND time < ? ORDER BY rowid");

    PERIOD_BEFORE(""): Few, "SELECT max(period) FROM event WHERE period < ?";
    LAST_ROW(""): Few, rows!("WHERE period = ? AND chain = ? ORDER BY seq DESC LIMIT 1");
    ROW(""): Few, rows!("WHERE period = ? AND chain = ? AND seq = ?");
    CHAIN_PAGE(""): Few, rows!("WHERE period = ? AND chain = ? AND seq >= ? ORDER BY seq LIMIT ?");
    PAGE(""): Few, rows!("WHERE period = ? AND (chain, seq) > (?, ?) ORDER BY chain, seq LIMIT ?");
    INTENTS_OF_SERIAL(""): Few, rows!("WHERE kind = 'intent' AND period = ? AND serial = ?");
    ROWS_OF_IDENTITY(""): Few, rows!("WHERE identity = ? ORDER BY rowid DESC LIMIT ?");
    /// With a plus before it the period is no reason to read the whole month for the order.
    PLACES_OF_IDENTITY(""): Few, "SELECT chain, seq FROM event WHERE identity = ? AND +period = ? ORDER BY chain, seq";
    OUTCOMES_NAMING(""): Few,
        rows!("WHERE period = ? AND chain = ? AND seq >= ? AND seq < ? AND kind IN ('issued', 'failed', 'unknown') \
               AND instr(body, ?) > 0 ORDER BY seq");

    PAGE_BETWEEN(""): Much("export reads whole months and passes over what is outside the time"),
        rows!("WHERE period = ? AND (chain, seq) > (?, ?) AND time >= ? AND time < ? ORDER BY chain, seq LIMIT ?");
    LAST_ROW_BEFORE(""): Much("verify from a time on looks back from a chain's last row to that time"),
        rows!("WHERE period = ? AND chain = ? AND time < ? ORDER BY seq DESC LIMIT 1");
    ISSUER_ROWS(""): Much("verify from a time on looks through the chains that had not ended by then"),
        rows!("WHERE period = ? AND chain = ? AND seq <= ? AND kind = 'issuer' ORDER BY seq");
    REPEATED_SERIALS(""): Much("verify asks each month that it reads"),
        "SELECT serial FROM event WHERE kind = 'intent' AND period = ? GROUP BY serial HAVING count(*) > 1 LIMIT 100";
    ROWS_FROM(""): Much("verify says how far it is"), "SELECT count(*) FROM event WHERE period >= ?";
    ROW_COUNT(""): Much("verify says how far it is"), "SELECT count(*) FROM event";

    // Doctor.
    JOURNAL_MODE(""): Few, "PRAGMA journal_mode";
    /// The last in the order of writing: the newest by time would be a search through the whole
    /// table.
    NEWEST(""): Few, "SELECT rowid, time FROM event WHERE rowid = (SELECT max(rowid) FROM event)";
    DAMAGE(""): Much("only `doctor --deep` asks, which says that it reads everything"), "PRAGMA integrity_check(100)";
    QUICK_CHECK(""): Much("only of a small file"), "PRAGMA quick_check(1)";
    FIRST_HASH(""): Few, "SELECT rowid, hash FROM event WHERE rowid = (SELECT min(rowid) FROM event)";
    LAST_HASH(""): Few, "SELECT rowid, hash FROM event WHERE rowid = (SELECT max(rowid) FROM event)";
    HASH(""): Few, "SELECT hash FROM event WHERE rowid = ?";
    LAST_NUMBER(""): Few, "SELECT max(rowid) FROM event";
    /// Of the rows between two: how many there are, are found by their places, and follow a row of
    /// their chain.
    LINKED(""): Few,
        "SELECT count(*), coalesce(sum(rowid = (SELECT found.rowid FROM event AS found WHERE found.period = event.period \
         AND found.chain = event.chain AND found.seq = event.seq)), 0), \
         coalesce(sum(seq = 0 OR EXISTS (SELECT 1 FROM event AS before WHERE before.period = event.period \
         AND before.chain = event.chain AND before.seq = event.seq - 1)), 0) FROM event WHERE rowid BETWEEN ? AND ?";
    MIGRATIONS(""): Few, "SELECT version, checksum FROM _sqlx_migrations WHERE success";
    OBJECTS(""): Few, "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE '\\_sqlx%' ESCAPE '\\'";
}
