use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::tls::Opening;
use super::*;

/// Somebody who gives out certificates.
pub(super) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for `name` and its private key.
    fn certify(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A member by the name of `name`, who believes `other`.
    fn named(&self, name: &str, other: &Self) -> Tls {
        let (certificate, key) = self.certify(name);
        Tls::new(certificate.as_bytes(), key.as_bytes(), other.pem.as_bytes()).unwrap()
    }

    pub(super) fn member(&self) -> Tls {
        self.named(Tls::NAME, self)
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Both ends of a connection of this machine.
fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dialer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (dialer, listener.accept().unwrap().0)
}

/// A dialer and a listener exchange a byte each, and have links then.
fn meet(dialer: Option<&Tls>, listener: Option<&Tls>) -> (io::Result<Link>, io::Result<Link>) {
    meet_on(sockets(), dialer, listener)
}

fn meet_on(
    (here, there): (TcpStream, TcpStream),
    dialer: Option<&Tls>,
    listener: Option<&Tls>,
) -> (io::Result<Link>, io::Result<Link>) {
    let greet = |mut opening: Opening| {
        opening.write_all(b"!")?;
        opening.read_exact(&mut [0])?;
        opening.link()
    };
    thread::scope(|scope| {
        let met = scope.spawn(|| Opening::meet(there, listener, soon()).and_then(greet));
        let dialed = Opening::dial(here, dialer, soon()).and_then(greet);
        (dialed, met.join().unwrap())
    })
}

fn linked() -> (Link, Link) {
    let tls = Authority::new().member();
    let (dialed, met) = meet(Some(&tls), Some(&tls));
    (dialed.unwrap(), met.unwrap())
}

/// Bytes that differ from place to place.
fn bytes(n_bytes: usize, seed: u64) -> Vec<u8> {
    let words = 0..n_bytes.div_ceil(8) as u64;
    let mixed = words.map(|word| (word ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut bytes: Vec<u8> = mixed.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(n_bytes);
    bytes
}

#[test]
fn megabytes_arrive_whole_both_ways_at_once() {
    let (here, there) = linked();
    let talk = |link: Link, said: Vec<u8>| {
        let mut writer = link.try_clone().unwrap();
        let write = move || {
            // In pieces that fit nothing.
            said.chunks(70_001).for_each(|chunk| writer.write_all(chunk).unwrap());
            writer.shutdown(Shutdown::Write).unwrap();
        };
        let read = move || {
            let (mut link, mut heard) = (link, Vec::new());
            // Both directions are full by now.
            thread::sleep(Duration::from_millis(200));
            link.read_to_end(&mut heard).unwrap();
            heard
        };
        (thread::spawn(write), thread::spawn(read))
    };
    let (first, second) = (bytes(20_000_003, 1), bytes(30_000_001, 2));
    let (wrote_first, heard_second) = talk(here, first.clone());
    let (wrote_second, heard_first) = talk(there, second.clone());
    wrote_first.join().unwrap();
    wrote_second.join().unwrap();
    assert!(heard_first.join().unwrap() == first);
    assert!(heard_second.join().unwrap() == second);
}

#[test]
fn who_does_not_read_holds_the_writer_up() {
    let (mut here, _there) = linked();
    here.set_nonblocking(true).unwrap();
    let (chunk, mut n_taken, mut moved) = (vec![7; 65_536], 0, Instant::now());
    while moved.elapsed() < Duration::from_millis(300) {
        match here.write(&chunk) {
            Ok(n) => (n_taken, moved) = (n_taken + n, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
        assert!(n_taken < 64 << 20, "it is held in memory");
    }
}

#[test]
fn the_last_words_arrive_and_the_other_way_stays_open() {
    let (mut here, mut there) = linked();
    let said = bytes(3_000_000, 3);
    let (mut writer, written) = (here.try_clone().unwrap(), said.clone());
    let write = thread::spawn(move || {
        writer.write_all(&written).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut heard = Vec::new();
    there.read_to_end(&mut heard).unwrap();
    assert!(heard == said);
    write.join().unwrap();
    there.write_all(b"goodbye").unwrap();
    // Nobody has told it to end, and what was said is sent all the same.
    drop(there);
    heard.clear();
    here.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"goodbye");
}

#[test]
fn what_is_said_before_a_close_arrives_while_the_peer_talks() {
    for _ in 0..20 {
        let (mut here, mut there) = linked();
        let mut talker = there.try_clone().unwrap();
        let talk = thread::spawn(move || while talker.write_all(&[1; 1_000]).is_ok() {});
        here.write_all(b"bye").unwrap();
        here.shutdown(Shutdown::Both).unwrap();
        here.wait_sent();
        let mut heard = [0; 3];
        there.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"bye");
        drop(here);
        talk.join().unwrap();
    }
}

/// Until a read and a write have failed, or the read has met the end.
fn assert_over(mut link: Link) {
    let (began, mut buffer) = (Instant::now(), [0; 1_024]);
    while link.write(&[1]).is_ok() {
        assert!(began.elapsed() < Duration::from_secs(5), "nobody noticed");
        thread::sleep(Duration::from_millis(1));
    }
    while let Ok(1..) = link.read(&mut buffer) {}
    assert!(began.elapsed() < Duration::from_secs(5), "nobody noticed");
}

#[test]
fn a_connection_that_is_cut_or_meddled_with_ends_on_both_sides() {
    let tls = Authority::new().member();
    for is_cut in [true, false] {
        let (here, there) = sockets();
        let mut wire = here.try_clone().unwrap();
        let (dialed, met) = meet_on((here, there), Some(&tls), Some(&tls));
        match is_cut {
            true => wire.shutdown(Shutdown::Both).unwrap(),
            false => wire.write_all(&[0x17, 3, 3, 0, 40].repeat(20)).unwrap(),
        }
        drop(wire);
        assert_over(met.unwrap());
        assert_over(dialed.unwrap());
    }
}

#[test]
fn a_tunnel_that_is_dropped_leaves_no_connection() {
    let (here, mut there) = linked();
    let copies: Vec<Link> = (0..3).map(|_| here.try_clone().unwrap()).collect();
    drop(here);
    drop(copies);
    assert_eq!(there.read(&mut [0; 8]).unwrap(), 0);
    assert_over(there);
}

#[test]
fn only_certificates_of_the_cluster_are_believed() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let member = ours.member();
    let refused = |dialer: Option<&Tls>, listener: Option<&Tls>| {
        let (dialed, met) = meet(dialer, listener);
        let problem = |end: io::Result<Link>| end.err().unwrap().to_string();
        (problem(dialed), problem(met))
    };
    // Of somebody else, who believes everybody; of somebody else altogether; for another name.
    for stranger in [theirs.named(Tls::NAME, &ours), theirs.member(), ours.named("shop", &ours)] {
        let (dialed, met) = refused(Some(&stranger), Some(&member));
        assert!(dialed.contains("TLS") || met.contains("TLS"), "{dialed}, {met}");
        let (dialed, _) = refused(Some(&member), Some(&stranger));
        assert!(dialed.contains("does not get along in TLS"), "{dialed}");
    }
    let (dialed, met) = meet(Some(&member), Some(&ours.member()));
    assert!(dialed.is_ok() && met.is_ok());
}

#[test]
fn silence_and_garbage_are_dropped_in_time() {
    let tls = Authority::new().member();
    let met = |said: &[u8]| {
        let (mut here, there) = sockets();
        here.write_all(said).unwrap();
        let began = Instant::now();
        let met = Opening::meet(there, Some(&tls), began + Duration::from_millis(300));
        assert!(began.elapsed() < Duration::from_millis(1_500));
        met.err().unwrap()
    };
    assert!(matches!(met(b"").kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    // A record that promises more than comes.
    assert!(matches!(
        met(&[22, 3, 1, 2, 0, 1]).kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut
    ));
    let garbage = met(&b"GET / HTTP/1.1\r\nHost: mill\r\n\r\n".repeat(99));
    assert_eq!(garbage.to_string(), "does not speak TLS");
    // Byte after byte, each of them in time.
    let (mut here, there) = sockets();
    let drip = thread::spawn(move || {
        while here.write_all(&[22]).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let began = Instant::now();
    assert!(Opening::meet(there, Some(&tls), began + Duration::from_millis(300)).is_err());
    assert!(began.elapsed() < Duration::from_millis(1_500));
    drip.join().unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let ours = Authority::new();
    let (certificate, key) = ours.certify(Tls::NAME);
    let (_, other) = ours.certify(Tls::NAME);
    for (certificate, key, ca, what) in [
        ("nothing", key.as_str(), ours.pem.as_str(), "the certificate"),
        (&certificate, "nothing", &ours.pem, "the private key"),
        (&certificate, &key, "nothing", "the CA"),
        (&certificate, &other, &ours.pem, "the certificate"),
    ] {
        let made = Tls::new(certificate.as_bytes(), key.as_bytes(), ca.as_bytes());
        let error = made.err().unwrap();
        assert!(!error.is_temporary() && error.to_string().contains(what), "{error}");
    }
}
