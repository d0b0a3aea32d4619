//! Bearer tokens: read from files, or minted RS256 with the claims of a projected service-account
//! token, each with a `jti` of its own.

use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::arguments::Callers;
use crate::exit::Exit;

/// From `iat` to `exp`: longer than any run.
const LIFETIME_SECONDS: i64 = 24 * 3600;
/// Service accounts that share a namespace.
const ACCOUNTS_OF_A_NAMESPACE: usize = 20;

/// Tokens, and whom they are for. The `n`th token is `identities[n % identities.len()]`'s.
#[derive(Debug)]
pub struct Tokens {
    pub tokens: Vec<String>,
    /// The SPIFFE id that a token's subject stands for, where it is a service account's.
    pub identities: Vec<Option<String>>,
}

/// The tokens that the arguments name; `now` in seconds since 1970.
pub fn ready(callers: &Callers, now: i64, made: &(dyn Fn() + Sync)) -> Result<Tokens, Exit> {
    match (&callers.token_file, &callers.token_issuer_key) {
        (Some(path), _) => read(path, &callers.trust_domain),
        (None, Some(path)) => mint(path, callers, now, made),
        (None, None) => Err(Exit::usage(
            "name tokens: --token-file or --token-issuer-key",
        )),
    }
}

fn read(path: &Path, trust_domain: &str) -> Result<Tokens, Exit> {
    let failed = |error: std::io::Error| Exit::missing(format!("{}: {error}", path.display()));
    let mut texts = Vec::new();
    if path.is_dir() {
        let mut files: Vec<_> = std::fs::read_dir(path)
            .map_err(failed)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        files.retain(|file| file.is_file());
        files.sort();
        for file in files {
            texts.push(std::fs::read_to_string(&file).map_err(failed)?);
        }
    } else {
        texts.push(std::fs::read_to_string(path).map_err(failed)?);
    }
    let tokens: Vec<String> = texts
        .iter()
        .flat_map(|text| text.lines())
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    if tokens.is_empty() {
        return Err(Exit::usage(format!("{} holds no token", path.display())));
    }
    let identities = tokens
        .iter()
        .map(|token| identity(token, trust_domain))
        .collect();
    Ok(Tokens { tokens, identities })
}

/// What Istio makes of a service account's token.
fn identity(token: &str, trust_domain: &str) -> Option<String> {
    let claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?).ok()?;
    let (namespace, account) = claims["sub"]
        .as_str()?
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    Some(spiffe_id(trust_domain, namespace, account))
}

fn spiffe_id(trust_domain: &str, namespace: &str, account: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}")
}

fn mint(
    path: &Path,
    callers: &Callers,
    now: i64,
    made: &(dyn Fn() + Sync),
) -> Result<Tokens, Exit> {
    let failed = || Exit::usage(format!("{}: not an RSA key in PKCS#8 PEM", path.display()));
    let pem = std::fs::read(path)
        .map_err(|error| Exit::missing(format!("{}: {error}", path.display())))?;
    let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| failed())?;
    let key = KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| failed())?;
    let (issuer, key_id) = (
        callers.token_issuer.as_deref().unwrap_or_default(),
        callers.token_key_id.as_deref().unwrap_or_default(),
    );
    let accounts = callers.accounts.clamp(1, callers.tokens.max(1));
    let count = callers.tokens.max(1).next_multiple_of(accounts);
    let header =
        URL_SAFE_NO_PAD.encode(json!({"alg": "RS256", "kid": key_id, "typ": "JWT"}).to_string());
    let tokens = crate::prepare::in_parallel(count, |n| {
        made();
        let claims = claims(issuer, &callers.token_audience, n % accounts, now)?;
        sign(
            &key,
            &format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string())),
        )
    })?;
    let identities = (0..accounts)
        .map(|n| Some(spiffe_id(&callers.trust_domain, &namespace(n), &account(n))))
        .collect();
    Ok(Tokens { tokens, identities })
}

fn namespace(account: usize) -> String {
    format!("load-{}", account / ACCOUNTS_OF_A_NAMESPACE)
}

fn account(account: usize) -> String {
    format!("workload-{account}")
}

fn claims(issuer: &str, audience: &str, n: usize, now: i64) -> Result<Value, Exit> {
    let (namespace, account) = (namespace(n), account(n));
    Ok(json!({
        "iss": issuer,
        "sub": format!("system:serviceaccount:{namespace}:{account}"),
        "aud": [audience],
        "iat": now,
        "nbf": now,
        "exp": now + LIFETIME_SECONDS,
        "jti": random_uuid()?,
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": random_uuid()?},
            "pod": {"name": format!("{account}-5d8f7c9b6d-x{n:04}"), "uid": random_uuid()?},
            "node": {"name": format!("node-{}", n % 50), "uid": random_uuid()?},
        },
    }))
}

fn sign(key: &KeyPair, message: &str) -> Result<String, Exit> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        message.as_bytes(),
        &mut signature,
    )
    .map_err(|_| Exit::missing("the token issuer's key does not sign"))?;
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// RFC 9562 §5.4.
fn random_uuid() -> Result<String, Exit> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Exit::missing("the system has no random numbers"))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    Ok([
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..],
    ]
    .join("-"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::arguments::{Arguments, words};
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    fn callers(more: &str) -> Callers {
        let line = format!("--address a:1 --roots r --closed 1 {more}");
        match Arguments::read(words(&line)).unwrap() {
            Arguments::Drive(drive) => drive.callers,
            Arguments::Other(_) => unreachable!(),
        }
    }

    #[test]
    fn minted_tokens_are_distinct_verify_and_are_many_accounts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
        let pem =
            der::pem::encode_string("PRIVATE KEY", der::pem::LineEnding::LF, der.as_ref()).unwrap();
        std::fs::write(&path, pem).unwrap();
        let more = format!(
            "--token-issuer-key {} --token-issuer iss --token-key-id kid --tokens 25 --accounts 10",
            path.display()
        );
        let minted = ready(&callers(&more), 1_000_000, &|| {}).unwrap();
        assert_eq!(
            minted.tokens.len(),
            30,
            "so many that each account has equally many"
        );
        assert_eq!(minted.tokens.iter().collect::<BTreeSet<_>>().len(), 30);
        assert_eq!(minted.identities.len(), 10);
        for (n, token) in minted.tokens.iter().enumerate() {
            assert_eq!(identity(token, "cluster.local"), minted.identities[n % 10]);
            let (message, signature) = token.rsplit_once('.').unwrap();
            let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key().as_ref())
                .verify(message.as_bytes(), &signature)
                .unwrap();
        }
    }

    #[test]
    fn tokens_are_read_from_a_file_and_from_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let token = |account: &str| {
            format!(
                "e30.{}.x",
                URL_SAFE_NO_PAD.encode(
                    json!({"sub": format!("system:serviceaccount:ns:{account}")}).to_string()
                )
            )
        };
        std::fs::write(
            directory.path().join("a"),
            format!("{}\n\n{}\n", token("one"), token("two")),
        )
        .unwrap();
        std::fs::write(directory.path().join("b"), token("three")).unwrap();
        let from = |path: &Path| read(path, "td").unwrap();
        assert_eq!(
            from(&directory.path().join("a")).tokens,
            [token("one"), token("two")]
        );
        let all = from(directory.path());
        assert_eq!(all.tokens.len(), 3);
        assert_eq!(
            all.identities[2].as_deref(),
            Some("spiffe://td/ns/ns/sa/three")
        );
        std::fs::write(directory.path().join("a"), "\n").unwrap();
        assert!(
            read(&directory.path().join("a"), "td")
                .unwrap_err()
                .to_string()
                .contains("holds no token")
        );
    }
}
