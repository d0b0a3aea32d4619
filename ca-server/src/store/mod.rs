//! What is kept. The only room that names sqlx.

pub mod ledger;
