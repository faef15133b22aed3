//! A small ext4 file system on a loop device, for one coordinator's data.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use tempfile::TempDir;

use super::machine::command;

/// Its size, bytes.
const SIZE: u64 = 96 << 20;
/// Room for the file system's own blocks, bytes.
const SLACK: u64 = 1 << 20;

/// Mounted; unmounted when dropped.
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Makes and mounts one.
    ///
    /// # Panics
    /// With the command that failed.
    pub fn mount() -> SmallDisk {
        let disk = SmallDisk {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        let image = disk.folder.path().join("image");
        let file = File::create(&image).expect("an image");
        file.set_len(SIZE).expect("a sparse file");
        std::fs::create_dir(disk.path()).expect("a mount point");
        let (image, path) = (
            image.display().to_string(),
            disk.path().display().to_string(),
        );
        for line in [
            format!("mkfs.ext4 -q -m 0 {image}"),
            format!("mount -o loop {image} {path}"),
        ] {
            command(&line).unwrap_or_else(|why| panic!("{why}"));
        }
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Allocates ballast until about `leave` bytes are free; 0: not one block.
    ///
    /// # Panics
    /// If there is not so much room.
    pub fn fill(&self, leave: u64) {
        let path = self.path().join("ballast");
        let bytes = self.free().saturating_sub(leave + SLACK);
        let line = format!("fallocate -l {bytes} {}", path.display());
        command(&line).unwrap_or_else(|why| panic!("{why}"));
        if leave > 0 {
            return;
        }
        // The rest block by block, up to the error.
        let rest = path.with_extension("rest");
        let mut rest = File::create(rest).expect("more ballast");
        while rest.write_all(&[0x5a; 4096]).is_ok() {}
    }

    /// Removes the ballast.
    pub fn free_up(&self) {
        std::fs::remove_file(self.path().join("ballast")).expect("there was ballast");
        // Only a full disk has it.
        let _ = std::fs::remove_file(self.path().join("ballast.rest"));
    }

    /// Free bytes.
    fn free(&self) -> u64 {
        let path = self.path().display().to_string();
        let said = command(&format!("df --output=avail -B1 {path}")).expect("df");
        said.lines()
            .last()
            .and_then(|line| line.trim().parse().ok())
            .expect("a number")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that still ends may hold a file.
        let _ = command(&format!("umount -l {}", self.path().display()));
    }
}
