//! One end of a local socket pair with TLS behind the other: a stream of the usual kind, which one thread
//! may read while another writes.
//!
//! Two threads pump, one per direction, so that a direction that is full never stops the other. They
//! share the state of TLS behind a lock that is never held while one of them waits, and each holds at
//! most a few hundred KiB.

use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::Connection;

/// Bytes per turn: four records of TLS.
const TURN_BYTES: usize = 64 << 10;

/// For the last bytes to reach the system, once nobody writes any more.
const SENT_WITHIN: Duration = Duration::from_secs(5);

/// This process's end of a tunnel. Once all its handles are dropped, what was written is sent, and the
/// connection ends.
#[derive(Debug)]
pub struct Tunnel {
    // Before the pumps, which end when all streams are closed.
    stream: UnixStream,
    pumps: Arc<Pumps>,
}

impl Tunnel {
    /// Starts to pump between a new tunnel and the peer at the other end of `connection`, which has
    /// shaken hands.
    ///
    /// # Errors
    /// When the system gives no more threads or sockets.
    pub(super) fn start(mut connection: Connection, tcp: TcpStream) -> io::Result<Self> {
        connection.set_buffer_limit(None);
        let (stream, inner) = UnixStream::pair()?;
        let shared = Arc::new(Shared { connection: Mutex::new(connection), tcp, inner });
        let (sending, ended) = channel();
        let mut pumps =
            Pumps { shared, is_sent: Mutex::new(ended), threads: Vec::with_capacity(2) };
        let shared = pumps.shared.clone();
        pumps.spawn("cluster:tls-out", move || shared.send_all(sending))?;
        let shared = pumps.shared.clone();
        pumps.spawn("cluster:tls-in", move || shared.receive_all())?;
        Ok(Self { stream, pumps: Arc::new(pumps) })
    }

    /// Another handle of the same end.
    ///
    /// # Errors
    /// When the process has no more file handles.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()?, pumps: self.pumps.clone() })
    }

    /// Whether reads and writes return at once when they would have to wait.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.stream.set_nonblocking(nonblocking)
    }

    /// Ends one direction or both.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }

    /// Waits a while until everything that was written is with the system; it never is before this
    /// end is shut down.
    pub(super) fn wait_sent(&self) {
        self.pumps.wait_sent();
    }
}

impl Read for Tunnel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Tunnel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The threads of a tunnel.
#[derive(Debug)]
struct Pumps {
    shared: Arc<Shared>,
    /// Closed when nothing is sent any more.
    is_sent: Mutex<Receiver<Infallible>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pumps {
    fn spawn(&mut self, name: &str, pump: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(pump)?);
        Ok(())
    }

    fn wait_sent(&self) {
        let is_sent = self.is_sent.lock().expect("no thread panics with the lock");
        // Nothing is ever received: either the sender is gone, or the time is over.
        let _ = is_sent.recv_timeout(SENT_WITHIN);
    }

    /// Ends the thread that receives, whatever the peer still sends.
    ///
    /// A connection that is shut tells its peer of no more room: where there was none, the peer would
    /// wait for a minute before it heard that nobody is there. So what has arrived is taken first.
    fn stop_receiving(&self) {
        let (tcp, end) = (&self.shared.tcp, Instant::now() + SENT_WITHIN);
        // From here on the thread ends when it finds nothing, unless it waits already.
        let _ = tcp.set_nonblocking(true);
        let is_receiving = || self.threads.last().is_some_and(|thread| !thread.is_finished());
        while is_receiving() && matches!(tcp.peek(&mut [0]), Ok(1..)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        let _ = tcp.shutdown(Shutdown::Both);
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        // One that was started alone has nobody to end it.
        if self.threads.len() < 2 {
            self.shared.break_off();
        }
        self.wait_sent();
        self.stop_receiving();
        for thread in self.threads.drain(..) {
            // If it panicked, the connection has ended and that has been noticed.
            let _ = thread.join();
        }
    }
}

/// What both threads of a tunnel use.
struct Shared {
    connection: Mutex<Connection>,
    tcp: TcpStream,
    /// The other end of the tunnel.
    inner: UnixStream,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl Shared {
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().expect("the other thread has not panicked")
    }

    /// Ends both directions on both sides, for the peer without a goodbye.
    fn break_off(&self) {
        let _ = self.tcp.shutdown(Shutdown::Both);
        let _ = self.inner.shutdown(Shutdown::Both);
    }

    fn send_all(&self, _sending: Sender<Infallible>) {
        let mut ending = Ending { shared: self, is_clean: false };
        ending.is_clean = self.send().is_ok();
    }

    fn receive_all(&self) {
        let mut ending = Ending { shared: self, is_clean: false };
        ending.is_clean = self.receive().is_ok();
    }

    /// From the tunnel to the peer, until nobody can write to the tunnel any more.
    fn send(&self) -> io::Result<()> {
        let mut plain = vec![0; TURN_BYTES];
        let mut sealed = Vec::with_capacity(TURN_BYTES + TURN_BYTES / 64);
        loop {
            let n_read = read(&self.inner, &mut plain)?;
            sealed.clear();
            self.seal(&plain[..n_read], &mut sealed)?;
            if (&self.tcp).write_all(&sealed).is_err() {
                // The peer is gone. What it said before, and its end, are for the other direction.
                return self.inner.shutdown(Shutdown::Read);
            }
            if n_read == 0 {
                return self.tcp.shutdown(Shutdown::Write);
            }
        }
    }

    /// Encrypts `plain`, or a goodbye where it is empty.
    fn seal(&self, plain: &[u8], sealed: &mut Vec<u8>) -> io::Result<()> {
        let mut connection = self.connection();
        match plain.is_empty() {
            true => connection.send_close_notify(),
            false => connection.writer().write_all(plain)?,
        }
        while connection.wants_write() {
            connection.write_tls(sealed)?;
        }
        Ok(())
    }

    /// From the peer to the tunnel, until the peer says goodbye.
    ///
    /// # Errors
    /// When the connection ends in another way.
    fn receive(&self) -> io::Result<()> {
        let (mut sealed, mut plain) = (vec![0; TURN_BYTES], Vec::with_capacity(2 * TURN_BYTES));
        let (mut n_read, mut is_heard) = (0, true);
        loop {
            plain.clear();
            // At first what came with the handshake.
            let is_over = self.unseal(&sealed[..n_read], &mut plain)?;
            // When nobody reads any more, the other direction may still have something to send.
            is_heard = is_heard && (&self.inner).write_all(&plain).is_ok();
            if is_over {
                // It fails when this process has closed its end already.
                let _ = self.inner.shutdown(Shutdown::Write);
                return Ok(());
            }
            n_read = read(&self.tcp, &mut sealed)?;
            if n_read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Decrypts whatever is whole; whether the peer has said goodbye.
    fn unseal(&self, mut sealed: &[u8], plain: &mut Vec<u8>) -> io::Result<bool> {
        let mut connection = self.connection();
        loop {
            let state = connection.process_new_packets().map_err(io::Error::other)?;
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            connection.reader().read_exact(&mut plain[start..])?;
            if state.peer_has_closed() || sealed.is_empty() {
                return Ok(state.peer_has_closed());
            }
            connection.read_tls(&mut sealed)?;
        }
    }
}

/// Breaks a connection off unless its pump has come to a good end.
struct Ending<'a> {
    shared: &'a Shared,
    is_clean: bool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.is_clean {
            self.shared.break_off();
        }
    }
}

fn read(mut stream: impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
