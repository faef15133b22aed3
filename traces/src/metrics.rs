//! What becomes of spans: names, help texts and units.

use metrics::{Unit, counter, describe_counter};

/// Spans that a collector took.
const EXPORTED: &str = "conclave_traces_exported_spans_total";
/// Spans that none did.
const DROPPED: &str = "conclave_traces_dropped_spans_total";

/// Why spans are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The queue was full: the collector is slow or away.
    QueueFull,
    /// The collector was away, or said no, however often it was asked.
    ExportFailed,
    /// The collector took the others of a batch, and not these.
    Rejected,
    /// The program ended before they were sent.
    Shutdown,
}

impl Dropped {
    const ALL: [Self; 4] = [
        Self::QueueFull,
        Self::ExportFailed,
        Self::Rejected,
        Self::Shutdown,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ExportFailed => "export_failed",
            Self::Rejected => "rejected",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Says what the metrics mean; they are there, at zero, from the start.
pub(crate) fn describe() {
    describe_counter!(
        EXPORTED,
        Unit::Count,
        "Spans that the collector of traces took"
    );
    describe_counter!(
        DROPPED,
        Unit::Count,
        "Spans that were lost, by reason; nothing else is"
    );
    exported(0);
    Dropped::ALL
        .into_iter()
        .for_each(|reason| dropped(reason, 0));
}

pub(crate) fn exported(count: usize) {
    counter!(EXPORTED).increment(count as u64);
}

pub(crate) fn dropped(reason: Dropped, count: usize) {
    counter!(DROPPED, "reason" => reason.name()).increment(count as u64);
}
