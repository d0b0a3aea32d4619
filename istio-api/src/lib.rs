//! The wire types of Istio's certificate service, generated from `proto/istio_ca.proto`. Nothing
//! else lives here but the codec that bounds what they unfold into, so that the hand-written crates
//! carry every lint.
#![allow(clippy::all, unreachable_pub, missing_docs)]

pub mod codec;

tonic::include_proto!("istio.v1.auth");
