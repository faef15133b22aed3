//! Agreement of a model with a reference implementation: token ids, first choices, log-probabilities.
//!
//! A check file holds cases: a prompt or chat messages, the reference's token ids for it, the tokens it
//! chose greedily, and for each the likeliest tokens with their natural log-probabilities. The model
//! is given the reference's tokens, in the engine that serves requests, and asked what it would say.

mod fixture;
mod report;
mod teacher;

use std::path::Path;
use std::sync::Arc;

use conclave_kernels::{Activation, Isa, Kernels, KvDtype, Pool};
use conclave_worker_core::{BLOCK, Engine, Limits, Report, Request, SeqId};
use thiserror::Error;

pub use fixture::{Case, Fixture};
pub use report::{CaseReport, CheckReport, ClassReport, Tolerance};
use teacher::{Seen, Teacher};

use super::{Device, Forward, LoadOptions, Model, ModelError, TemplateError, TokenizerError};

/// Sequences computed side by side.
const RUNNING: usize = 16;

/// How a check runs.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// Kinds of activations to try, in this order.
    pub activations: Vec<Activation>,
    /// The instruction set.
    pub isa: Isa,
    /// What computes; `None`: the processor.
    pub device: Option<Device>,
    /// Threads of the compute pool.
    pub threads: usize,
}

impl Default for CheckOptions {
    fn default() -> CheckOptions {
        CheckOptions {
            activations: vec![Activation::F32, Activation::Int8],
            isa: conclave_kernels::detect(),
            device: None,
            threads: Pool::default_threads(),
        }
    }
}

/// Why a check could not run. Disagreement is no error: the report says it.
#[derive(Debug, Error)]
pub enum CheckError {
    /// The check file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The check file is not of the expected form.
    #[error("{path} is no check file: {problem}", path = path.display())]
    Form {
        /// The file.
        path: std::path::PathBuf,
        /// Where and how.
        problem: String,
    },
    /// A case cannot be run with this model.
    #[error("case {index}: {problem}")]
    Case {
        /// From 0.
        index: usize,
        /// What is wrong.
        problem: String,
    },
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Runs the cases of a check file against the model at `path`, once for each kind of activations.
///
/// # Errors
/// If the file or the model cannot be read, or a case does not fit the model.
pub fn run_check(
    path: &Path,
    fixture: &Path,
    opts: &CheckOptions,
) -> Result<CheckReport, CheckError> {
    let fixture = Fixture::read(fixture)?;
    let kernels = Arc::new(Kernels::new(opts.isa, Pool::new(opts.threads)));
    let mut report = CheckReport::new(path, &fixture);
    for activation in &opts.activations {
        let load = LoadOptions {
            activation: *activation,
            isa: opts.isa,
            device: opts.device.clone(),
            name: None,
        };
        let model = Model::load(path, &load)?;
        report
            .classes
            .push(check_class(&model, &kernels, &fixture, *activation)?);
    }
    Ok(report)
}

/// f32 activations go with f32 KV, which is exact; 8-bit ones with what is served.
fn check_class(
    model: &Arc<Model>,
    kernels: &Arc<Kernels>,
    fixture: &Fixture,
    activation: Activation,
) -> Result<ClassReport, CheckError> {
    let kv = match activation {
        Activation::F32 => KvDtype::F32,
        Activation::Int8 => KvDtype::F16,
    };
    for (index, case) in fixture.cases.iter().enumerate() {
        let info = model.info();
        case.fits(info.vocab_size, info.context_tokens)
            .map_err(|problem| CheckError::Case { index, problem })?;
    }
    let limits = limits(fixture);
    let forward = Forward::new(model.clone(), kernels.clone(), limits.blocks as usize, kv)?;
    let class = forward.numeric_class().to_owned();
    let all_seen = teach(Teacher::new(forward, &fixture.cases), fixture, limits)?;
    let mut cases = Vec::new();
    for (index, (case, seen)) in fixture.cases.iter().zip(all_seen).enumerate() {
        let encoded = encode(model, case).map_err(|error| CheckError::Case {
            index,
            problem: error.to_string(),
        })?;
        cases.push(CaseReport::new(case, encoded, &seen));
    }
    Ok(ClassReport {
        class,
        tolerance: Tolerance::of(activation),
        cases,
    })
}

/// Room for the sequences that run side by side, and for the longest in any case.
fn limits(fixture: &Fixture) -> Limits {
    let blocks = |case: &Case| case.tokens().div_ceil(BLOCK) + 1;
    let longest = fixture.cases.iter().map(blocks).max().unwrap_or(1);
    let all: usize = fixture.cases.iter().map(blocks).sum();
    Limits {
        blocks: all.min(longest * RUNNING) as u32,
        max_running: RUNNING,
        max_waiting: fixture.cases.len().max(1),
        max_context: fixture.cases.iter().map(Case::tokens).max().unwrap_or(1),
        ..Limits::default()
    }
}

fn teach(
    teacher: Teacher,
    fixture: &Fixture,
    limits: Limits,
) -> Result<Vec<Vec<Seen>>, CheckError> {
    let refuse = |problem: String| CheckError::Model(ModelError::Batch { problem });
    let mut engine = Engine::new(limits, teacher).map_err(|error| refuse(error.to_string()))?;
    for (id, case) in (0..).zip(&fixture.cases) {
        if case.greedy_ids.is_empty() {
            continue;
        }
        let request = Request::new(SeqId(id), case.prompt_ids.clone(), case.greedy_ids.len());
        engine.submit(request).map_err(|error| CheckError::Case {
            index: id as usize,
            problem: error.to_string(),
        })?;
    }
    let mut report = Report::default();
    while engine.has_work() {
        engine.step(&mut report).map_err(|error| match error {
            conclave_worker_core::StepError::Runner(error) => CheckError::Model(error),
            other => refuse(other.to_string()),
        })?;
    }
    Ok(engine.runner_mut().take_seen())
}

/// What this model makes of a case's prompt: the rendered text of a chat, and the token ids.
fn encode(model: &Model, case: &Case) -> Result<Encoded, EncodeError> {
    match (&case.prompt, &case.messages) {
        (Some(prompt), _) => Ok(Encoded {
            rendered: None,
            ids: model.tokenizer().encode_prompt(prompt)?,
        }),
        (None, Some(messages)) => {
            let rendered = model.template().render(messages, true)?;
            let ids = model.tokenizer().encode(&rendered, true)?;
            Ok(Encoded {
                rendered: Some(rendered),
                ids,
            })
        }
        (None, None) => Ok(Encoded {
            rendered: None,
            ids: case.prompt_ids.clone(),
        }),
    }
}

/// A prompt as this model takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    rendered: Option<String>,
    ids: Vec<u32>,
}

#[derive(Debug, Error)]
enum EncodeError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Template(#[from] TemplateError),
}
