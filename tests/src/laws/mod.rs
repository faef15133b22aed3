//! The twelve laws, taken out one at a time: `tests/laws/*.patch` are small diffs, each of which
//! takes one law's code out and names the tests that must then fail.
//!
//! A patch begins with lines of the form `Word: value`:
//!
//! ```text
//! Law: 1
//! Takes out: the check of a decision's revision
//! Fails: -p conclave-coordinator-core --lib a_decision_on_an_old_revision_changes_nothing
//! ```
//!
//! and goes on as a unified diff. Line numbers do not matter: a hunk applies where its old text
//! stands, and it must stand in exactly one place.

mod run;
mod tree;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use run::{Verdict, baseline, judge};
pub use tree::Scratch;

/// How many laws there are.
pub const LAWS: u32 = 12;

/// Why the laws could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum LawError {
    /// A patch file is not what the module's words say.
    #[error("{file}: {what}")]
    Malformed {
        /// The patch.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// The code that a patch takes out is not there: the patch must follow the code.
    #[error(
        "{file} no longer applies to {path}: its old text stands there {found} times, not once"
    )]
    Stale {
        /// The patch.
        file: String,
        /// The file that it changes.
        path: PathBuf,
        /// How often the old text was found.
        found: usize,
    },
    /// A program could not be run.
    #[error("{what}: {error}")]
    Io {
        /// Which step.
        what: String,
        /// The system's words.
        error: std::io::Error,
    },
    /// Cargo said no where it must not.
    #[error("{0}")]
    Cargo(String),
}

/// Turns an IO error into one that says what was tried.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> LawError {
    let what = what.into();
    move |error| LawError::Io { what, error }
}

/// Tests of one target of one package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tests {
    /// Arguments of `cargo test` that choose package and target.
    pub target: Vec<String>,
    /// Names of test functions, without their modules.
    pub names: Vec<String>,
}

/// One place where text is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hunk {
    path: PathBuf,
    old: String,
    new: String,
}

/// A law's code, taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Its file's name.
    pub file: String,
    /// Which law.
    pub law: u32,
    /// What is gone.
    pub takes_out: String,
    /// What must fail without it.
    pub fails: Vec<Tests>,
    hunks: Vec<Hunk>,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// All patches below `root`, in the order of their names.
///
/// # Errors
/// A file that cannot be read or is malformed.
pub fn patches(root: &Path) -> Result<Vec<Patch>, LawError> {
    let folder = root.join("tests/laws");
    let shown = folder.display().to_string();
    let mut all = Vec::new();
    for entry in fs::read_dir(&folder).map_err(io(&shown))? {
        let path = entry.map_err(io(&shown))?.path();
        if path.extension().is_some_and(|e| e == "patch") {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let text = fs::read_to_string(&path).map_err(io(name.clone()))?;
            all.push(Patch::parse(&name, &text)?);
        }
    }
    all.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(all)
}

impl Patch {
    fn parse(file: &str, text: &str) -> Result<Patch, LawError> {
        let malformed = |what: &str| LawError::Malformed {
            file: file.to_owned(),
            what: what.to_owned(),
        };
        let start = text.find("--- a/").ok_or_else(|| malformed("no diff"))?;
        let mut patch = Patch {
            file: file.to_owned(),
            law: 0,
            takes_out: String::new(),
            fails: Vec::new(),
            hunks: hunks(&text[start..]),
        };
        for line in text[..start].lines() {
            match line.split_once(": ") {
                Some(("Law", law)) => patch.law = law.trim().parse().unwrap_or(0),
                Some(("Takes out", what)) => what.trim().clone_into(&mut patch.takes_out),
                Some(("Fails", tests)) => patch.fails.push(tests_of(tests)),
                _ => {}
            }
        }
        let named = patch.fails.iter().all(|t| !t.names.is_empty());
        if !(1..=LAWS).contains(&patch.law) || !file.starts_with(&format!("{:02}-", patch.law)) {
            Err(malformed("`Law: N`, and a file name that begins with it"))
        } else if patch.takes_out.is_empty() || patch.fails.is_empty() || !named {
            Err(malformed(
                "`Takes out: ...` and `Fails: -p PACKAGE TARGET TEST...`",
            ))
        } else if patch.hunks.is_empty() {
            Err(malformed("no hunk"))
        } else {
            Ok(patch)
        }
    }

    /// Names of the tests that must fail.
    pub fn test_names(&self) -> impl Iterator<Item = &str> {
        self.fails.iter().flat_map(|t| &t.names).map(String::as_str)
    }

    /// The files that it changes, and their text without the law, read below `root`.
    ///
    /// # Errors
    /// [`LawError::Stale`].
    pub fn applied(&self, root: &Path) -> Result<Vec<(PathBuf, String)>, LawError> {
        let mut files: Vec<(PathBuf, String)> = Vec::new();
        for hunk in &self.hunks {
            let known = files.iter().position(|(path, _)| *path == hunk.path);
            let at = match known {
                Some(at) => at,
                None => {
                    let text = fs::read_to_string(root.join(&hunk.path));
                    let what = format!("{}: {}", self.file, hunk.path.display());
                    files.push((hunk.path.clone(), text.map_err(io(what))?));
                    files.len() - 1
                }
            };
            let text = &mut files[at].1;
            let found = text.matches(&hunk.old).count();
            if found != 1 {
                return Err(LawError::Stale {
                    file: self.file.clone(),
                    path: hunk.path.clone(),
                    found,
                });
            }
            *text = text.replacen(&hunk.old, &hunk.new, 1);
        }
        Ok(files)
    }
}

/// `-p PACKAGE TARGET... NAME...`: names are the words behind the options that are none of theirs.
fn tests_of(words: &str) -> Tests {
    let mut tests = Tests {
        target: Vec::new(),
        names: Vec::new(),
    };
    let mut value = false;
    for word in words.split_whitespace() {
        if value || word.starts_with('-') {
            value = !value && ["-p", "--test", "--bin"].contains(&word);
            tests.target.push(word.to_owned());
        } else {
            tests.names.push(word.to_owned());
        }
    }
    tests
}

fn hunks(diff: &str) -> Vec<Hunk> {
    let mut path = PathBuf::new();
    let mut hunks: Vec<Hunk> = Vec::new();
    let mut inside = false;
    for line in diff.lines() {
        if line.starts_with("--- ") || line.starts_with("diff ") || line.starts_with("index ") {
            inside = false;
        } else if let Some(name) = line.strip_prefix("+++ b/") {
            path = PathBuf::from(name.trim());
        } else if line.starts_with("@@") {
            inside = true;
            hunks.push(Hunk {
                path: path.clone(),
                old: String::new(),
                new: String::new(),
            });
        } else if let (true, Some(hunk)) = (inside, hunks.last_mut()) {
            // An empty line of context may have lost its space.
            let (sign, text) = line.split_at_checked(1).unwrap_or((" ", ""));
            for (side, other) in [(&mut hunk.old, "+"), (&mut hunk.new, "-")] {
                if sign != other {
                    side.push_str(text);
                    side.push('\n');
                }
            }
        }
    }
    hunks
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Law: 3
Takes out: the cap
Fails: -p some --test all one two
Fails: -p other --lib three

--- a/src/x.rs
+++ b/src/x.rs
@@ -1,3 +1,2 @@ fn f
 let a = 1;
-let b = a.min(2);
+let b = a;

 done
";

    #[test]
    fn a_patch_names_its_law_its_tests_and_what_it_replaces() {
        let patch = Patch::parse("03-cap.patch", TEXT).unwrap();
        assert_eq!((patch.law, patch.takes_out.as_str()), (3, "the cap"));
        assert_eq!(patch.fails[0].target, ["-p", "some", "--test", "all"]);
        assert_eq!(
            patch.test_names().collect::<Vec<_>>(),
            ["one", "two", "three"]
        );
        assert_eq!(
            patch.hunks[0].old,
            "let a = 1;\nlet b = a.min(2);\n\ndone\n"
        );
        assert_eq!(patch.hunks[0].new, "let a = 1;\nlet b = a;\n\ndone\n");
        assert!(
            Patch::parse("04-cap.patch", TEXT).is_err(),
            "another law's name"
        );
    }

    #[test]
    fn a_patch_applies_where_its_text_stands_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        let file = folder.path().join("src/x.rs");
        let patch = Patch::parse("03-cap.patch", TEXT).unwrap();
        let old = "let a = 1;\nlet b = a.min(2);\n\ndone\n";
        fs::write(&file, format!("before\n{old}")).unwrap();
        let files = patch.applied(folder.path()).unwrap();
        assert_eq!(files[0].1, "before\nlet a = 1;\nlet b = a;\n\ndone\n");
        for (text, times) in [(String::new(), 0), (old.repeat(2), 2)] {
            fs::write(&file, text).unwrap();
            let stale = patch.applied(folder.path());
            assert!(matches!(stale, Err(LawError::Stale { found, .. }) if found == times));
        }
    }
}
