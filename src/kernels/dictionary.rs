//! The item dictionary: every item id of the log, sorted, the same in every process.

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::code_table::{CodeTable, mixed};
use crate::types::{ByteIds, IdRef, Ids};

/// Gives each distinct id a code in the order of first sight.
pub struct Interner {
    /// Codes of small integers by the integer itself, [`UNSEEN`] elsewhere.
    small: Vec<u32>,
    /// Codes of all others.
    table: CodeTable,
    ids: Ids,
}

const UNSEEN: u32 = u32::MAX;

/// Integers from 0 up to this are looked up without a hash: 4 MiB at most.
const SMALL_MAX: i64 = 1 << 20;

impl Interner {
    /// An empty interner for ids of the kind of `ids`.
    pub fn new_like(ids: &Ids) -> Self {
        Self { small: Vec::new(), table: CodeTable::default(), ids: ids.new_like() }
    }

    /// The code of `id`, a new one at first sight.
    ///
    /// # Panics
    /// At 2³² − 1 distinct ids, and for an id of the other kind.
    #[inline]
    pub fn intern(&mut self, id: IdRef<'_>) -> u32 {
        let Self { table, ids, .. } = self;
        match (id, ids) {
            (IdRef::Int(id), _) => self.intern_int(id),
            (IdRef::Bytes(id), Ids::Bytes(ids)) => {
                let is_same = |code: u32| ids.get(code as usize) == id;
                let next = next_code(ids.len());
                let hash_of = |code: u32| xxh3_64(ids.get(code as usize));
                let code = table.find_or_add(xxh3_64(id), next, is_same, hash_of);
                if code == next {
                    ids.push(id);
                }
                code
            }
            _ => panic!("a dictionary is all integers or all bytes"),
        }
    }

    /// The same of an integer.
    ///
    /// # Panics
    /// As [`Interner::intern`].
    #[inline(always)]
    pub fn intern_int(&mut self, id: i64) -> u32 {
        // A negative one is above all others.
        match self.small.get(usize::try_from(id as u64).unwrap_or(usize::MAX)) {
            Some(&code) if code != UNSEEN => code,
            _ => self.intern_other_int(id),
        }
    }

    #[inline(never)]
    fn intern_other_int(&mut self, id: i64) -> u32 {
        let Self { small, table, ids } = self;
        let Ids::Int(ids) = ids else { panic!("a dictionary is all integers or all bytes") };
        if (0..SMALL_MAX).contains(&id) {
            return add_small(small, ids, id);
        }
        let hash = |id: i64| mixed(id as u64);
        let is_same = |code: u32| ids[code as usize] == id;
        let next = next_code(ids.len());
        let hash_of = |code: u32| hash(ids[code as usize]);
        let code = table.find_or_add(hash(id), next, is_same, hash_of);
        if code == next {
            ids.push(id);
        }
        code
    }

    /// The ids in the order of their codes.
    pub fn into_ids(self) -> Ids {
        self.ids
    }
}

#[cold]
fn add_small(small: &mut Vec<u32>, ids: &mut Vec<i64>, id: i64) -> u32 {
    let place = id as usize;
    if place >= small.len() {
        small.resize((place + 1).next_power_of_two(), UNSEEN);
    }
    small[place] = next_code(ids.len());
    ids.push(id);
    small[place]
}

fn next_code(n_ids: usize) -> u32 {
    u32::try_from(n_ids)
        .ok()
        .filter(|&code| code < UNSEEN)
        .expect("an item dictionary holds fewer than 2^32 - 1 ids")
}

/// For every id of `local` its rank in `dictionary`, which is sorted and holds it.
pub fn ranks(local: &Ids, dictionary: &Ids) -> Vec<u32> {
    let rank = |row: usize| {
        dictionary.find_sorted(local.get(row)).expect("the dictionary holds every id") as u32
    };
    (0..local.len()).into_par_iter().with_min_len(1 << 12).map(rank).collect()
}

/// The ids of several sorted columns, sorted, each once.
pub fn merge_sorted(columns: &[Ids], like: &Ids) -> Ids {
    if let [column] = columns {
        return column.clone();
    }
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
