//! Durations on the command line: a number with its unit.
use std::time::Duration;

/// Reads `250ms`, `30s`, `5m`, `2h`. A number without a unit is refused: a
/// deadline of "30" means seconds to one reader and milliseconds to another.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("`{text}` does not start with a whole number"))?;
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => {
            return Err(format!(
                "`{text}` has no unit: write {text}s, {text}ms, {text}m or {text}h"
            ));
        }
        other => return Err(format!("`{other}` is no unit: use ms, s, m or h")),
    };
    number
        .checked_mul(scale)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is too long"))
}

/// [`parse`], of a time that must pass: none at all is refused.
pub fn parse_positive(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err(format!(
            "`{text}` leaves no time: leave the flag out for none"
        )),
        duration => Ok(duration),
    }
}

/// Shows a duration the way a person says it: `1.4 s`, `2 min 05 s`.
pub fn show(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        let whole = duration.as_secs();
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7200)));
        assert!(parse("30").unwrap_err().contains("30s"));
        assert!(parse("3d").unwrap_err().contains("ms, s, m or h"));
        assert!(parse("s").is_err());
        assert!(
            parse("18446744073709551615h")
                .unwrap_err()
                .contains("too long")
        );
    }

    #[test]
    fn durations_read_like_speech() {
        assert_eq!(show(Duration::from_millis(1430)), "1.4 s");
        assert_eq!(show(Duration::from_secs(125)), "2 min 05 s");
    }
}
