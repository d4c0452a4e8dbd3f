//! Heartbeats: a process that is gone, silent or stuck ends the run instead of stopping it for ever.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::mesh::{Control, Controls, Event};
use super::messages::Message;

/// How far a process is; shared by its stages and its watch.
#[derive(Debug, Default)]
pub struct Pulse {
    stage: AtomicU64,
    progress: AtomicU64,
}

impl Pulse {
    /// A stage has ended.
    pub fn end_stage(&self) {
        self.stage.fetch_add(1, SeqCst);
    }

    /// So many units of work more are done.
    pub fn advance(&self, units: u64) {
        self.progress.fetch_add(units, SeqCst);
    }

    fn now(&self) -> (u64, u64) {
        (self.stage.load(SeqCst), self.progress.load(SeqCst))
    }
}

/// When a watch gives up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Between two heartbeats.
    pub beat: Duration,
    /// A peer that has not been heard of for this long is lost.
    pub silence: Duration,
    /// A run in which no process has done a unit of work for this long is stuck.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { beat: seconds(1), silence: seconds(30), stall: seconds(3600) }
    }
}

/// Why a run cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The connection of a process has ended, and it did not say goodbye.
    #[error("process {index} is gone")]
    Gone {
        /// Which.
        index: usize,
    },
    /// A process does not answer.
    #[error("process {index} has been silent for {seconds} s")]
    Silent {
        /// Which.
        index: usize,
        /// For how long.
        seconds: u64,
    },
    /// Nothing moves.
    #[error("no process has made progress for {seconds} s, after {stages} stages")]
    Stuck {
        /// For how long.
        seconds: u64,
        /// Stages that have ended.
        stages: u64,
    },
}

type Peers = Arc<Mutex<Vec<Option<Control>>>>;

/// Watches over the processes of a run until it is dropped.
pub struct Watch {
    peers: Peers,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Begins to send heartbeats and to wait for them. `lost` is called once, on a thread of its own,
    /// and should end the process: whatever it was doing waits for a peer that will not come.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(super) fn start(
        controls: Controls,
        pulse: Arc<Pulse>,
        limits: Limits,
        lost: impl FnOnce(Lost) + Send + 'static,
    ) -> std::io::Result<Self> {
        let Controls { index, peers, events } = controls;
        let (now, is_over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let known = |(peer, control): (usize, &Option<Control>)| {
            control
                .as_ref()
                .map(|control| (peer, Peer { serial: control.serial, heard: now, at: (0, 0) }))
        };
        let watched = peers.iter().enumerate().filter_map(known).collect();
        let peers: Peers = Arc::new(Mutex::new(peers));
        let beats = {
            let (peers, pulse, is_over) = (peers.clone(), pulse.clone(), is_over.clone());
            move || {
                while !is_over.load(SeqCst) {
                    let (stage, progress) = pulse.now();
                    tell_all(&peers, Message::Beat { stage, progress });
                    thread::park_timeout(limits.beat);
                }
            }
        };
        let guard = Guard { index, watched, pulse, limits, is_over: is_over.clone() };
        let guarded = move || {
            if let Some(reason) = guard.run(&events) {
                lost(reason);
            }
        };
        let spawn = |name: &str| thread::Builder::new().name(format!("cluster:{name}"));
        let threads = vec![spawn("beat").spawn(beats)?, spawn("watch").spawn(guarded)?];
        Ok(Self { peers, is_over, threads })
    }
}

impl Drop for Watch {
    /// Says goodbye: from here on it means nothing that a connection ends.
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        tell_all(&self.peers, Message::Bye);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // They do not panic, and if they did there would be nothing to do about it.
            let _ = thread.join();
        }
    }
}

/// Who cannot be told is noticed by its silence, or by the end of its connection.
fn tell_all(peers: &Peers, message: Message) {
    let mut peers = peers.lock().expect("no thread panics with the lock");
    for control in peers.iter_mut().flatten() {
        let _ = message.send(&mut control.link);
    }
}

struct Peer {
    serial: u64,
    heard: Instant,
    at: (u64, u64),
}

/// What the watching thread knows.
struct Guard {
    index: usize,
    watched: BTreeMap<usize, Peer>,
    pulse: Arc<Pulse>,
    limits: Limits,
    is_over: Arc<AtomicBool>,
}

impl Guard {
    /// Watches until the run is over, or until it cannot go on.
    fn run(mut self, events: &Receiver<Event>) -> Option<Lost> {
        let tick = self.limits.beat.min(Duration::from_millis(100));
        let (mut moved, mut sum) = (Instant::now(), (0, 0));
        while !self.is_over.load(SeqCst) {
            match events.recv_timeout(tick) {
                Ok(event) => {
                    if let Some(index) = self.take(event) {
                        return self.unless_over(Lost::Gone { index });
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(tick),
            }
            if let Some(silent) = self.silent() {
                return self.unless_over(silent);
            }
            let now = self.sum();
            if now != sum {
                (moved, sum) = (Instant::now(), now);
            }
            // Process 0 hears of everybody.
            if self.index == 0 && moved.elapsed() > self.limits.stall {
                let seconds = self.limits.stall.as_secs();
                return self.unless_over(Lost::Stuck { seconds, stages: self.pulse.now().0 });
            }
        }
        None
    }

    fn unless_over(&self, lost: Lost) -> Option<Lost> {
        (!self.is_over.load(SeqCst)).then_some(lost)
    }

    /// The process whose connection has ended.
    fn take(&mut self, event: Event) -> Option<usize> {
        match event {
            Event::Said { peer, serial, message } => {
                let known = self.watched.get_mut(&peer).filter(|known| known.serial == serial)?;
                known.heard = Instant::now();
                match message {
                    Message::Beat { stage, progress } => known.at = (stage, progress),
                    Message::Bye => drop(self.watched.remove(&peer)),
                    _ => {}
                }
                None
            }
            Event::Gone { peer, serial } => {
                self.watched.get(&peer).filter(|known| known.serial == serial).map(|_| peer)
            }
            Event::Data { .. } | Event::Joined { .. } => None,
        }
    }

    fn silent(&self) -> Option<Lost> {
        let is_silent = |peer: &&Peer| peer.heard.elapsed() > self.limits.silence;
        let (&index, peer) = self.watched.iter().find(|(_, peer)| is_silent(peer))?;
        Some(Lost::Silent { index, seconds: peer.heard.elapsed().as_secs() })
    }

    /// Work of all processes that this one hears of, and of itself.
    fn sum(&self) -> (u64, u64) {
        let peers = self.watched.values().map(|peer| peer.at).chain([self.pulse.now()]);
        peers.fold((0, 0), |sum, at| (sum.0 + at.0, sum.1.wrapping_add(at.1)))
    }
}

impl super::Mesh {
    /// Hands the control connections to a watch; the links remain for the run.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn watch(
        self,
        pulse: Arc<Pulse>,
        limits: Limits,
        lost: impl FnOnce(Lost) + Send + 'static,
    ) -> Result<(Vec<Option<super::Link>>, Watch), super::ClusterError> {
        let watch = Watch::start(self.controls, pulse, limits, lost);
        Ok((self.links, watch.map_err(super::ClusterError::System)?))
    }
}
