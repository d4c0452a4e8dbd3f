//! Operations that all workers take part in: all-to-all, all-gather, sums, agreement.

use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::InputHandle;
use timely::dataflow::channels::pact::DistributorPact;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::probe::{Handle as ProbeHandle, Probe};
use timely::worker::Worker;

use super::agree::{AgreeError, Failure};
use super::block::{BLOCK_BYTES, Block, HEADER_BYTES, ToTarget};

/// What a worker sends before it starts a new slice of [`Collectives::all_to_all`].
pub const SLICE_BYTES: usize = 8 * 1024 * 1024;

/// Slices that may be under way; timely itself has no back-pressure.
const WINDOW_SLICES: u64 = 2;

/// Marks the block that says "I took part in no collective from this one on".
const LEFT: u32 = u32::MAX;

/// Blocks that arrived, by collective: a fast peer may already send for the next one.
type Inbox = Rc<RefCell<HashMap<u64, Vec<Block>>>>;

/// A message to one worker, delivered whole. Aim for [`BLOCK_BYTES`] of payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The worker it goes to; this worker itself is allowed.
    pub target: usize,
    /// The caller's mark, for example a shard.
    pub tag: u64,
    /// The content.
    pub payload: Bytes,
}

/// A message from one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The worker it comes from.
    pub source: usize,
    /// Its place among the messages of `source` to this worker in this collective, from 0.
    pub sequence: u32,
    /// The mark the sender gave it.
    pub tag: u64,
    /// The content.
    pub payload: Bytes,
}

/// Payload bytes sent to other workers, by kind of collective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BytesMoved {
    /// By [`Collectives::broadcast`].
    pub broadcast: u64,
    /// By [`Collectives::all_gather`].
    pub all_gather: u64,
    /// By [`Collectives::all_to_all`].
    pub all_to_all: u64,
    /// By [`Collectives::all_reduce_sum`], `_max` and `_min`.
    pub all_reduce: u64,
    /// By [`Collectives::agree`].
    pub agree: u64,
}

/// A sum that i64 cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sum over all workers at position {position} does not fit 64 bits")]
pub struct SumOverflow {
    /// The lowest position where it happened, the same on every worker.
    pub position: usize,
}

/// One worker's end of the collectives.
///
/// Every worker calls the same methods in the same order. A call returns once all blocks of that
/// collective have arrived everywhere, so each is also a barrier. Waiting parks the thread: a
/// worker that spins takes cores from the kernels.
///
/// # Panics
/// All methods, if another worker has returned from its driver without taking part.
pub struct Collectives {
    worker: Worker,
    index: usize,
    peers: usize,
    input: InputHandle<u64, NoopBuilder<Block>>,
    probe: ProbeHandle<u64>,
    inbox: Inbox,
    /// Number of the collective under way, or of the last one.
    number: u64,
    slice_bytes: usize,
    moved: BytesMoved,
}

impl Collectives {
    /// Builds the dataflow that carries all collectives of this worker.
    pub fn new(worker: &mut Worker) -> Self {
        let inbox = Inbox::default();
        let mut input = InputHandle::new_with_builder();
        let probe = ProbeHandle::new();
        worker.dataflow_named("collectives", |scope| {
            let inbox = Rc::clone(&inbox);
            input
                .to_stream(scope)
                .unary::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
                    DistributorPact(|_| ToTarget),
                    "collectives: inbox",
                    |_, _| {
                        move |input, _| {
                            input.for_each(|_, block: &mut Block| {
                                let block = std::mem::take(block);
                                inbox.borrow_mut().entry(block.collective).or_default().push(block);
                            });
                        }
                    },
                )
                .probe_with(&probe);
        });
        Collectives {
            worker: worker.clone(),
            index: worker.index(),
            peers: worker.peers(),
            input,
            probe,
            inbox,
            number: 0,
            slice_bytes: SLICE_BYTES,
            moved: BytesMoved::default(),
        }
    }

    /// Hands the payload of worker `from` to all workers.
    ///
    /// # Panics
    /// If `payload` is given on any worker but `from`, or not given there.
    pub fn broadcast(&mut self, from: usize, payload: Option<Bytes>) -> Bytes {
        assert_eq!(payload.is_some(), self.index == from, "only worker {from} gives a payload");
        let (mut parts, sent) = self.gather(payload.unwrap_or_default());
        self.moved.broadcast += sent;
        parts.swap_remove(from)
    }

    /// Hands the payloads of all workers to all workers, indexed by source.
    ///
    /// Payloads of any length, which may differ. Those up to [`BLOCK_BYTES`] are not copied inside
    /// a process, and the own one never is.
    pub fn all_gather(&mut self, payload: Bytes) -> Vec<Bytes> {
        let (parts, sent) = self.gather(payload);
        self.moved.all_gather += sent;
        parts
    }

    /// Streams messages between all workers; `receive` gets those for this worker as they arrive.
    ///
    /// - Order: unspecified. Sort by `(source, sequence)`, or do something order-free.
    /// - Memory: `outgoing` is pulled slice by slice ([`SLICE_BYTES`]), and no slice starts before
    ///   all workers are done with the one three before it, so at most a few slices per worker are
    ///   under way, whoever receives them. Workers therefore advance slice by slice together
    ///   until they run out of messages.
    /// - Both closures run between steps of the worker and should not block for long.
    pub fn all_to_all(
        &mut self,
        outgoing: impl IntoIterator<Item = Outgoing>,
        receive: impl FnMut(Incoming),
    ) {
        self.moved.all_to_all += self.exchange(outgoing, receive);
    }

    /// Sums `values` position by position over all workers.
    ///
    /// Each worker adds up one range of positions (reduce-scatter), then the sums are gathered:
    /// `2 * (peers - 1) / peers * 8 * values.len()` bytes sent per worker. Summed in 128 bits and
    /// checked at the end, so that the order of arrival cannot matter.
    ///
    /// # Errors
    /// [`SumOverflow`], on all workers alike.
    ///
    /// # Panics
    /// If the workers' lengths differ.
    pub fn all_reduce_sum(&mut self, values: Vec<i64>) -> Result<Vec<i64>, SumOverflow> {
        if self.peers == 1 {
            self.exchange([], |_| ());
            return Ok(values);
        }
        let (sums, scattered) = self.reduce_scatter(&values);
        let (parts, gathered) = self.gather(encode_sums(&sums));
        self.moved.all_reduce += scattered + gathered;
        let mut summed = Vec::with_capacity(values.len());
        for part in &parts {
            let start = summed.len();
            let mut sums = words(part);
            match sums.next() {
                Some(-1) => summed.extend(sums),
                Some(offset) => return Err(SumOverflow { position: start + offset as usize }),
                None => unreachable!("encoded sums start with a word"),
            }
        }
        assert_eq!(summed.len(), values.len(), "all workers must sum the same number of values");
        Ok(summed)
    }

    /// The largest `value` of all workers.
    pub fn all_reduce_max(&mut self, value: i64) -> i64 {
        self.gather_words(value).into_iter().fold(value, i64::max)
    }

    /// The smallest `value` of all workers.
    pub fn all_reduce_min(&mut self, value: i64) -> i64 {
        self.gather_words(value).into_iter().fold(value, i64::min)
    }

    /// Ends a stage: `Ok` if all workers are, else the same error on all.
    ///
    /// Of several errors that of the lowest worker wins, and the others are dropped. `code` gives
    /// this worker's error a number that survives the way to other processes.
    ///
    /// # Errors
    /// [`AgreeError`], if any worker failed.
    pub fn agree<T, E: Into<Box<dyn Error + Send + Sync>>>(
        &mut self,
        status: Result<T, E>,
        code: impl FnOnce(&E) -> u8,
    ) -> Result<T, AgreeError> {
        let status = status.map_err(|error| (code(&error), error.into()));
        let report = match &status {
            Ok(_) => Bytes::new(),
            Err((code, error)) => Failure::new(*code, error.as_ref()).encode(),
        };
        let (reports, sent) = self.gather(report);
        self.moved.agree += sent;
        let mut failures = reports.iter().map(|report| Failure::decode(report)).enumerate();
        let first = failures.find_map(|(worker, failure)| Some((worker, failure?)));
        let Some((worker, Failure { code, message })) = first else {
            return status.map_err(|_| unreachable!("this worker's report is among them"));
        };
        let own = status.err().filter(|_| worker == self.index).map(|(_, error)| error);
        Err(AgreeError { worker, code, message, own })
    }

    /// The bytes sent since the last call, and starts to count anew.
    pub fn take_bytes_moved(&mut self) -> BytesMoved {
        std::mem::take(&mut self.moved)
    }

    /// Leaves for good: peers that still want a collective learn that this worker will not come.
    pub(super) fn leave(&mut self) {
        let index = self.index;
        for target in (0..self.peers).filter(|&target| target != index) {
            self.send(self.number + 1, LEFT, Outgoing { target, tag: 0, payload: Bytes::new() });
        }
        // Dropping the old handle closes the input, which lets timely end the dataflow.
        self.input = InputHandle::new_with_builder();
    }

    /// All-gather without the counter; returns also the bytes sent.
    ///
    /// The tag of a block is the length of its payload as a whole, its sequence the place in it.
    fn gather(&mut self, payload: Bytes) -> (Vec<Bytes>, u64) {
        let mut parts = vec![Bytes::new(); self.peers];
        let mut partial = vec![Vec::new(); self.peers];
        let (index, peers) = (self.index, self.peers);
        let targets = (0..peers).filter(move |&target| target != index);
        let outgoing = (0..payload.len()).step_by(BLOCK_BYTES).flat_map(|start| {
            let block = payload.slice(start..payload.len().min(start + BLOCK_BYTES));
            let tag = payload.len() as u64;
            targets.clone().map(move |target| Outgoing { target, tag, payload: block.clone() })
        });
        let sent = self.exchange(outgoing, |block| {
            let (length, partial) = (block.tag as usize, &mut partial[block.source]);
            if block.payload.len() == length {
                parts[block.source] = block.payload;
                return;
            }
            partial.resize(length, 0);
            let start = block.sequence as usize * BLOCK_BYTES;
            partial[start..start + block.payload.len()].copy_from_slice(&block.payload);
        });
        for (part, partial) in parts.iter_mut().zip(partial).filter(|(_, p)| !p.is_empty()) {
            *part = partial.into();
        }
        parts[self.index] = payload;
        (parts, sent)
    }

    fn gather_words(&mut self, value: i64) -> Vec<i64> {
        let (parts, sent) = self.gather(Bytes::copy_from_slice(&value.to_le_bytes()));
        self.moved.all_reduce += sent;
        parts.iter().flat_map(|part| words(part)).collect()
    }

    /// The sums of this worker's range of positions, and the bytes sent for them.
    fn reduce_scatter(&mut self, values: &[i64]) -> (Vec<i128>, u64) {
        let (index, peers) = (self.index, self.peers);
        let own = range_of(index, peers, values.len());
        let mut sums: Vec<i128> = values[own.clone()].iter().map(|&value| value.into()).collect();
        let outgoing = (0..peers).filter(|&target| target != index).flat_map(|target| {
            let range = range_of(target, peers, values.len());
            range.clone().step_by(BLOCK_BYTES / 8).map(move |start| {
                let chunk = &values[start..range.end.min(start + BLOCK_BYTES / 8)];
                let payload = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
                Outgoing { target, tag: start as u64, payload }
            })
        });
        let sent = self.exchange(outgoing, |block| {
            let start = block.tag as usize - own.start;
            for (position, value) in (start..).zip(words(&block.payload)) {
                sums[position] += i128::from(value);
            }
        });
        (sums, sent)
    }

    /// What all collectives are made of; returns the payload bytes sent to others.
    fn exchange(
        &mut self,
        outgoing: impl IntoIterator<Item = Outgoing>,
        mut receive: impl FnMut(Incoming),
    ) -> u64 {
        self.number += 1;
        let mut sequences = vec![0; self.peers];
        let (mut slice, mut slice_bytes, mut sent) = (0, 0, 0);
        self.input.advance_to(time(self.number, slice));
        for message in outgoing {
            let (target, length) = (message.target, message.payload.len());
            assert!(sequences[target] < LEFT, "one collective sends less than 2^32 blocks");
            self.send(self.number, sequences[target], message);
            sequences[target] += 1;
            sent += if target == self.index { 0 } else { length as u64 };
            slice_bytes += length + HEADER_BYTES;
            if slice_bytes >= self.slice_bytes {
                (slice, slice_bytes) = (slice + 1, 0);
                self.end_slice(slice, &mut receive);
            }
        }
        let end = time(self.number + 1, 0);
        self.input.advance_to(end);
        self.wait_until(end, &mut receive);
        sent
    }

    /// Starts slice `next`, and waits while more than the window is under way.
    fn end_slice(&mut self, next: u64, receive: &mut impl FnMut(Incoming)) {
        self.input.advance_to(time(self.number, next));
        // One step even if there is nothing to wait for: it hands what was sent to the wire.
        self.worker.step();
        self.deliver(receive);
        if let Some(oldest) = next.checked_sub(WINDOW_SLICES) {
            self.wait_until(time(self.number, oldest), receive);
        }
    }

    /// Works until everything sent before `until`, by any worker, has arrived.
    fn wait_until(&mut self, until: u64, receive: &mut impl FnMut(Incoming)) {
        while self.probe.less_than(&until) {
            self.worker.step_or_park(None);
            self.deliver(receive);
        }
        self.deliver(receive);
    }

    fn deliver(&mut self, receive: &mut impl FnMut(Incoming)) {
        let arrived = self.inbox.borrow_mut().remove(&self.number);
        for Block { source, sequence, tag, payload, .. } in arrived.into_iter().flatten() {
            assert!(
                sequence != LEFT,
                "worker {source} left before collective {}; errors must be agreed on first",
                self.number
            );
            receive(Incoming { source: source as usize, sequence, tag, payload });
        }
    }

    fn send(&mut self, collective: u64, sequence: u32, message: Outgoing) {
        let Outgoing { target, tag, payload } = message;
        assert!(target < self.peers, "there is no worker {target}");
        let (source, target) = (self.index as u32, target as u32);
        let mut block = Block { collective, tag, source, target, sequence, payload };
        self.input.send_batch(&mut block);
    }
}

/// The timestamp of a slice of a collective. 2^24 slices are 128 TiB from one worker.
fn time(collective: u64, slice: u64) -> u64 {
    debug_assert!(slice < 1 << 24);
    collective << 24 | slice
}

/// The positions whose sums worker `index` is in charge of.
fn range_of(index: usize, peers: usize, n_values: usize) -> Range<usize> {
    n_values * index / peers..n_values * (index + 1) / peers
}

/// The sums as words after a first word of -1; or only the offset of the first that does not fit.
fn encode_sums(sums: &[i128]) -> Bytes {
    let fitting = sums.iter().map_while(|&sum| i64::try_from(sum).ok());
    let n_fitting = fitting.clone().count();
    if n_fitting < sums.len() {
        return Bytes::copy_from_slice(&(n_fitting as i64).to_le_bytes());
    }
    let mut bytes = Vec::with_capacity(8 * (sums.len() + 1));
    for word in std::iter::once(-1).chain(fitting) {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.into()
}

fn words(bytes: &[u8]) -> impl Iterator<Item = i64> {
    let (words, rest) = bytes.as_chunks::<8>();
    assert!(rest.is_empty(), "words come in eights of bytes");
    words.iter().map(|&word| i64::from_le_bytes(word))
}

#[cfg(test)]
#[path = "collectives_tests.rs"]
mod tests;
