//! Cases 1–11 and 14–18: who is calling, by token.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use softhsm_tests::daemon::{DEMO, Setup};
use softhsm_tests::tokens::forged;
use softhsm_tests::{Ask, Csr, Material, TestCa};

use crate::seen::{assert_opaque, identity};

#[tokio::test]
async fn case_1_and_6_a_call_without_credentials_is_refused_and_says_no_more() {
    let ca = TestCa::start().await;
    for ask in [
        Ask::default(),
        Ask::default().header("authorization", "Bearer "),
        Ask::default().header("authorization", "Bearer"),
        Ask::default().header("authorization", "Basic ZGVtbzpkZW1v"),
        Ask::bearer("not.a.token"),
        Ask::bearer("..."),
    ] {
        assert_opaque(ca.call(&Csr::demo().pem, &ask).await);
    }
    assert_eq!(
        ca.check().count("issued"),
        1,
        "the serving certificate alone"
    );
}

#[tokio::test]
async fn case_2_and_11_a_service_account_gets_its_own_identity() {
    let ca = TestCa::start().await;
    let chain = ca
        .call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    assert_eq!(identity(&chain), DEMO);

    let mut claims = ca.minter().claims("shop", "cart");
    claims["aud"] = json!("istio-ca");
    let chain = ca
        .call(&Csr::demo().pem, &Ask::bearer(&ca.minter().sign(&claims)))
        .await
        .expect("aud may be a text");
    assert_eq!(identity(&chain), "spiffe://cluster.local/ns/shop/sa/cart");

    let ledger = ca.check();
    let intent = ledger
        .kind("intent")
        .into_iter()
        .find(|row| row["identity"] == DEMO)
        .expect("recorded")
        .clone();
    assert_eq!(intent["evidence"]["credential"], "jwt");
    assert_eq!(
        intent["evidence"]["subject"],
        "system:serviceaccount:default:demo"
    );
}

#[tokio::test]
async fn cases_3_4_8_9_10_claims_that_prove_no_service_account_are_refused() {
    let ca = TestCa::start().await;
    let minter = ca.minter();
    let changed = |key: &str, value: serde_json::Value| {
        let mut claims = minter.claims("default", "demo");
        claims[key] = value;
        minter.sign(&claims)
    };
    let without = |key: &str| {
        let mut claims = minter.claims("default", "demo");
        claims.as_object_mut().expect("an object").remove(key);
        minter.sign(&claims)
    };
    let tokens = [
        changed("aud", json!(["kubernetes.default"])),
        changed("aud", json!([])),
        changed("aud", json!(7)),
        changed("exp", json!(1_000_000_000)),
        changed("exp", json!("tomorrow")),
        changed("nbf", json!(i64::MAX)),
        changed("nbf", json!("yesterday")),
        changed("nbf", json!(null)),
        changed("iss", json!("https://elsewhere")),
        changed("iss", json!(["https://elsewhere"])),
        changed("sub", json!("kubernetes-admin")),
        changed("sub", json!("system:serviceaccount:default")),
        changed("sub", json!("system:serviceaccount")),
        changed("sub", json!("")),
        changed("sub", json!("system:serviceaccount::demo")),
        changed("sub", json!("system:serviceaccount:default:")),
        changed("sub", json!("system:serviceaccount:default:demo:extra")),
        changed(
            "sub",
            json!("system:serviceaccount:default/../kube-system:demo"),
        ),
        changed("sub", json!(["system:serviceaccount:default:demo"])),
        changed("jti", json!(7)),
        changed("kubernetes.io", json!("junk")),
        changed(
            "kubernetes.io",
            json!({"namespace": "other", "serviceaccount": {"name": "demo", "uid": "1"}}),
        ),
        without("aud"),
        without("exp"),
        without("iss"),
        without("sub"),
    ];
    for token in tokens {
        assert_opaque(ca.call(&Csr::demo().pem, &Ask::bearer(&token)).await);
    }
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("a good one still works");
    ca.until("filed", || async { ca.export().count("refused_group") > 0 })
        .await;
    assert_eq!(ca.check().count("issued"), 2, "serving and the good one");
}

#[tokio::test]
async fn case_5_no_forged_signature_passes() {
    let ca = TestCa::start().await;
    let minter = ca.minter();
    let claims = minter.claims("default", "demo");
    let jwks: serde_json::Value =
        serde_json::from_str(&ca.material.read("jwks.json")).expect("JSON");
    let kid = minter.key_id();

    let mut broken = minter.sign(&claims).into_bytes();
    let last = broken.len() - 20;
    broken[last] = if broken[last] == b'A' { b'B' } else { b'A' };
    let none = forged(&json!({"alg": "none", "kid": kid}), &claims, b"");
    let modulus = jwks["keys"][0]["n"].as_str().expect("n");
    let hmac = |secret: &[u8]| {
        let head = json!({"alg": "HS256", "kid": kid});
        let unsigned = forged(&head, &claims, b"");
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        let tag = aws_lc_rs::hmac::sign(&key, unsigned.trim_end_matches('.').as_bytes());
        forged(&head, &claims, tag.as_ref())
    };
    let public_pem = std::process::Command::new("openssl")
        .args(["pkey", "-pubout", "-in"])
        .arg(ca.material.file("jwt-issuer.key"))
        .output()
        .expect("openssl runs")
        .stdout;
    let stranger = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
    let stranger =
        softhsm_tests::tokens::Minter::with_key(minter.issuer(), kid, &stranger.serialize_pem());
    for token in [
        String::from_utf8(broken).expect("text"),
        none,
        forged(&json!({"alg": "None", "kid": kid}), &claims, b""),
        hmac(modulus.as_bytes()),
        hmac(&public_pem),
        hmac(&BASE64_STANDARD.decode("").expect("empty")),
        stranger.sign(&claims),
    ] {
        assert_opaque(ca.call(&Csr::demo().pem, &Ask::bearer(&token)).await);
    }
    ca.check();
}

#[tokio::test]
async fn case_7_the_second_of_two_authorization_values_may_be_the_good_one() {
    let ca = TestCa::start().await;
    let ask = Ask::default()
        .header("authorization", "Basic ZGVtbw==")
        .header("authorization", &format!("Bearer {}", ca.token()));
    assert_eq!(
        identity(&ca.call(&Csr::demo().pem, &ask).await.expect("issued")),
        DEMO
    );
    ca.check();
}

#[tokio::test]
async fn case_14_a_rotated_key_is_found_after_one_read_of_the_file() {
    let ca =
        TestCa::start_with(Setup::default().replace("refresh = \"10s\"", "refresh = \"1h\"")).await;
    let old = ca.minter();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
    let new =
        softhsm_tests::tokens::Minter::with_key(old.issuer(), "rotated", &key.serialize_pem());
    ca.material.write(
        "jwks.json",
        jwks_of(&ca.material, &key.serialize_pem(), "rotated"),
    );
    let chain = ca
        .call(
            &Csr::demo().pem,
            &Ask::bearer(&new.token("default", "demo")),
        )
        .await
        .expect("found after one read");
    assert_eq!(identity(&chain), DEMO);

    // The interval has begun: a second unknown key does not make the file read again, even though
    // it now holds that key.
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
    ca.material.write(
        "jwks.json",
        jwks_of(&ca.material, &other.serialize_pem(), "third"),
    );
    let third =
        softhsm_tests::tokens::Minter::with_key(old.issuer(), "third", &other.serialize_pem());
    assert_opaque(
        ca.call(
            &Csr::demo().pem,
            &Ask::bearer(&third.token("default", "demo")),
        )
        .await,
    );
    ca.check();
}

#[tokio::test]
async fn cases_15_16_17_a_token_counts_in_the_cluster_that_it_belongs_to_and_in_no_other() {
    let material = Material::new();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
    let jwks = jwks_of(&material, &key.serialize_pem(), "remote");
    material.write("remote.json", jwks);
    let setup = Setup {
        append: "\n[[jwt]]\nissuer = \"https://remote\"\naudiences = [\"istio-ca\"]\ncluster_id = \"remote\"\njwks = \"remote.json\"\n"
            .to_owned(),
        ..Setup::default()
    };
    let ca = TestCa::start_on(material, setup).await;
    let remote =
        softhsm_tests::tokens::Minter::with_key("https://remote", "remote", &key.serialize_pem())
            .token("default", "demo");
    let (local, csr) = (ca.token(), Csr::demo().pem);
    let ask = |token: &str, cluster: &str| Ask::bearer(token).header("clusterid", cluster);

    ca.call(&csr, &Ask::bearer(&local))
        .await
        .expect("absent means the local cluster");
    ca.call(&csr, &ask(&local, "Kubernetes"))
        .await
        .expect("the local cluster by name");
    ca.call(&csr, &ask(&remote, "remote"))
        .await
        .expect("the remote cluster by name");
    assert_opaque(ca.call(&csr, &ask(&local, "unknown")).await);
    assert_opaque(ca.call(&csr, &ask(&local, "remote")).await);
    assert_opaque(ca.call(&csr, &ask(&remote, "Kubernetes")).await);
    assert_opaque(ca.call(&csr, &Ask::bearer(&remote)).await);
    assert_opaque(
        ca.call(
            &csr,
            &ask(&local, "Kubernetes").header("clusterid", "Kubernetes"),
        )
        .await,
    );
    ca.check();
}

#[tokio::test]
async fn case_18_a_plaintext_connection_gets_no_answer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ca = TestCa::start().await;
    let mut stream = tokio::net::TcpStream::connect(ca.csr_address())
        .await
        .expect("connected");
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .expect("sent");
    let mut answer = Vec::new();
    // A reset is as good an end as a close.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(
        !answer.windows(4).any(|window| window == b"HTTP"),
        "{answer:?}"
    );
    // At most a TLS alert (record type 21) was sent.
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    ca.until("counted", || async {
        ca.metric("ca_server_handshake_failures_total{reason=\"tls\"}")
            .await
            >= 1.0
    })
    .await;
    ca.check();
}

/// A JWK Set with the public half of an RSA key, read by the `openssl` command.
fn jwks_of(material: &Material, private_pem: &str, kid: &str) -> String {
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    let path = material.file("rotated.key");
    std::fs::write(&path, private_pem).expect("writable");
    let output = std::process::Command::new("openssl")
        .args(["rsa", "-noout", "-modulus", "-in"])
        .arg(&path)
        .output()
        .expect("openssl runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let modulus =
        hex::decode(text.trim().strip_prefix("Modulus=").expect("a modulus")).expect("hex");
    json!({"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": BASE64_URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB"}]})
        .to_string()
}
