# shellcheck shell=bash
# Sourced by ./quickstart and ./run-tests: finds out what is missing, names it, and installs it on Debian and Ubuntu.
# Each need is probed for what it gives, so that other systems pass as soon as they have it. Exit status 3: something is missing.

MINIMUM_RUST_MINOR=94

say() {
    printf '%s\n' "$*" >&2
}

# Whether the thing that a Debian package gives is there.
have() {
    case $1 in
        gcc) command -v cc >/dev/null ;;
        libc6-dev) printf '#include <stdio.h>\nint main(void) { return 0; }\n' | cc -x c -o /dev/null - 2>/dev/null ;;
        softhsm2)
            command -v softhsm2-util >/dev/null && [ -n "$(find /usr/lib /usr/lib64 /usr/local/lib -name libsofthsm2.so -print -quit 2>/dev/null)" ]
            ;;
        ca-certificates)
            [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || [ -e /etc/ssl/cert.pem ] || [ -e /etc/ssl/ca-bundle.pem ]
            ;;
        openssl) command -v openssl >/dev/null ;;
        opensc) command -v pkcs11-tool >/dev/null ;;
        faketime) command -v faketime >/dev/null ;;
        postgresql) have_postgresql ;;
        pgbouncer) command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] ;;
        strace) command -v strace >/dev/null ;;
        opencryptoki) command -v pkcsslotd >/dev/null || [ -x /usr/sbin/pkcsslotd ] ;;
        p11-kit) command -v p11-kit >/dev/null ;;
        p11-kit-modules) have_library p11-kit-client.so ;;
        libnss3) have_library libsoftokn3.so ;;
        libnss3-tools) command -v certutil >/dev/null ;;
        libtpm2-pkcs11-1) have_library libtpm2_pkcs11.so.1 ;;
        libtss2-tcti-swtpm0) have_library libtss2-tcti-swtpm.so.0 ;;
        libtss2-tcti-tabrmd0) have_library libtss2-tcti-tabrmd.so.0 ;;
        tpm2-abrmd) command -v tpm2-abrmd >/dev/null || [ -x /usr/sbin/tpm2-abrmd ] ;;
        dbus) command -v dbus-daemon >/dev/null ;;
        swtpm) command -v swtpm >/dev/null ;;
        rustup) command -v rustup >/dev/null ;;
        *) return 1 ;;
    esac
}

have_library() {
    [ -n "$(find /usr/lib /usr/lib64 /usr/local/lib -name "$1" -print -quit 2>/dev/null)" ]
}

# The programs are enough: the tests run servers of their own, and leave alone what runs or is configured.
have_postgresql() {
    local initdb directories
    directories=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null)
    initdb=$(command -v initdb) && directories="$(dirname -- "$(readlink -f -- "$initdb")") $directories"
    for initdb in $directories; do
        [ -x "$initdb/initdb" ] && [ -x "$initdb/postgres" ] && [ -x "$initdb/psql" ] && [ -x "$initdb/pg_basebackup" ] && return 0
    done
    return 1
}

is_debian() {
    command -v apt-get >/dev/null && [ -r /etc/os-release ] && grep -Eqi '^(ID|ID_LIKE)=.*(debian|ubuntu)' /etc/os-release
}

# Runs a command as root, saying so.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        say "running: $*"
        "$@"
    elif command -v sudo >/dev/null; then
        say "running: sudo $*"
        sudo "$@"
    else
        say "Neither root nor sudo; as root run: $*"
        exit 3
    fi
}

apt_install() {
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends "$@"
}

# Installs those of the named packages whose thing is missing.
need_packages() {
    local package missing=()
    for package in "$@"; do
        have "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    say "Missing system packages: ${missing[*]}"
    if ! is_debian; then
        say "This is neither Debian nor Ubuntu. Install what these packages give there (${missing[*]}), then run this again."
        exit 3
    fi
    apt_install "${missing[@]}"
    for package in "${missing[@]}"; do
        have "$package" || { say "Installed $package, but what it gives is still missing."; exit 3; }
    done
}

# Puts a cargo that is new enough on the path.
need_cargo() {
    local minor
    command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
    if ! cargo --version >/dev/null 2>&1; then
        install_rustup
    fi
    minor=$(cargo --version | sed -E 's/^cargo 1\.([0-9]+).*/\1/')
    if [ "${minor:-0}" -lt "$MINIMUM_RUST_MINOR" ]; then
        say "$(cargo --version) is too old: Rust 1.$MINIMUM_RUST_MINOR or newer is needed. Run: rustup update stable"
        exit 3
    fi
}

install_rustup() {
    if ! have rustup; then
        if is_debian; then
            as_root apt-get update -qq
        fi
        if ! is_debian || ! apt-cache show rustup >/dev/null 2>&1; then
            say "cargo is missing. Install Rust, then run this again:"
            say "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
            exit 3
        fi
        say "Missing system packages: rustup"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends rustup
    fi
    say "running: rustup default stable"
    rustup default stable
}
