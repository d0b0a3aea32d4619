//! What fuzzing and the tests run over each input: one function a parser that meets strangers' or
//! operators' bytes. Each returns whether the input was accepted, and panics when what was accepted
//! is not what it must be. The fuzz targets and `ca-server/tests/fuzz_corpus.rs` include this one
//! file.
#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::path::Path;
use std::sync::LazyLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ca_server::authn::jwks;
use ca_server::authn::jwt::Unverified;
use ca_server::ceremony::Spec;
use ca_server::config::{Config, Files};
use ca_server::guard::{Guard, Rules};
use ca_server::spiffe::ServiceAccount;
use ca_server::timestamp::Timestamp;
use ca_server::x509::chain::IssuerChain;
use ca_server::x509::csr::Csr;
use ca_server::x509::subject_key::{KeyKind, SubjectKey};
use serde_json::Value;
use signers::process::Guard as _;
use signers::process::wire::{self, Reply, Request};
use signers::{KeyUri, Purpose};

/// The time at which everything is judged.
const NOW: i64 = 1_800_000_000;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "istio-ca";

/// The seed of the key that signs claims here.
const SEED: [u8; 32] = [7; 32];

/// A CSR: PEM as it is, anything else as the DER inside.
pub fn csr(data: &[u8]) -> bool {
    let pem = match std::str::from_utf8(data) {
        Ok(text) if text.contains("-----") => text.to_owned(),
        _ => format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            BASE64_STANDARD.encode(data)
        ),
    };
    let Ok(csr) = Csr::parse(&pem) else {
        return false;
    };
    assert_eq!(
        SubjectKey::from_spki(csr.key().spki()).as_ref(),
        Ok(csr.key()),
        "the key that goes into a certificate is canonical"
    );
    if let KeyKind::Rsa(bits) = csr.key().kind() {
        assert!((2048..=8192).contains(&bits));
    }
    true
}

/// A token. JSON is taken for the claims of one that its issuer signed, since no fuzzer makes a
/// signature; anything else for a whole token, which only the committed ones can be.
pub fn token(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let own = Ed25519KeyPair::from_seed_unchecked(&SEED).expect("32 octets");
    let is_json = text.starts_with(['{', '[']);
    let token = if is_json {
        signed(&own, text)
    } else {
        text.to_owned()
    };
    let set = match is_json {
        true => format!(
            "{{\"keys\":[{{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"own\",\"x\":\"{}\"}}]}}",
            BASE64_URL_SAFE_NO_PAD.encode(own.public_key().as_ref())
        ),
        false => include_str!("../ca-server/tests/corpus/token/jwks.json").to_owned(),
    };
    let header = token
        .split('.')
        .next()
        .and_then(|header| BASE64_URL_SAFE_NO_PAD.decode(header).ok());
    let header: Option<Value> = header.and_then(|header| serde_json::from_slice(&header).ok());
    let named = header.and_then(|header| Some(header.get("kid")?.as_str()?.to_owned()));
    let mut accepted = false;
    for key in jwks::parse(set.as_bytes())
        .expect("a good set")
        .keys
        .into_iter()
        .filter(|key| key.id == named)
    {
        let Ok(unverified) = Unverified::read(&token) else {
            break;
        };
        let Ok(claims) = unverified.verify(
            &[key],
            ISSUER,
            &[AUDIENCE.to_owned()],
            Timestamp::from_seconds(NOW),
        ) else {
            continue;
        };
        accepted = true;
        // Read once more by other code: what was accepted says so itself.
        let payload = BASE64_URL_SAFE_NO_PAD
            .decode(token.split('.').nth(1).expect("a payload"))
            .expect("base64url");
        let said: Value = serde_json::from_slice(&payload).expect("JSON");
        assert_eq!(said["iss"], ISSUER);
        assert!(
            said["aud"] == AUDIENCE
                || said["aud"]
                    .as_array()
                    .is_some_and(|all| all.contains(&AUDIENCE.into())),
            "{said}"
        );
        assert!(
            said["exp"].as_f64().is_some_and(|ends| ends > NOW as f64),
            "{said}"
        );
        assert!(
            said.get("nbf").is_none_or(|begins| begins
                .as_f64()
                .is_some_and(|begins| begins <= (NOW + 60) as f64)),
            "{said}"
        );
        assert_eq!(said["sub"], claims.subject.as_str());
        assert_eq!(
            ServiceAccount::parse_username(&claims.subject),
            Some(claims.account.clone())
        );
        if let Some(bound) = said.get("kubernetes.io") {
            assert_eq!(
                (&bound["namespace"], &bound["serviceaccount"]["name"]),
                (
                    &claims.account.namespace().into(),
                    &claims.account.name().into()
                )
            );
        }
    }
    accepted
}

fn signed(key: &Ed25519KeyPair, claims: &str) -> String {
    let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","kid":"own"}"#);
    let message = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()).as_ref());
    format!("{message}.{signature}")
}

/// A key's URI: what was read is printed as a URI that reads the same, and holds no PIN.
pub fn key_uri(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let base = Path::new("/base");
    let Ok(uri) = KeyUri::parse(text, base) else {
        return false;
    };
    let printed = uri.to_string();
    assert_eq!(
        KeyUri::parse(&printed, base).as_ref(),
        Ok(&uri),
        "{printed}"
    );
    assert!(!printed.contains("pin-value"), "{printed}");
    true
}

/// A ceremony's spec.
pub fn ceremony_spec(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    match Spec::parse(text, Path::new("/base")) {
        Ok(spec) => {
            assert!(spec.output().is_absolute());
            true
        }
        Err(failure) => {
            assert!(
                !failure.to_string().contains('\n'),
                "one line for the operator: {failure}"
            );
            false
        }
    }
}

/// A config. Whatever files it names are answered from memory: good certificates of a CA, a good
/// key set, a good PIN file.
pub fn config(data: &[u8]) -> bool {
    const FILES: Files = Files {
        read: |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match () {
                () if name.contains("chain") => Ok(include_bytes!("files/chain.pem").to_vec()),
                () if name.contains("root") => Ok(include_bytes!("files/root.pem").to_vec()),
                () if name.contains("jwks") => {
                    Ok(include_bytes!("../ca-server/tests/corpus/token/jwks.json").to_vec())
                }
                () => Err(std::io::ErrorKind::NotFound.into()),
            }
        },
        check_secret: |_, _| Ok(()),
        check_server: |_| Ok(()),
    };
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    match Config::of_text(
        Path::new("/base/ca.toml"),
        text,
        Timestamp::from_seconds(NOW),
        &FILES,
    ) {
        Ok(config) => {
            assert!(
                config.issuers.iter().any(|issuer| !issuer.keys.is_empty()),
                "something can be issued"
            );
            assert!(
                config
                    .issuers
                    .iter()
                    .all(|issuer| !issuer.key_uris.contains("pin-value"))
            );
            assert!((100..=60_000).contains(&config.call_timeout.as_millis()));
            assert!(
                config.profile.minimum <= config.profile.default
                    && config.profile.default <= config.profile.maximum
            );
            true
        }
        Err(error) => {
            assert!(
                !error.to_string().contains('\n'),
                "one line for the operator: {error}"
            );
            false
        }
    }
}

/// The body of a frame from a daemon to a signer: what was read is written as the same octets.
pub fn signer_request(body: &[u8]) -> bool {
    is_written_as(body, |body, to| {
        Request::read(body).map(|request| request.write(to)).is_ok()
    })
}

/// The body of a frame from a signer to a daemon.
pub fn signer_reply(body: &[u8]) -> bool {
    is_written_as(body, |body, to| {
        Reply::read(body).map(|reply| reply.write(to)).is_ok()
    })
}

fn is_written_as(body: &[u8], again: impl FnOnce(&[u8], &mut Vec<u8>) -> bool) -> bool {
    let header = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    // What a frame of this length would be read as; no other body is ever read.
    if wire::length(header) != Ok(body.len()) {
        return false;
    }
    let mut written = Vec::new();
    let read = again(body, &mut written);
    assert!(
        !read || written == [&header, body].concat(),
        "written otherwise than read: {written:x?}"
    );
    read
}

const TRUST_DOMAIN: &str = "cluster.local";
const SERVING_NAMES: [&str; 4] = ["localhost", "127.0.0.1", "istiod.istio-system.svc", "::1"];
const LONGEST: i64 = 90 * 86_400 + 120;

static GUARD: LazyLock<Guard> = LazyLock::new(|| {
    let chain = IssuerChain::parse(
        "mesh",
        include_bytes!("files/chain.pem"),
        include_bytes!("files/root.pem"),
    )
    .expect("certificates");
    let rules = Rules {
        templates: vec![1],
        issuers: vec![
            chain.chain()[0]
                .iter()
                .map(|octet| format!("{octet:02x}"))
                .collect(),
        ],
        trust_domains: vec![TRUST_DOMAIN.to_owned()],
        longest: LONGEST.unsigned_abs(),
        serving_names: SERVING_NAMES.map(str::to_owned).to_vec(),
    };
    Guard::new(&rules).expect("good rules")
});

/// To-be-signed bytes, judged for each purpose that there is; accepted if the guard lets the key
/// sign them for any. What it lets pass is held against its rules once more, by a reader of DER
/// that has nothing in common with it.
pub fn guard(data: &[u8]) -> bool {
    for purpose in [Purpose::CaCertificate, Purpose::Crl, Purpose::Probe] {
        assert!(
            GUARD.judge(0, purpose, data).is_err(),
            "signed as {}",
            purpose.as_str()
        );
    }
    let judged = [Purpose::Leaf, Purpose::Serving].map(|purpose| GUARD.judge(0, purpose, data));
    for why in judged.iter().filter_map(|judged| judged.as_ref().err()) {
        assert!(!why.contains('\n'), "one line for the operator: {why}");
    }
    let [leaf, serving] = judged.map(|judged| judged.is_ok());
    assert!(!(leaf && serving), "no certificate is both");
    if leaf || serving {
        assert!(
            GUARD.judge(1, Purpose::Leaf, data).is_err()
                && GUARD.judge(1, Purpose::Serving, data).is_err(),
            "there is no other key"
        );
        assert_within_the_rules(data, leaf);
    }
    leaf || serving
}

/// A guard's rules: what was read is written as rules that say the same.
pub fn guard_rules(data: &[u8]) -> bool {
    match Guard::read(data) {
        Ok(_) => {
            let rules: Rules = serde_json::from_slice(data).expect("read once already");
            let again = rules.to_text();
            assert_eq!(
                serde_json::from_slice::<Rules>(&again).expect("our own"),
                rules
            );
            assert!(Guard::read(&again).is_ok());
            true
        }
        Err(why) => {
            assert!(!why.contains('\n'), "one line for the operator: {why}");
            false
        }
    }
}

/// Tag and content of the next value, whose rest is left. Lengths of up to two octets are enough
/// here.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (tag, length, content) = match **rest {
        [tag, short @ ..=0x7f, ref content @ ..] => (tag, usize::from(short), content),
        [tag, 0x81, length, ref content @ ..] => (tag, usize::from(length), content),
        [tag, 0x82, high, low, ref content @ ..] => {
            (tag, usize::from(high) << 8 | usize::from(low), content)
        }
        _ => return None,
    };
    let (content, left) = content.split_at_checked(length)?;
    *rest = left;
    Some((tag, content))
}

fn all(mut rest: &[u8]) -> Vec<(u8, &[u8])> {
    std::iter::from_fn(|| next(&mut rest)).collect()
}

/// RFC 5280 §4.1 and §4.2, read by tag and length alone.
fn assert_within_the_rules(data: &[u8], leaf: bool) {
    let whole = all(data);
    let [(0x30, fields)] = whole[..] else {
        panic!("more than one value")
    };
    let fields = all(fields);
    let [
        (0xa0, _),
        (0x02, _),
        (0x30, _),
        (0x30, _),
        (0x30, validity),
        (0x30, []),
        (0x30, _),
        (0xa3, extensions),
    ] = fields[..]
    else {
        panic!(
            "other fields than ours: {:x?}",
            fields.iter().map(|(tag, _)| tag).collect::<Vec<_>>()
        )
    };
    let times: Vec<i64> = all(validity)
        .into_iter()
        .map(|(tag, text)| seconds(tag, text))
        .collect();
    assert!(times[1] - times[0] <= LONGEST, "{times:?}");
    let mut seen = Vec::new();
    for (_, extension) in all(all(extensions)[0].1) {
        let parts = all(extension);
        let (kind, critical, value) = match parts[..] {
            [(0x06, kind), (0x01, [0xff]), (0x04, value)] => (kind, true, value),
            [(0x06, kind), (0x04, value)] => (kind, false, value),
            _ => panic!("no extension: {parts:x?}"),
        };
        let [0x55, 0x1d, kind] = *kind else {
            panic!("an extension that nobody knows: {kind:x?}")
        };
        seen.push(kind);
        match kind {
            // Key usage: digitalSignature, and none of keyCertSign and cRLSign.
            15 => assert!(
                critical && matches!(value, [0x03, 2, 7, 0x80] | [0x03, 2, 5, 0xa0]),
                "{value:x?}"
            ),
            // Basic constraints: nothing in them.
            19 => assert_eq!(value, [0x30, 0], "a CA"),
            // Names.
            17 => {
                let names = all(all(value)[0].1);
                assert!(critical && !names.is_empty());
                match (leaf, &names[..]) {
                    (true, [(0x86, name)]) => {
                        let name = std::str::from_utf8(name).expect("ASCII");
                        assert!(
                            name.strip_prefix("spiffe://")
                                .and_then(|rest| rest.strip_prefix(TRUST_DOMAIN))
                                .is_some_and(|rest| rest.starts_with('/')),
                            "{name}"
                        );
                    }
                    (true, _) => panic!("more than one name: {names:x?}"),
                    (false, names) => names
                        .iter()
                        .for_each(|(tag, name)| assert!(is_serving_name(*tag, name), "{name:x?}")),
                }
            }
            // Subject key identifier, authority key identifier, extended key usage.
            14 | 35 | 37 => {}
            other => panic!("extension {other}"),
        }
    }
    for kind in [15, 17, 35, 37] {
        assert_eq!(
            seen.iter().filter(|seen| **seen == kind).count(),
            1,
            "extension {kind} in {seen:?}"
        );
    }
}

fn is_serving_name(tag: u8, name: &[u8]) -> bool {
    SERVING_NAMES
        .iter()
        .any(|allowed| match (tag, allowed.parse()) {
            (0x82, _) => allowed.as_bytes() == name,
            (0x87, Ok(std::net::IpAddr::V4(address))) => address.octets() == name,
            (0x87, Ok(std::net::IpAddr::V6(address))) => address.octets() == name,
            _ => false,
        })
}

/// UTCTime or GeneralizedTime (RFC 5280 §4.1.2.5) in seconds since 0000-03-01.
fn seconds(tag: u8, text: &[u8]) -> i64 {
    let digits: Vec<i64> = text
        .iter()
        .filter(|letter| letter.is_ascii_digit())
        .map(|digit| i64::from(digit - b'0'))
        .collect();
    assert!(
        text.ends_with(b"Z") && digits.len() == text.len() - 1,
        "{text:x?}"
    );
    let (year, rest) = match tag {
        0x17 => (10 * digits[0] + digits[1], &digits[2..]),
        _ => (
            digits[..4].iter().fold(0, |year, digit| 10 * year + digit),
            &digits[4..],
        ),
    };
    let year = if tag == 0x17 {
        year + if year < 50 { 2000 } else { 1900 }
    } else {
        year
    };
    let [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map(|at| 10 * rest[at] + rest[at + 1]);
    // Years that begin in March have their odd day at the end.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    ((days * 24 + hour) * 60 + minute) * 60 + second
}
