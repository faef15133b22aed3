//! Who calls: a bearer token of a file, or a JWT that a known key signed, each of one tenant and one role;
//! for workers and other coordinators a client certificate beside it.

pub mod jwt;
pub mod refusals;
pub mod tokens;

use std::sync::Arc;

use conclave_credentials::{Watched, watched::Refused};
use tonic::{
    Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};

pub use refusals::{Reason, Refusals};
pub use tokens::{Tokens, TokensError};

/// Says that the connection which a call came by showed a certificate of the cluster's authority. The door
/// sets it, and takes it off what callers say.
pub const CERTIFIED: &str = "conclave-certified";

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

    /// Whether programs of the cluster have it, not its users.
    fn is_of_the_cluster(self) -> bool {
        matches!(self, Self::Worker | Self::Peer)
    }
}

/// A caller that is known.
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

/// All that decides who a caller is.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// `None`: everybody is the operator of tenant `local`.
    tokens: Option<Arc<Watched<Tokens>>>,
    /// Users may show a JWT instead.
    jwt: Option<Arc<Watched<jwt::Verifier>>>,
    /// Workers and other coordinators show a certificate.
    certificates: bool,
}

impl Auth {
    /// Everybody is the operator of tenant `local`.
    pub fn open() -> Self {
        Self::default()
    }

    /// Callers show a token.
    pub fn of(tokens: Arc<Watched<Tokens>>) -> Self {
        Self {
            tokens: Some(tokens),
            ..Self::default()
        }
    }

    /// Users may show a JWT instead of a token.
    pub fn with_jwt(self, verifier: Arc<Watched<jwt::Verifier>>) -> Self {
        let jwt = Some(verifier);
        Self { jwt, ..self }
    }

    /// Workers and other coordinators must show a certificate too.
    pub fn with_certificates(self, certificates: bool) -> Self {
        Self {
            certificates,
            ..self
        }
    }

    /// Finds the caller.
    ///
    /// # Errors
    /// UNAUTHENTICATED without a known `authorization: Bearer` token or a good JWT, or without the certificate that its
    /// role needs.
    pub fn caller(&self, metadata: &MetadataMap) -> Result<Principal, Status> {
        let Some(tokens) = &self.tokens else {
            return Ok(Principal {
                tenant: "local".to_owned(),
                role: Role::Operator,
            });
        };
        let token = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(bearer);
        let Some(token) = token else {
            return Err(Reason::NoToken.status("send a token as `authorization: Bearer TOKEN`"));
        };
        let Some(caller) = tokens.now().find(token) else {
            if let Some(jwt) = self.jwt.as_ref().filter(|_| jwt::Verifier::is_one(token)) {
                return jwt.now().caller(token);
            }
            return Err(Reason::UnknownToken.status(
                "this token is not known: send a known one as `authorization: Bearer TOKEN`",
            ));
        };
        if caller.role.is_of_the_cluster() {
            self.certified(metadata)?;
        }
        Ok(caller)
    }

    /// Finds the caller and checks that it has one of `roles`. In open mode
    /// every role is everybody's.
    ///
    /// # Errors
    /// UNAUTHENTICATED, or PERMISSION_DENIED for another role.
    pub fn require(&self, metadata: &MetadataMap, roles: &[Role]) -> Result<Principal, Status> {
        let caller = self.caller(metadata)?;
        if self.tokens.is_none() {
            // Open to all users is not open to whoever calls itself a member.
            if roles.iter().all(|role| role.is_of_the_cluster()) {
                self.certified(metadata)?;
            }
            return Ok(caller);
        }
        if roles.contains(&caller.role) {
            return Ok(caller);
        }
        Err(Reason::Role.status(format!(
            "this call needs a token of role {}; this one's is {}",
            roles
                .iter()
                .map(|r| r.name())
                .collect::<Vec<_>>()
                .join(" or "),
            caller.role.name()
        )))
    }

    /// Files that changed and cannot be used as they are, each with its setting.
    pub fn refused_files(&self) -> impl Iterator<Item = (&'static str, Refused)> {
        let tokens = self.tokens.as_ref().and_then(|tokens| tokens.refused());
        let jwks = self.jwt.as_ref().and_then(|jwks| jwks.refused());
        let found = [("tokens_file", tokens), ("jwt.jwks_file", jwks)];
        found
            .into_iter()
            .filter_map(|(setting, refused)| Some((setting, refused?)))
    }

    fn certified(&self, metadata: &MetadataMap) -> Result<(), Status> {
        if !self.certificates || metadata.contains_key(CERTIFIED) {
            return Ok(());
        }
        Err(Reason::NoCertificate.status(
            "workers and coordinators show a certificate that the cluster's authority signed: \
             set cert_file and key_file in [tls]",
        ))
    }

    /// What this node shows to its peers; `None` in open mode.
    pub fn peer(&self) -> Option<AsciiMetadataValue> {
        let tokens = self.tokens.as_ref()?.now();
        tokens.peer().cloned()
    }
}

/// The token of a value of the scheme `Bearer`, which RFC 9110 lets callers spell in any case.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = concat!(
        "{\"token\": \"alice-token\", \"tenant\": \"alice\", \"role\": \"submitter\"}\n",
        "{\"token\": \"peer-token\", \"role\": \"peer\"}\n",
    );

    fn auth() -> Auth {
        Auth::of(Watched::fixed(Tokens::parse(FILE).unwrap()))
    }

    fn with(token: &str) -> MetadataMap {
        let mut map = MetadataMap::new();
        map.insert("authorization", format!("Bearer {token}").parse().unwrap());
        map
    }

    #[test]
    fn a_token_gives_its_tenant_and_role_and_nothing_else() {
        let auth = auth();
        let alice = auth.caller(&with("alice-token")).unwrap();
        assert_eq!(
            (alice.tenant.as_str(), alice.role),
            ("alice", Role::Submitter)
        );
        assert!(alice.sees("alice") && !alice.sees("bob"));
        let denied = auth
            .require(&with("alice-token"), &[Role::Operator])
            .unwrap_err();
        assert_eq!(denied.code(), tonic::Code::PermissionDenied);
        for wrong in ["alice-toke", "", "alice-tokenn"] {
            let status = auth.caller(&with(wrong)).unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unauthenticated);
        }
        let status = auth.caller(&MetadataMap::new()).unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
    }

    #[test]
    fn the_scheme_is_spelled_in_any_case() {
        let auth = auth();
        let of = |value: &str| {
            let mut map = MetadataMap::new();
            map.insert("authorization", value.parse().unwrap());
            auth.caller(&map).map(|caller| caller.tenant)
        };
        for good in [
            "Bearer alice-token",
            "bearer alice-token",
            "BEARER  alice-token ",
        ] {
            assert_eq!(of(good).unwrap(), "alice", "{good}");
        }
        for bad in ["Beareralice-token", "Basic alice-token", "bearer", ""] {
            assert_eq!(
                of(bad).unwrap_err().code(),
                tonic::Code::Unauthenticated,
                "{bad}"
            );
        }
    }

    #[test]
    fn programs_of_the_cluster_show_a_certificate_and_users_need_none() {
        let auth = auth().with_certificates(true);
        auth.caller(&with("alice-token")).unwrap();
        let mut peer = with("peer-token");
        let refused = auth.require(&peer, &[Role::Peer]).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        assert!(refused.message().contains("cert_file"), "{refused}");
        peer.insert(CERTIFIED, "true".parse().unwrap());
        auth.require(&peer, &[Role::Peer]).unwrap();

        let open = Auth::open().with_certificates(true);
        let nobody = MetadataMap::new();
        open.require(&nobody, &[Role::Submitter, Role::Operator])
            .unwrap();
        assert!(open.require(&nobody, &[Role::Worker]).is_err());
    }
}
