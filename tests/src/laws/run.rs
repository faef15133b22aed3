//! Builds the tests that patches name, and runs them.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use super::{LawError, Patch, Scratch, Tests, io};

/// A test that runs longer has failed: what it waits for does not come.
const PATIENCE: Duration = Duration::from_secs(120);
/// Period of looking whether a test program has ended.
const LOOK: Duration = Duration::from_millis(50);

/// What became of one law's tests without its code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every one of them failed, as it must.
    Fails,
    /// The tree does not build without it, so that nothing is shown.
    DoesNotBuild(String),
    /// These passed all the same.
    Passes(Vec<String>),
}

/// Runs every test that a patch names on the tree as it is; returns those that do not pass.
///
/// # Errors
/// The tree does not build.
pub fn baseline(scratch: &Scratch, patches: &[Patch]) -> Result<Vec<String>, LawError> {
    let mut targets: BTreeMap<&[String], Vec<String>> = BTreeMap::new();
    for tests in patches.iter().flat_map(|patch| &patch.fails) {
        let names = targets.entry(&tests.target).or_default();
        names.extend(tests.names.iter().cloned());
    }
    let mut bad = Vec::new();
    for (target, mut names) in targets {
        names.sort();
        names.dedup();
        let tests = Tests {
            target: target.to_vec(),
            names,
        };
        let program = build(scratch.path(), &tests)?.map_err(LawError::Cargo)?;
        let said = run(&program, &tests)?;
        bad.extend(
            tests
                .names
                .into_iter()
                .filter(|name| said.of(name) != Some(true)),
        );
    }
    Ok(bad)
}

/// Takes the law's code out, runs its tests, and puts the code back.
///
/// # Errors
/// The patch does not apply, or cargo cannot be run.
pub fn judge(scratch: &Scratch, patch: &Patch) -> Result<Verdict, LawError> {
    let changed = scratch.take_out(patch)?;
    let verdict = without(scratch, patch);
    for path in changed {
        scratch.restore(&path)?;
    }
    verdict
}

fn without(scratch: &Scratch, patch: &Patch) -> Result<Verdict, LawError> {
    let mut passed = Vec::new();
    for tests in &patch.fails {
        let program = match build(scratch.path(), tests)? {
            Ok(program) => program,
            Err(why) => return Ok(Verdict::DoesNotBuild(why)),
        };
        let said = run(&program, tests)?;
        // A program that panicked or hung says nothing of the tests behind: they did not pass.
        let pass = tests
            .names
            .iter()
            .filter(|name| said.of(name) == Some(true));
        passed.extend(pass.cloned());
    }
    Ok(match passed.is_empty() {
        true => Verdict::Fails,
        false => Verdict::Passes(passed),
    })
}

/// A built test program and the folder that it is to run in.
struct Program {
    executable: PathBuf,
    folder: PathBuf,
}

/// Builds the tests; the compiler's words if it refuses.
fn build(tree: &Path, tests: &Tests) -> Result<Result<Program, String>, LawError> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built = Command::new(cargo)
        .args(["test", "--locked", "--no-run", "--quiet"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(&tests.target)
        .current_dir(tree)
        // Our own crates are built again and again: plainly, and without words for debuggers.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        // What cargo tells a program that it runs is about another tree.
        .env_remove("CARGO_MANIFEST_DIR")
        .stdin(Stdio::null())
        .output()
        .map_err(io("cargo test --no-run"))?;
    if !built.status.success() {
        return Ok(Err(String::from_utf8_lossy(&built.stderr).into_owned()));
    }
    let stdout = String::from_utf8_lossy(&built.stdout);
    let program = stdout.lines().filter_map(program).next_back();
    let target = tests.target.join(" ");
    let none = || LawError::Cargo(format!("cargo test {target}: no test program"));
    program.ok_or_else(none).map(Ok)
}

/// The test program that a line of cargo's JSON speaks of.
fn program(line: &str) -> Option<Program> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| message.get(key).and_then(serde_json::Value::as_str);
    let test = message.get("profile")?.get("test")?.as_bool()?;
    test.then_some(())?;
    Some(Program {
        executable: text("executable")?.into(),
        folder: Path::new(text("manifest_path")?).parent()?.to_owned(),
    })
}

/// What a test program said of its tests.
struct Said(String);

impl Said {
    /// Whether the test passed; `None` if it never came to an end.
    fn of(&self, name: &str) -> Option<bool> {
        let line = self.0.lines().find(|line| {
            let test = line.strip_prefix("test ").and_then(|l| l.split(' ').next());
            test.is_some_and(|test| test.rsplit("::").next() == Some(name))
        })?;
        // With one thread a test's own words may stand between its name and its end.
        let end = [("... ok", true), ("... FAILED", false)];
        end.into_iter()
            .find(|(word, _)| line.ends_with(word))
            .map(|(_, ok)| ok)
    }
}

fn run(program: &Program, tests: &Tests) -> Result<Said, LawError> {
    let folder = tempfile::tempdir().map_err(io("a temporary folder"))?;
    let path = folder.path().join("said");
    let out = File::create(&path).map_err(io("a temporary file"))?;
    let shown = program.executable.display().to_string();
    let mut child = Command::new(&program.executable)
        .args(&tests.names)
        .current_dir(&program.folder)
        // A test that fails as it must need not say where.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(Stdio::null())
        .spawn()
        .map_err(io(&shown))?;
    let until = Instant::now() + PATIENCE;
    let ended: Option<ExitStatus> = loop {
        // Another program's end: there is nothing to wait on that has a deadline.
        match child.try_wait().map_err(io(&shown))? {
            Some(status) => break Some(status),
            None if Instant::now() > until => break None,
            None => std::thread::sleep(LOOK),
        }
    };
    if ended.is_none() {
        child.kill().map_err(io(&shown))?;
        child.wait().map_err(io(&shown))?;
    }
    let said = std::fs::read(&path).map_err(io(&shown))?;
    Ok(Said(String::from_utf8_lossy(&said).into_owned()))
}
