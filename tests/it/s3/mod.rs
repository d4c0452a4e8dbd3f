//! The S3 protocol without a network: a server, a proxy that makes its faults, and their tests.

mod backend;
mod client;
pub(crate) mod moto;
mod operations;
pub(crate) mod proxy;
mod proxy_tests;
pub(crate) mod server;
mod server_tests;
