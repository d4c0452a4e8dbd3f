//! What happened in a run, whatever came of it: for people and dashboards.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    BadFile, Outcome, code, exit_code, instruction_set, one_line, refused, rfc3339, usage,
};
use crate::dataflow::Shell;
use crate::job::Spec;
use crate::job::plan::{FilePlan, Plan, SourcePlan};
use crate::store::{Current, Gate, PublishedFile, Stage, StoreCounts};

/// What is known of a run while it goes on: the first worker writes, and [`Report`] is made of it.
#[derive(Debug, Default)]
pub(super) struct Record {
    known: Mutex<Known>,
    /// What is wrong with the input, as any worker found.
    input: Mutex<Option<InputTrouble>>,
}

/// What a run can begin anew after.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum InputTrouble {
    /// A file is another than when the run was planned.
    Replaced,
    /// A file of a log or a side table cannot be read.
    Damaged(BadFile),
}

/// Everything that a run finds out on its way.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) run_id: String,
    pub(super) stage: Option<String>,
    pub(super) logical_date: Option<String>,
    pub(super) as_of: Option<String>,
    pub(super) fingerprint: Option<String>,
    pub(super) input: Vec<InputSummary>,
    pub(super) counts: Map<String, Value>,
    pub(super) gates: Vec<Gate>,
    pub(super) stages: Vec<Stage>,
    pub(super) files: Vec<PublishedFile>,
    pub(super) attempts: u32,
}

impl Record {
    pub(super) fn note(&self, note: impl FnOnce(&mut Known)) {
        note(&mut self.known.lock().expect("no thread panics while it writes a record"));
    }

    pub(super) fn known(&self) -> Known {
        self.known.lock().expect("no thread panics while it writes a record").clone()
    }

    /// Remembers an error that is about the input.
    pub(super) fn note_input(&self, error: &anyhow::Error) {
        let trouble = match refused::is_replaced(error) {
            true => Some(InputTrouble::Replaced),
            false => refused::damaged_file(error).map(InputTrouble::Damaged),
        };
        if trouble.is_some() {
            *self.input.lock().expect("no thread panics while it writes a record") = trouble;
        }
    }

    /// Makes what any process found known to all.
    pub(super) fn share_input(&self, shell: &mut Shell) {
        let input = || self.input.lock().expect("no thread panics while it writes a record");
        let encoded = serde_json::to_vec(&*input()).expect("plain data can be written as JSON");
        let found = shell.collectives.all_gather(encoded.into());
        let mut found = found.iter().map(|part| serde_json::from_slice(part));
        let found = found.find_map(|trouble| trouble.expect("a peer sends what is wrong"));
        *input() = found;
    }

    /// What was wrong with the input since this was asked.
    pub(super) fn take_input(&self) -> Option<InputTrouble> {
        self.input.lock().expect("no thread panics while it writes a record").take()
    }
}

/// One log in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InputSummary {
    /// As the spec has it.
    pub url: String,
    /// Files that are read.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
    /// Their rows, by the footers.
    pub rows: u64,
}

impl InputSummary {
    /// Of each log, in the order of the spec.
    pub(super) fn of(plan: &Plan) -> Vec<Self> {
        let sum = |log: &SourcePlan, of: fn(&FilePlan) -> u64| log.files.iter().map(of).sum();
        let logs = plan.sources.iter().map(|log| Self {
            url: log.url.clone(),
            files: log.files.len() as u64,
            bytes: sum(log, |file| file.bytes),
            rows: sum(log, FilePlan::rows),
        });
        logs.collect()
    }
}

/// What came of a run: `_report.json`, written for failed runs too.
///
/// Fields come in this order; later versions may add some and rename none.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// 1.
    pub format: u32,
    /// Name of the job.
    pub name: String,
    /// The attempt at publication.
    pub run_id: String,
    /// `published`, `already_published`, `not_published` (as asked) or `failed`.
    pub outcome: &'static str,
    /// Code that the process ends with.
    pub exit_code: u8,
    /// Word for the code: `ok`, `bad_data`, `temporary`, …
    pub kind: &'static str,
    /// Whether the same run may succeed later without anybody's help.
    pub retryable: bool,
    /// The stage that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Why, as on stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What readers were given, or had already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<Current>,
    /// The day the run stands for, as far as known.
    pub logical_date: Option<String>,
    /// The end of the history that counts, as far as known.
    pub as_of: Option<String>,
    /// Start, RFC 3339.
    pub started_at: String,
    /// End, RFC 3339.
    pub finished_at: String,
    /// Between the two.
    pub seconds: f64,
    /// How often the run was begun: more than once where an input was replaced or damaged.
    pub attempts: u32,
    /// Version of this crate.
    pub code_version: &'static str,
    /// The instruction set in use.
    pub instruction_set: String,
    /// Hex digest of the resolved spec.
    pub spec_sha256: String,
    /// Hex digest of all that decides the bytes of the tables.
    pub fingerprint: Option<String>,
    /// What is read of each log.
    pub input: Vec<InputSummary>,
    /// Rows read, filtered, rejected and written, by reason; as far as the run came.
    pub counts: Map<String, Value>,
    /// The gates that were looked at.
    pub gates: Vec<Gate>,
    /// Rows of each table.
    pub table_rows: BTreeMap<String, u64>,
    /// The stages that ended, in the order they ran.
    pub stages: Vec<Stage>,
    /// Requests and bytes.
    pub store: StoreCounts,
    /// Most memory that the process ever held; null where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
}

impl Report {
    pub(super) fn new(
        spec: &Spec,
        known: Known,
        result: &anyhow::Result<Outcome>,
        (started_at_us, finished_at_us): (i64, i64),
        store: StoreCounts,
    ) -> Self {
        let (outcome, current) = match result {
            Ok(Outcome::AlreadyPublished { current }) => ("already_published", Some(current)),
            Ok(Outcome::Published { current, .. }) => ("published", Some(current)),
            Ok(Outcome::NotPublished { .. }) => ("not_published", None),
            Err(_) => ("failed", None),
        };
        let error = result.as_ref().err();
        let code = error.map_or(0, exit_code);
        let mut table_rows = BTreeMap::new();
        for file in &known.files {
            *table_rows.entry(file.table.clone()).or_default() += file.rows;
        }
        Self {
            format: 1,
            name: spec.name.clone(),
            run_id: known.run_id,
            outcome,
            exit_code: code,
            kind: code::name(code),
            retryable: code::is_retryable(code),
            stage: known.stage.filter(|_| error.is_some()),
            error: error.map(|error| one_line(error.as_ref())),
            current: current.cloned(),
            logical_date: known.logical_date,
            as_of: known.as_of,
            started_at: rfc3339(started_at_us),
            finished_at: rfc3339(finished_at_us),
            seconds: (finished_at_us - started_at_us) as f64 / 1e6,
            attempts: known.attempts,
            code_version: env!("CARGO_PKG_VERSION"),
            instruction_set: instruction_set(),
            spec_sha256: super::sha256_hex(spec.resolved().as_bytes()),
            fingerprint: known.fingerprint,
            input: known.input,
            counts: known.counts,
            gates: known.gates,
            table_rows,
            stages: known.stages,
            store,
            peak_memory_bytes: usage::memory().map(|memory| memory.bytes_peak),
        }
    }

    /// Where it belongs below the output: beside the manifest, or with the reports of failed runs.
    pub(super) fn path(&self) -> String {
        match (self.outcome, &self.logical_date) {
            ("failed", _) | (_, None) => format!("_failed/{}.json", self.run_id),
            (_, Some(date)) => format!("runs/{date}/{}/_report.json", self.run_id),
        }
    }

    /// Share of the rows read that were rejected; `None` before rows were read.
    pub fn reject_share(&self) -> Option<f64> {
        let rows = self.counts.get("rows")?.as_u64().filter(|rows| *rows > 0)?;
        let rejected = self.counts.get("rows_rejected")?.as_object()?;
        let rejected: u64 = rejected.values().filter_map(Value::as_u64).sum();
        Some(rejected as f64 / rows as f64)
    }
}
