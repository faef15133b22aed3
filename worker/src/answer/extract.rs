//! The final answer of a free text, in a form that drafts can agree on.
//!
//! In this order: the content of the last `\boxed{…}`; what follows the last "answer:" or "answer is"; the
//! first line after a cue; else the last line. Then in lower case, spaces collapsed, bold type plain, and
//! quotes, emphasis and punctuation taken from its ends.

/// Words after which a text says its answer.
const MARKERS: [&str; 3] = ["answer:", "answer is:", "answer is"];

/// The canonical final answer; empty if the text says nothing.
pub(super) fn canonical(text: &str, cued: bool) -> String {
    // ASCII only, so that offsets in `lower` are offsets in `text`.
    let lower = text.to_ascii_lowercase();
    let marked = MARKERS
        .iter()
        .filter_map(|marker| lower.rfind(marker).map(|at| at + marker.len()))
        .max()
        .and_then(|at| first_line(&text[at..]));
    let answer = boxed(text).or(marked).or_else(|| {
        if cued {
            first_line(text)
        } else {
            last_line(text)
        }
    });
    answer.map(normal).unwrap_or_default()
}

fn boxed(text: &str) -> Option<&str> {
    const OPEN: &str = "\\boxed{";
    let inner = &text[text.rfind(OPEN)? + OPEN.len()..];
    let mut depth = 1;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&inner[..at]).filter(|inner| says_something(inner));
        }
    }
    None
}

fn first_line(text: &str) -> Option<&str> {
    text.lines().find(|line| says_something(line))
}

fn last_line(text: &str) -> Option<&str> {
    text.lines().rev().find(|line| says_something(line))
}

fn says_something(text: &str) -> bool {
    text.chars().any(char::is_alphanumeric) || !normal(text).is_empty()
}

fn normal(text: &str) -> String {
    let mut text = text.to_owned();
    while text.contains("**") {
        text = text.replace("**", "");
    }
    let trimmed = text.trim_matches(|c: char| {
        c.is_whitespace()
            || matches!(
                c,
                '.' | ','
                    | ';'
                    | ':'
                    | '!'
                    | '?'
                    | '"'
                    | '\''
                    | '`'
                    | '*'
                    | '_'
                    | '“'
                    | '”'
                    | '’'
                    | '‘'
            )
    });
    let words: Vec<&str> = trimmed.split_whitespace().collect();
    words.join(" ").to_lowercase()
}
