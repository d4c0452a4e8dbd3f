//! The S3 protocol without a network: a server, a proxy that makes its faults, and their tests.

mod backend;
mod client;
mod operations;
pub(crate) mod proxy;
pub(crate) mod server;

use client::Client;
use server::S3Server;

#[test]
fn what_was_put_is_got() {
    let server = S3Server::start("bucket");
    let client = Client::of(&server.endpoint());
    client.put("a/b.txt", b"hello").unwrap();
    assert_eq!(client.get("a/b.txt").unwrap(), b"hello".as_slice());
}
