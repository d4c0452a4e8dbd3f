//! `tidemill check`: is the spec sound, and does its input fit it?

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{SpecArgs, print};
use crate::run;

/// Check a spec and the columns of its input, without reading a row
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill check jobs/nightly.toml
  tidemill check jobs/nightly.toml --set events.0.columns.user=customer_id")]
pub(super) struct CheckArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CheckArgs) -> Result<()> {
    let spec = args.spec.load()?;
    let runtime = run::runtime(&spec)?;
    let plan = run::plan(&runtime, &spec, &args.spec.base(), &args.spec.flags(&spec)?)?;
    let n_files: usize = plan.sources.iter().map(|source| source.files.len()).sum();
    match args.json {
        true => print(&serde_json::to_string_pretty(&json!({
            "ok": true,
            "name": spec.name,
            "files": n_files,
            "rows": plan.n_rows,
            "user_id_type": plan.user_id_type,
            "item_id_type": plan.item_id_type,
        }))?),
        false => print(&format!(
            "{}: the spec is sound and fits its input: {n_files} files, {} rows, user ids {:?}, item \
             ids {:?}",
            args.spec.spec.display(),
            indicatif::HumanCount(plan.n_rows),
            plan.user_id_type,
            plan.item_id_type
        )),
    }
    Ok(())
}
