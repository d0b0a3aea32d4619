//! PEM text (RFC 7468) as the mesh wants it: one certificate a block, each ending in a newline.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// One certificate as a PEM block.
pub fn certificate(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 60);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for at in (0..text.len()).step_by(64) {
        pem.push_str(&text[at..text.len().min(at + 64)]);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
