//! What stands under `deploy/` is what a daemon takes: every TOML file there is found by walking,
//! filled with material that a real ceremony made, and judged by `check-config`. Containers are not
//! run here; what can be said of the compose file, the dashboards and the alerts without them is
//! said.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_norway::Value;

/// Where paths of the containers lie in a copy.
const CONTAINER_PATHS: [&str; 3] = ["/etc/ca-server/", "/run/secrets/", "/var/lib/ca-server"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file under `deploy/` with this extension, by its path from the repository's root.
fn files(extension: &str) -> Vec<PathBuf> {
    let root = repository();
    let mut found = Vec::new();
    let mut open = vec![root.join("deploy")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).expect("readable") {
            let path = entry.expect("readable").path();
            // What ./prepare made for somebody who tried it out is no part of the repository.
            let is_made = ["state", "secrets"]
                .iter()
                .any(|made| path.ends_with(Path::new("compose").join(made)));
            if path.is_dir() && !is_made {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path.strip_prefix(&root).expect("below it").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(repository().join(path)).expect("text")
}

fn yaml(path: &Path) -> Value {
    serde_norway::from_str::<Value>(&text(path))
        .and_then(|mut value| value.apply_merge().map(|()| value))
        .expect("YAML")
}

/// Runs to success.
fn run(command: &mut Command) -> Output {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

/// A directory of `deploy/` as its containers see it, below `root`: `./prepare` has run, secrets
/// and mounted files are in their places, and each text names them there.
struct Copy {
    root: tempfile::TempDir,
    compose: PathBuf,
}

impl Copy {
    fn of(directory: &Path) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let compose = root.path().join("compose");
        copy(&repository().join(directory), &compose);
        run(Command::new(compose.join("prepare")).current_dir(&compose));
        let copy = Self { root, compose };
        copy.mount();
        copy
    }

    /// What the compose file mounts into containers of ours, and each secret, lands below the root.
    fn mount(&self) {
        let file = yaml(&Path::new("deploy/compose").join("compose.yaml"));
        for (name, secret) in file["secrets"].as_mapping().expect("secrets") {
            let target = self.inside(&format!("/run/secrets/{}", name.as_str().expect("a name")));
            place(
                &self.compose.join(secret["file"].as_str().expect("a file")),
                &target,
            );
        }
        for (_, service) in file["services"].as_mapping().expect("services") {
            for (source, target) in mounts(service) {
                if CONTAINER_PATHS.iter().any(|path| target.starts_with(path)) {
                    place(&self.compose.join(source), &self.inside(&target));
                }
            }
        }
        for entry in std::fs::read_dir(self.inside("/etc/ca-server")).expect("mounted") {
            let path = entry.expect("readable").path();
            std::fs::write(
                &path,
                self.rooted(&std::fs::read_to_string(&path).expect("text")),
            )
            .expect("writable");
        }
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// The same text with every path of the containers below the root.
    fn rooted(&self, text: &str) -> String {
        let root = self.root.path().to_str().expect("text");
        CONTAINER_PATHS.iter().fold(text.to_owned(), |text, path| {
            text.replace(path, &format!("{root}{path}"))
        })
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("known").is_dir() {
            true if ["state", "secrets"]
                .iter()
                .any(|made| target.ends_with(made)) => {}
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), &target).expect("copied")),
        }
    }
}

fn place(source: &Path, target: &Path) {
    assert!(
        source.exists(),
        "{} is mounted, and neither in the repository nor made by ./prepare",
        source.display()
    );
    std::fs::create_dir_all(target.parent().expect("a directory")).expect("writable");
    match source.is_dir() {
        true => std::fs::create_dir_all(target).expect("writable"),
        false => drop(std::fs::copy(source, target).expect("copied")),
    }
}

/// Bind mounts of a service: source, as it stands there, and target.
fn mounts(service: &Value) -> Vec<(String, String)> {
    let volumes = service["volumes"]
        .as_sequence()
        .cloned()
        .unwrap_or_default();
    let volumes = volumes.iter().map(|volume| {
        volume
            .as_str()
            .expect("the short form")
            .split(':')
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    volumes
        .filter(|parts| parts[0].starts_with('.'))
        .map(|parts| (parts[0].clone(), parts[1].clone()))
        .collect()
}

#[test]
fn every_config_under_deploy_passes_check_config_on_what_its_own_ceremony_made() {
    let (mut configs, mut ceremonies) = (0, 0);
    for path in files("toml") {
        let content: toml::Table = text(&path).parse().expect("TOML");
        if content.contains_key("root") {
            ceremonies += 1;
            continue;
        }
        if content.contains_key("uids") {
            // A signer's, which has a test of its own.
            continue;
        }
        assert!(
            content.contains_key("csr"),
            "{}: neither a config nor a ceremony's spec",
            path.display()
        );
        configs += 1;
        let place = Copy::of(path.parent().expect("a directory"));
        let softhsm = place.inside("/etc/ca-server/softhsm2.conf");
        let ceremony = place.inside("/etc/ca-server/hold-ceremony");
        // The script as it is, with the program of this build in its path.
        let program = softhsm_tests::build::ca_server()
            .parent()
            .expect("a directory");
        let search = format!(
            "{}:{}",
            program.display(),
            std::env::var("PATH").expect("a path")
        );
        let hold = || {
            run(Command::new("bash")
                .arg(&ceremony)
                .env("PATH", &search)
                .env("SOFTHSM2_CONF", &softhsm))
        };
        hold();
        let again = String::from_utf8(hold().stdout).expect("text");
        assert!(
            again.contains("already there, unchanged") && !again.contains("made the token"),
            "{again}"
        );
        let config = place.inside("/etc/ca-server/ca.toml");
        let checked = run(Command::new(softhsm_tests::build::ca_server())
            .arg("--config")
            .arg(&config)
            .arg("check-config"));
        let said = String::from_utf8(checked.stdout).expect("text");
        assert!(
            said.contains("is good: 1 issuer(s), 1 token issuer(s)") && !said.contains("warning"),
            "{said}"
        );
    }
    assert!(
        configs >= 1 && ceremonies >= 1,
        "{configs} configs, {ceremonies} ceremonies"
    );
}

#[test]
fn no_secret_of_the_compose_file_is_readable_by_others_or_made_twice() {
    use std::os::unix::fs::PermissionsExt;
    let copy = Copy::of(Path::new("deploy/compose"));
    let secrets = || {
        let mut all: Vec<_> = std::fs::read_dir(copy.compose.join("secrets"))
            .expect("made")
            .map(|entry| entry.expect("readable").path())
            .collect();
        all.sort();
        all.into_iter()
            .map(|path| (std::fs::read(&path).expect("readable"), path))
            .collect::<Vec<_>>()
    };
    let made = secrets();
    for (content, path) in &made {
        let mode = std::fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        assert!(content.len() > 32, "{} is short", path.display());
    }
    let contents: BTreeSet<_> = made.iter().map(|(content, _)| content).collect();
    assert_eq!(contents.len(), made.len(), "no two are the same");
    run(Command::new(copy.compose.join("prepare")).current_dir(&copy.compose));
    assert_eq!(secrets(), made, "a second run leaves them alone");
    let token = String::from_utf8(run(&mut Command::new(copy.compose.join("demo-token"))).stdout)
        .expect("text");
    let keys = ca_server::authn::jwks::parse(
        &std::fs::read(copy.compose.join("state/jwks.json")).expect("made"),
    )
    .expect("a key set");
    let (issuer, now) = (
        "https://demo-issuer.ca-server.invalid",
        ca_server::clock::Clock::default().now(),
    );
    let token = ca_server::authn::jwt::Unverified::read(token.trim()).expect("a token");
    token
        .verify(&keys.keys, issuer, &["istio-ca".to_owned()], now)
        .expect("a token that the daemon accepts");
}

#[test]
fn the_compose_file_publishes_on_loopback_alone_and_keeps_secrets_out_of_environments() {
    let path = Path::new("deploy/compose/compose.yaml");
    let file = yaml(path);
    let known: BTreeSet<&str> = file["secrets"]
        .as_mapping()
        .expect("secrets")
        .keys()
        .map(|key| key.as_str().expect("a name"))
        .collect();
    let mut used = BTreeSet::new();
    let services = file["services"].as_mapping().expect("services");
    for (name, service) in services {
        let name = name.as_str().expect("a name");
        for port in service["ports"].as_sequence().into_iter().flatten() {
            assert!(
                port.as_str()
                    .expect("the short form")
                    .starts_with("127.0.0.1:"),
                "{name} publishes {port:?}"
            );
        }
        for (variable, value) in service["environment"].as_mapping().into_iter().flatten() {
            let (variable, value) = (
                variable.as_str().expect("text"),
                value.as_str().expect("text"),
            );
            let secret = ["PASSWORD", "SECRET", "PIN", "TOKEN", "KEY"]
                .iter()
                .any(|word| variable.contains(word));
            assert!(
                !secret || value.starts_with("/run/secrets/") && variable.ends_with("_FILE"),
                "{name}: {variable}"
            );
        }
        for secret in service["secrets"].as_sequence().into_iter().flatten() {
            let secret = secret.as_str().expect("the short form");
            assert!(known.contains(secret), "{name}: no secret {secret}");
            used.insert(secret);
        }
        for dependency in service["depends_on"]
            .as_mapping()
            .into_iter()
            .flat_map(|all| all.keys())
        {
            assert!(
                services.contains_key(dependency),
                "{name} waits for {dependency:?}, which is not there"
            );
        }
        assert_ne!(service["user"].as_str(), Some("root"), "{name}");
        assert!(
            service["privileged"].is_null() && service["network_mode"].as_str() != Some("host"),
            "{name}"
        );
    }
    assert_eq!(used, known, "every secret is used");
    let dockerfile = repository().join("deploy/compose").join(
        file["services"]["ca-server"]["build"]["context"]
            .as_str()
            .expect("a directory"),
    );
    assert!(
        dockerfile
            .join(
                file["services"]["ca-server"]["build"]["dockerfile"]
                    .as_str()
                    .expect("a file")
            )
            .exists()
    );
    assert!(
        text(Path::new("deploy/Dockerfile"))
            .lines()
            .any(|line| line.starts_with("USER ") && !line.contains("root")),
        "an ordinary user"
    );
    let rules = yaml(Path::new("deploy/compose/prometheus.yaml"));
    assert_eq!(
        rules["rule_files"][0].as_str(),
        Some("/etc/prometheus/alerts/*.yaml"),
        "where compose.yaml mounts deploy/alerts"
    );
}

/// What a unit says, by section and key; a key may stand several times.
fn unit(name: &str) -> Vec<(String, String, String)> {
    let (mut section, mut found) = (String::new(), Vec::new());
    for line in text(&Path::new("deploy/systemd").join(name))
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        match (line.strip_prefix('['), line.split_once('=')) {
            (Some(heading), _) => section = heading.trim_end_matches(']').to_owned(),
            (None, Some((key, value))) => {
                found.push((section.clone(), key.to_owned(), value.to_owned()))
            }
            (None, None) => panic!("{name}: {line}"),
        }
    }
    found
}

fn value(unit: &[(String, String, String)], key: &str) -> String {
    let mut values = unit.iter().filter(|(_, name, _)| name == key);
    let (_, _, value) = values.next().unwrap_or_else(|| panic!("no {key}"));
    assert!(values.next().is_none(), "{key} stands twice");
    value.clone()
}

#[test]
fn the_units_run_signer_and_daemon_as_two_users_that_share_a_socket_alone() {
    let (signer, daemon) = (unit("ca-server-signer.service"), unit("ca-server.service"));
    let (its_user, other) = (value(&signer, "User"), value(&daemon, "User"));
    assert!(its_user != other && ![&its_user, &other].contains(&&"root".to_owned()));
    assert_eq!(
        value(&daemon, "SupplementaryGroups"),
        value(&signer, "Group"),
        "the socket's group"
    );
    assert_ne!(value(&daemon, "Group"), value(&signer, "Group"));
    for (unit, name) in [(&signer, "signer"), (&daemon, "daemon")] {
        for (key, wanted) in [
            ("NoNewPrivileges", "yes"),
            ("CapabilityBoundingSet", ""),
            ("ProtectSystem", "strict"),
            ("ProtectHome", "yes"),
            ("PrivateDevices", "yes"),
            ("RestrictNamespaces", "yes"),
            ("MemoryDenyWriteExecute", "yes"),
            ("LimitCORE", "0"),
            // What its file or a token that refuses the PIN says is not mended by another start.
            ("RestartPreventExitStatus", "2"),
            ("StartLimitIntervalSec", "0"),
        ] {
            assert_eq!(value(unit, key), wanted, "{name}: {key}");
        }
    }
    assert_eq!(
        (
            value(&signer, "PrivateNetwork").as_str(),
            value(&signer, "RestrictAddressFamilies").as_str()
        ),
        ("yes", "AF_UNIX")
    );
    let command = value(&signer, "ExecStart");
    let words: Vec<&str> = command.split(' ').collect();
    let [_, "signer", "--listen", listen, "--config", file] = words[..] else {
        panic!("{command}")
    };
    let socket = listen.strip_prefix("unix:").expect("a socket");
    assert_eq!(
        Path::new(socket).parent(),
        Some(
            Path::new("/run")
                .join(value(&signer, "RuntimeDirectory"))
                .as_path()
        )
    );
    assert_eq!(value(&signer, "RuntimeDirectoryMode"), "0750");
    let page = text(Path::new("deploy/systemd/README.md"));
    assert!(
        page.contains(&format!("socket = {socket:?}")),
        "the daemon's config names the same socket"
    );
    // The file, where the unit has it, with certificate and PIN beside it.
    let (root, material) = (
        tempfile::tempdir().expect("a temporary directory"),
        softhsm_tests::Material::new(),
    );
    let rules = text(Path::new("deploy/systemd/signer.toml"));
    let parsed: toml::Table = rules.parse().expect("TOML");
    let key = &parsed["key"][0];
    let users = text(Path::new("deploy/systemd/ca-server.sysusers"));
    let uid = users
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.get(1) == Some(&other.as_str()));
    let uid: i64 = uid.expect("the daemon's user")[2]
        .parse()
        .expect("a number");
    assert_eq!(
        parsed["uids"].as_array().expect("a list"),
        &[toml::Value::Integer(uid)],
        "the daemon's user may connect, nobody else"
    );
    let own = Path::new(file)
        .parent()
        .expect("a directory")
        .to_str()
        .expect("text");
    let rooted = rules.replace(own, root.path().to_str().expect("text"));
    std::fs::write(root.path().join("signer.toml"), rooted).expect("writable");
    let issuer = Path::new(key["issuer"].as_str().expect("text"))
        .file_name()
        .expect("a file")
        .to_str()
        .expect("text");
    std::fs::write(root.path().join(issuer), material.read("issuing-chain.pem")).expect("writable");
    std::fs::copy(
        material.file("issuing.pin"),
        root.path().join("issuing.pin"),
    )
    .expect("copied");
    let mut check = Command::new(softhsm_tests::build::ca_server());
    let checked = run(check
        .args(["signer", "--listen", listen, "--check", "--config"])
        .arg(root.path().join("signer.toml")));
    assert!(String::from_utf8_lossy(&checked.stdout).contains("is good: 1 key(s)"));
}

/// Names of metrics, as they stand in a text, without what a histogram adds.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text
        .split(|letter| !word(letter))
        .filter(|name| name.starts_with("ca_server_") || name.starts_with("citadel_server_"));
    words.map(str::to_owned).collect()
}

#[test]
fn every_metric_of_dashboards_and_alerts_exists() {
    let source = text(Path::new("ca-server/src/metrics.rs"));
    let literals: BTreeSet<&str> = source.split('"').skip(1).step_by(2).collect();
    let exists = |name: &str| {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        literals.contains(name) || family.is_some_and(|family| literals.contains(family))
    };
    let mut named = BTreeSet::new();
    for path in files("json").into_iter().chain(files("yaml")) {
        if path.starts_with("deploy/compose") {
            continue;
        }
        for name in metrics_in(&text(&path)) {
            assert!(
                exists(&name),
                "{} names {name}, which metrics.rs does not have",
                path.display()
            );
            named.insert(name);
        }
    }
    assert!(named.len() > 15, "{named:?}");
}

#[test]
fn every_dashboard_is_json_and_every_alert_has_severity_summary_and_remedy() {
    for path in files("json") {
        let dashboard: serde_json::Value = serde_json::from_str(&text(&path)).expect("JSON");
        let panels = dashboard["panels"].as_array().expect("panels");
        let ids: BTreeSet<_> = panels
            .iter()
            .map(|panel| panel["id"].as_u64().expect("an id"))
            .collect();
        assert_eq!(
            ids.len(),
            panels.len(),
            "{}: ids are unique",
            path.display()
        );
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            assert!(
                !panel["targets"].as_array().expect("queries").is_empty()
                    && panel["title"].is_string(),
                "{panel}"
            );
            assert_eq!(
                panel["datasource"]["uid"], "prometheus",
                "{}",
                panel["title"]
            );
        }
    }
    assert_eq!(
        yaml(Path::new("deploy/compose/grafana/datasource.yaml"))["datasources"][0]["uid"].as_str(),
        Some("prometheus")
    );
    let mut alerts = BTreeSet::new();
    for path in files("yaml")
        .into_iter()
        .filter(|path| path.starts_with("deploy/alerts"))
    {
        for rule in yaml(&path)["groups"]
            .as_sequence()
            .expect("groups")
            .iter()
            .flat_map(|group| group["rules"].as_sequence().expect("rules"))
        {
            let name = rule["alert"].as_str().expect("a name").to_owned();
            for text in [
                &rule["expr"],
                &rule["labels"]["severity"],
                &rule["annotations"]["summary"],
                &rule["annotations"]["remedy"],
            ] {
                assert!(text.as_str().is_some_and(|text| !text.is_empty()), "{name}");
            }
            assert!(alerts.insert(name.clone()), "{name} stands twice");
        }
    }
    for expected in [
        "CaServerLedgerDown",
        "CaServerSignerDown",
        "CaServerIssuerEndsSoon",
        "CaServerClock",
        "CaServerRefusesMany",
    ] {
        assert!(alerts.contains(expected), "{expected}");
    }
}
