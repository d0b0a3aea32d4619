//! What listens: the Istio CSR call over TLS, and monitoring over plain HTTP. Turns bytes into a `Call` and an `Answer` into bytes; decides nothing.

pub mod call_limit;
pub mod grpc;
pub mod monitoring;
pub mod tls;
