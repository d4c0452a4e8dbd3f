//! A moto server as a second opinion: another implementation of S3, in a process of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use object_store::{Error, PutMode};

use super::client::Client;
use super::proxy::{Fault, FaultProxy};
use super::server::environment;

/// A command line that starts moto on the port given as its last argument.
const VARIABLE: &str = "TIDEMILL_MOTO";

/// Python and its imports are slow on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A moto server with one empty bucket, until it is dropped.
pub(crate) struct Moto {
    child: Child,
    address: SocketAddr,
}

impl Moto {
    /// Starts moto, or gives `None` where nobody said how.
    pub(crate) fn start(bucket: &str) -> Option<Self> {
        let line = std::env::var(VARIABLE).ok()?;
        let mut words = line.split_whitespace();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new(words.next()?);
        command.args(words).arg(address.port().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let moto = Self { child: command.spawn().unwrap(), address };
        moto.create(bucket);
        Some(moto)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        environment(&self.endpoint())
    }

    /// Creates the bucket, as soon as somebody answers.
    fn create(&self, bucket: &str) {
        let start = Instant::now();
        loop {
            match self.ask(&format!("PUT /{bucket}")) {
                Ok(answer) if answer.contains(" 200 ") => return,
                other => assert!(start.elapsed() < PATIENCE, "moto does not start: {other:?}"),
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The answer to an unsigned request without a body; moto checks no signatures.
    fn ask(&self, request: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        let host = format!("Host: {}\r\nContent-Length: 0\r\nConnection: close", self.address);
        stream.write_all(format!("{request} HTTP/1.1\r\n{host}\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn moto_answers_where_it_is_installed() {
    let Some(moto) = Moto::start("bucket") else {
        eprintln!("skipped: {VARIABLE} is not set");
        return;
    };
    let client = Client::of(moto.environment());
    client.put("key", b"bytes").unwrap();
    assert_eq!(client.get("key").unwrap(), "bytes");
    let proxy =
        FaultProxy::start(moto.address(), |line| (line.nth == 1).then_some(Fault::SlowDown));
    let client = Client::of(proxy.environment());
    let again = client.put_as("key", b"other", PutMode::Create);
    assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
}
