//! Sections about what is read: logs, side tables, deny lists.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{FilterValue, Values};

/// The key of `weights` that stands for every row of a log without an event column.
pub const EVERY_ROW: &str = "*";

/// One log of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// Where the Parquet files of the log are: a file, a folder, a prefix or a glob. Local paths
    /// are relative to the spec file.
    #[schemars(length(min = 1), example = &"s3://shop/events/dt=*/")]
    pub url: String,
    /// Which column of the log means what.
    #[schemars(example = serde_json::json!({"user": "user_id", "item": "item_id", "time": "ts"}))]
    pub columns: EventColumns,
    /// Unit of an integer time column, counted from 1970-01-01 UTC. Not needed for timestamp
    /// columns, which know their unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"ms")]
    pub time_unit: Option<TimeUnit>,
    /// What an event of each type weighs: a number, or a table for more. An event type that is not
    /// listed is counted and reported, and weighs nothing. Required when `columns.event` is
    /// given; without it the only key is `"*"`, which stands for every row.
    #[serde(default)]
    #[schemars(
        extend("x-key" = "event type"),
        extend("x-default" = "without an event column `\"*\" = { weight = 1, value = \"linear\" }` if a value is mapped, else `\"*\" = 1`"),
        example = serde_json::json!({"view": 1.0, "purchase": {"weight": 10.0, "value": "log1p", "value_max": 20}})
    )]
    pub weights: BTreeMap<String, Weight>,
    /// Key of the hive-style folders (`dt=2026-11-22/`) that holds the day of the events below, in
    /// `time_zone`. Folders outside the window are then not read at all. The days must be right:
    /// an event in the folder of another day may be missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), example = &"dt")]
    pub partition_date: Option<String>,
    /// Hive-style folders to read: only those where each key has the value, or one of the values,
    /// that is given here.
    #[serde(default)]
    #[schemars(
        extend("x-key" = "folder key"),
        extend("x-default" = "every folder"),
        example = serde_json::json!({"country": ["SE", "NO"]})
    )]
    pub partition_where: BTreeMap<String, Values<String>>,
}

/// Which column of a log means what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventColumns {
    /// Id of the user: integer, string or binary. Rows without a user are filtered, not rejected.
    #[schemars(length(min = 1), example = &"user_id")]
    pub user: String,
    /// Id of the item: integer, string or binary.
    #[schemars(length(min = 1), example = &"item_id")]
    pub item: String,
    /// When it happened: a timestamp of any unit, a date, or an integer together with `time_unit`.
    /// Without it, windows, decay and undoing cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), example = &"ts")]
    pub time: Option<String>,
    /// Type of the event, a string: the keys of `weights`. Without it every row has weight 1, or
    /// its value if one is mapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), example = &"event")]
    pub event: Option<String>,
    /// A number that goes with the event, such as a quantity, a rating or seconds watched; how it
    /// counts is `value` in `weights`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), example = &"quantity")]
    pub value: Option<String>,
    /// Id of the event: of rows with the same id one is kept. Without it every row is an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), example = &"event_id")]
    pub id: Option<String>,
    /// Id of the basket or session the event belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), example = &"basket_id")]
    pub basket: Option<String>,
}

/// Unit of integer times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TimeUnit {
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds.
    #[serde(rename = "us")]
    Microseconds,
    /// Nanoseconds.
    #[serde(rename = "ns")]
    Nanoseconds,
}

/// What an event of one type weighs: a number, or a table for more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "WrittenWeight")]
pub struct Weight {
    /// The weight, or its factor where the value counts. Below 0 the event speaks against the item.
    pub weight: f64,
    /// How the value counts.
    pub value: ValueScale,
    /// Values above this count as this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_max: Option<f64>,
    /// What a negative value means.
    pub negative: Negative,
    /// The event type of which it removes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undoes: Option<String>,
    /// Whether the item is never recommended to this user again.
    pub excludes_item: bool,
}

impl Weight {
    /// A plain weight that takes no notice of the value.
    pub fn plain(weight: f64) -> Self {
        WrittenWeight::Number(weight).into()
    }

    /// Whether events of this type act on earlier ones, so that their times must be known.
    pub fn undoes_earlier(&self) -> bool {
        self.undoes.is_some() || self.negative == Negative::Undo
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum WrittenWeight {
    Number(f64),
    Table(WeightTable),
}

/// What an event of one type weighs, how its value counts and what it does to earlier events.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct WeightTable {
    /// What one event weighs, before decay. Kept in units of 2⁻¹⁶. Below 0 it speaks against the
    /// item: `[als]` adds it to the weight of the user and item and takes a sum below 0 for a
    /// preference of 0, held the more firmly the lower it is; the other models leave it out.
    #[schemars(extend("x-default" = "`1.0`; `0.0` with `undoes` or `excludes_item`"), example = 10.0)]
    weight: Option<f64>,
    /// How the value column counts.
    #[schemars(example = &"log1p")]
    value: ValueScale,
    /// Values above this count as this: a guard against wholesale orders and typing errors.
    #[schemars(extend("exclusiveMinimum" = 0, "x-default" = "no limit"), example = 20)]
    value_max: Option<f64>,
    /// What a negative value means.
    #[schemars(example = &"undo")]
    negative: Negative,
    /// Event type of which this one removes one event: the latest earlier one of the same user and
    /// item that has not been removed yet.
    #[schemars(length(min = 1), example = &"purchase")]
    undoes: Option<String>,
    /// The item is never recommended to this user, whatever the other rules say.
    #[schemars(example = true)]
    excludes_item: bool,
}

impl From<WrittenWeight> for Weight {
    fn from(written: WrittenWeight) -> Self {
        let table = match written {
            WrittenWeight::Number(weight) => {
                WeightTable { weight: Some(weight), ..Default::default() }
            }
            WrittenWeight::Table(table) => table,
        };
        let weightless = table.undoes.is_some() || table.excludes_item;
        Self {
            weight: table.weight.unwrap_or(if weightless { 0.0 } else { 1.0 }),
            value: table.value,
            value_max: table.value_max,
            negative: table.negative,
            undoes: table.undoes,
            excludes_item: table.excludes_item,
        }
    }
}

/// How the value column counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValueScale {
    /// It does not: the event weighs `weight`.
    #[default]
    None,
    /// The event weighs `weight` × value.
    Linear,
    /// The event weighs `weight` × ln(1 + value).
    Log1p,
}

/// What a negative value means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Negative {
    /// The row is wrong: it is rejected and counts toward `limits.reject_share_max`.
    #[default]
    Reject,
    /// It takes an earlier event of the same type, user and item back, as where returns are booked
    /// as negative quantities.
    Undo,
}

/// The items table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Items {
    /// Where the Parquet files of the table are.
    #[schemars(length(min = 1), example = &"s3://shop/items/")]
    pub url: String,
    /// Which column of the table means what.
    #[schemars(example = serde_json::json!({"item": "sku", "title": "name"}))]
    pub columns: ItemColumns,
    /// Only items whose columns have these values, or one of the values listed, are recommended.
    /// An item that is not in the table, or has no value there, is not recommended.
    #[serde(default)]
    #[schemars(
        extend("x-key" = "column", "x-default" = "every item"),
        example = serde_json::json!({"in_stock": true, "category": ["shoes", "bags"]})
    )]
    pub recommend_where: BTreeMap<String, Values<FilterValue>>,
}

/// Which column of the items table means what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ItemColumns {
    /// Id of the item, of the same kind as in the logs.
    #[schemars(length(min = 1), example = &"sku")]
    pub item: String,
    /// A title for people; `tidemill show` and the run's summary print it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), example = &"name")]
    pub title: Option<String>,
}

/// The users table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// Where the Parquet files of the table are.
    #[schemars(length(min = 1), example = &"s3://shop/users/")]
    pub url: String,
    /// Which column of the table means what.
    #[schemars(example = serde_json::json!({"user": "user_id", "segment": "country"}))]
    pub columns: UserColumns,
}

/// Which column of the users table means what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserColumns {
    /// Id of the user, of the same kind as in the logs.
    #[schemars(length(min = 1), example = &"user_id")]
    pub user: String,
    /// Group of the user, such as a country: popularity and the fallback are also computed within
    /// each.
    #[schemars(length(min = 1), example = &"country")]
    pub segment: String,
}

/// Ids that must not come out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Deny {
    /// Items that are never recommended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = serde_json::json!({"url": "s3://shop/recalled.parquet", "column": "sku"}))]
    pub items: Option<IdList>,
    /// Users whose events are not used and who get no list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = serde_json::json!({"url": "s3://shop/opted_out/", "column": "user_id"}))]
    pub users: Option<IdList>,
}

/// Ids that are to be gone: from every table, and from what runs keep for the next one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Delete {
    /// People who asked to be forgotten: their events count nowhere, and leave the stored state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = serde_json::json!({"url": "s3://shop/forget.parquet", "column": "user_id"}))]
    pub users: Option<IdList>,
    /// Items that are to be as if they had never been.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = serde_json::json!({"url": "s3://shop/never_were/", "column": "sku"}))]
    pub items: Option<IdList>,
}

/// A column of ids in Parquet files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdList {
    /// Where the Parquet files of the list are.
    #[schemars(length(min = 1), example = &"s3://shop/denied/")]
    pub url: String,
    /// The column that holds the ids, of the same kind as in the logs.
    #[schemars(length(min = 1), example = &"id")]
    pub column: String,
}
