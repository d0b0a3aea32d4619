use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

use super::*;

const CONFIG: &str = r#"
trust_domain = "cluster.local"
cluster_id = "Kubernetes"
[csr]
listen = "127.0.0.1:0"
names = ["localhost"]
[monitoring]
listen = "127.0.0.1:0"
[ledger]
url = "sqlite:ledger.db"
[profile]
[[issuer]]
id = "a"
key = "file:ca.key"
chain = "ca.pem"
roots = "ca.pem"
"#;

/// A daemon over a key in a file.
async fn server(directory: &std::path::Path) -> Server {
    use std::os::unix::fs::PermissionsExt;
    // Another test of the same process may have been the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    std::fs::write(
        directory.join("ca.pem"),
        params.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    std::fs::write(directory.join("ca.key"), key.serialize_pem()).unwrap();
    std::fs::set_permissions(directory.join("ca.key"), PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(directory.join("ca.toml"), CONFIG).unwrap();
    let config = Config::load(&directory.join("ca.toml"), Clock::default().now()).unwrap();
    let server = Server::start(config, Options::default()).await.unwrap();
    server.ready(Duration::from_secs(60)).await.unwrap();
    server
}

/// One of the tasks that last as long as the daemon.
type PartOf = fn(&Server) -> tokio::task::AbortHandle;

#[tokio::test]
async fn a_part_of_the_daemon_that_ends_ends_it_with_a_status_that_its_unit_starts_again() {
    let parts: [(&str, PartOf); 4] = [
        ("CSR listener", |server| server.csr.abort_handle()),
        ("monitoring listener", |server| {
            server.monitoring.abort_handle()
        }),
        ("renewal of the serving certificate", |server| {
            server.renewal.abort_handle()
        }),
        ("watch over the devices", |server| {
            server.devices.abort_handle()
        }),
    ];
    for (name, part) in parts {
        let directory = tempfile::tempdir().unwrap();
        let server = server(directory.path()).await;
        part(&server).abort();
        let ended = tokio::time::timeout(Duration::from_secs(60), server.run())
            .await
            .expect("it does not go on without it");
        let exit = ended.unwrap_err();
        assert!(
            exit.code() == 3 && exit.to_string().contains(name),
            "{name}: {exit}"
        );
    }
}

#[tokio::test]
async fn a_ledger_writer_that_ends_ends_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path()).await;
    // What it does when it is told so, it might do by a fault.
    server.daemon.ledger.shutdown().await;
    let ended = tokio::time::timeout(Duration::from_secs(60), server.run())
        .await
        .expect("it does not go on without a writer");
    let exit = ended.unwrap_err();
    assert_eq!(
        (exit.code(), exit.to_string().as_str()),
        (
            3,
            "the ledger's writer has ended, and nothing more can be recorded"
        )
    );
}
