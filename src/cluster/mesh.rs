//! One process's place in a cluster, and its connections once all are there.

use std::net::{Shutdown, SocketAddr};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::messages::Message;
use super::{Hosts, Key, Link, Tls};

/// Who this process is, and how it finds the others.
pub struct Seat {
    /// This process, `0..n_processes`.
    pub index: usize,
    /// All processes.
    pub n_processes: usize,
    /// Where they listen.
    pub hosts: Hosts,
    /// Where this one listens: an address, not a name; port 0 for any.
    pub listen: String,
    /// What all of them hold and nobody else.
    pub key: Key,
    /// Encrypts all connections, in all of the processes or in none.
    pub tls: Option<Tls>,
    /// Digest of the program; equal in all of them.
    pub build: [u8; 32],
    /// Digest of what is to be done; equal in all of them.
    pub job: [u8; 32],
    /// The rendezvous ends by then, one way or the other.
    pub rendezvous: Duration,
    /// The time in microseconds since 1970, from which epochs are made.
    pub now_us: fn() -> i64,
    /// Told where this process listens, before it dials anybody.
    pub listening: Box<dyn Fn(SocketAddr) + Send + Sync>,
}

/// The connections of one process to all others.
pub struct Mesh {
    /// For the traffic of the run, by process; none to itself.
    pub links: Vec<Option<Link>>,
    /// For [`Watch`](super::Watch).
    pub(super) controls: Controls,
    /// In which all of them belong together.
    pub epoch: u64,
}

/// A process's control connections: of process 0 to all others, of the others to process 0.
pub(super) struct Controls {
    pub(super) index: usize,
    /// By process; none where there is no connection.
    pub(super) peers: Vec<Option<Control>>,
    /// What arrives on them.
    pub(super) events: Receiver<Event>,
}

/// The writing end of one control connection; a thread reads.
pub(super) struct Control {
    pub(super) serial: u64,
    pub(super) link: Link,
}

impl Drop for Control {
    /// The reading thread holds the connection open otherwise. The last word still arrives.
    fn drop(&mut self) {
        let _ = self.link.shutdown(Shutdown::Both);
        self.link.wait_sent();
    }
}

/// What happens to a process while its cluster forms, and after.
pub(super) enum Event {
    /// A data link from a process with a higher index.
    Data { from: usize, epoch: u64, link: Link },
    /// A control connection, and the epoch that the process at its other end was told.
    Joined { peer: usize, control: Control, epoch: u64 },
    /// A message on the connection with this serial number.
    Said { peer: usize, serial: u64, message: Message },
    /// The end of that connection.
    Gone { peer: usize, serial: u64 },
}
