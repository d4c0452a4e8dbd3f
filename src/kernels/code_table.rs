//! Codes of keys that are kept elsewhere, found by hash.

use super::simd::prefetch;

/// Open addressing: finds the code of a key among keys that the caller holds by code.
#[derive(Clone, Debug, Default)]
pub struct CodeTable {
    /// Codes, [`FREE`] elsewhere. None, or more than twice as many as there are codes.
    slots: Vec<u32>,
    n_codes: usize,
    /// Up to so many slots, no more than one in [`SPARSE`] has a code.
    sparse_slots: usize,
}

const FREE: u32 = u32::MAX;

/// Slots per code of a sparse table: a look-up hardly ever meets another key's code, which no processor
/// foresees.
const SPARSE: usize = 16;

impl CodeTable {
    /// A table that takes 16 slots per code, up to 256 KiB, in the cache of a core: for more look-ups
    /// than keys.
    pub fn sparse() -> Self {
        Self { sparse_slots: 1 << 16, ..Self::default() }
    }

    fn is_full(&self) -> bool {
        let n_slots = self.slots.len();
        let per_code = if 2 * n_slots <= self.sparse_slots { SPARSE } else { 2 };
        per_code * self.n_codes >= n_slots
    }

    /// Asks for the memory where a key of this hash would be looked for first.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.slots, hash as usize & self.slots.len().wrapping_sub(1));
    }

    /// The code that stands where a key of this hash is looked for first, likely its own.
    #[inline]
    pub fn first(&self, hash: u64) -> Option<u32> {
        let slot = hash as usize & self.slots.len().wrapping_sub(1);
        self.slots.get(slot).copied().filter(|&code| code != FREE)
    }

    /// The code of a key; of a new one it becomes `next`, and the caller keeps the key.
    ///
    /// `hash` is the key's, well mixed in its low bits; `is_same` says whether a code is that of the key;
    /// `hash_of` gives the hash of a code's key.
    ///
    /// # Panics
    /// If `next` is 2³² − 1.
    #[inline]
    pub fn find_or_add(
        &mut self,
        hash: u64,
        next: u32,
        is_same: impl Fn(u32) -> bool,
        hash_of: impl Fn(u32) -> u64,
    ) -> u32 {
        if self.is_full() {
            self.grow(hash_of);
        }
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let code = self.slots[slot];
            if code == FREE {
                break;
            }
            if is_same(code) {
                return code;
            }
            slot = (slot + 1) & mask;
        }
        assert!(next < FREE, "a table holds fewer than 2^32 - 1 keys");
        self.slots[slot] = next;
        self.n_codes += 1;
        next
    }

    #[cold]
    fn grow(&mut self, hash_of: impl Fn(u32) -> u64) {
        let n_slots = (2 * self.slots.len()).max(256);
        let old = std::mem::replace(&mut self.slots, vec![FREE; n_slots]);
        for code in old.into_iter().filter(|&code| code != FREE) {
            let mut slot = hash_of(code) as usize & (n_slots - 1);
            while self.slots[slot] != FREE {
                slot = (slot + 1) & (n_slots - 1);
            }
            self.slots[slot] = code;
        }
    }

    /// Removes all keys and keeps the room.
    pub fn clear(&mut self) {
        self.slots.fill(FREE);
        self.n_codes = 0;
    }
}

/// A hash of an integer, for tables: nothing that is stored may depend on it.
#[inline]
pub fn mixed(value: u64) -> u64 {
    let product = u128::from(value) * 0x9E37_79B9_7F4A_7C15;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn codes_are_those_of_first_sight(
            keys in prop::collection::vec(0u64..400, 0..900),
            hash_bits in 0u32..64,
            rounds in 1usize..3,
            is_sparse in any::<bool>(),
        ) {
            let hash = |key: u64| mixed(key) >> (63 - hash_bits);
            let mut table = if is_sparse { CodeTable::sparse() } else { CodeTable::default() };
            for _ in 0..rounds {
                table.clear();
                let (mut held, mut expected) = (Vec::new(), HashMap::new());
                for &key in &keys {
                    let is_same = |code: u32| held[code as usize] == key;
                    let next = held.len() as u32;
                    let hash_of = |code: u32| hash(held[code as usize]);
                    let code = table.find_or_add(hash(key), next, is_same, hash_of);
                    prop_assert_eq!(code, *expected.entry(key).or_insert(next));
                    if code == next {
                        held.push(key);
                    }
                }
            }
        }
    }
}
