//! Names of traces and spans. A job's trace is called like the job; its spans' names follow from what they tell
//! of. So whoever speaks of the job next, on whatever machine, goes on with the same trace.

use std::fmt;

use uuid::Uuid;

/// Bits of a trace's name, the last ones, that decide whether it is sampled. Of the 56 that W3C trace context level 2
/// holds for random, a job's first ones count on: its id is a UUID of version 7, and jobs of one moment share them.
const RANDOM_BITS: u32 = 32;

/// The name of a trace; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// The name of a span within its trace; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// The trace of a job: its id without the hyphens. `None` for an id that no coordinator minted.
    pub fn of_job(job_id: &str) -> Option<Self> {
        let id = Uuid::try_parse(job_id).ok()?;
        (!id.is_nil()).then(|| Self(id.into_bytes()))
    }

    /// A new one.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes)?;
        bytes[0] |= 1;
        Ok(Self(bytes))
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Whether it is among this share of traces. Everybody who asks with the same share hears the same.
    pub fn within(&self, share: f64) -> bool {
        let all = 1_u64 << RANDOM_BITS;
        let [.., a, b, c, d] = self.0;
        let random = u64::from(u32::from_be_bytes([a, b, c, d]));
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of 2^32, which f64 holds"
        )]
        let threshold = ((1.0 - share.clamp(0.0, 1.0)) * all as f64) as u64;
        share > 0.0 && random >= threshold
    }
}

impl SpanId {
    /// A span that follows from its trace and what it tells of.
    fn of(trace: TraceId, what: &str, numbers: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("conclave v1 span id");
        hasher.update(&trace.0);
        hasher.update(what.as_bytes());
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
        Self([a | 1, b, c, d, e, f, g, h])
    }

    /// The whole job.
    pub fn job(trace: TraceId) -> Self {
        Self::of(trace, "job", &[])
    }

    /// What the job did first, second, ...: `index` counts from 0.
    pub fn phase(trace: TraceId, index: u32) -> Self {
        Self::of(trace, "phase", &[index])
    }

    /// One attempt of one agent.
    pub fn attempt(trace: TraceId, agent: u32, attempt: u32) -> Self {
        Self::of(trace, "attempt", &[agent, attempt])
    }

    /// What a worker does for an attempt: `part` names it.
    pub fn work(trace: TraceId, agent: u32, attempt: u32, part: &str) -> Self {
        Self::of(trace, part, &[agent, attempt])
    }

    /// A new one.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0_u8; 8];
        getrandom::fill(&mut bytes)?;
        bytes[0] |= 1;
        Ok(Self(bytes))
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// What a caller says of its own trace, in W3C's `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its trace.
    pub trace: TraceId,
    /// The span that calls.
    pub span: SpanId,
    /// Whether it keeps the trace.
    pub sampled: bool,
}

impl Caller {
    /// Reads `traceparent`; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = hex::<1>(parts.next()?)?[0];
        let trace = TraceId(hex(parts.next()?)?);
        let span = SpanId(hex(parts.next()?)?);
        let flags = hex::<1>(parts.next()?)?[0];
        // Later versions may go on; this one may not.
        let whole = version != 0xff && (version > 0 || parts.next().is_none());
        let named = trace.0 != [0; 16] && span.0 != [0; 8];
        (whole && named).then_some(Self {
            trace,
            span,
            sampled: flags & 1 == 1,
        })
    }
}

/// Lower-case hexadecimal digits of so many bytes.
fn hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * BYTES {
        return None;
    }
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "0198f2d4-7c3e-7a51-9b0c-3f6d2e8a1b47";

    #[test]
    fn a_trace_is_called_like_its_job_and_spans_follow_from_what_they_tell_of() {
        let trace = TraceId::of_job(JOB).unwrap();
        assert_eq!(trace.to_string(), JOB.replace('-', ""));
        // These ids are in collectors: another value is another span.
        assert_eq!(SpanId::job(trace), SpanId::job(trace));
        let all = [
            SpanId::job(trace),
            SpanId::phase(trace, 0),
            SpanId::phase(trace, 1),
            SpanId::attempt(trace, 1, 2),
            SpanId::attempt(trace, 2, 1),
            SpanId::work(trace, 1, 2, "chat"),
            SpanId::work(trace, 1, 2, "decode"),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{one} stands for two");
            assert_ne!(one.bytes(), &[0; 8]);
        }
        assert_eq!(TraceId::of_job("j"), None);
    }

    #[test]
    fn a_share_of_traces_is_kept_and_everybody_keeps_the_same() {
        let traces: Vec<TraceId> = (0..4_000).map(|_| TraceId::random().unwrap()).collect();
        let kept = |share: f64| traces.iter().filter(|t| t.within(share)).count();
        assert_eq!((kept(0.0), kept(1.0)), (0, traces.len()));
        let quarter = kept(0.25);
        assert!((800..1_200).contains(&quarter), "{quarter} of 4000");
        let both = |t: &&TraceId| t.within(0.25) && !t.within(0.5);
        assert_eq!(traces.iter().filter(both).count(), 0, "shares nest");
    }

    #[test]
    fn jobs_of_one_moment_are_not_all_or_none() {
        let of_job = |_| TraceId::of_job(&Uuid::now_v7().to_string()).unwrap();
        let kept = (0..4_000)
            .map(of_job)
            .filter(|trace| trace.within(0.5))
            .count();
        assert!((1_000..3_000).contains(&kept), "{kept} of 4000");
    }

    #[test]
    fn a_callers_trace_is_read_and_nonsense_is_not() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let caller = Caller::parse(good).unwrap();
        assert_eq!(caller.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(caller.span.to_string(), "00f067aa0ba902b7");
        assert!(caller.sampled);
        assert!(!Caller::parse(&good.replace("-01", "-00")).unwrap().sampled);
        let later = good.replacen("00-", "01-", 1) + "-more";
        assert!(Caller::parse(&later).is_some());
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Caller::parse(bad), None, "{bad}");
        }
    }
}
