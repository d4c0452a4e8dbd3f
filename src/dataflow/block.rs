//! The unit of exchange: a header and a payload of bytes.

use std::io::Write;

use bytes::Bytes;
use timely::Accountable;
use timely::bytes::arc::Bytes as WireBytes;
use timely::communication::Push;
use timely::dataflow::channels::pushers::exchange::Distributor;
use timely::dataflow::channels::{ContainerBytes, Message};
use timely::progress::Stamp;

/// The payload size to aim for: between 64 KB and 1 MB a message moves at full speed, while larger
/// ones make the buffers of the wire grow to several times the largest message.
pub const BLOCK_BYTES: usize = 256 * 1024;

/// Bytes of the header on the wire.
pub(super) const HEADER_BYTES: usize = 40;

/// One message between two workers, and a timely container of its own.
///
/// Inside a process only the pointer of the payload moves. From the wire the payload is copied
/// once, since a slice of the receive buffer would pin all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// Number of the collective, from 1. Number 0 is the empty container that timely asks for.
    pub(super) collective: u64,
    /// The caller's mark, for example a shard.
    pub(super) tag: u64,
    pub(super) source: u32,
    pub(super) target: u32,
    /// Counts the blocks of one collective from one source to one target.
    pub(super) sequence: u32,
    pub(super) payload: Bytes,
}

impl Accountable for Block {
    // A block is one record even if its payload is empty.
    fn record_count(&self) -> i64 {
        i64::from(self.collective != 0)
    }
}

impl ContainerBytes for Block {
    fn from_bytes(bytes: WireBytes) -> Self {
        let (header, rest) =
            bytes.split_first_chunk::<HEADER_BYTES>().expect("a block starts with its header");
        let word = |i: usize| {
            let bytes = header[8 * i..8 * i + 8].try_into().expect("a word is eight bytes");
            u64::from_le_bytes(bytes)
        };
        let (high, low) = (|w: u64| (w >> 32) as u32, |w: u64| w as u32);
        Block {
            collective: word(0),
            tag: word(1),
            source: high(word(2)),
            target: low(word(2)),
            sequence: low(word(3)),
            payload: Bytes::copy_from_slice(&rest[..word(4) as usize]),
        }
    }

    fn length_in_bytes(&self) -> usize {
        HEADER_BYTES + self.payload.len().next_multiple_of(8)
    }

    fn into_bytes<W: Write>(&self, writer: &mut W) {
        let route = u64::from(self.source) << 32 | u64::from(self.target);
        let length = self.payload.len() as u64;
        let mut write = |bytes: &[u8]| writer.write_all(bytes).expect("memory takes every write");
        for word in [self.collective, self.tag, route, u64::from(self.sequence), length] {
            write(&word.to_le_bytes());
        }
        write(&self.payload);
        // Timely keeps its messages aligned to words.
        write(&[0; 8][..self.payload.len().next_multiple_of(8) - self.payload.len()]);
    }
}

/// Sends each block, unopened, to the worker named in its header.
pub(super) struct ToTarget;

impl Distributor<Block> for ToTarget {
    fn partition<T: Clone, P: Push<Message<T, Block>>>(
        &mut self,
        block: &mut Block,
        stamp: &Stamp<T>,
        pushers: &mut [P],
    ) {
        let target = block.target as usize;
        Message::push_at(block, stamp.clone(), &mut pushers[target]);
    }

    fn flush<T: Clone, P: Push<Message<T, Block>>>(&mut self, _: &Stamp<T>, _: &mut [P]) {}
}

#[cfg(test)]
mod tests {
    use timely::bytes::arc::BytesMut;

    use super::*;

    #[test]
    fn wire_format_round_trips_for_every_alignment() {
        for length in 0..18 {
            let block = Block {
                collective: 7,
                tag: u64::MAX - 1,
                source: 2,
                target: 1,
                sequence: u32::MAX,
                payload: (0..length).collect::<Vec<u8>>().into(),
            };
            let mut wire = Vec::new();
            block.into_bytes(&mut wire);
            assert_eq!(wire.len(), block.length_in_bytes());
            assert_eq!(wire.len() % 8, 0);
            assert_eq!(Block::from_bytes(BytesMut::from(wire).freeze()), block);
        }
    }

    #[test]
    fn only_the_default_block_counts_as_empty() {
        assert!(Block::default().is_empty());
        assert!(!Block { collective: 1, ..Block::default() }.is_empty());
    }
}
