//! A runner that samples what the reference said and writes down what the model would have.

use conclave_worker_core::{Batch, Next, Outcome, Runner, SeqId, StopReason};

use super::Case;
use crate::model::{Forward, ModelError};

/// What the model thought at one position.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    /// The likeliest token.
    pub(super) choice: u32,
    /// Its log-probability.
    pub(super) logprob: f64,
    /// The log-probabilities of the reference's likeliest tokens, in its order.
    pub(super) top: Vec<f64>,
}

/// Sequence `i` is case `i`.
pub(super) struct Teacher {
    forward: Forward,
    scripts: Vec<Script>,
}

struct Script {
    tokens: Vec<u32>,
    top: Vec<Vec<u32>>,
    seen: Vec<Seen>,
}

impl Teacher {
    pub(super) fn new(forward: Forward, cases: &[Case]) -> Teacher {
        let ids = |top: &Vec<(u32, f64)>| top.iter().map(|(id, _)| *id).collect();
        let script = |case: &Case| Script {
            tokens: case.greedy_ids.clone(),
            top: case.top5.iter().map(ids).collect(),
            seen: Vec::new(),
        };
        Teacher {
            forward,
            scripts: cases.iter().map(script).collect(),
        }
    }

    /// What was seen, position by position, case by case.
    pub(super) fn take_seen(&mut self) -> Vec<Vec<Seen>> {
        self.scripts
            .iter_mut()
            .map(|script| std::mem::take(&mut script.seen))
            .collect()
    }
}

impl Runner for Teacher {
    type Error = ModelError;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), ModelError> {
        let logits = self.forward.run(batch)?;
        let sampled = batch.entries().filter(|entry| entry.sample);
        for (index, entry) in sampled.enumerate() {
            let script = &mut self.scripts[entry.seq.0 as usize];
            let position = script.seen.len();
            let seen = Seen::new(logits.row(index), &script.top[position]);
            let token = script.tokens[position];
            let next = match position + 1 == script.tokens.len() {
                true => Next::Stop(StopReason::EndOfText),
                false => Next::Continue,
            };
            let logprob = seen.logprob as f32;
            script.seen.push(seen);
            out.push(Outcome {
                seq: entry.seq,
                token,
                logprob,
                next,
            });
        }
        Ok(())
    }

    fn release(&mut self, _seq: SeqId) {}
}

impl Seen {
    fn new(logits: &[f32], top: &[u32]) -> Seen {
        let (mut choice, mut largest) = (0, f32::NEG_INFINITY);
        for (id, logit) in (0u32..).zip(logits) {
            if *logit > largest {
                (choice, largest) = (id, *logit);
            }
        }
        let largest = f64::from(largest);
        let sum: f64 = logits
            .iter()
            .map(|logit| (f64::from(*logit) - largest).exp())
            .sum();
        let logprob = |id: u32| f64::from(logits[id as usize]) - largest - sum.ln();
        Seen {
            choice,
            logprob: logprob(choice),
            top: top.iter().map(|id| logprob(*id)).collect(),
        }
    }
}
