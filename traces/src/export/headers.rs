//! Metadata of every call to the collector, from a file. Nothing of it is ever shown.

use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

/// What is sent with every call.
#[derive(Clone, Default)]
pub(super) struct Headers(Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>);

/// A line that is no header.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: not `name: value` in visible ASCII")]
pub struct HeadersError {
    line: usize,
}

impl Headers {
    /// One `name: value` a line; empty lines, and those that begin with `#`, say nothing.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, HeadersError> {
        let mut headers = Vec::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let wrong = || HeadersError { line: index + 1 };
            let line = str::from_utf8(line).map_err(|_| wrong())?.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = line.split_once(':').ok_or_else(wrong)?;
            let name = name.trim().to_ascii_lowercase();
            let name = MetadataKey::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let mut value: MetadataValue<Ascii> = value.trim().parse().map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.push((name, value));
        }
        Ok(Self(headers))
    }

    /// As a call carries them.
    pub(super) fn metadata(&self) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (name, value) in &self.0 {
            map.append(name.clone(), value.clone());
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_lines_and_what_is_wrong_is_not_shown() {
        let text = b"# for the collector\nAuthorization: Bearer a:b\n\nx-scope-orgid:team\n";
        let map = Headers::parse(text).unwrap().metadata();
        assert_eq!(map.get("authorization").unwrap(), "Bearer a:b");
        assert_eq!(map.get("x-scope-orgid").unwrap(), "team");
        assert!(!format!("{map:?}").contains("Bearer"), "{map:?}");
        for bad in ["secret", "a b: secret", "a: secr\u{e9}t\u{7}"] {
            let error = Headers::parse(format!("x: y\n{bad}").as_bytes())
                .err()
                .unwrap();
            assert_eq!(
                error.to_string(),
                "line 2: not `name: value` in visible ASCII"
            );
        }
    }
}
