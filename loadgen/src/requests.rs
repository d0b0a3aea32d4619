//! Everything that a call sends, made before the clock starts: gRPC messages with their prefix, and
//! headers.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT,
};
use http::{Method, Request, Uri, Version};
use istio_api::IstioCertificateRequest;
use prost::Message;

use crate::arguments::Callers;
use crate::exit::Exit;
use crate::{csrs, tokens};

/// The call (Istio's service definition).
const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// A gRPC message follows one byte (not compressed) and its length in four.
pub const PREFIX: usize = 5;
/// Seconds that calls ask for: a day, and less by up to as many, so that a CSR that is used again
/// is another call to a CA that answers the same call with the same certificate. A prime, so that
/// CSRs and lifetimes meet again as late as can be.
const DAY: i64 = 86_400;
const LIFETIMES: u64 = 43_201;
/// Octets of each such lifetime, which stands last in its message (varint, seven bits an octet).
const LIFETIME_OCTETS: usize = 3;

/// What calls send. Call `n` takes the `n`th CSR, token and lifetime, in turn; CSR and token are
/// the same identity's.
#[derive(Debug)]
pub struct Requests {
    csrs: Vec<String>,
    messages: Vec<Bytes>,
    authorizations: Vec<HeaderValue>,
    identities: Vec<Option<String>>,
    uri: Uri,
    headers: HeaderMap,
}

impl Requests {
    /// Makes them; `now` in seconds since 1970.
    pub fn make(
        callers: &Callers,
        authority: &str,
        now: i64,
        made: &(dyn Fn() + Sync),
    ) -> Result<Self, Exit> {
        let tokens::Tokens { tokens, identities } = tokens::ready(callers, now, made)?;
        // The same identity at the same place of both lists, also when one is through and begins
        // again.
        let count = callers.csrs.max(1).next_multiple_of(identities.len());
        let csrs = csrs::make(callers.key, count, &identities, made)?;
        let messages = csrs.iter().map(|csr| message(csr)).collect();
        let authorizations = tokens
            .iter()
            .map(|token| authorization(token))
            .collect::<Result<_, _>>()?;
        let uri = format!("https://{authority}{PATH}")
            .parse()
            .map_err(|error| Exit::usage(format!("--address {authority}: {error}")))?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("loadgen/", env!("CARGO_PKG_VERSION"))),
        );
        let cluster = callers
            .cluster_id
            .parse()
            .map_err(|_| Exit::usage("--cluster-id holds control characters"))?;
        headers.insert(HeaderName::from_static("clusterid"), cluster);
        Ok(Self {
            csrs,
            messages,
            authorizations,
            identities,
            uri,
            headers,
        })
    }

    /// Head and message of call `n`.
    pub fn get(&self, n: u64) -> (Request<()>, Bytes) {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        let mut headers = self.headers.clone();
        headers.insert(AUTHORIZATION, at(&self.authorizations, n).clone());
        *request.headers_mut() = headers;
        (request, asking_for(lifetime(n), at(&self.messages, n)))
    }

    /// The CSR of call `n`, PEM.
    pub fn csr(&self, n: u64) -> &str {
        let csr: &String = at(&self.csrs, n);
        csr
    }

    /// Whom the certificate of call `n` must be for, where the token tells.
    pub fn identity(&self, n: u64) -> Option<&str> {
        at(&self.identities, n).as_deref()
    }

    /// How many distinct CSRs, tokens and identities there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        (
            self.csrs.len(),
            self.authorizations.len(),
            self.identities.len(),
        )
    }
}

fn at<T>(all: &[T], n: u64) -> &T {
    &all[(n % all.len() as u64) as usize]
}

fn lifetime(n: u64) -> i64 {
    DAY - (n % LIFETIMES) as i64
}

/// The message with another lifetime in the place of the one it was made with.
fn asking_for(lifetime: i64, message: &Bytes) -> Bytes {
    let mut message = BytesMut::from(&message[..]);
    let begin = message.len() - LIFETIME_OCTETS;
    for (at, octet) in message[begin..].iter_mut().enumerate() {
        let more = if at + 1 < LIFETIME_OCTETS { 0x80 } else { 0 };
        *octet = (lifetime >> (7 * at)) as u8 & 0x7f | more;
    }
    message.freeze()
}

fn message(csr: &str) -> Bytes {
    let request = IstioCertificateRequest {
        csr: csr.to_owned(),
        validity_duration: DAY,
        metadata: None,
    };
    let length = request.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).expect("a CSR is far below 4 GiB"));
    framed.put_slice(&request.encode_to_vec());
    framed.freeze()
}

fn authorization(token: &str) -> Result<HeaderValue, Exit> {
    let mut value = HeaderValue::from_maybe_shared(Bytes::from(format!("Bearer {token}")))
        .map_err(|_| Exit::usage("a token holds control characters"))?;
    // Never indexed: distinct tokens would only push each other out of the header table.
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_framed_and_decodes() {
        let framed = message("a CSR");
        assert_eq!(framed[0], 0);
        assert_eq!(
            u32::from_be_bytes(framed[1..PREFIX].try_into().unwrap()) as usize,
            framed.len() - PREFIX
        );
        assert_eq!(
            IstioCertificateRequest::decode(&framed[PREFIX..])
                .unwrap()
                .csr,
            "a CSR"
        );
    }

    #[test]
    fn a_csr_that_is_used_again_asks_for_another_lifetime() {
        for n in [0, 1, 127, 128, LIFETIMES - 1, LIFETIMES, u64::MAX] {
            let framed = asking_for(lifetime(n), &message("a CSR"));
            let asked = IstioCertificateRequest::decode(&framed[PREFIX..]).unwrap();
            assert_eq!(
                (asked.csr.as_str(), asked.validity_duration),
                ("a CSR", lifetime(n))
            );
            assert!(
                (DAY / 2..=DAY).contains(&asked.validity_duration)
                    && lifetime(n) != lifetime(n.wrapping_sub(1))
            );
        }
    }

    #[test]
    fn the_token_does_not_show_in_debug_output() {
        assert_eq!(
            format!("{:?}", authorization("secret").unwrap()),
            "Sensitive"
        );
    }
}
