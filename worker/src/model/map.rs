//! A file mapped into memory.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

use super::ModelError;

/// Bytes hashed between two releases of pages.
const CHUNK: usize = 8 << 20;

/// A read-only map of a whole file.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps `path`.
    pub(crate) fn open(path: &Path) -> Result<MappedFile, ModelError> {
        let io = |source| ModelError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only, and model files are replaced by rename, never written in place
        // (`pull` holds to it). Whoever truncates one under us ends the process with SIGBUS.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(MappedFile {
            path: path.to_owned(),
            map,
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its content.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The pages wholly inside `range` will not be read again soon: they need not count as this process's
    /// memory.
    pub(crate) fn release(&self, range: Range<usize>) {
        // SAFETY: the map is file-backed and read-only: dropped pages are read again from the file.
        // A refusal costs memory only.
        let _ = unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
    }

    /// blake3 of the content.
    pub(crate) fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (index, chunk) in self.map.chunks(CHUNK).enumerate() {
            hasher.update(chunk);
            self.release(index * CHUNK..index * CHUNK + chunk.len());
        }
        hasher.finalize()
    }
}
