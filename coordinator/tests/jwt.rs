//! JSON Web Tokens: who is let in by one, and each way in which one is refused.

mod harness;

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use conclave_coordinator::{
    auth::{Role, jwt::Verifier},
    config::JwtConfig,
};
use conclave_proto::v1::{InitRequest, ListJobsRequest};
use harness::{Cluster, with, with_tokens};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};
use tonic::Code;

/// Longer than files that change are left unread.
const RELOAD: Duration = Duration::from_secs(15);
/// A key of RSA, and a token that it signed in 2026: ring signs with none that it makes itself.
const RSA: &str = include_str!("fixtures/jwt_rs256.json");

fn coded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn settings() -> JwtConfig {
    JwtConfig {
        issuer: "https://issuer.example".to_owned(),
        audience: "conclave".to_owned(),
        ..JwtConfig::default()
    }
}

/// Claims that are good, with `changes` laid over them; null takes one away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": "https://issuer.example", "aud": ["conclave", "another"], "sub": "somebody",
        "exp": now() + 600, "iat": now(), "tenant": "alice", "role": "submitter",
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims
                .as_object_mut()
                .unwrap()
                .insert(name.clone(), value.clone()),
        };
    }
    claims
}

/// A key of Ed25519.
struct Issuer(Ed25519KeyPair, &'static str);

impl Issuer {
    fn new(kid: &'static str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap(), kid)
    }

    fn jwk(&self) -> Value {
        let x = coded(self.0.public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.1, "use": "sig", "x": x})
    }

    fn signed(&self, header: Value, claims: &Value) -> String {
        let text = format!(
            "{}.{}",
            coded(header.to_string()),
            coded(claims.to_string())
        );
        let signature = coded(self.0.sign(text.as_bytes()));
        format!("{text}.{signature}")
    }

    fn token(&self, claims: &Value) -> String {
        self.signed(json!({"alg": "EdDSA", "typ": "JWT", "kid": self.1}), claims)
    }
}

fn set(keys: &[Value]) -> Vec<u8> {
    json!({"keys": keys}).to_string().into_bytes()
}

fn verifier(keys: &[Value]) -> Verifier {
    Verifier::parse(&set(keys), settings()).unwrap()
}

/// The reason of a refusal; that it repeats nothing of the token is looked at by the way.
fn reason(verifier: &Verifier, token: &str) -> String {
    let status = verifier.caller(token).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    for part in token.split('.').filter(|part| part.len() > 8) {
        assert!(!status.message().contains(part), "{status:?}");
    }
    let reason = status.metadata().get("refusal").unwrap();
    reason.to_str().unwrap().to_owned()
}

#[test]
fn a_good_token_names_tenant_and_role() {
    let issuer = Issuer::new("a");
    let verifier = verifier(&[issuer.jwk()]);
    for role in [Role::Submitter, Role::Reviewer, Role::Operator] {
        let token = issuer.token(&claims(json!({"role": role.name()})));
        let caller = verifier.caller(&token).unwrap();
        assert_eq!((caller.tenant.as_str(), caller.role), ("alice", role));
    }
    // No `kid`, and one key alone.
    let token = issuer.signed(json!({"alg": "EdDSA"}), &claims(json!({})));
    verifier.caller(&token).unwrap();
    // Other names of the claims.
    let settings = JwtConfig {
        tenant_claim: "org".to_owned(),
        role_claim: "https://claims.example/role".to_owned(),
        ..settings()
    };
    let verifier = Verifier::parse(&set(&[issuer.jwk()]), settings).unwrap();
    let named = claims(json!({"org": "bob", "https://claims.example/role": "reviewer"}));
    assert_eq!(
        verifier.caller(&issuer.token(&named)).unwrap().tenant,
        "bob"
    );
}

#[test]
fn each_fault_of_a_token_has_its_reason() {
    let (issuer, other) = (Issuer::new("a"), Issuer::new("b"));
    let verifier = verifier(&[issuer.jwk(), Issuer::new("c").jwk()]);
    for (changes, want) in [
        (json!({"exp": now() - 120}), "jwt_expired"),
        (json!({"exp": null}), "jwt_claims"),
        (json!({"exp": "never"}), "jwt_claims"),
        (json!({"nbf": now() + 120}), "jwt_early"),
        (json!({"nbf": "soon"}), "jwt_claims"),
        (json!({"iss": "https://elsewhere.example"}), "jwt_issuer"),
        (json!({"iss": null}), "jwt_claims"),
        (json!({"aud": "another"}), "jwt_audience"),
        (json!({"aud": null}), "jwt_claims"),
        (json!({"tenant": null}), "jwt_claims"),
        (json!({"tenant": ""}), "jwt_claims"),
        (json!({"tenant": ["alice"]}), "jwt_claims"),
        (json!({"role": null}), "jwt_claims"),
        (json!({"role": "king"}), "jwt_claims"),
        // Programs of the cluster have tokens of the file, and certificates.
        (json!({"role": "worker"}), "jwt_claims"),
        (json!({"role": "peer"}), "jwt_claims"),
    ] {
        let token = issuer.token(&claims(changes.clone()));
        assert_eq!(reason(&verifier, &token), want, "{changes}");
    }
    let good = claims(json!({}));
    for (header, want) in [
        (json!({"alg": "EdDSA", "kid": "unknown"}), "jwt_key"),
        (json!({"alg": "EdDSA"}), "jwt_key"),
        (json!({"alg": "none", "kid": "a"}), "jwt_algorithm"),
        (json!({"alg": "None", "kid": "a"}), "jwt_algorithm"),
        (json!({"alg": "HS256", "kid": "a"}), "jwt_algorithm"),
        (json!({"alg": "RS256", "kid": "a"}), "jwt_algorithm"),
        (
            json!({"alg": "EdDSA", "kid": "a", "crit": ["x"], "x": 1}),
            "jwt_malformed",
        ),
        (json!({"kid": "a"}), "jwt_algorithm"),
    ] {
        let token = issuer.signed(header.clone(), &good);
        assert_eq!(reason(&verifier, &token), want, "{header}");
    }
    let forged = other.signed(json!({"alg": "EdDSA", "kid": "a"}), &good);
    assert_eq!(reason(&verifier, &forged), "jwt_signature");
    let unsigned = forged.rsplit_once('.').unwrap().0.to_owned() + ".";
    assert_eq!(reason(&verifier, &unsigned), "jwt_signature");
    // The key's own bytes as a shared secret: the classic confusion.
    let text = format!(
        "{}.{}",
        coded(json!({"alg": "HS256", "kid": "a"}).to_string()),
        coded(good.to_string())
    );
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, issuer.0.public_key().as_ref());
    let tag = coded(ring::hmac::sign(&secret, text.as_bytes()));
    assert_eq!(reason(&verifier, &format!("{text}.{tag}")), "jwt_algorithm");
    for nonsense in ["a.b.c", "..", &"x.".repeat(5_000)] {
        assert_eq!(
            reason(&verifier, nonsense),
            "jwt_malformed",
            "{nonsense:.20}"
        );
    }
    verifier.caller(&issuer.token(&good)).unwrap();
}

#[test]
fn the_three_algorithms_are_checked() {
    let random = SystemRandom::new();
    let curve = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(curve, pkcs8.as_ref(), &random).unwrap();
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "ec", "x": coded(x), "y": coded(y)});
    let text = |claims: Value| {
        let header = json!({"alg": "ES256", "kid": "ec"});
        format!(
            "{}.{}",
            coded(header.to_string()),
            coded(claims.to_string())
        )
    };
    let signed = |text: String| {
        let signature = key.sign(&random, text.as_bytes()).unwrap();
        format!("{text}.{}", coded(signature))
    };
    let rsa: Value = serde_json::from_str(RSA).unwrap();
    let verifier = verifier(&[jwk, rsa["jwk"].clone()]);
    let good = signed(text(claims(json!({}))));
    assert_eq!(verifier.caller(&good).unwrap().tenant, "alice");
    let signature = good.rsplit_once('.').unwrap().1;
    let changed = format!("{}.{signature}", text(claims(json!({"tenant": "bob"}))));
    assert_eq!(reason(&verifier, &changed), "jwt_signature");
    let token = rsa["token"].as_str().unwrap();
    assert_eq!(verifier.caller(token).unwrap().tenant, "alice");
    let (text, signature) = token.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let flipped = format!("{text}.{first}{}", &signature[1..]);
    assert_eq!(reason(&verifier, &flipped), "jwt_signature");
}

#[test]
fn a_key_set_without_a_key_to_use_is_refused() {
    let oct = json!({"kty": "oct", "kid": "s", "alg": "HS256", "k": coded("secret")});
    let wrong_use = json!({"kty": "OKP", "crv": "Ed25519", "use": "enc", "x": coded([0; 32])});
    let refused = |bytes: &[u8]| Verifier::parse(bytes, settings()).unwrap_err().to_string();
    for keys in [vec![], vec![oct], vec![wrong_use]] {
        assert!(refused(&set(&keys)).contains("no key"), "{keys:?}");
    }
    assert!(refused(b"{\"kid\": 3}").contains("Key Set"));
    let twice = Issuer::new("a").jwk();
    assert!(refused(&set(&[twice.clone(), twice])).contains("`a`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_comes_in_with_a_jwt_beside_the_tokens_and_keys_are_rotated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    fs::write(&path, set(&[old.jwk()])).unwrap();
    let jwks_file = path.clone();
    let cluster = Cluster::blank(1, move |config| {
        with_tokens(config);
        config.jwt = Some(JwtConfig {
            jwks_file: jwks_file.clone(),
            ..settings()
        });
    })
    .await;
    let init = with("admin-token", InitRequest::default());
    cluster.admin(0).await.init(init).await.unwrap();
    let list = async |token: &str| {
        let request = with(token, ListJobsRequest::default());
        let answer = cluster.client(0).await.list_jobs(request).await;
        answer.err().map_or(Code::Ok, |status| status.code())
    };
    let (by_old, by_new) = (old.token(&claims(json!({}))), new.token(&claims(json!({}))));
    assert_eq!(list("alice-token").await, Code::Ok);
    assert_eq!(list(&by_old).await, Code::Ok);
    assert_eq!(list(&by_new).await, Code::Unauthenticated);
    let init = with(&by_old, InitRequest::default());
    let refused = cluster.admin(0).await.init(init).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    fs::write(&path, set(&[new.jwk()])).unwrap();
    let rotated = async {
        while list(&by_new).await != Code::Ok {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(RELOAD, rotated).await.unwrap();
    assert_eq!(list(&by_old).await, Code::Unauthenticated);
    assert_eq!(list("alice-token").await, Code::Ok);
}
