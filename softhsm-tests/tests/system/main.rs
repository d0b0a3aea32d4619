//! Stories of the whole system: every test starts the real daemon on a real token and ends with a
//! look at the whole ledger. Numbers in names are the cases of Istio's contract
//! (docs/istio-contract.md, contract §7).
#![allow(
    clippy::disallowed_methods,
    reason = "tests choose times around the real clock"
)]

mod admission;
mod audit;
mod authentication;
mod bad_input;
mod bench;
mod canary;
mod chain;
mod client_certificate;
mod clocks;
mod config;
mod crash;
mod crash_points;
mod csr;
mod database_tls;
mod devices;
mod doctor;
mod fairness;
mod faults;
mod field;
mod handover;
mod hardening;
mod ledger_errors;
mod lifetime;
mod loadgen;
mod login_orders;
mod metadata;
mod modules;
mod mute;
mod operations;
mod outages;
mod output;
mod overload;
mod pin;
mod port;
mod repeats;
mod replicas;
mod secrets;
mod seen;
mod several_tokens;
mod signer_process;
mod signer_service;
mod start;
mod tls;
mod touches;
