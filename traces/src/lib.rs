//! Spans of jobs, and their way to a collector over OTLP/gRPC.
//!
//! Off unless a program's settings hold a `[traces]` table ([`Settings`]): then [`begin`] gives a [`Traces`] to
//! hand spans to, which never waits, and an [`Exporter`] to end it with. Standard environment variables
//! (`OTEL_*`) are not read: nothing but the settings opens a connection.
//!
//! Whatever is said of a job goes by ids that follow from the job's own ([`ids`]): the nodes that lead one after
//! another, and the workers, make one trace of it without telling each other anything. Spans are made when what
//! they tell of has ended, with all that is known of it; there is no context to carry, and so no SDK.

mod draft;
mod export;
pub mod ids;
pub mod metrics;
pub mod names;
mod settings;
pub mod span;

pub use export::{Exporter, Identity, StartError, Traces, begin};
pub use ids::{Caller, SpanId, TraceId};
pub use settings::{KEYS, Settings, SettingsError};
pub use span::{Kind, Span};
