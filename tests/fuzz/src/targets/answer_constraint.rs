//! What clients say of an answer's form: choices, a regular expression, a JSON schema; compiled, and
//! followed for some tokens.

use std::sync::{Arc, LazyLock};

use conclave_proto::v1::{AnswerKind as Asked, Choices, answer_kind::Kind};
use conclave_worker::{answer::AnswerKind, grammar::Grammars, vocabulary::Vocabulary};

use crate::{Limits, Target};

/// The first byte says which form the rest is.
pub const TARGET: Target = Target {
    name: "answer_constraint",
    run,
    seeds,
    words: &[
        "\\d",
        "\\w{9}",
        "(?:",
        ")*",
        "{1,99}",
        "\\p{L}",
        "[^a]",
        "|",
        "(?i)",
        "\\b",
        "^",
        "$",
        ".*",
        "\"type\":",
        "\"object\"",
        "\"properties\":{",
        "\"pattern\":\"",
        "\"$ref\":\"#\"",
        "\"anyOf\":[",
        "\"minLength\":",
        "\"maxItems\":",
        "\"enum\":[",
        "\"allOf\":[",
        "\"format\":\"date\"",
        "\"multipleOf\":",
        "\"minimum\":",
        "\"additionalProperties\":",
        "\"patternProperties\":{",
    ],
    inputs: 2000,
    limits: Limits {
        memory: 256 << 20,
        memory_per_byte: 64 << 10,
        time: std::time::Duration::from_secs(4),
    },
};

/// Every byte, some words, and an end.
fn vocabulary() -> Arc<Vocabulary> {
    static ONE: LazyLock<Arc<Vocabulary>> = LazyLock::new(|| {
        let bytes: Vec<[u8; 1]> = (0..=255).map(|byte| [byte]).collect();
        let words: [&[u8]; 6] = [b"yes", b"no", b"{\"", b"\":", b" the", b"12"];
        let plain = bytes.iter().map(|byte| (&byte[..], false));
        let words = words.iter().map(|word| (*word, false));
        let end = [(&b"<end>"[..], true)];
        let tokens = plain.chain(words).chain(end);
        Arc::new(Vocabulary::new(tokens, &[262]))
    });
    Arc::clone(&ONE)
}

fn run(input: &[u8]) {
    let Some((form, text)) = input.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let kind = match form % 3 {
        0 => Kind::Choices(Choices {
            options: text.split('\n').map(str::to_owned).collect(),
        }),
        1 => Kind::Regex(text.to_owned()),
        _ => Kind::JsonSchema(text.to_owned()),
    };
    let asked = Asked { kind: Some(kind) };
    let kind = match AnswerKind::read(Some(&asked)) {
        Ok(kind) => kind,
        Err(error) => {
            assert!(error.to_string().starts_with("answer."), "{error}");
            return;
        }
    };
    for answer in ["", "yes", "{\"a\": 1}", "12"] {
        let judged = kind.judge(answer, false);
        assert!(
            judged.valid || judged.canonical.is_empty(),
            "what is wrong has no vote"
        );
    }
    let Ok(Some(mut constraint)) = Grammars::new(vocabulary()).constraint(&kind) else {
        return;
    };
    for turn in 0..12 {
        let Ok(mask) = constraint.mask() else { return };
        let allowed: Vec<u32> = (0..262).filter(|id| mask.is_allowed(*id)).collect();
        let Some(&token) = allowed.get(turn * 7 % allowed.len().max(1)) else {
            return;
        };
        if constraint.push(token).unwrap_or(true) {
            return;
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "\0yes\nno\nperhaps",
        "\u{1}[a-z]+(-[0-9]{2,4})?",
        "\u{1}(a|b)*c\\d+",
        "\u{1}(?i)\\p{Greek}\\w{3}",
        "\u{2}{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"pattern\":\"^[a-z]{1,9}$\"},\
         \"age\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":150}},\"required\":[\"name\"],\
         \"additionalProperties\":false}",
        "\u{2}{\"anyOf\":[{\"type\":\"array\",\"items\":{\"$ref\":\"#\"},\"maxItems\":3},{\"enum\":[1,\"a\",null]}]}",
        "\u{2}{\"type\":\"string\",\"format\":\"date-time\",\"minLength\":3}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    // Each fits its limits alone; together they are many.
    let patterns = (0..100)
        .map(|n| format!("\"p{n}\":{{\"type\":\"string\",\"pattern\":\"\\\\w{{60}}{n}\"}}"));
    let patterns: Vec<String> = patterns.collect();
    let many = format!("\u{2}{{\"properties\":{{{}}}}}", patterns.join(","));
    seeds.push(many.into_bytes());
    seeds
}
