//! Rollback: an entry that withdraws a generation.

use super::error::PublishError;
use super::log::{Current, Log, LogEntry, Standing};
use super::output::Output;
use super::publish::Appended;

impl Output {
    /// Withdraws a generation, the one that readers see if `generation` is absent, and returns the
    /// entry that does it and what readers see from then on.
    ///
    /// A generation that is withdrawn already is no error: nothing is added then, and `None` comes
    /// back for the entry. `nonce` is of this call only, `now` is RFC 3339.
    ///
    /// # Errors
    /// [`PublishError::NoSuchGeneration`], and as [`Output::publish`].
    pub fn withdraw(
        &self,
        generation: Option<u64>,
        now: &str,
        nonce: &str,
    ) -> Result<(Option<LogEntry>, Option<Current>), PublishError> {
        let log = self.read_log()?;
        let current = log.current().map(|run| run.generation);
        let generation = generation
            .or(current)
            .ok_or_else(|| no_such(0, "does not exist, as nothing is published".to_owned()))?;
        let mut entry = withdrawable(&log, generation)?.clone();
        entry.withdraws = Some(generation);
        entry.delta = false;
        entry.run.nonce = nonce.to_owned();
        entry.run.published_at = now.to_owned();
        let appended = self.append(entry, |log, _| {
            let found = withdrawable(log, generation)?;
            Ok((log.standing(found) == Standing::Withdrawn).then_some(()))
        })?;
        let current = self.follow_log()?;
        match appended {
            Appended::New(entry) => Ok((Some(*entry), current)),
            Appended::Settled(()) => Ok((None, current)),
        }
    }
}

fn withdrawable(log: &Log, generation: u64) -> Result<&LogEntry, PublishError> {
    let entry = log.entries().iter().find(|entry| entry.run.generation == generation);
    let entry = entry.ok_or_else(|| no_such(generation, "does not exist".to_owned()))?;
    match log.standing(entry) {
        Standing::Withdrawal | Standing::Collection => {
            Err(no_such(generation, "publishes no run that could be withdrawn".to_owned()))
        }
        Standing::Collected => Err(no_such(generation, "was removed by gc".to_owned())),
        Standing::Current | Standing::Standing | Standing::Withdrawn => Ok(entry),
    }
}

fn no_such(generation: u64, problem: String) -> PublishError {
    PublishError::NoSuchGeneration { generation, problem }
}
