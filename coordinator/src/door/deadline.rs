//! How long a caller waits (`grpc-timeout`): read strictly, and held to in the caller's own word. What serves
//! under this door would end such a call with CANCELLED, which says that the caller gave it up.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};
use tonic::{Status, codegen::http::HeaderMap};

/// Seconds of a minute, of an hour.
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// How long the caller waits; `None` if it does not say.
///
/// # Errors
/// INVALID_ARGUMENT for what is no `grpc-timeout`, DEADLINE_EXCEEDED for one that is over already.
pub fn asked(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    match value.to_str().ok().and_then(parse) {
        None => Err(Status::invalid_argument(
            "grpc-timeout: it is 1 to 8 digits and a unit of H, M, S, m, u, n",
        )),
        Some(Duration::ZERO) => Err(late()),
        Some(wait) => Ok(Some(wait)),
    }
}

/// `grpc-timeout`: up to 8 digits and a unit.
pub fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // A number's own parser takes a sign, too.
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * HOUR)),
        "M" => Some(Duration::from_secs(count * MINUTE)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// A clock that runs from now on, so that it is not behind others of the same call.
pub fn clock(wait: Option<Duration>) -> Option<Sleep> {
    wait.map(sleep)
}

/// What `answer` says, if it does so before `clock` has run out; else DEADLINE_EXCEEDED.
pub async fn within<T>(clock: Option<Sleep>, answer: impl Future<Output = T>) -> Result<T, Status> {
    let Some(clock) = clock else {
        return Ok(answer.await);
    };
    let (mut clock, mut answer) = (pin!(clock), pin!(answer));
    poll_fn(|cx| {
        if let Poll::Ready(said) = answer.as_mut().poll(cx) {
            return Poll::Ready(Ok(said));
        }
        // Another timer of the same moment may have woken this call before its own did.
        let over = Instant::now() >= clock.deadline();
        match over || clock.as_mut().poll(cx).is_ready() {
            true => Poll::Ready(Err(late())),
            false => Poll::Pending,
        }
    })
    .await
}

fn late() -> Status {
    Status::deadline_exceeded("the time that `grpc-timeout` gave is over")
}

#[cfg(test)]
mod tests {
    use tonic::{Code, codegen::http::HeaderValue};

    use super::*;

    #[test]
    fn a_timeout_is_eight_digits_and_a_unit() {
        for (text, want) in [
            ("1H", Some(3_600_000_000)),
            ("2M", Some(120_000_000)),
            ("99999999H", Some(359_999_996_400_000_000)),
            ("5S", Some(5_000_000)),
            ("10m", Some(10_000)),
            ("7u", Some(7)),
            ("0n", Some(0)),
            ("", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("+5S", None),
            ("-5S", None),
            (" 5S", None),
            ("1.5S", None),
            ("123456789S", None),
            ("5\u{e4}", None),
        ] {
            let found = parse(text).map(|d| d.as_micros());
            assert_eq!(found, want, "{text:?}");
        }
    }

    #[test]
    fn what_is_over_and_what_is_no_time_are_told_apart() {
        let with = |text: &'static str| {
            let value = HeaderValue::from_static(text);
            HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), value)])
        };
        assert_eq!(asked(&HeaderMap::new()).unwrap(), None);
        assert_eq!(asked(&with("1S")).unwrap(), Some(Duration::from_secs(1)));
        let code = |text| asked(&with(text)).unwrap_err().code();
        assert_eq!(code("0n"), Code::DeadlineExceeded);
        assert_eq!(code("soon"), Code::InvalidArgument);
    }

    #[tokio::test]
    async fn an_answer_that_stays_away_ends_as_a_deadline_does() {
        let soon = clock(Some(Duration::from_millis(5)));
        let late = within(soon, std::future::pending::<()>()).await;
        assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
        assert_eq!(within(None, async { 7 }).await.unwrap(), 7);
    }
}
