//! The item dictionary: every item id of the log, sorted, the same in every process.

use xxhash_rust::xxh3::xxh3_64;

use super::code_table::{CodeTable, mixed};
use super::simd::prefetch;
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

    /// The same for more look-ups than ids: see [`CodeTable::sparse`].
    pub fn sparse() -> Self {
        let ids = Ids::Int(Vec::new());
        Self { small: Vec::new(), table: CodeTable::sparse(), ids }
    }

    /// The ids by code.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// Forgets all ids but keeps the room, for ids of the kind of `like`.
    pub fn begin(&mut self, like: &Ids) {
        self.take_ids();
        self.ids = like.new_like();
    }

    /// The ids in the order of their codes, of which none is known then.
    pub fn take_ids(&mut self) -> Ids {
        if let Ids::Int(ids) = &self.ids {
            for &id in ids {
                if let Some(code) = self.small.get_mut(small_place(id)) {
                    *code = UNSEEN;
                }
            }
        }
        self.table.clear();
        let like = self.ids.new_like();
        std::mem::replace(&mut self.ids, like)
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
        match self.small.get(small_place(id)) {
            Some(&code) if code != UNSEEN => code,
            _ => self.intern_other_int(id),
        }
    }

    /// Asks for the memory of the code of a small integer, which is wanted soon.
    #[inline(always)]
    pub fn prefetch_int(&self, id: i64) {
        prefetch(&self.small, small_place(id));
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

    /// The ids in sorted order.
    pub fn into_sorted(self) -> SortedIds {
        let Self { small, ids, .. } = self;
        let mut codes: Vec<u32> = match &ids {
            Ids::Int(ids) => {
                let is_other = |code: &u32| small.get(small_place(ids[*code as usize])).is_none();
                (0..ids.len() as u32).filter(is_other).collect()
            }
            Ids::Bytes(ids) => (0..ids.len() as u32).collect(),
        };
        codes.sort_unstable_by(|&a, &b| ids.cmp_rows(a as usize, b as usize));
        // Small ones stand in order, above the negative ones.
        let place = codes.partition_point(|&code| ids.get(code as usize) < IdRef::Int(0));
        let place = if small.is_empty() { 0 } else { place };
        codes.splice(place..place, small.into_iter().filter(|&code| code != UNSEEN));
        SortedIds { ids: ids.take(codes.iter().map(|&code| code as usize)), codes }
    }
}

/// Where the code of an integer stands, if it is small; a negative one is above all others.
#[inline(always)]
fn small_place(id: i64) -> usize {
    usize::try_from(id as u64).unwrap_or(usize::MAX)
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

/// Distinct ids in sorted order, with their codes.
#[derive(Debug)]
pub struct SortedIds {
    /// The ids.
    pub ids: Ids,
    codes: Vec<u32>,
}

impl SortedIds {
    /// For every code the rank of its id in `dictionary`, which is sorted and holds them all.
    ///
    /// # Panics
    /// If it does not.
    pub fn ranks(&self, dictionary: &Ids) -> Vec<u32> {
        let mut ranks = vec![0; self.codes.len()];
        let mut rank = 0;
        for (row, &code) in self.codes.iter().enumerate() {
            let id = self.ids.get(row);
            while dictionary.get(rank) != id {
                rank += 1;
            }
            ranks[code as usize] = rank as u32;
        }
        ranks
    }
}

/// The ids of several sorted columns, sorted, each once. Columns have each of their ids once.
pub fn merge_sorted(columns: &[&Ids], like: &Ids) -> Ids {
    match columns {
        [] => like.new_like(),
        [column] => (*column).clone(),
        [one, other] => merge_two(one, other),
        _ => {
            let (some, others) = columns.split_at(columns.len() / 2);
            let merge = |columns| merge_sorted(columns, like);
            let (one, other) = rayon::join(|| merge(some), || merge(others));
            merge_two(&one, &other)
        }
    }
}

fn merge_two(one: &Ids, other: &Ids) -> Ids {
    let mut merged = one.new_like();
    let (mut a, mut b) = (0, 0);
    while a < one.len() && b < other.len() {
        let order = one.get(a).cmp(&other.get(b));
        merged.push(if order.is_le() { one.get(a) } else { other.get(b) });
        a += usize::from(order.is_le());
        b += usize::from(order.is_ge());
    }
    (a..one.len()).for_each(|row| merged.push(one.get(row)));
    (b..other.len()).for_each(|row| merged.push(other.get(row)));
    merged
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
        fn integers_come_sorted_with_the_ranks_of_their_codes(
            ids in prop::collection::vec(
                prop_oneof![0i64..50, -20i64..0, SMALL_MAX - 3..SMALL_MAX + 3, any::<i64>()], 0..60
            ),
            more in prop::collection::vec(-9i64..9, 0..9),
        ) {
            let mut interner = Interner::new_like(&Ids::Int(Vec::new()));
            for round in [&more, &ids] {
                interner.begin(&Ids::Int(Vec::new()));
                round.iter().for_each(|&id| { interner.intern_int(id); });
            }
            let codes: Vec<u32> = ids.iter().map(|&id| interner.intern_int(id)).collect();
            let sorted = interner.into_sorted();
            prop_assert_eq!(&sorted.ids, &Ids::Int(ids.clone()).sorted_unique());
            let dictionary = Ids::Int([ids.clone(), more].concat()).sorted_unique();
            let ranks = sorted.ranks(&dictionary);
            for (id, code) in ids.into_iter().zip(codes) {
                prop_assert_eq!(dictionary.get(ranks[code as usize] as usize), IdRef::Int(id));
            }
        }

        #[test]
        fn ranks_do_not_depend_on_who_saw_an_id_first(
            texts in prop::collection::vec("[a-c]{0,3}", 1..40), cut in 0usize..40
        ) {
            let whole = strings(&texts).sorted_unique();
            let (left, right) = texts.split_at(cut.min(texts.len()));
            let parts = [strings(left).sorted_unique(), strings(right).sorted_unique()];
            prop_assert_eq!(&merge_sorted(&[&parts[0], &parts[1]], &whole), &whole);
            let four = [&parts[0], &parts[1], &parts[0], &whole];
            prop_assert_eq!(&merge_sorted(&four, &whole), &whole);
            let mut interner = Interner::new_like(&whole);
            let codes: Vec<u32> =
                texts.iter().map(|id| interner.intern(IdRef::Bytes(id.as_bytes()))).collect();
            let ranks = interner.into_sorted().ranks(&whole);
            for (text, code) in texts.iter().zip(codes) {
                let rank = ranks[code as usize] as usize;
                prop_assert_eq!(whole.get(rank), IdRef::Bytes(text.as_bytes()));
            }
        }
    }
}
