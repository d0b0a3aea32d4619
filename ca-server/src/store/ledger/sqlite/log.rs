//! The write-ahead log that lies beside a ledger's file. SQLite applies every valid one that it
//! finds there, also another ledger's, or this one's of another time: a copy that was put back
//! beside a log that was left is served until it breaks, and the log's pages are copied into it. A
//! clean stop leaves no log. One that a crash has left continues its file, and that can be told
//! without reading the file through: from the numbers of their pages here, and from the rows that
//! the log holds in `whole`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::store::ledger::lock::beside;

/// Octets of a log's header, and of each frame's before its page (SQLite's file format, §4.1).
const HEADER: usize = 32;
const FRAME: usize = 24;

/// The page in which SQLite keeps its locks holds nothing.
const LOCKS_AT: u64 = 0x4000_0000;

/// What a valid log adds to a database.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Log {
    page_size: u32,
    /// Pages of the database after the last commit.
    pages: u32,
    /// Each page's row numbers, first and last, if it is a leaf of a table.
    written: BTreeMap<u32, Option<(i64, i64)>>,
}

/// Where the log of a database lies.
pub(super) fn path(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

impl Log {
    /// The log, as far as it is committed; `None` if there is none that SQLite would apply.
    pub(super) fn read(database: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path(database)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => BufReader::with_capacity(1 << 20, opened?),
        };
        Self::of(file)
    }

    fn of(mut file: impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        if !fill(&mut file, &mut header)? {
            return Ok(None);
        }
        let mut sum = match number(&header, 0) {
            0x377f_0682 => Checksum {
                little: true,
                sums: (0, 0),
            },
            0x377f_0683 => Checksum {
                little: false,
                sums: (0, 0),
            },
            _ => return Ok(None),
        };
        sum.add(&header[..24]);
        let page_size = number(&header, 8);
        if sum.sums != (number(&header, 24), number(&header, 28))
            || !page_size.is_power_of_two()
            || !(512..=65_536).contains(&page_size)
        {
            return Ok(None);
        }
        let mut log = Self {
            page_size,
            pages: 0,
            written: BTreeMap::new(),
        };
        let mut uncommitted = BTreeMap::new();
        let mut frame = vec![0; FRAME + page_size as usize];
        while fill(&mut file, &mut frame)? {
            sum.add(&frame[..8]);
            sum.add(&frame[FRAME..]);
            // What follows is of the log's earlier uses.
            if frame[8..16] != header[16..24]
                || sum.sums != (number(&frame, 16), number(&frame, 20))
            {
                break;
            }
            uncommitted.insert(number(&frame, 0), rows(&frame[FRAME..], number(&frame, 0)));
            if number(&frame, 4) > 0 {
                log.pages = number(&frame, 4);
                log.written.append(&mut uncommitted);
            }
        }
        Ok((log.pages > 0).then_some(log))
    }

    /// Whether a file of so many octets can be the one that it continues. When a log begins, the
    /// file is whole; so every page after the file's last one stands in the log, and no page goes
    /// away.
    pub(super) fn continues(&self, octets: u64) -> Result<(), String> {
        let (page, last) = (u64::from(self.page_size), u64::from(self.pages));
        let there = octets / page;
        if there == 0 {
            return Err("the file is missing or empty, and its log is not".into());
        }
        if there > last {
            return Err(format!(
                "the file has {there} pages, and had {last} when the log was written"
            ));
        }
        let missing = (there + 1..=last).find(|at| {
            *at != LOCKS_AT / page + 1
                && u32::try_from(*at).is_ok_and(|at| !self.written.contains_key(&at))
        });
        match missing {
            Some(at) => Err(format!(
                "page {at} stands neither in the file nor in the log"
            )),
            None => Ok(()),
        }
    }

    /// The numbers of rows that stand in it, in ranges that do not touch. Those of other tables are
    /// among them.
    pub(super) fn rows(&self) -> Vec<(i64, i64)> {
        let mut ranges: Vec<(i64, i64)> = self.written.values().flatten().copied().collect();
        ranges.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last)
                }
                _ => merged.push((first, last)),
            }
        }
        merged
    }
}

/// False at the end, also within.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

/// The big-endian number at an offset.
fn number(octets: &[u8], at: usize) -> u32 {
    octets
        .get(at..at + 4)
        .and_then(|four| four.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

/// SQLite's checksum over a log (its file format, §4.2).
struct Checksum {
    little: bool,
    sums: (u32, u32),
}

impl Checksum {
    fn add(&mut self, octets: &[u8]) {
        let word = |four: &[u8]| {
            let four = four.try_into().unwrap_or_default();
            if self.little {
                u32::from_le_bytes(four)
            } else {
                u32::from_be_bytes(four)
            }
        };
        for eight in octets.chunks_exact(8) {
            self.sums.0 = self
                .sums
                .0
                .wrapping_add(word(&eight[..4]))
                .wrapping_add(self.sums.1);
            self.sums.1 = self
                .sums
                .1
                .wrapping_add(word(&eight[4..]))
                .wrapping_add(self.sums.0);
        }
    }
}

/// The first and the last row number of a page that is a leaf of a table (file format, §1.6); the
/// first page holds the schema.
fn rows(page: &[u8], number: u32) -> Option<(i64, i64)> {
    if number == 1 || page.first() != Some(&0x0d) {
        return None;
    }
    let two = |at: usize| {
        page.get(at..at + 2)
            .map(|two| usize::from(two[0]) << 8 | usize::from(two[1]))
    };
    let row = |cell: usize| {
        let (_, after) = varint(page, two(8 + 2 * cell)?)?;
        varint(page, after).map(|(row, _)| row)
    };
    let cells = two(3)?;
    Some((row(0)?, row(cells.checked_sub(1)?)?))
}

/// A number of one to nine octets, and where the next begins.
fn varint(page: &[u8], mut at: usize) -> Option<(i64, usize)> {
    let mut value: u64 = 0;
    for _ in 0..8 {
        let octet = *page.get(at)?;
        at += 1;
        value = value << 7 | u64::from(octet & 0x7f);
        if octet < 0x80 {
            return Some((value.cast_signed(), at));
        }
    }
    Some((
        (value << 8 | u64::from(*page.get(at)?)).cast_signed(),
        at + 1,
    ))
}
