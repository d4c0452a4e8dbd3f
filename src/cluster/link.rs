//! A connection between two processes, in the clear or through TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use super::tunnel::Tunnel;

/// Both directions of a connection.
#[derive(Debug)]
pub enum Link {
    /// In the clear.
    Tcp(TcpStream),
    /// Through TLS.
    Tunnel(Tunnel),
}

macro_rules! either {
    ($link:expr, $stream:ident => $does:expr) => {
        match $link {
            Link::Tcp($stream) => $does,
            Link::Tunnel($stream) => $does,
        }
    };
}

impl Link {
    /// Another handle of the same connection.
    ///
    /// # Errors
    /// When the process has no more file handles.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Tunnel(stream) => Self::Tunnel(stream.try_clone()?),
        })
    }

    /// Whether reads and writes return at once when they would have to wait.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        either!(self, stream => stream.set_nonblocking(nonblocking))
    }

    /// Ends one direction or both.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        either!(self, stream => stream.shutdown(how))
    }

    /// Waits a while until what was written before [`Link::shutdown`] is with the system, which sends
    /// it even if this process ends.
    pub(super) fn wait_sent(&self) {
        if let Self::Tunnel(tunnel) = self {
            tunnel.wait_sent();
        }
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => stream.read(buffer))
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, stream => stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        either!(self, stream => stream.flush())
    }
}

/// Sends small messages at once, and lets the system notice a peer whose machine is gone.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(15));
    let keepalive = keepalive.with_interval(Duration::from_secs(5)).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;
    Ok(())
}

/// Lets reads and writes take this long, or for ever.
pub(super) fn set_timeouts(stream: &TcpStream, timeout: Option<Duration>) -> io::Result<()> {
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)
}

/// A connection on which every read and write together end by a deadline.
pub(super) struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl<'a> Timed<'a> {
    pub(super) fn new(stream: &'a TcpStream, deadline: Instant) -> Self {
        Self { stream, deadline }
    }

    fn arm(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => set_timeouts(self.stream, Some(left)),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.arm()?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.arm()?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
