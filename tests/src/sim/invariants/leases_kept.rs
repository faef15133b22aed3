//! A lease lasts for its time to live by the lease clock, and no longer; that clock runs no faster than time
//! does; and a process that drains does so to its end. Held against a book of leases of its own, kept from the commands alone.

use std::collections::BTreeMap;

use conclave_coordinator_core::{Applied, Reply, State, worker::LEASE_TTL_MS};
use conclave_proto::v1::{Command, command::Command as Body};

use super::Check;

/// The most that one tick moves the lease clock, ms. Part of log version 1.
const MOST_MS: u64 = 1_000;

#[derive(Debug, Default)]
pub(super) struct LeasesKept {
    clock_ms: u64,
    /// By worker: the process, when its lease ends, and whether it drains, which it does to its end.
    leases: BTreeMap<String, (String, u64, bool)>,
}

impl LeasesKept {
    /// A command was applied, for the first time anywhere, `now_ms` after the world began.
    pub(super) fn applied(
        &mut self,
        command: &Command,
        applied: &Applied,
        state: &State,
        now_ms: u64,
    ) -> Check {
        match &command.command {
            Some(Body::RegisterWorker(c)) if applied.reply == Reply::Ok => {
                let known = self.leases.get(&c.worker_id);
                let drains =
                    known.is_some_and(|(process, _, drains)| *drains && *process == c.incarnation);
                let ends = self.clock_ms + LEASE_TTL_MS;
                let lease = (c.incarnation.clone(), ends, drains);
                self.leases.insert(c.worker_id.clone(), lease);
            }
            Some(Body::DrainWorker(c)) if applied.reply == Reply::Ok => {
                if let Some(lease) = self.leases.get_mut(&c.worker_id) {
                    lease.2 = true;
                }
            }
            Some(Body::RenewLeases(c)) => {
                for renewed in &c.leases {
                    let lease = self.leases.get_mut(&renewed.worker_id);
                    if let Some(lease) = lease.filter(|l| l.0 == renewed.incarnation) {
                        lease.1 = self.clock_ms + LEASE_TTL_MS;
                    }
                }
            }
            Some(Body::Tick(c)) => {
                self.clock_ms += c.elapsed_ms.min(MOST_MS);
                let clock_ms = self.clock_ms;
                if c.new_term {
                    let all = self.leases.values_mut();
                    all.for_each(|lease| lease.1 = clock_ms + LEASE_TTL_MS);
                }
                self.leases.retain(|_, lease| lease.1 > clock_ms);
            }
            _ => return Ok(()),
        }
        self.compare(state, now_ms)
    }

    fn compare(&self, state: &State, now_ms: u64) -> Check {
        let clock_ms = state.lease_clock_ms();
        if clock_ms != self.clock_ms || clock_ms > now_ms {
            return Err(format!(
                "the lease clock is at {clock_ms} ms, by its ticks at {}, after {now_ms} ms",
                self.clock_ms
            ));
        }
        let held = || {
            state.workers().map(|w| {
                let name = (w.worker_id.as_str(), w.incarnation.as_str());
                (name, w.expires_ms, w.draining)
            })
        };
        let known = self.leases.iter().map(|(worker, lease)| {
            let (process, ends, drains) = lease;
            ((worker.as_str(), process.as_str()), *ends, *drains)
        });
        if held().eq(known) {
            return Ok(());
        }
        let held: Vec<_> = held().collect();
        Err(format!(
            "at {clock_ms} ms the leases are {held:?}, and should be {:?}",
            self.leases
        ))
    }
}

#[cfg(test)]
mod tests {
    use conclave_coordinator_core::codec;
    use conclave_proto::v1::{RegisterWorker, Tick};

    use super::*;

    fn apply(law: &mut LeasesKept, state: &mut State, body: Body, now_ms: u64) -> Check {
        let command = codec::command(body);
        let applied = state.apply(state.applied_index() + 1, 1, &command);
        law.applied(&command, &applied, state, now_ms)
    }

    fn register() -> Body {
        Body::RegisterWorker(RegisterWorker {
            worker_id: "w".into(),
            incarnation: "i".into(),
            ..RegisterWorker::default()
        })
    }

    fn tick() -> Body {
        Body::Tick(Tick {
            elapsed_ms: MOST_MS,
            ..Tick::default()
        })
    }

    #[test]
    fn a_lease_that_ends_early_and_one_that_does_not_end_are_found() {
        let (mut law, mut state) = (LeasesKept::default(), State::new());
        assert_eq!(apply(&mut law, &mut state, register(), 0), Ok(()));
        for second in 1..=LEASE_TTL_MS / MOST_MS {
            assert_eq!(
                apply(&mut law, &mut state, tick(), second * MOST_MS),
                Ok(())
            );
        }
        assert!(state.workers().next().is_none(), "it ended");
        let known = ("i".to_owned(), law.clock_ms + 1, false);
        law.leases.insert("w".into(), known);
        assert!(law.compare(&state, 1 << 20).is_err(), "it ended early");
        assert_eq!(apply(&mut law, &mut state, register(), 1 << 20), Ok(()));
        law.leases.clear();
        assert!(law.compare(&state, 1 << 20).is_err(), "it did not end");
    }

    #[test]
    fn a_clock_that_runs_ahead_is_found() {
        let (mut law, mut state) = (LeasesKept::default(), State::new());
        assert_eq!(apply(&mut law, &mut state, tick(), MOST_MS), Ok(()));
        assert!(apply(&mut law, &mut state, tick(), MOST_MS + 1).is_err());
    }
}
