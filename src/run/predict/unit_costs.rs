//! What a unit of work takes on a machine.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::work::Work;
use crate::run::Refused;

/// What work is counted in. The unit costs of the file have these names in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cost {
    ScanRow,
    ScanTextId,
    ShuffleByte,
    DictionaryItem,
    HistoryRow,
    HistoryTextRow,
    HistoryItem,
    TableRow,
    TableTextId,
    File,
    GatheredPair,
    PairProduct,
    Neighbor,
    NeighborRow,
    NeighborTextRow,
    AlsPair,
    AlsPairFactor,
    AlsFarFactor,
    AlsRowFactor,
    AlsItemFactor,
    WrittenFactor,
    Score,
    Explained,
    Candidate,
    Combined,
    ListRow,
    ListTextRow,
    PublishedFile,
}

/// Names of the unit costs, and the units that the nanoseconds are of.
pub const COSTS: [(&str, &str); 28] = [
    ("scan_row", "row that is read"),
    ("scan_text_id", "text id that is read"),
    ("shuffle_byte", "packed byte that is dealt to shards"),
    ("dictionary_item", "item of the dictionary"),
    ("history_row", "row sorted into histories"),
    ("history_text_row", "row of a user whose id is a text"),
    ("history_item", "item summed over users"),
    ("table_row", "row of the tables of users and items"),
    ("table_text_id", "text id in them"),
    ("file", "file written"),
    ("gathered_pair", "pair gathered for item neighbors"),
    ("pair_product", "pair of items of a user"),
    ("neighbor", "neighbor selected"),
    ("neighbor_row", "row of item_neighbors"),
    ("neighbor_text_row", "row of it with text ids"),
    ("als_pair", "pair sorted by item"),
    ("als_pair_factor", "pair and factor, each product"),
    ("als_far_factor", "the same, of rows that a core's cache does not hold"),
    ("als_row_factor", "row and squared factor, each product"),
    ("als_item_factor", "item and factor, each product, for one thread"),
    ("written_factor", "factor written"),
    ("score", "user, item and factor"),
    ("explained", "product in the explanation of lists"),
    ("candidate", "neighbor of an item of a history"),
    ("combined", "candidate of a ranker"),
    ("list_row", "row of a list"),
    ("list_text_row", "row of a list with text ids"),
    ("published_file", "file looked at before the commit"),
];

/// The unit costs that come with the crate.
const SHIPPED: &str = include_str!("unit_costs.toml");

/// What units of work take on one machine: measured by `tidemill calibrate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitCosts {
    /// The machine, in words.
    pub machine: String,
    /// The day of the measurement.
    pub date: String,
    /// Its instructions: architecture, then what the kernels found.
    pub instruction_set: String,
    /// Threads of the measurement.
    pub threads: usize,
    /// What another thread adds, as a share of the first: 1 is a perfect speed-up.
    pub parallel_efficiency: f64,
    /// Nanoseconds per byte that a process sends to others.
    pub exchange_byte_ns: f64,
    /// Nanoseconds of one thread per unit, by the names of [`COSTS`].
    pub ns: BTreeMap<String, f64>,
}

impl UnitCosts {
    /// Those that come with the crate.
    pub fn shipped() -> Self {
        Self::parse(SHIPPED, "of the crate").expect("a test reads the file that is built in")
    }

    /// Reads what `tidemill calibrate` wrote to a file of that name.
    ///
    /// # Errors
    /// A text that is no such file, or one that lacks a cost.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let what = || format!("unit costs \"{name}\" cannot be used; run tidemill calibrate");
        let costs: Self = toml::from_str(text).with_context(what).map_err(Refused::usage)?;
        let known = |name: &String| COSTS.iter().any(|(known, _)| known == name);
        let missing = COSTS.iter().find(|(name, _)| !costs.ns.contains_key(*name));
        let problem = match (missing, costs.ns.keys().find(|name| !known(name))) {
            (Some((missing, _)), _) => format!("ns.{missing} is missing"),
            (None, Some(unknown)) => format!("ns.{unknown} is unknown"),
            (None, None) if !costs.is_sound() => "a number is negative or not finite".to_owned(),
            (None, None) => return Ok(costs),
        };
        Err(Refused::usage(anyhow!(problem).context(what())))
    }

    fn is_sound(&self) -> bool {
        let numbers = [self.parallel_efficiency, self.exchange_byte_ns];
        let mut numbers = numbers.iter().chain(self.ns.values());
        numbers.all(|number| number.is_finite() && *number >= 0.0)
    }

    /// As a file that [`UnitCosts::parse`] reads.
    ///
    /// # Errors
    /// Never for costs that were parsed or fitted.
    pub fn to_toml(&self) -> Result<String> {
        let head = "# Nanoseconds per unit of work, measured by `tidemill calibrate`; `tidemill plan` \
                    predicts with them.\n";
        Ok(format!("{head}{}", toml::to_string(self)?))
    }

    /// Nanoseconds of some work.
    pub(super) fn sum(&self, work: &Work) -> f64 {
        let ns = |cost: Cost| self.ns.get(cost.name()).copied().unwrap_or(0.0);
        work.iter().map(|&(cost, units)| ns(cost) * units).sum()
    }
}

impl Cost {
    /// As in the file.
    pub(super) fn name(self) -> &'static str {
        COSTS[self as usize].0
    }
}

impl fmt::Display for UnitCosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}", self.machine, self.instruction_set, self.date)
    }
}
