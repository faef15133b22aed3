//! `conclave audit replay`: run every recorded agent again.
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::Args;
use conclave_worker::{
    model::{LoadOptions, Model},
    replay::{AgentReplay, ReplayCase, ReplayProgress, ReplayResult, replay_agents, settings_of},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::{
    audit::{
        recording::{Recorded, Recording},
        verify::verify,
    },
    commands::audit::{describe, read},
    error::{CliError, chain},
    model_source, out,
    view::names,
};

/// Flags of `audit replay`.
#[derive(Debug, Args)]
#[command(after_help = "\
Checks the file first, then gives every agent what it was given and compares
prompt, token ids, the bits of the log-probabilities, and the answer. Needs no
cluster, but the model and a machine of the recorded numeric class.

Examples:
  conclave audit replay question.audit
  conclave audit replay question.audit --model /models/my.gguf

Exit status: 0 all identical, 1 something differs or cannot be replayed, 2 the
file cannot be read.")]
pub struct ReplayArgs {
    /// The audit file
    pub file: PathBuf,
    /// The model: name, GGUF file or safetensors folder [default: by the recorded name]
    #[arg(long, value_name = "NAME|PATH")]
    pub model: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Verifies, replays, compares.
pub async fn run(args: ReplayArgs) -> Result<(), CliError> {
    let bytes = read(&args.file)?;
    let differs = |error: &dyn std::fmt::Display| {
        CliError::Differs(format!("{}: {error}", args.file.display()))
    };
    let (file, verified) = verify(&bytes, None).map_err(|error| differs(&error))?;
    out::note(describe(&verified));
    let recording = Recording::read(&file.records).map_err(|error| differs(&error))?;
    let name = args
        .model
        .clone()
        .unwrap_or_else(|| recording.model.clone());
    let model = model_source::find(&name).await?.path;
    let bar = bar();
    let cases: Vec<ReplayCase> = recording
        .agents
        .iter()
        .map(|agent| agent.case.clone())
        .collect();
    // Computes for seconds to minutes: not on the runtime's threads.
    let results = tokio::task::spawn_blocking(move || replay(&model, &cases, &bar))
        .await
        .map_err(|error| CliError::Hosting(format!("the replay stopped: {error}")))??;
    report(&recording, &results, args.json)
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} tokens  {msg}");
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr())
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Runs the cases, those of one numeric class together. In the cases' order.
fn replay(
    model: &Path,
    cases: &[ReplayCase],
    bar: &ProgressBar,
) -> Result<Vec<AgentReplay>, CliError> {
    let classes: BTreeSet<&str> = cases
        .iter()
        .map(|case| case.draft.numeric_class.as_str())
        .collect();
    let mut results: Vec<Option<AgentReplay>> = vec![None; cases.len()];
    for class in classes {
        let places: Vec<usize> = (0..cases.len())
            .filter(|at| cases[*at].draft.numeric_class == class)
            .collect();
        let of_class: Vec<ReplayCase> = places.iter().map(|at| cases[*at].clone()).collect();
        let failed = |error: &dyn std::error::Error| {
            CliError::Hosting(format!("the replay did not run: {}", chain(error)))
        };
        let Some((options, kv)) = settings_of(class) else {
            let ours = ours(model);
            for place in places {
                results[place] = Some(other_class(&cases[place], &ours));
            }
            continue;
        };
        let loaded = Model::shared(model, &options).map_err(|error| failed(&error))?;
        let mut shown = |progress: ReplayProgress| {
            bar.set_length(progress.tokens_total as u64);
            bar.set_position(progress.tokens as u64);
            bar.set_message(format!(
                "{}/{} agents",
                progress.agents, progress.agents_total
            ));
        };
        let replayed = replay_agents(loaded, &options, kv, &of_class, &mut shown)
            .map_err(|error| failed(&error))?;
        for (place, result) in places.into_iter().zip(replayed) {
            results[place] = Some(result);
        }
    }
    bar.finish_and_clear();
    Ok(results.into_iter().flatten().collect())
}

/// The numeric class that this machine and build run the model in.
fn ours(model: &Path) -> String {
    Model::shared(model, &LoadOptions::default()).map_or_else(
        |error| chain(&error),
        |model| model.info().numeric_class.clone(),
    )
}

/// The refusal to compare bits that need not agree.
fn other_class(case: &ReplayCase, ours: &str) -> AgentReplay {
    AgentReplay {
        agent: case.spec.agent,
        result: ReplayResult::WrongClass {
            recorded: case.draft.numeric_class.clone(),
            ours: ours.to_owned(),
        },
    }
}

fn report(recording: &Recording, results: &[AgentReplay], as_json: bool) -> Result<(), CliError> {
    let pairs = || recording.agents.iter().zip(results);
    if as_json {
        let agents: Vec<_> = pairs()
            .map(|(agent, replay)| {
                json!({
                    "agent": replay.agent,
                    "role": names::role(agent.case.spec.role()),
                    "cut": agent.cut,
                    "tokens": agent.case.draft.token_ids.len(),
                    "identical": replay.result.identical(),
                    "differs_at": differs_at(&replay.result),
                    "result": describe_result(&replay.result),
                })
            })
            .collect();
        let all = results.iter().all(|replay| replay.result.identical());
        out::document(&json!({ "identical": all, "agents": agents, "lost": recording.lost }))?;
    } else {
        for (agent, replay) in pairs() {
            out::line(row(agent, replay))?;
        }
        if recording.lost > 0 {
            out::note(format!(
                "{} cut drafts were not kept and could not be replayed.",
                recording.lost
            ));
        }
    }
    let count = |wanted: fn(&ReplayResult) -> bool| {
        results
            .iter()
            .filter(|replay| wanted(&replay.result))
            .count()
    };
    let identical = count(ReplayResult::identical);
    if identical < results.len() {
        return Err(CliError::Differs(format!(
            "{} of {} agents are not identical ({} of them not compared)",
            results.len() - identical,
            results.len(),
            count(was_not_compared),
        )));
    }
    out::note(format!(
        "All {} agents are identical, token for token.",
        results.len()
    ));
    Ok(())
}

fn row(agent: &Recorded, replay: &AgentReplay) -> String {
    let role = names::role(agent.case.spec.role()).to_lowercase();
    let cut = if agent.cut { " (cut)" } else { "" };
    format!(
        "agent {:<3} {role:<9}  {}{cut}",
        replay.agent,
        describe_result(&replay.result)
    )
}

/// Whether the agent was not run at all, so that nothing is known of it.
fn was_not_compared(result: &ReplayResult) -> bool {
    match result {
        ReplayResult::WrongModel { .. }
        | ReplayResult::WrongClass { .. }
        | ReplayResult::Refused { .. } => true,
        ReplayResult::Identical { .. }
        | ReplayResult::Differs { .. }
        | ReplayResult::PromptDiffers
        | ReplayResult::LogprobsDiffer
        | ReplayResult::AnswerDiffers => false,
    }
}

fn differs_at(result: &ReplayResult) -> Option<usize> {
    match result {
        ReplayResult::Differs { at, .. } => Some(*at),
        _ => None,
    }
}

fn describe_result(result: &ReplayResult) -> String {
    let shown = |id: &Option<u32>| id.map_or_else(|| "the end".to_owned(), |id| id.to_string());
    match result {
        ReplayResult::Identical { tokens } => format!("identical, {tokens} tokens"),
        ReplayResult::Differs { at, expected, got } => {
            format!(
                "differs at token {at}: {} recorded, {} replayed",
                shown(expected),
                shown(got)
            )
        }
        ReplayResult::PromptDiffers => "differs: the prompt has other tokens".to_owned(),
        ReplayResult::LogprobsDiffer => "differs: same tokens, other log-probabilities".to_owned(),
        ReplayResult::AnswerDiffers => {
            "differs: same tokens, another answer made of them".to_owned()
        }
        ReplayResult::WrongModel { recorded, ours } => {
            format!(
                "not compared: recorded with model {recorded}, this is {ours}; name the right one with --model"
            )
        }
        ReplayResult::WrongClass { recorded, ours } => {
            format!("not compared: recorded in numeric class {recorded}, this is {ours}")
        }
        ReplayResult::Refused { message } => format!("not compared: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording() -> Recording {
        let recorded = Recorded {
            cut: false,
            case: ReplayCase::default(),
        };
        Recording {
            model: "m".into(),
            agents: vec![recorded.clone(), recorded],
            lost: 0,
        }
    }

    #[test]
    fn one_difference_fails_the_replay_and_is_named() {
        let same = AgentReplay {
            agent: 1,
            result: ReplayResult::Identical { tokens: 9 },
        };
        let differs = ReplayResult::Differs {
            at: 17,
            expected: Some(4),
            got: None,
        };
        assert_eq!(
            describe_result(&differs),
            "differs at token 17: 4 recorded, the end replayed"
        );
        let other = AgentReplay {
            agent: 2,
            result: differs,
        };
        assert!(report(&recording(), &[same.clone(), same.clone()], false).is_ok());
        let error = report(&recording(), &[same, other], true).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("1 of 2"), "{error}");
    }

    #[test]
    fn a_foreign_class_is_told_by_both_names_and_the_others_are_still_reported() {
        let mut case = ReplayCase::default();
        case.spec.agent = 2;
        case.draft.numeric_class = "k1-a".into();
        let foreign = other_class(&case, "k1-b");
        let text = describe_result(&foreign.result);
        assert!(text.contains("k1-a") && text.contains("k1-b"), "{text}");
        let same = AgentReplay {
            agent: 1,
            result: ReplayResult::Identical { tokens: 9 },
        };
        let error = report(&recording(), &[same, foreign], false).unwrap_err();
        assert!(
            error.to_string().contains("1 of 2") && error.to_string().contains("1 of them not"),
            "{error}"
        );
    }

    #[test]
    fn classes_that_cannot_run_here_do_not_stop_the_replay() {
        let mut case = ReplayCase::default();
        case.spec.agent = 3;
        case.draft.numeric_class = "no-such-class".into();
        let bar = ProgressBar::hidden();
        let results = replay(Path::new("/nowhere.gguf"), &[case.clone(), case], &bar).unwrap();
        assert_eq!(results.len(), 2);
        assert!(
            results
                .iter()
                .all(|replay| was_not_compared(&replay.result))
        );
    }
}
