use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::tls_tests::Authority;
use super::*;

/// Where the processes of a test, which are threads, find each other.
struct Town {
    folder: TempDir,
    ports: Arc<Mutex<Vec<Option<u16>>>>,
}

fn now_us() -> i64 {
    static CLOCK: AtomicI64 = AtomicI64::new(1_000);
    CLOCK.fetch_add(1, SeqCst)
}

impl Town {
    fn new(n_processes: usize) -> Self {
        let town = Self {
            folder: tempfile::tempdir().unwrap(),
            ports: Arc::new(Mutex::new(vec![None; n_processes])),
        };
        write_hosts(&town.folder.path().join("hosts"), &town.ports.lock().unwrap());
        town
    }

    fn seat(&self, index: usize) -> Seat {
        let (path, ports) = (self.folder.path().join("hosts"), self.ports.clone());
        let n_processes = ports.lock().unwrap().len();
        Seat {
            index,
            n_processes,
            hosts: Hosts::File(path.clone()),
            listen: "127.0.0.1:0".to_owned(),
            key: Key::new(b"a key of the tests").unwrap(),
            tls: None,
            build: [1; 32],
            job: [2; 32],
            rendezvous: Duration::from_secs(30),
            now_us,
            listening: Box::new(move |address| {
                let mut ports = ports.lock().unwrap();
                ports[index] = Some(address.port());
                write_hosts(&path, &ports);
            }),
        }
    }

    fn port(&self, index: usize) -> u16 {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(port) = self.ports.lock().unwrap()[index] {
                return port;
            }
            assert!(Instant::now() < end, "process {index} does not listen");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn write_hosts(path: &std::path::Path, ports: &[Option<u16>]) {
    let line = |port: &Option<u16>| match port {
        Some(port) => format!("127.0.0.1:{port}\n"),
        None => "-\n".to_owned(),
    };
    let aside = path.with_extension(format!("{:?}", thread::current().id()));
    std::fs::write(&aside, ports.iter().map(line).collect::<String>()).unwrap();
    std::fs::rename(aside, path).unwrap();
}

type Formed = Result<Mesh, ClusterError>;

fn form(seat: Seat) -> JoinHandle<Formed> {
    thread::spawn(move || seat.form())
}

fn joined(threads: Vec<JoinHandle<Formed>>) -> Vec<Mesh> {
    threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
}

/// Sends the index of each process to each other one, and looks at what arrives.
fn check(meshes: &mut [Mesh]) {
    let epoch = meshes[0].epoch;
    for (index, mesh) in meshes.iter_mut().enumerate() {
        assert_eq!(mesh.epoch, epoch);
        for (peer, link) in mesh.links.iter_mut().enumerate() {
            assert_eq!(link.is_none(), peer == index);
            link.iter_mut().for_each(|link| link.write_all(&[index as u8]).unwrap());
        }
    }
    for mesh in meshes {
        for (peer, link) in mesh.links.iter_mut().enumerate() {
            let mut told = [77];
            link.iter_mut().for_each(|link| link.read_exact(&mut told).unwrap());
            assert!(link.is_none() || told == [peer as u8]);
        }
    }
}

#[test]
fn processes_form_in_any_order_of_coming() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let town = Town::new(4);
        let mut threads: Vec<Option<JoinHandle<Formed>>> = (0..4).map(|_| None).collect();
        for index in order {
            threads[index] = Some(form(town.seat(index)));
            thread::sleep(Duration::from_millis(60));
        }
        check(&mut joined(threads.into_iter().flatten().collect()));
    }
}

#[test]
fn who_leaves_and_comes_again_finds_a_new_epoch() {
    let town = Town::new(3);
    let first = form(town.seat(0));
    let second = form(town.seat(1));
    // Process 2 comes, and is gone before the others know what to make of it.
    let leaving = Seat { rendezvous: Duration::from_millis(1), ..town.seat(2) };
    town.port(0);
    thread::sleep(Duration::from_millis(200));
    let _ = form(leaving).join().unwrap();
    let mut meshes = joined(vec![first, second, form(town.seat(2))]);
    check(&mut meshes);
    // All of them can form again, for another run.
    drop(meshes);
    let again = (0..3).map(|index| form(town.seat(index))).collect();
    check(&mut joined(again));
}

#[test]
fn the_deadline_names_who_is_missing() {
    let town = Town::new(3);
    let soon = Duration::from_millis(700);
    let first = form(Seat { rendezvous: soon, ..town.seat(0) });
    let second = form(Seat { rendezvous: soon, ..town.seat(1) });
    let error = first.join().unwrap().err().unwrap();
    assert!(
        error.is_temporary() && error.to_string().contains("process 2 has not come"),
        "{error}"
    );
    let error = second.join().unwrap().err().unwrap();
    assert!(error.to_string().contains("process 2 has not come"), "{error}");

    let town = Town::new(3);
    let error = Seat { rendezvous: soon, ..town.seat(2) }.form().err().unwrap().to_string();
    assert!(error.contains("process 0 is not reached") && error.contains("no line 1"), "{error}");
}

#[test]
fn a_second_process_of_the_same_index_does_not_get_in() {
    let town = Town::new(3);
    let first = form(town.seat(0));
    let second = form(town.seat(1));
    thread::sleep(Duration::from_millis(300));
    let twin = Seat { rendezvous: Duration::from_millis(500), ..town.seat(1) };
    let error = form(Seat { listening: Box::new(|_| ()), ..twin }).join().unwrap().err().unwrap();
    assert!(error.to_string().contains("of this index already"), "{error}");
    check(&mut joined(vec![first, second, form(town.seat(2))]));
}

#[test]
fn strangers_and_other_jobs_stay_outside() {
    let town = Town::new(2);
    let first = form(town.seat(0));
    let soon = Duration::from_millis(300);
    let other_key = Seat { key: Key::new(&[250; 32]).unwrap(), rendezvous: soon, ..town.seat(1) };
    let error = form(other_key).join().unwrap().err().unwrap();
    assert!(error.is_temporary(), "{error}");
    for (what, seat) in [
        ("build", Seat { build: [7; 32], ..town.seat(1) }),
        ("job", Seat { job: [7; 32], ..town.seat(1) }),
        ("number of processes", Seat { n_processes: 3, ..town.seat(1) }),
    ] {
        let error = form(seat).join().unwrap().err().unwrap();
        assert!(!error.is_temporary() && error.to_string().contains(what), "{error}");
    }
    check(&mut joined(vec![first, form(town.seat(1))]));
}

#[test]
fn ten_thousand_connections_of_strangers_change_nothing() {
    let town = Town::new(2);
    let first = form(Seat { rendezvous: Duration::from_secs(120), ..town.seat(0) });
    let port = town.port(0);
    // More silent ones than are met at a time; they stay to the end.
    let connect = || TcpStream::connect(("127.0.0.1", port));
    let silent: Vec<TcpStream> = (0..80).filter_map(|_| connect().ok()).collect();
    let mut state = 88_172_645_463_325_252u64;
    for number in 0..10_000 {
        let Ok(mut stream) = connect() else { continue };
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut bytes = state.to_le_bytes().repeat(state as usize % 40);
        if number % 3 == 0 {
            // As a process of the cluster begins.
            bytes
                .splice(0..0, *b"TIDEML\0\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00");
        }
        // It may be cut off in the middle.
        let _ = stream.write_all(&bytes);
    }
    check(&mut joined(vec![first, form(town.seat(1))]));
    drop(silent);
}

type Watched = (Watch, Arc<Mutex<Vec<Lost>>>, Arc<Pulse>);

fn watched(town: &Town, limits: Limits) -> Vec<Watched> {
    let meshes = joined((0..3).map(|index| form(town.seat(index))).collect());
    let watch = |mesh: Mesh| {
        let (lost, pulse) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Pulse::default()));
        let heard = lost.clone();
        let told = move |reason| heard.lock().unwrap().push(reason);
        (mesh.watch(pulse.clone(), limits, told).unwrap().1, lost, pulse)
    };
    meshes.into_iter().map(watch).collect()
}

fn wait_for(lost: &Mutex<Vec<Lost>>) -> Lost {
    let end = Instant::now() + Duration::from_secs(10);
    while lost.lock().unwrap().is_empty() {
        assert!(Instant::now() < end, "nobody noticed");
        thread::sleep(Duration::from_millis(5));
    }
    lost.lock().unwrap()[0].clone()
}

#[test]
fn a_stuck_run_is_noticed_and_goodbyes_are_no_loss() {
    let millis = Duration::from_millis;
    let limits = Limits { beat: millis(20), silence: millis(5_000), stall: millis(400) };
    let mut watched = watched(&Town::new(3), limits);
    // Work of any process keeps the run alive.
    for _ in 0..8 {
        watched[2].2.advance(1);
        thread::sleep(millis(100));
    }
    assert!(watched.iter().all(|(_, lost, _)| lost.lock().unwrap().is_empty()));
    let reason = wait_for(&watched[0].1);
    assert!(matches!(reason, Lost::Stuck { .. }), "{reason:?}");
    while let Some((watch, lost, _)) = watched.pop() {
        drop(watch);
        assert!(watched.is_empty() || lost.lock().unwrap().is_empty());
    }
}

#[test]
fn silence_is_noticed() {
    let (seconds, millis) = (Duration::from_secs, Duration::from_millis);
    let town = Town::new(2);
    let mut meshes = joined((0..2).map(|index| form(town.seat(index))).collect());
    // Its connections stay open and it says nothing, as a process that was stopped.
    let _stopped = meshes.pop();
    let lost = Arc::new(Mutex::new(Vec::new()));
    let heard = lost.clone();
    let limits = Limits { beat: millis(50), silence: seconds(1), stall: seconds(60) };
    let told = move |reason| heard.lock().unwrap().push(reason);
    let watch = meshes.pop().unwrap().watch(Arc::new(Pulse::default()), limits, told).unwrap();
    assert_eq!(wait_for(&lost), Lost::Silent { index: 1, seconds: 1 });
    drop(watch);
}

#[test]
fn processes_form_and_part_through_tls() {
    let (town, tls) = (Town::new(3), Authority::new().member());
    let seat = |index| Seat { tls: Some(tls.clone()), ..town.seat(index) };
    let mut meshes = joined((0..3).map(|index| form(seat(index))).collect());
    check(&mut meshes);
    let limits = Limits { beat: Duration::from_millis(5), ..Limits::default() };
    let lost = Arc::new(Mutex::new(Vec::new()));
    let watch = |mesh: Mesh| {
        let lost = lost.clone();
        let told = move |reason| lost.lock().unwrap().push(reason);
        mesh.watch(Arc::new(Pulse::default()), limits, told).unwrap()
    };
    let watches: Vec<_> = meshes.into_iter().map(watch).collect();
    thread::sleep(Duration::from_millis(50));
    for (links, watch) in watches {
        drop(links);
        drop(watch);
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(*lost.lock().unwrap(), []);
}

#[test]
fn a_process_without_tls_does_not_get_in_and_both_say_why() {
    let tls = Authority::new().member();
    for (first, second, words) in [
        (Some(&tls), None, ["does not speak TLS", "speaks TLS, and this process"]),
        (None, Some(&tls), ["speaks TLS, and this process", "TLS"]),
    ] {
        let town = Town::new(2);
        let seat = |index, tls: Option<&Tls>| Seat {
            tls: tls.cloned(),
            rendezvous: Duration::from_millis(700),
            ..town.seat(index)
        };
        let threads = [form(seat(0, first)), form(seat(1, second))];
        for (thread, word) in threads.into_iter().zip(words) {
            let error = thread.join().unwrap().err().unwrap();
            assert!(error.is_temporary() && error.to_string().contains(word), "{error}");
        }
    }
}
