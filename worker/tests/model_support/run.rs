//! Runs a model through the engine on given tokens.

use std::path::Path;
use std::sync::Arc;

use conclave_kernels::{Activation, Kernels, KvDtype, Pool};
use conclave_worker::model::{Forward, LoadOptions, Model, ModelError};
use conclave_worker_core::{
    Batch, Engine, Limits, Next, Outcome, Report, Request, Runner, SeqId, StopReason,
};

/// Says the given tokens and keeps the logits.
struct Forced {
    forward: Forward,
    tokens: Vec<u32>,
    rows: Vec<Vec<f32>>,
}

impl Runner for Forced {
    type Error = ModelError;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), ModelError> {
        let logits = self.forward.run(batch)?;
        for (index, entry) in batch.entries().filter(|entry| entry.sample).enumerate() {
            self.rows.push(logits.row(index).to_vec());
            let token = self.tokens.get(self.rows.len() - 1).copied();
            let next = token.map_or(Next::Stop(StopReason::EndOfText), |_| Next::Continue);
            out.push(Outcome {
                seq: entry.seq,
                token: token.unwrap_or(0),
                logprob: 0.0,
                next,
            });
        }
        Ok(())
    }

    fn release(&mut self, _seq: SeqId) {}
}

pub fn load(path: &Path, activation: Activation) -> Result<Arc<Model>, ModelError> {
    Model::load(
        path,
        &LoadOptions {
            activation,
            ..LoadOptions::default()
        },
    )
}

/// The logits after `prompt` and after each of `forced`.
pub fn logits(model: &Arc<Model>, prompt: &[u32], forced: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let kernels = Arc::new(Kernels::new(conclave_kernels::detect(), Pool::new(2)));
    let limits = Limits {
        blocks: 32,
        chunk_tokens: chunk,
        ..Limits::default()
    };
    let blocks = limits.blocks as usize;
    let forward = Forward::new(model.clone(), kernels, blocks, KvDtype::F32).unwrap();
    let runner = Forced {
        forward,
        tokens: forced.to_vec(),
        rows: Vec::new(),
    };
    let mut engine = Engine::new(limits, runner).unwrap();
    engine
        .submit(Request::new(SeqId(1), prompt.to_vec(), forced.len() + 1))
        .unwrap();
    let mut report = Report::default();
    while engine.has_work() {
        engine.step(&mut report).unwrap();
    }
    std::mem::take(&mut engine.runner_mut().rows)
}
