//! Issuers of every shape that openssl can make, each with the answer that a config naming it gets.
//! Field cases with files of their own are in softhsm-tests; here the kinds are varied.

use std::path::Path;
use std::process::Command;

use ca_server::clock::Clock;
use ca_server::config::Config;

/// What is made: the root's key, digest and serial, its extensions, and those of the issuing
/// certificate.
#[derive(Clone, Copy)]
struct Shape<'a> {
    key: &'a str,
    digest: &'a str,
    serial: &'a str,
    root: &'a str,
    issuing_digest: &'a str,
    issuing: &'a str,
}

const ROOT: &str =
    "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash";
const ISSUING: &str = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid";

const PLAIN: Shape<'_> = Shape {
    key: "EC:P-256",
    digest: "-sha256",
    serial: "5",
    root: ROOT,
    issuing_digest: "-sha256",
    issuing: ISSUING,
};

fn openssl(directory: &Path, arguments: &[&str]) {
    openssl_at(directory, None, arguments);
}

/// openssl, as if it were another time, such as `-40d`.
fn openssl_at(directory: &Path, time: Option<&str>, arguments: &[&str]) {
    let mut command = Command::new(if time.is_some() {
        "faketime"
    } else {
        "openssl"
    });
    if let Some(time) = time {
        command.args(["-f", time, "openssl"]);
    }
    let output = command
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("openssl and faketime are installed by ./run-tests");
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn new_key(directory: &Path, kind: &str, file: &str) {
    let (algorithm, size) = kind.split_once(':').unwrap_or((kind, ""));
    let option = match algorithm {
        "EC" => format!("ec_paramgen_curve:{size}"),
        _ => format!("rsa_keygen_bits:{size}"),
    };
    let option: &[&str] = if size.is_empty() {
        &[]
    } else {
        &["-pkeyopt", &option]
    };
    openssl(
        directory,
        &[&["genpkey", "-algorithm", algorithm, "-out", file], option].concat(),
    );
}

/// A certificate of a fresh key under the root, appended to nothing.
fn issue(directory: &Path, name: &str, issuer: &str, digest: &str, extensions: &str) {
    new_key(directory, "EC:P-256", &format!("{name}.key"));
    let (key, subject, request) = (
        format!("{name}.key"),
        format!("/O=Kinds/CN={name}"),
        format!("{name}.csr"),
    );
    openssl(
        directory,
        &[
            "req", "-new", "-key", &key, "-subj", &subject, "-out", &request,
        ],
    );
    certify(
        directory,
        None,
        name,
        issuer,
        digest,
        extensions,
        &format!("{name}.pem"),
    );
}

/// Certifies the request of `name` for thirty days, from now or from another time on.
fn certify(
    directory: &Path,
    time: Option<&str>,
    name: &str,
    issuer: &str,
    digest: &str,
    extensions: &str,
    out: &str,
) {
    std::fs::write(directory.join("extensions"), extensions).unwrap();
    let (request, ca, key) = (
        format!("{name}.csr"),
        format!("{issuer}.pem"),
        format!("{issuer}.key"),
    );
    let mut sign = vec![
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &ca,
        "-CAkey",
        &key,
        "-days",
        "30",
        "-set_serial",
        "7",
        "-out",
        out,
    ];
    sign.extend(
        ["-extfile", "extensions"]
            .into_iter()
            .chain((!digest.is_empty()).then_some(digest)),
    );
    openssl_at(directory, time, &sign);
}

fn make(directory: &Path, shape: &Shape<'_>) {
    make_root(directory, shape);
    make_chain(directory, shape);
}

fn make_root(directory: &Path, shape: &Shape<'_>) {
    new_key(directory, shape.key, "root.key");
    let config = format!(
        "[req]\ndistinguished_name=name\nx509_extensions=own\n[name]\n[own]\n{}\n[dir]\nO=Kinds\n",
        shape.root
    );
    std::fs::write(directory.join("root.cnf"), config).unwrap();
    let arguments = [
        "req",
        "-x509",
        "-new",
        "-key",
        "root.key",
        "-subj",
        "/O=Kinds/CN=root",
        "-days",
        "60",
        "-out",
        "root.pem",
    ];
    let more = ["-config", "root.cnf", "-set_serial", shape.serial];
    let digest: &[&str] = if shape.digest.is_empty() {
        &[]
    } else {
        &[shape.digest]
    };
    openssl(directory, &[&arguments[..], &more, digest].concat());
}

fn make_chain(directory: &Path, shape: &Shape<'_>) {
    issue(
        directory,
        "issuing",
        "root",
        shape.issuing_digest,
        shape.issuing,
    );
    std::fs::copy(directory.join("issuing.pem"), directory.join("chain.pem")).unwrap();
}

/// What the config says of it: its warnings, or why it is refused.
fn judged(directory: &Path) -> Result<String, String> {
    std::fs::write(
        directory.join("ca.toml"),
        "trust_domain = \"cluster.local\"\ncluster_id = \"Kubernetes\"\n[csr]\nlisten = \"127.0.0.1:0\"\nnames = [\"localhost\", \"10.0.0.1\"]\n\
         [monitoring]\nlisten = \"127.0.0.1:0\"\n[ledger]\nurl = \"sqlite:ledger.db\"\n[profile]\n\
         [[issuer]]\nid = \"kinds\"\nkey = \"file:issuing.key\"\nchain = \"chain.pem\"\nroots = \"root.pem\"\n",
    )
    .unwrap();
    let config = Config::load(&directory.join("ca.toml"), Clock::default().now())
        .map_err(|error| error.to_string())?;
    Ok(config
        .warnings
        .into_iter()
        .filter(|warning| warning.starts_with("issuer"))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// The issuing certificate's usual extensions and one more.
fn with(more: &str) -> String {
    format!("{ISSUING}\n{more}")
}

#[test]
fn what_a_root_is_beside_name_and_key_is_a_warning_at_most() {
    for (shape, warning) in [
        (PLAIN, ""),
        (
            Shape {
                key: "RSA:2048",
                digest: "-sha1",
                ..PLAIN
            },
            "",
        ),
        (
            Shape {
                key: "RSA:2048",
                digest: "-md5",
                ..PLAIN
            },
            "",
        ),
        (
            Shape {
                key: "RSA:1024",
                digest: "-sha1",
                ..PLAIN
            },
            "has less than 2048 bits",
        ),
        (
            Shape {
                key: "RSA:1024",
                issuing_digest: "-sha512",
                ..PLAIN
            },
            "has less than 2048 bits",
        ),
        (
            Shape {
                key: "EC:P-521",
                digest: "-sha512",
                issuing_digest: "-sha512",
                ..PLAIN
            },
            "",
        ),
        (
            Shape {
                key: "EC:P-384",
                digest: "-sha384",
                issuing_digest: "-sha384",
                ..PLAIN
            },
            "",
        ),
        (
            Shape {
                key: "ED25519",
                digest: "",
                issuing_digest: "",
                ..PLAIN
            },
            "",
        ),
        (
            Shape {
                serial: "0",
                ..PLAIN
            },
            "",
        ),
        (
            Shape {
                serial: "-5",
                ..PLAIN
            },
            "its serial number is negative",
        ),
        (
            Shape {
                serial: "0xff0102030405060708090a0b0c0d0e0f101112131415161718",
                ..PLAIN
            },
            "",
        ),
        (
            Shape {
                root: "subjectKeyIdentifier=hash",
                ..PLAIN
            },
            "it has no basic constraints",
        ),
        (
            Shape {
                root: &format!("{ROOT}\n1.2.3.4=critical,DER:0500"),
                ..PLAIN
            },
            "its critical extension 1.2.3.4",
        ),
        (
            Shape {
                root: &format!("{ROOT}\nextendedKeyUsage=serverAuth"),
                ..PLAIN
            },
            "does not include clientAuth",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path(), &shape);
        let said = judged(directory.path())
            .unwrap_or_else(|why| panic!("{} {} {:?}: {why}", shape.key, shape.serial, shape.root));
        assert!(
            said.contains(warning) && said.is_empty() == warning.is_empty(),
            "{} {}: {said:?}",
            shape.key,
            shape.serial
        );
    }
}

#[test]
fn an_issuer_that_nobody_would_accept_is_refused_before_the_first_call() {
    let directory = tempfile::tempdir().unwrap();
    make_root(directory.path(), &PLAIN);
    let good = |more: &str, warning: &'static str| (with(more), Ok(warning));
    let bad = |more: &str, why: &'static str| (with(more), Err(why));
    for (issuing, answer) in [
        good("", ""),
        good("extendedKeyUsage=serverAuth,clientAuth", ""),
        bad("extendedKeyUsage=clientAuth", "does not include serverAuth"),
        bad(
            "extendedKeyUsage=critical,codeSigning",
            "does not include clientAuth",
        ),
        bad(
            "1.2.3.4=critical,DER:0500",
            "its critical extension 1.2.3.4",
        ),
        good("1.2.3.4=DER:0500", ""),
        bad(
            "policyConstraints=critical,requireExplicitPolicy:0",
            "its critical extension 2.5.29.36",
        ),
        good(
            "policyConstraints=requireExplicitPolicy:0",
            "it constrains policies",
        ),
        bad(
            "inhibitAnyPolicy=critical,0",
            "its critical extension 2.5.29.54",
        ),
        bad(
            "nameConstraints=critical,permitted;URI:.corp.example",
            "workload's certificate would not be accepted",
        ),
        bad(
            "nameConstraints=permitted;URI:local",
            "its name constraints do not allow it",
        ),
        bad(
            "nameConstraints=critical,excluded;URI:.local",
            "its name constraints do not allow it",
        ),
        good(
            "nameConstraints=critical,permitted;URI:cluster.local",
            "it constrains URIs",
        ),
        good(
            "nameConstraints=critical,permitted;URI:.local",
            "it constrains URIs",
        ),
        good("nameConstraints=critical,permitted;DNS:localhost", ""),
        bad(
            "nameConstraints=critical,permitted;DNS:example.com",
            "own certificate for localhost would not be accepted",
        ),
        bad(
            "nameConstraints=critical,permitted;IP:192.168.0.0/255.255.0.0",
            "own certificate for 10.0.0.1 would not be accepted",
        ),
        good(
            "nameConstraints=critical,permitted;IP:10.0.0.0/255.0.0.0",
            "",
        ),
        good("nameConstraints=critical,permitted;email:example.com", ""),
        (
            ISSUING.replace(
                "authorityKeyIdentifier=keyid",
                "2.5.29.35=DER:30068004aabbccdd",
            ),
            Ok("does not fit its issuer"),
        ),
        (
            ISSUING.replace(
                "authorityKeyIdentifier=keyid",
                "authorityKeyIdentifier=keyid,issuer:always",
            ),
            Ok(""),
        ),
        (
            ISSUING
                .replace("critical,", "")
                .replace("subjectKeyIdentifier=hash\n", ""),
            Ok(""),
        ),
        (
            ISSUING.replace(",keyCertSign", ",digitalSignature"),
            Err("does not include keyCertSign"),
        ),
        (
            ISSUING.replace("CA:TRUE,pathlen:0", "CA:FALSE"),
            Err("it is not a CA certificate"),
        ),
        ("basicConstraints=critical,CA:TRUE".to_owned(), Ok("")),
    ] {
        make_chain(
            directory.path(),
            &Shape {
                issuing: &issuing,
                ..PLAIN
            },
        );
        match (judged(directory.path()), answer) {
            (Ok(said), Ok(warning)) => assert!(
                said.contains(warning) && said.is_empty() == warning.is_empty(),
                "{issuing}: {said:?}"
            ),
            (Err(said), Err(why)) => {
                assert!(
                    said.contains(why)
                        && said.contains("`chain`, certificate 1 (line 1), CN=issuing,O=Kinds"),
                    "{issuing}: {said}"
                )
            }
            (said, answer) => panic!("{issuing}: {said:?} instead of {answer:?}"),
        }
    }
}

#[test]
fn a_chain_is_named_where_it_breaks() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let read = |name: &str| std::fs::read_to_string(at.join(name)).unwrap();
    let refused = |chain: &str| {
        std::fs::write(at.join("chain.pem"), chain).unwrap();
        judged(at).expect_err("refused")
    };
    make(
        at,
        &Shape {
            root: &ROOT.replace("CA:TRUE", "CA:TRUE,pathlen:2"),
            issuing: &ISSUING.replace("pathlen:0", "pathlen:1"),
            ..PLAIN
        },
    );
    issue(at, "lower", "issuing", "-sha256", ISSUING);
    issue(at, "weak", "root", "-sha1", ISSUING);
    let (issuing, lower, root) = (read("issuing.pem"), read("lower.pem"), read("root.pem"));
    std::fs::write(at.join("issuing.key"), read("lower.key")).unwrap();
    std::fs::write(at.join("chain.pem"), format!("{lower}{issuing}{root}")).unwrap();
    assert_eq!(
        judged(at),
        Ok(String::new()),
        "a root at the end does no harm"
    );
    for (chain, why) in [
        (format!("{issuing}{lower}"), "`chain`, certificate 2"),
        (
            lower.clone(),
            "certificate 1 (line 1), CN=lower,O=Kinds: its issuer, CN=issuing,O=Kinds, stands neither",
        ),
        (
            read("weak.pem"),
            "certificate 1 (line 1), CN=weak,O=Kinds: it is signed with an algorithm that is not accepted",
        ),
    ] {
        let said = refused(&chain);
        assert!(said.contains(why), "{said}");
    }
    std::fs::write(at.join("chain.pem"), format!("{lower}{lower}{issuing}")).unwrap();
    let line = lower.lines().count() + 1;
    assert!(judged(at).unwrap().contains(&format!(
        "certificate 2 (line {line}), CN=lower,O=Kinds: it stands in the file twice"
    )));
    // Another CA of the same name.
    std::fs::rename(at.join("root.pem"), at.join("former-root.pem")).unwrap();
    let other = tempfile::tempdir().unwrap();
    make(other.path(), &PLAIN);
    std::fs::copy(other.path().join("root.pem"), at.join("root.pem")).unwrap();
    let said = refused(&format!("{lower}{issuing}"));
    assert!(
        said.contains("CN=issuing,O=Kinds: it is not signed by the key of `roots`, certificate 1"),
        "{said}"
    );
    // The path is one certificate too long for the root.
    std::fs::rename(at.join("former-root.pem"), at.join("root.pem")).unwrap();
    issue(at, "lowest", "lower", "-sha256", ISSUING);
    let said = refused(&format!("{}{lower}{issuing}", read("lowest.pem")));
    assert!(
        said.contains("CN=lower,O=Kinds: its path length does not allow 1"),
        "{said}"
    );
}

#[test]
fn a_ca_that_two_roots_certified_is_used_by_whichever_certificate_is_in_date() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    make(at, &PLAIN);
    for (from, to) in [("root.pem", "one.pem"), ("root.key", "one.key")] {
        std::fs::copy(at.join(from), at.join(to)).unwrap();
    }
    make(at, &PLAIN);
    let middle = ISSUING.replace("pathlen:0", "pathlen:1");
    issue(at, "middle", "root", "-sha256", &middle);
    certify(
        at,
        Some("-40d"),
        "middle",
        "one",
        "-sha256",
        &middle,
        "ended.pem",
    );
    issue(at, "issuing", "middle", "-sha256", ISSUING);
    let read = |name: &str| std::fs::read(at.join(name)).unwrap();
    let roots = [read("one.pem"), read("root.pem")].concat();
    let now = Clock::default().now();
    for middle in [["ended.pem", "middle.pem"], ["middle.pem", "ended.pem"]] {
        let chain = [read("issuing.pem"), read(middle[0]), read(middle[1])].concat();
        let chain = ca_server::x509::chain::IssuerChain::parse("kinds", &chain, &roots).unwrap();
        assert!(
            chain.may_sign_at(now),
            "from {} to {}",
            chain.begins(),
            chain.ends()
        );
        assert_eq!(
            chain.out_of_date(now).len(),
            1,
            "{:?}",
            chain.out_of_date(now)
        );
    }
    let alone = [read("issuing.pem"), read("ended.pem")].concat();
    assert!(
        !ca_server::x509::chain::IssuerChain::parse("kinds", &alone, &roots)
            .unwrap()
            .may_sign_at(now)
    );
}
