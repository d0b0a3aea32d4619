//! A point in time as the ledger and certificates see it: UTC, microseconds. A plain value; only
//! `clock` makes one from the system's time.

use std::fmt;
use std::time::Duration;

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, Month, OffsetDateTime};

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// 9999-12-31T23:59:59Z, the last second that RFC 5280 §4.1.2.5 can write.
const LAST_SECOND: i64 = 253_402_300_799;

impl Timestamp {
    /// A time from its microseconds since the epoch; clamped to the years that X.509 can write
    /// (1970–9999).
    pub fn from_micros(micros: i64) -> Self {
        Self(micros.clamp(0, LAST_SECOND * 1_000_000))
    }

    /// A time from its whole seconds since the epoch, clamped likewise.
    pub fn from_seconds(seconds: i64) -> Self {
        Self::from_micros(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since the epoch.
    pub fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub fn seconds(self) -> i64 {
        self.0 / 1_000_000
    }

    /// This time moved forward.
    pub fn plus(self, by: Duration) -> Self {
        Self::from_micros(
            self.0
                .saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// This time moved back.
    pub fn minus(self, by: Duration) -> Self {
        Self::from_micros(
            self.0
                .saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// How long after `earlier` this is; zero if it is not after.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The month this falls into, UTC.
    pub fn period(self) -> Period {
        let date = self.date_time();
        Period(u32::try_from(date.year()).unwrap_or(0) * 100 + u32::from(u8::from(date.month())))
    }

    /// As `time` has it.
    pub fn date_time(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1000)
            .expect("the constructors clamp to 1970–9999")
    }

    /// RFC 3339 in UTC with microseconds, always six digits: `2026-11-22T12:00:00.000000Z`.
    pub fn rfc3339(self) -> String {
        let shape = format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
        );
        self.date_time()
            .format(&shape)
            .expect("every component exists in an OffsetDateTime")
    }

    /// Reads any RFC 3339 time.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let parsed = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(parsed.unix_timestamp_nanos() / 1000)
            .ok()
            .map(Self::from_micros)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

/// A month of the ledger, as the integer yyyymm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(u32);

impl Period {
    /// A period from yyyymm; `None` unless the month is 1–12 and the year 1970–9999.
    pub fn new(yyyymm: u32) -> Option<Self> {
        ((1..=12).contains(&(yyyymm % 100)) && (1970..=9999).contains(&(yyyymm / 100)))
            .then_some(Self(yyyymm))
    }

    /// The integer yyyymm.
    pub fn yyyymm(self) -> u32 {
        self.0
    }

    /// Its first instant, UTC.
    pub fn begins(self) -> Timestamp {
        let month = u8::try_from(self.0 % 100)
            .ok()
            .and_then(|month| Month::try_from(month).ok());
        let year = i32::try_from(self.0 / 100).ok();
        let first = year
            .zip(month)
            .and_then(|(year, month)| Date::from_calendar_date(year, month, 1).ok());
        Timestamp::from_seconds(
            first
                .expect("the constructors take months of 1970–9999")
                .midnight()
                .assume_utc()
                .unix_timestamp(),
        )
    }

    /// The month after it; the last month of 9999 is followed by none.
    pub fn next(self) -> Self {
        let next = if self.0 % 100 == 12 {
            self.0 + 89
        } else {
            self.0 + 1
        };
        Self::new(next).unwrap_or(self)
    }

    /// Whole months from `earlier` to it; zero if it is not after.
    pub fn months_after(self, earlier: Period) -> u32 {
        (self.0 / 100 * 12 + self.0 % 100).saturating_sub(earlier.0 / 100 * 12 + earlier.0 % 100)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_with_six_digits_and_knows_its_month() {
        let at = Timestamp::from_micros(1_795_350_000_000_001);
        assert_eq!(at.rfc3339(), "2026-11-22T12:20:00.000001Z");
        assert_eq!(at.period().yyyymm(), 202_611);
        assert_eq!(Timestamp::parse_rfc3339(&at.rfc3339()), Some(at));
    }

    #[test]
    fn extreme_values_are_clamped_and_never_overflow() {
        assert_eq!(
            Timestamp::from_seconds(i64::MAX).rfc3339(),
            "9999-12-31T23:59:59.000000Z"
        );
        assert_eq!(
            Timestamp::from_seconds(0)
                .minus(Duration::from_secs(9))
                .seconds(),
            0
        );
        assert!(Period::new(202_613).is_none());
    }

    #[test]
    fn a_month_begins_with_its_first_instant() {
        for (month, begins) in [
            (197_001, "1970-01-01T"),
            (202_402, "2024-02-01T"),
            (202_612, "2026-12-01T"),
            (999_912, "9999-12-01T"),
        ] {
            let month = Period::new(month).unwrap();
            assert_eq!(
                month.begins().rfc3339(),
                format!("{begins}00:00:00.000000Z")
            );
            assert_eq!(month.begins().period(), month);
        }
    }

    #[test]
    fn january_follows_december() {
        let [november, december, january] =
            [202_611, 202_612, 202_701].map(|period| Period::new(period).unwrap());
        assert_eq!((november.next(), december.next()), (december, january));
        assert_eq!(
            (
                january.months_after(november),
                november.months_after(january)
            ),
            (2, 0)
        );
        let last = Period::new(999_912).unwrap();
        assert_eq!(last.next(), last);
    }
}
