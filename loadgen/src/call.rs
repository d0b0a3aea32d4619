//! One call on an HTTP/2 connection: a unary gRPC exchange, and what it came to.

use std::fmt;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, StatusCode};

use crate::requests::PREFIX;

/// A call that gave no certificate.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The endpoint answered with a gRPC status.
    Grpc { code: u32, message: String },
    /// Something on the way: where, and what.
    Client { at: &'static str, cause: String },
}

impl Failure {
    /// On the way, not the endpoint's answer.
    pub fn client(at: &'static str, cause: impl fmt::Display) -> Self {
        Self::Client {
            at,
            cause: cause.to_string(),
        }
    }

    /// What failures are counted by.
    pub fn name(&self) -> String {
        match self {
            Self::Grpc { code, .. } => GRPC_CODES
                .get(*code as usize)
                .map_or_else(|| format!("code {code}"), |name| (*name).to_owned()),
            Self::Client { at, .. } => format!("client: {at}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grpc { message, .. } => write!(out, "{}: {message}", self.name()),
            Self::Client { at, cause } => write!(out, "{at}: {cause}"),
        }
    }
}

/// The codes of gRPC, in their order.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "Cancelled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Makes a call; the answer's message if it is to be kept, unframed and undecoded.
pub async fn call(
    sender: &SendRequest<Bytes>,
    request: Request<()>,
    message: Bytes,
    keep: bool,
) -> Result<Option<Vec<u8>>, Failure> {
    let http2 = |error: h2::Error| Failure::client("HTTP/2", error);
    let mut sender = sender.clone().ready().await.map_err(http2)?;
    let (response, mut stream) = sender.send_request(request, false).map_err(http2)?;
    stream.send_data(message, true).map_err(http2)?;
    let (head, mut body) = response.await.map_err(http2)?.into_parts();
    if head.status != StatusCode::OK {
        return Err(Failure::client("HTTP", head.status));
    }
    if let Some(refusal) = refusal(&head.headers) {
        return Err(refusal);
    }
    let mut prefix = [0; PREFIX];
    let (mut length, mut kept) = (0, Vec::new());
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(http2)?;
        if length < PREFIX {
            let part = chunk.len().min(PREFIX - length);
            prefix[length..length + part].copy_from_slice(&chunk[..part]);
        }
        length += chunk.len();
        if keep {
            kept.extend_from_slice(&chunk);
        }
        body.flow_control()
            .release_capacity(chunk.len())
            .map_err(http2)?;
    }
    let trailers = body.trailers().await.map_err(http2)?.unwrap_or_default();
    if let Some(refusal) = refusal(&trailers) {
        return Err(refusal);
    }
    if !trailers.contains_key("grpc-status") {
        return Err(Failure::client("gRPC", "the answer ends without a status"));
    }
    let [compressed, told @ ..] = prefix;
    if compressed != 0 || u32::from_be_bytes(told) as usize + PREFIX != length {
        return Err(Failure::client(
            "gRPC",
            "the answer is not one whole uncompressed message",
        ));
    }
    Ok(keep.then(|| kept.split_off(PREFIX)))
}

/// A status other than OK in headers or trailers.
fn refusal(headers: &HeaderMap) -> Option<Failure> {
    let code = headers
        .get("grpc-status")?
        .to_str()
        .ok()
        .and_then(|code| code.parse().ok())
        .unwrap_or(2);
    let message = || {
        headers
            .get("grpc-message")
            .map(|text| String::from_utf8_lossy(text.as_bytes()).replace("%20", " "))
    };
    (code != 0).then(|| Failure::Grpc {
        code,
        message: message().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_zero_is_no_refusal_and_others_have_names() {
        let headers = |code: &'static str| {
            HeaderMap::from_iter([(
                "grpc-status".parse().unwrap(),
                http::HeaderValue::from_static(code),
            )])
        };
        assert!(refusal(&headers("0")).is_none());
        assert!(refusal(&HeaderMap::new()).is_none());
        let names = ["16", "14", "77", "x"].map(|code| refusal(&headers(code)).unwrap().name());
        assert_eq!(
            names,
            ["Unauthenticated", "Unavailable", "code 77", "Unknown"]
        );
    }
}
