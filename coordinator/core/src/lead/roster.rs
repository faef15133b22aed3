//! The workers that have a session with this leader, and the prompts that they look at.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
};

use conclave_proto::v1::{AttemptKey, Hello, ModelInfo};

use crate::placement::{Load, Loads};

/// How long a worker may look at a prompt before another is asked, ms.
const LOOK_MS: u64 = 10_000;

/// One worker's open session.
#[derive(Debug)]
pub(super) struct Session {
    pub worker_id: String,
    pub incarnation: String,
    pub models: Vec<ModelInfo>,
    pub load: Load,
    /// Engine steps, as the last heartbeat said, on this session or the one before.
    pub steps: Option<u64>,
    /// It had work then.
    pub has_work: bool,
    /// It had work when its session before ended, and has not shown a step since: it gets nothing new.
    pub stuck: bool,
    /// It is in the replicated state.
    pub registered: bool,
    /// It takes nothing new.
    pub draining: bool,
    /// What it said it runs: asked for again once it is registered.
    pub running: Vec<AttemptKey>,
}

impl Session {
    fn serves(&self, model: &str) -> bool {
        (model.is_empty() && self.models.len() == 1) || self.models.iter().any(|m| m.name == model)
    }
}

/// Processes whose sessions ended, and how far they were.
#[derive(Debug, Default)]
struct Past(BTreeMap<String, (String, u64, bool)>);

/// Workers that are remembered so, at most.
const MOST_PAST: usize = 4_096;

impl Past {
    /// A session ends; the process made so many steps, and had work.
    fn note(&mut self, session: &Session) {
        let Some(steps) = session.steps else { return };
        if self.0.len() >= MOST_PAST && !self.0.contains_key(&session.worker_id) {
            self.0.pop_first();
        }
        let known = (session.incarnation.clone(), steps, session.has_work);
        self.0.insert(session.worker_id.clone(), known);
    }

    /// What is known of a process that says hello.
    fn of(&self, hello: &Hello) -> Option<(u64, bool)> {
        let (incarnation, steps, had_work) = self.0.get(&hello.worker_id)?;
        (*incarnation == hello.incarnation).then_some((*steps, *had_work))
    }
}

/// A prompt that a worker looks at.
#[derive(Debug)]
struct Look {
    session: u64,
    until_ms: u64,
}

/// Who may look at a prompt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Able {
    /// This session, in its turn.
    Session(u64),
    /// Nobody: these models are served, and the wanted one is not among them.
    NoModel(Vec<String>),
    /// Nobody: no worker is connected.
    NoWorker,
}

impl Loads for Roster {
    fn load(&self, worker_id: &str) -> Option<Load> {
        let sessions = self.by_worker.get(worker_id)?.iter().rev();
        let mut open = sessions.filter_map(|id| self.by_id.get(id));
        open.find(|s| s.registered && !s.draining && !s.stuck)
            .map(|s| s.load)
    }
}

/// The sessions of a leader.
#[derive(Debug, Default)]
pub(super) struct Roster {
    by_id: BTreeMap<u64, Session>,
    /// Sessions of each worker: asked for with every word to one.
    by_worker: BTreeMap<String, BTreeSet<u64>>,
    /// Prompts under way, by job.
    looks: BTreeMap<String, Look>,
    /// The session that was asked last to look at a prompt.
    last: u64,
    past: Past,
}

impl Roster {
    /// Takes a new session.
    pub(super) fn open(&mut self, id: u64, hello: &Hello) {
        let past = self.past.of(hello);
        let session = Session {
            worker_id: hello.worker_id.clone(),
            incarnation: hello.incarnation.clone(),
            models: hello.models.clone(),
            load: Load::default(),
            steps: past.map(|(steps, _)| steps),
            has_work: past.is_some_and(|(_, had_work)| had_work),
            stuck: past.is_some_and(|(_, had_work)| had_work),
            registered: false,
            draining: hello.draining,
            running: hello.running.clone(),
        };
        let of_worker = self.by_worker.entry(hello.worker_id.clone());
        of_worker.or_default().insert(id);
        self.by_id.insert(id, session);
    }

    pub(super) fn get(&self, id: u64) -> Option<&Session> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Session> {
        self.by_id.get_mut(&id)
    }

    /// Drops a session; its prompts are looked at by others.
    pub(super) fn close(&mut self, id: u64) {
        let session = self.by_id.remove(&id);
        session.iter().for_each(|session| self.past.note(session));
        if let Some(session) = session
            && let Some(others) = self.by_worker.get_mut(&session.worker_id)
        {
            others.remove(&id);
            if others.is_empty() {
                self.by_worker.remove(&session.worker_id);
            }
        }
        self.looks.retain(|_, look| look.session != id);
    }

    /// Sessions of this worker, of any of its processes.
    pub(super) fn of_worker(&self, worker_id: &str) -> Vec<u64> {
        let sessions = self.by_worker.get(worker_id);
        sessions.into_iter().flatten().copied().collect()
    }

    /// The worker's session; if a process is named, that of this one, once it is registered.
    pub(super) fn find(&self, worker_id: &str, incarnation: Option<&str>) -> Option<u64> {
        let of = |s: &Session| incarnation.is_none_or(|i| s.registered && s.incarnation == i);
        let mut sessions = self.by_worker.get(worker_id)?.iter().copied();
        sessions.find(|id| self.by_id.get(id).is_some_and(of))
    }

    /// Workers that said they take nothing new, and their processes.
    pub(super) fn draining(&self) -> impl Iterator<Item = (&str, &str)> {
        let draining = self.by_id.values().filter(|s| s.registered && s.draining);
        draining.map(|s| (s.worker_id.as_str(), s.incarnation.as_str()))
    }

    /// Some worker may be spoken to.
    pub(super) fn has_workers(&self) -> bool {
        self.by_id.values().any(|s| s.registered)
    }

    /// False while a worker looks at the job's prompt, and without any worker.
    pub(super) fn may_look(&self, job_id: &str, now_ms: u64) -> bool {
        self.has_workers() && self.looks.get(job_id).is_none_or(|l| l.until_ms <= now_ms)
    }

    /// Whose turn it is to look at a prompt for `model` (empty: a worker's only one): the next session
    /// behind the last that looked at one.
    pub(super) fn able(&mut self, model: &str) -> Able {
        let able = |(_, s): &(&u64, &Session)| s.registered && s.serves(model);
        let behind = self.by_id.range((Excluded(self.last), Unbounded));
        let mut in_turn = behind.chain(self.by_id.range(..=self.last));
        if let Some((id, _)) = in_turn.find(able) {
            self.last = *id;
            return Able::Session(*id);
        }
        let registered = self.by_id.values().filter(|s| s.registered);
        let models = registered.flat_map(|s| &s.models);
        let mut served: Vec<String> = models.map(|m| m.name.clone()).collect();
        served.sort();
        served.dedup();
        match served.is_empty() {
            true => Able::NoWorker,
            false => Able::NoModel(served),
        }
    }

    /// The session looks at the job's prompt from now on.
    pub(super) fn looks(&mut self, job_id: &str, session: u64, now_ms: u64) {
        let until_ms = now_ms + LOOK_MS;
        self.looks
            .insert(job_id.to_owned(), Look { session, until_ms });
    }

    /// A worker answered; or it could not look, and another may at `again_ms`.
    pub(super) fn looked(&mut self, job_id: &str, again_ms: Option<u64>) {
        match (again_ms, self.looks.get_mut(job_id)) {
            (Some(at), Some(look)) => look.until_ms = at,
            _ => drop(self.looks.remove(job_id)),
        }
    }

    /// Forgets prompts of jobs that need no look any more.
    pub(super) fn retain_looks(&mut self, needed: impl Fn(&str) -> bool) {
        self.looks.retain(|job_id, _| needed(job_id));
    }
}
