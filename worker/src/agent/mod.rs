//! From what the coordinator asks for to what the engine runs, and back: `Prepare` to `Prepared`,
//! `Start` to a request and its generation, an ended generation to a `Draft`.

mod draft;
mod prompt;
mod settings;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use conclave_proto::v1;
use conclave_worker_core::{Chain, Request, Retention, SeqId};

use crate::answer::{AnswerKind, AnswerKindError};
use crate::generation::{Bridge, Generation, GenerationSpec, Thought};
use crate::grammar::{GrammarError, Grammars};
use crate::model::{Model, TemplateError, TokenizerError};
use crate::vocabulary::Vocabulary;

use prompt::Prompter;

/// Put between thought and answer where the job names nothing else.
pub const DEFAULT_CUE: &str = "\n\nFinal answer:";
/// Blocks from one checkpoint of a shared prefix to the next.
const CHECKPOINT_BLOCKS: usize = 16;

/// Why an agent cannot run here, now or ever; the job is at fault, not the worker.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The job is for another model.
    #[error("model {wanted:?} is not served here (this worker has {have:?})")]
    Model {
        /// Asked for.
        wanted: String,
        /// Served.
        have: String,
    },
    /// A field is missing or out of its range.
    #[error("{0}")]
    Setting(String),
    /// The answer kind makes no sense.
    #[error(transparent)]
    Answer(#[from] AnswerKindError),
    /// The answer kind cannot be enforced.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The messages do not become a prompt.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The prompt does not become tokens.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The messages are longer than any tokens of a whole context.
    #[error(
        "the messages have {bytes} bytes, and {context} tokens (the model's context) stand for at most \
         {most}"
    )]
    TooManyBytes {
        /// Bytes of all messages.
        bytes: usize,
        /// The most that could fit.
        most: usize,
        /// What the model can hold, tokens.
        context: usize,
    },
    /// The tokenizer knows a token that the model has no embedding of.
    #[error(
        "the prompt has token {id}, and the model embeds {vocab}: its files do not belong together"
    )]
    NoSuchToken {
        /// The token.
        id: u32,
        /// Ids are below this.
        vocab: usize,
    },
    /// Prompt and budget are longer than the KV cache.
    #[error(
        "the agent needs {need} tokens of KV cache, this worker has {have}: raise `kv_memory_mib`, or \
         lower the budget"
    )]
    Memory {
        /// Tokens of prompt and budget.
        need: usize,
        /// Tokens that one sequence may hold.
        have: usize,
    },
    /// Prompt and budget are longer than the model's context.
    #[error(
        "the prompt has {prompt} tokens and the budget is {budget} (thought, cue and answer), together \
         more than the model's context of {context}"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// The most tokens that may be generated.
        budget: usize,
        /// What the model can hold.
        context: usize,
    },
}

/// Makes requests and drafts for one model. Shared by all sessions and workers of a process.
#[derive(Debug)]
pub struct AgentFactory {
    model: Arc<Model>,
    vocabulary: Arc<Vocabulary>,
    grammars: Grammars,
    prompter: Prompter,
    numeric_class: String,
    chain_domain: u64,
}

/// An agent's prompt, and how it goes on.
struct Plan {
    prompt: Vec<u32>,
    thought: Option<Thought>,
    cued: bool,
}

impl AgentFactory {
    /// For `model` in `numeric_class`, which names all that decides the bits of its logits
    /// ([`crate::model::Forward::numeric_class`]).
    pub fn new(model: Arc<Model>, numeric_class: impl Into<String>) -> Arc<Self> {
        let numeric_class = numeric_class.into();
        let tokenizer = model.tokenizer();
        let tokens = (0..tokenizer.vocab_size() as u32)
            .map(|id| (tokenizer.token_bytes(id), tokenizer.is_special(id)));
        let vocabulary = Arc::new(Vocabulary::new(tokens, &model.info().end_of_generation));
        let mut domain = blake3::Hasher::new_derive_key("conclave v1 kv chain domain");
        domain.update(&model.info().digest);
        domain.update(numeric_class.as_bytes());
        Arc::new(Self {
            grammars: Grammars::new(Arc::clone(&vocabulary)),
            prompter: Prompter::new(&vocabulary),
            chain_domain: first_word(domain.finalize().as_bytes()),
            vocabulary,
            numeric_class,
            model,
        })
    }

    /// As [`AgentFactory::new`], but one that this process holds already for the same model and class is
    /// taken: vocabulary, token trie and compiled grammars are made once, however many workers there are.
    pub fn shared(model: Arc<Model>, numeric_class: &str) -> Arc<Self> {
        static HELD: Mutex<Vec<Weak<AgentFactory>>> = Mutex::new(Vec::new());
        // Made under the lock: whoever asks for the same one meanwhile waits for it.
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|factory| factory.strong_count() > 0);
        let same = |factory: &Arc<Self>| {
            Arc::ptr_eq(&factory.model, &model) && factory.numeric_class == numeric_class
        };
        if let Some(factory) = held.iter().filter_map(Weak::upgrade).find(same) {
            return factory;
        }
        let factory = Self::new(model, numeric_class);
        held.push(Arc::downgrade(&factory));
        factory
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// All that decides the bits of a logit.
    pub fn numeric_class(&self) -> &str {
        &self.numeric_class
    }

    /// Looks at a job before any agent of it is made: renders and counts its prompt, compiles its answer
    /// kind, compares its budget with the context and with the `kv_tokens` that one sequence may hold here.
    /// What is wrong stands in `error`.
    pub fn prepare(&self, prepare: &v1::Prepare, kv_tokens: usize) -> v1::Prepared {
        let info = self.model.info();
        let mut prepared = v1::Prepared {
            job_id: prepare.job_id.clone(),
            model: info.name.clone(),
            model_digest: info.digest.to_vec(),
            numeric_class: self.numeric_class.clone(),
            context_tokens: u32::try_from(info.context_tokens).unwrap_or(u32::MAX),
            ..v1::Prepared::default()
        };
        let spec = prepare.spec.clone().unwrap_or_default();
        match self.look_at(&spec, &prepare.salt, kv_tokens) {
            Ok((prompt_tokens, checkpoints)) => {
                prepared.prompt_tokens = prompt_tokens as u32;
                prepared.checkpoints = checkpoints;
            }
            // Another worker may have that model.
            Err(AgentError::Model { .. }) => prepared.retry = true,
            Err(error) => prepared.error = error.to_string(),
        }
        prepared
    }

    fn look_at(
        &self,
        spec: &v1::JobSpec,
        salt: &[u8],
        kv_tokens: usize,
    ) -> Result<(usize, Vec<Vec<u8>>), AgentError> {
        self.check_model(&spec.model)?;
        settings::sampling(spec.sampling.as_ref())?;
        let policy = spec.policy.clone().unwrap_or_default();
        settings::confidence(policy.confidence.as_ref())?;
        let (thought_tokens, answer_tokens, penalty) = settings::budget(spec)?;
        let answer = AnswerKind::read(spec.answer.as_ref())?;
        self.grammars.constraint(&answer)?;
        let plan = self.plan(&spec.messages, "", "", thought_tokens, penalty, "")?;
        let need = self.check_length(&plan, answer_tokens)?;
        if need > kv_tokens {
            return Err(AgentError::Memory {
                need,
                have: kv_tokens,
            });
        }
        // What agents of the job have in common: all that comes before the end of the question.
        let probe = self.plan(&spec.messages, "", "?", thought_tokens, penalty, "")?;
        let same = |(a, b): &(&u32, &u32)| a == b;
        let shared = plan.prompt.iter().zip(&probe.prompt).take_while(same);
        let hashes = self.chain(salt).hashes(&plan.prompt[..shared.count()]);
        let every = hashes.iter().skip(CHECKPOINT_BLOCKS - 1);
        let checkpoints = every
            .step_by(CHECKPOINT_BLOCKS)
            .map(|hash| hash.0.to_be_bytes().to_vec())
            .collect();
        Ok((plan.prompt.len(), checkpoints))
    }

    /// What the engine is to run for `start` as sequence `seq`; `arrival` is its place in line.
    ///
    /// # Errors
    /// All are permanent: no other attempt would fare better.
    pub fn request(
        &self,
        start: &v1::Start,
        seq: SeqId,
        arrival: u64,
    ) -> Result<(Request, Generation), v1::AttemptError> {
        self.try_request(start, seq, arrival)
            .map_err(|error| v1::AttemptError {
                kind: v1::ErrorKind::Permanent.into(),
                message: error.to_string(),
            })
    }

    fn try_request(
        &self,
        start: &v1::Start,
        seq: SeqId,
        arrival: u64,
    ) -> Result<(Request, Generation), AgentError> {
        self.check_model(&start.model)?;
        let spec = start.spec.clone().unwrap_or_default();
        let penalty = settings::penalty(spec.thinking_penalty)?;
        let answer_tokens = settings::answer_tokens(spec.answer_tokens)?;
        let thought_tokens = spec.thought_tokens as usize;
        let answer = AnswerKind::read(spec.answer.as_ref())?;
        let constraint = self.grammars.constraint(&answer)?;
        let sampling = settings::sampling(spec.sampling.as_ref())?;
        let confidence = settings::confidence(spec.confidence.as_ref())?;
        let (context, tail) = (&start.context, &spec.tail);
        let plan = self.plan(
            &start.messages,
            context,
            tail,
            thought_tokens,
            penalty,
            &spec.cue,
        )?;
        self.check_length(&plan, answer_tokens)?;
        let role = spec.role();
        let chain = self.chain(&start.salt);
        let generation = GenerationSpec {
            prompt: plan.prompt.clone(),
            seed: spec.seed,
            sampling,
            thought: plan.thought,
            answer_tokens,
            stop: spec
                .sampling
                .map(|sampling| sampling.stop)
                .unwrap_or_default(),
            confidence,
            answer,
            constraint,
            cued: plan.cued,
        };
        let request = Request {
            max_tokens: generation.max_tokens(),
            salt: chain.salt,
            chain_domain: chain.domain,
            arrival,
            priority: priority(role),
            retention: if thought_tokens > 0 {
                Retention::Thought
            } else {
                Retention::Context
            },
            ..Request::new(seq, plan.prompt, 1)
        };
        Ok((
            request,
            Generation::new(generation, Arc::clone(&self.vocabulary)),
        ))
    }

    fn check_model(&self, wanted: &str) -> Result<(), AgentError> {
        let have = &self.model.info().name;
        if wanted.is_empty() || wanted == have {
            return Ok(());
        }
        Err(AgentError::Model {
            wanted: wanted.to_owned(),
            have: have.clone(),
        })
    }

    /// Tokens of prompt and budget together, if the model's context holds them.
    fn check_length(&self, plan: &Plan, answer_tokens: usize) -> Result<usize, AgentError> {
        let context = self.model.info().context_tokens;
        let thought = plan.thought.as_ref();
        let budget = thought.map_or(0, |t| t.tokens + t.bridge.len()) + answer_tokens;
        let prompt = plan.prompt.len();
        let need = prompt.saturating_add(budget);
        if need > context {
            return Err(AgentError::TooLong {
                prompt,
                budget,
                context,
            });
        }
        Ok(need)
    }

    fn chain(&self, salt: &[u8]) -> Chain {
        Chain {
            domain: self.chain_domain,
            // 0 is the public region; a tenant's salt never becomes it.
            salt: match salt {
                [] => 0,
                salt => first_word(blake3::hash(salt).as_bytes()).max(1),
            },
            public_tokens: 0,
        }
    }

    /// The prompt of an agent, and how its thought ends.
    fn plan(
        &self,
        messages: &[v1::Message],
        context: &str,
        tail: &str,
        thought_tokens: usize,
        penalty: f32,
        cue: &str,
    ) -> Result<Plan, AgentError> {
        let messages = prompt::messages(messages, [context, tail])?;
        self.prompter
            .check_size(&messages, self.model.info().context_tokens)?;
        let mut prompt = self.prompter.encode(&self.model, &messages)?;
        let tokenizer = self.model.tokenizer();
        let thought = |close: Vec<u32>, bridge: &[u32]| {
            Bridge::new(bridge).map(|bridge| Thought {
                tokens: thought_tokens,
                penalty,
                close,
                bridge,
            })
        };
        if let Some((open, close)) = self.model.thought_delimiters() {
            if !prompt::is_open(&prompt, &open, &close) {
                prompt.extend_from_slice(&open);
            }
            let gap = tokenizer.encode("\n\n", false)?;
            let bridge = [close.as_slice(), &gap].concat();
            if thought_tokens == 0 {
                // An empty thought, as such models are told not to think.
                prompt.extend_from_slice(&gap);
                prompt.extend_from_slice(&bridge);
            }
            let thought = thought(close, &bridge).filter(|_| thought_tokens > 0);
            return Ok(Plan {
                prompt,
                thought,
                cued: false,
            });
        }
        if thought_tokens == 0 {
            return Ok(Plan {
                prompt,
                thought: None,
                cued: false,
            });
        }
        // Without the space at its end: it belongs to the answer's first token.
        let cue = if cue.trim().is_empty() {
            DEFAULT_CUE
        } else {
            cue
        };
        let bridge = tokenizer.encode(cue.trim_end_matches(' '), false)?;
        Ok(Plan {
            prompt,
            thought: thought(Vec::new(), &bridge),
            cued: true,
        })
    }
}

/// Who comes later in a job goes first: it ends sooner what others wait for.
fn priority(role: v1::Role) -> u8 {
    match role {
        v1::Role::Unspecified | v1::Role::Proposer => 0,
        v1::Role::Distiller | v1::Role::Refiner => 1,
        v1::Role::Chair => 2,
    }
}

fn first_word(bytes: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *bytes;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
