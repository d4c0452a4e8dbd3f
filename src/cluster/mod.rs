//! The processes of one run find each other, know each other, and notice when one is gone.
//!
//! Three steps, each of them for one thing that timely's own networking leaves open:
//!
//! - **Rendezvous** ([`Seat::form`]): everybody dials whoever has a lower index and process 0 says when
//!   all are there. Names may resolve late, processes may come in any order and come again; it ends
//!   with a [`Mesh`] or, at a deadline, with the indices that are missing. A connection belongs to an
//!   **epoch**: process 0 mints a new one whenever somebody leaves before the start, so that links of
//!   two generations never mix.
//! - **Handshake** ([`Key`]): both ends prove that they hold the cluster's key (HMAC-SHA256 over fresh
//!   nonces) before either believes a word. A stranger is dropped and costs a thread for at most five
//!   seconds. The key says who connects; bytes after that are as safe as the network, or as TLS
//!   ([`Tls`]), inside of which all of this happens then.
//! - **Watch** ([`Watch`]): heartbeats between process 0 and everybody else. A closed connection is
//!   noticed at once, a silent one after a limit, a run in which nothing moves after another.
//!
//! [`supervise`] starts the processes and starts them again. Nothing here knows what a run computes.

mod error;
mod handshake;
mod hosts;
mod key;
mod link;
mod mesh;
mod messages;
mod parent;
mod rendezvous;
mod supervisor;
mod tls;
mod tunnel;
mod watch;

#[cfg(test)]
mod rendezvous_tests;
#[cfg(test)]
mod tls_tests;

pub use error::ClusterError;
pub use hosts::Hosts;
pub use key::Key;
pub use link::Link;
pub use mesh::{Mesh, Seat};
pub use parent::Parent;
pub use supervisor::{Policy, Verdict, supervise};
pub use tls::Tls;
pub use tunnel::Tunnel;
pub use watch::{Limits, Lost, Pulse, Watch};
