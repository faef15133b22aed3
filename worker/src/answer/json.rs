//! JSON documents that say the same, as the same bytes.

use std::fmt::Write;

use serde_json::{Number, Value};

/// Compact, keys in byte order, whole numbers as integers.
pub(super) fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Number(number) => write_number(number, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                separate(index, out);
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(entries) => {
            let mut sorted: Vec<_> = entries.iter().collect();
            sorted.sort_unstable_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (index, (key, item)) in sorted.into_iter().enumerate() {
                separate(index, out);
                write_plain(&Value::from(key.as_str()), out);
                out.push(':');
                write(item, out);
            }
            out.push('}');
        }
        Value::Null | Value::Bool(_) | Value::String(_) => write_plain(value, out),
    }
}

fn separate(index: usize, out: &mut String) {
    if index > 0 {
        out.push(',');
    }
}

/// `Display` of a JSON value is compact JSON; writing to a string does not fail.
fn write_plain(value: &Value, out: &mut String) {
    let _ = write!(out, "{value}");
}

fn write_number(number: &Number, out: &mut String) {
    // Beyond 2^53 a float does not name one integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let _ = match number.as_f64() {
        Some(x) if number.is_f64() && x.fract() == 0.0 && x.abs() <= EXACT => {
            write!(out, "{}", x as i64)
        }
        _ => write!(out, "{number}"),
    };
}
