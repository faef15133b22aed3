//! The tokens file: JSON lines of a token, its tenant and its role.

use std::{collections::BTreeMap, str};

use serde::Deserialize;
use tonic::metadata::AsciiMetadataValue;

use super::{Principal, Role};

/// Why a tokens file is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It is no text.
    #[error("the tokens file is not UTF-8 text")]
    NotText,
    /// A line is not what it should be; the token itself is never shown.
    #[error("tokens file, line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// Coordinators could not speak to each other.
    #[error(
        "the tokens file has no token of role `peer`, with which coordinators speak to each other: \
         add a line {{\"token\": \"...\", \"role\": \"peer\"}}, the same at every member"
    )]
    NoPeer,
}

/// The tokens that are known: JSON lines of
/// `{"token": "...", "tenant": "...", "role": "submitter"}`.
///
/// Tokens are looked up by their blake3 hash, so that the time a lookup takes
/// tells nothing about how much of a guess was right.
#[derive(Clone, Default)]
pub struct Tokens {
    known: BTreeMap<[u8; 32], Principal>,
    peer: Option<AsciiMetadataValue>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.known.len())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    token: String,
    #[serde(default)]
    tenant: String,
    role: String,
}

/// What is wrong with a line that does not parse, without quoting it: it may
/// hold a token.
fn wrong_line(line: &str, error: &serde_json::Error) -> String {
    match serde_json::from_str::<serde_json::Value>(line) {
        Err(_) => format!("not JSON (column {})", error.column()),
        Ok(_) => {
            "a line is {\"token\": \"...\", \"tenant\": \"...\", \"role\": \"...\"}, all of them texts"
                .to_owned()
        }
    }
}

impl Tokens {
    /// From the bytes of a file.
    ///
    /// # Errors
    /// As [`Tokens::parse`], and bytes that are no text.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokensError> {
        Self::parse(str::from_utf8(bytes).map_err(|_| TokensError::NotText)?)
    }

    /// From the text of a file.
    ///
    /// # Errors
    /// [`TokensError`]: a line that does not parse, a token that is short, cannot be sent or is given
    /// twice, a submitter without tenant, a worker with one, no peer token.
    pub fn parse(text: &str) -> Result<Self, TokensError> {
        let mut known = BTreeMap::new();
        let mut peer = None;
        for (number, line) in text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim().is_empty())
        {
            let refuse = |why: String| TokensError::Line {
                line: number + 1,
                why,
            };
            let entry: Line =
                serde_json::from_str(line).map_err(|e| refuse(wrong_line(line, &e)))?;
            let Some(role) = Role::named(&entry.role) else {
                return Err(refuse(format!(
                    "an unknown role; the roles are {}",
                    Role::NAMES.join(", ")
                )));
            };
            if entry.token.len() < 8 {
                return Err(refuse("a token has at least 8 characters".to_owned()));
            }
            let sent = shown(&entry.token).ok_or_else(|| {
                refuse(
                    "a token is of visible ASCII characters: no header carries others".to_owned(),
                )
            })?;
            if !role.is_of_the_cluster() && entry.tenant.is_empty() {
                return Err(refuse("this role needs a tenant".to_owned()));
            }
            if role.is_of_the_cluster() && !entry.tenant.is_empty() {
                return Err(refuse(
                    "this role belongs to no tenant: it serves the jobs of all; leave `tenant` out"
                        .to_owned(),
                ));
            }
            if role == Role::Peer && peer.is_none() {
                peer = Some(sent);
            }
            let principal = Principal {
                tenant: entry.tenant,
                role,
            };
            if known.insert(hash(&entry.token), principal).is_some() {
                return Err(refuse("the same token stands above".to_owned()));
            }
        }
        if peer.is_none() {
            return Err(TokensError::NoPeer);
        }
        Ok(Self { known, peer })
    }

    /// Whose token this is.
    pub fn find(&self, token: &str) -> Option<Principal> {
        self.known.get(&hash(token)).cloned()
    }

    /// What a node shows to its peers: the first peer's token, ready to be sent.
    pub fn peer(&self) -> Option<&AsciiMetadataValue> {
        self.peer.as_ref()
    }
}

/// As the header that carries it; `None` if none can.
fn shown(token: &str) -> Option<AsciiMetadataValue> {
    let visible = token.bytes().all(|byte| byte.is_ascii_graphic());
    let mut value: AsciiMetadataValue = format!("Bearer {token}").parse().ok()?;
    value.set_sensitive(true);
    visible.then_some(value)
}

fn hash(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_tokens_file_names_the_line_and_never_the_token() {
        for (text, want) in [
            (
                "{\"token\": \"secret-thing\", \"role\": \"king\"}",
                "line 1: an unknown role; the roles are submitter, reviewer",
            ),
            ("secret-thing", "line 1: not JSON"),
            ("{\"tokens\": \"secret-thing\"}", "line 1: a line is"),
            (
                "{\"token\": \"x\", \"tenant\": \"a\", \"role\": \"submitter\"}",
                "8 characters",
            ),
            (
                "{\"token\": \"secret-thing\", \"role\": \"submitter\"}",
                "needs a tenant",
            ),
            (
                "{\"token\": \"secret-thing\", \"role\": \"worker\"}",
                "no token of role `peer`",
            ),
            (
                "{\"token\": \"secret-thing\", \"tenant\": \"a\", \"role\": \"worker\"}",
                "line 1: this role belongs to no tenant",
            ),
        ] {
            let error = Tokens::parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
            assert!(!error.contains("secret-thing"), "{error}");
        }
    }
}
