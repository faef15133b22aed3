//! The words that agents get. Short: small models follow one plain sentence best.
//!
//! A worker builds an agent's last user turn as question, context, tail, each behind an empty line, so
//! that agents of a round share every token up to their tails.

/// Put between thought and answer for models without thinking tokens.
pub(super) const CUE: &str = "\n\nFinal answer:";

/// Hints for proposers, in turn: different ways into the same question.
pub(super) const STRATEGIES: [&str; 8] = [
    "Think step by step, then state the final answer.",
    "First restate what is asked, then work it out and state the final answer.",
    "List the facts that matter, then reason from them to the final answer.",
    "Try a simple approach first, check it, then state the final answer.",
    "Work backwards from what the answer must look like, then state it.",
    "Consider a common mistake here, avoid it, then state the final answer.",
    "Break the question into small parts, solve each, then state the final answer.",
    "Look for a counterexample or a special case, then state the final answer.",
];

/// What a refiner does with the workspace.
pub(super) const REFINE: &str =
    "Use the drafts above, fix their mistakes, and work out a better answer.";

/// What the chair does with the workspace.
pub(super) const CHAIR: &str =
    "The drafts above may contain mistakes. Write the best final answer to the question.";

/// What a chair does with drafts that disagree, and that it reads in full.
pub(super) const EXPAND: &str = "The drafts above disagree. Check their steps, find where they go wrong, and write the correct \
                                 final answer to the question.";

/// The workspace as a round's shared context: numbered from 1, in the order of the drafts.
pub(super) fn workspace(entries: &[String]) -> String {
    let mut text = String::from("Drafts:");
    for (i, entry) in entries.iter().enumerate() {
        text.push_str(&format!("\n[{}] {}", i + 1, entry.trim()));
    }
    text
}

/// A distiller's tail: one draft, and what to make of it.
pub(super) fn distill(thought: &str, answer: &str) -> String {
    let thought = thought.trim();
    let gap = if thought.is_empty() { "" } else { "\n" };
    format!(
        "Draft:\n{thought}{gap}Answer: {}\n\nSummarize the draft: its final answer and the key \
         steps, in a few short sentences.",
        answer.trim()
    )
}
