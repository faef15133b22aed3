//! JSON Web Tokens of users: signed by a key of the JWKS file, for this cluster, by who may, not yet over.
//! Only RS256, ES256 and EdDSA; the signatures are checked by `ring`, as those of TLS are.

use std::collections::BTreeMap;

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, Validation,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    errors::{Error, ErrorKind},
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
    signature,
};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::{Map, Value};
use tonic::Status;

use super::{Principal, Reason, Role};
use crate::config::JwtConfig;

/// Clocks of two machines may differ by so much, seconds.
const LEEWAY: u64 = 30;
/// The longest token that is looked at, bytes.
const LONGEST: usize = 8 << 10;
/// The longest tenant, bytes.
const LONGEST_TENANT: usize = 256;

/// Why a JWKS file is refused.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// It is no key set.
    #[error("not a JSON Web Key Set ({{\"keys\": [...]}}): {0}")]
    Parse(#[from] serde_json::Error),
    /// A key that says it can be used cannot be read.
    #[error("key `{kid}` cannot be read: {why}")]
    Key {
        /// Its id; empty if it has none.
        kid: String,
        /// What is wrong.
        why: String,
    },
    /// Two keys of one id.
    #[error("two keys have the id `{0}`")]
    Twice(String),
    /// Nothing to check a signature with.
    #[error("no key of it can be used: RSA (RS256), EC P-256 (ES256) and Ed25519 (EdDSA) can")]
    Empty,
}

/// Keys by their id, and what a token must say.
pub struct Verifier {
    keys: BTreeMap<String, Key>,
    settings: JwtConfig,
}

struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({:?})", self.keys.keys())
    }
}

impl Verifier {
    /// From the bytes of a JWKS file. Keys of other kinds are passed over.
    ///
    /// # Errors
    /// [`JwksError`].
    pub fn parse(bytes: &[u8], settings: JwtConfig) -> Result<Self, JwksError> {
        // A second reading finds it installed.
        let _ = RING.install_default();
        let set: JwkSet = serde_json::from_slice(bytes)?;
        let mut keys = BTreeMap::new();
        for jwk in &set.keys {
            let kid = jwk.common.key_id.clone().unwrap_or_default();
            let Some(algorithm) = algorithm(jwk) else {
                continue;
            };
            let key = DecodingKey::from_jwk(jwk).map_err(|error| JwksError::Key {
                kid: kid.clone(),
                why: error.to_string(),
            })?;
            if keys.insert(kid.clone(), Key { algorithm, key }).is_some() {
                return Err(JwksError::Twice(kid));
            }
        }
        match keys.is_empty() {
            true => Err(JwksError::Empty),
            false => Ok(Self { keys, settings }),
        }
    }

    /// Whether this may be a token of this kind: three parts.
    pub fn is_one(token: &str) -> bool {
        token.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// Who a token says that the caller is.
    ///
    /// # Errors
    /// UNAUTHENTICATED, with what is wrong with it; nothing of the token is repeated.
    pub fn caller(&self, token: &str) -> Result<Principal, Status> {
        if token.len() > LONGEST {
            return Err(Reason::JwtMalformed.status("the JWT is too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
            // `none`, and what nobody has heard of, are no algorithms to the parser.
            ErrorKind::Json(said) if said.is_data() => refusal(&ErrorKind::InvalidAlgorithm.into()),
            _ => refusal(&error),
        })?;
        if header.crit.as_ref().is_some_and(|crit| !crit.is_empty()) {
            return Err(
                Reason::JwtMalformed.status("the JWT asks for extensions (`crit`): none is known")
            );
        }
        let key = self.key(header.kid.as_deref()).ok_or_else(|| {
            Reason::JwtKey
                .status("the JWT is signed by a key (`kid`) that this cluster does not know")
        })?;
        if header.alg != key.algorithm {
            return Err(refusal(&ErrorKind::InvalidAlgorithm.into()));
        }
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_audience(&[&self.settings.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation);
        let claims = decoded.map_err(|error| refusal(&error))?.claims;
        self.principal(&claims)
    }

    /// A token that names no key is of the only one, if there is one alone.
    fn key(&self, kid: Option<&str>) -> Option<&Key> {
        match kid {
            Some(kid) => self.keys.get(kid),
            None if self.keys.len() == 1 => self.keys.values().next(),
            None => None,
        }
    }

    fn principal(&self, claims: &Map<String, Value>) -> Result<Principal, Status> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
        let (tenant_claim, role_claim) = (&self.settings.tenant_claim, &self.settings.role_claim);
        let tenant = text(tenant_claim);
        if tenant.is_empty() || tenant.len() > LONGEST_TENANT {
            return Err(Reason::JwtClaims.status(format!(
                "the JWT names no tenant: its claim `{tenant_claim}` is a text of 1 to {LONGEST_TENANT} bytes"
            )));
        }
        let role = Role::named(text(role_claim)).filter(|role| !role.is_of_the_cluster());
        let Some(role) = role else {
            return Err(Reason::JwtClaims.status(format!(
                "the JWT names no role: its claim `{role_claim}` is submitter, reviewer or operator"
            )));
        };
        Ok(Principal {
            tenant: tenant.to_owned(),
            role,
        })
    }
}

/// What a key signs, if it is one that is used here.
fn algorithm(jwk: &Jwk) -> Option<Algorithm> {
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let fits = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(of) if of.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(of) if of.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let said = match jwk.common.key_algorithm {
        None => fits,
        Some(KeyAlgorithm::RS256) => Algorithm::RS256,
        Some(KeyAlgorithm::ES256) => Algorithm::ES256,
        Some(KeyAlgorithm::EdDSA) => Algorithm::EdDSA,
        Some(_) => return None,
    };
    (said == fits).then_some(fits)
}

/// What to say of a token that is not taken.
fn refusal(error: &Error) -> Status {
    let (reason, why) = match error.kind() {
        ErrorKind::ExpiredSignature => (Reason::JwtExpired, "is over (`exp`): get a new one"),
        ErrorKind::ImmatureSignature => (Reason::JwtEarly, "does not hold yet (`nbf`)"),
        ErrorKind::InvalidIssuer => (Reason::JwtIssuer, "is of another issuer (`iss`)"),
        ErrorKind::InvalidAudience => (Reason::JwtAudience, "is for another audience (`aud`)"),
        ErrorKind::InvalidSignature => (Reason::JwtSignature, "has a signature that does not fit"),
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => (
            Reason::JwtClaims,
            "lacks a claim: `exp`, `iss` and `aud` are needed",
        ),
        ErrorKind::InvalidAlgorithm
        | ErrorKind::InvalidAlgorithmName
        | ErrorKind::UnsupportedAlgorithm => (
            Reason::JwtAlgorithm,
            "is not signed as its key signs: RS256, ES256 and EdDSA are taken",
        ),
        _ => (Reason::JwtMalformed, "cannot be read"),
    };
    reason.status(format!("the JWT {why}"))
}

/// Checks signatures; makes none.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(Error::from(ErrorKind::UnsupportedAlgorithm)),
    verifier_factory: |algorithm, key| {
        let checked = Checked {
            algorithm: *algorithm,
            key: key.kind().clone(),
        };
        Ok(Box::new(checked))
    },
    key_utils: KeyUtils::new_unimplemented(),
};

/// One key, with what it signs.
struct Checked {
    algorithm: Algorithm,
    key: DecodingKeyKind,
}

impl JwtVerifier for Checked {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl signature::Verifier<Vec<u8>> for Checked {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let by = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature)
        };
        let checked = match (self.algorithm, &self.key) {
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(
                    &RSA_PKCS1_2048_8192_SHA256,
                    message,
                    signature,
                )
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
                by(&ECDSA_P256_SHA256_FIXED, point)
            }
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(key)) => by(&ED25519, key),
            _ => return Err(signature::Error::new()),
        };
        checked.map_err(|_| signature::Error::new())
    }
}
