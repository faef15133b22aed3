//! Workers that were lost lately: shown to operators, not replicated.

use std::{collections::VecDeque, sync::Arc};

use conclave_coordinator_core::State;
use conclave_proto::v1::LostWorker;

/// So many are remembered; beyond, the oldest is forgotten.
const MOST: usize = 64;
/// And no longer than this, ms of replicated time.
const LATELY_MS: i64 = 3_600_000;

/// Workers whose lease ran out while they did not drain, as this node saw it.
#[derive(Debug, Default)]
pub struct Lost {
    kept: VecDeque<LostWorker>,
    shown: Arc<Vec<LostWorker>>,
}

impl Lost {
    /// Of those that `held` a lease before a tick, the ones that are gone after it; returns how many.
    pub fn note(&mut self, held: &[String], state: &State) -> usize {
        let gone = held.iter().filter(|id| state.worker(id).is_none());
        let before = self.kept.len();
        for worker_id in gone {
            self.kept.retain(|lost| lost.worker_id != *worker_id);
            self.kept.push_back(LostWorker {
                worker_id: worker_id.clone(),
                unix_ms: state.unix_ms(),
            });
        }
        let gone = held.iter().filter(|id| state.worker(id).is_none()).count();
        while self.kept.len() > MOST {
            self.kept.pop_front();
        }
        let old = |lost: &LostWorker| lost.unix_ms + LATELY_MS < state.unix_ms();
        while self.kept.front().is_some_and(old) {
            self.kept.pop_front();
        }
        if gone > 0 || self.kept.len() != before {
            self.shown = Arc::new(self.kept.iter().cloned().collect());
        }
        gone
    }

    /// All of them, the newest last; also those that came back.
    pub fn shown(&self) -> Arc<Vec<LostWorker>> {
        self.shown.clone()
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{RegisterWorker, command::Command as Body};

    use super::*;

    fn after(unix_ms: i64) -> State {
        let mut state = State::new();
        let body = Body::Tick(conclave_proto::v1::Tick {
            unix_ms,
            ..Default::default()
        });
        state.apply(1, 1, &conclave_coordinator_core::codec::command(body));
        let register = RegisterWorker {
            worker_id: "stays".to_owned(),
            incarnation: "i".to_owned(),
            ..RegisterWorker::default()
        };
        let register = Body::RegisterWorker(register);
        state.apply(2, 1, &conclave_coordinator_core::codec::command(register));
        state
    }

    fn named(lost: &Lost) -> Vec<String> {
        lost.shown().iter().map(|l| l.worker_id.clone()).collect()
    }

    #[test]
    fn who_is_gone_is_remembered_for_an_hour_and_so_many_of_them() {
        let mut lost = Lost::default();
        let held = ["stays".to_owned(), "goes".to_owned()];
        assert_eq!(lost.note(&held, &after(1_000)), 1);
        assert_eq!(named(&lost), ["goes"]);
        assert_eq!(lost.note(&held, &after(2_000)), 1);
        assert_eq!(named(&lost), ["goes"], "once");
        let many: Vec<String> = (0..2 * MOST).map(|n| n.to_string()).collect();
        assert_eq!(lost.note(&many, &after(3_000)), 2 * MOST);
        assert_eq!(named(&lost).len(), MOST);
        assert_eq!(lost.note(&[], &after(3_001 + LATELY_MS)), 0);
        assert!(named(&lost).is_empty());
    }
}
