//! How a job contemplates, and what it may spend.

use conclave_proto::v1::{
    Aggregator, AnswerKind, Budget, ConfidencePolicy, ContemplationPolicy, Distill, Expand,
    JobSpec, Mode, OnUnreachable, Sampling,
};

use super::{SpecError, answer, in_range};

const MAX_WIDTH: u32 = 64;
const MAX_STRATEGIES: usize = 64;
const MAX_STRATEGY_BYTES: usize = 1024;
/// A lead over the runner-up below this share of all weight is uncertain.
pub const EXPAND_MARGIN: f32 = 0.2;
/// Most tokens of one phase of one agent.
const MAX_AGENT_TOKENS: u32 = 1 << 20;
/// 30 days.
const MAX_DEADLINE_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// An effective spec's policy and budget, every field resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// How many agents think.
    pub mode: Mode,
    /// Proposers, and agents of a refine round.
    pub width: u32,
    /// Drafts that a round waits for.
    pub quorum: u32,
    /// Refine rounds.
    pub refine_rounds: u32,
    /// How drafts become workspace.
    pub distill: Distill,
    /// Tokens of workspace per draft.
    pub workspace_tokens: u32,
    /// How drafts become the answer.
    pub aggregator: Aggregator,
    /// Drafts that must agree before refining is skipped.
    pub early_agreement: Option<u32>,
    /// When the disputed drafts are read in full.
    pub expand: Option<Expand>,
    /// DeepConf's parameters.
    pub confidence: ConfidencePolicy,
    /// An unreachable quorum fails the job.
    pub fail_unreachable: bool,
    /// The caller's hints; empty: the built-in ones.
    pub strategies: Vec<String>,
    /// The answer waits for a reviewer.
    pub review: bool,
    /// May go on in another numeric class.
    pub allow_inexact: bool,
    /// Decisions on complete rounds only.
    pub exact: bool,
    /// Generated tokens of all agents; 0: no bound.
    pub total_tokens: u64,
    /// Thought tokens of one agent.
    pub thought_tokens: u32,
    /// Answer tokens of one agent.
    pub answer_tokens: u32,
    /// Added to the end-of-thought logit.
    pub thinking_penalty: f32,
    /// The job's seed.
    pub seed: u64,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The answer's form.
    pub answer: AnswerKind,
    /// The answer is free text.
    pub free_text: bool,
}

impl Policy {
    /// Reads an effective spec; what is absent counts as its default.
    pub fn of(spec: &JobSpec) -> Policy {
        let policy = spec.policy.clone().unwrap_or_default();
        let budget = spec.budget.unwrap_or_default();
        let width = policy.width.unwrap_or(1).max(1);
        let kind = spec.answer.clone().unwrap_or_default();
        Policy {
            mode: spec.mode(),
            width,
            quorum: policy.quorum.unwrap_or(width).clamp(1, width),
            refine_rounds: policy.refine_rounds.unwrap_or(0),
            distill: policy.distill(),
            workspace_tokens: policy.workspace_tokens.unwrap_or(96),
            aggregator: policy.aggregator(),
            early_agreement: policy.early_agreement.map(|e| e.drafts),
            expand: policy.expand,
            confidence: policy.confidence.unwrap_or_default(),
            fail_unreachable: policy.on_unreachable() == OnUnreachable::Fail,
            review: policy.review,
            allow_inexact: policy.allow_inexact,
            exact: policy.exact,
            total_tokens: budget.total_tokens,
            thought_tokens: budget.thought_tokens.unwrap_or(0),
            answer_tokens: budget.answer_tokens.unwrap_or(128).max(1),
            thinking_penalty: budget.thinking_penalty.unwrap_or(0.0),
            seed: spec.seed.unwrap_or(0),
            sampling: spec.sampling.clone().unwrap_or_default(),
            free_text: answer::is_free_text(&kind),
            answer: kind,
            strategies: policy.strategies,
        }
    }

    /// The most that one proposer or refiner generates, tokens.
    pub fn agent_tokens(&self) -> u64 {
        u64::from(self.thought_tokens) + u64::from(self.answer_tokens)
    }

    /// Thought tokens of the chair: its thinking is to compare, the drafts did the rest.
    pub fn chair_thought_tokens(&self) -> u32 {
        self.thought_tokens / 2
    }

    /// The most that the chair generates, tokens; 0 if there is none.
    pub fn chair_tokens(&self) -> u64 {
        if self.aggregator == Aggregator::Synthesis && self.width > 1 {
            self.reader_tokens()
        } else {
            0
        }
    }

    /// The most that one who reads drafts and answers generates, tokens: the chair, or who reads them in full.
    pub fn reader_tokens(&self) -> u64 {
        u64::from(self.chair_thought_tokens()) + u64::from(self.answer_tokens)
    }
}

pub(super) fn effective_budget(budget: Option<&Budget>, mode: Mode) -> Result<Budget, SpecError> {
    let mut budget = budget.copied().unwrap_or_default();
    let instant = mode == Mode::Instant;
    let thought = *budget
        .thought_tokens
        .get_or_insert(if instant { 0 } else { 192 });
    if instant && thought > 0 {
        return Err(SpecError::new(
            "budget.thought_tokens",
            "an INSTANT job does not think: leave it out, or use THINKING",
        ));
    }
    in_range("budget.thought_tokens", thought, 0, MAX_AGENT_TOKENS)?;
    let answer = *budget.answer_tokens.get_or_insert(128);
    if answer == 0 {
        return Err(SpecError::new(
            "budget.answer_tokens",
            "0 leaves no answer: at least 1",
        ));
    }
    in_range("budget.answer_tokens", answer, 1, MAX_AGENT_TOKENS)?;
    let penalty = *budget.thinking_penalty.get_or_insert(0.0);
    in_range("budget.thinking_penalty", penalty, 0.0, 10.0)?;
    in_range("budget.deadline_ms", budget.deadline_ms, 0, MAX_DEADLINE_MS)?;
    Ok(budget)
}

pub(super) fn effective_policy(
    policy: Option<&ContemplationPolicy>,
    mode: Mode,
    free_text: bool,
) -> Result<ContemplationPolicy, SpecError> {
    let mut policy = policy.cloned().unwrap_or_default();
    let alone = mode != Mode::Contemplating;
    let width = *policy.width.get_or_insert(if alone { 1 } else { 8 });
    in_range("policy.width", width, 1, MAX_WIDTH)?;
    if alone && width != 1 {
        return Err(SpecError::new(
            "policy.width",
            format!(
                "an {} job has one agent: leave it out, or use CONTEMPLATING",
                name(mode)
            ),
        ));
    }
    let rounds = *policy.refine_rounds.get_or_insert(0);
    in_range("policy.refine_rounds", rounds, 0, 4)?;
    if alone && rounds != 0 {
        return Err(SpecError::new(
            "policy.refine_rounds",
            format!("an {} job does not refine: use CONTEMPLATING", name(mode)),
        ));
    }
    in_range(
        "policy.workspace_tokens",
        *policy.workspace_tokens.get_or_insert(96),
        16,
        1024,
    )?;
    counts(&mut policy, width)?;
    if let Some(expand) = &mut policy.expand {
        effective_expand(expand, width, free_text)?;
    }
    enums(&mut policy, alone, free_text)?;
    policy.confidence = Some(confidence(policy.confidence)?);
    let strategies = &policy.strategies;
    if strategies.len() > MAX_STRATEGIES
        || strategies
            .iter()
            .any(|s| s.trim().is_empty() || s.len() > MAX_STRATEGY_BYTES)
    {
        return Err(SpecError::new(
            "policy.strategies",
            format!("at most {MAX_STRATEGIES} hints of 1 to {MAX_STRATEGY_BYTES} bytes"),
        ));
    }
    Ok(policy)
}

/// Quorum and early agreement against the width.
fn counts(policy: &mut ContemplationPolicy, width: u32) -> Result<(), SpecError> {
    let quorum = *policy.quorum.get_or_insert(width);
    if quorum == 0 || quorum > width {
        return Err(SpecError::new(
            "policy.quorum",
            format!("{quorum} drafts of {width} agents cannot come: choose 1 to {width}"),
        ));
    }
    match policy.early_agreement {
        Some(early) if early.drafts == 0 || early.drafts > width => Err(SpecError::new(
            "policy.early_agreement.drafts",
            format!(
                "{} of {width} drafts cannot agree: choose 1 to {width}",
                early.drafts
            ),
        )),
        _ => Ok(()),
    }
}

/// When an answer is so uncertain that drafts are read in full.
fn effective_expand(expand: &mut Expand, width: u32, free_text: bool) -> Result<(), SpecError> {
    if width == 1 {
        return Err(SpecError::new(
            "policy.expand",
            "one agent disputes nothing: leave it out, or use CONTEMPLATING with a width of 2 or more",
        ));
    }
    match expand.confidence_below {
        None if free_text => {
            return Err(SpecError::new(
                "policy.expand.confidence_below",
                "free text has no votes to count: say below which confidence, in nats, an answer is uncertain",
            ));
        }
        Some(below) if !below.is_finite() || below <= 0.0 => {
            return Err(SpecError::new(
                "policy.expand.confidence_below",
                format!("{below} is no confidence that one can be below: they are above 0"),
            ));
        }
        _ => {}
    }
    if free_text {
        return match expand.margin {
            None => Ok(()),
            Some(_) => Err(SpecError::new(
                "policy.expand.margin",
                "free text has no votes to count: leave it out",
            )),
        };
    }
    let margin = *expand.margin.get_or_insert(EXPAND_MARGIN);
    match margin > 0.0 && margin <= 1.0 {
        true => Ok(()),
        false => Err(SpecError::new(
            "policy.expand.margin",
            format!("{margin} is no share: above 0 to 1"),
        )),
    }
}

fn enums(policy: &mut ContemplationPolicy, alone: bool, free_text: bool) -> Result<(), SpecError> {
    let unknown = |field: &str, value: i32| SpecError::new(field, format!("{value} is unknown"));
    match Aggregator::try_from(policy.aggregator) {
        Ok(Aggregator::Unspecified) => {
            let synthesis = free_text && !alone;
            let default = if synthesis {
                Aggregator::Synthesis
            } else {
                Aggregator::Majority
            };
            policy.set_aggregator(default);
        }
        Ok(_) => {}
        Err(_) => return Err(unknown("policy.aggregator", policy.aggregator)),
    }
    match Distill::try_from(policy.distill) {
        Ok(Distill::Unspecified) => policy.set_distill(Distill::Extractive),
        Ok(_) => {}
        Err(_) => return Err(unknown("policy.distill", policy.distill)),
    }
    match OnUnreachable::try_from(policy.on_unreachable) {
        Ok(OnUnreachable::Unspecified) => policy.set_on_unreachable(OnUnreachable::Degrade),
        Ok(_) => {}
        Err(_) => return Err(unknown("policy.on_unreachable", policy.on_unreachable)),
    }
    Ok(())
}

fn confidence(policy: Option<ConfidencePolicy>) -> Result<ConfidencePolicy, SpecError> {
    let mut policy = policy.unwrap_or_default();
    in_range(
        "policy.confidence.top_k",
        *policy.top_k.get_or_insert(5),
        1,
        20,
    )?;
    in_range(
        "policy.confidence.window",
        *policy.window.get_or_insert(32),
        1,
        4096,
    )?;
    match policy.stop_below {
        Some(stop) if !stop.is_finite() || stop < 0.0 => Err(SpecError::new(
            "policy.confidence.stop_below",
            format!("{stop} is no confidence: they are at least 0"),
        )),
        _ => Ok(policy),
    }
}

/// Fields that contradict each other.
pub(super) fn check_together(spec: &JobSpec) -> Result<(), SpecError> {
    let policy = Policy::of(spec);
    let deadline = spec.budget.map_or(0, |b| b.deadline_ms);
    if policy.exact {
        if policy.quorum != policy.width {
            return Err(SpecError::new(
                "policy.quorum",
                "an exact job waits for every draft: leave it out",
            ));
        }
        if deadline != 0 {
            return Err(SpecError::new(
                "budget.deadline_ms",
                "an exact job has no deadline, which depends on timing: leave it out",
            ));
        }
        if policy.allow_inexact {
            return Err(SpecError::new(
                "policy.allow_inexact",
                "contradicts `exact`",
            ));
        }
    }
    let least = policy.agent_tokens() + policy.chair_tokens();
    if policy.total_tokens != 0 && policy.total_tokens < least {
        return Err(SpecError::new(
            "budget.total_tokens",
            format!(
                "{} is below the {least} tokens that one agent{} may use: raise it, or lower \
                 thought_tokens ({}) and answer_tokens ({})",
                policy.total_tokens,
                if policy.chair_tokens() > 0 {
                    " and the chair"
                } else {
                    ""
                },
                policy.thought_tokens,
                policy.answer_tokens,
            ),
        ));
    }
    Ok(())
}

fn name(mode: Mode) -> &'static str {
    match mode {
        Mode::Instant => "INSTANT",
        Mode::Thinking => "THINKING",
        Mode::Contemplating | Mode::Unspecified => "CONTEMPLATING",
    }
}
