//! What two processes say to each other before either believes the other.
//!
//! ```text
//! dialer    hello: magic, purpose, who dials whom, epoch, digests of build and job, nonce
//! listener  nonce, HMAC("listener", hello, nonce)
//! dialer    HMAC("dialer", hello, nonce)
//! listener  verdict, epoch, HMAC("verdict", hello, nonce, verdict, epoch)
//! ```
//! Nothing of the cluster is told before the other end has proved that it holds the key.

use std::io::{self, Read, Write};

use super::key::{Key, Mac, Nonce, nonce};

/// The first bytes of every connection; the last ones are the version of the protocol.
const MAGIC: [u8; 8] = *b"TIDEML\0\x01";

const HELLO_BYTES: usize = 8 + 1 + 4 + 4 + 4 + 8 + 32 + 32 + 32;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Messages between process 0 and another, from the rendezvous to the end.
    Control,
    /// The traffic of the run.
    Data,
}

/// Who dials, and what it takes itself for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) purpose: Purpose,
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) n_processes: u32,
    /// 0 while the dialer does not know it.
    pub(super) epoch: u64,
    pub(super) build: [u8; 32],
    pub(super) job: [u8; 32],
}

impl Hello {
    fn encode(&self, nonce: &Nonce) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HELLO_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(match self.purpose {
            Purpose::Control => 0,
            Purpose::Data => 1,
        });
        for word in [self.from, self.to, self.n_processes] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        [&self.build, &self.job, nonce].iter().for_each(|part| bytes.extend_from_slice(*part));
        bytes
    }

    fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let digest = |at: usize| bytes[at..at + 32].try_into().expect("32 bytes");
        let purpose = match bytes[8] {
            0 => Purpose::Control,
            1 => Purpose::Data,
            _ => return None,
        };
        (bytes[..8] == MAGIC).then(|| Self {
            purpose,
            from: word(9),
            to: word(13),
            n_processes: word(17),
            epoch: u64::from_le_bytes(bytes[21..29].try_into().expect("8 bytes")),
            build: digest(29),
            job: digest(61),
        })
    }
}

/// The listener's answer to a dialer that holds the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Come in; this is the epoch.
    Welcome { epoch: u64 },
    /// The dialer is another version of the program, or on another instruction set.
    OtherBuild,
    /// The dialer runs another spec, or the same with other flags.
    OtherJob,
    /// The dialer counts other processes.
    OtherSize,
    /// The dialer meant somebody else, or takes itself for somebody who dials nobody here.
    WrongSeat,
    /// A process of this index is here already.
    Taken,
    /// The listener is in another epoch, or does not know it yet: try again.
    NotYet,
}

impl Verdict {
    fn encode(self) -> [u8; 9] {
        let (code, epoch) = match self {
            Self::Welcome { epoch } => (0, epoch),
            Self::OtherBuild => (1, 0),
            Self::OtherJob => (2, 0),
            Self::OtherSize => (3, 0),
            Self::WrongSeat => (4, 0),
            Self::Taken => (5, 0),
            Self::NotYet => (6, 0),
        };
        let mut bytes = [code; 9];
        bytes[1..].copy_from_slice(&u64::to_le_bytes(epoch));
        bytes
    }

    fn decode(bytes: [u8; 9]) -> Option<Self> {
        let epoch = u64::from_le_bytes(bytes[1..].try_into().expect("8 bytes"));
        Some(match bytes[0] {
            0 => Self::Welcome { epoch },
            1 => Self::OtherBuild,
            2 => Self::OtherJob,
            3 => Self::OtherSize,
            4 => Self::WrongSeat,
            5 => Self::Taken,
            6 => Self::NotYet,
            _ => return None,
        })
    }
}

/// Introduces this process to a listener.
///
/// # Errors
/// The connection ended, or the listener does not hold the key.
pub(super) fn dial(
    stream: &mut (impl Read + Write),
    key: &Key,
    hello: &Hello,
) -> io::Result<Verdict> {
    let hello = hello.encode(&nonce().map_err(io::Error::other)?);
    stream.write_all(&hello)?;
    let theirs: Nonce = read(stream)?;
    let mac: Mac = read(stream)?;
    if !key.is_signed("listener", &[&hello, &theirs], &mac) {
        return Err(stranger("does not hold this cluster's key"));
    }
    stream.write_all(&key.sign("dialer", &[&hello, &theirs]))?;
    let verdict: [u8; 9] = read(stream)?;
    let mac: Mac = read(stream)?;
    if !key.is_signed("verdict", &[&hello, &theirs, &verdict], &mac) {
        return Err(stranger("does not hold this cluster's key"));
    }
    Verdict::decode(verdict).ok_or_else(|| stranger("speaks another version"))
}

/// Meets a dialer, and gives the verdict that `judge` finds once it has proved itself.
///
/// # Errors
/// The connection ended, or the dialer does not hold the key or speaks something else.
pub(super) fn meet(
    stream: &mut (impl Read + Write),
    key: &Key,
    judge: impl FnOnce(&Hello) -> Verdict,
) -> io::Result<(Hello, Verdict)> {
    let bytes: [u8; HELLO_BYTES] = read(stream)?;
    let hello = Hello::decode(&bytes).ok_or_else(|| match is_tls(&bytes) {
        true => stranger(SPEAKS_TLS),
        false => stranger("speaks something else"),
    })?;
    let ours = nonce().map_err(io::Error::other)?;
    stream.write_all(&ours)?;
    stream.write_all(&key.sign("listener", &[&bytes, &ours]))?;
    let mac: Mac = read(stream)?;
    if !key.is_signed("dialer", &[&bytes, &ours], &mac) {
        return Err(stranger("does not hold this cluster's key"));
    }
    let verdict = judge(&hello);
    let said = verdict.encode();
    stream.write_all(&said)?;
    stream.write_all(&key.sign("verdict", &[&bytes, &ours, &said]))?;
    Ok((hello, verdict))
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let (mut bytes, mut n_read) = ([0; N], 0);
    while n_read < N {
        match stream.read(&mut bytes[n_read..]) {
            Ok(0) if n_read > 1 && is_tls(&bytes) => return Err(stranger(SPEAKS_TLS)),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n_read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

const SPEAKS_TLS: &str = "speaks TLS, and this process was given no certificates for it";

/// Whether these are the first bytes of a handshake or an alert of TLS.
fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 3, ..])
}

fn stranger(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    fn hello() -> Hello {
        let (build, job) = ([1; 32], [2; 32]);
        Hello { purpose: Purpose::Data, from: 3, to: 1, n_processes: 4, epoch: 99, build, job }
    }

    fn talk(dialer: &[u8], listener: &[u8]) -> (io::Result<Verdict>, io::Result<(Hello, Verdict)>) {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let (ours, theirs) = (Key::new(dialer).unwrap(), Key::new(listener).unwrap());
        let met = thread::spawn(move || meet(&mut there, &theirs, |_| Verdict::Taken));
        let dialed = dial(&mut here, &ours, &hello());
        drop(here);
        (dialed, met.join().unwrap())
    }

    #[test]
    fn two_who_hold_the_key_meet() {
        let (dialed, met) = talk(&[5; 16], &[5; 16]);
        assert_eq!(dialed.unwrap(), Verdict::Taken);
        assert_eq!(met.unwrap(), (hello(), Verdict::Taken));
    }

    #[test]
    fn neither_believes_another_key() {
        let (dialed, met) = talk(&[5; 16], &[6; 16]);
        assert!(dialed.unwrap_err().to_string().contains("key"));
        assert!(met.is_err());
    }

    #[test]
    fn whatever_is_not_a_hello_is_refused_and_told_nothing() {
        let key = Key::new(&[5; 16]).unwrap();
        for bytes in
            [vec![0; 400], b"GET / HTTP/1.1\r\nHost: mill\r\n\r\n".repeat(9), vec![255; 126]]
        {
            let (mut here, mut there) = UnixStream::pair().unwrap();
            here.write_all(&bytes).unwrap();
            here.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(meet(&mut there, &key, |_| panic!("a stranger is not judged")).is_err());
            drop(there);
            let mut told = Vec::new();
            let _ = here.read_to_end(&mut told);
            assert!(told.is_empty());
        }
    }

    #[test]
    fn a_recorded_dialer_is_a_stranger() {
        let key = Key::new(&[5; 16]).unwrap();
        let hello = hello().encode(&[9; 32]);
        let mut recorded = hello.clone();
        // Proof for another listener's nonce.
        recorded.extend_from_slice(&key.sign("dialer", &[&hello, &[1; 32]]));
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.write_all(&recorded).unwrap();
        assert!(meet(&mut there, &key, |_| panic!("a stranger is not judged")).is_err());
    }

    #[test]
    fn verdicts_round_trip() {
        for verdict in [
            Verdict::Welcome { epoch: u64::MAX - 1 },
            Verdict::OtherBuild,
            Verdict::OtherJob,
            Verdict::OtherSize,
            Verdict::WrongSeat,
            Verdict::Taken,
            Verdict::NotYet,
        ] {
            assert_eq!(Verdict::decode(verdict.encode()), Some(verdict));
        }
        assert_eq!(Verdict::decode([77; 9]), None);
    }
}
