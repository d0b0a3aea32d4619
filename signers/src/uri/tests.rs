use super::*;

const BASE: &str = "/etc/ca";

fn parse(text: &str) -> Result<KeyUri, UriError> {
    KeyUri::parse(text, Path::new(BASE))
}

fn pkcs11(text: &str) -> Pkcs11Uri {
    match parse(text) {
        Ok(KeyUri::Pkcs11(uri)) => uri,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_full_uri_is_read() {
    let uri = pkcs11(
        "pkcs11:token=my%20ca;manufacturer=SoftHSM%20project;model=SoftHSM%20v2;serial=0a1b;object=issuing;id=%01%ff;type=private;slot-id=7?module-path=/usr/lib/x.so&pin-source=file:/run/pin",
    );
    assert_eq!(uri.token.as_deref(), Some("my ca"));
    assert_eq!(uri.manufacturer.as_deref(), Some("SoftHSM project"));
    assert_eq!(uri.model.as_deref(), Some("SoftHSM v2"));
    assert_eq!(uri.serial.as_deref(), Some("0a1b"));
    assert_eq!(uri.object.as_deref(), Some("issuing"));
    assert_eq!(uri.id, Some(vec![1, 0xff]));
    assert_eq!(uri.slot_id, Some(7));
    assert_eq!(uri.module_path, Path::new("/usr/lib/x.so"));
    assert_eq!(uri.pin_source.as_deref(), Some(Path::new("/run/pin")));
}

#[test]
fn keys_may_share_a_token_unless_their_uris_name_two() {
    let share = |one: &str, other: &str| {
        parse(one)
            .unwrap()
            .may_share_a_token_with(&parse(other).unwrap())
    };
    let key = "pkcs11:token=ca;object=a?module-path=/lib/x.so&pin-source=file:/a";
    for other in [
        "pkcs11:token=ca;object=b?module-path=/lib/x.so&pin-source=file:/b",
        "pkcs11:token=ca;serial=01;object=b?module-path=/lib/x.so",
        "pkcs11:serial=01;slot-id=3;object=b?module-path=/lib/x.so",
    ] {
        assert!(share(key, other) && share(other, key), "{other}");
    }
    for other in [
        "pkcs11:token=other;object=a?module-path=/lib/x.so",
        "pkcs11:token=ca;object=a?module-path=/lib/y.so",
        "file:/key.pem",
    ] {
        assert!(!share(key, other) && !share(other, key), "{other}");
    }
    assert!(!share("file:/key.pem", "file:/key.pem"));
}

#[test]
fn relative_paths_count_from_the_base_directory() {
    for source in ["issuing.pin", "file:issuing.pin", "%66ile:issuing.pin"] {
        let uri = pkcs11(&format!(
            "pkcs11:token=ca;object=k?module-path=lib/x.so&pin-source={source}"
        ));
        assert_eq!(uri.module_path, Path::new("/etc/ca/lib/x.so"));
        assert_eq!(
            uri.pin_source.as_deref(),
            Some(Path::new("/etc/ca/issuing.pin"))
        );
    }
    assert_eq!(
        parse("file:key.pem"),
        Ok(KeyUri::File("/etc/ca/key.pem".into()))
    );
    for absolute in [
        "file:/tmp/a%20b.pem",
        "file:///tmp/a b.pem",
        "FILE://localhost/tmp/a%20b.pem",
    ] {
        assert_eq!(parse(absolute), Ok(KeyUri::File("/tmp/a b.pem".into())));
    }
}

#[test]
fn what_we_do_not_understand_is_refused_with_its_name() {
    let tail = "?module-path=/x.so";
    for (text, word) in [
        ("", "begins with"),
        ("é", "begins with"),
        ("pkcs12:token=a", "begins with"),
        ("pkcs11:", "module-path"),
        (&format!("pkcs11:{tail}"), "names no token"),
        (&format!("pkcs11:token=a{tail}"), "names no key"),
        (&format!("pkcs11:object=a{tail}"), "names no token"),
        ("pkcs11:token=a;object=b", "module-path"),
        (&format!("pkcs11:token=a;token=b;object=c{tail}"), "twice"),
        (
            &format!("pkcs11:token=a;object=c{tail}&module-path=/y"),
            "twice",
        ),
        (
            &format!("pkcs11:token=a;object=c;type=public{tail}"),
            "private",
        ),
        (
            &format!("pkcs11:token=a;object=c;colour=red{tail}"),
            "\"colour\"",
        ),
        (
            &format!("pkcs11:token=a;object=c{tail}&colour=red"),
            "\"colour\"",
        ),
        (
            &format!("pkcs11:token=a;object=c{tail}&module-name=softhsm2"),
            "module-path",
        ),
        (&format!("pkcs11:token=a;;object=c{tail}"), "name=value"),
        (&format!("pkcs11:token=;object=c{tail}"), "no value"),
        (&format!("pkcs11:token=%4;object=c{tail}"), "hexadecimal"),
        (&format!("pkcs11:token=%ff;object=c{tail}"), "UTF-8"),
        (&format!("pkcs11:token=a b;object=c{tail}"), "%20"),
        (&format!("pkcs11:slot-id=+1;object=c{tail}"), "decimal"),
        (
            &format!("pkcs11:slot-id=99999999999999999999;object=c{tail}"),
            "decimal",
        ),
        (
            &format!("pkcs11:token=a;object=c;pin-source=/p{tail}"),
            "question mark",
        ),
        (
            &format!("pkcs11:token=a;object=c{tail}&pin-source=%7ccat"),
            "commands",
        ),
        (
            &format!("pkcs11:token=a;object=c{tail}&pin-source=file://host/p"),
            "host",
        ),
        ("file:", "empty"),
        ("file://host/key", "host"),
        ("file:a%00b", "NUL"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn a_pin_in_the_uri_is_refused_and_not_repeated() {
    for text in [
        "pkcs11:token=a;object=c?module-path=/x.so&pin-value=CANARY",
        "pkcs11:token=a;object=c;pin-value=CANARY?module-path=/x.so",
        "pkcs11:token=a;object=c?module-path=/x.so&pin-valeu=CANARY",
        "pkcs11:token=a;object=c;token=CANARY?module-path=/x.so",
        "pkcs11:token=a;object=c;slot-id=CANARY?module-path=/x.so",
        "pkcs11:token=a;object=c;type=CANARY?module-path=/x.so",
    ] {
        let error = parse(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
    }
}

#[test]
fn odd_names_survive_printing() {
    for text in [
        "pkcs11:token=%C3%A9%3B%3F%26%25%3D%2F;object=a%00b;id=%00%25%2f?module-path=/a%20b/%26%3f.so&pin-source=file:/p%2525%20q",
        "pkcs11:slot-id=18446744073709551615;object=x?module-path=//odd/x.so&pin-source=file:////odd/p",
        "file:////srv/key.pem",
        "file:/%ff%fe.pem",
    ] {
        let uri = parse(text).unwrap();
        assert_eq!(parse(&uri.to_string()), Ok(uri.clone()), "{uri}");
        assert_eq!(uri.without_secrets(), uri.to_string());
    }
}

/// A small fixed generator (SplitMix64), so that a failure repeats.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}

#[test]
fn whatever_is_accepted_prints_as_a_uri_that_means_the_same() {
    const PIECES: [&str; 34] = [
        "pkcs11:",
        "file:",
        "token=",
        "object=",
        "id=",
        "serial=",
        "model=",
        "manufacturer=",
        "type=private",
        "slot-id=",
        "?",
        "&",
        ";",
        "=",
        "%",
        "%41",
        "%00",
        "%2f",
        "%25",
        "module-path=",
        "pin-source=",
        "pin-value=",
        "/",
        "//",
        "a",
        "ca",
        "7",
        "é",
        " ",
        "|",
        "\n",
        ".",
        "..",
        "file:/",
    ];
    let mut numbers = Numbers(1);
    let mut accepted = 0;
    for round in 0..60_000 {
        let mut text = match round % 3 {
            0 => String::new(),
            1 => "pkcs11:token=a;object=b?module-path=/x".to_owned(),
            _ => "pkcs11:id=%01;slot-id=1?pin-source=p&module-path=".to_owned(),
        };
        for _ in 0..numbers.below(8) {
            text.push_str(PIECES[numbers.below(PIECES.len())]);
        }
        if let Ok(uri) = parse(&text) {
            accepted += 1;
            assert_eq!(parse(&uri.to_string()), Ok(uri.clone()), "{text:?} → {uri}");
        }
    }
    assert!(accepted > 1000, "{accepted}");
}

#[test]
fn random_bytes_never_panic() {
    let mut numbers = Numbers(2);
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..numbers.below(60))
            .map(|_| numbers.below(256) as u8)
            .collect();
        let text = String::from_utf8_lossy(&bytes);
        let _ = parse(&text);
        let _ = parse(&format!("pkcs11:{text}"));
        let _ = parse(&format!("file:{text}"));
    }
    assert!(parse(&format!("file:{}", "a".repeat(10_000))).is_err());
}
