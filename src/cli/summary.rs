//! What a run says when it is done.

use anyhow::Result;

use super::SpecArgs;
use crate::job::Spec;
use crate::run::Outcome;

pub(super) fn of(outcome: &Outcome, _spec: &Spec, _args: &SpecArgs) -> Result<String> {
    Ok(serde_json::to_string_pretty(outcome)?)
}
