//! Reads the log's files before raft-engine does, and decides what a damaged
//! record means: a write that a crash cut short, which was never acknowledged
//! and goes; or damage to what was synced, which nobody may start on.
//!
//! raft-engine itself drops everything behind the first record of the last file
//! that does not read, be it votes. What tells the two apart is the *mark* that
//! every batch of ours carries: its number, and the highest number that was
//! known to be on the disk when it was written. A whole record behind the
//! damage whose mark covers it proves the loss.
//!
//! Not seen here: whole records missing from the very end (a file cut between
//! two records, an old copy of the folder). A leader that was told more finds
//! that out (`NodeError::LogLost` of the core).

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use super::sync_folder;

/// Key of the mark in a batch.
pub(super) const MARK: &[u8] = b"mark";
/// How every file begins: the magic, format version 2, no alignment.
const HEADER: &[u8] =
    b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0";
/// Length and kind, place of the footer: 8 bytes each.
const RECORD_HEADER: usize = 16;
/// A crc32.
const CHECKSUM: usize = 4;

/// Where a batch stands in the row of all batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its own number, from 1.
    pub number: u64,
    /// Highest number that was on the disk when it was written.
    pub synced: u64,
}

impl Mark {
    pub(super) fn encode(self) -> Vec<u8> {
        [self.number.to_le_bytes(), self.synced.to_le_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (number, synced) = bytes.split_at_checked(8)?;
        Some(Self {
            number: u64::from_le_bytes(number.try_into().ok()?),
            synced: u64::from_le_bytes(synced.try_into().ok()?),
        })
    }
}

/// What was found and done.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// The last mark; 0 in a new folder and in one of an older version.
    pub last: Mark,
    /// Bytes that a crash left behind the last whole record; they are gone.
    pub torn: usize,
    /// There is a whole record.
    pub records: bool,
}

/// Why a log cannot be used.
#[derive(Debug)]
pub(super) enum ScanError {
    Io(io::Error),
    Damaged(Damage),
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A record that was on the disk and does not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where the damaged record begins, bytes.
    pub offset: usize,
    /// Last entry that was read before it; 0: none.
    pub entry: u64,
}

/// Checks every file of the log in `folder`, and cuts off what a crash left.
pub(super) fn scan(folder: &Path) -> Result<Scanned, ScanError> {
    let mut found = Scanned::default();
    let mut entry = 0;
    for suffix in [".rewrite", ".raftlog"] {
        let files = files(folder, suffix)?;
        for (i, (number, path)) in files.iter().enumerate() {
            let bytes = fs::read(path)?;
            // Every record is signed with its file's number.
            #[allow(clippy::cast_possible_truncation, reason = "as raft-engine signs")]
            let mut reader = Reader::new(&bytes, *number as u32);
            reader.entry = entry;
            reader.read();
            entry = reader.entry;
            let damaged = || {
                ScanError::Damaged(Damage {
                    file: path.clone(),
                    offset: reader.at,
                    entry,
                })
            };
            let logged = suffix == ".raftlog";
            if logged {
                found.last = reader.mark.unwrap_or(found.last);
            }
            found.records |= reader.at > HEADER.len();
            if reader.at != 0 && reader.at == bytes.len() {
                continue;
            }
            // A file is synced before the next one is begun.
            if i + 1 < files.len() || reader.loss_is_proven(found.last, logged) {
                return Err(damaged());
            }
            found.torn += cut(folder, path, &bytes, reader.at)?;
        }
    }
    Ok(found)
}

/// Cuts a torn end off; returns how many bytes of it were not just reserved.
fn cut(folder: &Path, path: &Path, bytes: &[u8], at: usize) -> io::Result<usize> {
    if at == 0 {
        // Not even its header came to the disk, and it comes before all else.
        fs::remove_file(path)?;
        sync_folder(folder)?;
    } else {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(at as u64)?;
        File::sync_all(&file)?;
    }
    let torn = bytes[at..].iter().rposition(|byte| *byte != 0);
    Ok(torn.map_or(0, |last| last + 1))
}

/// The files that raft-engine reads, in order: behind the last gap in their
/// numbers (files that were done with go one by one).
fn files(folder: &Path, suffix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    let folder = match fs::read_dir(folder) {
        Ok(folder) => folder,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(files),
        Err(e) => return Err(e),
    };
    for entry in folder {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let number = name.get(..16).and_then(|n| n.parse().ok());
        if let Some(number) = number.filter(|_| name.ends_with(suffix)) {
            files.push((number, path));
        }
    }
    files.sort();
    let gap = files.windows(2).rposition(|w| w[1].0 != w[0].0 + 1);
    files.drain(..gap.map_or(0, |i| i + 1));
    Ok(files)
}

/// One file, read record by record.
struct Reader<'a> {
    bytes: &'a [u8],
    signature: u32,
    /// End of what is whole.
    at: usize,
    /// Of the last whole record.
    mark: Option<Mark>,
    /// The last entry that was read.
    entry: u64,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], signature: u32) -> Self {
        Self {
            bytes,
            signature,
            at: 0,
            mark: None,
            entry: 0,
        }
    }

    fn read(&mut self) {
        if !self.bytes.starts_with(HEADER) {
            return;
        }
        self.at = HEADER.len();
        while let Some(record) = record(self.bytes, self.at, self.signature) {
            self.at = record.end;
            self.mark = record.mark.or(self.mark);
            self.entry = record.entry.unwrap_or(self.entry);
        }
    }

    /// True if a whole record behind the damage says that what is damaged had
    /// reached the disk. In the rewritten files, whose records have no marks,
    /// any whole record says so.
    fn loss_is_proven(&self, last: Mark, logged: bool) -> bool {
        let damaged = last.number + 1;
        (self.at + 1..self.bytes.len().saturating_sub(RECORD_HEADER))
            .filter_map(|at| record(self.bytes, at, self.signature))
            .any(|behind| {
                // A file's header is synced before its first record is written.
                let sure = self.at == 0 || !logged || behind.mark.is_none();
                sure || behind.mark.is_some_and(|mark| mark.synced >= damaged)
            })
    }
}

/// A whole record.
struct Record {
    end: usize,
    mark: Option<Mark>,
    entry: Option<u64>,
}

/// Reads the record at `at`; `None` if it is not whole.
///
/// `{ u56 length | u8 kind | u64 place of the footer }`, big-endian; entries and
/// their crc32, if there are any; the footer and its crc32, signed. The kind has
/// no checksum: it must fit the entries' length, which the footer tells.
fn record(bytes: &[u8], at: usize, signature: u32) -> Option<Record> {
    let bytes = &bytes[at..];
    let head = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
    let footer = u64::from_be_bytes(bytes.get(8..RECORD_HEADER)?.try_into().ok()?);
    let (length, kind) = (usize::try_from(head >> 8).ok()?, head & 0xff);
    let footer = usize::try_from(footer).ok()?;
    if kind > 1 || footer < RECORD_HEADER || footer > length {
        return None;
    }
    let record = bytes.get(..length)?;
    let items = Items::read(checked(&record[footer..], signature)?)?;
    let entries = &record[RECORD_HEADER..footer];
    if entries.is_empty() {
        if items.length != 0 {
            return None;
        }
    } else {
        let entries = checked(entries, 0)?;
        let told = match kind {
            0 => entries.len() as u64,
            // Compressed: the length of what it was stands before it.
            _ => u64::from(u32::from_le_bytes(entries.get(..4)?.try_into().ok()?)),
        };
        if told != items.length {
            return None;
        }
    }
    Some(Record {
        end: at + length,
        mark: items.mark,
        entry: items.entry,
    })
}

/// The content before a right checksum.
fn checked(bytes: &[u8], signature: u32) -> Option<&[u8]> {
    let (content, sum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
    let sum = u32::from_le_bytes(sum.try_into().ok()?) ^ signature;
    (!content.is_empty() && crc32fast::hash(content) == sum).then_some(content)
}

/// What a footer tells of its record.
#[derive(Default)]
struct Items {
    /// Bytes of all entries.
    length: u64,
    mark: Option<Mark>,
    /// Index of the last entry.
    entry: Option<u64>,
}

impl Items {
    /// `{ count | (group | type | item)... }`, numbers as varints: entries (1) are
    /// their count, the first one's index and where each one ends; a command (2) is
    /// clean (1) or compact (2) to an index; a value (3) is put (1) or deleted (2).
    fn read(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let mut items = Self::default();
        for _ in 0..varint(bytes)? {
            let _group = varint(bytes)?;
            match byte(bytes)? {
                1 => items.entries(bytes)?,
                2 => match byte(bytes)? {
                    1 => {}
                    2 => drop(varint(bytes)?),
                    _ => return None,
                },
                3 => {
                    let put = match byte(bytes)? {
                        1 => true,
                        2 => false,
                        _ => return None,
                    };
                    let key = slice(bytes)?;
                    if put {
                        let value = slice(bytes)?;
                        if key == MARK {
                            items.mark = Some(Mark::decode(value)?);
                        }
                    }
                }
                _ => return None,
            }
        }
        bytes.is_empty().then_some(items)
    }

    fn entries(&mut self, bytes: &mut &[u8]) -> Option<()> {
        let count = varint(bytes)?;
        if count == 0 {
            return Some(());
        }
        let first = varint(bytes)?;
        for _ in 0..count {
            let end = varint(bytes)?;
            if end < self.length {
                return None;
            }
            self.length = end;
        }
        self.entry = Some(first.checked_add(count - 1)?);
        Some(())
    }
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    bytes.split_off_first().copied()
}

fn slice<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint(bytes)?).ok()?;
    bytes.split_off(..length)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let next = byte(bytes)?;
        value |= u64::from(next & 0x7f) << shift;
        if next < 0x80 {
            return Some(value);
        }
    }
    None
}
