//! Histories as bytes for the wire: sorted items as differences, small numbers in few bytes.

use crate::types::{Histories, ItemIdx};

/// Appends `value` in groups of seven bits, lowest first.
pub(super) fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

fn get(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (&byte, rest) = bytes.split_first().expect("a number ends inside the block");
        *bytes = rest;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            break;
        }
    }
    value
}

/// Codes the histories of consecutive users; affinities only where wanted.
///
/// About 2 bytes per pair for catalogues of some ten thousand items.
pub fn encode_histories(histories: &Histories, with_affinities: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * histories.interactions.items.len());
    for row in 0..histories.n_users() {
        let (items, affinities) = histories.of(row);
        put(items.len() as u64, &mut out);
        let mut last = 0;
        for item in items {
            put(u64::from(item.0 - last), &mut out);
            last = item.0;
        }
        if with_affinities {
            affinities.iter().for_each(|&affinity| put(affinity as u64, &mut out));
        }
    }
    out
}

/// Appends the users of a coded block to flat columns; `offsets` starts as `[0]`.
///
/// # Panics
/// If `bytes` is not what [`encode_histories`] wrote with the same `affinities`.
pub fn decode_histories(
    mut bytes: &[u8],
    offsets: &mut Vec<u64>,
    items: &mut Vec<ItemIdx>,
    mut affinities: Option<&mut Vec<i64>>,
) {
    while !bytes.is_empty() {
        let n_items = get(&mut bytes);
        let mut last = 0;
        for _ in 0..n_items {
            last += get(&mut bytes) as u32;
            items.push(ItemIdx(last));
        }
        if let Some(affinities) = affinities.as_deref_mut() {
            (0..n_items).for_each(|_| affinities.push(get(&mut bytes) as i64));
        }
        offsets.push(items.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Ids, ItemLists};

    proptest! {
        #[test]
        fn histories_survive_the_wire(
            users in prop::collection::vec(prop::collection::btree_map(0u32..1 << 30, 1i64..1 << 50, 0..9), 0..9),
            with_affinities in any::<bool>(),
        ) {
            let mut lists = ItemLists::default();
            let mut weights = Vec::new();
            let mut ends = vec![0u64];
            for user in &users {
                lists.items.extend(user.keys().map(|&item| ItemIdx(item)));
                weights.extend(user.values());
                lists.ends.push(lists.items.len() as u32);
                ends.push(lists.items.len() as u64);
            }
            let histories = Histories {
                shard: 0,
                user_ids: Ids::Int((0..users.len() as i64).collect()),
                interactions: lists.clone(),
                affinities: weights.clone(),
                dislikes: ItemLists::default(),
                dislike_affinities: Vec::new(),
                seen: ItemLists::default(),
                segments: Vec::new(),
                facts: Vec::new(),
            };
            let bytes = encode_histories(&histories, with_affinities);
            let (mut offsets, mut items, mut affinities) = (vec![0], Vec::new(), Vec::new());
            let wanted = with_affinities.then_some(&mut affinities);
            decode_histories(&bytes, &mut offsets, &mut items, wanted);
            prop_assert_eq!(offsets, ends);
            prop_assert_eq!(items, lists.items);
            prop_assert!(!with_affinities || affinities == weights);
        }
    }
}
