//! An engine over the mock, watched: after every step the scheduler's invariants are checked, and what
//! every sequence said is compared with what a faultless engine says.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;

use conclave_worker_core::mock::{MockRunner, Script};
use conclave_worker_core::{
    BLOCK, Engine, EngineError, Event, Finished, Fork, Limits, Report, Request, SeqId, Stats,
    StopReason,
};

/// What is known about one sequence.
#[derive(Clone, Debug)]
pub struct Story {
    pub prompt: Vec<u32>,
    pub max_tokens: usize,
    pub script: Script,
    /// Sampled and injected tokens.
    pub tokens: Vec<u32>,
    /// Bits of the sampled tokens' log-probabilities.
    pub logprobs: Vec<u32>,
    pub preempted: usize,
    pub end: Option<Finished>,
}

pub struct World {
    pub engine: Engine<MockRunner>,
    pub report: Report,
    pub stories: BTreeMap<SeqId, Story>,
    pub steps: usize,
}

pub fn limits(blocks: u32) -> Limits {
    Limits {
        blocks,
        ..Limits::default()
    }
}

/// `len` tokens that differ from those of any other `kind`.
pub fn prompt(kind: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|at| kind * 1000 + at).collect()
}

/// A request whose id is also its place in line.
pub fn request(id: u64, tokens: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        arrival: id,
        ..Request::new(SeqId(id), tokens, max_tokens)
    }
}

impl World {
    pub fn new(limits: Limits) -> Self {
        Self {
            engine: Engine::new(limits, MockRunner::new(limits.blocks)).unwrap(),
            report: Report::default(),
            stories: BTreeMap::new(),
            steps: 0,
        }
    }

    pub fn submit(&mut self, request: Request) -> Result<(), EngineError> {
        self.submit_scripted(request, Script::default())
    }

    pub fn submit_scripted(&mut self, request: Request, script: Script) -> Result<(), EngineError> {
        let (id, prompt, max_tokens) = (request.id, request.tokens.clone(), request.max_tokens);
        self.engine.submit(request)?;
        self.begin(id, prompt, max_tokens, script);
        Ok(())
    }

    pub fn fork(&mut self, parent: SeqId, fork: Fork, script: Script) -> Result<(), EngineError> {
        let (id, max_tokens) = (fork.id, fork.max_tokens);
        let parents = self.engine.scheduler().tokens(parent).unwrap_or(&[]);
        let kept = &parents[..fork.keep.min(parents.len())];
        let prompt = [kept, &fork.suffix].concat();
        self.engine.fork(parent, fork)?;
        self.begin(id, prompt, max_tokens, script);
        Ok(())
    }

    fn begin(&mut self, id: SeqId, prompt: Vec<u32>, max_tokens: usize, script: Script) {
        self.engine.runner_mut().script(id, script.clone());
        let story = Story {
            prompt,
            max_tokens,
            script,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            preempted: 0,
            end: None,
        };
        self.stories.insert(id, story);
        self.audit();
    }

    pub fn cancel(&mut self, id: SeqId) -> Result<Finished, EngineError> {
        let finished = self.engine.cancel(id)?;
        self.end(finished);
        self.audit();
        Ok(finished)
    }

    /// One step, which must succeed, compute something if there is work, and leave all in order.
    pub fn step(&mut self) -> Stats {
        let had_work = self.engine.has_work();
        self.engine.step(&mut self.report).unwrap();
        self.steps += 1;
        let stats = self.report.stats;
        assert_eq!(
            had_work,
            stats.batch_tokens > 0,
            "a step with work computes something"
        );
        assert!(stats.batch_tokens <= self.engine.scheduler().limits().step_tokens);
        for event in std::mem::take(&mut self.report.events) {
            self.note(event);
        }
        self.audit();
        self.check_forest();
        stats
    }

    /// Every entry stands in the forest once, and what neighbours share was computed in earlier steps.
    fn check_forest(&self) {
        let batch = self.engine.batch();
        let mut seen = vec![false; batch.len()];
        let mut before: Option<usize> = None;
        for branch in batch.forest() {
            assert!(!std::mem::replace(&mut seen[branch.entry], true));
            let entry = batch.entry(branch.entry);
            let other = before.map(|before| batch.entry(before)).unwrap_or(entry);
            let shared = branch.shared_blocks;
            assert!(before.is_some() || shared == 0);
            assert_eq!(entry.block_table[..shared], other.block_table[..shared]);
            assert!(shared * BLOCK <= entry.start_pos.min(other.start_pos));
            before = Some(branch.entry);
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    /// A step whose batch, if there is one, the runner fails to compute.
    pub fn fail(&mut self) {
        let had_work = self.engine.has_work();
        self.engine.runner_mut().fail_next(had_work);
        assert_eq!(self.engine.step(&mut self.report).is_err(), had_work);
        for event in std::mem::take(&mut self.report.events) {
            self.note(event);
        }
        self.audit();
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Token {
                seq,
                token,
                logprob,
                generated,
            } => {
                let story = self.stories.get_mut(&seq).unwrap();
                story.tokens.push(token);
                story.logprobs.push(logprob.to_bits());
                assert_eq!(generated, story.tokens.len());
            }
            Event::Injected { seq, tokens } => {
                self.stories.get_mut(&seq).unwrap().tokens.extend(tokens);
            }
            Event::Preempted { seq } => self.stories.get_mut(&seq).unwrap().preempted += 1,
            Event::Started { .. } => {}
            Event::Finished(finished) => self.end(finished),
        }
    }

    /// Takes down an end: it comes once, and what was said is right up to it.
    fn end(&mut self, finished: Finished) {
        let story = self.stories.get_mut(&finished.seq).unwrap();
        assert_eq!(story.end.replace(finished), None, "a sequence ends once");
        assert_eq!(finished.generated, story.tokens.len());
        let expected = story.script.expected(&story.prompt, story.max_tokens);
        match finished.reason {
            StopReason::Cancelled | StopReason::Failed => {
                assert!(expected.starts_with(&story.tokens))
            }
            _ => assert_eq!(story.tokens, expected, "{:?}", finished.seq),
        }
    }

    /// Steps until nothing is live, at most `bound` times; then all blocks are available again.
    pub fn finish(&mut self, bound: usize) {
        let until = self.steps + bound;
        while self.engine.has_work() {
            assert!(
                self.steps < until,
                "not done after {bound} steps: {:?}",
                self.engine.stats()
            );
            self.step();
        }
        let pool = self.engine.scheduler().pool();
        assert_eq!(pool.available(), pool.total(), "a block is leaked");
        assert_eq!(
            self.engine.runner().scripts(),
            0,
            "a sequence was not released"
        );
        assert!(self.stories.values().all(|story| story.end.is_some()));
    }

    pub fn story(&self, id: u64) -> &Story {
        &self.stories[&SeqId(id)]
    }

    fn audit(&self) {
        self.engine.scheduler().audit().unwrap();
    }
}
