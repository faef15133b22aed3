use super::*;
use proptest::prelude::*;
use v1::answer_kind::Kind;

fn read(kind: Kind) -> Result<AnswerKind, AnswerKindError> {
    AnswerKind::read(Some(&v1::AnswerKind { kind: Some(kind) }))
}

fn choices(options: &[&str]) -> Result<AnswerKind, AnswerKindError> {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    read(Kind::Choices(v1::Choices { options }))
}

fn valid(canonical: &str) -> Judgement {
    Judgement {
        canonical: canonical.to_owned(),
        valid: true,
    }
}

fn invalid() -> Judgement {
    Judgement {
        canonical: String::new(),
        valid: false,
    }
}

#[test]
fn a_choice_is_taken_as_it_is_written() {
    let kind = choices(&["Yes", "No", "not sure "]).expect("a kind");
    assert_eq!(kind.judge(" Yes\n", true), valid("Yes"));
    assert_eq!(kind.judge("not sure", true), valid("not sure"));
    assert_eq!(kind.judge("yes", true), invalid());
    assert_eq!(kind.judge("Yes, of course", true), invalid());
}

#[test]
fn choices_must_be_told_apart() {
    assert_eq!(choices(&[]).unwrap_err(), AnswerKindError::NoChoice);
    assert_eq!(
        choices(&["a", " "]).unwrap_err(),
        AnswerKindError::BlankChoice(1)
    );
    assert_eq!(
        choices(&["a", "b", " a"]).unwrap_err(),
        AnswerKindError::SameChoice("a".to_owned())
    );
    let many = vec!["x"; MAX_CHOICES + 1];
    assert_eq!(
        choices(&many).unwrap_err(),
        AnswerKindError::ManyChoices(MAX_CHOICES + 1)
    );
}

#[test]
fn a_regex_matches_the_whole_answer() {
    let kind = read(Kind::Regex(r"\d+|none".to_owned())).expect("a kind");
    assert_eq!(kind.judge(" 42\n", false), valid("42"));
    assert_eq!(kind.judge("42 apples", false), invalid());
    assert_eq!(kind.judge("nonesuch", false), invalid());
    let spaced = read(Kind::Regex(r" x ".to_owned())).expect("a kind");
    assert_eq!(spaced.judge(" x ", false), valid(" x "));
}

#[test]
fn a_wrong_regex_is_explained() {
    for wrong in ["(", "a)(b", ""] {
        let error = read(Kind::Regex(wrong.to_owned())).unwrap_err();
        assert!(error.to_string().starts_with("answer.regex is not valid"));
    }
    let long = "a".repeat(MAX_SOURCE + 1);
    assert!(matches!(
        read(Kind::Regex(long)),
        Err(AnswerKindError::TooLong { field: "regex", .. })
    ));
}

const PERSON: &str = r#"{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},
    "required":["name"],"additionalProperties":false}"#;

#[test]
fn json_is_validated_and_made_canonical() {
    let kind = read(Kind::JsonSchema(PERSON.to_owned())).expect("a kind");
    let canonical = r#"{"age":7,"name":"Ann"}"#;
    for same in [
        r#"{"name": "Ann", "age": 7}"#,
        r#" { "age" : 7.0 , "name":"\u0041nn" } "#,
        r#"{"age":0.7e1,"name":"Ann"}"#,
    ] {
        assert_eq!(kind.judge(same, false), valid(canonical), "{same}");
    }
    for wrong in [r#"{"age": 7}"#, r#"{"name": "Ann""#, "Ann", ""] {
        assert_eq!(kind.judge(wrong, false), invalid(), "{wrong}");
    }
}

#[test]
fn a_wrong_schema_is_explained() {
    let error = |source: &str| {
        read(Kind::JsonSchema(source.to_owned()))
            .unwrap_err()
            .to_string()
    };
    assert!(error("{").starts_with("answer.json_schema is not JSON"));
    let kind = error(r#"{"type": "objekt"}"#);
    assert!(kind.contains("objekt") && kind.contains("/type"), "{kind}");
    assert!(error("3").starts_with("answer.json_schema is not a valid schema"));
    let remote = error(r#"{"$ref": "http://example.com/schema.json"}"#);
    assert!(remote.contains("example.com"), "{remote}");
}

#[test]
fn free_text_gives_its_final_answer() {
    let judge = |text: &str| AnswerKind::FreeText.judge(text, false).canonical;
    assert_eq!(judge("Let me see.\nThe Answer is: **Paris**."), "paris");
    assert_eq!(judge("Answer: 3? No. Final answer:\n 4\nbecause"), "4");
    assert_eq!(judge("The first line\nthe  LAST one!\n\n"), "the last one");
    assert_eq!(judge(r"so \boxed{\frac{1}{2}} it is"), r"\frac{1}{2}");
    assert_eq!(judge("The answer is"), "the answer is");
    assert_eq!(AnswerKind::FreeText.judge(" \n. ", false), invalid());
}

#[test]
fn after_a_cue_the_first_line_counts() {
    let judge = |text: &str| AnswerKind::FreeText.judge(text, true).canonical;
    assert_eq!(judge("Paris.\n\nIt lies on the Seine."), "paris");
    assert_eq!(judge("\"Paris\""), "paris");
    assert_eq!(
        judge("It is **Paris**, *of course*."),
        "it is paris, *of course"
    );
}

#[test]
fn a_long_canonical_form_is_named_by_its_hash() {
    let long = "x".repeat(CANONICAL_BYTES + 1);
    let judged = AnswerKind::FreeText.judge(&long, true);
    assert_eq!(
        judged.canonical,
        format!("blake3:{}", blake3::hash(long.as_bytes()).to_hex())
    );
    let longest = "x".repeat(CANONICAL_BYTES);
    assert_eq!(AnswerKind::FreeText.judge(&longest, true), valid(&longest));
}

proptest! {
    /// Any text can be judged, and a canonical form is its own canonical form.
    #[test]
    fn free_text_is_idempotent(text in ".{0,60}", cued in any::<bool>()) {
        let once = AnswerKind::FreeText.judge(&text, cued);
        prop_assert!(once.canonical.len() <= CANONICAL_BYTES);
        prop_assume!(!once.canonical.contains("answer") && !once.canonical.contains("boxed"));
        let twice = AnswerKind::FreeText.judge(&once.canonical, cued);
        prop_assert_eq!(&twice, &once);
    }

    /// Key order, spaces and the way whole numbers are written do not count.
    #[test]
    fn json_says_the_same_however_it_is_written(
        keys in prop::collection::btree_set("[a-z]{1,3}", 1..6),
        numbers in prop::collection::vec(-1000i32..1000, 6),
    ) {
        let pairs: Vec<_> = keys.iter().zip(&numbers).collect();
        let document = |pairs: &[(&String, &i32)], float: bool, gap: &str| {
            let fields: Vec<String> = pairs
                .iter()
                .map(|(key, n)| format!("{gap}\"{key}\"{gap}:{gap}{n}{}", if float { ".0" } else { "" }))
                .collect();
            format!("{{{}}}", fields.join(","))
        };
        let kind = read(Kind::JsonSchema("{}".to_owned())).expect("a kind");
        let plain = kind.judge(&document(&pairs, false, ""), false);
        let reversed: Vec<_> = pairs.iter().rev().copied().collect();
        prop_assert_eq!(&kind.judge(&document(&reversed, true, " \n"), false), &plain);
        prop_assert!(plain.valid);
    }
}
