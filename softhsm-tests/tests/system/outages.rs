//! Outages of the database under a daemon that works: calls get Unavailable, the device is not
//! asked, and service resumes by itself. Each story prints how soon; the goal is 2 s.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use postgres_cluster::{Cluster, Mode, Options, SUPERUSER};
use softhsm_tests::daemon::Setup;
use softhsm_tests::proxy::{Cut, Proxy};
use softhsm_tests::{Ask, Csr, LedgerDatabase, Load, TestCa};
use sqlx::{ConnectOptions, PgConnection};
use tokio::task::block_in_place;
use tonic::Code;

use crate::seen::assert_refused;

const CLIENTS: usize = 8;

/// A daemon under load, before whose eyes the database goes away.
struct UnderLoad {
    ca: TestCa,
    load: Load,
}

impl UnderLoad {
    async fn start(url: &str) -> Self {
        let ca = TestCa::start_with(Setup::default().with_faults().on_ledger(url)).await;
        let load = Load::on(&ca, CLIENTS);
        load.until_issued(&ca, 50).await;
        Self { ca, load }
    }

    /// The outage has begun: soon no client gets anything but Unavailable, and the device is asked
    /// for nothing.
    async fn is_refused(&self) {
        let Self { ca, load } = self;
        // More than two answers each, so that the last are of calls that began when others had been
        // refused; and so many because what a full disk takes ends with the last gap that fits a
        // row.
        ca.until("refused", || async { load.all_in_vain(20) }).await;
        let (signatures, issued) = (ca.faults().signatures(), load.issued());
        ca.until("refused for long", || async { load.all_in_vain(60) })
            .await;
        assert_eq!(
            (ca.faults().signatures(), load.issued()),
            (signatures, issued),
            "the device is not asked"
        );
        assert_eq!(
            ca.get("/healthz/live").await.0,
            200,
            "an outage of the database restarts no pod"
        );
        ca.until("not ready", || async {
            ca.get("/healthz/ready").await.0 == 503
        })
        .await;
    }

    /// The outage has just ended: how long it takes until the first certificate. Everything holds.
    async fn resumes(mut self, outage: &str) {
        let ended = Instant::now();
        let Self { ca, load } = &self;
        load.until_issued(ca, 1).await;
        let after = ended.elapsed();
        ca.until("all served", || async { load.all_served() }).await;
        self.load.stop().await;
        self.ca.until_ready().await;
        let ca = &self.ca;
        ca.until("settled", || async { ca.open_intents(&ca.export()) == 0 })
            .await;
        let ledger = ca.check();
        softhsm_tests::tell(&format!(
            "{outage}: resumed {} ms after its end; {} certificates, calls refused: {:?}; {} intents failed, {} unknown",
            after.as_millis(),
            self.load.issued(),
            self.load.refused(),
            ledger.count("failed"),
            ledger.count("unknown"),
        ));
        assert_eq!(ledger.count("start"), 1, "no chain but the first");
        assert!(
            self.load.unanswered().is_empty(),
            "{:?}",
            self.load.unanswered()
        );
        let refused = self.load.refused();
        assert!(
            refused.keys().all(|code| code == "Unavailable"),
            "{refused:?}\n{}",
            ca.log_text()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_database() {
    let cluster = Cluster::start();
    let under_load = UnderLoad::start(&LedgerDatabase::on(&cluster).url()).await;
    block_in_place(|| cluster.stop(Mode::Fast));
    under_load.is_refused().await;
    block_in_place(|| cluster.start_again());
    under_load.resumes("database stopped").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_database() {
    let cluster = Cluster::start();
    let under_load = UnderLoad::start(&LedgerDatabase::on(&cluster).url()).await;
    block_in_place(|| cluster.pause());
    under_load.is_refused().await;
    block_in_place(|| cluster.resume());
    under_load.resumes("database paused").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_network() {
    let cluster = Cluster::start();
    let database = LedgerDatabase::on(&cluster);
    let proxy = Proxy::before(SocketAddr::from(([127, 0, 0, 1], cluster.port()))).await;
    let under_load =
        UnderLoad::start(&database.url_over(&proxy.address().to_string(), &database.login())).await;
    proxy.fall_silent();
    under_load.is_refused().await;
    proxy.speak_again();
    under_load.resumes("network silent").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_left() {
    let cluster = Cluster::start_with(&Options::default().setting("max_connections", "12"));
    let database = LedgerDatabase::on(&cluster);
    let (daemon, other) = (database.login(), database.login());
    let under_load = UnderLoad::start(&database.url_as(&daemon)).await;
    // While the daemon stands still its connection is ended, and others take every place.
    under_load.ca.signal("STOP");
    block_in_place(|| database.end_sessions(&daemon));
    let mut taken = Vec::new();
    // A URL wants a host, which the socket's parameter overrides.
    let url = database.url_as(&other).replace("@/", "@localhost/");
    let options: sqlx::postgres::PgConnectOptions = url.parse().expect("a URL");
    let full = loop {
        match options.connect().await {
            Ok(connection) => taken.push(connection),
            Err(error) => break error.to_string(),
        }
    };
    assert!(
        full.contains("connection slots") || full.contains("too many clients"),
        "{full}"
    );
    under_load.ca.signal("CONT");
    under_load.is_refused().await;
    softhsm_tests::tell(&format!("{} connections taken: {full}", taken.len()));
    drop::<Vec<PgConnection>>(taken);
    under_load.resumes("no connection left").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk() {
    let cluster = Cluster::start_with(&Options::default().small_tablespace(48));
    let database = LedgerDatabase::named(&cluster, cluster.database_with("TABLESPACE small"));
    let under_load = UnderLoad::start(&database.url()).await;
    block_in_place(|| cluster.fill_small_tablespace());
    under_load.is_refused().await;
    assert!(
        cluster.log().contains("No space left on device"),
        "{}",
        cluster.log()
    );
    block_in_place(|| cluster.free_small_tablespace());
    under_load.resumes("disk full").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_to_a_synchronous_standby() {
    let primary = Cluster::start();
    let database = LedgerDatabase::on(&primary);
    let standby = primary.standby();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.port(), standby.port());
    let under_load = UnderLoad::start(&database.url_over(&hosts, &database.login())).await;
    block_in_place(|| primary.kill());
    under_load.is_refused().await;
    block_in_place(|| standby.promote());
    under_load.resumes("fail-over").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_lost_and_comes_back() {
    let primary = Cluster::start();
    let database = LedgerDatabase::on(&primary);
    let standby = primary.standby();
    let under_load = UnderLoad::start(&database.url()).await;
    // Every commit now waits for a standby that is not there: it is durable here and not known to
    // be.
    block_in_place(|| standby.stop(Mode::Immediate));
    under_load.is_refused().await;
    block_in_place(|| standby.start_again());
    under_load
        .ca
        .until("followed", || async { primary.is_followed() })
        .await;
    under_load.resumes("synchronous standby lost").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_around_a_commit_loses_and_doubles_nothing() {
    const CUTS: usize = 30;
    let cluster = Cluster::start();
    let database = LedgerDatabase::on(&cluster);
    let proxy = Proxy::before(SocketAddr::from(([127, 0, 0, 1], cluster.port()))).await;
    let url = database.url_over(&proxy.address().to_string(), &database.login());
    let ca = TestCa::start_with(Setup::default().with_faults().on_ledger(&url)).await;
    let mut load = Load::on(&ca, CLIENTS);
    let mut longest = Duration::ZERO;
    for cut in 0..CUTS {
        load.until_issued(&ca, 20).await;
        proxy.cut(if cut % 3 == 0 { Cut::Rows } else { Cut::Answer });
        ca.until("cut", || async { proxy.cuts() == cut + 1 }).await;
        let begun = Instant::now();
        load.until_issued(&ca, 1).await;
        longest = longest.max(begun.elapsed());
    }
    load.stop().await;
    ca.until("settled", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    let ledger = ca.check();
    softhsm_tests::tell(&format!(
        "{CUTS} cuts, of which {} between the rows and the commit's answer; resumed after at most {} ms; {} certificates, refused: {:?}",
        CUTS - CUTS.div_ceil(3),
        longest.as_millis(),
        load.issued(),
        load.refused(),
    ));
    assert_eq!(ledger.count("start"), 1, "no chain but the first");
    let refused = load.refused();
    assert!(
        refused.keys().all(|code| code == "Unavailable"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_restored_from_an_older_copy_is_never_written_again() {
    let cluster = Cluster::start();
    let database = LedgerDatabase::on(&cluster);
    let mut under_load = UnderLoad::start(&database.url()).await;
    let backup = block_in_place(|| cluster.back_up());
    under_load.load.until_issued(&under_load.ca, 50).await;
    block_in_place(|| cluster.restore(&backup));
    under_load.is_refused().await;
    let UnderLoad { ca, load } = &mut under_load;
    ca.logged("the ledger went back").await;
    load.stop().await;
    let signatures = ca.faults().signatures();
    for _ in 0..20 {
        assert_refused(
            ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token())).await,
            Code::Unavailable,
        );
    }
    assert_eq!(ca.faults().signatures(), signatures);
    assert!(
        ca.get("/healthz/ready")
            .await
            .1
            .contains("the ledger went back"),
        "{}",
        ca.get("/healthz/ready").await.1
    );
    let ledger = ca.export();
    softhsm_tests::tell(&format!(
        "went back: {} certificates were received, {} outcomes are left",
        load.issued(),
        ledger.count("issued")
    ));
    assert!(ledger.count("issued") < load.issued());
    assert_eq!(cluster.psql(SUPERUSER, "SELECT pg_is_in_recovery()"), "f");
}
