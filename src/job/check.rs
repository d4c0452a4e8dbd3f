//! What a spec must satisfy beyond the type and range of each key.

use std::collections::{BTreeMap, BTreeSet};

use super::spec::{
    Als, Candidates, EVERY_ROW, Events, ExcludeSeen, Fallback, Ranker, TopK, ValueScale, Weight,
};
use super::walk::{join, nearest};
use super::{Spec, SpecError, reference, walk};
use crate::types::AFFINITY_ONE;

/// Weights above this would leave affinities no room in 64 bits.
const WEIGHT_MAX: f64 = 1e9;

impl Spec {
    /// Checks every key, and the keys against each other.
    ///
    /// # Errors
    /// The first problem, with the path of its key, the value and what to do.
    pub fn check(&self) -> Result<(), SpecError> {
        let value = serde_json::to_value(self).expect("a spec has a JSON form");
        walk::walk(&value, &reference::schema(), "")?;
        self.check_events()?;
        self.check_time()?;
        if let Some((key, value, problem)) = self.als.as_ref().and_then(Als::idle_key) {
            return Err(SpecError::value(join("als", key), value, problem));
        }
        self.check_vectors()?;
        self.check_gates()?;
        match &self.top_k {
            Some(top_k) => self.check_top_k(top_k),
            None => Ok(()),
        }
    }

    fn check_gates(&self) -> Result<(), SpecError> {
        let gates = &self.gates;
        if let (Some(coverage), None) = (gates.catalog_coverage_min, self.catalog_coverage_min()) {
            let problem = "needs the catalog and lists; add [items] and [top_k]";
            return Err(SpecError::value("gates.catalog_coverage_min", coverage, problem));
        }
        if let (Some(share), None) = (gates.fallback_share_max, &self.top_k) {
            let problem = "needs lists; add [top_k]";
            return Err(SpecError::value("gates.fallback_share_max", share, problem));
        }
        if let (Some(min), Some(max)) = (gates.rows_ratio_min, gates.rows_ratio_max)
            && min > max
        {
            let problem = format!("is above gates.rows_ratio_max = {max}, so no run can pass");
            return Err(SpecError::value("gates.rows_ratio_min", min, problem));
        }
        if let (Some(age), false) = (gates.newest_event_age_days_max, self.has_time()) {
            let problem = "needs a time column in every log; set events.columns.time";
            return Err(SpecError::value("gates.newest_event_age_days_max", age.0, problem));
        }
        Ok(())
    }

    fn check_events(&self) -> Result<(), SpecError> {
        let listed = self.event_types();
        for (row, log) in self.events.iter().enumerate() {
            let path = format!("events.{row}");
            check_keys(log, &path)?;
            for (event, weight) in &log.weights {
                let path = join(&join(&path, "weights"), event);
                check_weight(weight, log, self.als.is_some(), &path)?;
                check_undoes(event, weight, &listed, &path)?;
            }
        }
        let positive = |log: &Events| log.weights_or_default().values().any(|w| w.weight > 0.0);
        if self.events.iter().any(positive) {
            return Ok(());
        }
        let problem = "no event type has a weight above 0, so nothing counts; give one a weight";
        Err(SpecError::value("events.0.weights", "{…}", problem))
    }

    fn check_time(&self) -> Result<(), SpecError> {
        let Some(row) = self.events.iter().position(|log| log.columns.time.is_none()) else {
            return Ok(());
        };
        let top_k = self.top_k.as_ref();
        let needs_time = [
            ("history.window_days", self.history.window_days),
            ("history.half_life_days", self.history.half_life_days),
            ("top_k.exclude_seen_days", top_k.and_then(|top_k| top_k.exclude_seen_days)),
        ];
        let problem =
            format!("needs a time column in every log; set \"events.{row}.columns.time\"");
        for (key, days) in needs_time {
            if let Some(days) = days {
                return Err(SpecError::value(key, days.0, problem));
            }
        }
        let mut weights = self
            .events
            .iter()
            .enumerate()
            .flat_map(|(row, log)| log.weights.iter().map(move |(event, w)| (row, event, w)));
        if let Some((row, event, _)) = weights.find(|(_, _, weight)| weight.undoes_earlier()) {
            let key = join(&format!("events.{row}.weights"), event);
            let problem = format!("undoes earlier events, so it {problem}");
            return Err(SpecError::value(key, "{…}", problem));
        }
        Ok(())
    }

    fn check_vectors(&self) -> Result<(), SpecError> {
        let vectors = &self.output.vectors;
        if let (Some(file), None) = (vectors.first(), &self.als) {
            let value = format!("{{ of = \"{}\" }}", file.of.table());
            let problem = "needs a section [als]; add it, or remove this file";
            return Err(SpecError::value("output.vectors.0", value, problem));
        }
        for (row, file) in vectors.iter().enumerate() {
            if let Some(first) = vectors[..row].iter().position(|other| other == file) {
                let (of, kind) = (file.of.table(), file.kind.name());
                let value = format!("{{ of = \"{of}\", type = \"{kind}\" }}");
                let problem = format!("is the same as output.vectors.{first}; remove one of them");
                return Err(SpecError::value(format!("output.vectors.{row}"), value, problem));
            }
        }
        Ok(())
    }

    fn check_top_k(&self, top_k: &TopK) -> Result<(), SpecError> {
        self.check_candidates(&self.candidates())?;
        if top_k.n_candidates() < top_k.k {
            let problem = format!("must be at least top_k.k, which is {}", top_k.k);
            return Err(SpecError::value("top_k.n_candidates", top_k.n_candidates(), problem));
        }
        if top_k.debias && self.debias.is_none() {
            return Err(SpecError::value("top_k.debias", true, "needs a section [debias]; add it"));
        }
        if self.fallback() == Fallback::Popularity && self.popularity.is_none() {
            let problem = "needs a section [popularity]; add it, or set \"none\"";
            return Err(SpecError::value("top_k.fallback", "\"popularity\"", problem));
        }
        if top_k.exclude_seen == ExcludeSeen::Any(false)
            && let Some(days) = top_k.exclude_seen_days
        {
            let problem = "has no effect with exclude_seen = false; remove one of them";
            return Err(SpecError::value("top_k.exclude_seen_days", days.0, problem));
        }
        self.check_exclude_seen(&top_k.exclude_seen)
    }

    fn check_candidates(&self, candidates: &Candidates) -> Result<(), SpecError> {
        let key = "top_k.candidates";
        if candidates.rankers().next().is_none() {
            let problem = "no ranker proposes items; add a section [als], [item_neighbors] or \
                           [popularity] and give it a weight here";
            return Err(SpecError::value(key, "{}", problem));
        }
        for (ranker, weight) in candidates.rankers() {
            let name = ranker.name();
            let present = match ranker {
                Ranker::Als => self.als.is_some(),
                Ranker::ItemNeighbors => self.item_neighbors.is_some(),
                Ranker::Popularity => self.popularity.is_some(),
            };
            if !present {
                let problem = format!("needs a section [{name}]; add it, or remove this ranker");
                return Err(SpecError::value(join(key, name), weight, problem));
            }
        }
        Ok(())
    }

    fn check_exclude_seen(&self, exclude_seen: &ExcludeSeen) -> Result<(), SpecError> {
        let ExcludeSeen::Events(types) = exclude_seen else {
            return Ok(());
        };
        let listed = self.event_types();
        match types.iter().find(|event| !listed.contains_key(event.as_str())) {
            Some(event) => {
                let problem = unlisted(event, listed.keys().copied());
                Err(SpecError::value("top_k.exclude_seen", format!("{event:?}"), problem))
            }
            None => Ok(()),
        }
    }

    /// Every event type that some log lists, with the weights it has there.
    fn event_types(&self) -> BTreeMap<&str, Vec<&Weight>> {
        let mut listed = BTreeMap::<&str, Vec<&Weight>>::new();
        for log in self.events.iter().filter(|log| log.columns.event.is_some()) {
            for (event, weight) in &log.weights {
                listed.entry(event).or_default().push(weight);
            }
        }
        listed
    }
}

/// Event types are listed exactly where there is a column of them.
fn check_keys(log: &Events, path: &str) -> Result<(), SpecError> {
    if log.time_unit.is_some() && log.columns.time.is_none() {
        let problem = "has no time column to apply to; set columns.time, or remove it";
        return Err(SpecError::value(join(path, "time_unit"), "…", problem));
    }
    let key = join(path, "weights");
    let every_row = log.weights.contains_key(EVERY_ROW);
    match &log.columns.event {
        Some(_) if log.weights.is_empty() => Err(SpecError::Missing {
            key,
            remedy: "an event type without a weight does not count; add for example \
                     weights = { view = 1.0, purchase = 10.0 }"
                .to_owned(),
        }),
        Some(column) if every_row => {
            let problem = format!(
                "is for logs without an event column; list the types in column \"{column}\", \
                 or unset columns.event"
            );
            Err(SpecError::value(join(&key, EVERY_ROW), "{…}", problem))
        }
        None => match log.weights.keys().find(|event| *event != EVERY_ROW) {
            Some(event) => {
                let problem = "needs an event column; set columns.event, or use the key \"*\", \
                               the weight of every row";
                Err(SpecError::value(join(&key, event), "{…}", problem))
            }
            None => Ok(()),
        },
        Some(_) => Ok(()),
    }
}

fn check_weight(weight: &Weight, log: &Events, als: bool, path: &str) -> Result<(), SpecError> {
    let refuse = |value: &dyn ToString, problem: &str| {
        Err(SpecError::value(join(path, "weight"), value.to_string(), problem))
    };
    let units = weight.weight * AFFINITY_ONE as f64;
    if weight.weight < 0.0 && !als {
        return refuse(&weight.weight, "below 0 it is for ALS alone; add [als], or use 0 or more");
    }
    if weight.weight.abs() > WEIGHT_MAX {
        return refuse(&weight.weight, "must be at most 1e9; only ratios count, so scale all down");
    }
    if weight.weight != 0.0 && units.abs().round() < 1.0 {
        return refuse(&weight.weight, "rounds to 0 in units of 2^-16; scale all weights up");
    }
    check_value_keys(weight, log, path)
}

fn check_value_keys(weight: &Weight, log: &Events, path: &str) -> Result<(), SpecError> {
    let scaled = weight.value != ValueScale::None;
    let mapped = log.columns.value.is_some();
    let needs_column = "needs a value column; set columns.value of this log";
    let wrong = if scaled && !mapped {
        ("value", "\"linear\" or \"log1p\"", needs_column)
    } else if weight.undoes_earlier() && weight.undoes.is_none() && !mapped {
        ("negative", "\"undo\"", needs_column)
    } else if weight.value_max.is_some() && !scaled {
        ("value_max", "…", "has no effect with value = \"none\"; set value, or remove it")
    } else {
        return Ok(());
    };
    Err(SpecError::value(join(path, wrong.0), wrong.1, wrong.2))
}

/// What an event undoes is another listed type that does not itself take things back.
fn check_undoes(
    event: &str,
    weight: &Weight,
    listed: &BTreeMap<&str, Vec<&Weight>>,
    path: &str,
) -> Result<(), SpecError> {
    let Some(target) = weight.undoes.as_deref() else {
        return Ok(());
    };
    let problem = match listed.get(target) {
        _ if target == event => "an event type cannot undo itself; name another".to_owned(),
        None => unlisted(target, listed.keys().copied().filter(|other| *other != event)),
        Some(weights) if weights.iter().any(|other| other.undoes.is_some()) => {
            format!("\"{target}\" undoes events itself; name the type that counts")
        }
        Some(_) => return Ok(()),
    };
    Err(SpecError::value(join(path, "undoes"), format!("{target:?}"), problem))
}

fn unlisted<'e>(event: &str, listed: impl Iterator<Item = &'e str>) -> String {
    let listed: BTreeSet<&str> = listed.collect();
    match nearest(event, listed.iter().copied()) {
        Some(near) => format!("no log lists this event type, did you mean \"{near}\"?"),
        None if listed.is_empty() => {
            "no log lists event types; set columns.event and weights".to_owned()
        }
        None => {
            let listed: Vec<&str> = listed.into_iter().collect();
            format!("no log lists this event type; listed are {}", listed.join(", "))
        }
    }
}
