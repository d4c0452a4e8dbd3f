//! How the processes of a cluster find each other.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::handshake::{Hello, Purpose, Verdict, dial, meet};
use super::link::prepare;
use super::mesh::{Control, Controls, Event};
use super::messages::Message;
use super::tls::Opening;
use super::{ClusterError, Key, Link, Mesh, Seat, Tls};

/// A handshake takes this long at most, whoever is at the other end.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Handshakes under way at a time; one more, and the oldest is cut off. A process of the cluster
/// takes a few milliseconds, so that is never one.
const PENDING_MAX: usize = 64;

/// Between two looks at what has happened.
const TICK: Duration = Duration::from_millis(50);

/// Pauses between attempts to dial.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the threads that meet dialers look at.
struct Door {
    index: usize,
    n_processes: usize,
    build: [u8; 32],
    job: [u8; 32],
    key: Key,
    tls: Option<Tls>,
    /// 0 while it is not known.
    epoch: AtomicU64,
    /// Processes with a control connection to this one.
    taken: Mutex<Vec<bool>>,
    serials: AtomicU64,
    events: Sender<Event>,
    /// Handshakes under way, oldest first.
    pending: Mutex<VecDeque<(u64, TcpStream)>>,
    /// Why the last one was dropped.
    dropped: Mutex<Option<String>>,
}

impl Seat {
    /// Waits until all processes are connected with each other.
    ///
    /// Can be called again, for another run: everybody has to.
    ///
    /// # Errors
    /// [`ClusterError`]; the deadline is the usual one.
    ///
    /// # Panics
    /// If `index` is not below `n_processes`.
    pub fn form(&self) -> Result<Mesh, ClusterError> {
        assert!(self.index < self.n_processes, "a process is one of all");
        let deadline = Instant::now() + self.rendezvous;
        let (sender, events) = channel();
        let door = Arc::new(Door {
            index: self.index,
            n_processes: self.n_processes,
            build: self.build,
            job: self.job,
            key: self.key.clone(),
            tls: self.tls.clone(),
            epoch: AtomicU64::new(0),
            taken: Mutex::new(vec![false; self.n_processes]),
            serials: AtomicU64::new(1),
            events: sender,
            pending: Mutex::default(),
            dropped: Mutex::default(),
        });
        let _acceptor = self.open(&door)?;
        let forming = Forming {
            seat: self,
            door,
            events,
            links: (0..self.n_processes).map(|_| None).collect(),
            controls: (0..self.n_processes).map(|_| None).collect(),
            ready: vec![false; self.n_processes],
            dialing: (0..self.index).map(|_| Dialing::default()).collect(),
            said_ready: false,
        };
        forming.run(deadline)
    }

    fn open(&self, door: &Arc<Door>) -> Result<Acceptor, ClusterError> {
        let refused = |source| ClusterError::Listen { address: self.listen.clone(), source };
        let listen = || self.listen.parse().map_err(io::Error::other).and_then(listen_at);
        // A process that was started again may find its port in use by the one before for a moment.
        let mut bound = listen();
        for _ in 0..50 {
            match &bound {
                Err(error) if error.kind() == ErrorKind::AddrInUse => thread::sleep(TICK),
                _ => break,
            }
            bound = listen();
        }
        let listener = bound.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let acceptor = Acceptor::start(listener, door.clone()).map_err(ClusterError::System)?;
        (self.listening)(address);
        Ok(acceptor)
    }

    fn hello(&self, to: usize, purpose: Purpose, epoch: u64) -> Hello {
        Hello {
            purpose,
            from: self.index as u32,
            to: to as u32,
            n_processes: self.n_processes as u32,
            epoch,
            build: self.build,
            job: self.job,
        }
    }

    /// Dials a process once; the epoch that it named.
    fn dial(&self, to: usize, purpose: Purpose, epoch: u64) -> Result<(Link, u64), Undialed> {
        let problem = |error: &dyn std::fmt::Display| Undialed::Later(error.to_string());
        let addresses = self.hosts.resolve(to).map_err(Undialed::Later)?;
        let mut last = Undialed::Later(String::new());
        for address in addresses {
            let stream = match TcpStream::connect_timeout(&address, HANDSHAKE) {
                Ok(stream) => stream,
                Err(error) => {
                    last = Undialed::Later(format!("{address}: {error}"));
                    continue;
                }
            };
            prepare(&stream).map_err(|error| problem(&error))?;
            let hello = self.hello(to, purpose, epoch);
            let later = |what: &str| Undialed::Later(format!("{address} {what}"));
            let opened = Opening::dial(stream, self.tls.as_ref(), Instant::now() + HANDSHAKE);
            let mut opening = match opened {
                Ok(opening) => opening,
                Err(error) => {
                    last = later(&reason(&error));
                    continue;
                }
            };
            last = match dial(&mut opening, &self.key, &hello) {
                Ok(Verdict::Welcome { epoch }) => {
                    return Ok((opening.link().map_err(|error| problem(&error))?, epoch));
                }
                Ok(Verdict::OtherBuild) => Undialed::Never("build"),
                Ok(Verdict::OtherJob) => Undialed::Never("job"),
                Ok(Verdict::OtherSize) => Undialed::Never("number of processes"),
                Ok(Verdict::WrongSeat) => later("is another process of the cluster"),
                Ok(Verdict::Taken) => later("has a process of this index already"),
                Ok(Verdict::NotYet) => later("does not expect this process yet"),
                Err(error) => later(&reason(&error)),
            };
            if let Undialed::Never(_) = last {
                break;
            }
        }
        Err(last)
    }
}

/// Why a handshake failed, as what the other end does.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::InvalidData => error.to_string(),
        _ => format!("broke off: {error}"),
    }
}

/// A listener that holds more connections than usual until they are met: a flood of strangers should
/// not make a process of the cluster wait for its packets to be sent again.
fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    const WAITING_MAX: i32 = 1_024;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(WAITING_MAX)?;
    Ok(socket.into())
}

/// Why a process was not reached.
enum Undialed {
    /// It may be, later.
    Later(String),
    /// It runs another of these.
    Never(&'static str),
}

/// Takes connections until it is dropped.
struct Acceptor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    fn start(listener: TcpListener, door: Arc<Door>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let accept = move || {
            while !stopped.load(SeqCst) {
                match listener.accept() {
                    Ok((stream, _)) => door.receive(stream),
                    // Nobody is there, or somebody was who went away again.
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        };
        let thread = thread::Builder::new().name("cluster:accept".to_owned()).spawn(accept)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            // It does not panic, and if it did there would be nothing to do about it.
            let _ = thread.join();
        }
    }
}

impl Door {
    fn taken(&self) -> MutexGuard<'_, Vec<bool>> {
        self.taken.lock().expect("no thread panics with the lock")
    }

    fn pending(&self) -> MutexGuard<'_, VecDeque<(u64, TcpStream)>> {
        self.pending.lock().expect("no thread panics with the lock")
    }

    fn dropped(&self) -> MutexGuard<'_, Option<String>> {
        self.dropped.lock().expect("no thread panics with the lock")
    }

    /// Lets a thread find out who is there.
    fn receive(self: &Arc<Self>, stream: TcpStream) {
        let (door, number) = (self.clone(), self.serials.fetch_add(1, SeqCst));
        let Ok(handle) = stream.try_clone() else { return };
        let mut pending = self.pending();
        pending.push_back((number, handle));
        if pending.len() > PENDING_MAX
            && let Some((_, oldest)) = pending.pop_front()
        {
            let _ = oldest.shutdown(Shutdown::Both);
        }
        drop(pending);
        let greet = move || {
            if let Err(error) = door.greet(stream) {
                tracing::debug!(%error, "a connection was dropped");
                // Whoever just goes away again is nobody in particular.
                if error.kind() == ErrorKind::InvalidData {
                    *door.dropped() = Some(error.to_string());
                }
            }
            door.pending().retain(|(other, _)| *other != number);
        };
        // Without a thread the connection is dropped, and a process of the cluster comes again.
        if thread::Builder::new().name("cluster:greet".to_owned()).spawn(greet).is_err() {
            self.pending().retain(|(other, _)| *other != number);
        }
    }

    fn greet(self: &Arc<Self>, stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        prepare(&stream)?;
        let mut seated = None;
        let mut opening = Opening::meet(stream, self.tls.as_ref(), Instant::now() + HANDSHAKE)?;
        let met = meet(&mut opening, &self.key, |hello| self.judge(hello, &mut seated));
        let met = met.and_then(|met| opening.link().map(|link| (met, link)));
        let ((hello, verdict), link) = met.inspect_err(|_| {
            if let Some(peer) = seated {
                self.taken()[peer] = false;
            }
        })?;
        let from = hello.from as usize;
        let Verdict::Welcome { epoch } = verdict else {
            if matches!(verdict, Verdict::OtherBuild | Verdict::OtherJob | Verdict::OtherSize) {
                tracing::warn!(process = from, ?verdict, "a process was turned away");
            }
            return Ok(());
        };
        // Nobody listens any more once the cluster has formed or given up.
        match hello.purpose {
            Purpose::Data => drop(self.events.send(Event::Data { from, epoch, link })),
            Purpose::Control => {
                let (control, reader) = self.control(link)?;
                let serial = control.serial;
                // Its end must not be told before its beginning.
                drop(self.events.send(Event::Joined { peer: from, control, epoch }));
                self.listen_to(from, serial, reader)?;
            }
        }
        Ok(())
    }

    fn judge(&self, hello: &Hello, seated: &mut Option<usize>) -> Verdict {
        let (from, epoch) = (hello.from as usize, self.epoch.load(SeqCst));
        if hello.build != self.build {
            return Verdict::OtherBuild;
        }
        if hello.n_processes as usize != self.n_processes {
            return Verdict::OtherSize;
        }
        if hello.job != self.job {
            return Verdict::OtherJob;
        }
        // Everybody dials whoever has a lower index, and only process 0 has control connections.
        let is_expected = from > self.index && from < self.n_processes;
        let is_here = hello.to as usize == self.index;
        if !is_expected || !is_here || (hello.purpose == Purpose::Control && self.index > 0) {
            return Verdict::WrongSeat;
        }
        match hello.purpose {
            Purpose::Data if epoch == 0 || hello.epoch != epoch => Verdict::NotYet,
            Purpose::Data => Verdict::Welcome { epoch },
            Purpose::Control => {
                let mut taken = self.taken();
                if taken[from] {
                    return Verdict::Taken;
                }
                taken[from] = true;
                *seated = Some(from);
                Verdict::Welcome { epoch }
            }
        }
    }

    /// The writing and the reading end of a control connection.
    fn control(&self, link: Link) -> io::Result<(Control, Link)> {
        let (serial, reader) = (self.serials.fetch_add(1, SeqCst), link.try_clone()?);
        Ok((Control { serial, link }, reader))
    }

    /// Starts to read a control connection.
    fn listen_to(&self, peer: usize, serial: u64, mut reader: Link) -> io::Result<()> {
        let events = self.events.clone();
        let listen = move || {
            while let Ok(message) = Message::receive(&mut reader) {
                if events.send(Event::Said { peer, serial, message }).is_err() {
                    return;
                }
            }
            let _ = events.send(Event::Gone { peer, serial });
        };
        thread::Builder::new().name(format!("cluster:control-{peer}")).spawn(listen).map(drop)
    }
}

/// Attempts to dial one process.
#[derive(Default)]
struct Dialing {
    next: Option<Instant>,
    pause: Duration,
    problem: String,
}

impl Dialing {
    fn is_due(&self) -> bool {
        self.next.is_none_or(|next| Instant::now() >= next)
    }

    fn failed(&mut self, problem: String, index: usize) {
        self.problem = problem;
        self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
        // Processes that are started together should not dial together for ever.
        let jitter = self.pause.mul_f64((index % 7) as f64 / 20.0);
        self.next = Some(Instant::now() + self.pause + jitter);
    }
}

/// A cluster on its way to being one, as one process sees it.
struct Forming<'a> {
    seat: &'a Seat,
    door: Arc<Door>,
    events: Receiver<Event>,
    links: Vec<Option<Link>>,
    controls: Vec<Option<Control>>,
    /// As process 0 knows.
    ready: Vec<bool>,
    dialing: Vec<Dialing>,
    said_ready: bool,
}

/// Whether the cluster is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Waiting,
    Formed,
}

impl Forming<'_> {
    fn run(mut self, deadline: Instant) -> Result<Mesh, ClusterError> {
        if self.seat.index == 0 {
            self.renew();
        }
        loop {
            match self.events.recv_timeout(TICK) {
                Ok(event) => {
                    if self.take(event) == Step::Formed {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the door keeps a sender"),
            }
            self.dial_next()?;
            if self.report_ready()? == Step::Formed {
                break;
            }
            if Instant::now() >= deadline {
                let (seconds, missing) = (self.seat.rendezvous.as_secs(), self.missing());
                return Err(ClusterError::Deadline { seconds, missing });
            }
        }
        let epoch = self.epoch();
        let controls =
            Controls { index: self.seat.index, peers: self.controls, events: self.events };
        Ok(Mesh { links: self.links, controls, epoch })
    }

    fn epoch(&self) -> u64 {
        self.door.epoch.load(SeqCst)
    }

    /// Process 0 begins a new epoch, and says so.
    fn renew(&mut self) {
        let epoch = (self.epoch() + 1).max((self.seat.now_us)().max(1) as u64);
        self.enter(epoch);
        for peer in 1..self.controls.len() {
            self.tell(peer, Message::Epoch { epoch });
        }
    }

    /// Links of another epoch are void.
    fn enter(&mut self, epoch: u64) {
        self.door.epoch.store(epoch, SeqCst);
        self.links.iter_mut().for_each(|link| *link = None);
        self.ready.fill(false);
        self.dialing.iter_mut().for_each(|dialing| *dialing = Dialing::default());
        self.said_ready = false;
    }

    /// Whether it was told. Who was not will be gone.
    fn tell(&mut self, peer: usize, message: Message) -> bool {
        self.controls[peer].as_mut().is_some_and(|control| message.send(&mut control.link).is_ok())
    }

    fn take(&mut self, event: Event) -> Step {
        let is_first = self.seat.index == 0;
        match event {
            Event::Data { from, epoch, link } if epoch == self.epoch() => {
                self.links[from] = Some(link);
            }
            Event::Data { .. } => {}
            Event::Joined { peer, control, epoch } => {
                self.controls[peer] = Some(control);
                let current = self.epoch();
                if epoch != current {
                    self.tell(peer, Message::Epoch { epoch: current });
                }
            }
            Event::Said { peer, serial, message } if self.is_current(peer, serial) => match message
            {
                Message::Ready { epoch } if is_first && epoch == self.epoch() => {
                    self.ready[peer] = true;
                }
                Message::Epoch { epoch } if !is_first => self.enter(epoch),
                Message::Go { epoch } if !is_first && epoch == self.epoch() => {
                    return Step::Formed;
                }
                _ => {}
            },
            Event::Said { .. } => {}
            Event::Gone { peer, serial } => self.gone(peer, serial),
        }
        Step::Waiting
    }

    fn is_current(&self, peer: usize, serial: u64) -> bool {
        self.controls[peer].as_ref().is_some_and(|control| control.serial == serial)
    }

    fn gone(&mut self, peer: usize, serial: u64) {
        if !self.is_current(peer, serial) {
            return;
        }
        self.controls[peer] = None;
        match self.seat.index {
            0 => {
                self.door.taken()[peer] = false;
                self.renew();
            }
            // Process 0 will be back, in another epoch.
            _ => self.enter(0),
        }
    }

    /// Dials whoever is missing and due, one per call.
    fn dial_next(&mut self) -> Result<(), ClusterError> {
        let Some(to) = (0..self.seat.index).find(|&to| self.is_wanted(to)) else { return Ok(()) };
        let purpose = match self.controls[0] {
            None => Purpose::Control,
            Some(_) => Purpose::Data,
        };
        match self.seat.dial(to, purpose, self.epoch()) {
            Ok((link, epoch)) if purpose == Purpose::Control => {
                let (control, reader) = self.door.control(link).map_err(ClusterError::System)?;
                let heard = self.door.listen_to(to, control.serial, reader);
                heard.map_err(ClusterError::System)?;
                self.enter(epoch);
                self.controls[to] = Some(control);
            }
            Ok((link, _)) => self.links[to] = Some(link),
            Err(Undialed::Later(problem)) => self.dialing[to].failed(problem, self.seat.index),
            Err(Undialed::Never(what)) => {
                return Err(ClusterError::Mismatch { peer: to, index: self.seat.index, what });
            }
        }
        Ok(())
    }

    /// Process 0 comes first: it knows the epoch.
    fn is_wanted(&self, to: usize) -> bool {
        let is_missing = match self.controls[0] {
            None => to == 0,
            Some(_) => self.links[to].is_none(),
        };
        is_missing && self.dialing[to].is_due()
    }

    /// Says that all links are there, or to begin.
    fn report_ready(&mut self) -> Result<Step, ClusterError> {
        let others = (0..self.seat.n_processes).filter(|&other| other != self.seat.index);
        let (epoch, is_whole) =
            (self.epoch(), others.clone().all(|other| self.links[other].is_some()));
        if !is_whole || epoch == 0 {
            return Ok(Step::Waiting);
        }
        if self.seat.index > 0 {
            if !self.said_ready {
                self.said_ready = self.tell(0, Message::Ready { epoch });
            }
            return Ok(Step::Waiting);
        }
        if !others.clone().all(|other| self.ready[other]) {
            return Ok(Step::Waiting);
        }
        for index in others {
            if !self.tell(index, Message::Go { epoch }) {
                return Err(ClusterError::Left { index });
            }
        }
        Ok(Step::Formed)
    }

    /// What the cluster lacks, as this process sees it.
    fn missing(&self) -> String {
        let mut missing = Vec::new();
        for (to, dialing) in self.dialing.iter().enumerate() {
            if self.links[to].is_none() && !dialing.problem.is_empty() {
                missing.push(format!("process {to} is not reached ({})", dialing.problem));
            }
        }
        for from in self.seat.index + 1..self.seat.n_processes {
            let is_here = self.controls[from].is_some();
            match (self.seat.index, self.links[from].is_some()) {
                (0, _) if !is_here => missing.push(format!("process {from} has not come")),
                (0, _) if !self.ready[from] => {
                    missing.push(format!("process {from} does not reach all others"));
                }
                (1.., false) => missing.push(format!("process {from} has not come")),
                _ => {}
            }
        }
        if missing.is_empty() {
            return "process 0 waits for others".to_owned();
        }
        if let Some(reason) = &*self.door.dropped() {
            missing.push(format!("the last one that was not let in {reason}"));
        }
        missing.join(", ")
    }
}
