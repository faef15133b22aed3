use super::*;
use crate::sampling::uniform;
use crate::vocabulary::tiny;
use conclave_proto::v1::{self, answer_kind::Kind};
use proptest::prelude::*;

fn grammars() -> Grammars {
    Grammars::new(Arc::new(tiny::vocabulary()))
}

fn kind(kind: Kind) -> AnswerKind {
    AnswerKind::read(Some(&v1::AnswerKind { kind: Some(kind) })).expect("a kind")
}

fn choices(options: &[&str]) -> AnswerKind {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    kind(Kind::Choices(v1::Choices { options }))
}

fn constraint(of: &AnswerKind) -> Constraint {
    let constraint = grammars().constraint(of).expect("a grammar");
    constraint.expect("a constrained kind")
}

fn allowed(constraint: &mut Constraint) -> Vec<u32> {
    let mask = constraint.mask().expect("a mask");
    (0..tiny::LEN as u32)
        .filter(|&id| mask.is_allowed(id))
        .collect()
}

/// Writes an answer by drawing among the allowed tokens, ends preferred after `patience` tokens. None if
/// it does not come to an end.
fn random_answer(of: &AnswerKind, seed: u64, patience: usize) -> Option<String> {
    let vocabulary = tiny::vocabulary();
    let mut constraint = constraint(of);
    let mut bytes = Vec::new();
    for position in 0..patience + 300 {
        let ids = allowed(&mut constraint);
        assert!(!ids.is_empty(), "a dead end after {bytes:?}");
        let drawn = ids[(uniform(seed, position as u64) * ids.len() as f64) as usize];
        // Closing brackets and quotes come to an end sooner.
        let closing = [tiny::END, u32::from(b'"'), u32::from(b'}'), u32::from(b']')];
        let close = closing.into_iter().find(|id| ids.contains(id));
        let token = close.filter(|_| position >= patience).unwrap_or(drawn);
        if token == tiny::END {
            return Some(String::from_utf8(bytes).expect("UTF-8"));
        }
        bytes.extend_from_slice(vocabulary.text(token));
        if constraint.push(token).expect("an allowed token") {
            return Some(String::from_utf8(bytes).expect("UTF-8"));
        }
    }
    None
}

#[test]
fn free_text_is_not_constrained() {
    assert!(
        grammars()
            .constraint(&AnswerKind::FreeText)
            .expect("fine")
            .is_none()
    );
}

#[test]
fn choices_allow_their_beginnings_and_nothing_else() {
    let mut constraint = constraint(&choices(&["yes", "yesterday", "no"]));
    let first: Vec<u32> = vec![
        u32::from(b' '),
        u32::from(b'n'),
        u32::from(b'y'),
        256,
        257,
        258,
    ];
    assert_eq!(allowed(&mut constraint), first);
    assert!(!constraint.push(256).expect("yes"));
    // "yes" is complete, and can go on to "yesterday".
    assert_eq!(allowed(&mut constraint), [u32::from(b't'), tiny::END]);
    for byte in "terda".bytes() {
        assert!(!constraint.push(u32::from(byte)).expect("a letter"));
    }
    assert!(constraint.push(u32::from(b'y')).expect("the last letter"));
}

#[test]
fn the_last_token_of_a_choice_completes_it() {
    let mut constraint = constraint(&choices(&["yes", "no"]));
    assert!(constraint.push(257).expect("no"));
}

#[test]
fn choices_may_hold_any_character() {
    for option in ["a\"b\\c", "x\ny", "50 €", "<end>", "/a*/ (b|c)"] {
        let of = choices(&[option, "zzz"]);
        let seeds = 0..20;
        let answers: Vec<String> = seeds.filter_map(|s| random_answer(&of, s, 90)).collect();
        assert!(
            answers.iter().any(|answer| answer.trim() == option),
            "{option}"
        );
    }
}

#[test]
fn anchors_and_slashes_of_a_regex_are_understood() {
    for source in ["^[0-9]{2}$", "a/b|c", "(?i)yes|NO", "^(?:yes|no)$", "a?"] {
        let of = kind(Kind::Regex(source.to_owned()));
        let answer = random_answer(&of, 3, 4).expect("an end");
        assert!(of.judge(&answer, true).valid, "{source}: {answer:?}");
    }
}

#[test]
fn what_cannot_be_enforced_is_named() {
    let refused = |kind: &AnswerKind| {
        grammars()
            .constraint(kind)
            .expect_err("refused")
            .to_string()
    };
    let look = refused(&kind(Kind::Regex(r"\bword\b".to_owned())));
    assert!(
        look.starts_with("answer.regex cannot be enforced:"),
        "{look}"
    );
    let never = refused(&kind(Kind::JsonSchema("false".to_owned())));
    assert!(
        never.starts_with("answer.json_schema cannot be enforced:"),
        "{never}"
    );
    let none = Vocabulary::new([(&b"a"[..], false)], &[]);
    let error = Grammars::new(Arc::new(none)).constraint(&choices(&["a"]));
    assert_eq!(error.expect_err("refused"), GrammarError::NoEnd);
}

#[test]
fn a_kept_grammar_starts_from_its_beginning_each_time() {
    let grammars = grammars();
    let of = choices(&["yes", "no"]);
    let mut first = grammars
        .constraint(&of)
        .expect("fine")
        .expect("constrained");
    let fresh = allowed(&mut first);
    assert!(!first.push(u32::from(b'y')).expect("y"));
    let mut second = grammars
        .constraint(&of)
        .expect("fine")
        .expect("constrained");
    assert_eq!(allowed(&mut second), fresh);
    assert_eq!(allowed(&mut first), [u32::from(b'e')]);
}

const SCHEMAS: [&str; 6] = [
    r#"{"type":"object","properties":{"name":{"type":"string","maxLength":9},"age":{"type":"integer"},
        "ok":{"type":"boolean"}},"required":["name","ok"],"additionalProperties":false}"#,
    r#"{"type":"array","items":{"enum":["a","b",3]},"minItems":1,"maxItems":3}"#,
    r#"{"type":"number","minimum":0,"maximum":10}"#,
    r#"{"anyOf":[{"type":"null"},{"type":"string","pattern":"^[a-c]{2,4}$"}]}"#,
    r##"{"$ref":"#/$defs/pair","$defs":{"pair":{"type":"object","properties":{"x":{"const":1}},
        "required":["x"],"additionalProperties":false}}}"##,
    "true",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is drawn among the allowed tokens, an answer that came to an end is valid.
    #[test]
    fn a_finished_answer_is_valid(
        seed in any::<u64>(),
        patience in 0usize..40,
        which in 0..SCHEMAS.len() + 3,
    ) {
        let of = match which.checked_sub(SCHEMAS.len()) {
            None => kind(Kind::JsonSchema(SCHEMAS[which].to_owned())),
            Some(0) => choices(&["yes", "no", "maybe so"]),
            Some(1) => kind(Kind::Regex(r"(\+|-)?[0-9]{1,4}(\.[0-9]{1,2})?".to_owned())),
            _ => kind(Kind::Regex(r"[A-Z]\w{0,5}( \w{1,5}){0,2}€?".to_owned())),
        };
        if let Some(answer) = random_answer(&of, seed, patience) {
            // JSON's grammar has numbers that no float holds; the parser refuses those.
            let parsed = serde_json::from_str::<Value>(&answer);
            prop_assume!(!parsed.is_err_and(|error| error.to_string().contains("out of range")));
            prop_assert!(of.judge(&answer, true).valid, "{answer:?}");
        }
    }
}
