//! What attributes are called. `gen_ai.*` are OpenTelemetry's semantic conventions for generative AI (1.41, in
//! development there), `conclave.*` our own. Nothing here is for what people or models wrote.

/// What a span does: [`operation`].
pub const OPERATION: &str = "gen_ai.operation.name";
/// Who provides the model: always [`PROVIDER_NAME`].
pub const PROVIDER: &str = "gen_ai.provider.name";
/// The value of [`PROVIDER`].
pub const PROVIDER_NAME: &str = "conclave";
/// The kind of workflow: a job's mode.
pub const WORKFLOW: &str = "gen_ai.workflow.name";
/// The model.
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
/// Temperature asked for.
pub const TEMPERATURE: &str = "gen_ai.request.temperature";
/// Top-p asked for.
pub const TOP_P: &str = "gen_ai.request.top_p";
/// Top-k asked for.
pub const TOP_K: &str = "gen_ai.request.top_k";
/// The most tokens that may be generated.
pub const MAX_TOKENS: &str = "gen_ai.request.max_tokens";
/// The model that answered.
pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
/// Why generating ended, a list.
pub const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
/// Tokens of the prompt.
pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
/// Tokens generated, thought included.
pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
/// Of the prompt's tokens, those found in the prefix cache.
pub const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
/// Of the tokens generated, those of the thought.
pub const REASONING_TOKENS: &str = "gen_ai.usage.reasoning.output_tokens";
/// `<job>/<agent>`.
pub const AGENT_ID: &str = "gen_ai.agent.id";
/// The agent's role.
pub const AGENT_NAME: &str = "gen_ai.agent.name";
/// A class of errors, of few values.
pub const ERROR_TYPE: &str = "error.type";

/// The job's id.
pub const JOB: &str = "conclave.job";
/// The tenant's name.
pub const TENANT: &str = "conclave.tenant";
/// `instant`, `thinking` or `contemplating`.
pub const MODE: &str = "conclave.mode";
/// What became of it.
pub const OUTCOME: &str = "conclave.outcome";
/// Rounds that a job had.
pub const ROUNDS: &str = "conclave.rounds";
/// Agents that a job had.
pub const AGENTS: &str = "conclave.agents";
/// The winning answer's share of the votes, 0 to 1.
pub const AGREEMENT: &str = "conclave.agreement";
/// What produced the answer.
pub const AGGREGATOR: &str = "conclave.aggregator";
/// Whether a replay gives the same tokens: `exact` or `inexact`.
pub const REPLAY: &str = "conclave.replay";
/// The round, as in the job.
pub const ROUND: &str = "conclave.round";
/// Drafts that a round waits for.
pub const QUORUM: &str = "conclave.quorum";
/// The agent's number.
pub const AGENT: &str = "conclave.agent";
/// The attempt's number, from 1.
pub const ATTEMPT: &str = "conclave.attempt";
/// The worker's name.
pub const WORKER: &str = "conclave.worker";
/// Tokens of a prompt; not under the conventions' name, which sums count.
pub const PROMPT: &str = "conclave.prompt_tokens";
/// Of them, those found in the prefix cache.
pub const PROMPT_CACHED: &str = "conclave.cached_tokens";
/// Tokens generated.
pub const GENERATED: &str = "conclave.generated_tokens";
/// Mean confidence of a draft, nats.
pub const CONFIDENCE: &str = "conclave.confidence";
/// The draft passed its kind's validation.
pub const VALID: &str = "conclave.valid";

/// Values of [`OPERATION`].
pub mod operation {
    /// A whole job.
    pub const WORKFLOW: &str = "invoke_workflow";
    /// An attempt of an agent.
    pub const AGENT: &str = "invoke_agent";
    /// What a model does for it.
    pub const CHAT: &str = "chat";
}
