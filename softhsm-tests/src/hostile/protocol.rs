//! What a daemon and a signer process say to each other, right and wrong: bodies of frames, each
//! with a name that begins with `good` or `bad`.

use std::time::Duration;

use signers::pkcs11::{LoginEvent, MayTry};
use signers::process::wire::{BegunKey, KeyHealth, KeySetup, Reply, Request, Setup, VERSION};
use signers::{HealthState, Purpose, SignError, SignFailure, Timing};

/// A name and a body.
pub type Body = (String, Vec<u8>);

/// To the signer.
pub fn requests() -> Vec<Body> {
    let key = KeySetup {
        uri: "pkcs11:token=issuing;object=issuing?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/pin".to_owned(),
        expected: vec![0x30; 91],
        sessions: 4,
        device_limit: Duration::from_secs(2),
        open_limit: Duration::from_secs(10),
    };
    let longest = Duration::from_millis(u32::MAX.into());
    let extreme = KeySetup {
        uri: String::new(),
        expected: Vec::new(),
        sessions: u16::MAX,
        device_limit: longest,
        open_limit: longest,
    };
    let begin = |keys: &[&KeySetup], rules: &[u8]| Request::Begin {
        version: VERSION,
        setup: Some(Setup {
            keys: keys.iter().map(|key| (*key).clone()).collect(),
            rules: rules.to_vec(),
            may_try: MayTry::Carefully,
        }),
    };
    let sign = |purpose, message: &[u8]| Request::Sign {
        id: 7,
        key: 1,
        purpose,
        time_left: Duration::from_millis(1500),
        message: message.to_vec(),
    };
    let good = [
        (
            "begin-service",
            Request::Begin {
                version: VERSION,
                setup: None,
            },
        ),
        (
            "begin-other-version",
            Request::Begin {
                version: 255,
                setup: None,
            },
        ),
        ("begin-no-key", begin(&[], b"{}")),
        ("begin-key", begin(&[&key], b"{\"issuers\":[]}")),
        ("begin-keys", begin(&[&key, &extreme, &key], &[0xff; 40])),
        ("sign-leaf", sign(Purpose::Leaf, &[0x30; 300])),
        ("sign-serving", sign(Purpose::Serving, b"message")),
        (
            "sign-ca-certificate",
            sign(Purpose::CaCertificate, b"message"),
        ),
        ("sign-crl", sign(Purpose::Crl, b"message")),
        ("sign-probe", sign(Purpose::Probe, b"")),
        (
            "sign-extreme",
            Request::Sign {
                id: u64::MAX,
                key: u16::MAX,
                purpose: Purpose::Leaf,
                time_left: longest,
                message: vec![0; 3],
            },
        ),
        ("log-in", Request::LogIn { order: 1 }),
        ("distrust", Request::Distrust { key: 3 }),
        ("ask", Request::Ask),
    ];
    let good: Vec<Body> = good
        .into_iter()
        .map(|(name, request)| (format!("good-{name}"), body(|to| request.write(to))))
        .collect();
    let of = |name: &str| {
        good.iter()
            .find(|(of, _)| of.strip_prefix("good-") == Some(name))
            .expect("one of them")
            .1
            .clone()
    };
    let mut bad = broken(&[
        ("begin-keys", of("begin-keys")),
        ("sign-leaf", of("sign-leaf")),
    ]);
    // Kind, id, key: the purpose is the twelfth octet.
    bad.push(with(of("sign-leaf"), "sign-unknown-purpose", 11, &[5]));
    bad.push(with(of("sign-leaf"), "sign-length-lies", 16, &[0xff; 4]));
    bad.push(with(of("begin-service"), "begin-flag", 2, &[2]));
    bad.push(with(
        of("begin-key"),
        "begin-rules-length-lies",
        4,
        &[0x7f, 0xff, 0xff, 0xff],
    ));
    bad.push(with(
        of("begin-no-key"),
        "begin-keys-that-are-not-there",
        10,
        &[0xff, 0xff],
    ));
    bad.push(with(of("begin-key"), "begin-unknown-permission", 3, &[3]));
    // The URI's first octet, behind the rules, the number of keys and its own length.
    bad.push(with(
        of("begin-key"),
        "begin-uri-not-text",
        4 + 4 + 14 + 2 + 4,
        &[0xff],
    ));
    good.into_iter().chain(bad).collect()
}

/// To the daemon.
pub fn replies() -> Vec<Body> {
    let timing = Timing {
        waited: Duration::from_micros(5),
        in_device: Duration::from_micros(700),
    };
    let extreme = Timing {
        waited: Duration::from_micros(u64::MAX),
        in_device: Duration::ZERO,
    };
    let failed = |error, deadline_passed, reached_device| Reply::NotSigned {
        id: 9,
        timing,
        failure: SignFailure {
            error,
            deadline_passed,
            reached_device,
        },
    };
    let health = |state, detail: &str| KeyHealth {
        state,
        threads: 4,
        open: 3,
        stuck: 1,
        queued: 9,
        reopened: 2,
        detail: detail.to_owned(),
    };
    let key = |uri: &str, trouble| BegunKey {
        uri: uri.to_owned(),
        public_key: vec![0x30; 91],
        trouble,
    };
    let all = [
        HealthState::Ready,
        HealthState::Stuck,
        HealthState::Lost,
        HealthState::Locked,
        HealthState::Stopped,
    ];
    let good = [
        (
            "ready",
            Reply::Ready {
                version: VERSION,
                keys: vec![key("pkcs11:token=a;object=b", None)],
            },
        ),
        (
            "ready-but-one",
            Reply::Ready {
                version: VERSION,
                keys: vec![
                    key("a", None),
                    key("b", Some(SignError::Locked("PIN".into()))),
                ],
            },
        ),
        (
            "ready-no-key",
            Reply::Ready {
                version: 255,
                keys: Vec::new(),
            },
        ),
        (
            "ready-keys",
            Reply::Ready {
                version: VERSION,
                keys: vec![key("", None); 5],
            },
        ),
        (
            "not-ready",
            Reply::NotReady(SignError::Locked(
                "token \"issuing\" answered CKR_PIN_INCORRECT".into(),
            )),
        ),
        (
            "signed",
            Reply::Signed {
                id: 9,
                timing,
                signature: vec![0x30; 71],
            },
        ),
        (
            "signed-extreme",
            Reply::Signed {
                id: u64::MAX,
                timing: extreme,
                signature: Vec::new(),
            },
        ),
        (
            "busy",
            failed(
                SignError::Busy("1024 jobs wait already".into()),
                true,
                false,
            ),
        ),
        (
            "lost",
            failed(
                SignError::Lost("C_Sign returned CKR_DEVICE_REMOVED".into()),
                false,
                true,
            ),
        ),
        (
            "rejected",
            failed(SignError::Rejected("ümläut".into()), true, true),
        ),
        (
            "forbidden",
            failed(SignError::Forbidden("it is a CA".into()), false, false),
        ),
        (
            "wrong-key",
            failed(SignError::WrongKey("another".into()), false, false),
        ),
        ("stopped", failed(SignError::Stopped, false, false)),
        (
            "health",
            Reply::Health(
                all.into_iter()
                    .map(|state| health(state, "4 of 4 sessions open"))
                    .collect(),
            ),
        ),
        ("health-none", Reply::Health(Vec::new())),
        (
            "health-empty-detail",
            Reply::Health(vec![health(HealthState::Ready, "")]),
        ),
        (
            "logging-in",
            Reply::Login {
                order: 0,
                event: LoginEvent::Begun,
            },
        ),
        (
            "logged-in",
            Reply::Login {
                order: 1,
                event: LoginEvent::Ended,
            },
        ),
        (
            "log-in-refused",
            Reply::Login {
                order: 2,
                event: LoginEvent::Refused("the token refused the PIN".to_owned()),
            },
        ),
    ];
    let good: Vec<Body> = good
        .into_iter()
        .map(|(name, reply)| (format!("good-{name}"), body(|to| reply.write(to))))
        .collect();
    let of = |name: &str| {
        good.iter()
            .find(|(of, _)| of.strip_prefix("good-") == Some(name))
            .expect("one of them")
            .1
            .clone()
    };
    let mut bad = broken(&[("health", of("health")), ("busy", of("busy"))]);
    // Kind, id, two times: the two flags and the kind of error follow.
    bad.push(with(of("busy"), "flag", 25, &[2]));
    bad.push(with(of("busy"), "unknown-error", 27, &[8]));
    bad.push(with(of("logging-in"), "neither-in-nor-out", 9, &[3]));
    bad.push(with(of("busy"), "stopped-with-a-cause", 27, &[6]));
    bad.push(with(of("busy"), "text-length-lies", 28, &[0xff; 4]));
    bad.push(with(of("busy"), "not-text", 32, &[0xff]));
    bad.push(with(of("health"), "unknown-state", 3, &[5]));
    bad.push(with(
        of("health-none"),
        "health-that-is-not-there",
        1,
        &[0xff, 0xff],
    ));
    // State, threads, open, stuck: then eight octets of which a queue fills four.
    bad.push(with(
        of("health-empty-detail"),
        "queue-too-long",
        3 + 7,
        &[1],
    ));
    good.into_iter().chain(bad).collect()
}

fn body(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame);
    frame.split_off(4)
}

/// What no body may be, and each of these cut, or with more behind it.
fn broken(of: &[(&str, Vec<u8>)]) -> Vec<Body> {
    let mut bad: Vec<Body> = [
        ("empty", Vec::new()),
        ("kind-0", vec![0]),
        ("kind-7", vec![7, 0, 0]),
        ("kind-255", vec![255]),
    ]
    .into_iter()
    .map(|(name, body)| (format!("bad-{name}"), body))
    .collect();
    for (name, whole) in of {
        for end in [1, 2, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            bad.push((format!("bad-{name}-cut-at-{end}"), whole[..end].to_vec()));
        }
        bad.push((
            format!("bad-{name}-and-more"),
            [whole.as_slice(), &[0]].concat(),
        ));
    }
    bad
}

/// The same with other octets at a place.
fn with(mut body: Vec<u8>, name: &str, at: usize, octets: &[u8]) -> Body {
    body[at..at + octets.len()].copy_from_slice(octets);
    (format!("bad-{name}"), body)
}
