//! How jobs came to their answers: what agreement saved, what doubt cost, what people overrode.

use metrics::{Unit, counter, describe_counter};

/// Registers HELP and unit, and lets every counter begin at 0.
pub(super) fn describe() {
    describe_counter!(
        "conclave_jobs_would_expand_total",
        Unit::Count,
        "Jobs that ended while this member led with votes that left the answer open, and had not asked to be expanded"
    );
    describe_counter!(
        "conclave_jobs_expanded_total",
        Unit::Count,
        "Jobs that ended while this member led of which a chair read the disputed drafts in full"
    );
    describe_counter!(
        "conclave_jobs_agreed_early_total",
        Unit::Count,
        "Jobs that ended while this member led before their plan did, because their drafts agreed"
    );
    describe_counter!(
        "conclave_reviews_total",
        Unit::Count,
        "Answers that people reviewed while this member led, by verdict (approve, edit, reject)"
    );
    for name in [
        "conclave_jobs_would_expand_total",
        "conclave_jobs_expanded_total",
        "conclave_jobs_agreed_early_total",
    ] {
        counter!(name).increment(0);
    }
    for verdict in ["approve", "edit", "reject"] {
        counter!("conclave_reviews_total", "verdict" => verdict).increment(0);
    }
}

/// A job ended with votes that leave its answer open, and had not asked for more.
pub fn would_expand() {
    counter!("conclave_jobs_would_expand_total").increment(1);
}

/// A job ended of which a chair read the disputed drafts in full.
pub fn expanded() {
    counter!("conclave_jobs_expanded_total").increment(1);
}

/// A job was answered before its plan ended: its drafts agreed.
pub fn agreed_early() {
    counter!("conclave_jobs_agreed_early_total").increment(1);
}

/// A person decided on an answer.
pub fn reviewed(verdict: &'static str) {
    counter!("conclave_reviews_total", "verdict" => verdict).increment(1);
}
