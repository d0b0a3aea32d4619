//! A start and a reload with what is there: issuers in every combination, keys in several tokens of which some are away, locked or wrong.

use std::path::Path;
use std::time::Duration;

use ca_server::app::{Options, Server};
use ca_server::clock::Clock;
use ca_server::config::Config;
use softhsm_tests::authority::Authority;
use softhsm_tests::daemon::{PATIENCE, Setup};
use softhsm_tests::{Load, Material, TestCa};

use crate::lifetime::write_key;
use crate::several_tokens::{import, line, softhsm};

const DAY: Duration = Duration::from_secs(86_400);

/// What an issuer of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Active,
    Expired,
    Retiring,
}

/// An issuer's index, and that of the issuer that it stands beside.
type Siblings = [(usize, usize)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuers_in_whichever_combination_issue_or_are_refused_with_a_sentence() {
    softhsm_tests::crypto();
    let material = Material::new();
    let root = Authority::root("root", DAY * 365);
    material.write("root-cert.pem", root.certificate());
    for name in ["a", "b", "c"] {
        let good = root.intermediate(name, DAY);
        let expired = root.renewed(name, Duration::ZERO, &good);
        material.write(&format!("{name}-good.pem"), good.certificate());
        material.write(&format!("{name}-expired.pem"), expired.certificate());
        write_key(&material, &format!("{name}.key"), &good.key());
    }
    let all = [Is::Active, Is::Expired, Is::Retiring];
    let groups: [&Siblings; 5] = [&[], &[(1, 0)], &[(0, 1)], &[(2, 1)], &[(1, 0), (2, 0)]];
    let mut issued = 0;
    for siblings in groups {
        for number in 0..27 {
            let is = [all[number / 9], all[number / 3 % 3], all[number % 3]];
            // Whoever is there signs for the first group that anybody is left of.
            let group = |issuer: usize| siblings.iter().find(|(one, _)| *one == issuer).map_or(issuer, |(_, beside)| *beside);
            let members = |of: usize| (0..3).filter(move |issuer| group(*issuer) == of).map(|issuer| is[issuer]);
            let default = (0..3).find(|of| members(*of).any(|is| is != Is::Retiring));
            let could = default.is_some_and(|of| members(of).any(|is| is == Is::Active));
            match issues(&material, is, siblings).await {
                Ok(()) => {
                    assert!(could, "{is:?} {siblings:?} issues");
                    issued += 1;
                }
                Err(sentence) => {
                    assert!(!could && sentence.contains("`issuer"), "{is:?} {siblings:?}: {sentence}");
                }
            }
        }
    }
    assert!(issued > 50, "the table is no sham: {issued}");
}

/// Whether a daemon with these issuers issues; if it is refused, in which words.
async fn issues(material: &Material, is: [Is; 3], siblings: &Siblings) -> Result<(), String> {
    let mut text =
        "trust_domain = \"cluster.local\"\ncluster_id = \"Kubernetes\"\n\n[csr]\nlisten = \"127.0.0.1:0\"\nnames = [\"localhost\"]\n\n\
                    [monitoring]\nlisten = \"127.0.0.1:0\"\n\n[ledger]\nurl = \"sqlite:table.db\"\n\n[profile]\n"
            .to_owned();
    for (number, (name, is)) in ["a", "b", "c"].into_iter().zip(is).enumerate() {
        let chain = if is == Is::Expired { "expired" } else { "good" };
        let state = if is == Is::Retiring { "retiring" } else { "active" };
        text += &format!(
            "\n[[issuer]]\nid = {name:?}\nkey = \"file:{name}.key\"\nchain = \"{name}-{chain}.pem\"\nroots = \"root-cert.pem\"\nstate = {state:?}\n"
        );
        if let Some((_, beside)) = siblings.iter().find(|(one, _)| *one == number) {
            text += &format!("sibling_of = {:?}\n", ["a", "b", "c"][*beside]);
        }
    }
    material.write("table.toml", text);
    let config = Config::load(&material.file("table.toml"), Clock::default().now()).map_err(|error| error.to_string())?;
    let server = Server::start(config, Options::default()).await.map_err(|exit| exit.to_string())?;
    // Its serving certificate is asked for like any that names no issuer.
    server.ready(PATIENCE).await.unwrap_or_else(|exit| panic!("{is:?} {siblings:?} was accepted: {exit}"));
    server.shutdown().await;
    Ok(())
}

/// The serial number of the token with this label.
fn serial(conf: &Path, label: &str) -> String {
    let output =
        std::process::Command::new("softhsm2-util").env("SOFTHSM2_CONF", conf).arg("--show-slots").output().expect("comes with SoftHSM");
    let said = String::from_utf8(output.stdout).expect("text");
    let mut last = "";
    for line in said.lines().map(str::trim) {
        if let Some(serial) = line.strip_prefix("Serial number:") {
            last = serial.trim();
        }
        if line.strip_prefix("Label:").is_some_and(|is| is.trim() == label) {
            return last.to_owned();
        }
    }
    panic!("no token {label:?}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_leaves_each_of_several_keys_behind_one_process_its_own_token() {
    let material = Material::new();
    let root = Authority::root("root", DAY * 365);
    let issuer = root.intermediate("issuing", DAY);
    material.write("root-cert.pem", root.certificate());
    material.write("issuing-chain.pem", issuer.certificate());
    write_key(&material, "issuing.key", &issuer.key());
    let (conf, pin) = (material.file("softhsm2.conf"), material.read("issuing.pin").trim_end().to_owned());
    for label in ["one", "two"] {
        import(&conf, label, &material.file("issuing.key"), &pin);
    }
    // Nothing that both say differs, so they may be one token and share a process.
    let query = format!("object=sibling?module-path={}&pin-source=file:{}", softhsm().display(), material.file("issuing.pin").display());
    let keys = [format!("pkcs11:token=one;{query}"), format!("pkcs11:serial={};{query}", serial(&conf, "two"))];
    let key = line(&material, "key = ");
    let ca = TestCa::start_on(material, Setup::default().replace(&key, &format!("key = {keys:?}"))).await;
    assert_eq!(crate::signer_process::signer_processes(&ca).len(), 1, "one process has both");
    let signed = |token: usize| {
        let series = format!("ca_server_signer_sign_seconds_count{{issuer=\"quickstart\",purpose=\"leaf\",token=\"{token}\"}}");
        let ca = &ca;
        async move { ca.metric(&series).await }
    };
    let mut load = Load::on(&ca, 8);
    for reloads in 0..2 {
        let before = (signed(1).await, signed(2).await);
        load.until_issued(&ca, 50).await;
        let after = (signed(1).await, signed(2).await);
        assert!(after.0 > before.0 && after.1 > before.1, "after {reloads} reloads both sign: {before:?} {after:?}");
        assert!(ca.reload().await, "{}", ca.log_text());
    }
    load.stop().await;
    assert_eq!(crate::signer_process::signer_processes(&ca).len(), 1, "and it is still the same");
    ca.check();
}
