//! To-be-signed bytes that a guard lets pass, and that it must not: each with a name that begins
//! with `good` or `bad`. The issuer is the one in `fuzz/files`, whose key is gone: nothing of this
//! can become a certificate.

use std::sync::Arc;
use std::time::Duration;

use ca_server::guard::Rules;
use ca_server::policy::{Choice, KeyAllowed, Policy, Profile, SanRule, ServingName, Wishes};
use ca_server::spiffe::{ServiceAccount, SpiffeId, TrustDomain};
use ca_server::timestamp::Timestamp;
use ca_server::x509::chain::IssuerChain;
use ca_server::x509::csr::Csr;
use ca_server::x509::template::{self, Draft, SerialRandom};
use der::{Any, Decode, Encode, Tag, TagNumber};

use super::protocol::Body;

/// When everything here is drafted.
const NOW: i64 = 1_800_000_000;

const DAY: Duration = Duration::from_secs(86_400);

const CHAIN: &str = include_str!("../../../fuzz/files/chain.pem");
const ROOT: &str = include_str!("../../../fuzz/files/root.pem");

const P256: &str =
    include_str!("../../../ca-server/tests/corpus/csr/good-ec-pkeyopt-ec-paramgen-curve-P-256.pem");
const P384: &str =
    include_str!("../../../ca-server/tests/corpus/csr/good-ec-pkeyopt-ec-paramgen-curve-P-384.pem");
const ED25519: &str = include_str!("../../../ca-server/tests/corpus/csr/good-ed25519.pem");
const RSA: &str = include_str!("../../../ca-server/tests/corpus/csr/good-rsa-2048.pem");

/// To-be-signed bytes.
pub fn to_be_signed() -> Vec<Body> {
    let chain = Arc::new(
        IssuerChain::parse("mesh", CHAIN.as_bytes(), ROOT.as_bytes())
            .expect("certificates that fit"),
    );
    let demo = |csr: &str, lifetime: Duration| leaf(&chain, "cluster.local", "demo", csr, lifetime);
    let plain = demo(P256, DAY);
    let own = serving(
        &chain,
        &["localhost", "127.0.0.1", "istiod.istio-system.svc", "::1"],
    );
    let mut all = vec![
        ("good-leaf-p256", plain.clone()),
        ("good-leaf-p384", demo(P384, DAY)),
        ("good-leaf-ed25519", demo(ED25519, DAY)),
        ("good-leaf-rsa", demo(RSA, DAY)),
        (
            "good-leaf-ten-minutes",
            demo(P256, Duration::from_secs(600)),
        ),
        ("good-leaf-ninety-days", demo(P256, 90 * DAY)),
        (
            "good-leaf-long-name",
            leaf(&chain, "cluster.local", &"n".repeat(63), P256, DAY),
        ),
        ("good-serving", own.clone()),
        ("good-serving-one-name", serving(&chain, &["localhost"])),
        ("bad-too-long", demo(P256, 91 * DAY)),
        (
            "bad-trust-domain",
            leaf(&chain, "cluster.example", "demo", P256, DAY),
        ),
        (
            "bad-trust-domain-prefix",
            leaf(&chain, "cluster.local.example", "demo", P256, DAY),
        ),
        (
            "bad-serving-name",
            serving(&chain, &["localhost", "elsewhere"]),
        ),
        ("bad-serving-address", serving(&chain, &["10.0.0.1"])),
        ("bad-empty", Vec::new()),
        ("bad-cut", plain[..plain.len() - 1].to_vec()),
        ("bad-more", [plain.as_slice(), &[0]].concat()),
        ("bad-not-der", [&[0x30, 0x84, 0, 0], &plain[2..]].concat()),
        (
            "bad-other-issuer",
            swapped(&plain, b"Fuzz Issuing", b"Fuzz Forging"),
        ),
        (
            "bad-crl",
            hex::decode("301e020101300a06082a8648ce3d040302300d310b3009060355040313024341")
                .expect("hexadecimal"),
        ),
        (
            "bad-certificate-request",
            hex::decode("300c02010030003000a0030c0130").expect("hexadecimal"),
        ),
    ];
    // Extensions (RFC 5280 §4.2.1), in DER: in the place of the one of its kind, or beside the
    // others.
    let smuggled = [
        ("bad-ca-true", "300f0603551d130101ff040530030101ff"),
        ("bad-ca-true-not-critical", "300c0603551d13040530030101ff"),
        (
            "bad-path-length",
            "30120603551d130101ff040830060101ff020100",
        ),
        ("bad-key-cert-sign", "300e0603551d0f0101ff040403020204"),
        ("bad-crl-sign", "300e0603551d0f0101ff040403020182"),
        ("bad-key-usage-not-critical", "300b0603551d0f040403020780"),
        ("bad-any-usage", "300f0603551d25040830060604551d2500"),
        (
            "bad-code-signing",
            "30130603551d25040c300a06082b06010505070303",
        ),
        ("bad-name-constraints", "300e0603551d1e0101ff04043002a000"),
        ("bad-unknown-extension", "300e06062b0601040101040430020500"),
        (
            "bad-san-not-critical",
            "30110603551d11040a300886067370696666 65",
        ),
        // digitalSignature; and in unused bits, which a lax reader takes for used ones, keyCertSign
        // and cRLSign (X.690 §11.2.1).
        (
            "bad-key-usage-unused-bits",
            "300e0603551d0f0101ff040403020786",
        ),
        (
            "bad-key-usage-trailing-zero",
            "300f0603551d0f0101ff04050303078000",
        ),
        (
            "bad-key-usage-encipherment",
            "300e0603551d0f0101ff0404030205a0",
        ),
        (
            "bad-aki-issuer-and-serial",
            "302a0603551d230423302180140102030405060708090a0b0c0d0e0f1011121314a1068204686f737482 0101",
        ),
        ("bad-ca-false-written", "300f0603551d130101ff04053003010100"),
        (
            "bad-san-of-two-kinds",
            "30190603551d110101ff040f300d820161 86087370696666653a2f",
        ),
    ];
    all.extend(smuggled.map(|(name, der)| (name, with_extension(&plain, &der.replace(' ', "")))));
    all.push(("bad-extension-twice", twice(&plain)));
    all.push((
        "bad-serving-dns-name-that-is-an-address",
        swapped(&own, &[0x87, 4, 127, 0, 0, 1], &[0x82, 4, 127, 0, 0, 1]),
    ));
    all.push((
        "bad-serving-address-as-text",
        renamed(&own, &[0x87, 4, 127, 0, 0, 1], b"\x82\x09127.0.0.1"),
    ));
    all.push((
        "bad-key-parameters",
        rsa_without_parameters(&demo(RSA, DAY)),
    ));
    all.push(("bad-serial-short", with_serial(&plain, &[3, 2, 1])));
    all.push(("bad-serial-negative", with_serial(&plain, &[0x83; 18])));
    all.push((
        "bad-version-1",
        swapped(&plain, &[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 0]),
    ));
    all.push((
        "bad-serving-ca",
        with_extension(&own, "300f0603551d130101ff040530030101ff"),
    ));
    all.into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect()
}

/// The rules of a guard, as text.
pub fn rules() -> Vec<Body> {
    let chain = IssuerChain::parse("mesh", CHAIN.as_bytes(), ROOT.as_bytes())
        .expect("certificates that fit");
    let issuer = hex::encode(&chain.chain()[0]);
    let with = |change: &dyn Fn(&mut Rules)| {
        let mut rules = Rules {
            templates: vec![template::VERSION],
            issuers: vec![issuer.clone()],
            trust_domains: vec!["cluster.local".to_owned()],
            longest: 90 * 86_400 + 120,
            serving_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        };
        change(&mut rules);
        rules.to_text()
    };
    let text = |text: &str| text.as_bytes().to_vec();
    let plain = with(&|_| {});
    let plain_text = String::from_utf8(plain.clone()).expect("JSON");
    let mut all = vec![
        ("good-plain", plain.clone()),
        ("good-no-issuer", with(&|rules| rules.issuers.clear())),
        (
            "good-two-issuers",
            with(&|rules| rules.issuers.push(issuer.clone())),
        ),
        (
            "good-capitals",
            with(&|rules| rules.issuers[0].make_ascii_uppercase()),
        ),
        ("good-no-names", with(&|rules| rules.serving_names.clear())),
        ("good-nothing-lasts", with(&|rules| rules.longest = 0)),
        (
            "good-i64",
            with(&|rules| rules.longest = i64::MAX.unsigned_abs()),
        ),
        ("good-blanks", text(&plain_text.replace(',', " ,\n\t"))),
        (
            "good-escaped",
            text(&plain_text.replace("cluster", "\\u0063luster")),
        ),
        ("bad-too-long", with(&|rules| rules.longest = u64::MAX)),
        ("bad-odd", with(&|rules| rules.issuers[0].push('0'))),
        (
            "bad-not-hexadecimal",
            with(&|rules| rules.issuers[0].replace_range(..2, "zz")),
        ),
        ("bad-empty-issuer", with(&|rules| rules.issuers[0].clear())),
        (
            "bad-cut-issuer",
            with(&|rules| rules.issuers[0].truncate(200)),
        ),
        (
            "bad-a-leaf-as-issuer",
            with(&|rules| rules.issuers[0] = hex::encode(to_be_signed().swap_remove(0).1)),
        ),
        (
            "bad-unknown-key",
            text(&plain_text.replacen('{', "{\"colour\":1,", 1)),
        ),
        (
            "bad-twice",
            text(&plain_text.replacen('{', "{\"longest\":1,", 1)),
        ),
        (
            "bad-missing",
            text(&plain_text.replace("\"trust_domains\":[\"cluster.local\"],", "")),
        ),
        (
            "bad-negative",
            text(&plain_text.replace("\"longest\":", "\"longest\":-")),
        ),
        (
            "bad-fraction",
            text(&plain_text.replace("7776120", "7776120.5")),
        ),
        (
            "bad-text-for-number",
            text(&plain_text.replace("7776120", "\"7776120\"")),
        ),
        (
            "bad-null",
            text(&plain_text.replace("\"cluster.local\"", "null")),
        ),
        ("good-no-domain", with(&|rules| rules.trust_domains.clear())),
        (
            "good-aliases",
            with(&|rules| rules.trust_domains.push("old.local".to_owned())),
        ),
        ("bad-no-template", with(&|rules| rules.templates.clear())),
        (
            "bad-unknown-template",
            with(&|rules| rules.templates.push(7)),
        ),
        ("bad-cut", plain[..plain.len() - 1].to_vec()),
        ("bad-more", [plain.as_slice(), b"{}"].concat()),
        ("bad-empty", Vec::new()),
        (
            "bad-not-utf8",
            [b"{\"trust_domain\":\"".as_slice(), &[0xff], b"\"}"].concat(),
        ),
    ];
    all.push(("bad-deep", text(&"[".repeat(4000))));
    all.into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect()
}

fn policy(chain: &Arc<IssuerChain>) -> Policy {
    let profile = Profile {
        default: DAY,
        minimum: Duration::from_secs(60),
        maximum: 100 * DAY,
        jitter: Duration::ZERO,
        san: SanRule::Overwrite,
        keys: vec![
            KeyAllowed::Rsa,
            KeyAllowed::P256,
            KeyAllowed::P384,
            KeyAllowed::Ed25519,
        ],
    };
    Policy::new(
        profile,
        vec![Choice {
            chain: chain.clone(),
            active: true,
            sibling_of: None,
        }],
    )
}

fn leaf(
    chain: &Arc<IssuerChain>,
    domain: &str,
    name: &str,
    csr: &str,
    lifetime: Duration,
) -> Vec<u8> {
    let account = ServiceAccount::new("default", name).expect("a service account");
    let identity = SpiffeId::new(TrustDomain::parse(domain).expect("a trust domain"), account);
    let csr = Csr::parse(csr).unwrap_or_else(|refusal| panic!("{}", refusal.detail()));
    let wishes = Wishes {
        lifetime: i64::try_from(lifetime.as_secs()).expect("short"),
        ..Wishes::default()
    };
    let now = Timestamp::from_seconds(NOW);
    let grant = policy(chain)
        .grant(&identity, &csr, &wishes, chain, now, 0)
        .unwrap_or_else(|refusal| panic!("{}", refusal.detail()));
    Draft::new(
        grant,
        csr.key().clone(),
        now.period(),
        now,
        SerialRandom([7; 11]),
    )
    .to_be_signed()
    .to_vec()
}

fn serving(chain: &Arc<IssuerChain>, names: &[&str]) -> Vec<u8> {
    let names: Vec<ServingName> = names
        .iter()
        .map(|name| ServingName::parse(name).expect("a name"))
        .collect();
    let key = Csr::parse(P256)
        .unwrap_or_else(|refusal| panic!("{}", refusal.detail()))
        .key()
        .clone();
    let now = Timestamp::from_seconds(NOW);
    let grant = policy(chain)
        .serving(&names, chain, now)
        .unwrap_or_else(|refusal| panic!("{}", refusal.detail()));
    Draft::new(grant, key, now.period(), now, SerialRandom([9; 11]))
        .to_be_signed()
        .to_vec()
}

/// The extensions are the last field: an explicit tag around a SEQUENCE (RFC 5280 §4.1).
fn extensions(to_be_signed: &[u8]) -> Vec<Vec<Any>> {
    let fields = Vec::<Any>::from_der(to_be_signed).expect("a SEQUENCE");
    Vec::<Vec<Any>>::from_der(fields.last().expect("fields").value()).expect("extensions")
}

fn with_extensions(to_be_signed: &[u8], extensions: &[Vec<Any>]) -> Vec<u8> {
    let mut fields = Vec::<Any>::from_der(to_be_signed).expect("a SEQUENCE");
    let content = extensions.to_vec().to_der().expect("DER");
    let tag = Tag::ContextSpecific {
        constructed: true,
        number: TagNumber(3),
    };
    *fields.last_mut().expect("fields") = Any::new(tag, content).expect("DER");
    fields.to_der().expect("DER")
}

fn with_extension(to_be_signed: &[u8], der: &str) -> Vec<u8> {
    let added = Vec::<Any>::from_der(&hex::decode(der).expect("hexadecimal"))
        .unwrap_or_else(|error| panic!("{der}: {error}"));
    let mut all: Vec<_> = extensions(to_be_signed)
        .into_iter()
        .filter(|one| one[0] != added[0])
        .collect();
    all.push(added);
    with_extensions(to_be_signed, &all)
}

fn twice(to_be_signed: &[u8]) -> Vec<u8> {
    let mut all = extensions(to_be_signed);
    all.push(all[0].clone());
    with_extensions(to_be_signed, &all)
}

/// Another of the names, in a body whose SAN is written anew.
fn renamed(to_be_signed: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut all = extensions(to_be_signed);
    let san = all
        .last_mut()
        .expect("extensions")
        .last_mut()
        .expect("a value");
    let names = Vec::<Any>::from_der(san.value()).expect("names");
    let names: Vec<Any> = names
        .into_iter()
        .map(|name| {
            if name.to_der().expect("DER") == from {
                Any::from_der(to).expect("a name")
            } else {
                name
            }
        })
        .collect();
    *san = Any::new(Tag::OctetString, names.to_der().expect("DER")).expect("DER");
    with_extensions(to_be_signed, &all)
}

/// An RSA key whose AlgorithmIdentifier lacks its NULL (RFC 4055 §1.2).
fn rsa_without_parameters(to_be_signed: &[u8]) -> Vec<u8> {
    let mut fields = Vec::<Any>::from_der(to_be_signed).expect("a SEQUENCE");
    let mut key = Vec::<Any>::from_der(&fields[6].to_der().expect("DER")).expect("a key");
    let algorithm = Vec::<Any>::from_der(&key[0].to_der().expect("DER")).expect("an algorithm");
    key[0] = Any::from_der(&vec![algorithm[0].clone()].to_der().expect("DER")).expect("DER");
    fields[6] = Any::from_der(&key.to_der().expect("DER")).expect("DER");
    fields.to_der().expect("DER")
}

fn with_serial(to_be_signed: &[u8], serial: &[u8]) -> Vec<u8> {
    let mut fields = Vec::<Any>::from_der(to_be_signed).expect("a SEQUENCE");
    fields[1] = Any::new(Tag::Integer, serial).expect("DER");
    fields.to_der().expect("DER")
}

/// One text for another of the same length.
fn swapped(message: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = message
        .windows(from.len())
        .position(|window| window == from)
        .expect("it is there");
    [&message[..at], to, &message[at + from.len()..]].concat()
}
