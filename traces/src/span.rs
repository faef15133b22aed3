//! One span, made when what it tells of has ended.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value},
    trace::v1::{
        Span as Wire, Status,
        span::{Link, SpanKind},
        status::StatusCode,
    },
};

use crate::{
    ids::{Caller, SpanId, TraceId},
    names,
};

/// Bit of W3C's flags: the trace is kept.
const SAMPLED: u32 = 1;
/// Bits of OTLP's flags: it is said whether the parent is another program's, and it is.
const SAYS_WHERE_PARENT_IS: u32 = 0x100;
const PARENT_IS_ELSEWHERE: u32 = 0x200;

/// What part a span plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Inside of one program.
    Internal,
    /// It answers a call.
    Server,
    /// It has another program do something.
    Client,
}

/// One span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span(Wire);

impl Span {
    /// From `start` to `end`, ns of Unix time; an end before the start (clocks differ) is the start.
    pub fn new(
        trace: TraceId,
        id: SpanId,
        kind: Kind,
        name: impl Into<String>,
        start: u64,
        end: u64,
    ) -> Self {
        let kind = match kind {
            Kind::Internal => SpanKind::Internal,
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
        };
        Self(Wire {
            trace_id: trace.bytes().to_vec(),
            span_id: id.bytes().to_vec(),
            flags: SAMPLED | SAYS_WHERE_PARENT_IS,
            name: name.into(),
            kind: kind as i32,
            start_time_unix_nano: start,
            end_time_unix_nano: end.max(start),
            ..Wire::default()
        })
    }

    /// Below another span of the same trace, which this program says, too.
    #[must_use]
    pub fn below(mut self, parent: SpanId) -> Self {
        self.0.parent_span_id = parent.bytes().to_vec();
        self
    }

    /// Below a span of the same trace that another program says.
    #[must_use]
    pub fn below_remote(mut self, parent: SpanId) -> Self {
        self.0.flags |= PARENT_IS_ELSEWHERE;
        self.below(parent)
    }

    /// An attribute. None is for what people or models wrote.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.0.attributes.push(KeyValue {
            key: key.to_owned(),
            value: Some(value.into().0),
            ..KeyValue::default()
        });
        self
    }

    /// An attribute, if there is a value.
    #[must_use]
    pub fn with_some(self, key: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// A span of another trace that belongs to it.
    #[must_use]
    pub fn link(mut self, trace: TraceId, id: SpanId) -> Self {
        self.0.links.push(Link {
            trace_id: trace.bytes().to_vec(),
            span_id: id.bytes().to_vec(),
            flags: SAMPLED,
            ..Link::default()
        });
        self
    }

    /// It went wrong: with what class of error, of few values.
    #[must_use]
    pub fn failed(mut self, error_type: &'static str) -> Self {
        self.0.status = Some(Status {
            code: StatusCode::Error as i32,
            message: String::new(),
        });
        self.with(names::ERROR_TYPE, error_type)
    }

    /// As it goes to the collector.
    pub(crate) fn into_wire(self) -> Wire {
        self.0
    }
}

impl Caller {
    /// A span of the caller's trace, below the span that called.
    pub fn child(&self, id: SpanId, kind: Kind, name: &str, start: u64, end: u64) -> Span {
        Span::new(self.trace, id, kind, name, start, end).below_remote(self.span)
    }
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Value(pub(crate) AnyValue);

impl Value {
    fn of(value: any_value::Value) -> Self {
        Self(AnyValue { value: Some(value) })
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::of(any_value::Value::StringValue(text.to_owned()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::of(any_value::Value::StringValue(text))
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::of(any_value::Value::BoolValue(yes))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::of(any_value::Value::IntValue(number.into()))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        Self::of(any_value::Value::IntValue(number))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::of(any_value::Value::DoubleValue(number))
    }
}

impl From<&[&str]> for Value {
    fn from(texts: &[&str]) -> Self {
        let values = texts.iter().map(|text| Self::from(*text).0).collect();
        Self::of(any_value::Value::ArrayValue(ArrayValue { values }))
    }
}

/// A moment of the wall clock, ns of Unix time.
pub fn unix_nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Unix ms in ns.
pub fn nanos_of_ms(unix_ms: i64) -> u64 {
    u64::try_from(unix_ms)
        .unwrap_or(0)
        .saturating_mul(1_000_000)
}
