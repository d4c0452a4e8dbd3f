//! Sums and rows of items between processes: each adds up and solves its slice of a chunk.

use std::borrow::Cow;
use std::ops::Range;

use crate::dataflow::Outgoing;
use crate::kernels::als::item_sums::Sums;
use crate::kernels::als::tree::{TreeSum, aligned_subtrees};
use crate::run::Worker;
use crate::run::prepare::owned_shards;

/// The aligned subtrees of shards that this process owns.
pub(super) fn subtrees(worker: &Worker<'_>) -> Vec<Range<u32>> {
    let owned = owned_shards(worker);
    match (owned.first(), owned.last()) {
        (Some(&first), Some(&last)) => aligned_subtrees(first, last + 1),
        _ => Vec::new(),
    }
}

/// The items of a chunk that one process adds up and solves for.
pub(super) fn slice(chunk: &Range<usize>, process: usize, peers: usize) -> Range<usize> {
    let bound = |process: usize| chunk.start + chunk.len() * process / peers;
    bound(process)..bound(process + 1)
}

/// Rows of all processes' slices, end to end.
pub(super) fn all_rows<'a>(worker: &mut Worker<'_>, mine: &'a [f32]) -> Cow<'a, [f32]> {
    if worker.shell.peers == 1 {
        return Cow::Borrowed(mine);
    }
    let encoded: Vec<u8> = mine.iter().flat_map(|value| value.to_le_bytes()).collect();
    let parts = worker.shell.collectives.all_gather(encoded.into());
    let words = parts.iter().flat_map(|part| part.chunks_exact(4));
    words.map(|word| f32::from_le_bytes(word.try_into().expect("4 bytes"))).collect()
}

/// Adds the sums of all processes' subtrees up in the shape of the tree, each process its slice.
pub(super) fn add_up(
    worker: &mut Worker<'_>,
    chunk: &Range<usize>,
    width: usize,
    mut parts: Vec<(u32, Sums)>,
) -> Sums {
    let peers = worker.shell.peers;
    if peers == 1 && parts.len() == 1 {
        return parts.remove(0).1;
    }
    let outgoing = parts.iter().flat_map(|(shard, sums)| {
        (0..peers).map(|target| {
            let rows = slice(chunk, target, peers);
            let rows = rows.start - chunk.start..rows.end - chunk.start;
            let payload = encode_sums(sums, rows, width).into();
            Outgoing { target, tag: u64::from(*shard), payload }
        })
    });
    let mut incoming = Vec::new();
    worker.shell.collectives.all_to_all(outgoing, |message| {
        incoming.push((message.tag as u32, message.payload));
    });
    incoming.sort_unstable_by_key(|(shard, _)| *shard);
    let n_rows = slice(chunk, worker.shell.index, peers).len();
    let mut cursors: Vec<(u32, &[u8], &[u8])> = incoming
        .iter()
        .map(|(shard, payload)| {
            let (present, values) = payload.split_at(n_rows);
            (*shard, present, values)
        })
        .collect();
    let mut sums = Sums { values: vec![0.0; n_rows * width], present: vec![false; n_rows] };
    let mut tree = TreeSum::new(width);
    for row in 0..n_rows {
        for (shard, present, values) in &mut cursors {
            if present[row] == 1 {
                let (bytes, rest) = values.split_at(4 * width);
                *values = rest;
                for (value, bytes) in tree.leaf(*shard).iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes(bytes.try_into().expect("4 bytes"));
                }
            }
        }
        sums.present[row] = tree.finish(&mut sums.values[row * width..][..width]);
    }
    sums
}

/// A byte per row that says whether it is there, then the sums of those that are.
fn encode_sums(sums: &Sums, rows: Range<usize>, width: usize) -> Vec<u8> {
    let present = &sums.present[rows.clone()];
    let mut encoded: Vec<u8> = present.iter().map(|&present| u8::from(present)).collect();
    for row in rows.filter(|&row| sums.present[row]) {
        let values = &sums.values[row * width..][..width];
        values.iter().for_each(|value| encoded.extend_from_slice(&value.to_le_bytes()));
    }
    encoded
}
