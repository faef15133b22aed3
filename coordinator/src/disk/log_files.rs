//! The files under the log, as raft-engine reaches them: real ones, which
//! remember their first failure, and which a test can make fail.
//!
//! raft-engine panics where an fsync fails, and closes its files (writing to
//! them again) when it is dropped. Here a failure is kept, raft-engine hears of
//! none, and [`super::log_store::LogStore`] looks after each write: the node
//! ends with a message, and nothing touches the files any more.

use std::{
    fmt,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    sync::{Arc, OnceLock},
};

use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};

type Raw = <DefaultFileSystem as FileSystem>::Handle;
type RawFile = <DefaultFileSystem as FileSystem>::Reader;

/// What is about to be done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new file.
    Create,
    /// Space is reserved.
    Allocate,
    /// So many bytes are written.
    Write(usize),
    /// What was written shall reach the disk.
    Sync,
}

/// Asked before each operation; an error takes its place.
pub type Fault = dyn Fn(Operation) -> io::Result<()> + Send + Sync;

/// The log's files.
#[derive(Clone, Default)]
pub struct LogFiles {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    failed: OnceLock<String>,
    fault: Option<Box<Fault>>,
}

impl fmt::Debug for LogFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogFiles")
            .field("failed", &self.shared.failed)
            .finish_non_exhaustive()
    }
}

impl LogFiles {
    /// Files that fail when `fault` says so: for tests.
    pub fn failing(fault: impl Fn(Operation) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                failed: OnceLock::new(),
                fault: Some(Box::new(fault)),
            }),
        }
    }

    /// The first failure; nothing is written any more after it.
    pub fn failed(&self) -> Option<&str> {
        self.shared.failed.get().map(String::as_str)
    }

    /// Records a failure that was found elsewhere.
    pub(super) fn fail(&self, why: String) {
        let _ = self.shared.failed.set(why);
    }
}

impl Shared {
    fn ask(&self, operation: Operation) -> io::Result<()> {
        if self.failed.get().is_some() {
            return Err(io::Error::other("the log has failed before"));
        }
        self.fault.as_ref().map_or(Ok(()), |fault| fault(operation))
    }
}

impl FileSystem for LogFiles {
    type Handle = LogFile;
    type Reader = RawFile;
    type Writer = LogWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<LogFile> {
        self.shared.ask(Operation::Create)?;
        self.handle(DefaultFileSystem.create(path)?)
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<LogFile> {
        self.handle(DefaultFileSystem.open(path, permission)?)
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        DefaultFileSystem.rename(from, to)
    }

    fn new_reader(&self, file: Arc<LogFile>) -> io::Result<RawFile> {
        DefaultFileSystem.new_reader(file.raw.clone())
    }

    fn new_writer(&self, file: Arc<LogFile>) -> io::Result<LogWriter> {
        Ok(LogWriter {
            raw: DefaultFileSystem.new_writer(file.raw.clone())?,
            shared: self.shared.clone(),
        })
    }
}

impl LogFiles {
    fn handle(&self, raw: Raw) -> io::Result<LogFile> {
        Ok(LogFile {
            raw: Arc::new(raw),
            shared: self.shared.clone(),
        })
    }
}

/// An open file of the log.
pub struct LogFile {
    raw: Arc<Raw>,
    shared: Arc<Shared>,
}

impl Handle for LogFile {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        if self.shared.failed.get().is_some() {
            return Ok(());
        }
        Handle::truncate(&*self.raw, offset)
    }

    fn file_size(&self) -> io::Result<usize> {
        self.raw.file_size()
    }

    /// Always `Ok`: raft-engine would panic. [`LogFiles::failed`] tells.
    fn sync(&self) -> io::Result<()> {
        if self.shared.failed.get().is_some() {
            return Ok(());
        }
        let synced = self
            .shared
            .ask(Operation::Sync)
            .and_then(|()| self.raw.sync());
        if let Err(error) = synced {
            let _ = self.shared.failed.set(describe(&error));
        }
        Ok(())
    }
}

/// Writes to an open file of the log.
pub struct LogWriter {
    raw: RawFile,
    shared: Arc<Shared>,
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.shared.ask(Operation::Write(bytes.len()))?;
        self.raw.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.raw.flush()
    }
}

impl Seek for LogWriter {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.raw.seek(to)
    }
}

impl WriteExt for LogWriter {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        if self.shared.failed.get().is_some() {
            return Ok(());
        }
        self.raw.truncate(offset)
    }

    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        self.shared.ask(Operation::Allocate)?;
        self.raw.allocate(offset, size)
    }
}

/// raft-engine's errors name the call; what went wrong is in their kind.
fn describe(error: &io::Error) -> String {
    format!("{error}: {}", error.kind())
}
