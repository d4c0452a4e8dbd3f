//! TLS between the processes of a cluster, in which both ends show a certificate.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::{Resumption, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, Connection, InvalidMessage, RootCertStore, ServerConfig,
    ServerConnection,
};

use super::link::{Timed, set_timeouts};
use super::tunnel::Tunnel;
use super::{ClusterError, Link};

/// What a process shows to others and asks of them. Its private key is never shown.
#[derive(Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// The DNS name that every certificate of a cluster carries. It is the same for all processes, so
    /// that all of them may have one certificate, wherever they run.
    pub const NAME: &str = "tidemill";

    /// A process shows `certificate_chain`, its own certificate first, and believes whoever has a
    /// certificate of `ca` for [`Tls::NAME`], as dialer and as listener. All three are PEM. TLS 1.3.
    ///
    /// # Errors
    /// [`ClusterError::Certificate`]. Whether a certificate is expired shows in the handshake.
    pub fn new(
        certificate_chain: &[u8],
        private_key: &[u8],
        ca: &[u8],
    ) -> Result<Self, ClusterError> {
        let chain = certificates("certificate", certificate_chain)?;
        let key = PrivateKeyDer::from_pem_slice(private_key);
        let key = key.map_err(|error| unusable("private key", &error))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates("CA", ca)? {
            roots.add(certificate).map_err(|error| unusable("CA", &error))?;
        }
        let (roots, provider) =
            (Arc::new(roots), Arc::new(rustls::crypto::ring::default_provider()));
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let verifier = verifier.map_err(|error| unusable("CA", &error))?;
        let versions = "TLS 1.3 is compiled in";
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(&[&TLS13]).expect(versions);
        let server = builder
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key());
        let mut server = server.map_err(|error| unusable("certificate", &error))?;
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(&[&TLS13]).expect(versions);
        let client = builder.with_root_certificates(roots).with_client_auth_cert(chain, key);
        let mut client = client.map_err(|error| unusable("certificate", &error))?;
        // Connections are few and long.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        client.resumption = Resumption::disabled();
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    fn dialer(&self) -> Result<Connection, rustls::Error> {
        let client = ClientConnection::new(self.client.clone(), name())?;
        Ok(client.into())
    }

    fn listener(&self) -> Result<Connection, rustls::Error> {
        Ok(ServerConnection::new(self.server.clone())?.into())
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from(Tls::NAME).expect("it is a DNS name")
}

fn certificates(
    what: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, ClusterError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(unusable(what, &"it holds no PEM certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(unusable(what, &error)),
    }
}

fn unusable(what: &'static str, problem: &dyn fmt::Display) -> ClusterError {
    ClusterError::Certificate { what, problem: problem.to_string() }
}

/// A connection whose other end has not proved itself yet: all reads and writes together end by a
/// deadline.
pub(super) struct Opening {
    stream: TcpStream,
    connection: Option<Connection>,
    deadline: Instant,
}

impl Opening {
    /// This process has dialed.
    ///
    /// # Errors
    /// The connection ended, or the listener has no certificate that `tls` believes.
    pub(super) fn dial(
        stream: TcpStream,
        tls: Option<&Tls>,
        deadline: Instant,
    ) -> io::Result<Self> {
        let connection = tls.map(Tls::dialer).transpose().map_err(io::Error::other)?;
        let mut opening = Self { stream, connection, deadline };
        opening.shake_hands()?;
        Ok(opening)
    }

    /// This process was dialed.
    ///
    /// # Errors
    /// The connection ended, or the dialer has no certificate that `tls` believes.
    pub(super) fn meet(
        stream: TcpStream,
        tls: Option<&Tls>,
        deadline: Instant,
    ) -> io::Result<Self> {
        let connection = tls.map(Tls::listener).transpose().map_err(io::Error::other)?;
        let mut opening = Self { stream, connection, deadline };
        match opening.shake_hands().and_then(|()| opening.check_dialer()) {
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                opening.linger();
                Err(error)
            }
            done => done.map(|()| opening),
        }
    }

    /// The connection, from here on without a deadline.
    ///
    /// # Errors
    /// When the system gives no more threads or sockets.
    pub(super) fn link(self) -> io::Result<Link> {
        set_timeouts(&self.stream, None)?;
        Ok(match self.connection {
            None => Link::Tcp(self.stream),
            Some(connection) => Link::Tunnel(Tunnel::start(connection, self.stream)?),
        })
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let mut timed = Timed::new(&self.stream, self.deadline);
        while connection.is_handshaking() {
            connection.complete_io(&mut timed).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                    stranger("ended the TLS handshake; it may run without TLS".to_owned())
                }
                _ => explained(error),
            })?;
        }
        Ok(())
    }

    /// A CA may have given certificates to others too.
    fn check_dialer(&self) -> io::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let shown = connection.peer_certificates().and_then(<[_]>::first);
        let shown = shown.ok_or_else(|| stranger("shows no certificate".to_owned()))?;
        let parsed = ParsedCertificate::try_from(shown);
        let checked = parsed.and_then(|parsed| verify_server_name(&parsed, &name()));
        checked.map_err(|error| stranger(format!("does not get along in TLS: {error}")))
    }

    /// Lets the other end read why it was turned away: a close with bytes unread would take that back.
    fn linger(&self) {
        let soon = self.deadline.min(Instant::now() + Duration::from_millis(200));
        let mut timed = Timed::new(&self.stream, soon);
        let _ = self.stream.shutdown(Shutdown::Write);
        while let Ok(1..) = timed.read(&mut [0; 512]) {}
    }
}

impl Read for Opening {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut timed = Timed::new(&self.stream, self.deadline);
        let Some(connection) = &mut self.connection else { return timed.read(buffer) };
        while connection.wants_read() {
            if connection.complete_io(&mut timed).map_err(explained)?.0 == 0 {
                break;
            }
        }
        connection.reader().read(buffer)
    }
}

impl Write for Opening {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut timed = Timed::new(&self.stream, self.deadline);
        let Some(connection) = &mut self.connection else { return timed.write(bytes) };
        let n_written = connection.writer().write(bytes)?;
        while connection.wants_write() {
            connection.write_tls(&mut timed)?;
        }
        Ok(n_written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn stranger(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// What an error of TLS says of the other end.
fn explained(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            stranger("does not speak TLS".to_owned())
        }
        Some(problem) => stranger(format!("does not get along in TLS: {problem}")),
        None => error,
    }
}
