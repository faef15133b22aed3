//! `conclave model`: fetch models, check them against a reference.
use std::{collections::BTreeSet, path::PathBuf, time::Instant};

use clap::{Args, Subcommand};
use conclave_worker::{
    device::{self, DeviceKind},
    model::{
        LoadOptions,
        check::{CheckOptions, CheckReport, run_check},
        pull::{self, ENTRIES, models_dir, resolve_in},
    },
};
use serde_json::{Value, json};

use crate::{duration, ending::unless_interrupted, error::CliError, model_source, out};

/// What to do with a model.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Fetch a model into the cache; prints its path
    Pull(PullArgs),
    /// List the models that are known or in the cache
    List(ListArgs),
    /// Compare a model with a reference: token ids, first choices, log-probabilities
    Check(CheckArgs),
}

/// Flags of `model pull`.
#[derive(Debug, Args)]
#[command(after_help = "\
The file is checked and appears in the cache whole or not at all. A model that
is there already is not fetched again. The cache is ~/.cache/conclave/models,
or under CONCLAVE_CACHE.

Examples:
  conclave model pull smollm2-135m
  conclave model pull tiny --from hf:owner/repository/model.Q8_0.gguf

Exit status: 0 it is in the cache, 1 it could not be fetched, 2 no such model.")]
pub struct PullArgs {
    /// A known name (`conclave model list`), or with --from the name to keep it under
    pub name: String,
    /// Another source: a file of the model hub
    #[arg(long, value_name = "hf:OWNER/REPO/FILE")]
    pub from: Option<String>,
}

/// Flags of `model list`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  conclave model list --json | jq -r '.models[] | select(.path) | .name'")]
pub struct ListArgs {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Flags of `model check`.
#[derive(Debug, Args)]
#[command(after_help = "\
The reference's tokens are given to the model, which says what it would have
chosen and how likely it found the reference's likeliest five. Tolerances:
  float32 activations   every first choice, log-probabilities within 0.002
  8-bit activations     90 % of first choices, mean difference 0.12

Example:
  conclave model check smollm2-135m reference.json

A file:
  {\"cases\": [{\"prompt\": \"…\", \"prompt_ids\": [..], \"greedy_ids\": [..], \"top5\": [[[id, logprob], ..], ..]}]}

Exit status: 0 within the tolerances, 1 beyond them, 2 a file cannot be used.")]
pub struct CheckArgs {
    /// A model's name, GGUF file or safetensors folder
    pub model: String,
    /// The reference's answers
    pub reference: PathBuf,
    /// Only this rounding of activations [default: both]
    #[arg(long, value_enum, value_name = "KIND")]
    pub activation: Option<model_source::Activation>,
    /// What computes: cpu, cuda (the first GPU) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceKind,
    /// Compute threads [default: what the machine grants]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub async fn run(command: ModelCommand) -> Result<(), CliError> {
    match command {
        ModelCommand::Pull(args) => {
            let fetch = model_source::fetch(&args.name, args.from.as_deref());
            let path = unless_interrupted(fetch).await?;
            out::line(path.display().to_string())
        }
        ModelCommand::List(args) => list(&args),
        ModelCommand::Check(args) => check(args).await,
    }
}

fn list(args: &ListArgs) -> Result<(), CliError> {
    let models = models_dir().map_err(|error| CliError::usage(error.to_string()))?;
    let names: BTreeSet<String> = ENTRIES
        .iter()
        .map(|entry| entry.name.to_owned())
        .chain(pull::list(&models))
        .collect();
    let found = names.into_iter().map(|name| {
        let path = resolve_in(&name, Some(&models)).ok();
        (name, path)
    });
    if args.json {
        let rows: Vec<Value> = found
            .map(|(name, path)| json!({ "name": name, "path": path }))
            .collect();
        return out::document(&json!({ "models": rows }));
    }
    for (name, path) in found {
        let place = path.map_or_else(
            || format!("not here yet: conclave model pull {name}"),
            |path| path.display().to_string(),
        );
        out::line(format!("{name:<20}  {place}"))?;
    }
    Ok(())
}

async fn check(args: CheckArgs) -> Result<(), CliError> {
    let start = Instant::now();
    let model = model_source::find(&args.model).await?.path;
    let mut options = CheckOptions::default();
    options.threads = args.threads.unwrap_or(options.threads);
    if let Some(activation) = args.activation {
        // 8 bits is how models are loaded unless told otherwise.
        let int8 = LoadOptions::default().activation;
        let wanted = activation == model_source::Activation::Int8;
        options.activations.retain(|kind| (*kind == int8) == wanted);
    }
    let (reference, asked) = (args.reference.clone(), args.device);
    // The check computes for seconds to minutes: not on the runtime's threads.
    let check = move || {
        options.device = device::open(asked).map_err(|error| error.to_string())?;
        run_check(&model, &reference, &options).map_err(|error| error.to_string())
    };
    let report = tokio::task::spawn_blocking(check)
        .await
        .map_err(|error| CliError::Hosting(format!("the check stopped: {error}")))?
        .map_err(CliError::usage)?;
    if args.json {
        out::document(&document(&report))?;
    } else {
        out::line(report.to_string().trim_end())?;
    }
    out::note(format!("Took {}.", duration::show(start.elapsed())));
    if report.passed() {
        return Ok(());
    }
    Err(CliError::Differs(
        "the model differs from the reference beyond the tolerances".to_owned(),
    ))
}

fn document(report: &CheckReport) -> Value {
    let classes: Vec<Value> = report
        .classes
        .iter()
        .map(|class| {
            let cases: Vec<Value> = class
                .cases
                .iter()
                .map(|case| {
                    json!({
                        "case": case.title,
                        "prompt_equal": case.prompt.is_none(),
                        "prompt_difference": case.prompt,
                        "positions": case.positions,
                        "same_choice": case.same_choice,
                        "other_choices": case.other_choices,
                    })
                })
                .collect();
            json!({
                "numeric_class": class.class,
                "passed": class.passed(),
                "same_choice": class.same_choice(),
                "max_difference": class.max_difference(),
                "mean_difference": class.mean_difference(),
                "cases": cases,
            })
        })
        .collect();
    json!({ "heading": report.heading, "passed": report.passed(), "classes": classes })
}
