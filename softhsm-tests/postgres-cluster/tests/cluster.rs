//! What tests may rely on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use postgres_cluster::{Cluster, Login, Mode, Options, SUPERUSER, ServerTls};

fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn databases_are_fresh_and_the_server_is_durable() {
    let cluster = Cluster::shared();
    let (first, second) = (cluster.database(), cluster.database());
    assert_ne!(first, second);
    cluster.psql(&first, "CREATE TABLE here (n int)");
    assert!(
        cluster
            .try_psql(&second, "SELECT * FROM here")
            .is_err_and(|said| said.contains("does not exist"))
    );
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        assert_eq!(cluster.psql(&first, &format!("SHOW {setting}")), "on");
    }
    assert_eq!(
        cluster.psql(&first, "SHOW server_encoding; SHOW lc_collate"),
        "UTF8\nC"
    );
    let socket = cluster
        .socket_directory()
        .join(format!(".s.PGSQL.{}", cluster.port()));
    assert!(socket.exists() && socket.as_os_str().len() <= 107);
}

#[test]
fn it_runs_as_an_ordinary_user() {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(format!("/proc/{}", Cluster::shared().pid()))
        .expect("it runs")
        .uid();
    assert_ne!(owner, 0);
}

#[test]
fn rows_outlast_a_kill_a_stop_and_a_change_of_settings() {
    let cluster = Cluster::start();
    let database = cluster.database();
    cluster.psql(&database, "CREATE TABLE kept (n int)");
    for (n, end) in [
        Cluster::kill as fn(&Cluster),
        |c| c.stop(Mode::Fast),
        |c| c.stop(Mode::Immediate),
    ]
    .into_iter()
    .enumerate()
    {
        cluster.psql(&database, &format!("INSERT INTO kept VALUES ({n})"));
        end(&cluster);
        assert!(
            cluster.try_psql(&database, "SELECT 1").is_err(),
            "it is gone"
        );
        cluster.start_again();
    }
    cluster.configure(&[("max_connections", "17")]);
    assert_eq!(
        cluster.psql(&database, "SHOW max_connections; SELECT count(*) FROM kept"),
        "17\n3"
    );
    cluster.reload(&[("work_mem", "5MB")]);
    assert_eq!(cluster.psql(&database, "SHOW work_mem"), "5MB");
}

#[test]
fn a_paused_server_answers_when_it_is_resumed() {
    let cluster = Cluster::start();
    cluster.pause();
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| cluster.psql(SUPERUSER, "SELECT 7"));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!asked.is_finished(), "nobody answers");
        cluster.resume();
        asked.join().expect("answered")
    });
    assert_eq!(asked, "7");
}

#[test]
fn a_standby_is_in_sync_and_takes_over() {
    let primary = Cluster::start();
    let database = primary.database();
    let standby = primary.standby();
    primary.psql(&database, "CREATE TABLE kept AS SELECT 1 AS n");
    assert_eq!(
        primary.psql(SUPERUSER, "SELECT sync_state FROM pg_stat_replication"),
        "sync"
    );
    assert!(
        standby
            .try_psql(&database, "CREATE TABLE refused (n int)")
            .is_err_and(|said| said.contains("read-only"))
    );
    primary.kill();
    standby.promote();
    assert_eq!(
        standby.psql(
            &database,
            "INSERT INTO kept VALUES (2); SELECT count(*) FROM kept"
        ),
        "2"
    );
}

#[test]
fn a_backup_takes_the_server_back() {
    let cluster = Cluster::start();
    let database = cluster.database();
    cluster.psql(&database, "CREATE TABLE kept AS SELECT 1 AS n");
    let backup = cluster.back_up();
    cluster.psql(&database, "INSERT INTO kept VALUES (2)");
    cluster.restore(&backup);
    assert_eq!(cluster.psql(&database, "SELECT count(*) FROM kept"), "1");
}

#[test]
fn a_small_tablespace_fills_up_and_is_freed() {
    let cluster = Cluster::start_with(&Options::default().small_tablespace(24));
    let database = cluster.database_with("TABLESPACE small");
    cluster.psql(&database, "CREATE TABLE filled (text text)");
    cluster.fill_small_tablespace();
    let insert =
        "INSERT INTO filled SELECT repeat(md5(n::text), 20) FROM generate_series(1, 1000) AS n";
    let said = cluster.try_psql(&database, insert).expect_err("no room");
    assert!(said.contains("No space left on device"), "{said}");
    cluster.free_small_tablespace();
    cluster.psql(&database, insert);
    let directory = cluster.socket_directory().to_owned();
    drop(cluster);
    assert!(!directory.exists());
}

#[test]
fn tls_takes_a_password_or_a_certificate_and_nothing_without_tls() {
    let files = tempfile::tempdir().expect("a directory");
    let file = |name: &str| files.path().join(name);
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(files.path())
            .output()
            .expect("openssl runs");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    for (name, subject) in [("server", "/CN=127.0.0.1"), ("client", "/CN=postgres")] {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &certificate,
            "-subj",
            subject,
            "-days",
            "1",
        ]);
    }
    let tls = |login| ServerTls {
        certificate: file("server.pem"),
        key: file("server.key"),
        login,
    };
    let over_tcp = |cluster: &Cluster, more: &str, password: &str| {
        let conninfo = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres {more}",
            cluster.port()
        );
        let psql = Command::new("psql")
            .args(["-X", "-A", "-t", "-w", "-c", "SELECT 7", &conninfo])
            .env("PGPASSWORD", password)
            .output();
        psql.expect("psql runs").status.success()
    };
    let cluster = Cluster::start_with(&Options::default().tls(tls(Login::Password)));
    cluster.psql(SUPERUSER, "ALTER ROLE postgres PASSWORD 'right'");
    let verified = format!(
        "sslmode=verify-ca sslrootcert={}",
        file("server.pem").display()
    );
    assert!(over_tcp(&cluster, &verified, "right"));
    assert!(!over_tcp(&cluster, &verified, "wrong"));
    assert!(!over_tcp(&cluster, "sslmode=disable", "right"));

    let cluster =
        Cluster::start_with(&Options::default().tls(tls(Login::Certificate(file("client.pem")))));
    let presented = format!(
        "{verified} sslcert={} sslkey={}",
        file("client.pem").display(),
        file("client.key").display()
    );
    assert!(over_tcp(&cluster, &presented, ""));
    assert!(!over_tcp(&cluster, &verified, ""));
}

/// Not a test of its own: the process that the next test kills.
#[test]
#[ignore = "started by a_killed_process_leaves_nothing"]
fn holds_two_clusters_until_it_is_killed() {
    let cluster = Cluster::start();
    let paused = Cluster::start();
    paused.pause();
    for one in [&cluster, &paused] {
        println!("cluster {} {}", one.pid(), one.socket_directory().display());
    }
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_killed_process_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    let mut process = Command::new(std::env::current_exe().expect("a running program has a path"))
        .args([
            "--ignored",
            "--exact",
            "holds_two_clusters_until_it_is_killed",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program runs");
    let mut clusters: Vec<(PathBuf, PathBuf)> = Vec::new();
    for line in BufReader::new(process.stdout.take().expect("piped"))
        .lines()
        .map_while(Result::ok)
    {
        if let Some((_, told)) = line.split_once("cluster ") {
            let (pid, directory) = told.split_once(' ').expect("two words");
            clusters.push((Path::new("/proc").join(pid), directory.into()));
        }
        if clusters.len() == 2 {
            break;
        }
    }
    assert!(
        clusters.len() == 2
            && clusters
                .iter()
                .all(|(postmaster, directory)| postmaster.exists() && directory.exists())
    );
    process.kill().expect("killed");
    process.wait().expect("waited");
    for (postmaster, directory) in &clusters {
        until("gone", || !postmaster.exists() && !directory.exists());
    }
}
