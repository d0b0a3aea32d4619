//! Hostile CSRs and tokens, generated: the same seed gives the same cases, byte for byte, so that a
//! failure is named by its number.
//!
//! Hostile means that no certificate may follow, and each case is so by construction, never by
//! chance. A hostile CSR is not one DER PKCS#10 request within the limits, or its key is of no
//! accepted kind and size, or its own key did not sign exactly its content. A hostile token is not
//! the exact text of a token that a configured issuer's key signed, or what that key did sign is
//! expired, not yet valid, for somebody else, or malformed in a claim that counts. What is only odd
//! (an attribute nobody knows, a claim nobody reads, white space in PEM) and honestly signed is not
//! hostile and is not made here: nothing of it reaches a certificate.
//!
//! `protocol` and `to_be_signed` are what a signer process meets, written out one by one.

pub mod csr;
pub mod der;
pub mod protocol;
pub mod to_be_signed;
pub mod token;

/// The seed of `./run-tests`.
pub const SEED: u64 = 20_261_122;

/// One thing that must be refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its number under its seed.
    pub number: usize,
    /// Which kind of hostility it is.
    pub family: &'static str,
    /// What is sent.
    pub text: String,
}

/// One of them.
fn pick<T: Clone>(random: &mut fastrand::Rng, from: &[T]) -> T {
    from[random.usize(..from.len())].clone()
}

/// So many random bytes.
fn bytes(random: &mut fastrand::Rng, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    random.fill(&mut bytes);
    bytes
}

/// Small as a rule and large now and then: a power of two below `1 << most`, and something on top.
fn size(random: &mut fastrand::Rng, most: u32) -> usize {
    let floor = 1_usize << random.u32(..most);
    floor + random.usize(..floor)
}

/// Edits bytes at one to four places until they are not what they were: replace, insert, remove,
/// cut, repeat a stretch.
fn edited(
    random: &mut fastrand::Rng,
    original: &[u8],
    byte: impl Fn(&mut fastrand::Rng) -> u8,
) -> Vec<u8> {
    loop {
        let mut bytes = original.to_vec();
        for _ in 0..random.usize(1..=4) {
            let at = random.usize(..bytes.len().max(1));
            match random.u8(..6) {
                _ if bytes.is_empty() => bytes.push(byte(random)),
                0 | 1 => bytes[at] = byte(random),
                2 => bytes.insert(at, byte(random)),
                3 => drop(bytes.remove(at)),
                4 => drop(bytes.drain(at..(at + random.usize(1..=16)).min(bytes.len()))),
                _ => {
                    let stretch = bytes[at..(at + random.usize(1..=64)).min(bytes.len())].to_vec();
                    let to = random.usize(..=bytes.len());
                    bytes.splice(to..to, stretch);
                }
            }
        }
        if bytes != original {
            return bytes;
        }
    }
}
