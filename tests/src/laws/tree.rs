//! A copy of the tree that patches are applied to.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{LawError, Patch, io};

/// A copy of all that git knows or would take, kept between runs so that cargo builds little anew.
pub struct Scratch {
    root: PathBuf,
    tree: PathBuf,
}

impl Scratch {
    /// Brings the copy in `tree` up to date with `root`. Only what differs is written: cargo goes by
    /// the files' times.
    ///
    /// # Errors
    /// Git or the file system refuses.
    pub fn new(root: &Path, tree: &Path) -> Result<Scratch, LawError> {
        let scratch = Scratch {
            root: root.to_owned(),
            tree: tree.to_owned(),
        };
        let listed = Command::new("git")
            .args(["ls-files", "-co", "--exclude-standard", "-z"])
            .current_dir(root)
            .output()
            .map_err(io("git ls-files"))?;
        if !listed.status.success() {
            let why = String::from_utf8_lossy(&listed.stderr).into_owned();
            return Err(LawError::Cargo(format!("git ls-files: {why}")));
        }
        let names = String::from_utf8_lossy(&listed.stdout).into_owned();
        let names: Vec<&str> = names.split('\0').filter(|name| !name.is_empty()).collect();
        scratch.remove_others(&names)?;
        for name in names {
            scratch.restore(Path::new(name))?;
        }
        Ok(scratch)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.tree
    }

    /// Takes a law's code out; returns the files to [`Scratch::restore`].
    ///
    /// # Errors
    /// The patch does not apply.
    pub fn take_out(&self, patch: &Patch) -> Result<Vec<PathBuf>, LawError> {
        let files = patch.applied(&self.root)?;
        for (path, text) in &files {
            write(&self.tree.join(path), text.as_bytes())?;
        }
        Ok(files.into_iter().map(|(path, _)| path).collect())
    }

    /// Makes one file what it is in the repository; one that is gone there goes here, too.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn restore(&self, path: &Path) -> Result<(), LawError> {
        let (from, to) = (self.root.join(path), self.tree.join(path));
        let Ok(wanted) = fs::read(&from) else {
            return match to.exists() {
                true => fs::remove_file(&to).map_err(io(to.display().to_string())),
                false => Ok(()),
            };
        };
        if fs::read(&to).is_ok_and(|here| here == wanted) {
            return Ok(());
        }
        write(&to, &wanted)
    }

    /// A file that git does not know any more would still be compiled.
    fn remove_others(&self, names: &[&str]) -> Result<(), LawError> {
        let mut folders = vec![self.tree.clone()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let inside = path.strip_prefix(&self.tree).unwrap_or(&path);
                if !names.iter().any(|name| Path::new(name) == inside) {
                    fs::remove_file(&path).map_err(io(path.display().to_string()))?;
                }
            }
        }
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), LawError> {
    let shown = path.display().to_string();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io(&shown))?;
    }
    fs::write(path, bytes).map_err(io(&shown))
}
