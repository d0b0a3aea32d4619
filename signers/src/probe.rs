//! What a signer signs to see whether a token is back: a text that nothing takes for a certificate, a revocation list or a token, and sixteen
//! random octets. The signature is verified and thrown away.

/// DER's SEQUENCE begins with 0x30, JSON with a brace and a JWS's header with `ey`; this begins with a letter `c`.
const TEXT: &[u8] = b"ca-server probe; whoever finds a signature of this has found nothing. ";

const RANDOM: usize = 16;

/// One probe's message.
#[derive(Clone, Debug)]
pub struct Probe(Vec<u8>);

impl Probe {
    /// A new one.
    pub(crate) fn fresh() -> Self {
        let mut random = [0; RANDOM];
        // A repeated message would still show whether the token signs.
        let _ = getrandom::fill(&mut random);
        Self([TEXT, &random].concat())
    }

    /// What is signed.
    pub fn message(&self) -> &[u8] {
        &self.0
    }

    /// Whether these bytes are a probe's, so that a guard may let them pass.
    pub fn is(message: &[u8]) -> bool {
        message.len() == TEXT.len() + RANDOM && message.starts_with(TEXT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_nothing_else() {
        let probe = Probe::fresh();
        assert!(Probe::is(probe.message()));
        assert_ne!(probe.message(), Probe::fresh().message());
        assert!(!Probe::is(&probe.message()[1..]) && !Probe::is(&[probe.message(), b"x"].concat()));
    }
}
