//! Tokens and keys as the ceremony makes them, and what opening a key refuses.

use secrecy::SecretString;

use crate::common::{PIN, in_child};
use signers::{KeyKind, KeyUri, PoolOptions, SignError, Signer, open_device, open_vault, pkcs11};

fn rejected<T>(result: Result<T, SignError>) -> String {
    match result {
        Err(SignError::Rejected(text)) => text,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("not rejected"),
    }
}

#[test]
fn a_generated_key_cannot_leave_the_token() {
    in_child(
        "vault::a_generated_key_cannot_leave_the_token",
        "",
        |house| {
            house.token();
            for kind in [
                KeyKind::P256,
                KeyKind::P384,
                KeyKind::Rsa2048,
                KeyKind::Rsa3072,
            ] {
                let uri = house.uri(&format!("key-{kind}"));
                let mut vault = open_vault(&uri).unwrap();
                assert_eq!(vault.describe(&uri).unwrap(), None);
                let facts = vault.generate(&uri, kind).unwrap();
                let public_key = facts.told_public_key(&uri).unwrap();
                assert!(
                    facts.sensitive && facts.never_extractable && facts.local,
                    "{facts:?}"
                );
                assert_eq!(
                    (facts.id.len(), facts.label.as_str(), public_key.algorithm()),
                    (16, &*format!("key-{kind}"), kind.algorithm())
                );
                assert_eq!(vault.describe(&uri).unwrap(), Some(facts.clone()));
                assert!(rejected(vault.generate(&uri, kind)).contains("never overwritten"));
                let signature = vault.open(&uri).unwrap().sign(b"message").unwrap();
                assert!(public_key.verify(b"message", &signature));
            }
            let seen = house.pkcs11_tool(&["--list-objects", "--type", "privkey"]);
            assert_eq!(
                seen.matches("sensitive, always sensitive, never extractable, local")
                    .count(),
                4,
                "{seen}"
            );
            assert_eq!(seen.matches("Usage:      sign\n").count(), 4, "{seen}");
        },
    );
}

#[test]
fn a_token_is_initialised_once_and_found_by_its_attributes() {
    in_child(
        "vault::a_token_is_initialised_once_and_found_by_its_attributes",
        "",
        |house| {
            house.token();
            let (so, user) = (SecretString::from("so-12345"), SecretString::from(PIN));
            assert!(
                rejected(pkcs11::init_token(&house.module(), "ca", &so, &user))
                    .contains("exists already")
            );
            let other = pkcs11::init_token(&house.module(), "other", &so, &user).unwrap();
            let tokens = pkcs11::list_tokens(&house.module()).unwrap();
            assert_eq!(tokens.len(), 2);
            assert!(tokens.contains(&other) && tokens[0].serial != tokens[1].serial);
            house.key("issuing", KeyKind::P256);

            let tail = format!(
                "?module-path={}&pin-source=user.pin",
                house.module().display()
            );
            let parse =
                |path: &str| KeyUri::parse(&format!("{path}{tail}"), &house.directory).unwrap();
            let ca = tokens.iter().find(|token| token.label == "ca").unwrap();
            open_device(&parse(&format!(
                "pkcs11:serial={};object=issuing",
                ca.serial
            )))
            .map(drop)
            .unwrap();
            assert!(
                rejected(open_device(&parse(
                    "pkcs11:model=SoftHSM%20v2;object=issuing"
                )))
                .contains("more than one token")
            );
            assert!(matches!(
                open_device(&parse("pkcs11:token=none;object=issuing")),
                Err(SignError::Lost(_))
            ));
            assert!(
                rejected(open_device(&parse("pkcs11:token=ca;object=none")))
                    .contains("no private key")
            );
        },
    );
}

#[test]
fn an_ambiguous_name_is_refused() {
    in_child("vault::an_ambiguous_name_is_refused", "", |house| {
        house.token();
        let uri = house.key("issuing", KeyKind::P256);
        house.pkcs11_tool(&[
            "--keypairgen",
            "--key-type",
            "EC:prime256v1",
            "--label",
            "issuing",
            "--id",
            "42",
            "--usage-sign",
        ]);
        assert!(rejected(open_device(&uri)).contains("more than one private key"));
        assert!(
            rejected(open_vault(&uri).unwrap().describe(&uri))
                .contains("more than one private key")
        );
        let by_id = uri.to_string().replace("object=issuing", "id=%42");
        open_device(&KeyUri::parse(&by_id, &house.directory).unwrap())
            .map(drop)
            .unwrap();
    });
}

#[test]
fn an_unsupported_key_is_refused_in_plain_words() {
    in_child(
        "vault::an_unsupported_key_is_refused_in_plain_words",
        "",
        |house| {
            house.token();
            house.pkcs11_tool(&[
                "--keypairgen",
                "--key-type",
                "EC:secp521r1",
                "--label",
                "p521",
                "--id",
                "01",
                "--usage-sign",
            ]);
            assert!(rejected(open_device(&house.uri("p521"))).contains("only P-256 and P-384"));
            house.pkcs11_tool(&[
                "--keypairgen",
                "--key-type",
                "EC:prime256v1",
                "--label",
                "bare",
                "--id",
                "02",
                "--usage-sign",
            ]);
            house.pkcs11_tool(&["--delete-object", "--type", "pubkey", "--id", "02"]);
            assert!(rejected(open_device(&house.uri("bare"))).contains("import the public key"));
        },
    );
}

#[test]
fn a_missing_mechanism_is_named() {
    in_child(
        "vault::a_missing_mechanism_is_named",
        "slots.mechanisms = CKM_RSA_PKCS,CKM_EC_KEY_PAIR_GEN,CKM_RSA_PKCS_KEY_PAIR_GEN",
        |house| {
            house.token();
            assert!(rejected(open_device(&house.key("ec", KeyKind::P256))).contains("CKM_ECDSA"));
            // Without CKM_SHA256_RSA_PKCS we hash ourselves.
            let mut device = open_device(&house.key("rsa", KeyKind::Rsa2048)).unwrap();
            let signature = device.sign(b"message").unwrap();
            assert!(device.public_key().verify(b"message", &signature));
        },
    );
}

#[test]
fn a_library_that_is_none_is_refused() {
    in_child("vault::a_library_that_is_none_is_refused", "", |house| {
        let uri = |module: &str| {
            KeyUri::parse(
                &format!("pkcs11:token=ca;object=k?module-path={module}"),
                &house.directory,
            )
            .unwrap()
        };
        let missing = open_device(&uri("/nowhere/lib.so"))
            .map(|_| ())
            .unwrap_err();
        assert!(
            matches!(&missing, SignError::Lost(text) if text.contains("/nowhere/lib.so")),
            "{missing:?}"
        );
        assert!(rejected(open_device(&uri("softhsm2.conf"))).contains("softhsm2.conf"));
    });
}

#[test]
fn a_token_whose_clock_shows_nonsense_is_used() {
    in_child(
        "vault::a_token_whose_clock_shows_nonsense_is_used",
        "",
        |house| {
            house.token();
            let uri = house.key("issuing", KeyKind::P256);
            house.control().set("C_GetTokenInfo clock").unwrap();
            open_device(&uri).unwrap().sign(b"message").unwrap();
            let KeyUri::Pkcs11(uri) = uri else {
                unreachable!("the house has a token")
            };
            assert_eq!(pkcs11::inspect_token(&uri).unwrap().facts.label, "ca");
            assert!(house.control().met("C_GetTokenInfo") > 0);
        },
    );
}

#[test]
fn a_refused_attribute_of_a_new_key_is_named() {
    in_child(
        "vault::a_refused_attribute_of_a_new_key_is_named",
        "",
        |house| {
            house.token();
            let uri = house.uri("issuing");
            let mut vault = open_vault(&uri).unwrap();
            for (attribute, name) in [
                ("0x162", "CKA_EXTRACTABLE of the private key"),
                ("0x103", "CKA_SENSITIVE of the private key"),
                ("0x10A", "CKA_VERIFY of the public key"),
                ("0x102", "none of its attributes alone"),
            ] {
                house
                    .control()
                    .set(&format!("C_GenerateKeyPair refuses {attribute}"))
                    .unwrap();
                let text = rejected(vault.generate(&uri, KeyKind::P256));
                assert!(
                    text.contains("CKR_ATTRIBUTE_VALUE_INVALID") && text.contains(name),
                    "{text}"
                );
            }
            house.control().clear().unwrap();
            // What was made to find out which is gone.
            assert_eq!(
                house
                    .pkcs11_tool(&["--list-objects"])
                    .matches("Key Object")
                    .count(),
                0
            );
        },
    );
}

#[test]
fn a_new_key_is_asked_for_with_no_attribute_that_it_can_do_without() {
    in_child(
        "vault::a_new_key_is_asked_for_with_no_attribute_that_it_can_do_without",
        "",
        |house| {
            house.token();
            // CLASS, KEY_TYPE, ENCRYPT, DECRYPT, WRAP, UNWRAP, SIGN_RECOVER, VERIFY_RECOVER,
            // DERIVE.
            for (number, attribute) in [
                "0x0", "0x100", "0x104", "0x105", "0x106", "0x107", "0x109", "0x10B", "0x10C",
            ]
            .into_iter()
            .enumerate()
            {
                house
                    .control()
                    .set(&format!("C_GenerateKeyPair refuses {attribute}"))
                    .unwrap();
                let uri = house.uri(&format!("key-{number}"));
                let facts = open_vault(&uri)
                    .unwrap()
                    .generate(&uri, KeyKind::P256)
                    .unwrap();
                assert!(
                    facts.sensitive
                        && facts.never_extractable
                        && facts.local
                        && facts.other_uses.is_empty(),
                    "{facts:?}"
                );
            }
        },
    );
}

#[test]
fn a_key_without_a_label_is_found_by_its_certificates() {
    in_child(
        "vault::a_key_without_a_label_is_found_by_its_certificates",
        "",
        |house| {
            house.token();
            house.pkcs11_tool(&[
                "--keypairgen",
                "--key-type",
                "EC:prime256v1",
                "--label",
                "anything",
                "--id",
                "42",
                "--usage-sign",
            ]);
            let file = house.directory.join("certificate.der");
            let openssl = std::process::Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                    "-subj",
                    "/CN=mesh",
                    "-outform",
                    "DER",
                ])
                .args(["-keyout", "/dev/null", "-out"])
                .arg(&file)
                .output()
                .expect("openssl is not installed");
            assert!(
                openssl.status.success(),
                "{}",
                String::from_utf8_lossy(&openssl.stderr)
            );
            let file = file.to_str().unwrap();
            house.pkcs11_tool(&[
                "--write-object",
                file,
                "--type",
                "cert",
                "--label",
                "mesh ca",
                "--id",
                "42",
            ]);
            let uri = house.uri("mesh%20ca");
            open_device(&uri).unwrap().sign(b"message").unwrap();
            let described = open_vault(&uri)
                .unwrap()
                .describe(&uri)
                .unwrap()
                .expect("found");
            assert_eq!(
                (described.id, described.label.as_str()),
                (vec![0x42], "anything")
            );
            assert!(rejected(open_device(&house.uri("mesh"))).contains("no private key"));
        },
    );
}

#[test]
fn a_public_key_that_the_token_does_not_tell_is_believed_after_one_signature() {
    in_child(
        "vault::a_public_key_that_the_token_does_not_tell_is_believed_after_one_signature",
        "",
        |house| {
            house.token();
            let (one, other) = (
                house.key("one", KeyKind::P256),
                house.key("other", KeyKind::P256),
            );
            let key_of = |uri: &KeyUri| open_device(uri).unwrap().public_key().clone();
            let (expected, another) = (key_of(&one), key_of(&other));
            house.pkcs11_tool(&["--delete-object", "--type", "pubkey", "--label", "one"]);
            assert!(rejected(open_device(&one)).contains("import the public key"));

            let before = house.control().signed();
            let start = |key| {
                Signer::start(
                    one.clone(),
                    PoolOptions {
                        threads: 1,
                        expected: Some(key),
                        ..PoolOptions::default()
                    },
                )
            };
            let signer = start(expected.clone()).unwrap();
            assert_eq!(house.control().signed() - before, 1, "one proves it");
            assert_eq!(signer.public_key(), &expected);
            crate::faults::signed(&signer);
            let wrong = start(another).map(drop);
            assert!(
                matches!(&wrong, Err(SignError::WrongKey(text)) if text.contains("another key than expected")),
                "{wrong:?}"
            );
        },
    );
}
