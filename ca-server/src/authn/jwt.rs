//! Service-account tokens (RFC 7519) of configured issuers. The issuer is pinned to its keys;
//! algorithms come from a fixed list; a claim that is there but malformed is a refusal, never read
//! as absent. Header and claims are read once; nothing of them is used before the signature is
//! verified, but to find the key and to say what was wrong. `Unverified::verify` is a plain
//! function of its inputs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Credentials;
use super::jwk::{TokenAlgorithm, VerifyKey};
use super::jwks::Jwks;
use crate::digest::sha256;
use crate::evidence::{Credential, Evidence, Pod};
use crate::refusal::{Reason, Refusal};
use crate::spiffe::{ServiceAccount, SpiffeId, TrustDomain};
use crate::timestamp::Timestamp;

/// The longest token that is looked at, and how many a call may bring.
const MAX_TOKEN: usize = 16 * 1024;
const MAX_TOKENS: usize = 4;

/// How far a token's `nbf` may lie ahead: clocks of an API server and ours differ a little. `exp`
/// has no such leeway.
const NOT_BEFORE_LEEWAY: Duration = Duration::from_secs(10);

/// How much of an issuer's name is compared, and how much of a caller's text a refusal quotes.
const QUOTED: usize = 128;

/// A token issuer: its name, for whom its tokens must be, whose cluster it speaks for, and its
/// keys.
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
    pub fn new(
        issuers: Vec<TokenIssuer>,
        local_cluster: String,
        trust_domain: TrustDomain,
    ) -> Self {
        Self {
            issuers,
            local_cluster,
            trust_domain,
        }
    }

    pub(super) async fn authenticate(
        &self,
        credentials: &Credentials,
        now: Timestamp,
    ) -> Result<Option<(SpiffeId, Evidence)>, Refusal> {
        if credentials.bearer.is_empty() {
            return Ok(None);
        }
        let cluster = match credentials.clusters.as_slice() {
            [] => self.local_cluster.as_str(),
            [one] if self.issuers.iter().any(|issuer| issuer.cluster == *one) => one,
            [one] => {
                return Err(Refusal::new(
                    Reason::UnknownCluster,
                    format_args!("cluster {one:?} is unknown"),
                ));
            }
            _ => {
                return Err(Refusal::new(
                    Reason::UnknownCluster,
                    "clusterid is repeated",
                ));
            }
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

    fn no_such_issuer(&self, issuer: &str, cluster: &str) -> String {
        let start = |text: &str| text.chars().take(QUOTED).collect::<String>();
        let distance = |configured: &&TokenIssuer| {
            strsim::levenshtein(&start(&configured.issuer), &start(issuer))
        };
        let nearest = self
            .issuers
            .iter()
            .filter(|configured| configured.cluster == cluster)
            .min_by_key(distance);
        let nearest = nearest.map_or_else(
            || "none is configured for it".to_owned(),
            |nearest| format!("the nearest configured one is {}", quoted(&nearest.issuer)),
        );
        format!(
            "its issuer {} is none of cluster {}; {nearest}",
            quoted(issuer),
            quoted(cluster)
        )
    }

    async fn check_one(
        &self,
        token: &str,
        cluster: &str,
        peer: Option<SocketAddr>,
        now: Timestamp,
    ) -> Result<(SpiffeId, Evidence), Refusal> {
        let bad = |why: &dyn std::fmt::Display| {
            Refusal::new(Reason::BadCredentials, format_args!("token: {why}"))
        };
        let unverified = Unverified::read(token).map_err(|why| bad(&why))?;
        let issuer = self
            .issuers
            .iter()
            .find(|issuer| issuer.cluster == cluster && issuer.issuer == unverified.issuer())
            .ok_or_else(|| bad(&self.no_such_issuer(unverified.issuer(), cluster)))?;
        let check = || {
            let keys = issuer
                .jwks
                .candidates(unverified.key_id(), unverified.algorithm());
            unverified.verify(&keys, &issuer.issuer, &issuer.audiences, now)
        };
        let mut claims = check();
        if claims
            .as_ref()
            .is_err_and(|rejection| rejection.may_be_by_a_newer_key)
        {
            let down = |error| {
                Refusal::new(
                    Reason::TokenCheckDown,
                    format_args!("keys of {}: {error}", issuer.issuer),
                )
            };
            issuer.jwks.refresh(now).await.map_err(down)?;
            claims = check();
        }
        let claims = claims.map_err(|rejection| bad(&rejection.why))?;
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
        Ok((
            SpiffeId::new(self.trust_domain.clone(), claims.account),
            evidence,
        ))
    }
}

/// What a token says of itself before anything is verified. `verify` is the only way from it to
/// claims.
#[derive(Debug)]
pub struct Unverified<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    algorithm: TokenAlgorithm,
    key_id: Option<String>,
    claims: RawClaims,
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The full cause.
    pub why: String,
    /// No key that it names is known, or it names none and none verified it: its issuer may have
    /// made a new one.
    pub may_be_by_a_newer_key: bool,
}

impl From<String> for Rejection {
    fn from(why: String) -> Self {
        Self {
            why,
            may_be_by_a_newer_key: false,
        }
    }
}

impl<'a> Unverified<'a> {
    /// Reads header and claims under size limits; proves nothing.
    pub fn read(token: &'a str) -> Result<Self, String> {
        if token.len() > MAX_TOKEN {
            return Err(format!(
                "{} bytes, at most {MAX_TOKEN} are read",
                token.len()
            ));
        }
        let (signed, signature) = token
            .rsplit_once('.')
            .ok_or("it does not have three parts")?;
        let (header, payload) = signed
            .split_once('.')
            .ok_or("it does not have three parts")?;
        let header = object(part(header, "header")?, "header")?;
        let header: RawHeader = serde_json::from_slice(&header)
            .map_err(|_| "its header is not what RFC 7515 §4 wants")?;
        let payload = object(part(payload, "payload")?, "payload")?;
        let claims = serde_json::from_slice(&payload).map_err(|_| fault_of_claims(&payload))?;
        let signature = part(signature, "signature")?;
        if header.crit.is_some() {
            // RFC 7515 §4.1.11: what is critical and not understood must be refused, and nothing
            // critical is understood here.
            return Err("it has critical header parameters".to_owned());
        }
        let algorithm = TokenAlgorithm::named(&header.alg)
            .ok_or_else(|| format!("algorithm {} is not accepted here", quoted(&header.alg)))?;
        Ok(Self {
            signed,
            signature,
            algorithm,
            key_id: header.kid,
            claims,
        })
    }

    /// Who it claims to be from (`iss`), which says whose keys to verify it with.
    pub fn issuer(&self) -> &str {
        &self.claims.iss
    }

    /// The key that it names (`kid`).
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// How it claims to be signed (`alg`).
    pub fn algorithm(&self) -> TokenAlgorithm {
        self.algorithm
    }

    /// Verifies it with the keys of its issuer that it may mean: signature, `iss`, `aud`, `exp`,
    /// `nbf`, and a `sub` that names a service account.
    pub fn verify(
        &self,
        keys: &[Arc<VerifyKey>],
        issuer: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Claims, Rejection> {
        if !keys
            .iter()
            .any(|key| key.verifies(self.algorithm, self.signed.as_bytes(), &self.signature))
        {
            return Err(self.by_none_of(keys));
        }
        let claims = &self.claims;
        if claims.iss != issuer {
            return Err(format!("it is by issuer {}", quoted(&claims.iss)).into());
        }
        if !claims.aud.names_one_of(audiences) {
            return Err(format!(
                "it is for audience {}; accepted here: {}",
                claims.aud,
                list(audiences)
            )
            .into());
        }
        if claims.exp.0 <= now.micros() {
            return Err(format!("expired at {}", claims.exp.timestamp()).into());
        }
        if claims
            .nbf
            .as_ref()
            .is_some_and(|not_before| not_before.0 > now.plus(NOT_BEFORE_LEEWAY).micros())
        {
            return Err(format!(
                "not valid before {}",
                claims.nbf.as_ref().map_or(now, NumericDate::timestamp)
            )
            .into());
        }
        let account = ServiceAccount::parse_username(&claims.sub)
            .ok_or_else(|| format!("sub {} names no service account", quoted(&claims.sub)))?;
        let pod = match &claims.kubernetes {
            None => None,
            Some(bound)
                if bound.namespace != account.namespace()
                    || bound.serviceaccount.name != account.name() =>
            {
                return Err(format!(
                    "its kubernetes.io claims name another account than {}",
                    quoted(&claims.sub)
                )
                .into());
            }
            Some(bound) => bound.pod.as_ref().map(|pod| Pod {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            }),
        };
        Ok(Claims {
            subject: claims.sub.clone(),
            account,
            id: claims.jti.clone(),
            pod,
        })
    }

    fn by_none_of(&self, keys: &[Arc<VerifyKey>]) -> Rejection {
        let algorithm = self.algorithm.as_str();
        let why = match (self.key_id(), keys.len()) {
            (Some(id), 0) => format!("its issuer has no key {} for {algorithm}", quoted(id)),
            (None, 0) => format!("it names no key, and its issuer has none for {algorithm}"),
            (Some(id), _) => format!("the signature is not by its issuer's key {}", quoted(id)),
            (None, tried) => format!(
                "it names no key, and the signature is by none of the {tried} for {algorithm} that its issuer has"
            ),
        };
        Rejection {
            why,
            may_be_by_a_newer_key: keys.is_empty() || self.key_id.is_none(),
        }
    }
}

/// One part of the compact form (RFC 7515 §7.1).
fn part(text: &str, name: &str) -> Result<Vec<u8>, String> {
    BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| format!("its {name} is not base64url"))
}

/// JSON of an object. A list, which would be read member by member in the order of our own fields,
/// is none.
fn object(json: Vec<u8>, name: &str) -> Result<Vec<u8>, String> {
    if json.trim_ascii_start().starts_with(b"{") {
        Ok(json)
    } else {
        Err(format!("its {name} is no JSON object"))
    }
}

/// A caller's text as a refusal shows it.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn list(texts: &[String]) -> String {
    texts
        .iter()
        .map(|text| quoted(text))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Which claim is not what it must be; asked only when they could not be read.
fn fault_of_claims(payload: &[u8]) -> String {
    let Ok(Value::Object(claims)) = serde_json::from_slice(payload) else {
        return "its payload is no JSON".to_owned();
    };
    type IsGood = fn(&Value) -> bool;
    let reads: [(&str, bool, &str, IsGood); 7] = [
        ("iss", true, "a text", Value::is_string),
        ("sub", true, "a text", Value::is_string),
        ("aud", true, "a text or a list of texts", |value| {
            Audience::deserialize(value).is_ok()
        }),
        ("exp", true, "a number", |value| {
            NumericDate::deserialize(value).is_ok()
        }),
        ("nbf", false, "a number", |value| {
            NumericDate::deserialize(value).is_ok()
        }),
        ("jti", false, "a text", Value::is_string),
        ("kubernetes.io", false, "what Kubernetes writes", |value| {
            Kubernetes::deserialize(value).is_ok()
        }),
    ];
    for (claim, required, shape, is_good) in reads {
        match claims.get(claim) {
            None if required => return format!("it has no claim `{claim}`"),
            Some(value) if !is_good(value) => return format!("its claim `{claim}` is not {shape}"),
            _ => {}
        }
    }
    "a claim of it stands there twice".to_owned()
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

#[derive(Deserialize)]
struct RawHeader {
    alg: String,
    #[serde(default, deserialize_with = "present")]
    kid: Option<String>,
    #[serde(default, deserialize_with = "present")]
    crit: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct RawClaims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: NumericDate,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<NumericDate>,
    #[serde(default, deserialize_with = "present")]
    jti: Option<String>,
    #[serde(default, rename = "kubernetes.io", deserialize_with = "present")]
    kubernetes: Option<Kubernetes>,
}

/// RFC 7519 §2: seconds since 1970, perhaps with a fraction. Kept in microseconds, of which a
/// fraction may lose some. What 64 bits of seconds do not hold is no date.
#[derive(Clone, Copy, Debug)]
struct NumericDate(i64);

impl NumericDate {
    fn timestamp(&self) -> Timestamp {
        Timestamp::from_micros(self.0)
    }
}

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        let micros = match (number.as_i64(), number.as_f64()) {
            (Some(seconds), _) => seconds.saturating_mul(1_000_000),
            // A cast ends at the limits of its type, and a JSON number is finite.
            #[allow(
                clippy::cast_possible_truncation,
                reason = "whole microseconds are meant"
            )]
            (None, Some(seconds)) if seconds.abs() < i64::MAX as f64 => {
                (seconds * 1e6).floor() as i64
            }
            (None, _) => return Err(serde::de::Error::custom("no number of seconds")),
        };
        Ok(Self(micros))
    }
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

impl std::fmt::Display for Audience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(one) => f.write_str(&quoted(one)),
            Self::Several(none) if none.is_empty() => f.write_str("nobody"),
            // A refusal has room for a few; which of many was meant nobody can say.
            Self::Several(several) => f.write_str(&list(&several[..several.len().min(3)])),
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
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests;
