//! Service-account tokens (RFC 7519) of configured issuers. The issuer is pinned to its keys; algorithms come from a fixed list;
//! a claim that is there but malformed is a refusal, never read as absent. Header and claims are read once; nothing of them is used before the
//! signature is verified, but to find the key. `Unverified::verify` is a plain function of its inputs.

use std::net::SocketAddr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Header};
use serde::{Deserialize, Deserializer};

use super::Credentials;
use super::jwks::{Jwks, VerifyKey};
use crate::digest::sha256;
use crate::evidence::{Credential, Evidence, Pod};
use crate::refusal::{Reason, Refusal};
use crate::spiffe::{ServiceAccount, SpiffeId, TrustDomain};
use crate::timestamp::Timestamp;

/// The longest token that is looked at, and how many a call may bring.
const MAX_TOKEN: usize = 16 * 1024;
const MAX_TOKENS: usize = 4;

/// How far a token's `nbf` may lie ahead: clocks of an API server and ours differ a little. `exp` has no such leeway.
const NOT_BEFORE_LEEWAY_SECONDS: i64 = 10;

/// Signature algorithms that are accepted (RFC 7518 §3.1, RFC 8037). No `none`, no HMAC.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// A token issuer: its name, for whom its tokens must be, whose cluster it speaks for, and its keys.
#[derive(Debug)]
pub struct TokenIssuer {
    /// `iss`, exactly.
    pub issuer: String,
    /// One of them must stand in `aud`.
    pub audiences: Vec<String>,
    /// The cluster that it speaks for.
    pub cluster: String,
    /// Its keys.
    pub jwks: Jwks,
}

/// The token issuers of one snapshot.
#[derive(Debug)]
pub struct Tokens {
    issuers: Vec<TokenIssuer>,
    local_cluster: String,
    trust_domain: TrustDomain,
}

impl Tokens {
    /// Tokens name identities of `trust_domain`; a call without `clusterid` means `local_cluster`.
    pub fn new(issuers: Vec<TokenIssuer>, local_cluster: String, trust_domain: TrustDomain) -> Self {
        Self { issuers, local_cluster, trust_domain }
    }

    pub(super) async fn authenticate(&self, credentials: &Credentials, now: Timestamp) -> Result<Option<(SpiffeId, Evidence)>, Refusal> {
        if credentials.bearer.is_empty() {
            return Ok(None);
        }
        let cluster = match credentials.clusters.as_slice() {
            [] => self.local_cluster.as_str(),
            [one] if self.issuers.iter().any(|issuer| issuer.cluster == *one) => one,
            [one] => return Err(Refusal::new(Reason::UnknownCluster, format_args!("cluster {one:?} is unknown"))),
            _ => return Err(Refusal::new(Reason::UnknownCluster, "clusterid is repeated")),
        };
        let mut last = Refusal::new(Reason::BadCredentials, "token: more than are looked at");
        for token in credentials.bearer.iter().take(MAX_TOKENS) {
            match self.check_one(token, cluster, credentials.peer, now).await {
                Ok(proven) => return Ok(Some(proven)),
                Err(refusal) => last = refusal,
            }
        }
        Err(last)
    }

    async fn check_one(
        &self,
        token: &str,
        cluster: &str,
        peer: Option<SocketAddr>,
        now: Timestamp,
    ) -> Result<(SpiffeId, Evidence), Refusal> {
        let bad = |why: &dyn std::fmt::Display| Refusal::new(Reason::BadCredentials, format_args!("token: {why}"));
        let unverified = Unverified::read(token).map_err(|why| bad(&why))?;
        let issuer = self
            .issuers
            .iter()
            .find(|issuer| issuer.cluster == cluster && issuer.issuer == unverified.issuer())
            .ok_or_else(|| bad(&format_args!("no issuer {:?} for cluster {cluster}", unverified.issuer())))?;
        let key = match issuer.jwks.key(unverified.key_id(), now).await {
            Ok(Some(key)) => key,
            Ok(None) => return Err(bad(&format_args!("no key {:?} of {}", unverified.key_id(), issuer.issuer))),
            Err(error) => return Err(Refusal::new(Reason::TokenCheckDown, format_args!("keys of {}: {error}", issuer.issuer))),
        };
        let claims = unverified.verify(&key, &issuer.issuer, &issuer.audiences, now).map_err(|why| bad(&why))?;
        let digest = || format!("sha256:{}", hex::encode(sha256(token.as_bytes())));
        let evidence = Evidence {
            credential: Credential::Jwt,
            issuer: Some(issuer.issuer.clone()),
            subject: Some(claims.subject),
            token: Some(claims.id.unwrap_or_else(digest)),
            cluster: Some(cluster.to_owned()),
            pod: claims.pod,
            peer,
        };
        Ok((SpiffeId::new(self.trust_domain.clone(), claims.account), evidence))
    }
}

/// What a token says of itself before anything is verified. `verify` is the only way from it to claims.
#[derive(Debug)]
pub struct Unverified<'a> {
    signed: &'a str,
    signature: &'a str,
    header: Header,
    claims: RawClaims,
}

impl<'a> Unverified<'a> {
    /// Reads header and claims under size limits; proves nothing.
    pub fn read(token: &'a str) -> Result<Self, String> {
        if token.len() > MAX_TOKEN {
            return Err(format!("{} bytes, at most {MAX_TOKEN} are read", token.len()));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| error.to_string())?;
        let (signed, signature) = token.rsplit_once('.').ok_or("it does not have three parts")?;
        let (_, payload) = signed.split_once('.').ok_or("it does not have three parts")?;
        let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).map_err(|_| "payload is not base64url".to_owned())?;
        let claims = serde_json::from_slice(&payload).map_err(|error| format!("claims: {error}"))?;
        Ok(Self { signed, signature, header, claims })
    }

    /// Who it claims to be from (`iss`), which says whose keys to verify it with.
    pub fn issuer(&self) -> &str {
        &self.claims.iss
    }

    /// The key that it names (`kid`).
    pub fn key_id(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// Verifies it with one key of its issuer: signature, `iss`, `aud`, `exp`, `nbf`, and a `sub` that names a service account.
    pub fn verify(self, key: &VerifyKey, issuer: &str, audiences: &[String], now: Timestamp) -> Result<Claims, String> {
        let (header, claims) = (self.header, self.claims);
        if header.crit.is_some() {
            // RFC 7515 §4.1.11: what is critical and not understood must be refused, and nothing critical is understood here.
            return Err("it has critical header parameters".to_owned());
        }
        if !ALGORITHMS.contains(&header.alg) || key.algorithm.is_some_and(|pinned| pinned != header.alg) {
            return Err(format!("algorithm {:?} is not accepted here", header.alg));
        }
        match jsonwebtoken::crypto::verify(self.signature, self.signed.as_bytes(), &key.key, header.alg) {
            Ok(true) => {}
            Ok(false) => return Err("the signature is not by its issuer's key".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
        if claims.iss != issuer {
            return Err(format!("it is by issuer {:?}", claims.iss));
        }
        if !claims.aud.names_one_of(audiences) {
            return Err("it is for another audience".to_owned());
        }
        if claims.exp <= now.seconds() {
            return Err(format!("expired at {}", Timestamp::from_seconds(claims.exp)));
        }
        if claims.nbf.is_some_and(|not_before| not_before > now.seconds().saturating_add(NOT_BEFORE_LEEWAY_SECONDS)) {
            return Err("not valid yet".to_owned());
        }
        let account =
            ServiceAccount::parse_username(&claims.sub).ok_or_else(|| format!("sub {:?} names no service account", claims.sub))?;
        let pod = match claims.kubernetes {
            None => None,
            Some(bound) if bound.namespace != account.namespace() || bound.serviceaccount.name != account.name() => {
                return Err(format!("its kubernetes.io claims name another account than {:?}", claims.sub));
            }
            Some(bound) => bound.pod.map(|pod| Pod { name: pod.name, uid: pod.uid }),
        };
        Ok(Claims { subject: claims.sub, account, id: claims.jti, pod })
    }
}

/// A verified token, as far as we use it.
#[derive(Debug, PartialEq, Eq)]
pub struct Claims {
    /// `sub`.
    pub subject: String,
    /// The account that `sub` names.
    pub account: ServiceAccount,
    /// `jti`.
    pub id: Option<String>,
    /// The pod it is bound to.
    pub pod: Option<Pod>,
}

#[derive(Debug, Deserialize)]
struct RawClaims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<i64>,
    #[serde(default, deserialize_with = "present")]
    jti: Option<String>,
    #[serde(default, rename = "kubernetes.io", deserialize_with = "present")]
    kubernetes: Option<Kubernetes>,
}

/// RFC 7519 §4.1.3: one text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn names_one_of(&self, audiences: &[String]) -> bool {
        match self {
            Self::One(one) => audiences.contains(one),
            Self::Several(several) => several.iter().any(|one| audiences.contains(one)),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
    #[serde(default, deserialize_with = "present")]
    pod: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    uid: String,
}

/// A claim that is there must have its type; `null` is not "absent".
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
