//! What a process and the supervisor that started it say to each other: over the process's standard
//! input, which is a socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

/// What a supervised process tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It listens at this port.
    Listening(u16),
    /// The cluster is formed.
    Formed,
    /// So far has the run come; a larger number than ever before is progress.
    Reached(u64),
    /// Still there.
    Beat,
}

impl Word {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (word, number) = line.split_once(' ').unwrap_or((line, ""));
        Some(match word {
            "listening" => Self::Listening(number.parse().ok()?),
            "formed" => Self::Formed,
            "reached" => Self::Reached(number.parse().ok()?),
            "beat" => Self::Beat,
            _ => return None,
        })
    }

    fn line(self) -> String {
        match self {
            Self::Listening(port) => format!("listening {port}\n"),
            Self::Formed => "formed\n".to_owned(),
            Self::Reached(place) => format!("reached {place}\n"),
            Self::Beat => "beat\n".to_owned(),
        }
    }
}

/// The supervisor, as a process that it started sees it.
#[derive(Clone, Debug)]
pub struct Parent(Arc<Mutex<UnixStream>>);

impl Parent {
    /// Takes the standard input of this process for its connection to the supervisor. `orphaned` is
    /// called, on a thread of its own, when the supervisor is gone.
    ///
    /// # Errors
    /// When standard input is closed, or the system gives no more threads.
    pub fn on_stdin(orphaned: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut reader = stream.try_clone()?;
        let wait = move || {
            // A supervisor says nothing, so this returns when it is gone.
            let _ = reader.read(&mut [0]);
            orphaned();
        };
        thread::Builder::new().name("cluster:parent".to_owned()).spawn(wait)?;
        Ok(Self(Arc::new(Mutex::new(stream))))
    }

    /// This process listens at `port`.
    pub fn listening(&self, port: u16) {
        self.say(Word::Listening(port));
    }

    /// The cluster is formed.
    pub fn formed(&self) {
        self.say(Word::Formed);
    }

    /// The run has come so far.
    pub fn reached(&self, place: u64) {
        self.say(Word::Reached(place));
    }

    /// Still there.
    pub fn beat(&self) {
        self.say(Word::Beat);
    }

    /// A supervisor that is gone is noticed elsewhere.
    fn say(&self, word: Word) {
        let mut stream = self.0.lock().expect("no thread panics with the lock");
        let _ = stream.write_all(word.line().as_bytes());
    }
}

/// What a process says until its end of the connection is closed.
pub(super) fn words(stream: UnixStream) -> impl Iterator<Item = Word> {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.filter_map(|line| Word::parse(&line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for word in [Word::Listening(40_123), Word::Formed, Word::Reached(7_003), Word::Beat] {
            assert_eq!(Word::parse(word.line().trim_end()), Some(word));
        }
        for line in ["", "listening", "listening 70000", "beaten"] {
            assert_eq!(Word::parse(line), None);
        }
    }
}
