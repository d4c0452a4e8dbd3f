//! Why a cluster did not form.

/// The processes did not find each other, or must not.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The key is too short to be a secret.
    #[error(
        "the cluster key has {bytes} bytes; give at least {} random ones",
        crate::cluster::Key::BYTES_MIN
    )]
    ShortKey {
        /// Its length.
        bytes: usize,
    },
    /// A certificate or key of TLS that cannot be used.
    #[error("the {what} for TLS between processes cannot be used: {problem}")]
    Certificate {
        /// `certificate`, `private key` or `CA`.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The hosts file or template says nothing about a process.
    #[error("process {index} has no address: {problem}")]
    NoAddress {
        /// The process.
        index: usize,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// This process cannot listen.
    #[error("cannot listen at \"{address}\"; free the port or give another with --listen")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The deadline came first.
    #[error(
        "the cluster did not form within {seconds} s: {missing}; start the missing processes, or give \
         --rendezvous-seconds more"
    )]
    Deadline {
        /// The deadline, from the start of the rendezvous.
        seconds: u64,
        /// Who is missing, and what the last attempt to reach them met.
        missing: String,
    },
    /// An authenticated peer runs something else.
    #[error(
        "process {peer} runs another {what} than this process {index}; start all of them alike"
    )]
    Mismatch {
        /// The peer, which holds the key.
        peer: usize,
        /// This process.
        index: usize,
        /// `build`, `job` or `number of processes`.
        what: &'static str,
    },
    /// Somebody left between the word to start and the start.
    #[error("process {index} left as the run began")]
    Left {
        /// Who.
        index: usize,
    },
    /// The operating system gives no more threads, sockets or random numbers.
    #[error("the cluster cannot be formed on this machine")]
    System(#[source] std::io::Error),
}

impl ClusterError {
    /// Whether starting the same process again may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Deadline { .. } | Self::Left { .. } | Self::System(_))
    }
}
