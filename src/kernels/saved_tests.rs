use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::types::IdRef;

const N_ITEMS: u32 = 1 << 30;

/// A user: items with affinities, items spoken against, items seen, segment, facts.
type User = (Vec<(u32, i64)>, Vec<(u32, i64)>, BTreeSet<u32>, u32, (u32, u32, i64, i64));

fn users() -> impl Strategy<Value = Vec<User>> {
    let pairs = |affinity| {
        let pairs = prop::collection::btree_map(0..N_ITEMS, affinity, 0..9);
        pairs.prop_map(|pairs| pairs.into_iter().collect::<Vec<_>>())
    };
    let segment = prop_oneof![Just(u32::MAX), 0u32..5];
    let seen = prop::collection::btree_set(0..N_ITEMS, 0..5);
    let facts = (any::<u32>(), any::<u32>(), any::<i64>(), any::<i64>());
    prop::collection::vec((pairs(1..i64::MAX), pairs(i64::MIN..0), seen, segment, facts), 0..9)
}

fn push(lists: &mut ItemLists, items: impl Iterator<Item = u32>) {
    lists.items.extend(items.map(ItemIdx));
    lists.ends.push(lists.items.len() as u32);
}

fn shard_of(users: &[User], user_ids: Ids, with_segments: bool) -> Histories {
    let mut shard = Histories {
        shard: 7,
        user_ids,
        interactions: ItemLists::default(),
        affinities: Vec::new(),
        dislikes: ItemLists::default(),
        dislike_affinities: Vec::new(),
        seen: ItemLists::default(),
        segments: Vec::new(),
        facts: Vec::new(),
    };
    for (pairs, dislikes, seen, segment, facts) in users {
        push(&mut shard.interactions, pairs.iter().map(|pair| pair.0));
        shard.affinities.extend(pairs.iter().map(|pair| pair.1));
        push(&mut shard.dislikes, dislikes.iter().map(|pair| pair.0));
        shard.dislike_affinities.extend(dislikes.iter().map(|pair| pair.1));
        push(&mut shard.seen, seen.iter().copied());
        shard.segments.extend(with_segments.then_some(*segment));
        let &(events, pairs, first_event_us, last_event_us) = facts;
        shard.facts.push(UserFacts { events, pairs, first_event_us, last_event_us });
    }
    shard
}

fn ids_of(n: usize, texts: bool) -> Ids {
    if !texts {
        return Ids::Int((0..n as i64).map(|row| row * row - 3).collect());
    }
    let mut ids = Ids::Bytes(ByteIds::default());
    (0..n).for_each(|row| ids.push(IdRef::Bytes(format!("user-{:03}", row * 7).as_bytes())));
    ids
}

proptest! {
    #[test]
    fn histories_come_back_as_they_were(
        users in users(), texts in any::<bool>(), with_segments in any::<bool>()
    ) {
        let shard = shard_of(&users, ids_of(users.len(), texts), with_segments);
        let mut bytes = Vec::new();
        put_histories(&shard, &mut bytes);
        let read = read_histories(&bytes, 7, &shard.user_ids, N_ITEMS as usize).unwrap();
        prop_assert_eq!(&read.user_ids, &shard.user_ids);
        prop_assert_eq!(&read.interactions, &shard.interactions);
        prop_assert_eq!(&read.affinities, &shard.affinities);
        prop_assert_eq!(&read.dislikes, &shard.dislikes);
        prop_assert_eq!(&read.dislike_affinities, &shard.dislike_affinities);
        prop_assert_eq!(&read.seen, &shard.seen);
        prop_assert_eq!(&read.segments, &shard.segments);
        prop_assert_eq!(&read.facts, &shard.facts);
        prop_assert!(read_histories(&bytes, 6, &shard.user_ids, N_ITEMS as usize).is_err());
    }

    #[test]
    fn numbers_and_ids_of_any_order_come_back(
        unsigned in any::<u64>(), signed in any::<i64>(), ints in prop::collection::vec(any::<i64>(), 0..20),
        texts in prop::collection::vec("[a-c]{0,4}", 0..20)
    ) {
        let ints = Ids::Int(ints);
        let mut words = Ids::Bytes(ByteIds::default());
        texts.iter().for_each(|text| words.push(IdRef::Bytes(text.as_bytes())));
        let mut bytes = Vec::new();
        put_u64(unsigned, &mut bytes);
        put_i64(signed, &mut bytes);
        put_ids(&ints, &mut bytes);
        put_ids(&words, &mut bytes);
        let mut saved = Saved::new(&bytes);
        prop_assert_eq!(saved.u64(), Ok(unsigned));
        prop_assert_eq!(saved.i64(), Ok(signed));
        prop_assert_eq!(saved.ids(&ints), Ok(ints));
        prop_assert_eq!(saved.ids(&words), Ok(words));
        prop_assert_eq!(saved.finish(), Ok(()));
    }

    #[test]
    fn a_range_of_neighbor_lists_comes_back(
        rows in prop::collection::vec(
            prop::collection::vec((0u32..6, 0.1f32..1.0, 1u32..900), 0..5), 6),
        start in 0usize..6, n in 0usize..6,
    ) {
        let mut lists = NeighborLists::default();
        let triples = |row: &Vec<(u32, f32, u32)>| {
            row.iter().map(|&(item, score, support)| (ItemIdx(item), score, support)).collect::<Vec<_>>()
        };
        rows.iter().for_each(|row| lists.push_row(triples(row)));
        let range = start..(start + n).min(6);
        let mut bytes = Vec::new();
        put_neighbors(&lists, range.clone(), &mut bytes);
        let read = read_neighbors(&bytes, range.len(), 6).unwrap();
        prop_assert_eq!(read.n_rows(), range.len());
        for (row, item) in range.clone().enumerate() {
            prop_assert_eq!(read.of(row), lists.of(item));
        }
        prop_assert!(read_neighbors(&bytes, range.len() + 1, 6).is_err());
    }

    /// Whatever is done to bytes, reading them gives a result or an error, and takes no memory
    /// that is not there.
    #[test]
    fn damaged_bytes_never_panic(
        users in users(), texts in any::<bool>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        cut in any::<prop::sample::Index>(), noise in prop::collection::vec(any::<u8>(), 0..60)
    ) {
        let shard = shard_of(&users, ids_of(users.len(), texts), true);
        let mut bytes = Vec::new();
        put_histories(&shard, &mut bytes);
        prop_assert!(read_histories(&bytes[..cut.index(bytes.len())], 7, &shard.user_ids, 9).is_err());
        let place = at.index(bytes.len());
        bytes[place] = byte;
        let _ = read_histories(&bytes, 7, &shard.user_ids, N_ITEMS as usize);
        let _ = read_histories(&noise, 7, &shard.user_ids, N_ITEMS as usize);
        let _ = read_neighbors(&noise, 3, 9);
    }
}
