//! The item dictionary: every item id of the log, sorted, the same in every process.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::types::{ByteIds, IdRef, Ids};

/// Hasher for keys that are digests already or small integers: one multiplication.
#[derive(Default)]
pub struct DigestState(u64);

/// Builds [`DigestState`].
pub type DigestHasher = BuildHasherDefault<DigestState>;

impl Hasher for DigestState {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u128(&mut self, value: u128) {
        self.write_u64(value as u64 ^ (value >> 64) as u64);
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Gives each distinct id a code in the order of first sight.
pub struct Interner {
    codes: HashMap<u128, u32, DigestHasher>,
    ids: Ids,
}

impl Interner {
    /// An empty interner for ids of the kind of `ids`.
    pub fn new_like(ids: &Ids) -> Self {
        Self { codes: HashMap::default(), ids: ids.new_like() }
    }

    /// The code of `id`, a new one at first sight.
    ///
    /// Strings are told apart by 128 bits of their hash: among 10⁹ ids two meet with a probability
    /// of 10⁻²¹.
    ///
    /// # Panics
    /// At 2³² − 1 distinct ids.
    #[inline]
    pub fn intern(&mut self, id: IdRef<'_>) -> u32 {
        let ids = &mut self.ids;
        *self.codes.entry(id.digest()).or_insert_with(|| {
            ids.push(id);
            u32::try_from(ids.len() - 1)
                .ok()
                .filter(|&code| code < u32::MAX)
                .expect("an item dictionary holds fewer than 2^32 - 1 ids")
        })
    }

    /// The ids in the order of their codes.
    pub fn into_ids(self) -> Ids {
        self.ids
    }
}

/// For every id of `local` its rank in `dictionary`, which is sorted and holds it.
pub fn ranks(local: &Ids, dictionary: &Ids) -> Vec<u32> {
    local
        .iter()
        .map(|id| dictionary.find_sorted(id).expect("the dictionary holds every id") as u32)
        .collect()
}

/// The ids of several sorted columns, sorted, each once.
pub fn merge_sorted(columns: &[Ids], like: &Ids) -> Ids {
    let mut all = like.new_like();
    for column in columns {
        column.iter().for_each(|id| all.push(id));
    }
    all.sorted_unique()
}

/// Ids as bytes for the wire.
pub fn encode_ids(ids: &Ids) -> Vec<u8> {
    match ids {
        Ids::Int(ids) => ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
        Ids::Bytes(ids) => {
            let (bytes, ends) = ids.parts();
            let mut out = Vec::with_capacity(8 + 8 * ends.len() + bytes.len());
            out.extend_from_slice(&(ends.len() as u64).to_le_bytes());
            ends.iter().for_each(|&end| out.extend_from_slice(&(end as u64).to_le_bytes()));
            out.extend_from_slice(bytes);
            out
        }
    }
}

/// Bytes that [`encode_ids`] takes.
pub fn encoded_len(ids: &Ids) -> usize {
    match ids {
        Ids::Int(ids) => 8 * ids.len(),
        Ids::Bytes(ids) => {
            let (bytes, ends) = ids.parts();
            8 + 8 * ends.len() + bytes.len()
        }
    }
}

/// The inverse of [`encode_ids`], for ids of the kind of `like`.
///
/// # Panics
/// If `bytes` is not what [`encode_ids`] wrote.
pub fn decode_ids(bytes: &[u8], like: &Ids) -> Ids {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    match like {
        Ids::Int(_) => Ids::Int((0..bytes.len() / 8).map(|row| word(8 * row) as i64).collect()),
        Ids::Bytes(_) => {
            let n_ids = word(0) as usize;
            let text = &bytes[8 + 8 * n_ids..];
            let mut ids = ByteIds::default();
            let mut start = 0;
            for row in 0..n_ids {
                let end = word(8 + 8 * row) as usize;
                ids.push(&text[start..end]);
                start = end;
            }
            Ids::Bytes(ids)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strings(ids: &[String]) -> Ids {
        let mut column = Ids::Bytes(ByteIds::default());
        ids.iter().for_each(|id| column.push(IdRef::Bytes(id.as_bytes())));
        column
    }

    proptest! {
        #[test]
        fn ids_survive_the_wire(ints in prop::collection::vec(any::<i64>(), 0..40),
                                texts in prop::collection::vec("[a-c]{0,4}", 0..40)) {
            let ints = Ids::Int(ints);
            prop_assert_eq!(&decode_ids(&encode_ids(&ints), &ints), &ints);
            let texts = strings(&texts);
            prop_assert_eq!(&decode_ids(&encode_ids(&texts), &texts), &texts);
            prop_assert_eq!(encode_ids(&texts).len(), encoded_len(&texts));
        }

        #[test]
        fn ranks_do_not_depend_on_who_saw_an_id_first(
            texts in prop::collection::vec("[a-c]{0,3}", 1..40), cut in 0usize..40
        ) {
            let whole = strings(&texts).sorted_unique();
            let (left, right) = texts.split_at(cut.min(texts.len()));
            let parts = [strings(left).sorted_unique(), strings(right).sorted_unique()];
            prop_assert_eq!(&merge_sorted(&parts, &whole), &whole);
            let mut interner = Interner::new_like(&whole);
            let codes: Vec<u32> =
                texts.iter().map(|id| interner.intern(IdRef::Bytes(id.as_bytes()))).collect();
            let ranks = ranks(&interner.into_ids(), &whole);
            for (text, code) in texts.iter().zip(codes) {
                let rank = ranks[code as usize] as usize;
                prop_assert_eq!(whole.get(rank), IdRef::Bytes(text.as_bytes()));
            }
        }
    }
}
