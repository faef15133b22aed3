use super::*;
use crate::answer::AnswerKind;
use crate::confidence::ConfidencePolicy;
use crate::grammar::Grammars;
use crate::sampling::Sampling;
use crate::vocabulary::tiny;
use conclave_proto::v1::{self, answer_kind::Kind};
use proptest::prelude::*;

fn spec(thought: Option<Thought>) -> GenerationSpec {
    GenerationSpec {
        prompt: tiny::ids("question"),
        seed: 1,
        sampling: Sampling::GREEDY,
        thought,
        answer_tokens: 20,
        stop: Vec::new(),
        confidence: ConfidencePolicy::default(),
        answer: AnswerKind::FreeText,
        constraint: None,
        cued: true,
    }
}

/// For a model without thought delimiters, with the cue "\nA:".
fn cued(tokens: usize) -> Thought {
    Thought {
        tokens,
        penalty: 0.0,
        close: Vec::new(),
        bridge: Bridge::new(&tiny::ids("\nA:")).expect("ids"),
    }
}

/// For a model that closes its thoughts with a mark.
fn delimited(tokens: usize) -> Thought {
    Thought {
        close: vec![tiny::CLOSE],
        bridge: Bridge::new(&[tiny::CLOSE, 10, 10]).expect("ids"),
        ..cued(tokens)
    }
}

fn start(spec: GenerationSpec) -> Generation {
    Generation::new(spec, Arc::new(tiny::vocabulary()))
}

/// Logits that make `token` nearly certain.
fn sure(token: u32) -> Vec<f32> {
    let mut logits = vec![0.0; tiny::LEN];
    logits[token as usize] = 20.0;
    logits
}

fn step(generation: &mut Generation, logits: &[f32]) -> Step {
    generation
        .on_logits(logits, &mut Scratch::default())
        .expect("a step")
}

/// Lets the model say `tokens`, each with certainty; gives the last step.
fn say(generation: &mut Generation, tokens: &[u32]) -> Step {
    let mut steps = tokens.iter().map(|&token| step(generation, &sure(token)));
    let first = steps.next().expect("at least one token");
    steps.fold(first, |_, step| step)
}

/// What the engine's sequence would hold, from the steps alone.
fn follow(sequence: &mut Vec<u32>, step: &Step) {
    sequence.push(step.token);
    if let Next::Inject(ids) = &step.next {
        sequence.extend(ids);
    }
}

#[test]
fn an_answer_ends_where_the_model_ends_it() {
    let mut generation = start(spec(None));
    assert_eq!(
        say(&mut generation, &tiny::ids("hello")).next,
        Next::Continue
    );
    let last = say(&mut generation, &[tiny::END]);
    assert_eq!(last.next, Next::Stop(StopReason::EndOfText));
    assert_eq!(last.token, tiny::END);
    assert_eq!(generation.answer_text(), "hello");
    assert_eq!(generation.thought_len(), 0);
    assert_eq!(generation.ids().len(), 6);
    assert_eq!(generation.stop(), Some(StopReason::EndOfText));
}

#[test]
fn an_answer_ends_at_its_budget() {
    let mut generation = start(spec(None));
    let last = say(&mut generation, &tiny::ids("abcdefghijklmnopqrst"));
    assert_eq!(last.next, Next::Stop(StopReason::Length));
    assert_eq!(generation.ids().len(), generation.max_tokens());
}

#[test]
fn the_cue_takes_the_place_of_the_end_of_a_thought() {
    let mut generation = start(spec(Some(cued(10))));
    say(&mut generation, &tiny::ids("hmm"));
    let turn = say(&mut generation, &[tiny::END]);
    assert_eq!((turn.token, turn.logprob), (u32::from(b'\n'), 0.0));
    assert_eq!(turn.next, Next::Inject(tiny::ids("A:")));
    say(&mut generation, &tiny::ids(" 42"));
    let last = say(&mut generation, &[tiny::END]);
    assert_eq!(last.next, Next::Stop(StopReason::EndOfText));
    assert_eq!(generation.thought_text(), "hmm");
    assert_eq!(generation.answer_text(), " 42");
    let ids = [tiny::ids("hmm\nA: 42"), vec![tiny::END]].concat();
    assert_eq!(generation.ids(), ids);
    assert_eq!(generation.thought_len(), 6);
    let injected: Vec<bool> = generation.logprobs().iter().map(|&p| p == 0.0).collect();
    assert_eq!(injected[3..6], [true; 3]);
    assert!(generation.logprobs()[..3].iter().all(|&p| p < 0.0));
    assert_eq!(generation.judge().canonical, "42");
}

#[test]
fn the_cue_follows_a_thought_at_its_budget() {
    let mut generation = start(spec(Some(cued(4))));
    let turn = say(&mut generation, &tiny::ids("hmmm"));
    assert_eq!(turn.token, u32::from(b'm'));
    assert_eq!(turn.next, Next::Inject(tiny::ids("\nA:")));
    let last = say(&mut generation, &[tiny::ids("x"), vec![tiny::END]].concat());
    assert_eq!(last.next, Next::Stop(StopReason::EndOfText));
    assert_eq!(generation.ids()[..8], tiny::ids("hmmm\nA:x"));
}

#[test]
fn a_closed_thought_needs_no_bridge() {
    let mut generation = start(spec(Some(delimited(10))));
    say(&mut generation, &tiny::ids("hm"));
    let turn = say(&mut generation, &[tiny::CLOSE]);
    assert_eq!(turn.next, Next::Continue);
    assert_eq!(generation.thought_len(), 3);
    say(&mut generation, &tiny::ids("yes"));
    assert_eq!(generation.thought_text(), "hm");
    assert_eq!(generation.answer_text(), "yes");
}

#[test]
fn a_hard_end_and_an_early_end_both_close_the_thought() {
    let mut generation = start(spec(Some(delimited(3))));
    let turn = say(&mut generation, &tiny::ids("abc"));
    assert_eq!(turn.next, Next::Inject(vec![tiny::CLOSE, 10, 10]));
    let mut generation = start(spec(Some(delimited(3))));
    let turn = say(&mut generation, &[tiny::END]);
    assert_eq!(turn.token, tiny::CLOSE);
    assert_eq!(turn.next, Next::Inject(vec![10, 10]));
    assert_eq!(generation.thought_text(), "");
}

#[test]
fn a_delimiter_of_text_tokens_is_no_part_of_the_thought() {
    let thought = Thought {
        close: tiny::ids("</t>"),
        ..delimited(30)
    };
    let mut generation = start(spec(Some(thought)));
    say(&mut generation, &tiny::ids("a < b</t>ok"));
    assert_eq!(generation.thought_text(), "a < b");
    assert_eq!(generation.answer_text(), "ok");
}

#[test]
fn the_penalty_grows_past_half_the_budget() {
    let thought = Thought {
        penalty: 1.0,
        ..cued(20)
    };
    let mut generation = start(spec(Some(thought)));
    // The end is 3.5 below the favourite: it wins once the pull is 4.
    let mut logits = vec![0.0; tiny::LEN];
    logits[0x61] = 10.0;
    logits[tiny::END as usize] = 6.5;
    let ended = (0..20).find(|_| step(&mut generation, &logits).next != Next::Continue);
    assert_eq!(ended, Some(14));
    assert_eq!(generation.thought_text(), "a".repeat(14));
}

#[test]
fn stop_strings_end_the_answer_but_not_the_thought() {
    let mut asked = spec(Some(cued(4)));
    asked.stop = vec!["mm".to_owned()];
    let mut generation = start(asked);
    say(&mut generation, &tiny::ids("hmmm"));
    assert_eq!(say(&mut generation, &tiny::ids("xm")).next, Next::Continue);
    assert_eq!(generation.answer_text(), "x");
    let last = say(&mut generation, &tiny::ids("m"));
    assert_eq!(last.next, Next::Stop(StopReason::StopString));
    assert_eq!(generation.answer_text(), "x");
    assert_eq!(generation.ids().len(), 10);
}

#[test]
fn a_weak_branch_stops_in_thought_and_in_answer() {
    let weak = ConfidencePolicy {
        top_k: 2,
        window: 3,
        stop_below: Some(6.0),
    };
    let flat = vec![0.0; tiny::LEN];
    for thought in [Some(cued(10)), None] {
        let mut asked = spec(thought);
        asked.confidence = weak;
        let mut generation = start(asked);
        say(&mut generation, &tiny::ids("ab"));
        assert_eq!(step(&mut generation, &flat).next, Next::Continue);
        assert_eq!(step(&mut generation, &flat).next, Next::Continue);
        let last = step(&mut generation, &flat);
        assert_eq!(last.next, Next::Stop(StopReason::Confidence));
        assert_eq!(generation.ids().len(), 5);
        let nats = (tiny::LEN as f64).ln() * 1e6;
        assert!((generation.confidence().lowest() as f64 - nats).abs() < 10.0);
    }
}

fn constrained(kind: Kind) -> GenerationSpec {
    let answer = AnswerKind::read(Some(&v1::AnswerKind { kind: Some(kind) })).expect("a kind");
    let grammars = Grammars::new(Arc::new(tiny::vocabulary()));
    GenerationSpec {
        constraint: grammars.constraint(&answer).expect("a grammar"),
        answer,
        ..spec(Some(cued(3)))
    }
}

#[test]
fn the_grammar_holds_the_answer_but_not_the_thought() {
    let options = vec!["yes".to_owned(), "no".to_owned()];
    let mut generation = start(constrained(Kind::Choices(v1::Choices { options })));
    // "zzz" is as good a thought as any; as an answer, "z" is no choice and the next best is drawn.
    say(&mut generation, &tiny::ids("zzz"));
    let mut logits = sure(u32::from(b'z'));
    logits[257] = 5.0;
    let last = step(&mut generation, &logits);
    assert_eq!(last.next, Next::Stop(StopReason::Grammar));
    assert_eq!(generation.answer_text(), "no");
    assert!(generation.judge().valid);
    // The log-probability is the raw one, mask or not.
    assert!(last.logprob < -14.0);
}

#[test]
fn broken_logits_end_this_sequence_and_say_why() {
    let mut generation = start(spec(None));
    let broken = vec![f32::NAN; tiny::LEN];
    let error = generation
        .on_logits(&broken, &mut Scratch::default())
        .expect_err("broken");
    assert_eq!(generation.error(), Some(&error));
    assert_eq!(generation.stop(), Some(StopReason::Failed));
    assert!(generation.ids().is_empty());
}

#[test]
fn padding_of_the_weights_is_nobodys_token() {
    let mut generation = start(spec(None));
    let mut logits = sure(0x61);
    logits.extend([100.0; 20]);
    assert_eq!(step(&mut generation, &logits).token, 0x61);
}

#[test]
fn the_repetition_penalty_counts_prompt_and_generation() {
    let mut asked = spec(None);
    asked.sampling.repetition_penalty = 2.0;
    asked.prompt = tiny::ids("a");
    let mut generation = start(asked);
    let mut logits = vec![0.0; tiny::LEN];
    for (id, logit) in [(0x61, 6.0), (0x62, 5.0), (0x63, 4.0)] {
        logits[id] = logit;
    }
    let tokens: Vec<u32> = (0..2)
        .map(|_| step(&mut generation, &logits).token)
        .collect();
    assert_eq!(tokens, [0x62, 0x63]);
}

/// Logits that depend on the whole context, as a model's do.
fn model(context: &[u32]) -> Vec<f32> {
    let mut hash = context.iter().fold(0u64, |hash, &id| {
        (hash ^ u64::from(id))
            .wrapping_mul(0x100_0000_01b3)
            .rotate_left(17)
    });
    (0..tiny::LEN)
        .map(|_| {
            hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (hash >> 40) as f32 / (1 << 21) as f32
        })
        .collect()
}

/// Runs to the end; gives the generation and the deltas taken on the way.
fn run(spec: GenerationSpec, every: usize) -> (Generation, Vec<Delta>) {
    let mut generation = start(spec);
    let mut sequence = generation.prompt().to_vec();
    let mut deltas = Vec::new();
    let mut scratch = Scratch::default();
    for position in 0.. {
        let step = generation
            .on_logits(&model(&sequence), &mut scratch)
            .expect("a step");
        follow(&mut sequence, &step);
        assert_eq!(
            sequence[8..],
            *generation.ids(),
            "the record is the sequence"
        );
        if position % every == 0 {
            deltas.extend(std::iter::from_fn(|| generation.take_delta()));
        }
        if matches!(step.next, Next::Stop(_)) {
            break;
        }
    }
    assert!(generation.ids().len() <= generation.max_tokens());
    deltas.extend(std::iter::from_fn(|| generation.take_delta()));
    (generation, deltas)
}

fn sampled(seed: u64, thought: usize, delimiters: bool) -> GenerationSpec {
    let thought = match (thought, delimiters) {
        (0, _) => None,
        (tokens, true) => Some(delimited(tokens)),
        (tokens, false) => Some(cued(tokens)),
    };
    GenerationSpec {
        seed,
        sampling: Sampling {
            temperature: 1.0,
            top_p: 0.9,
            repetition_penalty: 1.1,
            ..Sampling::GREEDY
        },
        stop: vec!["yes".to_owned(), "\u{1}".to_owned()],
        ..spec(thought)
    }
}

proptest! {
    /// Deltas are without gaps, add up to the texts, and can be made again from any offset.
    #[test]
    fn deltas_add_up(seed in any::<u64>(), thought in 0usize..40, delimiters in any::<bool>(), every in 1usize..9) {
        let (generation, deltas) = run(sampled(seed, thought, delimiters), every);
        let text = |thought: bool| -> String {
            deltas.iter().filter(|d| d.thought == thought).map(|d| d.text.as_str()).collect()
        };
        prop_assert_eq!(text(true), generation.thought_text());
        prop_assert_eq!(text(false), generation.answer_text());
        let mut at = 0;
        for delta in &deltas {
            prop_assert_eq!(delta.offset, at);
            at += delta.tokens;
            let rest = generation.deltas_from(delta.offset as usize);
            prop_assert_eq!(rest[0].thought, delta.thought);
            prop_assert!(rest[0].text.starts_with(&delta.text));
        }
        prop_assert_eq!(at as usize, generation.ids().len());
        prop_assert!(generation.deltas_from(at as usize).is_empty());
    }

    /// The same spec and the same model give the same ids and the same bits, another seed others.
    #[test]
    fn a_generation_can_be_replayed(seed in any::<u64>(), thought in 0usize..40) {
        let (first, _) = run(sampled(seed, thought, false), 1);
        let (second, _) = run(sampled(seed, thought, false), 7);
        prop_assert_eq!(first.ids(), second.ids());
        prop_assert_eq!(first.logprob_digest(), second.logprob_digest());
        let (other, _) = run(sampled(seed ^ 1, thought, false), 1);
        prop_assert!(other.ids() != first.ids());
    }

    /// Where the phases meet is where the record says, whatever the model does.
    #[test]
    fn the_bridge_is_in_the_record(seed in any::<u64>(), thought in 1usize..60) {
        let (generation, _) = run(sampled(seed, thought, false), 1);
        let thinking = &generation.ids()[..generation.thought_len()];
        prop_assert!(thinking.ends_with(&tiny::ids("\nA:")));
        prop_assert!(thinking.len() <= thought + 3);
        prop_assert!(!thinking.contains(&tiny::END));
    }
}
