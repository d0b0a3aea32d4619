//! The ledger's rules, each by its name.

mod beginning;
mod failing;
mod format;
mod processes;
mod reading;
mod resuming;
mod verifying;
mod writing;
