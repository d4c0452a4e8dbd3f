//! What process 0 and the others say on their control connection.

use std::io::{self, Read, Write};

use super::Link;

/// A message; all have one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// To 0: all links of this epoch are there.
    Ready { epoch: u64 },
    /// From 0: somebody left; links of earlier epochs are void.
    Epoch { epoch: u64 },
    /// From 0: everybody is ready, begin.
    Go { epoch: u64 },
    /// Still there; stages done, and units of work done.
    Beat { stage: u64, progress: u64 },
    /// Nothing is left to do; the end of the connection means nothing.
    Bye,
}

const MESSAGE_BYTES: usize = 17;

impl Message {
    fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (code, a, b) = match self {
            Self::Ready { epoch } => (1, epoch, 0),
            Self::Epoch { epoch } => (2, epoch, 0),
            Self::Go { epoch } => (3, epoch, 0),
            Self::Beat { stage, progress } => (4, stage, progress),
            Self::Bye => (5, 0, 0),
        };
        let mut bytes = [code; MESSAGE_BYTES];
        bytes[1..9].copy_from_slice(&u64::to_le_bytes(a));
        bytes[9..].copy_from_slice(&u64::to_le_bytes(b));
        bytes
    }

    fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        Some(match bytes[0] {
            1 => Self::Ready { epoch: word(1) },
            2 => Self::Epoch { epoch: word(1) },
            3 => Self::Go { epoch: word(1) },
            4 => Self::Beat { stage: word(1), progress: word(9) },
            5 => Self::Bye,
            _ => return None,
        })
    }

    /// Sends the message whole.
    pub(super) fn send(self, link: &mut Link) -> io::Result<()> {
        link.write_all(&self.encode())
    }

    /// Waits for the next message.
    pub(super) fn receive(link: &mut Link) -> io::Result<Self> {
        let mut bytes = [0; MESSAGE_BYTES];
        link.read_exact(&mut bytes)?;
        Self::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        let epoch = u64::MAX - 5;
        for message in [
            Message::Ready { epoch },
            Message::Epoch { epoch },
            Message::Go { epoch },
            Message::Beat { stage: 3, progress: u64::MAX },
            Message::Bye,
        ] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        assert_eq!(Message::decode(&[9; MESSAGE_BYTES]), None);
    }
}
