//! Tokens and keys as the ceremony makes them, and what opening a key refuses.

use secrecy::SecretString;

use crate::common::{PIN, in_child};
use signers::{KeyKind, KeyUri, SignError, open_device, open_vault, pkcs11};

fn rejected<T>(result: Result<T, SignError>) -> String {
    match result {
        Err(SignError::Rejected(text)) => text,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("not rejected"),
    }
}

#[test]
fn a_generated_key_cannot_leave_the_token() {
    in_child("vault::a_generated_key_cannot_leave_the_token", "", |house| {
        house.token();
        for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Rsa2048, KeyKind::Rsa3072] {
            let uri = house.uri(&format!("key-{kind}"));
            let mut vault = open_vault(&uri).unwrap();
            assert_eq!(vault.describe(&uri).unwrap(), None);
            let facts = vault.generate(&uri, kind).unwrap();
            assert!(facts.sensitive && facts.never_extractable && facts.local, "{facts:?}");
            assert_eq!(
                (facts.id.len(), facts.label.as_str(), facts.public_key.algorithm()),
                (16, &*format!("key-{kind}"), kind.algorithm())
            );
            assert_eq!(vault.describe(&uri).unwrap(), Some(facts.clone()));
            assert!(rejected(vault.generate(&uri, kind)).contains("never overwritten"));
            let signature = vault.open(&uri).unwrap().sign(b"message").unwrap();
            assert!(facts.public_key.verify(b"message", &signature));
        }
        let seen = house.pkcs11_tool(&["--list-objects", "--type", "privkey"]);
        assert_eq!(seen.matches("sensitive, always sensitive, never extractable, local").count(), 4, "{seen}");
        assert_eq!(seen.matches("Usage:      sign\n").count(), 4, "{seen}");
    });
}

#[test]
fn a_token_is_initialised_once_and_found_by_its_attributes() {
    in_child("vault::a_token_is_initialised_once_and_found_by_its_attributes", "", |house| {
        house.token();
        let (so, user) = (SecretString::from("so-12345"), SecretString::from(PIN));
        assert!(rejected(pkcs11::init_token(&house.module(), "ca", &so, &user)).contains("exists already"));
        let other = pkcs11::init_token(&house.module(), "other", &so, &user).unwrap();
        let tokens = pkcs11::list_tokens(&house.module()).unwrap();
        assert_eq!(tokens.len(), 2);
        assert!(tokens.contains(&other) && tokens[0].serial != tokens[1].serial);
        house.key("issuing", KeyKind::P256);

        let tail = format!("?module-path={}&pin-source=user.pin", house.module().display());
        let parse = |path: &str| KeyUri::parse(&format!("{path}{tail}"), &house.directory).unwrap();
        let ca = tokens.iter().find(|token| token.label == "ca").unwrap();
        open_device(&parse(&format!("pkcs11:serial={};object=issuing", ca.serial))).map(drop).unwrap();
        assert!(rejected(open_device(&parse("pkcs11:model=SoftHSM%20v2;object=issuing"))).contains("more than one token"));
        assert!(matches!(open_device(&parse("pkcs11:token=none;object=issuing")), Err(SignError::Lost(_))));
        assert!(rejected(open_device(&parse("pkcs11:token=ca;object=none"))).contains("no private key"));
    });
}

#[test]
fn an_ambiguous_name_is_refused() {
    in_child("vault::an_ambiguous_name_is_refused", "", |house| {
        house.token();
        let uri = house.key("issuing", KeyKind::P256);
        house.pkcs11_tool(&["--keypairgen", "--key-type", "EC:prime256v1", "--label", "issuing", "--id", "42", "--usage-sign"]);
        assert!(rejected(open_device(&uri)).contains("more than one private key"));
        assert!(rejected(open_vault(&uri).unwrap().describe(&uri)).contains("more than one private key"));
        let by_id = uri.to_string().replace("object=issuing", "id=%42");
        open_device(&KeyUri::parse(&by_id, &house.directory).unwrap()).map(drop).unwrap();
    });
}

#[test]
fn an_unsupported_key_is_refused_in_plain_words() {
    in_child("vault::an_unsupported_key_is_refused_in_plain_words", "", |house| {
        house.token();
        house.pkcs11_tool(&["--keypairgen", "--key-type", "EC:secp521r1", "--label", "p521", "--id", "01", "--usage-sign"]);
        assert!(rejected(open_device(&house.uri("p521"))).contains("only P-256 and P-384"));
        house.pkcs11_tool(&["--keypairgen", "--key-type", "EC:prime256v1", "--label", "bare", "--id", "02", "--usage-sign"]);
        house.pkcs11_tool(&["--delete-object", "--type", "pubkey", "--id", "02"]);
        assert!(rejected(open_device(&house.uri("bare"))).contains("import the public key"));
    });
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
        let uri = |module: &str| KeyUri::parse(&format!("pkcs11:token=ca;object=k?module-path={module}"), &house.directory).unwrap();
        let missing = open_device(&uri("/nowhere/lib.so")).map(|_| ()).unwrap_err();
        assert!(matches!(&missing, SignError::Lost(text) if text.contains("/nowhere/lib.so")), "{missing:?}");
        assert!(rejected(open_device(&uri("softhsm2.conf"))).contains("softhsm2.conf"));
    });
}
