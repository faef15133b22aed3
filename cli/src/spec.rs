//! The flags that make a question a job: shared by `ask` and `submit`.
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};
use conclave_proto::v1::{
    self, AnswerKind, Budget, Choices, ConfidencePolicy, ContemplationPolicy, EarlyAgreement,
    Expand, JobSpec, Message, Sampling, answer_kind::Kind,
};

use crate::{duration, error::CliError};

/// How many agents think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One agent, no thinking.
    Instant,
    /// One agent that thinks before it answers.
    Thinking,
    /// Many agents that propose, refine and hand over to a chair.
    Contemplating,
}

/// How drafts become one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Aggregator {
    /// The answer with the most votes.
    Majority,
    /// Votes weighted by confidence.
    Confidence,
    /// The single draft with the highest confidence.
    BestOf,
    /// A chair agent reads the drafts and writes the answer.
    Synthesis,
}

/// How drafts become the text that the next round reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Distill {
    /// Final answer and key sentences, without a model call.
    Extractive,
    /// One distiller agent a draft.
    Agent,
}

/// What to do when the quorum of drafts became unreachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Unreachable {
    /// Answer with what there is, marked DEGRADED.
    Degrade,
    /// Fail the job.
    Fail,
}

/// One question and its policy. What is not given is left to the cluster,
/// which returns what it chose.
#[derive(Debug, Clone, Args)]
pub struct SpecArgs {
    /// The question; "-" reads it from standard input
    pub prompt: String,
    /// Instructions put before the question
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// How many agents think
    #[arg(
        long,
        value_enum,
        default_value = "contemplating",
        help_heading = "Thinking"
    )]
    pub mode: Mode,
    /// Agents that propose, 1 to 64 [default: 8]
    #[arg(long, value_name = "N", help_heading = "Thinking")]
    pub agents: Option<u32>,
    /// Drafts a round waits for; the stragglers are cancelled [default: all]
    #[arg(long, value_name = "N", help_heading = "Thinking")]
    pub quorum: Option<u32>,
    /// Rounds in which agents refine what the round before wrote, 0 to 4 [default: 0]
    #[arg(long, value_name = "N", help_heading = "Thinking")]
    pub rounds: Option<u32>,
    /// How drafts become one answer [default: the cluster's]
    #[arg(long, value_enum, help_heading = "Thinking")]
    pub aggregator: Option<Aggregator>,
    /// How drafts become what the next round reads [default: extractive]
    #[arg(long, value_enum, help_heading = "Thinking")]
    pub distill: Option<Distill>,
    /// Tokens of that text per draft, 16 to 1024 [default: 96]
    #[arg(long, value_name = "TOKENS", help_heading = "Thinking")]
    pub workspace_tokens: Option<u32>,
    /// Skip refining once N drafts agree
    #[arg(long, value_name = "N", help_heading = "Thinking")]
    pub early_agreement: Option<u32>,
    /// Where the answer is uncertain, let one more chair read the disputed drafts in full
    #[arg(long, help_heading = "Thinking")]
    pub expand: bool,
    /// Uncertain: the votes' lead, as a share of all, is below this [default: 0.2]
    #[arg(
        long,
        value_name = "SHARE",
        requires = "expand",
        help_heading = "Thinking"
    )]
    pub expand_margin: Option<f32>,
    /// Uncertain: the answer's lowest confidence is below this; needed for free text
    #[arg(
        long,
        value_name = "NATS",
        requires = "expand",
        help_heading = "Thinking"
    )]
    pub expand_below: Option<f32>,
    /// Stop an agent whose window confidence falls below this, nats [default: never]
    #[arg(long, value_name = "NATS", help_heading = "Thinking")]
    pub stop_below: Option<f32>,
    /// Positions in a confidence window, at most 4096 [default: 32]
    #[arg(long, value_name = "TOKENS", help_heading = "Thinking")]
    pub confidence_window: Option<u32>,
    /// Hint handed to the proposers in turn; repeat for more [default: built-in hints]
    #[arg(long = "strategy", value_name = "TEXT", help_heading = "Thinking")]
    pub strategies: Vec<String>,
    /// When too few drafts can come [default: degrade]
    #[arg(long, value_enum, help_heading = "Thinking")]
    pub on_unreachable: Option<Unreachable>,
    /// Hold the answer for `conclave review`
    #[arg(long, help_heading = "Thinking")]
    pub review: bool,
    /// Same seed, same answer, whatever fails: waits for every draft, takes no deadline
    #[arg(long, conflicts_with_all = ["deadline", "allow_inexact"], help_heading = "Thinking")]
    pub exact: bool,
    /// Go on in another numeric class if no worker of the first is free
    #[arg(long, help_heading = "Thinking")]
    pub allow_inexact: bool,

    /// Thought tokens of one agent [default: 192, 0 in instant mode]
    #[arg(long, value_name = "TOKENS", help_heading = "Budget")]
    pub thought_tokens: Option<u32>,
    /// Answer tokens of one agent [default: 128]
    #[arg(long, value_name = "TOKENS", help_heading = "Budget")]
    pub answer_tokens: Option<u32>,
    /// Generated tokens of all agents together [default: no bound]
    #[arg(long, value_name = "TOKENS", help_heading = "Budget")]
    pub total_tokens: Option<u64>,
    /// Time from acceptance, e.g. 90s; what is there then is aggregated [default: none]
    #[arg(long, value_name = "TIME", value_parser = duration::parse_positive, help_heading = "Budget")]
    pub deadline: Option<Duration>,
    /// Push towards the end of thought per token past half its budget, 0 to 10 [default: 0]
    #[arg(long, value_name = "LOGITS", help_heading = "Budget")]
    pub thinking_penalty: Option<f32>,

    /// 0 is greedy, at most 5 [default: the cluster's]
    #[arg(long, value_name = "T", help_heading = "Sampling")]
    pub temperature: Option<f32>,
    /// Draw among the K likeliest tokens; 0 is all, at most 1024
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    pub top_k: Option<u32>,
    /// Draw within this share of the probability, above 0 to 1
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub top_p: Option<f32>,
    /// Drop tokens below this share of the likeliest one's probability
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub min_p: Option<f32>,
    /// Divides the logits of what was said already; 1 is none
    #[arg(long, value_name = "X", help_heading = "Sampling")]
    pub repetition_penalty: Option<f32>,
    /// End the answer before this text; repeat for more, at most 8
    #[arg(long = "stop", value_name = "TEXT", help_heading = "Sampling")]
    pub stops: Vec<String>,
    /// Seed of every random choice [default: minted, and shown]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub seed: Option<u64>,

    /// The answer is one of these
    #[arg(
        long,
        value_name = "A,B,...",
        value_delimiter = ',',
        group = "form",
        help_heading = "Form of the answer"
    )]
    pub choices: Vec<String>,
    /// The whole answer matches this regular expression
    #[arg(
        long,
        value_name = "REGEX",
        group = "form",
        help_heading = "Form of the answer"
    )]
    pub regex: Option<String>,
    /// The answer is JSON of the schema in this file
    #[arg(
        long,
        value_name = "FILE",
        group = "form",
        help_heading = "Form of the answer"
    )]
    pub schema: Option<PathBuf>,

    /// Label kept with the job; repeat for more, at most 16
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl SpecArgs {
    /// The job, for `model` (empty: the cluster's only one). Reads standard
    /// input and the schema file where the flags say so.
    pub fn to_spec(&self, model: &str) -> Result<JobSpec, CliError> {
        let answer = self.answer()?;
        if self.expand && self.expand_below.is_none() && answer.is_none() {
            return Err(CliError::usage(
                "free text has no votes to be open: --expand-below NATS says below which confidence an answer is uncertain; or give the answer a form, e.g. --choices",
            ));
        }
        let mut spec = JobSpec {
            model: model.to_owned(),
            messages: self.messages()?,
            sampling: Some(self.sampling()),
            policy: Some(self.policy()),
            budget: Some(self.budget()),
            answer,
            seed: self.seed,
            labels: self.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            ..Default::default()
        };
        spec.set_mode(match self.mode {
            Mode::Instant => v1::Mode::Instant,
            Mode::Thinking => v1::Mode::Thinking,
            Mode::Contemplating => v1::Mode::Contemplating,
        });
        Ok(spec)
    }

    fn messages(&self) -> Result<Vec<Message>, CliError> {
        let prompt = match self.prompt.as_str() {
            "-" => {
                let mut text = String::new();
                io::stdin()
                    .read_to_string(&mut text)
                    .map_err(|source| CliError::file("standard input", source))?;
                text.trim_end_matches(['\n', '\r']).to_owned()
            }
            text => text.to_owned(),
        };
        if prompt.trim().is_empty() {
            return Err(CliError::usage(
                "the question is empty: put it in quotes, or say - to read it from standard input",
            ));
        }
        let turn = |role: &str, content: String| Message {
            role: role.to_owned(),
            content,
        };
        let mut messages: Vec<Message> = self
            .system
            .iter()
            .map(|text| turn("system", text.clone()))
            .collect();
        messages.push(turn("user", prompt));
        Ok(messages)
    }

    fn policy(&self) -> ContemplationPolicy {
        let mut policy = ContemplationPolicy {
            width: self.agents,
            quorum: self.quorum,
            refine_rounds: self.rounds,
            workspace_tokens: self.workspace_tokens,
            early_agreement: self.early_agreement.map(|drafts| EarlyAgreement { drafts }),
            expand: self.expand.then_some(Expand {
                margin: self.expand_margin,
                confidence_below: self.expand_below,
            }),
            strategies: self.strategies.clone(),
            review: self.review,
            allow_inexact: self.allow_inexact,
            exact: self.exact,
            ..Default::default()
        };
        if self.stop_below.is_some() || self.confidence_window.is_some() {
            policy.confidence = Some(ConfidencePolicy {
                window: self.confidence_window,
                stop_below: self.stop_below,
                ..Default::default()
            });
        }
        if let Some(aggregator) = self.aggregator {
            policy.set_aggregator(match aggregator {
                Aggregator::Majority => v1::Aggregator::Majority,
                Aggregator::Confidence => v1::Aggregator::ConfidenceWeighted,
                Aggregator::BestOf => v1::Aggregator::BestOf,
                Aggregator::Synthesis => v1::Aggregator::Synthesis,
            });
        }
        if let Some(distill) = self.distill {
            policy.set_distill(match distill {
                Distill::Extractive => v1::Distill::Extractive,
                Distill::Agent => v1::Distill::Agent,
            });
        }
        if let Some(choice) = self.on_unreachable {
            policy.set_on_unreachable(match choice {
                Unreachable::Degrade => v1::OnUnreachable::Degrade,
                Unreachable::Fail => v1::OnUnreachable::Fail,
            });
        }
        policy
    }

    fn budget(&self) -> Budget {
        Budget {
            total_tokens: self.total_tokens.unwrap_or(0),
            thought_tokens: self.thought_tokens,
            answer_tokens: self.answer_tokens,
            deadline_ms: self.deadline.map_or(0, |deadline| {
                u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)
            }),
            thinking_penalty: self.thinking_penalty,
        }
    }

    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            stop: self.stops.clone(),
        }
    }

    fn answer(&self) -> Result<Option<AnswerKind>, CliError> {
        let kind = if !self.choices.is_empty() {
            Kind::Choices(Choices {
                options: self.choices.clone(),
            })
        } else if let Some(regex) = &self.regex {
            Kind::Regex(regex.clone())
        } else if let Some(path) = &self.schema {
            Kind::JsonSchema(fs::read_to_string(path).map_err(|error| {
                CliError::usage(format!("--schema {}: {error}", path.display()))
            })?)
        } else {
            return Ok(None);
        };
        Ok(Some(AnswerKind { kind: Some(kind) }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        spec: SpecArgs,
    }

    fn parse(args: &[&str]) -> Result<SpecArgs, clap::Error> {
        Only::try_parse_from([&["x"], args].concat()).map(|only| only.spec)
    }

    #[test]
    fn what_is_not_given_is_left_to_the_cluster() {
        let spec = parse(&["why?"]).unwrap().to_spec("").unwrap();
        assert_eq!(spec.mode(), v1::Mode::Contemplating);
        assert_eq!(spec.policy, Some(ContemplationPolicy::default()));
        assert_eq!(spec.sampling, Some(Sampling::default()));
        assert_eq!(spec.budget, Some(Budget::default()));
        assert_eq!((spec.answer, spec.seed), (None, None));
    }

    #[test]
    fn flags_reach_the_job() {
        let args = [
            "why?",
            "--system",
            "be brief",
            "--mode",
            "thinking",
            "--agents",
            "5",
            "--quorum",
            "3",
            "--rounds",
            "2",
            "--aggregator",
            "best-of",
            "--distill",
            "agent",
            "--seed",
            "7",
            "--temperature",
            "0.5",
            "--stop",
            "\n\n",
            "--thought-tokens",
            "64",
            "--deadline",
            "90s",
            "--early-agreement",
            "2",
            "--expand",
            "--expand-margin",
            "0.5",
            "--stop-below",
            "1.5",
            "--choices",
            "yes,no",
            "--label",
            "team=a=b",
        ];
        let spec = parse(&args).unwrap().to_spec("m").unwrap();
        let policy = spec.policy.as_ref().unwrap();
        assert_eq!(
            spec.messages
                .iter()
                .map(|m| m.role.as_str())
                .collect::<Vec<_>>(),
            ["system", "user"]
        );
        assert_eq!(
            (policy.width, policy.quorum, policy.refine_rounds),
            (Some(5), Some(3), Some(2))
        );
        assert_eq!(policy.aggregator(), v1::Aggregator::BestOf);
        assert_eq!(policy.distill(), v1::Distill::Agent);
        assert_eq!(policy.early_agreement.unwrap().drafts, 2);
        assert_eq!(policy.expand.unwrap().margin, Some(0.5));
        assert_eq!(policy.confidence.unwrap().stop_below, Some(1.5));
        assert_eq!((spec.model.as_str(), spec.seed), ("m", Some(7)));
        assert_eq!(spec.budget.unwrap().deadline_ms, 90_000);
        assert_eq!(spec.budget.unwrap().thought_tokens, Some(64));
        assert_eq!(spec.sampling.unwrap().stop, ["\n\n"]);
        let options = vec!["yes".to_owned(), "no".to_owned()];
        assert_eq!(
            spec.answer.unwrap().kind,
            Some(Kind::Choices(Choices { options }))
        );
        assert_eq!(spec.labels["team"], "a=b");
    }

    #[test]
    fn contradictions_are_usage_errors() {
        assert!(parse(&["q", "--choices", "a", "--regex", "b"]).is_err());
        assert!(parse(&["q", "--exact", "--deadline", "5s"]).is_err());
        assert!(parse(&["q", "--deadline", "5"]).is_err());
        assert!(parse(&["q", "--deadline", "0s"]).is_err());
        assert!(parse(&["q", "--label", "novalue"]).is_err());
        let empty = parse(&["  "]).unwrap().to_spec("").unwrap_err();
        assert_eq!(empty.exit_code(), 2);
        // `ask` and `submit` both say it.
        let text = empty.to_string();
        assert!(
            text.contains("in quotes") && !text.contains("ask"),
            "{text}"
        );
        assert!(parse(&["q", "--expand-margin", "0.5"]).is_err());
        let free = parse(&["q", "--expand"]).unwrap();
        let free = free.to_spec("").unwrap_err().to_string();
        assert!(free.contains("--expand-below NATS"), "{free}");
        assert!(
            parse(&["q", "--expand", "--expand-below", "2"])
                .unwrap()
                .to_spec("")
                .is_ok()
        );
    }

    #[test]
    fn a_missing_schema_file_is_named() {
        let error = parse(&["q", "--schema", "/nowhere/s.json"])
            .unwrap()
            .to_spec("")
            .unwrap_err();
        assert!(error.to_string().contains("/nowhere/s.json"), "{error}");
    }
}
