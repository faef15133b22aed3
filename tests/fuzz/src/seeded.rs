//! The driver without coverage: the corpus, then mutations of it from a fixed seed.

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
    mpsc,
};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Target, check, mutate::mutate, rng::Rng};

/// An input that is still running after this long hangs.
const HANG: Duration = Duration::from_secs(60);

/// How far a run goes.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// So many mutated inputs: the same on every machine.
    Inputs(u32),
    /// So long.
    Elapsed(Duration),
}

/// Runs the corpus and then mutations of it; returns how many inputs that were. One target at a time in a
/// process: memory is counted for all of it.
///
/// # Panics
/// On a finding, after the input was written to [`findings`].
pub fn run(target: &Target, seed: u64, until: Until) -> u64 {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let corpus = target.corpus();
    let mut bench = Bench::new(target);
    for input in &corpus {
        bench.try_input(input);
    }
    let started = Instant::now();
    let mut rng = Rng(seed);
    let mut done = 0;
    while match until {
        Until::Inputs(inputs) => done < inputs,
        Until::Elapsed(time) => started.elapsed() < time,
    } {
        let mut input = rng.pick(&corpus).cloned().unwrap_or_default();
        mutate(&mut rng, &mut input, &corpus, target.words);
        bench.try_input(&input);
        done += 1;
    }
    bench.end()
}

/// Runs one input, as a rerun of a finding.
///
/// # Panics
/// If it still is one.
pub fn rerun(target: &Target, input: &[u8]) {
    check::run(target, input);
}

/// Where inputs of findings are written.
pub fn findings() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(std::env::temp_dir, Into::into);
    folder.join("fuzz-findings")
}

/// Runs inputs and keeps the one that is under way on disk: an abort, a stack that overflows or a kill for
/// memory leaves nothing else behind.
struct Bench<'a> {
    target: &'a Target,
    current: File,
    path: PathBuf,
    count: Arc<AtomicU64>,
    watchdog: Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>,
}

impl<'a> Bench<'a> {
    fn new(target: &'a Target) -> Bench<'a> {
        let folder = findings();
        fs::create_dir_all(&folder).expect("a folder for findings");
        let path = folder.join(format!("{}-{}.current", target.name, std::process::id()));
        let current = File::create(&path).expect("a file for the current input");
        let count = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = mpsc::channel();
        let dog = watch(target.name, path.clone(), Arc::clone(&count), stopped);
        Bench {
            target,
            current,
            path,
            count,
            watchdog: Some((stop, dog)),
        }
    }

    fn try_input(&mut self, input: &[u8]) {
        self.current.rewind().expect("a file for the current input");
        self.current
            .write_all(input)
            .and_then(|()| self.current.set_len(input.len() as u64))
            .expect("a file for the current input");
        let result = catch_unwind(AssertUnwindSafe(|| check::run(self.target, input)));
        self.count.fetch_add(1, Ordering::Relaxed);
        let Err(panic) = result else { return };
        let name = self.target.name;
        let kept = findings().join(format!("{name}-{}", blake3::hash(input).to_hex()));
        fs::write(&kept, input).expect("a file for the finding");
        say(name, "FINDING", &kept);
        resume_unwind(panic);
    }

    fn end(mut self) -> u64 {
        self.stop();
        self.count.load(Ordering::Relaxed)
    }

    fn stop(&mut self) {
        if let Some((stop, dog)) = self.watchdog.take() {
            drop(stop);
            let _ = dog.join();
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ends the process if one input takes too long: a loop cannot be unwound from outside.
fn watch(
    name: &'static str,
    path: PathBuf,
    count: Arc<AtomicU64>,
    stopped: mpsc::Receiver<()>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut before = u64::MAX;
        while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(HANG) {
            let now = count.load(Ordering::Relaxed);
            if now == before {
                say(name, "HANG", &path);
                std::process::exit(101);
            }
            before = now;
        }
    })
}

/// Past the capture of the test harness: the process may be about to end.
fn say(name: &str, what: &str, path: &Path) {
    let path = path.display();
    let line = format!("\n{what} in {name}: {path}\nrerun: make fuzz TARGET={name} INPUT={path}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
