//! What the tests of the ledger stand on: a real issuer, real certificates by an independent
//! encoder, a clock that is told, and a ledger on either database.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};

use postgres_cluster::Cluster;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _, SqliteConnection};

use super::body::decode;
use super::chain::{Chain, OpenIntents};
use super::database::Database;
use super::event::{ChainId, Event, Group, Intent, Proof, Row, RowRef, StoredRow};
use super::export::{Format, Selection};
use super::location::{Location, ServerFiles};
use super::migrate::{Logins, Migrated, migrate};
use super::open_intent::{NotOpened, Recorded};
use super::options::{LedgerOptions, LedgerStartError, StartFact, Unobserved};
use super::query::LedgerReader;
use super::verify::{Begin, Checkpoint, Report, VerifyOptions};
use super::{Ledger, gone};
use crate::clock::Clock;
use crate::digest::sha256;
use crate::evidence::{Credential, Evidence, Pod, RequestId};
use crate::refusal::Refusal;
use crate::timestamp::{Period, Timestamp};
use crate::x509::Serial;

/// 2026-11-22T12:00:00Z.
pub(super) const NOON: i64 = 1_795_348_800;

/// A clock that shows what it is told.
#[derive(Clone)]
pub(super) struct Hands(Arc<AtomicI64>);

impl Hands {
    pub(super) fn at(seconds: i64) -> Self {
        Self(Arc::new(AtomicI64::new(seconds * 1_000_000)))
    }

    pub(super) fn set(&self, seconds: i64) {
        self.0.store(seconds * 1_000_000, Ordering::SeqCst);
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }

    pub(super) fn clock(&self) -> Clock {
        let hands = self.clone();
        Clock::from_fn(move || hands.now())
    }
}

/// An issuer whose certificate is good for ten years around the fixture's noon.
pub(super) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What makes serials differ, also those of several issuers in one ledger.
static SERIALS: AtomicU64 = AtomicU64::new(0);

/// A certificate that exists but is not recorded: what a `Draft` and a `Certificate` hold.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) to_be_signed: Vec<u8>,
    pub(super) signature: Vec<u8>,
    pub(super) der: Vec<u8>,
    pub(super) serial: Serial,
    pub(super) identity: String,
}

pub(super) const IDENTITY: &str = "spiffe://cluster.local/ns/default/sa/demo";

impl Ca {
    pub(super) fn new() -> Self {
        Self::with_key(
            KeyPair::generate().unwrap(),
            NOON - 5 * 31_536_000,
            NOON + 5 * 31_536_000,
        )
    }

    /// A certificate of the same name and key, for another time.
    pub(super) fn renewed(&self, from: i64, to: i64) -> Self {
        Self::with_key(
            KeyPair::try_from(self.issuer.key().serialize_der()).unwrap(),
            from,
            to,
        )
    }

    fn with_key(key: KeyPair, from: i64, to: i64) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "Fixture CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = Timestamp::from_seconds(from).date_time();
        params.not_after = Timestamp::from_seconds(to).date_time();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    /// Its certificate, PEM.
    pub(super) fn pem(&self) -> String {
        crate::x509::pem::certificate(self.issuer.der())
    }

    pub(super) fn fact(&self) -> StartFact {
        StartFact::Issuer {
            id: "default".into(),
            chain: vec![self.issuer.der().to_vec()],
            roots: vec![self.issuer.der().to_vec()],
            key_uri: "file:issuing.key".into(),
        }
    }

    /// A good workload certificate with a fresh serial of `period`.
    pub(super) fn make(&self, period: Period, now: Timestamp) -> Made {
        self.make_with(period, now, |_| {})
    }

    /// The same, with something changed.
    pub(super) fn make_with(
        &self,
        period: Period,
        now: Timestamp,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Made {
        let mut random = [0; 11];
        random[3..].copy_from_slice(&SERIALS.fetch_add(1, Ordering::SeqCst).to_be_bytes());
        let serial = Serial::new(period, now, random);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.subject_alt_names = vec![SanType::URI(IDENTITY.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.not_before = now.minus(Duration::from_secs(120)).date_time();
        params.not_after = now.plus(Duration::from_secs(86_400)).date_time();
        change(&mut params);
        let certificate = params
            .signed_by(&KeyPair::generate().unwrap(), &self.issuer)
            .unwrap();
        let der = certificate.der().to_vec();
        let (to_be_signed, signature) = take_apart(&der);
        Made {
            to_be_signed,
            signature,
            der,
            serial,
            identity: IDENTITY.into(),
        }
    }
}

/// The to-be-signed bytes and the signature of a certificate.
fn take_apart(der: &[u8]) -> (Vec<u8>, Vec<u8>) {
    use der::{Decode, Encode};
    let certificate = x509_cert::Certificate::from_der(der).unwrap();
    (
        certificate.tbs_certificate().to_der().unwrap(),
        certificate.signature().raw_bytes().to_vec(),
    )
}

impl Made {
    pub(super) fn sha256(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    pub(super) fn intent(&self) -> Intent {
        Intent {
            purpose: "leaf".into(),
            serial: self.serial.as_bytes().to_vec(),
            identity: Some(self.identity.clone()),
            issuer: "default".into(),
            profile: [7; 32],
            evidence: Proof::from(&evidence()),
            to_be_signed: self.to_be_signed.clone(),
        }
    }
}

pub(super) fn evidence() -> Evidence {
    Evidence {
        credential: Credential::Jwt,
        issuer: Some("https://kubernetes.default.svc".into()),
        subject: Some("system:serviceaccount:default:demo".into()),
        token: Some("0b9c5a54-4c3e-4d9e-9a54-0a2f8e6c7d10".into()),
        cluster: Some("Kubernetes".into()),
        pod: Some(Pod {
            name: "demo-5d8f7c9b6-x2x7q".into(),
            uid: "3f0f8f0e-5c1b-4f6e-8a77-1d2c3b4a5e6f".into(),
        }),
        peer: Some("10.1.2.3:40512".parse().unwrap()),
    }
}

pub(super) fn request(number: u8) -> RequestId {
    RequestId([number; 16])
}

pub(super) fn options(location: &Location, ca: &Ca) -> LedgerOptions {
    LedgerOptions {
        location: location.clone(),
        host: "ca-0".into(),
        version: "0.1.0".into(),
        facts: vec![StartFact::Ceremony { digest: [3; 32] }, ca.fact()],
        config_digest: [5; 32],
        accept_clock: false,
        // The database shows the real time, and the hands what they are told.
        clock_tolerance: Duration::MAX,
        capacity: 1024,
        observer: Arc::new(Unobserved),
    }
}

pub(super) async fn start(
    location: &Location,
    ca: &Ca,
    hands: &Hands,
) -> Result<Ledger, LedgerStartError> {
    Ledger::start(options(location, ca), hands.clock()).await
}

impl Ledger {
    /// Opens the intent of a certificate.
    pub(super) async fn open_made(&self, made: Made) -> Result<Recorded<Made>, NotOpened<Made>> {
        let intent = made.intent();
        self.record(made, intent, request(1)).await
    }
}

impl Recorded<Made> {
    /// Closes it as issued.
    pub(super) async fn issue(self) -> Result<(), Refusal> {
        let event = Event::Issued {
            intent: self.intent(),
            signature: self.draft.signature.clone(),
            certificate: self.draft.sha256(),
        };
        self.close_as(event).await
    }

    /// Closes it as something else.
    pub(super) async fn close_as(self, event: Event) -> Result<(), Refusal> {
        self.intent
            .close(event)
            .await
            .unwrap_or_else(|_| Err(gone()))
    }

    /// Keeps the call's answer: what a caller does who waits.
    pub(super) fn issue_later(self) -> tokio::task::JoinHandle<Result<(), Refusal>> {
        tokio::spawn(self.issue())
    }
}

/// A chain by somebody who keeps no rule but that every row is bound to the one before.
pub(super) struct Forged<'a> {
    pub(super) world: &'a World,
    chain: Chain,
    rows: Vec<Row>,
    open: OpenIntents,
}

impl Forged<'_> {
    /// The next row, at the time that the clock shows.
    pub(super) fn row(&mut self, event: Event) -> RowRef {
        self.chain.append(
            event,
            None,
            self.world.hands.now(),
            &self.open,
            &mut self.rows,
        );
        let row = self.rows.last().unwrap().reference();
        match &self.rows.last().unwrap().event {
            Event::Intent(_) => self.open.insert(row.place, row.hash),
            other => other
                .closes()
                .filter(|intent| intent.chain == row.chain)
                .and_then(|intent| self.open.remove(&intent.place)),
        };
        row
    }

    /// An issuance: the intent and its certificate.
    pub(super) fn issue(&mut self) -> RowRef {
        let made = self.world.make_now();
        let intent = self.row(Event::Intent(made.intent()));
        self.row(Event::Issued {
            intent,
            signature: made.signature.clone(),
            certificate: made.sha256(),
        });
        intent
    }

    /// Writes the rows so far and goes on in the same chain.
    pub(super) async fn write_so_far(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        let mut database = Database::writer(&self.world.location).await.unwrap();
        database.prepare_schema().await.unwrap();
        database.insert(&rows).await.unwrap();
        database.close().await.unwrap();
    }

    /// The rows, for whoever writes them otherwise.
    pub(super) fn into_rows(self) -> Vec<Row> {
        self.rows
    }

    /// Puts the rows into the ledger.
    pub(super) async fn write(mut self) {
        self.write_so_far().await;
    }
}

/// Somebody who has begun a transaction and keeps everybody else from writing.
pub(super) enum Held {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl World {
    pub(super) async fn hold(&self) -> Held {
        match &self.location {
            Location::Sqlite(path) => {
                let mut connection = SqliteConnection::connect(path.to_str().unwrap())
                    .await
                    .unwrap();
                connection.execute("BEGIN IMMEDIATE").await.unwrap();
                Held::Sqlite(connection)
            }
            Location::Postgres(_) => {
                let mut connection = self.superuser().await;
                connection
                    .execute("BEGIN; LOCK TABLE event IN SHARE ROW EXCLUSIVE MODE")
                    .await
                    .unwrap();
                Held::Postgres(connection)
            }
        }
    }
}

impl Held {
    pub(super) async fn run(&mut self, sql: &'static str) {
        match self {
            Self::Sqlite(connection) => connection.execute(sql).await.map(drop),
            Self::Postgres(connection) => connection.execute(sql).await.map(drop),
        }
        .unwrap();
    }

    /// Takes away what forbids to delete rows.
    pub(super) async fn drop_triggers(&mut self) {
        let sql = match self {
            Self::Sqlite(_) => "DROP TRIGGER event_is_never_deleted",
            Self::Postgres(_) => "DROP TRIGGER event_is_never_changed ON event",
        };
        self.run(sql).await;
    }
}

/// The stories' SQL is SQLite's; here a row's number is its place in the order of writing.
fn for_postgres(sql: &str) -> String {
    let number = "(SELECT count(*) FROM event AS earlier WHERE earlier.ctid <= event.ctid)";
    let sql = sql.replace("rowid", number).replace("AS BLOB", "AS BYTEA");
    let mut parts = sql.split("x'");
    let mut translated = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_once('\'').unwrap();
        translated += &format!("decode('{digits}', 'hex'){rest}");
    }
    translated.replace("zeroblob(32)", "decode(repeat('00', 32), 'hex')")
}

/// A ledger, an issuer and a clock.
pub(super) struct World {
    _dir: Option<tempfile::TempDir>,
    pub(super) location: Location,
    pub(super) ca: Ca,
    pub(super) hands: Hands,
}

impl World {
    /// An empty ledger in a file.
    pub(super) fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        Self {
            _dir: Some(dir),
            ..Self::at(Location::Sqlite(path))
        }
    }

    /// An empty ledger on a server of this process alone, migrated.
    pub(super) fn postgres() -> Self {
        let world = Self::unmigrated();
        std::thread::scope(|scope| scope.spawn(|| world.block_on(world.migrate())).join()).unwrap();
        world
    }

    /// A database without anything in it.
    pub(super) fn unmigrated() -> Self {
        let cluster = Cluster::shared();
        Self::at_url(&cluster.url(&cluster.database()))
    }

    pub(super) fn at_url(url: &str) -> Self {
        Self::at(Location::parse(url, ServerFiles::default(), Path::new("/")).unwrap())
    }

    /// The URL by which another process finds it.
    pub(super) fn url(&self) -> String {
        match &self.location {
            Location::Sqlite(path) => format!("sqlite:{}", path.display()),
            Location::Postgres(servers) => servers.first_url().to_owned(),
        }
    }

    pub(super) async fn migrate(&self) -> Migrated {
        migrate(&self.location, &Logins::default(), self.hands.now())
            .await
            .unwrap()
    }

    /// The file of a SQLite ledger.
    pub(super) fn path(&self) -> &Path {
        match &self.location {
            Location::Sqlite(path) => path,
            other => panic!("{other} is no file"),
        }
    }

    /// A world around a ledger that somebody else keeps.
    pub(super) fn at(location: Location) -> Self {
        Self {
            location,
            _dir: None,
            ca: Ca::new(),
            hands: Hands::at(NOON),
        }
    }

    pub(super) async fn start(&self) -> Ledger {
        start(&self.location, &self.ca, &self.hands).await.unwrap()
    }

    /// A forged chain that begins as it should, naming `heads` and its issuer.
    pub(super) fn forge(&self, id: u8, heads: Vec<RowRef>) -> Forged<'_> {
        self.forge_as(ChainId([id; 16]), heads)
    }

    pub(super) fn forge_as(&self, id: ChainId, heads: Vec<RowRef>) -> Forged<'_> {
        let chain = Chain::new(id, self.hands.now(), self.hands.now());
        let mut forged = Forged {
            world: self,
            chain,
            rows: Vec::new(),
            open: OpenIntents::new(),
        };
        forged.row(Event::Start {
            host: "ca-0".into(),
            version: "0.1.0".into(),
            config: [5; 32],
            heads,
        });
        forged.row(Event::from(self.ca.fact()));
        forged
    }

    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        tokio::runtime::Runtime::new().unwrap().block_on(future)
    }

    pub(super) fn make(&self, ledger: &Ledger) -> Made {
        self.ca
            .make(ledger.period(self.hands.now()), self.hands.now())
    }

    pub(super) fn make_now(&self) -> Made {
        self.ca.make(self.hands.now().period(), self.hands.now())
    }

    pub(super) async fn open(&self, ledger: &Ledger) -> Recorded<Made> {
        ledger.open_made(self.make(ledger)).await.unwrap()
    }

    pub(super) async fn issue(&self, ledger: &Ledger) {
        self.open(ledger).await.issue().await.unwrap();
    }

    pub(super) async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .unwrap_or_else(|_| panic!("not within 10 s: {what}"));
    }

    pub(super) async fn recovers(&self, ledger: &Ledger) {
        self.until("the ledger accepts", || {
            ledger.accepting(self.hands.now()).is_ok()
        })
        .await;
    }

    pub(super) async fn goes_down(&self, ledger: &Ledger) {
        self.until("the ledger is down", || {
            ledger.accepting(self.hands.now()).is_err()
        })
        .await;
    }

    /// Runs SQL as some other process would.
    pub(super) async fn execute(&self, sql: &str) -> sqlx::Result<()> {
        match &self.location {
            Location::Sqlite(path) => {
                let mut connection = SqliteConnection::connect(path.to_str().unwrap()).await?;
                connection.execute(AssertSqlSafe(sql)).await?;
                connection.close().await
            }
            Location::Postgres(_) => {
                let mut connection = self.superuser().await;
                connection.execute(AssertSqlSafe(for_postgres(sql))).await?;
                connection.close().await
            }
        }
    }

    /// Runs SQL as a member of the role would, and undoes it.
    pub(super) async fn execute_as(&self, role: &str, sql: &str) -> sqlx::Result<()> {
        self.execute(&format!("BEGIN; SELECT set_config('role', current_database() || '_{role}', true); {sql}; ROLLBACK")).await
    }

    /// The same ledger for somebody who logs in as no more than a member of the role.
    pub(super) async fn as_member_of(&self, role: &str) -> Self {
        let database: String = self
            .superuser()
            .await
            .fetch_one("SELECT current_database()::text")
            .await
            .unwrap()
            .get(0);
        let login = format!("{database}_member_of_{role}");
        self.execute(&format!(
            "CREATE ROLE \"{login}\" LOGIN IN ROLE \"{database}_{role}\""
        ))
        .await
        .unwrap();
        Self::at_url(
            &self
                .url()
                .replace("postgres://postgres@", &format!("postgres://{login}@")),
        )
    }

    /// Runs SQL as a superuser does whom no constraint binds.
    pub(super) async fn execute_without_constraints(&self, statements: &[String]) {
        let free = match self.location {
            Location::Sqlite(_) => "PRAGMA ignore_check_constraints = ON",
            Location::Postgres(_) => {
                "DO $$ DECLARE name text; BEGIN FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = 'event'::regclass \
                 AND contype = 'c' LOOP EXECUTE format('ALTER TABLE event DROP CONSTRAINT %s', name); END LOOP; END $$"
            }
        };
        self.execute(&[&[free.to_owned()], statements].concat().join("; "))
            .await
            .unwrap();
    }

    /// A connection that may do everything.
    pub(super) async fn superuser(&self) -> PgConnection {
        let Location::Postgres(servers) = &self.location else {
            panic!("no server")
        };
        let options = servers
            .options()
            .unwrap()
            .remove(0)
            .options([("search_path", "ca_server")]);
        PgConnection::connect_with(&options).await.unwrap()
    }

    /// Takes the triggers away that keep rows as they are.
    pub(super) async fn drop_triggers(&self) {
        let sql = match self.location {
            Location::Sqlite(_) => {
                "DROP TRIGGER event_is_never_updated; DROP TRIGGER event_is_never_deleted"
            }
            Location::Postgres(_) => "DROP TRIGGER event_is_never_changed ON event",
        };
        self.execute(sql).await.unwrap();
    }

    /// All rows in the order of their writing.
    pub(super) async fn rows(&self) -> Vec<StoredRow> {
        let mut database = Database::reader(&self.location).await.unwrap();
        database.in_order_of_writing().await.unwrap()
    }

    pub(super) async fn kinds(&self) -> Vec<String> {
        self.rows().await.into_iter().map(|row| row.kind).collect()
    }

    pub(super) async fn kinds_of_last_chain(&self) -> Vec<String> {
        let rows = self.rows().await;
        let last = rows.last().unwrap().chain.clone();
        rows.into_iter()
            .filter(|row| row.chain == last)
            .map(|row| row.kind)
            .collect()
    }

    pub(super) async fn events(&self) -> Vec<Event> {
        self.rows()
            .await
            .iter()
            .map(|row| decode(&row.body).unwrap().1)
            .collect()
    }

    pub(super) async fn groups(&self) -> Vec<Group> {
        self.events()
            .await
            .into_iter()
            .filter_map(|event| {
                if let Event::RefusedGroup(group) = event {
                    Some(group)
                } else {
                    None
                }
            })
            .collect()
    }

    pub(super) async fn reader(&self) -> LedgerReader {
        LedgerReader::open(&self.location).await.unwrap()
    }

    pub(super) async fn export(&self, selection: &Selection, format: Format) -> String {
        let mut written = Vec::new();
        self.reader()
            .await
            .export(selection, format, &mut written, &mut |error| {
                panic!("{error}")
            })
            .await
            .unwrap();
        String::from_utf8(written).unwrap()
    }

    /// What `verify` says.
    pub(super) async fn verify(&self, options: &VerifyOptions) -> (Report, Option<Checkpoint>) {
        self.reader()
            .await
            .verify(options, &AtomicBool::new(false), |_, _| {})
            .await
            .unwrap()
    }

    /// The report of `verify`, which must have nothing to say against the ledger.
    pub(super) async fn holds(&self) -> Report {
        let (report, checkpoint) = self.verify(&VerifyOptions::default()).await;
        assert_eq!(report.broken, []);
        assert!(checkpoint.is_some());
        report
    }

    pub(super) async fn findings(&self) -> Vec<String> {
        self.findings_from(Begin::FirstRow).await
    }

    pub(super) async fn findings_from(&self, begin: Begin) -> Vec<String> {
        let (report, checkpoint) = self
            .verify(&VerifyOptions {
                begin,
                ..VerifyOptions::default()
            })
            .await;
        assert_eq!(
            checkpoint.is_some(),
            report.broken.is_empty(),
            "a checkpoint stands on rows that hold, and on no others"
        );
        report
            .broken
            .into_iter()
            .map(|broken| format!("{}: {}", broken.row, broken.what))
            .collect()
    }
}
