//! Hostile bearer tokens (see the parent for what that means): what an attacker makes of somebody's
//! good token, what he signs with a key of his own, and what the issuer's own key may have signed
//! but nobody may accept.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{Case, bytes, edited, pick, size};

/// The `iss` of every good token.
pub const ISSUER: &str = "https://issuer.example";

/// The longest token that is read.
const MOST: usize = 16 * 1024;

/// The corpus's keys, whose private halves are nowhere.
const CORPUS_KEYS: &str = include_str!("../../../ca-server/tests/corpus/token/jwks.json");

/// Good tokens of the corpus, by its RSA key and its P-256 key; good until the year 2096.
const GOOD: [&str; 2] = [
    include_str!("../../../ca-server/tests/corpus/token/good-rs256.jwt"),
    include_str!("../../../ca-server/tests/corpus/token/good-es256.jwt"),
];

const HEADER: &str = r#"{"alg":"EdDSA","typ":"JWT","kid":"ed"}"#;

type Make = fn(&mut Tokens) -> String;

/// The kinds of hostile token, made in turn.
const FAMILIES: [(&str, Make); 18] = [
    ("characters edited", Tokens::characters_edited),
    ("truncated", Tokens::truncated),
    ("algorithm none", Tokens::algorithm_none),
    ("HMAC with the public key", Tokens::hmac_with_the_public_key),
    ("signature of another", Tokens::signature_of_another),
    ("degenerate signature", Tokens::degenerate_signature),
    ("algorithm or key id swapped", Tokens::header_swapped),
    ("a key brought along", Tokens::key_brought_along),
    ("critical or unknown header", Tokens::header_refused),
    ("expired", Tokens::expired),
    ("not yet valid", Tokens::not_yet_valid),
    ("for somebody else", Tokens::for_somebody_else),
    ("a claim of the wrong type", Tokens::wrong_type),
    ("a subject that is none", Tokens::no_subject),
    ("claims twice or at odds", Tokens::claims_at_odds),
    ("huge or deep", Tokens::huge_or_deep),
    ("base64 tricks", Tokens::base64_tricks),
    ("junk", Tokens::junk),
];

/// Hostile tokens without end.
pub struct Tokens {
    random: fastrand::Rng,
    number: usize,
    now: i64,
    issuer: Ed25519KeyPair,
    stranger: Ed25519KeyPair,
}

/// Claims in their order, values as JSON text, so that any of them can be wrong.
#[derive(Clone)]
struct Claims(Vec<(String, String)>);

impl Claims {
    fn set(mut self, name: &str, value: impl ToString) -> Self {
        let value = value.to_string();
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.0.retain(|(known, _)| known != name);
        self
    }

    fn again(mut self, name: &str, value: impl ToString) -> Self {
        self.0.push((name.to_owned(), value.to_string()));
        self
    }

    fn json(&self) -> String {
        let members: Vec<String> = self
            .0
            .iter()
            .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())))
            .collect();
        format!("{{{}}}", members.join(","))
    }
}

impl Tokens {
    /// The cases of this seed for a checker whose clock says `now`, Unix seconds.
    pub fn new(seed: u64, now: i64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut key =
            || Ed25519KeyPair::from_seed_unchecked(&bytes(&mut random, 32)).expect("32 octets");
        let (issuer, stranger) = (key(), key());
        Self {
            random,
            number: 0,
            now,
            issuer,
            stranger,
        }
    }

    /// The issuer's JWK Set: the corpus's keys and one whose private half is ours.
    pub fn jwks(&self) -> String {
        let mut set: Value = serde_json::from_str(CORPUS_KEYS).expect("JSON");
        set["keys"]
            .as_array_mut()
            .expect("a list")
            .push(jwk(&self.issuer, "ed"));
        set.to_string()
    }

    /// The tokens that the cases are made of: all of them good.
    pub fn good(&self) -> Vec<String> {
        GOOD.iter()
            .map(|token| token.trim().to_owned())
            .chain([self.by_issuer(&self.claims())])
            .collect()
    }

    /// How many kinds there are.
    pub fn families() -> usize {
        FAMILIES.len()
    }

    fn claims(&self) -> Claims {
        let account = json!({"namespace": "default", "serviceaccount": {"name": "demo", "uid": "u1"}, "pod": {"name": "demo-1", "uid": "u2"}});
        Claims(Vec::new())
            .set("iss", json!(ISSUER))
            .set("sub", json!("system:serviceaccount:default:demo"))
            .set("aud", json!(["istio-ca"]))
            .set("exp", self.now + 3600)
            .set("nbf", self.now - 60)
            .set("jti", json!("hostile"))
            .set("kubernetes.io", account)
    }

    fn by_issuer(&self, claims: &Claims) -> String {
        signed(&self.issuer, HEADER, &claims.json())
    }

    fn some_good(&mut self) -> String {
        let good = self.good();
        pick(&mut self.random, &good)
    }

    fn characters_edited(&mut self) -> String {
        let good = self.some_good();
        let changed = edited(&mut self.random, good.as_bytes(), |random| {
            random.u8(0x21..0x7f)
        });
        String::from_utf8(changed).expect("ASCII")
    }

    fn truncated(&mut self) -> String {
        let mut good = self.some_good();
        good.truncate(self.random.usize(..good.len()));
        good
    }

    fn algorithm_none(&mut self) -> String {
        let algorithms = [
            "\"none\"",
            "\"None\"",
            "\"NONE\"",
            "\"nOnE\"",
            "\"none \"",
            "\"\"",
            "null",
            "0",
            "[]",
            "[\"none\",\"EdDSA\"]",
        ];
        let algorithm = pick(&mut self.random, &algorithms);
        let header = match self.random.u8(..4) {
            0 => format!("{{\"alg\":{algorithm}}}"),
            1 => "{\"typ\":\"JWT\",\"kid\":\"ed\"}".to_owned(),
            2 => format!("{{\"alg\":\"EdDSA\",\"alg\":{algorithm},\"kid\":\"ed\"}}"),
            _ => format!("{{\"alg\":{algorithm},\"kid\":\"ed\",\"typ\":\"JWT\"}}"),
        };
        let message = format!("{}.{}", encoded(&header), encoded(&self.claims().json()));
        match self.random.u8(..4) {
            0 => format!("{message}."),
            1 => message,
            2 => format!("{message}.AA"),
            _ => signed(&self.issuer, &header, &self.claims().json()),
        }
    }

    /// A checker that lets the token choose the algorithm would take a public key for a secret.
    fn hmac_with_the_public_key(&mut self) -> String {
        let set: Value = serde_json::from_str(&self.jwks()).expect("JSON");
        let key = pick(&mut self.random, set["keys"].as_array().expect("a list"));
        let text = |name: &str| key[name].as_str().unwrap_or_default().to_owned();
        let raw = |name: &str| {
            BASE64_URL_SAFE_NO_PAD
                .decode(text(name))
                .expect("base64url")
        };
        let secret = match self.random.u8(..8) {
            0 => key.to_string().into_bytes(),
            1 => self.jwks().into_bytes(),
            2 => CORPUS_KEYS.as_bytes().to_vec(),
            3 => [raw("n"), raw("x"), raw("y")].concat(),
            4 => format!("{}{}", text("n"), text("x")).into_bytes(),
            5 => [&[4], &raw("x")[..], &raw("y")].concat(),
            6 => format!(
                "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
                text("x")
            )
            .into_bytes(),
            _ => Vec::new(),
        };
        let algorithms = [
            ("HS256", hmac::HMAC_SHA256),
            ("HS384", hmac::HMAC_SHA384),
            ("HS512", hmac::HMAC_SHA512),
        ];
        let (name, algorithm) = pick(&mut self.random, &algorithms);
        let header = json!({"alg": name, "kid": key["kid"], "typ": "JWT"}).to_string();
        let message = format!("{}.{}", encoded(&header), encoded(&self.claims().json()));
        let tag = hmac::sign(&hmac::Key::new(algorithm, &secret), message.as_bytes());
        format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag.as_ref()))
    }

    fn signature_of_another(&mut self) -> String {
        let other_id = self.random.u64(..);
        let (one, two) = (
            self.some_good(),
            self.by_issuer(&self.claims().set("jti", other_id)),
        );
        let (message, signature) = one.rsplit_once('.').expect("dots");
        let (other_message, other) = two.rsplit_once('.').expect("dots");
        match self.random.u8(..4) {
            0 => format!("{message}.{other}"),
            1 => format!("{other_message}.{signature}"),
            2 => signed(&self.stranger, HEADER, &self.claims().json()),
            _ => {
                // One part of the one, one of the other.
                let header = message.split('.').next().expect("a header");
                let payload = encoded(
                    &self
                        .claims()
                        .set("sub", "\"system:serviceaccount:kube-system:admin\"")
                        .json(),
                );
                format!("{header}.{payload}.{signature}")
            }
        }
    }

    fn degenerate_signature(&mut self) -> String {
        let good = self.some_good();
        let (message, signature) = good.rsplit_once('.').expect("dots");
        let length = BASE64_URL_SAFE_NO_PAD
            .decode(signature)
            .expect("base64url")
            .len();
        let count = size(&mut self.random, 12);
        let content = match self.random.u8(..6) {
            0 => vec![],
            1 => vec![0; length],
            2 => vec![0xff; length],
            3 => vec![0; count],
            4 => bytes(&mut self.random, length),
            _ => bytes(&mut self.random, count),
        };
        format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(content))
    }

    /// The issuer signed the claims, and the header says something else about how.
    fn header_swapped(&mut self) -> String {
        const ALGORITHMS: [&str; 14] = [
            "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
            "ES256K", "Ed25519", "HS256", "RSA-OAEP", "dir",
        ];
        let kids = [
            json!("rsa"),
            json!("ec"),
            json!("../../dev/null"),
            json!("' OR 1=1"),
            json!(null),
            json!(7),
            json!(["ed"]),
            json!({}),
        ];
        let header = match self.random.u8(..3) {
            0 => json!({"alg": pick(&mut self.random, &ALGORITHMS), "kid": "ed"}),
            1 => {
                json!({"alg": pick(&mut self.random, &ALGORITHMS), "kid": pick(&mut self.random, &kids)})
            }
            // A token without a key's id may be by any of its issuer's keys; one with an id that is
            // no text names none.
            _ => json!({"alg": "EdDSA", "kid": pick(&mut self.random, &kids)}),
        };
        signed(&self.issuer, &header.to_string(), &self.claims().json())
    }

    fn key_brought_along(&mut self) -> String {
        let own = jwk(&self.stranger, "ed");
        let mut header = json!({"alg": "EdDSA", "kid": "ed"});
        match self.random.u8(..7) {
            0 => header["jwk"] = own,
            1 => header["jku"] = json!("http://127.0.0.1:1/jwks.json"),
            2 => header["x5u"] = json!("file:///etc/passwd"),
            3 => header["x5c"] = json!([BASE64_STANDARD.encode(bytes(&mut self.random, 400))]),
            4 => header["x5c"] = json!(7),
            5 => (header["kid"], header["jwk"]) = (json!("mine"), own),
            _ => header["kid"] = json!(format!("mine-{}", self.random.u32(..))),
        }
        signed(&self.stranger, &header.to_string(), &self.claims().json())
    }

    fn header_refused(&mut self) -> String {
        let header = match self.random.u8(..8) {
            0 => r#"{"alg":"EdDSA","kid":"ed","crit":["b64"],"b64":false}"#.to_owned(),
            1 => r#"{"alg":"EdDSA","kid":"ed","crit":[]}"#.to_owned(),
            2 => r#"{"alg":"EdDSA","kid":"ed","crit":["exp"],"exp":1}"#.to_owned(),
            3 => r#"{"alg":"EdDSA","kid":"ed","crit":"b64"}"#.to_owned(),
            4 => r#"{"alg":"EdDSA","alg":"EdDSA","kid":"ed"}"#.to_owned(),
            5 => r#"{"alg":"EdDSA","kid":"ed","kid":"rsa"}"#.to_owned(),
            6 => r#"["EdDSA","ed"]"#.to_owned(),
            _ => format!(
                "{HEADER}{}",
                pick(&mut self.random, &["x", "{}", "]", "\0"])
            ),
        };
        signed(&self.issuer, &header, &self.claims().json())
    }

    fn expired(&mut self) -> String {
        let ends = match self.random.u8(..4) {
            0 => self.now,
            1 => self.now - 1,
            2 => -self.random.i64(1..),
            _ => self.random.i64(0..self.now),
        };
        self.by_issuer(&self.claims().set("exp", ends))
    }

    fn not_yet_valid(&mut self) -> String {
        // A checker may allow some seconds for clocks that differ, so the earliest is an hour away.
        let begins = if self.random.bool() {
            self.now + 3600 + self.random.i64(0..1_000_000)
        } else {
            i64::MAX - self.random.i64(0..9)
        };
        self.by_issuer(&self.claims().set("exp", i64::MAX).set("nbf", begins))
    }

    fn for_somebody_else(&mut self) -> String {
        let claims = self.claims();
        let audiences = [
            json!("istio-c"),
            json!("istio-ca "),
            json!("Istio-CA"),
            json!("istio-ca\0"),
            json!("istio-caa"),
            json!("ist\u{456}o-ca"),
            json!(["other"]),
            json!([["istio-ca"]]),
            json!([]),
            json!([""]),
            json!(""),
            json!("https://kubernetes.default.svc"),
            json!("istio-ca,other"),
            json!("*"),
        ];
        let issuers = [
            json!("https://issuer.example/"),
            json!("https://issuer.example."),
            json!("HTTPS://issuer.example"),
            json!("http://issuer.example"),
            json!("https://issuer.example\0"),
            json!(""),
            json!("https://issuer.ex\u{430}mple"),
            json!("https://issuer.example@evil"),
            json!([ISSUER]),
            json!([ISSUER, "https://evil.example"]),
            json!({"iss": ISSUER}),
            json!("https://other.example"),
        ];
        let claims = match self.random.u8(..4) {
            0 => claims.without(pick(&mut self.random, &["iss", "aud"])),
            1 => claims.set("iss", pick(&mut self.random, &issuers)),
            _ => claims.set("aud", pick(&mut self.random, &audiences)),
        };
        self.by_issuer(&claims)
    }

    fn wrong_type(&mut self) -> String {
        let name = pick(
            &mut self.random,
            &["iss", "sub", "aud", "exp", "nbf", "jti", "kubernetes.io"],
        );
        let values = [
            "null",
            "true",
            "false",
            "{}",
            "[[]]",
            "[1]",
            "{\"a\":1}",
            "[-1.5]",
            "1e400",
            "18446744073709551616",
            "99999999999999999999999999",
            "[null]",
            "[\"istio-ca\",1]",
            "[\"istio-ca\",null]",
            "{\"a\":0.1}",
            "[{}]",
        ];
        let text = ["\"9999999999\"", "\"\"", "\"x\""];
        let value = match name {
            // Text is the right type for the others, and is tried as their wrong value elsewhere.
            "exp" | "nbf" | "kubernetes.io" if self.random.bool() => pick(&mut self.random, &text),
            _ => pick(&mut self.random, &values),
        };
        self.by_issuer(&self.claims().set(name, value))
    }

    fn no_subject(&mut self) -> String {
        let long = "a".repeat(64 + self.random.usize(..4000));
        let subjects = [
            "",
            "demo",
            "system:serviceaccount:default",
            "system:serviceaccount::demo",
            "system:serviceaccount:default:",
            "system:serviceaccount:default:demo:x",
            "system:serviceaccount:default:demo ",
            " system:serviceaccount:default:demo",
            "System:serviceaccount:default:demo",
            "system:node:default:demo",
            "system:serviceaccount:Default:demo",
            "system:serviceaccount:default:d\u{435}mo",
            "system:serviceaccount:default:demo\0",
            "system:serviceaccount:../x:demo",
            "system:serviceaccount:default:a/sa/b",
            "system:serviceaccount:default:%64emo",
            "system:serviceaccount:-a:demo",
            "system:serviceaccount:a.b:demo",
            "system:serviceaccount:default:demo\nx",
            "spiffe://cluster.local/ns/default/sa/demo",
            "system:serviceaccount:default:.",
            "system:serviceaccount:default:a..b",
        ];
        let subject = if self.random.u8(..8) == 0 {
            format!("system:serviceaccount:{long}:demo")
        } else {
            pick(&mut self.random, &subjects).to_owned()
        };
        let claims = self.claims().without("kubernetes.io");
        let claims = if self.random.u8(..16) == 0 {
            claims.without("sub")
        } else {
            claims.set("sub", Value::from(subject))
        };
        self.by_issuer(&claims)
    }

    fn claims_at_odds(&mut self) -> String {
        let claims = self.claims();
        let admin = "\"system:serviceaccount:kube-system:admin\"";
        let bound = |namespace: &str, name: &str| json!({"namespace": namespace, "serviceaccount": {"name": name, "uid": "u1"}});
        let claims = match self.random.u8(..13) {
            0 => claims.again("sub", admin),
            1 => claims.again("iss", json!("https://other.example")),
            2 => claims.again("aud", json!(["istio-ca"])),
            3 => claims.again("exp", self.now + 7200),
            4 => claims.again("kubernetes.io", bound("default", "demo")),
            5 => claims.again("nbf", 0),
            6 => claims.set("kubernetes.io", bound("kube-system", "demo")),
            7 => claims.set("kubernetes.io", bound("default", "other")),
            8 => claims.set("kubernetes.io", json!({"namespace": "default"})),
            9 => claims.set("kubernetes.io", json!({"namespace": "default", "serviceaccount": "demo"})),
            10 => claims.set("kubernetes.io", json!({"namespace": ["default"], "serviceaccount": {"name": "demo", "uid": "u1"}})),
            11 => {
                claims.set("kubernetes.io", json!({"namespace": "default", "serviceaccount": {"name": "demo", "uid": "u1"}, "pod": null}))
            }
            _ => claims.set("sub", admin),
        };
        self.by_issuer(&claims)
    }

    fn huge_or_deep(&mut self) -> String {
        let claims = self.claims();
        let depth = 200 + size(&mut self.random, 12);
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let open = "{\"a\":".repeat(depth);
        let long = MOST + size(&mut self.random, 15);
        match self.random.u8(..7) {
            0 => self.by_issuer(&claims.set("x", Value::from("x".repeat(long)))),
            1 => signed(&self.stranger, HEADER, &claims.set("x", deep).json()),
            2 => signed(&self.stranger, HEADER, &open),
            3 => signed(
                &self.stranger,
                &format!("{{\"x\":{deep},{}", &HEADER[1..]),
                &claims.json(),
            ),
            4 => self.by_issuer(&claims.set("aud", deep)),
            5 => {
                let many: Vec<String> = (0..1000 + depth % 500)
                    .map(|number| format!("a{number}"))
                    .collect();
                self.by_issuer(&claims.set("aud", json!(many)))
            }
            _ => {
                let members: Vec<String> = (0..1000)
                    .map(|number| format!("\"c{number}\":{number}"))
                    .collect();
                signed(
                    &self.stranger,
                    HEADER,
                    &format!("{{{},{}", members.join(","), &claims.json()[1..]),
                )
            }
        }
    }

    fn base64_tricks(&mut self) -> String {
        // A length that leaves a remainder, so that padding and spare bits have a place.
        let good = self.by_issuer(&self.claims().set("jti", json!("~~~???>>>")));
        let parts: Vec<&str> = good.split('.').collect();
        let which = self.random.usize(..3);
        let part = parts[which];
        let at = self.random.usize(1..part.len());
        let changed = match self.random.u8(..6) {
            0 => format!("{part}="),
            1 => format!("{part}=="),
            2 => format!(
                "{}{}{}",
                &part[..at],
                pick(&mut self.random, &["%3D", "+", "/", "=", "~", "!"]),
                &part[at..]
            ),
            3 => format!(
                "{}{}{}",
                &part[..at],
                pick(&mut self.random, &[" ", "\t", "\u{a0}", "\u{200b}"]),
                &part[at..]
            ),
            4 => format!("{part}A"),
            _ => format!("{}\u{ff21}{}", &part[..at], &part[at..]),
        };
        let mut parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        parts[which] = changed;
        parts.join(".")
    }

    fn junk(&mut self) -> String {
        let count = size(&mut self.random, 13);
        let good = self.some_good();
        match self.random.u8(..10) {
            0 => (0..count.min(2000)).map(|_| self.random.char(..)).collect(),
            1 => ".".repeat(count),
            2 => format!("{good}.{good}"),
            3 => format!("{good}."),
            4 => format!(".{good}"),
            5 => good.replacen('.', "..", 1),
            6 => format!("Bearer {good}"),
            7 => format!("{}.{}.", encoded("\u{feff}{}"), encoded("{}")),
            8 => format!("{}.{}.{}", encoded("{"), encoded("["), encoded("\"")),
            _ => BASE64_URL_SAFE_NO_PAD.encode(bytes(&mut self.random, count)),
        }
    }
}

impl Iterator for Tokens {
    type Item = Case;

    fn next(&mut self) -> Option<Case> {
        let (family, make) = FAMILIES[self.number % FAMILIES.len()];
        let case = Case {
            number: self.number,
            family,
            text: make(self),
        };
        self.number += 1;
        Some(case)
    }
}

fn encoded(text: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(text)
}

fn signed(key: &Ed25519KeyPair, header: &str, payload: &str) -> String {
    let message = format!("{}.{}", encoded(header), encoded(payload));
    let signature = key.sign(message.as_bytes());
    format!(
        "{message}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(signature.as_ref())
    )
}

fn jwk(key: &Ed25519KeyPair, id: &str) -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": id, "x": BASE64_URL_SAFE_NO_PAD.encode(key.public_key().as_ref())})
}
