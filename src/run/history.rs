//! The events of one user, straight from the log.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::input_file;
use crate::job::plan::Plan;
use crate::schema::{KIND_UNLISTED, TIME_INVALID, TimeReader, read_batch, with_folder_columns};
use crate::store::{self, IoRuntime, Location};

/// One event of a user, as text for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserEvent {
    /// When, RFC 3339; absent in a log without times.
    pub time: Option<String>,
    /// The event type; `*` in a log without that column.
    pub event: String,
    /// The item's id.
    pub item: String,
    #[serde(skip)]
    time_us: i64,
}

/// The events of a user that have a weight, newest first; reads all files of the plan.
///
/// # Errors
/// As for a run: files that cannot be read, columns that cannot be used.
pub fn events_of_user(
    runtime: &IoRuntime,
    plan: &Plan,
    base: &Path,
    user: &str,
) -> Result<Vec<UserEvent>> {
    let mut events = Vec::new();
    for source in &plan.sources {
        let location = Location::open(runtime, &source.url, base)?;
        let mut times = TimeReader::new(source.time_unit.as_deref(), plan.time_zone());
        for file in &source.files {
            let mut names = source.columns.names();
            names.retain(|name| !file.partitions.contains_key(*name));
            for batch in store::read_all(&location, &input_file(file), Some(&names))? {
                let columns = source.columns.names();
                let batch = with_folder_columns(&batch, &file.partitions, &columns)?;
                let batch =
                    read_batch(&batch, &source.columns, &source.kinds, &mut times, &mut |_, _| ())?;
                for row in 0..batch.kinds.len() {
                    let is_user = batch.users.get_opt(row).is_some_and(|id| id.to_string() == user);
                    if !is_user || batch.kinds[row] == KIND_UNLISTED {
                        continue;
                    }
                    let Some(item) = batch.items.get_opt(row) else { continue };
                    let time_us = batch.times.as_ref().map_or(TIME_INVALID, |times| times[row]);
                    events.push(UserEvent {
                        time: jiff::Timestamp::from_microsecond(time_us)
                            .ok()
                            .map(|time| time.to_string()),
                        event: source.kinds[usize::from(batch.kinds[row])].clone(),
                        item: item.to_string(),
                        time_us,
                    });
                }
            }
        }
    }
    events.sort_by(|a, b| b.time_us.cmp(&a.time_us).then_with(|| a.item.cmp(&b.item)));
    Ok(events)
}
