//! The whole job on 1, 2 and 3 workers against a sequential oracle: maps, loops and definitions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::DataType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::fixture::{Sandbox, batch, column, write_parquet};

const DAY: i64 = 86_400_000_000;
const AS_OF: i64 = 20_000 * DAY;
const AS_OF_TEXT: &str = "2024-10-04T00:00:00Z";
/// The first multiple of the half-life at or after `as_of`.
const REFERENCE: i64 = 20_010 * DAY;
const HALF_LIFE: i64 = 30 * DAY;
const WINDOW_START: i64 = AS_OF - 60 * DAY;
const SEEN_START: i64 = AS_OF - 80 * DAY;
const ONE: f64 = 65_536.0;
const CAP: usize = 8;
const USERS_MIN: usize = 2;
const N_NEIGHBORS: usize = 4;
const SHRINKAGE: f64 = 0.5;
const K: usize = 6;

fn spec(weights: &str, candidates: &str) -> String {
    format!(
        r#"
name = "oracle"
shards = 4
[[events]]
url = "log/"
columns = {{ user = "user", item = "item", time = "time", event = "event", value = "value", id = "id" }}
[events.weights]
view = 1.0
rate = {{ weight = 0.5, value = "linear", negative = "undo" }}
purchase = {{ weight = 10.0, value = "log1p", value_max = 5 }}
return = {{ undoes = "purchase" }}
hide = {{ excludes_item = true }}
[history]
window_days = 60
half_life_days = 30
interactions_per_user_max = {CAP}
users_per_item_min = {USERS_MIN}
[popularity]
[item_neighbors]
weights = "{weights}"
shrinkage = {SHRINKAGE}
n_neighbors = {N_NEIGHBORS}
[top_k]
k = {K}
candidates = {candidates}
history_weights = "{weights}"
exclude_seen = ["purchase"]
exclude_seen_days = 80
[output]
url = "out/"
"#
    )
}

#[derive(Clone)]
struct Row {
    user: Option<String>,
    item: i64,
    event: &'static str,
    value: f64,
    time: i64,
    id: Option<i64>,
}

/// Low numbers are popular, high ones rare; no two events at one time but copies.
fn random_log(seed: u64) -> Vec<Row> {
    const EVENTS: [&str; 9] =
        ["view", "view", "view", "rate", "rate", "purchase", "return", "hide", "scroll"];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows: Vec<Row> = Vec::new();
    for n in 0..1_200 {
        let mut skewed = |n: i64| rng.random_range(0..n) * rng.random_range(1..=n) / n;
        let (user, item) = (skewed(60), skewed(40) - 3);
        let event = EVENTS[rng.random_range(0..EVENTS.len())];
        let value = f64::from(rng.random_range(1..9));
        rows.push(Row {
            user: rng.random_bool(0.95).then(|| format!("u{user}")),
            item,
            event,
            value: if event == "rate" && rng.random_bool(0.3) { -value } else { value },
            time: AS_OF + rng.random_range(-100 * DAY..4 * DAY),
            id: rng.random_bool(0.5).then_some(n),
        });
        if rng.random_bool(0.1) {
            // Again: the same event where it has an id, and another one where not.
            let copy = rows[rng.random_range(0..rows.len())].clone();
            let later = if rng.random_bool(0.5) { rng.random_range(0..DAY) } else { 0 };
            rows.push(Row { time: copy.time + later, ..copy });
        }
    }
    rows
}

fn write_log(sandbox: &Sandbox, rows: &[Row]) {
    let time = |rows: &[Row]| rows.iter().map(|row| row.time).collect::<Vec<_>>();
    for (part, rows) in rows.chunks(500).enumerate() {
        let log = batch(&[
            ("user", Arc::new(rows.iter().map(|row| row.user.as_deref()).collect::<StringArray>())),
            ("item", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.item)))),
            ("event", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.event)))),
            ("value", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.value)))),
            ("time", Arc::new(TimestampMicrosecondArray::from(time(rows)).with_timezone("UTC"))),
            ("id", Arc::new(rows.iter().map(|row| row.id).collect::<Int64Array>())),
        ]);
        write_parquet(&sandbox.path(&format!("log/part-{part}.parquet")), &log, 70);
    }
}

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
fn unit() -> f64 {
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
struct User<'a> {
    /// Valid events before `as_of`, in order of time, each once.
    log: Vec<&'a Row>,
    /// Those in the window that weigh something and are not undone.
    counting: Vec<&'a Row>,
    seen: BTreeSet<i64>,
    /// Affinities of the items kept.
    history: BTreeMap<i64, i64>,
}

impl User<'_> {
    fn pairs(&self) -> BTreeSet<i64> {
        self.counting.iter().map(|row| row.item).collect()
    }
}

fn users(rows: &[Row]) -> BTreeMap<&str, User<'_>> {
    let mut users: BTreeMap<&str, User<'_>> = BTreeMap::new();
    let valid = |row: &&Row| row.event != "scroll" && row.time < AS_OF;
    for row in rows.iter().filter(valid) {
        if let Some(user) = &row.user {
            users.entry(user).or_default().log.push(row);
        }
    }
    for user in users.values_mut() {
        user.log.sort_by_key(|row| row.time);
        let mut ids = BTreeSet::new();
        user.log.retain(|row| row.id.is_none_or(|id| ids.insert(id)));
        let mut standing: Vec<&Row> = Vec::new();
        for &row in &user.log {
            let Some(target) = undoes(row) else {
                standing.push(row);
                continue;
            };
            let is_target = |other: &&Row| other.item == row.item && other.event == target;
            if let Some(place) = standing.iter().rposition(is_target) {
                standing.remove(place);
            }
        }
        let marks = |row: &&&Row| {
            row.event == "hide" || (row.event == "purchase" && row.time >= SEEN_START)
        };
        user.seen = standing.iter().filter(marks).map(|row| row.item).collect();
        standing.retain(|row| row.time >= WINDOW_START && affinity(row) > 0);
        user.counting = standing;
    }
    let mut support: BTreeMap<i64, usize> = BTreeMap::new();
    for item in users.values().flat_map(User::pairs) {
        *support.entry(item).or_default() += 1;
    }
    for user in users.values_mut() {
        let mut newest: Vec<i64> = user.pairs().into_iter().collect();
        newest.retain(|item| support[item] >= USERS_MIN);
        let last = |item| user.counting.iter().filter(move |row| row.item == item).map(|row| row.time);
        newest.sort_by_key(|&item| Reverse(last(item).max()));
        newest.truncate(CAP);
        let kept = user.counting.iter().filter(|row| newest.contains(&row.item));
        for row in kept {
            *user.history.entry(row.item).or_default() += affinity(row);
        }
    }
    users
}

/// Rows of a table: what must be equal, and numbers that must be close.
type Rows = Vec<(Vec<String>, Vec<f64>)>;

fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| value.to_string())
}

fn texts(values: &[&dyn ToString]) -> Vec<String> {
    values.iter().map(|value| value.to_string()).collect()
}

fn expected_users(users: &BTreeMap<&str, User<'_>>) -> Rows {
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
struct Item {
    idx: Option<usize>,
    rank: usize,
    events: usize,
    users: BTreeSet<String>,
    weight: i64,
    newer: i64,
    affinity: i64,
    times: BTreeSet<i64>,
}

/// Every item that occurs in a valid row; the first 60 days of the log are outside the window.
fn items(rows: &[Row], users: &BTreeMap<&str, User<'_>>) -> BTreeMap<i64, Item> {
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

fn expected_items(items: &BTreeMap<i64, Item>) -> Rows {
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

fn expected_popularity(items: &BTreeMap<i64, Item>) -> Rows {
    let row = |(id, item): (&i64, &Item)| {
        let idx = item.idx?;
        let (newer, older) = (item.newer as f64 / ONE, (item.weight - item.newer) as f64 / ONE);
        let trend = (newer + 10.0) / (older + 10.0);
        let exact = texts(&[id, &idx, &item.events, &item.users.len(), &item.rank]);
        Some((exact, vec![item.weight as f64 / ONE, item.affinity as f64 * unit(), trend]))
    };
    items.iter().filter_map(row).collect()
}

/// Item, score, and its support or the item behind it.
type Scored = (i64, f32, i64);

fn best(mut scored: Vec<Scored>, n: usize) -> Vec<Scored> {
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scored.truncate(n);
    scored
}

/// Scores are rounded to f32 where the definition says so: that is what decides ties.
fn neighbors(
    items: &BTreeMap<i64, Item>,
    users: &BTreeMap<&str, User<'_>>,
    weighted: bool,
) -> BTreeMap<i64, Vec<Scored>> {
    let value = |user: &User<'_>, item: i64| {
        user.history.get(&item).map(|&affinity| if weighted { affinity } else { 1 })
    };
    let shrinkage = if weighted { SHRINKAGE / unit().powi(2) } else { SHRINKAGE };
    let dot = |a: i64, b: i64| {
        let common = users.values().filter_map(|user| Some(value(user, a)? * value(user, b)?));
        common.fold((0, 0), |(dot, support), product| (dot + product, support + 1))
    };
    let norm = |item| (dot(item, item).0 as f64).sqrt();
    let kept: Vec<i64> =
        items.iter().filter(|(_, item)| item.idx.is_some()).map(|(&id, _)| id).collect();
    let of = |a: i64| {
        let others = kept.iter().filter(|&&b| b != a && dot(a, b).1 > 0).map(|&b| {
            let (dot, support) = dot(a, b);
            (b, (dot as f64 / (norm(a) * norm(b) + shrinkage)) as f32, support)
        });
        (a, best(others.collect(), N_NEIGHBORS))
    };
    kept.iter().copied().map(of).collect()
}

fn expected_neighbors(neighbors: &BTreeMap<i64, Vec<Scored>>) -> Rows {
    let of_item = |(item, list): (&i64, &Vec<Scored>)| -> Rows {
        let row = |(rank, &(neighbor, score, support)): (i32, &Scored)| {
            (texts(&[item, &rank, &neighbor, &support]), vec![f64::from(score)])
        };
        (1..).zip(list).map(row).collect()
    };
    neighbors.iter().flat_map(of_item).collect()
}

/// What a history item proposes: the candidates nearest to it that have it among their neighbors.
fn proposals(neighbors: &BTreeMap<i64, Vec<Scored>>, of: i64) -> Vec<Scored> {
    let similarity = |(&candidate, list): (&i64, &Vec<Scored>)| {
        list.iter().find(|entry| entry.0 == of).map(|entry| (candidate, entry.1, of))
    };
    best(neighbors.iter().filter_map(similarity).collect(), 3 * N_NEIGHBORS)
}

/// Sums of similarities to the history, in its order and in f32, with the largest one's item.
fn by_neighbors(
    user: &User<'_>,
    neighbors: &BTreeMap<i64, Vec<Scored>>,
    weighted: bool,
) -> Vec<Scored> {
    let mut sums: BTreeMap<i64, (f32, f32, i64)> = BTreeMap::new();
    for (&item, &affinity) in &user.history {
        let weight = if weighted { (affinity as f64 * unit()) as f32 } else { 1.0 };
        for (candidate, similarity, _) in proposals(neighbors, item) {
            let (sum, largest, because) = sums.entry(candidate).or_default();
            *sum += weight * similarity;
            if weight * similarity > *largest {
                (*largest, *because) = (weight * similarity, item);
            }
        }
    }
    sums.retain(|item, _| !user.seen.contains(item));
    best(sums.into_iter().map(|(item, (sum, _, because))| (item, sum, because)).collect(), 200)
}

struct Entry {
    item: i64,
    score: f32,
    source: &'static str,
}

/// Reciprocal ranks: `1 / (60 + rank)` of the neighbors and `0.7 / (60 + rank)` of popularity.
fn blended(near: &[Scored], popular: &[(i64, f32)]) -> Vec<Entry> {
    let mut sums: BTreeMap<i64, [f64; 2]> = BTreeMap::new();
    for (rank, entry) in (1..).zip(near) {
        sums.entry(entry.0).or_default()[0] = 1.0 / (60.0 + f64::from(rank));
    }
    for (rank, entry) in (1..).zip(popular) {
        sums.entry(entry.0).or_default()[1] = 0.7 / (60.0 + f64::from(rank));
    }
    let entry = |(item, [near, popular]): (i64, [f64; 2])| {
        let source = if popular > near { "popularity" } else { "item_neighbors" };
        Entry { item, score: (near + popular) as f32, source }
    };
    let mut entries: Vec<Entry> = sums.into_iter().map(entry).collect();
    entries.sort_by(|a, b| b.score.total_cmp(&a.score));
    entries
}

fn expected_lists(
    items: &BTreeMap<i64, Item>,
    users: &BTreeMap<&str, User<'_>>,
    neighbors: &BTreeMap<i64, Vec<Scored>>,
    (weighted, blend): (bool, bool),
) -> Rows {
    let mut ranked: Vec<(&i64, &Item)> = items.iter().filter(|item| item.1.idx.is_some()).collect();
    ranked.sort_by_key(|(_, item)| item.rank);
    let share = |item: &Item| (item.affinity as f64 / ranked[0].1.affinity as f64) as f32;
    let mut rows = Rows::new();
    for (id, user) in users {
        let near = by_neighbors(user, neighbors, weighted);
        let unseen = ranked.iter().filter(|(item, _)| !user.seen.contains(item));
        let popular: Vec<(i64, f32)> = unseen.map(|(id, item)| (**id, share(item))).collect();
        let mut list = if blend {
            blended(&near, &popular)
        } else {
            let entry =
                |&(item, score, _): &Scored| Entry { item, score, source: "item_neighbors" };
            near.iter().map(entry).collect()
        };
        list.truncate(K);
        let low = list.last().map_or(1.0, |entry| f64::from(entry.score));
        for (item, share) in popular {
            if list.len() < K && list.iter().all(|entry| entry.item != item) {
                let score = (low * f64::from(share)) as f32;
                list.push(Entry { item, score, source: "fallback" });
            }
        }
        for (rank, Entry { item, score, source }) in (1..).zip(list) {
            let because = near.iter().find(|entry| entry.0 == item).map(|entry| entry.2);
            let exact = texts(&[id, &rank, &item, &source, &text(because)]);
            rows.push((exact, vec![f64::from(score)]));
        }
    }
    rows
}

/// The rows of a published table; of tables cut by shard, brought in the order of all users.
fn published(table: &RecordBatch, exact: &[&str], close: &[&str]) -> Rows {
    let exact: Vec<Vec<String>> = exact.iter().map(|name| cells(table, name)).collect();
    let close: Vec<Vec<String>> = close.iter().map(|name| column(table, name)).collect();
    let row = |row: usize| {
        let numbers = close.iter().map(|column| column[row].parse().unwrap()).collect();
        (exact.iter().map(|column| column[row].clone()).collect(), numbers)
    };
    let mut rows: Rows = (0..table.num_rows()).map(row).collect();
    if table.column_by_name("user_id").is_some() {
        rows.sort_by(|a, b| a.0[0].cmp(&b.0[0]));
    }
    rows
}

/// A column as text, times in microseconds.
fn cells(table: &RecordBatch, name: &str) -> Vec<String> {
    let array = table.column_by_name(name).unwrap();
    if !matches!(array.data_type(), DataType::Timestamp(..)) {
        return column(table, name);
    }
    let integers = arrow::compute::cast(array, &DataType::Int64).unwrap();
    column(&batch(&[(name, integers)]), name)
}

fn assert_rows(what: &str, actual: &Rows, expected: &Rows) {
    for (actual, expected) in actual.iter().zip(expected) {
        assert_eq!(actual.0, expected.0, "{what}");
        for (a, b) in actual.1.iter().zip(&expected.1) {
            assert!((a - b).abs() <= 1e-5 * b.abs(), "{what} {:?}: {a}, expected {b}", actual.0);
        }
    }
    assert_eq!(actual.len(), expected.len(), "{what}");
}

#[test]
fn a_job_equals_its_sequential_oracle() {
    for seed in 0..6 {
        let (weighted, blend) = (seed % 2 == 1, seed % 3 == 2);
        let rows = random_log(seed);
        let sandbox = Sandbox::new();
        write_log(&sandbox, &rows);
        let users = users(&rows);
        let items = items(&rows, &users);
        let near = neighbors(&items, &users, weighted);
        let lists = expected_lists(&items, &users, &near, (weighted, blend));
        let expected: [(&str, &[&str], &[&str], Rows); 5] = [
            (
                "users",
                &["user_id", "events", "items", "first_event", "last_event", "eligible", "reason"],
                &[],
                expected_users(&users),
            ),
            (
                "items",
                &[
                    "item_id",
                    "item_idx",
                    "events",
                    "users",
                    "first_event",
                    "last_event",
                    "eligible",
                    "reason",
                ],
                &[],
                expected_items(&items),
            ),
            (
                "item_popularity",
                &["item_id", "item_idx", "events", "users", "rank"],
                &["weight", "weight_decayed", "trend"],
                expected_popularity(&items),
            ),
            (
                "item_neighbors",
                &["item_id", "rank", "neighbor_id", "support"],
                &["score"],
                expected_neighbors(&near),
            ),
            (
                "user_top_k",
                &["user_id", "rank", "item_id", "source", "because_item_id"],
                &["score"],
                lists,
            ),
        ];
        let weights = if weighted { "affinity" } else { "binary" };
        let popular = if blend { ", popularity = 0.7" } else { "" };
        let spec = spec(weights, &format!("{{ item_neighbors = 1.0{popular} }}"));
        for workers in 1..=3 {
            let outcome = sandbox.run_on_workers(&spec, Some(AS_OF_TEXT), workers);
            for (table, exact, close, expected) in &expected {
                let actual = published(&sandbox.table(&outcome, table), exact, close);
                let what = format!("{table} of seed {seed} on {workers} workers");
                assert_rows(&what, &actual, expected);
            }
        }
    }
}
