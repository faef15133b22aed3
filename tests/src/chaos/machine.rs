//! What the machine gives: root, namespaces, firewalls, loop devices, another
//! clock. A scenario that lacks something is skipped, loudly.
//!
//! As root the runner moves into namespaces of its own (network, mounts,
//! processes), so that whatever ends it, nothing of it stays behind.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Ground;

/// Set in the environment once the runner is in its own namespaces.
const INSIDE: &str = "CONCLAVE_CHAOS_INSIDE";
/// Where Debian and others put libfaketime.
const FAKETIME: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];

/// Says something to whoever watches the run.
#[allow(clippy::print_stderr, reason = "the runner's story goes there")]
pub fn note(text: &str) {
    eprintln!("{text}");
}

/// Runs a program to its end.
///
/// # Errors
/// The command with what it said.
pub fn command(line: &str) -> Result<String, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (program, args) = words.split_first().ok_or("an empty command")?;
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("`{line}`: {said}")),
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Where libfaketime is.
pub fn faketime() -> Option<PathBuf> {
    FAKETIME
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
}

/// Moves this program into namespaces of its own, if it may; returns in there.
/// Without root nothing changes, and the scenarios that need it are skipped.
///
/// # Errors
/// What could not be set up inside.
pub fn enter() -> Result<(), String> {
    if std::env::var_os(INSIDE).is_some() {
        command("ip link set lo up")?;
        command("mount -t tmpfs tmpfs /run/netns")?;
        return Ok(());
    }
    if !is_root() || !has("unshare") || !has("ip") || std::fs::create_dir_all("/run/netns").is_err()
    {
        return Ok(());
    }
    let own = [
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ];
    if command(&format!("unshare {} true", own.join(" "))).is_err() {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let error = Command::new("unshare")
        .args(own)
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(format!("unshare: {error}"))
}

/// What this machine lacks for the ground; `None`: nothing.
pub fn missing(ground: Ground) -> Option<String> {
    let inside = std::env::var_os(INSIDE).is_some();
    let own = (!inside).then(|| "needs root, `ip` and `unshare` (util-linux)".to_owned());
    match ground {
        Ground::Loopback => None,
        Ground::Namespaces => own.or_else(|| {
            let firewall = "iptables -L -n";
            let tried = command(firewall).err();
            tried.map(|why| format!("needs iptables (`apt-get install iptables`): {why}"))
        }),
        Ground::SmallDisk => own.or_else(|| {
            let (made, loops) = (has("mkfs.ext4"), Path::new("/dev/loop-control").exists());
            (!made || !loops).then(|| "needs mkfs.ext4 and loop devices".to_owned())
        }),
        Ground::Clocks => faketime()
            .is_none()
            .then(|| "needs libfaketime (`apt-get install libfaketime`)".to_owned()),
    }
}
