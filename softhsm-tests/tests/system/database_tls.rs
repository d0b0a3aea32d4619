//! TLS to the database's server: it is verified by name, the daemon may prove who it is by a
//! certificate, and no secret stands in a URL.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use postgres_cluster::{Cluster, Login, Options, ServerTls};
use softhsm_tests::authority::{Authority, San};
use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, LedgerDatabase, Material, TestCa};

const DAY: Duration = Duration::from_secs(86_400);

/// A server whose certificate names its address and nothing else.
struct Server {
    cluster: Cluster,
    authority: Authority,
    _files: Material,
}

fn server(by_certificate: bool) -> Server {
    let authority = Authority::root("database root", DAY);
    let issued = authority.server(&[San::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST))]);
    let files = Material::new();
    files.write("server.pem", issued.certificate);
    files.write("server.key", issued.key);
    files.write("clients.pem", authority.certificate());
    let login = if by_certificate {
        Login::Certificate(files.file("clients.pem"))
    } else {
        Login::Password
    };
    let tls = ServerTls {
        certificate: files.file("server.pem"),
        key: files.file("server.key"),
        login,
    };
    Server {
        cluster: Cluster::start_with(&Options::default().tls(tls)),
        authority,
        _files: files,
    }
}

fn secret(material: &Material, name: &str, text: &str) {
    material.write(name, text);
    std::fs::set_permissions(material.file(name), std::fs::Permissions::from_mode(0o600))
        .expect("ours");
}

/// The `[ledger]` section's lines for this URL, with the files that it needs.
fn section(setup: Setup, url: &str, more: &str) -> Setup {
    setup.replace(
        "url = \"sqlite:ledger.db\"",
        &format!("url = {url:?}\n{more}"),
    )
}

/// What is said when the ledger cannot be reached; status 3.
fn complaint(ca: &TestCa) -> String {
    let output = ca
        .verb(&["audit", "verify"])
        .output()
        .expect("ca-server runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_verified_by_its_name_and_the_password_comes_from_a_file() {
    let server = server(false);
    let database = LedgerDatabase::on(&server.cluster);
    let login = database.login();
    database.psql(&format!("ALTER ROLE {login} PASSWORD 'hunter2'"));
    let host = |host: &str| {
        format!(
            "{}?sslmode=verify-full",
            database.url_over(&format!("{host}:{}", server.cluster.port()), &login)
        )
    };
    let material = || {
        let material = Material::new();
        material.write("database-root.pem", server.authority.certificate());
        material.write(
            "other-root.pem",
            Authority::root("database root", DAY).certificate(),
        );
        secret(&material, "password", "hunter2\n");
        secret(&material, "wrong-password", "hunter3\n");
        material
    };
    let with =
        |roots: &str, password: &str| format!("roots = {roots:?}\npassword_file = {password:?}");
    let right = with("database-root.pem", "password");

    let ca = TestCa::start_on(
        material(),
        section(Setup::default(), &host("127.0.0.1"), &right),
    )
    .await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let sessions = format!(
        "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = '{login}'"
    );
    assert_ne!(database.psql(&sessions), "0", "over TLS");
    ca.check();
    assert!(!ca.log_text().contains("hunter2"));

    for (url, more, why) in [
        (
            host("localhost"),
            right.clone(),
            "a name that is not the certificate's",
        ),
        (
            host("127.0.0.1"),
            with("other-root.pem", "password"),
            "a stranger's certificate of the same name",
        ),
        (
            host("127.0.0.1"),
            with("database-root.pem", "wrong-password"),
            "a wrong password",
        ),
        (
            host("127.0.0.1").replace("verify-full", "disable"),
            right.clone(),
            "without TLS",
        ),
    ] {
        let refused = TestCa::configured(material(), section(Setup::default(), &url, &more));
        let said = complaint(&refused);
        println!("{why}: {}", said.lines().next().unwrap_or_default());
        assert!(!said.contains("hunter"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_proves_who_it_is_by_a_client_certificate() {
    let server = server(true);
    let database = LedgerDatabase::on(&server.cluster);
    let login = database.login();
    let url = format!(
        "{}?sslmode=verify-full",
        database.url_over(&format!("127.0.0.1:{}", server.cluster.port()), &login)
    );
    let material = |role: &str| {
        let material = Material::new();
        let issued = server.authority.role(role);
        material.write("database-root.pem", server.authority.certificate());
        material.write("client.pem", issued.certificate);
        secret(&material, "client.key", &issued.key);
        material
    };
    let roots = "roots = \"database-root.pem\"";
    let presenting = format!("{roots}\ncertificate = \"client.pem\"\nkey = \"client.key\"");
    let ca = TestCa::start_on(
        material(&login),
        section(Setup::default(), &url, &presenting),
    )
    .await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    ca.check();
    complaint(&TestCa::configured(
        material("somebody_else"),
        section(Setup::default(), &url, &presenting),
    ));
    complaint(&TestCa::configured(
        material(&login),
        section(Setup::default(), &url, roots),
    ));
}

#[test]
fn a_password_in_a_url_is_refused_and_not_repeated() {
    for url in [
        "postgres://ca:hunter2@127.0.0.1/ledger",
        "postgres://ca@127.0.0.1/ledger?password=hunter2",
    ] {
        let ca = TestCa::configured(Material::new(), Setup::default().on_ledger(url));
        for verb in [
            &["check-config"][..],
            &["serve"],
            &["audit", "verify"],
            &["migrate"],
        ] {
            let output = ca.verb(verb).output().expect("ca-server runs");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{verb:?}: {said}");
            assert!(
                said.contains("password_file") && !said.contains("hunter2"),
                "{said}"
            );
        }
    }
}
