//! `conclave snapshot`: the whole state in one file, and a cluster out of it.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use conclave_coordinator::{
    offline::restore::{self, Checked, RestoreError},
    snapshot_file::{Checker, Contents, MAGIC, SnapshotFileError, Step, write_frame},
};
use conclave_proto::v1::{SaveSnapshotRequest, SnapshotFrame};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tonic::{Request, Status, Streaming};

use super::cluster::Print;
use crate::{
    args::Global,
    client::{Client, Link, may_retry, reason},
    error::CliError,
    out,
    refusal::is_misfit,
    view::time::utc,
};

/// How long the cluster may be silent between two frames.
const SILENCE: Duration = Duration::from_secs(60);

/// What to do with a snapshot.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save the state of a running cluster to a file
    Save(SaveArgs),
    /// Read a file, check every byte of it, say what it holds
    Status(StatusArgs),
    /// Begin a new cluster on a file; no coordinator may run on the folder
    Restore(RestoreArgs),
}

/// Flags of `snapshot save`.
#[derive(Debug, Args)]
#[command(after_help = "\
Any endpoint may be asked; the state is the one of a linearizable read, and the
payloads that it names are in the file. It also holds the cluster's secret
keys, so the file is readable by its owner only, and the call needs a token of
role operator.

Examples:
  conclave snapshot save conclave-$(date +%F).snapshot
  conclave snapshot save nightly.snapshot --force --json --token-file operator.token")]
pub struct SaveArgs {
    /// Where to write
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace FILE if it is there
    #[arg(long)]
    pub force: bool,
    /// How to print.
    #[command(flatten)]
    pub print: Print,
}

/// Flags of `snapshot status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Needs no cluster. Exit status 1 if the file is damaged or cut off.

Example:
  conclave snapshot status nightly.snapshot")]
pub struct StatusArgs {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How to print.
    #[command(flatten)]
    pub print: Print,
}

/// Flags of `snapshot restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Begins a NEW cluster with one voter: jobs, their ids, idempotency keys, audit
records and the key that signs them are those of the snapshot; what ran starts
again. Members and workers of the old cluster are not taken over, and cannot
disturb it. Stop the old cluster first if it still runs: both would answer for
the same jobs.

Example, on the first machine; then start two blank coordinators and add them:
  conclave snapshot restore nightly.snapshot --data-dir /var/lib/conclave
  conclave coordinator --config coordinator.toml
  conclave cluster add 10.0.0.6:7400
  conclave cluster add 10.0.0.7:7400")]
pub struct RestoreArgs {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The data folder of the new cluster's first member; empty or absent
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// How to print.
    #[command(flatten)]
    pub print: Print,
}

/// Does it.
pub async fn run(global: &Global, command: SnapshotCommand) -> Result<(), CliError> {
    match command {
        SnapshotCommand::Save(args) => save(&global.client()?, args).await,
        SnapshotCommand::Status(args) => {
            let checked = restore::check(&args.file).map_err(refused)?;
            print(&args.file, "holds", &checked, args.print)
        }
        SnapshotCommand::Restore(args) => restore(&args),
    }
}

async fn save(client: &Client, args: SaveArgs) -> Result<(), CliError> {
    if args.file.exists() && !args.file.is_file() {
        return Err(CliError::usage(format!(
            "{} is no regular file: name one",
            args.file.display()
        )));
    }
    if args.file.exists() && !args.force {
        return Err(CliError::usage(format!(
            "{} is there already: name another file, or replace it with --force",
            args.file.display()
        )));
    }
    // Before the cluster is asked: a folder that cannot be written is known now.
    let mut target = Target::create(&args.file)?;
    let frames = begin(client).await?;
    let contents = receive(frames, &mut target).await?;
    let (bytes, blake3) = target.finish()?;
    let checked = Checked {
        contents,
        bytes,
        blake3,
    };
    print(&args.file, "saved", &checked, args.print)
}

/// Begins the stream at the first endpoint that can.
async fn begin(client: &Client) -> Result<Streaming<SnapshotFrame>, CliError> {
    const CALL: &str = "SaveSnapshot";
    let mut last: Option<(Link, Status)> = None;
    for link in client.links() {
        let mut request = Request::new(SaveSnapshotRequest {});
        request.set_timeout(client.timeout());
        let mut service = link.cluster();
        let call = tokio::time::timeout(client.timeout(), service.save_snapshot(request));
        let status = match call.await {
            Ok(Ok(stream)) => return Ok(stream.into_inner()),
            Ok(Err(status)) if !may_retry(&status) => {
                return Err(CliError::Refused {
                    call: CALL,
                    status: Box::new(status),
                });
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer in time"),
        };
        last = Some((link.clone(), status));
    }
    Err(match last {
        Some((link, status)) if is_misfit(&status) => client.misfit(CALL, &link, &status),
        Some((link, status)) => client.unreachable(CALL, &link, &status),
        None => CliError::usage("no endpoint given: use --endpoint HOST:PORT"),
    })
}

/// Writes the frames as they come, each of them checked.
async fn receive(
    mut frames: Streaming<SnapshotFrame>,
    target: &mut Target,
) -> Result<Contents, CliError> {
    let mut checker = Checker::default();
    let bar = ProgressBar::no_length();
    bar.set_style(style());
    loop {
        let next = tokio::time::timeout(SILENCE, frames.message()).await;
        let next = next.unwrap_or_else(|_| Err(Status::deadline_exceeded("it fell silent")));
        let frame = next.map_err(|status| {
            CliError::Unavailable(format!(
                "SaveSnapshot: it broke off ({}); nothing was saved: try again",
                reason(&status)
            ))
        })?;
        let Some(frame) = frame else {
            return Err(CliError::Unavailable(
                "SaveSnapshot: it ended before its end; nothing was saved: try again".to_owned(),
            ));
        };
        let step = checker.take(&frame).map_err(damaged)?;
        target.frame(&frame)?;
        bar.inc(frame.item.len() as u64);
        if let (Some(header), None) = (checker.header(), bar.length()) {
            let state = header.manifest.as_ref().map_or(0, |m| m.length);
            bar.set_length(state + header.payload_bytes);
        }
        if let Step::Whole(contents) = step {
            bar.finish_and_clear();
            return Ok(*contents);
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("saving {bytes} of {total_bytes} {wide_bar} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn damaged(error: SnapshotFileError) -> CliError {
    CliError::Unavailable(format!(
        "SaveSnapshot: {error}; nothing was saved: try again, or at another --endpoint"
    ))
}

/// A file that appears whole or not at all.
struct Target {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
    done: bool,
}

impl Target {
    fn create(path: &Path) -> Result<Self, CliError> {
        let mut name = path
            .file_name()
            .map(ToOwned::to_owned)
            .ok_or_else(|| CliError::usage(format!("{} is no name of a file", path.display())))?;
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        // The signing key is in it.
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary);
        let file = opened.map_err(|e| CliError::file(&temporary, e))?;
        let mut target = Self {
            path: path.to_owned(),
            temporary,
            file: BufWriter::new(file),
            hasher: blake3::Hasher::new(),
            bytes: 0,
            done: false,
        };
        let begun = target.write_all(MAGIC);
        begun.map_err(|e| CliError::file(&target.temporary, e))?;
        Ok(target)
    }

    fn frame(&mut self, frame: &SnapshotFrame) -> Result<(), CliError> {
        let written = write_frame(self, frame);
        written.map_err(|e| CliError::file(&self.temporary, e))
    }

    /// Length and blake3 of the file, which is durable and in its place.
    fn finish(mut self) -> Result<(u64, [u8; 32]), CliError> {
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let stored = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .and_then(|()| File::open(folder)?.sync_all());
        stored.map_err(|e| CliError::file(&self.path, e))?;
        self.done = true;
        Ok((self.bytes, *self.hasher.finalize().as_bytes()))
    }
}

impl Write for Target {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        self.hasher.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn restore(args: &RestoreArgs) -> Result<(), CliError> {
    let done = restore::restore(&args.file, &args.data_dir).map_err(refused)?;
    if args.print.json {
        return out::document(&json!({
            "cluster_id": done.cluster_id,
            "from_cluster_id": done.from_cluster_id,
            "node_id": done.node_id.to_string(),
            "index": done.index,
            "term": done.term,
            "jobs": done.header.jobs,
            "live_jobs": done.header.live_jobs,
            "oldest_ended_unix_ms": done.oldest_ended_unix_ms,
        }));
    }
    out::line(format!(
        "restored {} jobs ({} live) of {}, saved {}\n  \
         new cluster {}  voter {:016x}  index {}  term {}",
        done.header.jobs,
        done.header.live_jobs,
        done.from_cluster_id,
        utc(done.header.unix_ms),
        done.cluster_id,
        done.node_id,
        done.index,
        done.term,
    ))?;
    if let Some(oldest) = done.oldest_ended_unix_ms {
        out::note(format!(
            "The oldest ended job ended {}. Jobs older than `retention_hours` (72 by default) go \
             soon after the start: raise it before, to keep them.",
            utc(oldest)
        ));
    }
    out::note(format!(
        "Next: `conclave coordinator --data-dir {}` with this machine's settings, then \
         `conclave cluster add HOST:PORT` for each further member, on an empty folder. The key \
         that signs audits is the old cluster's: if that one still runs, stop it.",
        args.data_dir.display()
    ));
    Ok(())
}

fn print(path: &Path, verb: &str, checked: &Checked, print: Print) -> Result<(), CliError> {
    let header = &checked.contents.header;
    let manifest = &checked.contents.manifest;
    let blake3 = hex::encode(checked.blake3);
    if print.json {
        return out::document(&document(path, checked));
    }
    out::line(format!(
        "{} {verb} {} jobs ({} live) and {} payloads of cluster {}\n  \
         index {}  term {}  log v{}  saved {} by {:016x}\n  \
         {} bytes  blake3 {blake3}",
        path.display(),
        header.jobs,
        header.live_jobs,
        header.payloads,
        manifest.cluster_id,
        manifest.index,
        manifest.term,
        manifest.log_version,
        utc(header.unix_ms),
        header.node_id,
        checked.bytes,
    ))?;
    if io::stdout().is_terminal() {
        out::note("It holds the cluster's secret keys: keep it from other eyes.");
    }
    Ok(())
}

fn document(path: &Path, checked: &Checked) -> Value {
    let header = &checked.contents.header;
    let manifest = &checked.contents.manifest;
    json!({
        "file": path.display().to_string(),
        "format_version": header.format_version,
        "cluster_id": manifest.cluster_id,
        "index": manifest.index,
        "term": manifest.term,
        "log_version": manifest.log_version,
        "jobs": header.jobs,
        "live_jobs": header.live_jobs,
        "payloads": header.payloads,
        "payload_bytes": header.payload_bytes,
        "saved_unix_ms": header.unix_ms,
        "saved_by": header.node_id.to_string(),
        "version": header.version,
        "public_key": hex::encode(&header.public_key),
        "bytes": checked.bytes,
        "blake3": hex::encode(checked.blake3),
    })
}

/// A file that is no good is a finding; a folder that may not be used, a wrong command.
fn refused(error: RestoreError) -> CliError {
    match error {
        RestoreError::File {
            source: SnapshotFileError::Io(source),
            path,
        } => CliError::usage(format!("{}: {source}", path.display())),
        RestoreError::Io(path, source) => CliError::File { path, source },
        found @ RestoreError::File { .. } => CliError::Differs(found.to_string()),
        other => CliError::usage(other.to_string()),
    }
}
