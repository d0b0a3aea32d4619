# Folded stacks in, the share of each group out. The first pattern that a stack matches takes it.
BEGIN {
    groups = 0
    group("sign in the token", "pkcs11::|libsofthsm2|C_Sign|SoftHSM")
    group("verify tokens (RS256)", "authn::jwt|jsonwebtoken")
    group("CSR: parse and proof of possession", "x509::csr|Csr::")
    group("own signature and certificate checked", "x509::lint|verify_signature|PublicKey::verify|signers::algorithm")
    group("templates, policy, serial", "x509::|policy::")
    group("ledger: SQLite itself", "sqlite3|Sqlite|libsqlite|walWrite|pager")
    group("ledger: Postgres client", "sqlx_postgres|Postgres")
    group("ledger: rows, hashes, writer", "store::ledger|sqlx|minicbor")
    group("TLS handshakes", "rustls::.*(hs::|handshake|key_schedule|server::tls1)")
    group("TLS records", "rustls|tokio_rustls")
    group("HTTP/2 and gRPC", "h2::|hyper|tonic|tower|prost|axum")
    group("tracing and log", "tracing|telemetry")
    group("metrics", "prometheus|metrics::")
    group("pool of signers", "signers::pool|signers::")
    group("issuing path, rest", "ca_server::")
    group("runtime: scheduling, timers, polling", "tokio|mio|parking_lot|futex|epoll|std::sync|schedule")
    group("allocation", "malloc|free|realloc|calloc|_int_|alloc::")
}
function group(name, pattern) { groups++; names[groups] = name; patterns[groups] = pattern }
{
    count = $NF
    all += count
    taken = 0
    for (n = 1; n <= groups; n++)
        if ($0 ~ patterns[n]) { sums[n] += count; taken = 1; break }
    if (!taken) rest += count
    # Crosswise, whatever the group: by the innermost function.
    leaf = $0
    sub(/ [0-9]+$/, "", leaf)
    sub(/.*;/, "", leaf)
    if ($0 ~ /_\[k\]/) kernel += count
    if (leaf ~ /malloc|free|realloc|calloc|_int_/) allocation += count
    if (leaf ~ /aws_lc|p256|ecp_nistz|sha256|sha512|bn_mul|bn_sqr|rsaz|aes|gcm|gf|ecdsa|EC_|BN_|bignum|nistz|OPENSSL|Botan/) crypto += count
}
END {
    for (n = 1; n <= groups; n++) printf "  %5.1f %%  %s\n", 100 * sums[n] / all, names[n]
    printf "  %5.1f %%  %s\n\n", 100 * rest / all, "the rest"
    printf "  across the groups: %.1f %% in the kernel, %.1f %% innermost in arithmetic of cryptography, %.1f %% innermost in malloc and free\n", 100 * kernel / all, 100 * crypto / all, 100 * allocation / all
}
