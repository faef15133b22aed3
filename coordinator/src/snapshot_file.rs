//! A saved snapshot: the stream of `SaveSnapshot`, and the file that it becomes.
//!
//! The format stands in `snapshot.proto`. Frames are chained: a changed,
//! missing, repeated or misplaced byte anywhere is found, and a file that was
//! cut off lacks its end. Chunks are small, so that a reader holds no more than
//! the state and one payload.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Read, Write},
};

use conclave_coordinator_core::{State, snapshot};
use conclave_proto::v1::{
    SnapshotEnd, SnapshotFrame, SnapshotHeader, SnapshotItem, SnapshotManifest, SnapshotPayload,
    snapshot_item::Item,
};
use prost::Message as _;

use crate::disk::blobs::Hash;

/// The first bytes of every file.
pub const MAGIC: &[u8; 18] = b"conclave-snapshot\n";
/// The format that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of state or payload in one frame.
pub const CHUNK: usize = 256 << 10;
/// Longest frame that is read, bytes.
const LONGEST: u64 = 1 << 20;

/// Why a snapshot is no good.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    /// The first bytes are others.
    #[error("this is no snapshot of `conclave snapshot save`")]
    Foreign,
    /// A later program wrote it.
    #[error(
        "the snapshot has format {found}, this program reads up to {FORMAT_VERSION}: use the \
         version that saved it, or a later one"
    )]
    Newer {
        /// Its format.
        found: u32,
    },
    /// It ends before its end.
    #[error(
        "the snapshot is cut off after {frames} whole frames: it was not saved, or not copied, to its \
         end; copy or save it again, or take another file"
    )]
    CutOff {
        /// Frames that are whole.
        frames: u64,
    },
    /// It goes on behind its end.
    #[error(
        "the snapshot's {frames} frames are whole, and bytes were appended behind them: take an \
         untouched copy of the file, or another one"
    )]
    Trailing {
        /// Frames of the snapshot, the end included.
        frames: u64,
    },
    /// A byte of it is not what was saved.
    #[error(
        "the snapshot is damaged at frame {frame} ({why}): copy or save it again, or take another file"
    )]
    Damaged {
        /// Counted from 0.
        frame: u64,
        /// What is wrong.
        why: String,
    },
    /// The state in it.
    #[error(transparent)]
    State(#[from] snapshot::SnapshotError),
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Numbers and chains the frames of one snapshot.
#[derive(Debug, Default)]
pub struct Chain {
    last: [u8; 32],
    frames: u64,
}

impl Chain {
    /// The next frame.
    pub fn frame(&mut self, item: Item) -> SnapshotFrame {
        let item = SnapshotItem { item: Some(item) }.encode_to_vec();
        let digest = self.advance(&item);
        SnapshotFrame {
            item,
            digest: digest.to_vec(),
        }
    }

    /// The last frame.
    pub fn end(&mut self) -> SnapshotFrame {
        let frames = self.frames;
        self.frame(Item::End(SnapshotEnd { frames }))
    }

    fn advance(&mut self, item: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.last).update(item);
        self.last = *hasher.finalize().as_bytes();
        self.frames += 1;
        self.last
    }
}

/// What a whole snapshot holds.
#[derive(Debug)]
pub struct Contents {
    /// Its header.
    pub header: SnapshotHeader,
    /// Describes the state.
    pub manifest: SnapshotManifest,
    /// The state.
    pub state: State,
    /// Stands for the whole snapshot.
    pub digest: [u8; 32],
    /// Frames, the end included.
    pub frames: u64,
}

/// What a frame completed.
#[derive(Debug)]
pub enum Step {
    /// Nothing yet.
    More,
    /// A payload, checked against its hash.
    Payload(Hash, Vec<u8>),
    /// All of it: nothing may follow.
    Whole(Box<Contents>),
}

/// Takes frames in order and finds whatever is wrong with them.
#[derive(Debug, Default)]
pub struct Checker {
    chain: Chain,
    header: Option<(SnapshotHeader, SnapshotManifest)>,
    bytes: Vec<u8>,
    state: Option<State>,
    /// Payloads that the state names and that have not come.
    missing: BTreeSet<Hash>,
    payload: Option<(Hash, Vec<u8>)>,
    longest: u64,
    ended: bool,
}

impl Checker {
    /// The header, once it came.
    pub fn header(&self) -> Option<&SnapshotHeader> {
        self.header.as_ref().map(|(header, _)| header)
    }

    /// Takes the next frame.
    ///
    /// # Errors
    /// [`SnapshotFileError`]; the snapshot is of no use then.
    pub fn take(&mut self, frame: &SnapshotFrame) -> Result<Step, SnapshotFileError> {
        if self.ended {
            return Err(self.damaged("something follows the end"));
        }
        let at = self.chain.frames;
        if self.chain.advance(&frame.item).as_slice() != frame.digest {
            self.chain.frames = at;
            return Err(self.damaged("its digest does not fit"));
        }
        let item = SnapshotItem::decode(frame.item.as_slice())
            .map_err(|e| self.damaged(&e.to_string()))?
            .item;
        match (item, self.header.is_some()) {
            (Some(Item::Header(header)), false) => self.begin(header).map(|()| Step::More),
            (Some(Item::State(data)), true) if self.state.is_none() => self.state(&data),
            (Some(Item::Payload(part)), true) if self.state.is_some() => self.payload(part),
            (Some(Item::End(end)), true) if self.state.is_some() => self.end(&end),
            _ => Err(self.damaged("an item stands where none of its kind may")),
        }
    }

    fn begin(&mut self, header: SnapshotHeader) -> Result<(), SnapshotFileError> {
        if header.format_version > FORMAT_VERSION {
            let found = header.format_version;
            return Err(SnapshotFileError::Newer { found });
        }
        let Some(manifest) = header.manifest.clone() else {
            return Err(self.damaged("the header has no manifest"));
        };
        // Refused before its bytes are read: what they mean is not known here.
        let manifest = snapshot::manifest(&manifest.encode_to_vec())?;
        self.header = Some((header, manifest));
        Ok(())
    }

    fn state(&mut self, data: &[u8]) -> Result<Step, SnapshotFileError> {
        self.bytes.extend_from_slice(data);
        let Some((_, manifest)) = &self.header else {
            return Ok(Step::More);
        };
        if (self.bytes.len() as u64) < manifest.length {
            return Ok(Step::More);
        }
        let state = snapshot::decode(manifest, &self.bytes)?;
        self.bytes = Vec::new();
        let live = state.live_blobs();
        self.longest = live.values().copied().max().unwrap_or(0);
        self.missing = live.into_keys().collect();
        self.state = Some(state);
        Ok(Step::More)
    }

    fn payload(&mut self, part: SnapshotPayload) -> Result<Step, SnapshotFileError> {
        let hash: Hash = match part.hash.as_slice().try_into() {
            Ok(hash) if self.missing.contains(&hash) => hash,
            _ => return Err(self.damaged("a payload that the state does not name")),
        };
        let (begun, mut data) = self.payload.take().unwrap_or((hash, Vec::new()));
        data.extend_from_slice(&part.data);
        if begun != hash || data.len() as u64 > self.longest {
            return Err(self.damaged("a payload's parts do not fit together"));
        }
        if !part.last {
            self.payload = Some((hash, data));
            return Ok(Step::More);
        }
        if blake3::hash(&data).as_bytes() != &hash {
            return Err(self.damaged("a payload is not what its hash says"));
        }
        self.missing.remove(&hash);
        Ok(Step::Payload(hash, data))
    }

    fn end(&mut self, end: &SnapshotEnd) -> Result<Step, SnapshotFileError> {
        if let Some(hash) = self.missing.first() {
            let why = format!("payload {} is not in it", hex::encode(hash));
            return Err(self.damaged(&why));
        }
        if end.frames + 1 != self.chain.frames || self.payload.is_some() {
            return Err(self.damaged("the end counts other frames"));
        }
        self.ended = true;
        let (Some((header, manifest)), Some(state)) = (self.header.clone(), self.state.take())
        else {
            return Err(self.damaged("the end stands too early"));
        };
        Ok(Step::Whole(Box::new(Contents {
            header,
            manifest,
            state,
            digest: self.chain.last,
            frames: self.chain.frames,
        })))
    }

    fn damaged(&self, why: &str) -> SnapshotFileError {
        SnapshotFileError::Damaged {
            frame: self.chain.frames,
            why: why.to_owned(),
        }
    }
}

/// Appends a frame to a file that began with [`MAGIC`].
///
/// # Errors
/// What the file system says.
pub fn write_frame(file: &mut impl Write, frame: &SnapshotFrame) -> io::Result<()> {
    file.write_all(&frame.encode_length_delimited_to_vec())
}

/// Reads a whole file and checks every byte of it. Each payload goes to
/// `payload` when it is complete; whoever stores them reads the file twice, and
/// stores nothing of one that turns out to be damaged.
///
/// # Errors
/// [`SnapshotFileError`], or what `payload` says.
pub fn read(
    file: impl Read,
    payload: &mut dyn FnMut(Hash, Vec<u8>) -> io::Result<()>,
) -> Result<Contents, SnapshotFileError> {
    let mut file = BufReader::with_capacity(CHUNK, file);
    let mut magic = [0_u8; MAGIC.len()];
    match file.read_exact(&mut magic) {
        Ok(()) if &magic == MAGIC => {}
        Ok(()) => return Err(SnapshotFileError::Foreign),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(SnapshotFileError::Foreign);
        }
        Err(e) => return Err(e.into()),
    }
    let mut checker = Checker::default();
    let mut whole = None;
    while let Some(frame) = next_frame(&mut file, &checker)? {
        match checker.take(&frame)? {
            Step::More => {}
            Step::Payload(hash, data) => payload(hash, data)?,
            Step::Whole(contents) => {
                if !file.fill_buf()?.is_empty() {
                    let frames = contents.frames;
                    return Err(SnapshotFileError::Trailing { frames });
                }
                whole = Some(*contents);
            }
        }
    }
    whole.ok_or(SnapshotFileError::CutOff {
        frames: checker.chain.frames,
    })
}

/// The next frame; `None` at the end of the file.
fn next_frame(
    file: &mut impl BufRead,
    checker: &Checker,
) -> Result<Option<SnapshotFrame>, SnapshotFileError> {
    let cut_off = || SnapshotFileError::CutOff {
        frames: checker.chain.frames,
    };
    let mut length = 0_u64;
    for shift in (0..).step_by(7) {
        let mut byte = [0_u8];
        if file.read(&mut byte)? == 0 {
            return if shift == 0 { Ok(None) } else { Err(cut_off()) };
        }
        length |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            break;
        }
        if shift > 21 {
            return Err(checker.damaged("a frame without a sound length"));
        }
    }
    if length > LONGEST {
        return Err(checker.damaged("a frame is too long"));
    }
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < length {
        return Err(cut_off());
    }
    SnapshotFrame::decode(bytes.as_slice())
        .map(Some)
        .map_err(|e| checker.damaged(&e.to_string()))
}

#[cfg(test)]
mod tests;
