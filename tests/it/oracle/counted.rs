//! The oracle's first half: which events count, and what users and items they leave.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{AS_OF, CAP, DAY, Row, Rows, USERS_MIN};

/// The first multiple of the half-life at or after `as_of`.
const REFERENCE: i64 = 20_010 * DAY;
const HALF_LIFE: i64 = 30 * DAY;
const WINDOW_START: i64 = AS_OF - 60 * DAY;
const SEEN_START: i64 = AS_OF - 80 * DAY;
const ONE: f64 = 65_536.0;

fn weight(row: &Row) -> f64 {
    match row.event {
        "view" => 1.0,
        "rate" => 0.5 * row.value,
        "purchase" => 10.0 * row.value.min(5.0).ln_1p(),
        _ => 0.0,
    }
}

fn affinity(row: &Row) -> i64 {
    let half_lives = (row.time - REFERENCE) as f64 / HALF_LIFE as f64;
    (ONE * weight(row) * half_lives.exp2()).round() as i64
}

/// What one affinity unit is worth at `as_of`.
pub(super) fn unit() -> f64 {
    ((REFERENCE - AS_OF) as f64 / HALF_LIFE as f64).exp2() / ONE
}

fn undoes(row: &Row) -> Option<&'static str> {
    match row.event {
        "return" => Some("purchase"),
        "rate" if row.value < 0.0 => Some("rate"),
        _ => None,
    }
}

#[derive(Default)]
pub(super) struct User<'a> {
    /// Valid events before `as_of`, in order of time, each once.
    log: Vec<&'a Row>,
    /// Those in the window that weigh something and are not undone.
    counting: Vec<&'a Row>,
    pub(super) seen: BTreeSet<i64>,
    /// Affinities of the items kept.
    pub(super) history: BTreeMap<i64, i64>,
}

impl User<'_> {
    fn pairs(&self) -> BTreeSet<i64> {
        self.counting.iter().map(|row| row.item).collect()
    }

    fn last(&self, item: i64) -> Option<i64> {
        self.counting.iter().filter(|row| row.item == item).map(|row| row.time).max()
    }
}

pub(super) fn users(rows: &[Row]) -> BTreeMap<&str, User<'_>> {
    let mut users: BTreeMap<&str, User<'_>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.event != "scroll" && row.time < AS_OF) {
        if let Some(user) = &row.user {
            users.entry(user).or_default().log.push(row);
        }
    }
    for user in users.values_mut() {
        user.log.sort_by_key(|row| row.time);
        let mut ids = BTreeSet::new();
        user.log.retain(|row| row.id.is_none_or(|id| ids.insert(id)));
        user.counting = not_undone(&user.log);
        let marks = |row: &&&Row| match row.event {
            "hide" => true,
            event => event == "purchase" && row.time >= SEEN_START,
        };
        user.seen = user.counting.iter().filter(marks).map(|row| row.item).collect();
        user.counting.retain(|row| row.time >= WINDOW_START && affinity(row) > 0);
    }
    let mut support: BTreeMap<i64, usize> = BTreeMap::new();
    for item in users.values().flat_map(User::pairs) {
        *support.entry(item).or_default() += 1;
    }
    support.retain(|_, n_users| *n_users >= USERS_MIN);
    for user in users.values_mut() {
        let mut newest: Vec<i64> = user.pairs().into_iter().collect();
        newest.retain(|item| support.contains_key(item));
        newest.sort_by_key(|&item| Reverse(user.last(item)));
        newest.truncate(CAP);
        for row in user.counting.iter().filter(|row| newest.contains(&row.item)) {
            *user.history.entry(row.item).or_default() += affinity(row);
        }
    }
    users
}

/// Each undo takes the latest earlier event of its kind that is still there.
fn not_undone<'a>(log: &[&'a Row]) -> Vec<&'a Row> {
    let mut standing: Vec<&Row> = Vec::new();
    for row in log {
        let Some(target) = undoes(row) else {
            standing.push(row);
            continue;
        };
        let is_target = |other: &&Row| other.item == row.item && other.event == target;
        if let Some(place) = standing.iter().rposition(is_target) {
            standing.remove(place);
        }
    }
    standing
}

pub(super) fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| value.to_string())
}

pub(super) fn texts(values: &[&dyn ToString]) -> Vec<String> {
    values.iter().map(|value| value.to_string()).collect()
}

pub(super) fn user_rows(users: &BTreeMap<&str, User<'_>>) -> Rows {
    let row = |(id, user): (&&str, &User<'_>)| {
        let reason = match (user.counting.is_empty(), user.history.is_empty()) {
            (_, false) => None,
            (true, true) => Some("outside_window"),
            (false, true) => Some("items_with_too_few_users"),
        };
        let (first, last) = (user.log[0].time, user.log[user.log.len() - 1].time);
        let (n_events, n_items) = (user.counting.len(), user.history.len());
        let eligible = reason.is_none();
        (texts(&[id, &n_events, &n_items, &first, &last, &eligible, &text(reason)]), vec![])
    };
    users.iter().map(row).collect()
}

#[derive(Default)]
pub(super) struct Item {
    pub(super) idx: Option<usize>,
    pub(super) rank: usize,
    events: usize,
    users: BTreeSet<String>,
    weight: i64,
    newer: i64,
    pub(super) affinity: i64,
    times: BTreeSet<i64>,
}

/// Every item that occurs in a valid row, with its index and rank where it is kept.
pub(super) fn items(rows: &[Row], users: &BTreeMap<&str, User<'_>>) -> BTreeMap<i64, Item> {
    let valid = rows.iter().filter(|row| row.user.is_some() && row.event != "scroll");
    let mut items: BTreeMap<i64, Item> = valid.map(|row| (row.item, Item::default())).collect();
    for (id, user) in users {
        for row in &user.log {
            items.entry(row.item).or_default().times.insert(row.time);
        }
        for row in &user.counting {
            let item = items.entry(row.item).or_default();
            let units = (ONE * weight(row)).round() as i64;
            item.events += 1;
            item.users.insert((*id).to_owned());
            item.weight += units;
            item.newer += if row.time >= (WINDOW_START + AS_OF) / 2 { units } else { 0 };
            item.affinity += affinity(row);
        }
    }
    let kept = || items.iter().filter(|(_, item)| item.users.len() >= USERS_MIN);
    let mut order: Vec<(Reverse<i64>, i64)> =
        kept().map(|(&id, item)| (Reverse(item.affinity), id)).collect();
    order.sort_unstable();
    let ids: Vec<i64> = kept().map(|(&id, _)| id).collect();
    for (idx, id) in ids.iter().enumerate() {
        items.get_mut(id).unwrap().idx = Some(idx);
    }
    for (rank, (_, id)) in (1..).zip(&order) {
        items.get_mut(id).unwrap().rank = rank;
    }
    items
}

pub(super) fn item_rows(items: &BTreeMap<i64, Item>) -> Rows {
    let row = |(id, item): (&i64, &Item)| {
        let reason = match (item.idx, item.events) {
            (Some(_), _) => None,
            (None, 0) => Some("outside_window"),
            (None, _) => Some("too_few_users"),
        };
        let (first, last) = (text(item.times.first()), text(item.times.last()));
        let (idx, n_users) = (text(item.idx), item.users.len());
        let eligible = reason.is_none();
        let cells = texts(&[id, &idx, &item.events, &n_users, &first, &last, &eligible]);
        ([cells, vec![text(reason)]].concat(), vec![])
    };
    items.iter().map(row).collect()
}

pub(super) fn popularity_rows(items: &BTreeMap<i64, Item>) -> Rows {
    let row = |(id, item): (&i64, &Item)| {
        let idx = item.idx?;
        let (newer, older) = (item.newer as f64 / ONE, (item.weight - item.newer) as f64 / ONE);
        let trend = (newer + 10.0) / (older + 10.0);
        let exact = texts(&[id, &idx, &item.events, &item.users.len(), &item.rank]);
        Some((exact, vec![item.weight as f64 / ONE, item.affinity as f64 * unit(), trend]))
    };
    items.iter().filter_map(row).collect()
}
