//! The suite on libraries that others wrote, as Debian has them: opencryptoki's software token with
//! its daemon, p11-kit's client before SoftHSM, NSS, tpm2-pkcs11 on a TPM in software. Each case is
//! a process of its own; what it needs beside is started here and ends with it. One that is not
//! installed fails. `docs/signers.md` says what each was seen to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use signers::conformance::{Subject, run};
use signers::{KeyKind, KeyUri, open_vault, pkcs11};

use crate::common::{self, inside, run_alone};

const PIN: &str = "24682468";
const SO_PIN: &str = "76543210";

/// A library, and what stands around it.
struct Library {
    test: &'static str,
    path: PathBuf,
    environment: Vec<(&'static str, String)>,
    /// Run by a shell before the test, in namespaces of their own, in which what it starts ends
    /// with the test.
    before: Option<&'static str>,
}

impl Library {
    /// Runs this test alone in a child process, on a fresh directory.
    fn run(self, directory: &Path) {
        let test = std::env::current_exe().expect("a test knows itself");
        let mut command = match self.before {
            None => Command::new(&test),
            Some(before) => {
                let mut command = Command::new("unshare");
                command.args([
                    "--mount",
                    "--ipc",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    "bash",
                    "-ec",
                ]);
                command.arg(format!("{before}\n\"$0\" \"$@\"")).arg(&test);
                command
            }
        };
        command
            .env("SIGNERS_TEST_LIBRARY", &self.path)
            .envs(self.environment);
        run_alone(&mut command, self.test, directory);
    }
}

/// Where distributions install it.
fn installed(file: &str, package: &str) -> PathBuf {
    let mut open = vec![PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.ends_with(file) {
                return path;
            }
            let near = path.components().count() <= 5;
            if near && path.is_dir() && !path.is_symlink() {
                open.push(path);
            }
        }
    }
    panic!("{file} is not installed (package {package})")
}

fn library() -> PathBuf {
    std::env::var_os("SIGNERS_TEST_LIBRARY")
        .map(PathBuf::from)
        .expect("set by the parent")
}

/// A server that is killed when it is dropped.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, package: &str, socket: &Path) -> Self {
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let server = Self(
            started.unwrap_or_else(|error| panic!("{command:?}: {error} (package {package})")),
        );
        let end = Instant::now() + Duration::from_secs(60);
        while !socket.exists() {
            assert!(Instant::now() < end, "{command:?} does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

fn write_pin(directory: &Path) {
    common::write_pin(directory, &format!("{PIN}\n"));
}

/// Makes keys of these kinds in the token, and has the suite judge them.
fn conforms(
    name: &str,
    directory: &Path,
    token: &str,
    kinds: &[KeyKind],
    unsupported: &[KeyKind],
    tells_local: bool,
) {
    let key = |kind: &KeyKind| {
        let text = format!(
            "pkcs11:token={token};object=key-{kind}?module-path={}&pin-source=user.pin",
            library().display()
        );
        let uri = KeyUri::parse(&text, directory).unwrap();
        let facts = open_vault(&uri)
            .unwrap()
            .generate(&uri, *kind)
            .unwrap_or_else(|error| panic!("{name}: {kind}: {error}"));
        println!("{name}: {kind}: {facts:?}");
        assert!(
            facts.sensitive && facts.never_extractable && facts.local == tells_local,
            "{name}: {facts:?}"
        );
        (*kind, uri)
    };
    let keys = kinds.iter().map(key).collect();
    let module = pkcs11::inspect_module(&library()).unwrap();
    println!(
        "{name}: {} {} by {}",
        module.description, module.version, module.manufacturer
    );
    run(&Subject {
        name,
        keys,
        unsupported: unsupported.to_vec(),
        scratch: directory.to_owned(),
        faults: None,
    })
    .unwrap();
}

/// Its daemon wants root, and directories that the whole machine shares: it gets its own, in
/// namespaces that end with it.
#[test]
fn opencryptoki_conforms() {
    if let Some(directory) = inside() {
        write_pin(&directory);
        let kinds = [KeyKind::Rsa2048, KeyKind::Rsa3072];
        return conforms(
            "opencryptoki",
            &directory,
            "ca",
            &kinds,
            &[KeyKind::P256, KeyKind::P384],
            true,
        );
    }
    let path = installed("libopencryptoki.so.0", "opencryptoki");
    let directory = tempfile::tempdir().unwrap();
    let before = r"
        mount -t tmpfs none /dev/shm
        mount -t tmpfs none /run
        mkdir -p /run/lock/opencryptoki
        mount -t tmpfs none /var/lib/opencryptoki
        for directory in /var/lib/opencryptoki /run/lock/opencryptoki; do
            mkdir -p $directory/swtok/TOK_OBJ
            chgrp -R pkcs11 $directory
            chmod -R 770 $directory
        done
        printf 'version opencryptoki-3.1\nslot 3\n{\nstdll = libpkcs11_sw.so\n}\n' >/run/opencryptoki.conf
        mount --bind /run/opencryptoki.conf /etc/opencryptoki/opencryptoki.conf
        pkcsslotd -f >/dev/null 2>&1 &
        until [ -e /run/pkcsslotd.socket ]; do sleep 0.05; done
        {
            echo ca | pkcsconf -c 3 -I -S 87654321
            pkcsconf -c 3 -P -S 87654321 -n 76543210
            pkcsconf -c 3 -u -S 76543210 -n 12345678
            pkcsconf -c 3 -p -U 12345678 -n 24682468
        } >&2";
    let test = "modules::opencryptoki_conforms";
    Library {
        test,
        path,
        environment: Vec::new(),
        before: Some(before),
    }
    .run(directory.path());
}

#[test]
fn p11_kits_client_conforms() {
    if let Some(directory) = inside() {
        write_pin(&directory);
        return conforms(
            "p11-kit",
            &directory,
            "ca",
            &[KeyKind::P256, KeyKind::P384, KeyKind::Rsa2048],
            &[],
            true,
        );
    }
    let path = installed("pkcs11/p11-kit-client.so", "p11-kit-modules");
    let softhsm = pkcs11::find_softhsm().expect("SoftHSM 2 is not installed (package libsofthsm2)");
    let directory = tempfile::tempdir().unwrap();
    let (tokens, config, socket) = (
        directory.path().join("tokens"),
        directory.path().join("softhsm2.conf"),
        directory.path().join("p11-kit"),
    );
    fs::create_dir(&tokens).unwrap();
    fs::write(
        &config,
        format!(
            "directories.tokendir = {}\nobjectstore.backend = file\n",
            tokens.display()
        ),
    )
    .unwrap();
    let made = Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--label",
            "ca",
            "--so-pin",
            SO_PIN,
            "--pin",
            PIN,
        ])
        .env("SOFTHSM2_CONF", &config)
        .output()
        .expect("softhsm2-util is not installed (package softhsm2)");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let mut serve = Command::new("p11-kit");
    serve
        .args(["server", "-f", "-n"])
        .arg(&socket)
        .arg("--provider")
        .arg(softhsm)
        .arg("pkcs11:token=ca")
        .env("SOFTHSM2_CONF", &config);
    let _server = Server::start(&mut serve, "p11-kit", &socket);
    let environment = vec![(
        "P11_KIT_SERVER_ADDRESS",
        format!("unix:path={}", socket.display()),
    )];
    Library {
        test: "modules::p11_kits_client_conforms",
        path,
        environment,
        before: None,
    }
    .run(directory.path());
}

/// NSS wants this in C_Initialize, as `pReserved`.
fn nss_init_string(directory: &Path) -> String {
    format!(
        "configDir='sql:{}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=",
        directory.display()
    )
}

/// The library, and a database of NSS with a PIN.
fn nss() -> (PathBuf, tempfile::TempDir) {
    let path = installed("libsoftokn3.so", "libnss3");
    let directory = tempfile::tempdir().unwrap();
    write_pin(directory.path());
    let made = Command::new("certutil")
        .args(["-N", "-d"])
        .arg(format!("sql:{}", directory.path().display()))
        .arg("-f")
        .arg(directory.path().join("user.pin"))
        .output()
        .expect("certutil is not installed (package libnss3-tools)");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    (path, directory)
}

const NSS_KEYS: [KeyKind; 3] = [KeyKind::P256, KeyKind::P384, KeyKind::Rsa2048];

#[test]
fn nss_conforms() {
    if let Some(directory) = inside() {
        pkcs11::set_init_string(&library(), &nss_init_string(&directory));
        return conforms(
            "NSS",
            &directory,
            "NSS%20Certificate%20DB",
            &NSS_KEYS,
            &[],
            false,
        );
    }
    let (path, directory) = nss();
    Library {
        test: "modules::nss_conforms",
        path,
        environment: Vec::new(),
        before: None,
    }
    .run(directory.path());
}

/// p11-kit's proxy reads `pReserved` for NSS from its own configuration, for root from the system's
/// alone.
#[test]
fn nss_through_p11_kit_conforms() {
    if let Some(directory) = inside() {
        return conforms(
            "NSS through p11-kit",
            &directory,
            "NSS%20Certificate%20DB",
            &NSS_KEYS,
            &[],
            false,
        );
    }
    let (nss, directory) = nss();
    let path = installed("p11-kit-proxy.so", "p11-kit-modules");
    let module = directory.path().join("nss.module");
    fs::write(
        &module,
        format!(
            "module: {}\nx-init-reserved: {}\n",
            nss.display(),
            nss_init_string(directory.path())
        ),
    )
    .unwrap();
    let environment = vec![("NSS_MODULE", module.display().to_string())];
    let before = "mount -t tmpfs none /usr/share/p11-kit/modules\ncp \"$NSS_MODULE\" /usr/share/p11-kit/modules";
    let test = "modules::nss_through_p11_kit_conforms";
    Library {
        test,
        path,
        environment,
        before: Some(before),
    }
    .run(directory.path());
}

/// Debian has no package of it. `docs/signers.md` says how it is built.
#[test]
#[ignore = "asks for a library that is built by hand: KRYOPTIC=/path/to/libkryoptic_pkcs11.so"]
fn kryoptic_conforms() {
    if let Some(directory) = inside() {
        write_pin(&directory);
        pkcs11::init_token(
            &library(),
            "ca",
            &SecretString::from(SO_PIN),
            &SecretString::from(PIN),
        )
        .unwrap();
        return conforms(
            "kryoptic",
            &directory,
            "ca",
            &[KeyKind::P256, KeyKind::P384, KeyKind::Rsa2048],
            &[],
            true,
        );
    }
    let path = std::env::var_os("KRYOPTIC")
        .map(PathBuf::from)
        .expect("KRYOPTIC names the library");
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("kryoptic.conf");
    let database = directory.path().join("token.sql");
    fs::write(
        &config,
        format!(
            "[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n",
            database.display()
        ),
    )
    .unwrap();
    let environment = vec![("KRYOPTIC_CONF", config.display().to_string())];
    Library {
        test: "modules::kryoptic_conforms",
        path,
        environment,
        before: None,
    }
    .run(directory.path());
}

#[test]
fn tpm2_pkcs11_conforms() {
    if let Some(directory) = inside() {
        write_pin(&directory);
        let end = Instant::now() + Duration::from_secs(60);
        while let Err(error) = pkcs11::inspect_module(&library()) {
            assert!(
                Instant::now() < end,
                "the resource manager does not come up: {error}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        pkcs11::init_token(
            &library(),
            "ca",
            &SecretString::from(SO_PIN),
            &SecretString::from(PIN),
        )
        .unwrap();
        return conforms(
            "tpm2-pkcs11",
            &directory,
            "ca",
            &[KeyKind::P256, KeyKind::P384, KeyKind::Rsa2048],
            &[],
            true,
        );
    }
    let path = installed("libtpm2_pkcs11.so.1", "libtpm2-pkcs11-1");
    let directory = tempfile::tempdir().unwrap();
    let in_it = |name: &str| directory.path().join(name);
    fs::create_dir(in_it("tpm")).unwrap();
    fs::create_dir(in_it("store")).unwrap();
    let socket = in_it("swtpm");
    let mut serve = Command::new("swtpm");
    serve.args([
        "socket",
        "--tpm2",
        "--flags",
        "not-need-init,startup-clear",
        "--tpmstate",
    ]);
    serve
        .arg(format!("dir={}", in_it("tpm").display()))
        .arg("--server")
        .arg(format!("type=unixio,path={}", socket.display()));
    serve
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}.ctrl", socket.display()));
    let _tpm = Server::start(&mut serve, "swtpm", &socket);
    // A TPM holds three objects at a time: a resource manager swaps them, as /dev/tpmrm0 does. It
    // is found over a message bus.
    let (bus, address) = (
        in_it("bus"),
        format!("unix:path={}", in_it("bus").display()),
    );
    let mut serve = Command::new("dbus-daemon");
    serve
        .args(["--session", "--nofork", "--nopidfile"])
        .arg(format!("--address={address}"));
    let _bus = Server::start(&mut serve, "dbus", &bus);
    let mut serve = Command::new("tpm2-abrmd");
    serve
        .args([
            "--session",
            "--allow-root",
            &format!("--tcti=swtpm:path={}", socket.display()),
        ])
        .env("DBUS_SESSION_BUS_ADDRESS", &address);
    // It makes no file to be waited for: the library is asked until it answers.
    let _manager = Server::start(&mut serve, "tpm2-abrmd", &bus);
    let environment = vec![
        ("DBUS_SESSION_BUS_ADDRESS", address),
        ("TPM2_PKCS11_TCTI", "tabrmd:bus_type=session".to_owned()),
        ("TPM2_PKCS11_STORE", in_it("store").display().to_string()),
        ("TSS2_LOG", "all+none".to_owned()),
    ];
    Library {
        test: "modules::tpm2_pkcs11_conforms",
        path,
        environment,
        before: None,
    }
    .run(directory.path());
}
