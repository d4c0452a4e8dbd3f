//! The histories of two shards against a slow twin that takes the documented steps one by one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::kernels::decay::{Decay, ValueTransform, event_weight, to_units};
use crate::kernels::event_rows::EventRows;
use crate::kernels::histories::{
    Block, Calendar, Dropped, EventKind, Filtered, MAX, Params, Scratch, draft, finish,
};
use crate::kernels::item_totals::{ItemSum, ItemTotals, PairSums, sum_of};
use crate::types::{ByteIds, DAY_US, Histories, IdRef, Ids, ItemIdx, UserFacts};

const N_ITEMS: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    user: u32,
    item: u32,
    kind: u8,
    value: f32,
    time: i64,
    id: u128,
}

/// What both are told beside the rows.
#[derive(Clone, Debug)]
struct Setup {
    kinds: Vec<EventKind>,
    calendar: Calendar,
    cap: usize,
    users_per_item_min: i64,
    has_segments: bool,
    /// So many that each adds to common sums, or does so where events are not all the same, or few.
    n_threads: usize,
}

/// What comes out of both.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    users: BTreeMap<u32, User>,
    sums: Vec<ItemSum>,
    /// First and last event of each item.
    times: Vec<(i64, i64)>,
    segment_sums: BTreeMap<(u32, u32), ItemSum>,
    rows_used: u64,
    filtered: Filtered,
    dropped: Dropped,
}

#[derive(Debug, PartialEq)]
struct User {
    history: Vec<(ItemIdx, i64)>,
    dislikes: Vec<(ItemIdx, i64)>,
    seen: Vec<ItemIdx>,
    segment: Option<u32>,
    facts: UserFacts,
}

/// Every third user has no segment.
fn segment_of(user: u32) -> u32 {
    if user.is_multiple_of(3) { u32::MAX } else { user % 2 }
}

// The twin.

impl Setup {
    fn kind(&self, row: &Row) -> &EventKind {
        &self.kinds[usize::from(row.kind)]
    }

    fn is_undo(&self, row: &Row) -> bool {
        let kind = self.kind(row);
        kind.undoes.is_some() || (kind.negative_undoes && row.value < 0.0)
    }

    fn weight(&self, row: &Row) -> f64 {
        let kind = self.kind(row);
        event_weight(kind.weight, f64::from(row.value), kind.transform, kind.value_max)
    }

    fn affinity(&self, row: &Row) -> i64 {
        self.calendar.decay.affinity(self.weight(row), row.time).unwrap()
    }
}

/// One item in the history of one user, before the cap.
#[derive(Debug)]
struct Pair {
    affinity: i64,
    last_us: i64,
}

/// Histories word for word: a step for all users, then the next.
fn twin(rows: &[Row], setup: &Setup) -> Outcome {
    let mut outcome = Outcome {
        sums: vec![ItemSum::default(); N_ITEMS as usize],
        times: vec![(i64::MAX, i64::MIN); N_ITEMS as usize],
        ..Outcome::default()
    };
    let mut pairs: BTreeMap<u32, BTreeMap<u32, Pair>> = BTreeMap::new();
    let mut seen: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    let mut dislikes: BTreeMap<u32, BTreeMap<u32, Pair>> = BTreeMap::new();
    for user in rows.iter().map(|row| row.user).collect::<BTreeSet<_>>() {
        let mut log: Vec<Row> = rows.iter().copied().filter(|row| row.user == user).collect();
        log.sort_by_key(|row| {
            (row.time, row.item, setup.is_undo(row), row.kind, row.value.to_bits(), row.id)
        });
        let log = before_as_of(&log, setup, &mut outcome.filtered);
        let log = without_duplicates(&log, &mut outcome.filtered);
        if log.is_empty() {
            continue;
        }
        note_times(&log, &mut outcome);
        let standing = not_undone(&log, setup, &mut outcome.filtered);
        let marks = standing.iter().filter(|row| marks_seen(row, setup));
        seen.insert(user, marks.map(|row| row.item).collect());
        let counting = counting(&standing, setup, &mut outcome);
        let (likes, against): (Vec<Row>, Vec<Row>) =
            counting.into_iter().partition(|row| setup.weight(row) > 0.0);
        dislikes.insert(user, dislikes_of(&against, setup));
        let counting = likes;
        pairs.insert(user, pairs_of(user, &counting, setup, &mut outcome));
        outcome.users.insert(user, user_of(user, &log, &counting, setup));
    }
    let kept = kept_items(&pairs, setup);
    for (user, of_user) in &mut outcome.users {
        of_user.seen = seen[user].iter().filter_map(|item| kept.get(item).copied()).collect();
        of_user.history = history(&pairs[user], &kept, setup.cap, &mut outcome.dropped);
        of_user.dislikes = history(&dislikes[user], &kept, setup.cap, &mut Dropped::default());
    }
    outcome
}

fn before_as_of(log: &[Row], setup: &Setup, filtered: &mut Filtered) -> Vec<Row> {
    let (before, after): (Vec<Row>, Vec<Row>) =
        log.iter().partition(|row| row.time < setup.calendar.as_of_us);
    filtered.after_as_of += after.len() as u64;
    before
}

/// The first of the rows with one id.
fn without_duplicates(log: &[Row], filtered: &mut Filtered) -> Vec<Row> {
    let mut kept: Vec<Row> = Vec::new();
    for row in log {
        if row.id != 0 && kept.iter().any(|other| other.id == row.id) {
            filtered.duplicate += 1;
        } else {
            kept.push(*row);
        }
    }
    kept
}

/// Of users and items, every event before `as_of` tells when they were there.
fn note_times(log: &[Row], outcome: &mut Outcome) {
    for row in log {
        let (first, last) = &mut outcome.times[row.item as usize];
        (*first, *last) = ((*first).min(row.time), (*last).max(row.time));
    }
}

/// Each undo cancels the latest earlier event of its item and group that is not cancelled.
fn not_undone(log: &[Row], setup: &Setup, filtered: &mut Filtered) -> Vec<Row> {
    let mut cancelled = vec![false; log.len()];
    for (place, undo) in log.iter().enumerate().filter(|(_, row)| setup.is_undo(row)) {
        cancelled[place] = true;
        let kind = setup.kind(undo);
        let group = kind.undoes.unwrap_or(kind.group);
        let is_target = |&earlier: &usize| {
            let row = &log[earlier];
            row.item == undo.item && setup.kind(row).group == group && !cancelled[earlier]
        };
        match (0..place).rev().find(is_target) {
            Some(earlier) => {
                cancelled[earlier] = true;
                filtered.undone += 2;
            }
            None => filtered.undo_without_event += 1,
        }
    }
    let standing = log.iter().zip(cancelled).filter(|(_, cancelled)| !cancelled);
    standing.map(|(row, _)| *row).collect()
}

/// The window and the cap play no part.
fn marks_seen(row: &Row, setup: &Setup) -> bool {
    let kind = setup.kind(row);
    kind.excludes_item || (kind.marks_seen && row.time >= setup.calendar.seen_start_us)
}

/// Events in the window that weigh something. Those that never do are used all the same.
fn counting(standing: &[Row], setup: &Setup, outcome: &mut Outcome) -> Vec<Row> {
    let mut counting = Vec::new();
    for row in standing {
        if row.time < setup.calendar.window_start_us {
            outcome.filtered.before_window += 1;
        } else if setup.kind(row).weight == 0.0 {
            outcome.rows_used += 1;
        } else if setup.affinity(row) == 0 {
            outcome.filtered.faded += 1;
        } else {
            outcome.rows_used += 1;
            counting.push(*row);
        }
    }
    counting
}

/// Affinities of the items of one user, added to the sums.
fn pairs_of(
    user: u32,
    counting: &[Row],
    setup: &Setup,
    outcome: &mut Outcome,
) -> BTreeMap<u32, Pair> {
    let mut pairs = BTreeMap::new();
    for item in counting.iter().map(|row| row.item).collect::<BTreeSet<_>>() {
        let rows = || counting.iter().filter(|row| row.item == item);
        let units = |row: &Row| to_units(setup.weight(row)).unwrap();
        let affinity = rows().map(|row| setup.affinity(row)).sum();
        let newer = rows().filter(|row| row.time >= setup.calendar.middle_us);
        let sums = PairSums {
            events: rows().count() as i64,
            weight: rows().map(units).sum(),
            affinity,
            newer: newer.map(units).sum(),
        };
        outcome.sums[item as usize].add(sums);
        if setup.has_segments && segment_of(user) != u32::MAX {
            outcome.segment_sums.entry((segment_of(user), item)).or_default().add(sums);
        }
        let last_us = rows().map(|row| row.time).max().unwrap();
        pairs.insert(item, Pair { affinity, last_us });
    }
    pairs
}

/// What events with negative weights add up to, by item; no sum and no support knows of them.
fn dislikes_of(against: &[Row], setup: &Setup) -> BTreeMap<u32, Pair> {
    let mut pairs: BTreeMap<u32, Pair> = BTreeMap::new();
    for row in against {
        let pair = pairs.entry(row.item).or_insert(Pair { affinity: 0, last_us: i64::MIN });
        pair.affinity += setup.affinity(row);
        pair.last_us = pair.last_us.max(row.time);
    }
    pairs
}

fn user_of(user: u32, log: &[Row], counting: &[Row], setup: &Setup) -> User {
    let items: BTreeSet<u32> = counting.iter().map(|row| row.item).collect();
    User {
        history: Vec::new(),
        dislikes: Vec::new(),
        seen: Vec::new(),
        segment: setup.has_segments.then(|| segment_of(user)),
        facts: UserFacts {
            events: counting.len() as u32,
            pairs: items.len() as u32,
            first_event_us: log.iter().map(|row| row.time).min().unwrap(),
            last_event_us: log.iter().map(|row| row.time).max().unwrap(),
        },
    }
}

/// Items with enough distinct users, counted once, and their new numbers.
fn kept_items(pairs: &BTreeMap<u32, BTreeMap<u32, Pair>>, setup: &Setup) -> BTreeMap<u32, ItemIdx> {
    let n_users = |item: &u32| pairs.values().filter(|of| of.contains_key(item)).count() as i64;
    let enough = (0..N_ITEMS).filter(|item| n_users(item) >= setup.users_per_item_min.max(1));
    enough.zip((0..).map(ItemIdx)).collect()
}

/// The newest `cap` of the items kept, ties to the lower item.
fn history(
    pairs: &BTreeMap<u32, Pair>,
    kept: &BTreeMap<u32, ItemIdx>,
    cap: usize,
    dropped: &mut Dropped,
) -> Vec<(ItemIdx, i64)> {
    let mut newest: Vec<(ItemIdx, &Pair)> =
        pairs.iter().filter_map(|(item, pair)| Some((*kept.get(item)?, pair))).collect();
    dropped.too_few_users += (pairs.len() - newest.len()) as u64;
    dropped.over_cap += newest.len().saturating_sub(cap) as u64;
    dropped.users_over_cap += u64::from(newest.len() > cap);
    newest.sort_by_key(|(item, pair)| (Reverse(pair.last_us), *item));
    newest.truncate(cap);
    newest.sort_by_key(|(item, _)| *item);
    newest.into_iter().map(|(item, pair)| (item, pair.affinity)).collect()
}

// The kernel.

/// Ids whose order is the order of the numbers.
fn id_of(user: u32, as_bytes: bool, rows: &mut EventRows) {
    if as_bytes {
        rows.users.push(IdRef::Bytes(format!("user {user}").as_bytes()), u64::from(user / 2));
    } else {
        rows.users.push(IdRef::Int(i64::from(user) - 2), 0);
    }
}

fn number_of(id: IdRef<'_>) -> u32 {
    match id {
        IdRef::Int(id) => (id + 2) as u32,
        IdRef::Bytes(id) => std::str::from_utf8(&id[5..]).unwrap().parse().unwrap(),
    }
}

/// Items as they are, or backwards: their ranks are to be looked up then.
fn packed(rows: &[Row], like: &Ids, is_backwards: bool) -> Vec<u8> {
    let mut columns = EventRows::new_like(like);
    for row in rows {
        id_of(row.user, matches!(like, Ids::Bytes(_)), &mut columns);
        columns.items.push(if is_backwards { N_ITEMS - 1 - row.item } else { row.item });
        columns.kinds.push(row.kind);
        columns.values.push(row.value);
        columns.times.push(row.time);
        columns.digests.push(row.id);
    }
    if columns.digests.iter().all(|&digest| digest == 0) {
        columns.digests.clear();
    }
    columns.pack()
}

/// What a run does: drafts of all shards, support over all of them, then the end of each.
fn kernel(rows: &[Row], setup: &Setup, as_bytes: bool) -> Outcome {
    let segment = |id: IdRef<'_>| segment_of(number_of(id));
    let params = Params {
        kinds: &setup.kinds,
        calendar: &setup.calendar,
        interactions_per_user_max: setup.cap,
        segment_of: if setup.has_segments { Some(&segment) } else { None },
    };
    let like = if as_bytes { Ids::Bytes(ByteIds::default()) } else { Ids::Int(Vec::new()) };
    let totals = ItemTotals::new(N_ITEMS as usize);
    let backwards: Vec<u32> = (0..N_ITEMS).rev().collect();
    let mut scratch = Scratch::new(&totals, setup.n_threads);
    let drafts = [0, 1].map(|shard| {
        let of_shard: Vec<Row> = rows.iter().copied().filter(|row| row.user % 2 == shard).collect();
        let (some, others) = of_shard.split_at(of_shard.len() / 3);
        let (some, others) = (packed(some, &like, false), packed(others, &like, true));
        let blocks = [
            Block { packed: &some, ranks: None, users: None },
            Block { packed: &others, ranks: Some(&backwards), users: None },
        ];
        draft(&blocks, &like, params, &mut scratch)
    });
    drop(scratch);
    let (sums, times) = (totals.sums(), totals.times());
    let mut outcome = Outcome {
        sums: (0..N_ITEMS as usize).map(|item| sum_of(&sums, item)).collect(),
        times: times.chunks(2).map(|of_item| (of_item[0], of_item[1])).collect(),
        ..Outcome::default()
    };
    let is_kept = |sum: &ItemSum| sum.users >= setup.users_per_item_min.max(1);
    let mut numbers = 0..;
    let idx = |sum| if is_kept(sum) { numbers.next() } else { None };
    let idx_of_rank: Vec<u32> =
        outcome.sums.iter().map(idx).map(|idx| idx.unwrap_or(u32::MAX)).collect();
    for (shard, draft) in (0..).zip(drafts) {
        for (&key, sum) in &draft.segment_sums {
            outcome.segment_sums.entry(key).or_default().merge(sum);
        }
        outcome.rows_used += draft.rows_used;
        outcome.filtered = plus(outcome.filtered, draft.filtered);
        let (histories, dropped) = finish(draft, shard, &idx_of_rank, setup.cap);
        outcome.dropped.too_few_users += dropped.too_few_users;
        outcome.dropped.over_cap += dropped.over_cap;
        outcome.dropped.users_over_cap += dropped.users_over_cap;
        outcome.users.extend(users_of(&histories));
    }
    outcome
}

fn plus(a: Filtered, b: Filtered) -> Filtered {
    Filtered {
        after_as_of: a.after_as_of + b.after_as_of,
        duplicate: a.duplicate + b.duplicate,
        undone: a.undone + b.undone,
        undo_without_event: a.undo_without_event + b.undo_without_event,
        before_window: a.before_window + b.before_window,
        faded: a.faded + b.faded,
    }
}

fn users_of(histories: &Histories) -> BTreeMap<u32, User> {
    let ids: Vec<IdRef<'_>> = histories.user_ids.iter().collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "users are sorted, each once");
    let user = |row: usize| {
        let (items, affinities) = histories.of(row);
        let history = items.iter().copied().zip(affinities.iter().copied()).collect();
        let range = histories.dislikes.range(row);
        let of_dislikes = histories.dislike_affinities[range].iter().copied();
        let dislikes = histories.dislikes.of(row).iter().copied().zip(of_dislikes).collect();
        let segment = histories.segments.get(row).copied();
        let seen = histories.seen.of(row).to_vec();
        User { history, dislikes, seen, segment, facts: histories.facts[row] }
    };
    ids.iter().enumerate().map(|(row, id)| (number_of(*id), user(row))).collect()
}

// The logs.

fn kinds() -> Vec<EventKind> {
    let view = EventKind {
        weight: 1.0,
        transform: ValueTransform::None,
        value_max: None,
        group: 0,
        undoes: None,
        negative_undoes: false,
        excludes_item: false,
        marks_seen: false,
    };
    let buy = EventKind { weight: 10.0, group: 1, marks_seen: true, ..view.clone() };
    let linear = EventKind { transform: ValueTransform::Linear, negative_undoes: true, ..buy };
    vec![
        EventKind { negative_undoes: true, ..view.clone() },
        EventKind { transform: ValueTransform::Log1p, value_max: Some(5.0), ..linear.clone() },
        EventKind { weight: 0.0, group: 2, undoes: Some(1), ..view.clone() },
        EventKind { weight: 0.0, group: 3, excludes_item: true, ..view.clone() },
        EventKind { weight: 0.25, group: 4, excludes_item: true, ..view.clone() },
        // The second log's purchases: another weight, the same group.
        EventKind { weight: 0.5, ..linear },
        EventKind { weight: 0.0, group: 5, undoes: Some(3), ..view.clone() },
        EventKind { weight: -2.0, group: 6, ..view },
    ]
}

/// Few times, items and ids, so that ties, repetitions and undone events are common. Some logs have
/// no event ids, no negative values and times by the second, so that 64 bits hold an event.
fn rows() -> impl Strategy<Value = Vec<Row>> {
    let value = prop_oneof![Just(-2f32), Just(-1.0), Just(1.0), Just(1.0), Just(3.0), Just(9.0)];
    let id = prop_oneof![3 => Just(0u128), 1 => 1u128..9];
    let row = (0u32..7, 0..N_ITEMS, 0..kinds().len() as u8, value, 0i64..23, id);
    let row = row.prop_map(|(user, item, kind, value, time, id)| Row {
        user,
        item,
        kind,
        value,
        time: time * 5 * DAY_US,
        id,
    });
    (prop::collection::vec(row, 0..90), any::<[bool; 3]>()).prop_map(
        |(mut rows, [has_ids, has_negative, is_fine])| {
            for row in &mut rows {
                row.id = if has_ids { row.id } else { 0 };
                row.value = if has_negative { row.value } else { row.value.abs() };
                row.time += i64::from(is_fine && row.user == 3);
                let meaning = &kinds()[usize::from(row.kind)];
                row.value = if meaning.negative_undoes { row.value } else { row.value.abs() };
                let is_counted = meaning.transform != ValueTransform::None || row.value < 0.0;
                row.value = if is_counted { row.value } else { 1.0 };
            }
            rows
        },
    )
}

prop_compose! {
    fn setups()(
        half_life_days in prop_oneof![Just(None), Just(Some(2)), Just(Some(40))],
        window_start in prop_oneof![Just(i64::MIN), Just(40), Just(50)],
        seen_start in prop_oneof![Just(i64::MIN), Just(20), Just(75)],
        cap in prop_oneof![1usize..6, Just(1000)],
        users_per_item_min in 0i64..5,
        has_segments in any::<bool>(),
        n_threads in prop_oneof![Just(1), Just(1 << 22), Just(1 << 40)],
    ) -> Setup {
        let day = |day: i64| day.saturating_mul(DAY_US);
        let decay = Decay { half_life_us: half_life_days.map(day), as_of_us: day(100) };
        Setup {
            kinds: kinds(),
            calendar: Calendar {
                as_of_us: day(100),
                window_start_us: day(window_start),
                seen_start_us: day(seen_start),
                middle_us: day(70),
                decay,
            },
            cap,
            users_per_item_min,
            has_segments,
            n_threads,
        }
    }
}

/// Logs, some of them long, whose events weigh what their kinds do, and that mostly count as a whole.
fn plain() -> impl Strategy<Value = (Vec<Row>, Setup)> {
    let row = (0u32..4, 0..N_ITEMS, 0..3u8, 0i64..95);
    let rows =
        prop_oneof![prop::collection::vec(row.clone(), 0..40), prop::collection::vec(row, 0..900)];
    let marks = prop_oneof![Just([true; 3]), Just([false; 3]), any::<[bool; 3]>()];
    (rows, setups(), marks, any::<[bool; 5]>()).prop_map(
        |(rows, mut setup, marks, [has_window, is_old, has_segments, has_heavy, are_same])| {
            let row = |(user, item, kind, time)| {
                // Late, if some are old.
                let (kind, time) =
                    if are_same { (0, if is_old { 95 } else { 60 }) } else { (kind, time) };
                let time = DAY_US * (time + i64::from(is_old && time > 90) * 20);
                Row { user, item, kind, value: 1.0, time, id: 0 }
            };
            let weights = [1.0, 2.5, if has_heavy { 1e7 } else { 1e-5 }];
            let kind = |(weight, marks_seen)| {
                let undone = kinds().swap_remove(0);
                EventKind { weight, marks_seen, negative_undoes: false, ..undone }
            };
            setup.kinds = weights.into_iter().zip(marks).map(kind).collect();
            if are_same {
                setup.kinds.truncate(1);
            }
            setup.calendar.decay.half_life_us = None;
            if !has_window {
                setup.calendar.window_start_us = i64::MIN;
            }
            setup.has_segments &= has_segments;
            (rows.into_iter().map(row).collect(), setup)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn plain_logs_are_no_exception((rows, setup) in plain(), as_bytes in any::<bool>()) {
        let outcome = kernel(&rows, &setup, as_bytes);
        prop_assert_eq!(&outcome, &twin(&rows, &setup));
        prop_assert_eq!(rows.len() as u64, outcome.rows_used + outcome.filtered.total());
    }

    #[test]
    fn the_kernel_equals_its_twin(rows in rows(), setup in setups(), as_bytes in any::<bool>()) {
        let outcome = kernel(&rows, &setup, as_bytes);
        prop_assert_eq!(&outcome, &twin(&rows, &setup));
        prop_assert_eq!(rows.len() as u64, outcome.rows_used + outcome.filtered.total());
    }

    #[test]
    fn the_order_of_rows_does_not_matter(
        (rows, shuffled) in rows().prop_flat_map(|rows| (Just(rows.clone()), Just(rows).prop_shuffle())),
        setup in setups(),
    ) {
        let expected = kernel(&rows, &setup, false);
        prop_assert_eq!(&expected, &kernel(&shuffled, &setup, true));
        // As rows of state come.
        let mut by_user = shuffled;
        by_user.sort_by_key(|row| row.user);
        prop_assert_eq!(&expected, &kernel(&by_user, &setup, false));
        prop_assert_eq!(&expected, &kernel(&by_user, &setup, true));
    }
}

/// A purchase is undone by the return that follows it, not by one that came before.
#[test]
fn an_undo_takes_back_the_latest_earlier_event() {
    let mut setup = Setup {
        kinds: kinds(),
        calendar: Calendar {
            as_of_us: 100,
            window_start_us: i64::MIN,
            seen_start_us: i64::MIN,
            middle_us: 0,
            decay: Decay { half_life_us: None, as_of_us: 100 },
        },
        cap: 10,
        users_per_item_min: 1,
        has_segments: false,
        n_threads: 1,
    };
    let buy = Row { user: 1, item: 0, kind: 5, value: 2.0, time: 10, id: 0 };
    let back = Row { kind: 2, value: 1.0, ..buy };
    let log = [
        Row { time: 1, ..back },
        buy,
        Row { value: 3.0, time: 20, ..buy },
        Row { time: 30, ..back },
    ];
    let outcome = kernel(&log, &setup, false);
    let filtered = Filtered { undone: 2, undo_without_event: 1, ..Filtered::default() };
    assert_eq!(outcome.filtered, filtered);
    assert_eq!(outcome.users[&1].history, [(ItemIdx(0), 1 << 16)], "0.5 times the value 2");
    // At one instant, the event comes before what takes it back.
    let outcome = kernel(&[Row { time: 10, ..back }, buy], &setup, false);
    assert!(outcome.users[&1].history.is_empty() && outcome.users[&1].seen.is_empty());

    // An affinity stops at the largest one; the caller refuses such a run.
    setup.kinds[5].weight = 1e15;
    assert_eq!(kernel(&[buy], &setup, false).sums[0].affinity, MAX);
}
