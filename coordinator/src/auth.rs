//! Who calls: bearer tokens from a file, each of one tenant and one role.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use tonic::{Status, metadata::MetadataMap};

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Submits, reads, watches and cancels its tenant's jobs.
    Submitter,
    /// A submitter that may also review.
    Reviewer,
    /// Reads and cancels every tenant's jobs, changes the membership.
    Operator,
    /// Runs agents.
    Worker,
    /// Another coordinator.
    Peer,
}

impl Role {
    /// The words of a tokens file.
    pub const NAMES: [&str; 5] = ["submitter", "reviewer", "operator", "worker", "peer"];

    /// The role of this name.
    fn named(name: &str) -> Option<Self> {
        use Role::{Operator, Peer, Reviewer, Submitter, Worker};
        [Submitter, Reviewer, Operator, Worker, Peer]
            .into_iter()
            .find(|role| role.name() == name)
    }

    /// The word in a tokens file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Submitter => "submitter",
            Self::Reviewer => "reviewer",
            Self::Operator => "operator",
            Self::Worker => "worker",
            Self::Peer => "peer",
        }
    }
}

/// A caller whose token was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Owner of the jobs that the caller sees.
    pub tenant: String,
    /// What the caller may do.
    pub role: Role,
}

impl Principal {
    /// True if the caller sees jobs of `tenant`.
    pub fn sees(&self, tenant: &str) -> bool {
        self.role == Role::Operator || self.tenant == tenant
    }
}

/// Why a tokens file is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file cannot be read.
    #[error("cannot read the tokens file: {0}")]
    Read(#[from] std::io::Error),
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
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    known: Option<BTreeMap<[u8; 32], Principal>>,
    peer: Option<String>,
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
    /// Everybody is the operator of tenant `local`.
    pub fn open() -> Self {
        Self::default()
    }

    /// Reads a tokens file.
    ///
    /// # Errors
    /// [`TokensError`]: unreadable, a line that does not parse, a token that is
    /// short or given twice, a submitter without tenant, no peer token.
    pub fn read(path: &Path) -> Result<Self, TokensError> {
        Self::parse(&fs::read_to_string(path)?)
    }

    /// Like [`Tokens::read`], from the text itself.
    ///
    /// # Errors
    /// As [`Tokens::read`].
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
            let tenant_needed = !matches!(role, Role::Worker | Role::Peer);
            if tenant_needed && entry.tenant.is_empty() {
                return Err(refuse("this role needs a tenant".to_owned()));
            }
            if role == Role::Peer && peer.is_none() {
                peer = Some(entry.token.clone());
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
        Ok(Self {
            known: Some(known),
            peer,
        })
    }

    /// Finds the caller.
    ///
    /// # Errors
    /// UNAUTHENTICATED without a known `authorization: Bearer` token.
    pub fn caller(&self, metadata: &MetadataMap) -> Result<Principal, Status> {
        let Some(known) = &self.known else {
            return Ok(Principal {
                tenant: "local".to_owned(),
                role: Role::Operator,
            });
        };
        metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .and_then(|token| known.get(&hash(token.trim())))
            .cloned()
            .ok_or_else(|| {
                Status::unauthenticated("send a known token as `authorization: Bearer TOKEN`")
            })
    }

    /// Finds the caller and checks that it has one of `roles`. In open mode
    /// every role is everybody's.
    ///
    /// # Errors
    /// UNAUTHENTICATED, or PERMISSION_DENIED for another role.
    pub fn require(&self, metadata: &MetadataMap, roles: &[Role]) -> Result<Principal, Status> {
        let caller = self.caller(metadata)?;
        if self.known.is_none() || roles.contains(&caller.role) {
            return Ok(caller);
        }
        Err(Status::permission_denied(format!(
            "this call needs a token of role {}; this one's is {}",
            roles
                .iter()
                .map(|r| r.name())
                .collect::<Vec<_>>()
                .join(" or "),
            caller.role.name()
        )))
    }

    /// The token that this node shows to its peers; `None` in open mode.
    pub fn peer(&self) -> Option<&str> {
        self.peer.as_deref()
    }
}

fn hash(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = concat!(
        "{\"token\": \"alice-token\", \"tenant\": \"alice\", \"role\": \"submitter\"}\n",
        "{\"token\": \"peer-token\", \"role\": \"peer\"}\n",
    );

    fn with(token: &str) -> MetadataMap {
        let mut map = MetadataMap::new();
        map.insert("authorization", format!("Bearer {token}").parse().unwrap());
        map
    }

    #[test]
    fn a_token_gives_its_tenant_and_role_and_nothing_else() {
        let tokens = Tokens::parse(FILE).unwrap();
        let alice = tokens.caller(&with("alice-token")).unwrap();
        assert_eq!(
            (alice.tenant.as_str(), alice.role),
            ("alice", Role::Submitter)
        );
        assert!(alice.sees("alice") && !alice.sees("bob"));
        let denied = tokens
            .require(&with("alice-token"), &[Role::Operator])
            .unwrap_err();
        assert_eq!(denied.code(), tonic::Code::PermissionDenied);
        for wrong in ["alice-toke", "", "alice-tokenn"] {
            let status = tokens.caller(&with(wrong)).unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unauthenticated);
        }
        let status = tokens.caller(&MetadataMap::new()).unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
    }

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
        ] {
            let error = Tokens::parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
            assert!(!error.contains("secret-thing"), "{error}");
        }
    }
}
