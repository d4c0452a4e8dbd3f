//! The S3 protocol without a network: a server, a proxy that makes its faults, and their tests.

use std::time::Duration;

mod backend;
mod client;
pub(crate) mod moto;
mod operations;
pub(crate) mod proxy;
mod proxy_tests;
pub(crate) mod server;
mod server_tests;

/// For measurements: a bucket `shop` on a free port, in a process of its own. `TIDEMILL_SERVE` names
/// a file that becomes `log/events.parquet`, and `TIDEMILL_SERVE_DELAY_MS` how long each request waits; the
/// environment of clients goes to stderr, and after it the address of a proxy in front that lets one
/// request in twenty fail.
#[test]
#[ignore = "serves until it is killed"]
fn serve() {
    let delay = std::env::var("TIDEMILL_SERVE_DELAY_MS").map_or(0, |ms| ms.parse().unwrap());
    let server = server::S3Server::start_slow("shop", Duration::from_millis(delay));
    let log = std::env::var("TIDEMILL_SERVE").expect("TIDEMILL_SERVE names a log");
    server.put("log/events.parquet", std::fs::read(log).unwrap());
    for (name, value) in server.environment() {
        eprintln!("export {name}={value}");
    }
    let proxy = proxy::FaultProxy::start(server.address(), crate::s3_jobs::five_percent());
    eprintln!("faulty {}", proxy.endpoint());
    loop {
        std::thread::park();
    }
}
