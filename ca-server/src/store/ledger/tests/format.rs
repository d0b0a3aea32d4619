//! `docs/ledger-format.md` and the bytes that are written are the same, or this fails.

use crate::evidence::RequestId;
use crate::store::ledger::body::{GENESIS, decode, encode, is_deterministic, link};
use crate::store::ledger::event::{
    ChainId, DeviceFacts, Event, Group, Header, Intent, IssuerFacts, Place, Proof, RowRef, Why,
};
use crate::store::ledger::fixture::{NOON, evidence};
use crate::timestamp::{Period, Timestamp};

const DOCUMENT: &str = include_str!("../../../../../docs/ledger-format.md");

fn header(seq: u64, request: Option<u8>, oldest_open: Option<u64>) -> Header {
    let period = Period::new(202_611).unwrap();
    Header {
        chain: ChainId(*b"sixteen octets!!"),
        place: Place { period, seq },
        time: Timestamp::from_micros(NOON * 1_000_000 + i64::try_from(seq).unwrap()),
        request: request.map(|number| RequestId([number; 16])),
        oldest_open: oldest_open.map(|seq| Place { period, seq }),
    }
}

/// The rows that the document shows: a start, an intent, its issued row, a repeat of it. Their
/// certificate bytes are stand-ins.
fn vectors() -> Vec<(Header, Event)> {
    let start = Event::Start {
        host: "ca-0".into(),
        version: "0.1.0".into(),
        config: [5; 32],
        heads: Vec::new(),
    };
    let intent = Event::Intent(Intent {
        purpose: "leaf".into(),
        serial: hex::decode("0317736b02b4400102030405060708090a0b").unwrap(),
        identity: Some("spiffe://cluster.local/ns/default/sa/demo".into()),
        issuer: "default".into(),
        profile: [7; 32],
        evidence: Proof::from(&evidence()),
        to_be_signed: b"the to-be-signed bytes, DER".to_vec(),
    });
    let mut rows = vec![
        (header(0, None, None), start),
        (header(1, Some(1), Some(1)), intent),
    ];
    let (start, intent) = (
        encode(&rows[0].0, &rows[0].1),
        encode(&rows[1].0, &rows[1].1),
    );
    let hash = link(&link(&GENESIS, &start), &intent);
    let reference = RowRef {
        chain: rows[1].0.chain,
        place: rows[1].0.place,
        hash,
    };
    let issued = Event::Issued {
        intent: reference,
        signature: b"a signature".to_vec(),
        certificate: [9; 32],
    };
    rows.push((header(2, Some(1), Some(1)), issued));
    let identity = "spiffe://cluster.local/ns/default/sa/demo".into();
    rows.push((
        header(3, Some(2), None),
        Event::Repeated {
            intent: reference,
            identity,
            evidence: Proof::from(&evidence()),
        },
    ));
    rows
}

fn section() -> String {
    let mut text = String::new();
    let mut previous = GENESIS;
    for (header, event) in vectors() {
        let body = encode(&header, &event);
        previous = link(&previous, &body);
        text += &format!(
            "### `{}`, seq {}\n\nBody, {} octets:\n\n```\n",
            event.kind(),
            header.place.seq,
            body.len()
        );
        for line in hex::encode(&body).as_bytes().chunks(96) {
            text += &format!("{}\n", String::from_utf8_lossy(line));
        }
        text += &format!("```\n\nHash:\n\n```\n{}\n```\n\n", hex::encode(previous));
    }
    text.trim_end().to_owned() + "\n"
}

#[test]
fn the_published_vectors_are_what_is_written() {
    let published = DOCUMENT
        .split_once("## Test vectors\n")
        .and_then(|(_, rest)| rest.split_once("<!-- vectors -->\n\n"))
        .map(|(_, vectors)| vectors);
    assert!(
        published == Some(section().as_str()),
        "docs/ledger-format.md must end with:\n\n{}",
        section()
    );
}

/// One event of each kind.
fn every_kind() -> Vec<Event> {
    let row = RowRef {
        chain: ChainId([1; 16]),
        place: Place {
            period: Period::new(202_610).unwrap(),
            seq: 70_000,
        },
        hash: [2; 32],
    };
    let why = Why {
        reason: "deadline".into(),
        code: "DeadlineExceeded".into(),
        detail: "the device took 5 s – too long".into(),
    };
    let time = Timestamp::from_seconds(NOON);
    let mut kinds: Vec<Event> = vectors().into_iter().map(|(_, event)| event).collect();
    kinds.extend([
        Event::Start {
            host: "h".into(),
            version: "v".into(),
            config: [0; 32],
            heads: vec![row; 30],
        },
        Event::Period { previous: row },
        Event::End,
        Event::ChainEnded { head: row },
        Event::Ceremony {
            transcript: [4; 32],
        },
        Event::Issuer(IssuerFacts {
            id: "i".into(),
            chain: vec![vec![0; 700]],
            roots: vec![vec![1; 24], vec![]],
            key_uri: "file:k".into(),
        }),
        Event::Reload { config: [4; 32] },
        Event::Clock { recorded: time },
        Event::Failed {
            intent: row,
            why: why.clone(),
        },
        Event::Unknown {
            intent: row,
            why: why.clone(),
        },
        Event::Refused {
            why,
            identity: None,
            evidence: Proof::from(&crate::evidence::Evidence::daemon()),
        },
        Event::RefusedGroup(Group {
            reason: "r".into(),
            code: "c".into(),
            prefix: "10.0.0.0/24".into(),
            from: time,
            count: u64::MAX,
            identity: None,
        }),
        Event::Dropped { count: 24 },
        Event::Device(DeviceFacts {
            issuer: "i".into(),
            token: 2,
            key_uri: "u".into(),
            state: "healthy".into(),
            detail: "d".into(),
            probes: 3,
        }),
    ]);
    kinds
}

#[test]
fn every_kind_is_deterministic_and_reads_back_and_is_in_the_document() {
    for event in every_kind() {
        let header = header(300, Some(3), None);
        let body = encode(&header, &event);
        assert!(is_deterministic(&body), "{}", event.kind());
        assert!(
            DOCUMENT.contains(&format!("| `{}` |", event.kind())),
            "{} is not in the document",
            event.kind()
        );
        assert_eq!(decode(&body).unwrap(), (header, event));
    }
}

#[test]
fn a_kind_of_a_later_version_still_reads() {
    let mut body = encode(
        &header(3, None, None),
        &Event::Other {
            kind: "checkpoint".into(),
        },
    );
    body[0] += 2;
    body.extend([0x18, 0x18, 0x81, 0x40]);
    assert!(is_deterministic(&body));
    assert_eq!(
        decode(&body).unwrap().1,
        Event::Other {
            kind: "checkpoint".into()
        }
    );
}

#[test]
fn what_a_later_version_puts_after_a_known_kinds_elements_is_passed_over_and_nothing_else() {
    for event in every_kind() {
        let header = header(3, None, None);
        let plain = encode(&header, &event);
        let mut longer = plain.clone();
        assert!(
            (0x80..0x96).contains(&longer[0]),
            "an array of fewer than 22 elements"
        );
        longer[0] += 2;
        longer.extend([0x63, b'n', b'e', b'w', 0x82, 0x01, 0xf6]);
        assert!(is_deterministic(&longer));
        assert_eq!(
            decode(&longer).unwrap(),
            (header.clone(), event.clone()),
            "{}",
            event.kind()
        );
        longer.push(0xf6);
        assert!(
            decode(&longer).is_err(),
            "what stands behind the array is not in it"
        );
        let mut shorter = plain;
        shorter[0] -= 1;
        assert!(decode(&shorter).is_err(), "{}", event.kind());
    }
}

#[test]
fn bytes_that_say_the_same_in_another_way_are_not_deterministic() {
    let plain = encode(&header(0, None, None), &Event::End);
    assert!(is_deterministic(&plain));
    let longer_integer = [&plain[..1], &[0x18, 0x01], &plain[2..]].concat();
    let indefinite = [&[0x9f], &plain[1..], &[0xff]].concat();
    let trailing = [plain.as_slice(), &[0xf6]].concat();
    for other in [
        longer_integer,
        indefinite,
        trailing,
        plain[..plain.len() - 1].to_vec(),
        Vec::new(),
    ] {
        assert!(!is_deterministic(&other), "{}", hex::encode(other));
    }
}

#[test]
fn no_bytes_make_the_reader_panic() {
    let bodies: Vec<Vec<u8>> = every_kind()
        .iter()
        .map(|event| encode(&header(1, Some(1), Some(0)), event))
        .collect();
    for body in bodies {
        for at in 0..body.len().min(400) {
            for flipped in [0x01, 0x20, 0x80, 0xff] {
                let mut changed = body.clone();
                changed[at] ^= flipped;
                let _ = (
                    decode(&changed),
                    is_deterministic(&changed),
                    decode(&body[..at]),
                );
            }
        }
    }
}
