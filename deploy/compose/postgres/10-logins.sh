#!/usr/bin/env bash
# Makes the three logins, once, when the database is initialised. What they may do comes with the roles of `ca-server migrate`.
set -euo pipefail
psql --set ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set migrator `cat /run/secrets/migrator-password`
\set daemon `cat /run/secrets/daemon-password`
\set auditor `cat /run/secrets/auditor-password`
CREATE ROLE ca_migrator LOGIN CREATEROLE PASSWORD :'migrator';
CREATE ROLE ca_server LOGIN PASSWORD :'daemon';
CREATE ROLE ca_auditor LOGIN PASSWORD :'auditor';
REVOKE CONNECT ON DATABASE ledger FROM PUBLIC;
GRANT CONNECT, CREATE ON DATABASE ledger TO ca_migrator;
GRANT CONNECT ON DATABASE ledger TO ca_server, ca_auditor;
SQL
