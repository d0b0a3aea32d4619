# shellcheck shell=bash
# Sourced by loadgen/report, loadgen/flamegraph and loadgen/large-ledger: demonstration CAs, private PostgreSQL servers and daemons in a
# temporary directory, which end with the script. Reads `bin`, where the built programs are, and `ledger`, sqlite or postgres.

work=$(mktemp -d "${TMPDIR:-/tmp}/ca-server-measured.XXXXXX")
# PostgreSQL's unprivileged user passes through it.
chmod 755 "$work"
daemon="" postmaster="" postgres_user=()
# Where the private PostgreSQL server has its files; a script that keeps them names another directory first.
cluster=${cluster:-$work/postgres}
cleanup() {
    stop_daemon
    stop_postgres
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# --- The CAs -----------------------------------------------------------------------------------------------------------------

# make_ca DIRECTORY: what quickstart makes, with free ports, a log for machines, and no limits: all load is one address's.
make_ca() {
    "$bin/ca-server" quickstart --once --csr-port 0 --monitoring-port 0 --dir "$1" >"$work/quickstart.log" 2>&1 ||
        { cat "$work/quickstart.log" >&2; exit 3; }
    sed -i -e 's/^listen = .*/listen = "127.0.0.1:0"/' -e 's/^format = "text"/format = "json"/' \
        -e 's/^\([a-z_]*_a\(_minute\|n_hour\)\) = .*/\1 = 0/' -e 's/^\(peer_open_[a-z]*\) = .*/\1 = 0/' "$1/ca.toml"
}

# make_software_ca DIRECTORY: the same with an issuing key in a file.
make_software_ca() {
    make_ca "$1"
    mkdir "$1/software"
    cat >"$1/software/ceremony.toml" <<END
output = "."
[root]
subject = "CN=Software Root CA,O=ca-server"
key = "file:root.key"
algorithm = "p256"
lifetime = "3650d"
path_length = 1
[issuing]
subject = "CN=Software Issuing CA,O=ca-server"
key = "file:issuing.key"
algorithm = "p256"
lifetime = "730d"
path_length = 0
END
    "$bin/ca-server" ceremony --spec "$1/software/ceremony.toml" >"$work/ceremony.log" 2>&1 || { cat "$work/ceremony.log" >&2; exit 3; }
    cp "$1/software/root-cert.pem" "$1/root-cert.pem"
    sed -i -e 's|^key = "pkcs11:.*|key = "file:software/issuing.key"|' -e 's|^chain = .*|chain = "software/issuing-chain.pem"|' \
        -e 's|^roots = .*|roots = "software/root-cert.pem"|' -e '/^transcript = /d' -e '/^device = /d' "$1/ca.toml"
}

# --- Ledgers -----------------------------------------------------------------------------------------------------------------

unprivileged() {
    (cd / && exec "${postgres_user[@]}" env -u PGHOST -u PGPORT -u PGUSER -u PGDATABASE -u PGDATA "$@")
}

start_postgres() {
    [ -z "$postmaster" ] || return 0
    local initdb user
    initdb=$(command -v initdb || find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
    postgres=$(dirname -- "$(readlink -f -- "$initdb")")
    mkdir -p "$cluster"
    if [ "$(id -u)" -eq 0 ]; then
        user=nobody
        id postgres >/dev/null 2>&1 && user=postgres
        chown "$user" "$cluster"
        postgres_user=(setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups)
    fi
    [ -e "$cluster/data/PG_VERSION" ] ||
        unprivileged "$postgres/initdb" -D "$cluster/data" -U postgres -A trust -E UTF8 --locale C >"$work/initdb.log" 2>&1 ||
        { cat "$work/initdb.log" >&2; exit 3; }
    # As initdb leaves it: fsync and synchronous_commit are on. Only the socket, and a log of our own.
    unprivileged sh -c 'exec "$0" -D "$1/data" -k "$1" -c listen_addresses= -c port=5432 >"$1/log" 2>&1' \
        "$postgres/postgres" "$cluster" &
    postmaster=$!
    until_holds "PostgreSQL is ready" psql_says postgres "SELECT 1"
    # setpriv and the shell have become the postmaster itself; the pid file says the same.
    postmaster=$(head -n 1 "$cluster/data/postmaster.pid")
}

psql_says() {
    env -u PGSERVICE "$postgres/psql" -X -A -t -q -v ON_ERROR_STOP=1 -h "$cluster" -p 5432 -U postgres -d "$1" -c "$2" 2>"$work/psql.log"
}

stop_postgres() {
    [ -n "$postmaster" ] || return 0
    kill -INT "$postmaster" 2>/dev/null || true
    wait "$postmaster" 2>/dev/null || true
    while kill -0 "$postmaster" 2>/dev/null; do sleep 0.1; done
    postmaster=""
}

# until_holds WHAT COMMAND...: at most a minute.
until_holds() {
    local what=$1 tries
    shift
    for tries in $(seq 600); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    say "never: $what ($tries tries)"
    tail -n 20 "$work"/*.log >&2
    exit 3
}

# make_database DATABASE LOGIN: a new one with an empty ledger, and the login of its daemons.
make_database() {
    psql_says postgres "CREATE DATABASE $1"
    psql_says postgres "CREATE ROLE $2 LOGIN"
    "$bin/ca-server" migrate --ledger "postgres://postgres@/$1?host=$cluster&port=5432" --application "$2" >"$work/migrate.log" 2>&1 ||
        { cat "$work/migrate.log" >&2; exit 3; }
}

# use_ledger URL CA: writes it into the config.
use_ledger() {
    # In sed's replacement an ampersand is the whole match.
    sed -i "s|^url = .*|url = \"${1//&/\\&}\"|" "$2/ca.toml"
}

ledgers_made=0
# fresh_ledger sqlite|postgres CA: an empty one in the config; `ledger_url`, and `database` on Postgres.
fresh_ledger() {
    ledgers_made=$((ledgers_made + 1))
    rm -f "$2"/ledger*.db*
    if [ "$1" = sqlite ]; then
        ledger_url="sqlite:ledger$ledgers_made.db"
        ledger_file="$2/ledger$ledgers_made.db"
    else
        start_postgres
        [ -z "${database:-}" ] || psql_says postgres "DROP DATABASE IF EXISTS $database"
        database=measured$ledgers_made
        make_database "$database" "daemon$ledgers_made"
        ledger_url="postgres://daemon$ledgers_made@/$database?host=$cluster&port=5432"
    fi
    use_ledger "$ledger_url" "$2"
}

# ledger_bytes sqlite|postgres: heap and indexes; the daemon has stopped.
ledger_bytes() {
    if [ "$1" = sqlite ]; then
        stat -c %s "$ledger_file"
    else
        psql_says "$database" "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'ca_server.event'::regclass"
    fi
}

# --- The daemon --------------------------------------------------------------------------------------------------------------

start_daemon() {
    ca=$1
    "$bin/ca-server" serve --config "$ca/ca.toml" >/dev/null 2>"$work/daemon.log" &
    daemon=$!
    until_holds "the daemon serves" grep -q '"message":"serving"' "$work/daemon.log"
    csr=$(sed -n 's/.*"message":"serving".*"csr":"[^"]*:\([0-9]*\)".*/\1/p' "$work/daemon.log" | head -n 1)
    monitoring=$(sed -n 's/.*"message":"serving".*"monitoring":"[^"]*:\([0-9]*\)".*/\1/p' "$work/daemon.log" | head -n 1)
    [ -n "$csr" ] && [ -n "$monitoring" ] || { say "the daemon's log names no ports"; cat "$work/daemon.log" >&2; exit 3; }
    until_holds "the daemon is ready" is_ready
}

is_ready() {
    exec 9<>"/dev/tcp/127.0.0.1/$monitoring" || return 1
    printf 'GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&9
    local line
    read -r line <&9
    exec 9>&-
    [[ $line == *" 200 "* ]]
}

stop_daemon() {
    [ -n "$daemon" ] || return 0
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon=""
}

# load ARGUMENTS...: loadgen against the daemon; CPU of the daemon, and of the database where `ledger` is one.
load() {
    local pids=daemon=$daemon
    [ -z "$postmaster" ] || [ "$ledger" != postgres ] || pids=$pids,database=$postmaster
    load_at "$csr" --pid "$pids" "$@"
}

# load_at PORT ARGUMENTS...: loadgen against the daemon there, with tokens of its CA's issuer.
load_at() {
    local port=$1
    shift
    # A key id may begin with a dash.
    "$bin/loadgen" --address "localhost:$port" --roots "$ca/root-cert.pem" --token-issuer-key "$ca/jwt-issuer.key" \
        --token-issuer https://demo-issuer.ca-server.invalid "--token-key-id=$(key_id)" "$@"
}

# The key id of the CA's token issuer.
key_id() {
    sed -n 's/.*"kid": *"\([^"]*\)".*/\1/p' "$ca/jwks.json" | head -n 1
}
