//! Starts the processes of a run, and starts them again when one of them is lost.
//!
//! What a run computes lives in its checkpoints, not in its processes: when one is gone, the others end
//! as well, and all begin anew under another epoch from the last checkpoint.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::parent::{Word, words};

/// How patient a supervisor is.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Restarts in a row that bring a run no further.
    pub restarts_max: u32,
    /// Pause before the first restart; the next ones take up to ten times as long.
    pub pause: Duration,
    /// For the other processes to end by themselves once one has.
    pub grace: Duration,
    /// A process that says nothing for this long is killed.
    pub silence: Duration,
    /// Exit codes that another start cannot mend.
    pub is_final: fn(u8) -> bool,
    /// Where the addresses of local processes are written, line i for process i.
    pub hosts_file: Option<PathBuf>,
}

/// How a run under supervision ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All processes ended well.
    Done,
    /// A process ended with this code, and another start would end alike.
    Ended(u8),
    /// The cluster did not form in time.
    Unformed(u8),
    /// Processes were lost too often; what became of the last ones.
    GivenUp(String),
    /// This process was told to stop, by this signal.
    Stopped(i32),
}

/// Runs processes until they are done, starting them again where one was lost. `command(i, restart)`
/// makes the command of the i-th process of this supervisor for the n-th restart; `told` is told each
/// time why it begins anew.
///
/// # Errors
/// When a process cannot be started at all.
pub fn supervise(
    n_processes: usize,
    policy: &Policy,
    command: impl Fn(usize, u32) -> Command,
    mut told: impl FnMut(&str),
) -> io::Result<Verdict> {
    let signal = Arc::new(AtomicUsize::new(0));
    for stop in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register_usize(stop, signal.clone(), stop as usize)?;
    }
    let (mut restart, mut in_vain, mut reached) = (0, 0, 0);
    loop {
        let commands = (0..n_processes).map(|process| command(process, restart));
        let mut set = Set::start(commands, policy)?;
        let ended = set.wait(&signal);
        let verdict = match ended {
            Ended::Signal(signal) => return Ok(Verdict::Stopped(signal)),
            Ended::All(statuses) => judge(&statuses, policy, set.is_formed),
        };
        let reason = match verdict {
            Judged::Is(verdict) => return Ok(verdict),
            Judged::Lost(reason) => reason,
        };
        in_vain = if set.reached > reached { 1 } else { in_vain + 1 };
        reached = reached.max(set.reached);
        if in_vain > policy.restarts_max {
            return Ok(Verdict::GivenUp(reason));
        }
        restart += 1;
        told(&format!(
            "{reason}; starting again from the last checkpoint ({in_vain} of {})",
            policy.restarts_max
        ));
        let pause = Instant::now() + policy.pause * in_vain.min(10);
        while Instant::now() < pause {
            if signal.load(SeqCst) != 0 {
                return Ok(Verdict::Stopped(signal.load(SeqCst) as i32));
            }
            thread::sleep(policy.pause.min(TICK));
        }
    }
}

const TICK: Duration = Duration::from_millis(20);

/// For what a process said just before it ended to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);

enum Judged {
    Is(Verdict),
    Lost(String),
}

/// What the ends of all processes mean. A cause that stays comes before one that passes.
fn judge(statuses: &[ExitStatus], policy: &Policy, is_formed: bool) -> Judged {
    let codes = || statuses.iter().filter_map(|status| status.code()).map(|code| code as u8);
    if let Some(code) = codes().find(|&code| (policy.is_final)(code)) {
        return Judged::Is(Verdict::Ended(code));
    }
    let Some((process, status)) = statuses.iter().enumerate().find(|(_, status)| is_cause(status))
    else {
        let failed = codes().find(|&code| code != 0);
        return match failed {
            None => Judged::Is(Verdict::Done),
            Some(code) if !is_formed => Judged::Is(Verdict::Unformed(code)),
            Some(code) => Judged::Lost(format!("the processes ended with code {code}")),
        };
    };
    let how = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (_, code) => format!("ended with code {}", code.unwrap_or_default()),
    };
    match statuses.len() {
        1 => Judged::Lost(format!("the process {how}")),
        _ => Judged::Lost(format!("process {process} {how}")),
    }
}

/// An end that is not "I lost a peer" or "try again later".
fn is_cause(status: &ExitStatus) -> bool {
    status.signal().is_some() || !matches!(status.code(), Some(0 | 75))
}

/// The processes of one epoch.
struct Set {
    children: Vec<Supervised>,
    words: Receiver<(usize, Word)>,
    hosts: Hosts,
    grace: Duration,
    silence: Duration,
    is_formed: bool,
    reached: u64,
}

struct Supervised {
    child: Child,
    heard: Instant,
    status: Option<ExitStatus>,
    /// Held open: its end tells the process that its supervisor is gone.
    _line: UnixStream,
}

enum Ended {
    All(Vec<ExitStatus>),
    Signal(i32),
}

impl Set {
    fn start(commands: impl Iterator<Item = Command>, policy: &Policy) -> io::Result<Self> {
        let (sender, words) = channel();
        let mut children = Vec::new();
        for (process, command) in commands.enumerate() {
            match start(process, command, &sender) {
                Ok(child) => children.push(child),
                Err(error) => {
                    kill(&mut children);
                    return Err(error);
                }
            }
        }
        let hosts = Hosts { file: policy.hosts_file.clone(), ports: vec![None; children.len()] };
        hosts.write()?;
        let (grace, silence) = (policy.grace, policy.silence);
        Ok(Self { children, words, hosts, grace, silence, is_formed: false, reached: 0 })
    }

    /// Waits for all of them; once one has failed, the others have a while to notice.
    fn wait(&mut self, signal: &AtomicUsize) -> Ended {
        let mut patience: Option<Instant> = None;
        loop {
            self.listen();
            for supervised in self.children.iter_mut().filter(|child| child.status.is_none()) {
                // An error means that the process is not ours any more, which cannot be.
                supervised.status = supervised.child.try_wait().expect("a child can be waited for");
            }
            let statuses: Vec<_> = self.children.iter().filter_map(|child| child.status).collect();
            if statuses.len() == self.children.len() {
                self.hear_out();
                return Ended::All(statuses);
            }
            if statuses.iter().any(|status| !status.success()) {
                patience.get_or_insert_with(|| Instant::now() + self.grace);
            }
            let silent =
                |child: &Supervised| child.status.is_none() && child.heard.elapsed() > self.silence;
            if patience.is_some_and(|until| Instant::now() > until)
                || self.children.iter().any(silent)
            {
                kill(&mut self.children);
            }
            if signal.load(SeqCst) != 0 {
                kill(&mut self.children);
                return Ended::Signal(signal.load(SeqCst) as i32);
            }
            thread::sleep(TICK);
        }
    }

    /// Takes what has been said so far.
    fn listen(&mut self) {
        while let Ok((process, word)) = self.words.try_recv() {
            self.take(process, word);
        }
    }

    /// Takes the last words of processes that have ended. Something that they started may hold their
    /// end of the line open, so not for ever.
    fn hear_out(&mut self) {
        let until = Instant::now() + LAST_WORDS;
        let left = || until.saturating_duration_since(Instant::now());
        while let Ok((process, word)) = self.words.recv_timeout(left()) {
            self.take(process, word);
        }
    }

    fn take(&mut self, process: usize, word: Word) {
        self.children[process].heard = Instant::now();
        match word {
            Word::Listening(port) => {
                self.hosts.ports[process] = Some(port);
                // Whoever reads it before it is whole tries again.
                let _ = self.hosts.write();
            }
            Word::Formed => self.is_formed = true,
            Word::Reached(place) => self.reached = self.reached.max(place),
            Word::Beat => {}
        }
    }
}

fn start(
    process: usize,
    mut command: Command,
    words: &Sender<(usize, Word)>,
) -> io::Result<Supervised> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    // The command holds the other end of the line until it is dropped.
    drop(command);
    let (line, words) = (ours.try_clone()?, words.clone());
    let listen = move || {
        for word in self::words(ours) {
            if words.send((process, word)).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name(format!("cluster:child-{process}")).spawn(listen)?;
    Ok(Supervised { child, heard: Instant::now(), status: None, _line: line })
}

fn kill(children: &mut [Supervised]) {
    for supervised in children.iter_mut().filter(|child| child.status.is_none()) {
        // It may have ended in the meantime.
        let _ = supervised.child.kill();
        supervised.status = supervised.child.wait().ok();
    }
}

/// Where the processes of this machine listen, as they have said so far.
struct Hosts {
    file: Option<PathBuf>,
    ports: Vec<Option<u16>>,
}

impl Hosts {
    /// Written aside and renamed, so that nobody reads half of it.
    fn write(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let line = |port: &Option<u16>| match port {
            Some(port) => format!("127.0.0.1:{port}\n"),
            None => "-\n".to_owned(),
        };
        let aside = file.with_extension("new");
        fs::write(&aside, self.ports.iter().map(line).collect::<String>())?;
        fs::rename(aside, file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            restarts_max: 2,
            pause: Duration::from_millis(1),
            grace: Duration::from_millis(200),
            silence: Duration::from_secs(60),
            is_final: |code| code == 65,
            hosts_file: None,
        }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn verdict(
        n_processes: usize,
        script: impl Fn(usize, u32) -> String,
    ) -> (Verdict, Vec<String>) {
        let mut reasons = Vec::new();
        let told = |reason: &str| reasons.push(reason.to_owned());
        let command = |process, restart| shell(&script(process, restart));
        let verdict = supervise(n_processes, &policy(), command, told).unwrap();
        (verdict, reasons)
    }

    #[test]
    fn a_lost_process_starts_all_again() {
        let (verdict, reasons) = verdict(3, |process, restart| match (process, restart) {
            (1, 0) => "kill -9 $$".to_owned(),
            (_, 0) => "sleep 0.05; exit 75".to_owned(),
            _ => "exit 0".to_owned(),
        });
        assert_eq!(verdict, Verdict::Done);
        assert_eq!(reasons.len(), 1);
        assert!(reasons[0].starts_with("process 1 was killed by signal 9"), "{reasons:?}");
    }

    #[test]
    fn codes_that_stay_end_it_and_others_end_it_after_a_while() {
        let (ended, reasons) = verdict(2, |process, _| format!("exit {}", [75, 65][process]));
        assert_eq!((ended, reasons.len()), (Verdict::Ended(65), 0));
        let (given_up, reasons) = verdict(1, |_, _| "exit 70".to_owned());
        assert_eq!(given_up, Verdict::GivenUp("the process ended with code 70".to_owned()));
        assert_eq!(reasons.len(), 2);
        let (unformed, _) = verdict(2, |_, _| "exit 75".to_owned());
        assert_eq!(unformed, Verdict::Unformed(75));
    }

    #[test]
    fn progress_renews_the_patience() {
        let (done, reasons) = verdict(1, |_, restart| match restart {
            6 => "exit 0".to_owned(),
            n => format!("echo formed >&0; echo reached {n} >&0; kill -9 $$"),
        });
        assert_eq!((done, reasons.len()), (Verdict::Done, 6));
    }

    #[test]
    fn whoever_does_not_notice_is_killed() {
        let (done, reasons) = verdict(2, |process, restart| match (process, restart) {
            (0, 0) => "kill -9 $$".to_owned(),
            (1, 0) => "sleep 100".to_owned(),
            _ => "exit 0".to_owned(),
        });
        assert_eq!((done, reasons.len()), (Verdict::Done, 1));
    }
}
