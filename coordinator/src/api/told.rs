//! What workers tell of their files that they cannot use: shown to operators, and decides nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use conclave_proto::v1::{RefusedFile, WorkerStatus};

/// Files that one worker may tell of.
const FILES: usize = 8;
/// Longest text about one of them, bytes.
const TEXT: usize = 1_024;

/// By session: a worker that comes back has another one.
#[derive(Debug, Default)]
pub struct Told(Mutex<BTreeMap<u64, (String, Vec<RefusedFile>)>>);

impl Told {
    /// A worker's heartbeat said this on its session.
    pub fn hear(&self, session: u64, worker_id: &str, mut files: Vec<RefusedFile>) {
        if files.is_empty() {
            return self.forget(session);
        }
        files.truncate(FILES);
        for file in &mut files {
            file.paths.truncate(FILES);
            let texts = file.paths.iter_mut();
            for text in texts.chain([&mut file.setting, &mut file.why]) {
                text.truncate(text.floor_char_boundary(TEXT));
            }
        }
        self.lock().insert(session, (worker_id.to_owned(), files));
    }

    /// The session ended.
    pub fn forget(&self, session: u64) {
        self.lock().remove(&session);
    }

    /// Puts what was told beside the workers that told it.
    pub fn show(&self, workers: &mut [WorkerStatus]) {
        for (worker_id, files) in self.lock().values() {
            let mut all = workers.iter_mut();
            if let Some(worker) = all.find(|worker| worker.worker_id == *worker_id) {
                worker.refused_files.clone_from(files);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (String, Vec<RefusedFile>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(told: &Told) -> Vec<RefusedFile> {
        let mut workers = ["w1", "w2"].map(|name| WorkerStatus {
            worker_id: name.to_owned(),
            ..WorkerStatus::default()
        });
        told.show(&mut workers);
        assert_eq!(workers[0].refused_files, [], "another's");
        workers[1].refused_files.clone()
    }

    #[test]
    fn files_are_shown_until_they_are_mended_or_the_session_ends() {
        let told = Told::default();
        let file = RefusedFile {
            setting: "token_file".to_owned(),
            ..RefusedFile::default()
        };
        told.hear(7, "w2", vec![file.clone()]);
        assert_eq!(shown(&told), std::slice::from_ref(&file));
        told.hear(7, "w2", Vec::new());
        assert_eq!(shown(&told), []);
        told.hear(7, "w2", vec![file]);
        told.forget(7);
        assert_eq!(shown(&told), []);
    }

    #[test]
    fn a_worker_that_tells_much_is_cut_short() {
        let told = Told::default();
        let file = RefusedFile {
            setting: "ä".repeat(TEXT),
            paths: vec!["p".repeat(2 * TEXT); 2 * FILES],
            why: String::new(),
        };
        told.hear(7, "w2", vec![file; 2 * FILES]);
        let shown = shown(&told);
        assert_eq!((shown.len(), shown[0].paths.len()), (FILES, FILES));
        assert_eq!(shown[0].setting.len(), TEXT);
        assert_eq!(shown[0].paths[0].len(), TEXT);
    }
}
