//! `tidemill forget-check`, and the purge of `tidemill gc`: who is to be gone is gone, and proof of it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use indicatif::{BinaryBytes, HumanCount};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::published_runs::OutputArgs;
use super::{clock, print, progress};
use crate::run::{self, ForgetCheck, Forgotten, Refused};
use crate::store::{Output, Removed};

/// The form of receipts.
const RECEIPT_FORMAT: u32 = 1;

/// Who and what is to be gone.
#[derive(Debug, Args)]
pub(super) struct IdArgs {
    /// A user's id, as in the log; may be given several times [default: the lists of [delete]]
    #[arg(long = "user", value_name = "ID")]
    users: Vec<String>,
    /// An item's id, as in the log; may be given several times
    #[arg(long = "item", value_name = "ID")]
    items: Vec<String>,
}

impl IdArgs {
    /// The ids that were given, or those that the spec lists.
    fn forgotten(&self, output: &OutputArgs) -> Result<Forgotten> {
        let given = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
        let mut forgotten = Forgotten { users: given(&self.users), items: given(&self.items) };
        if self.users.is_empty()
            && self.items.is_empty()
            && let Some((spec, base)) = output.spec()?
        {
            let [users, items] = run::listed_to_delete(&run::runtime(&spec)?, &spec, &base)?;
            forgotten = Forgotten { users, items };
        }
        if forgotten == Forgotten::default() {
            return Err(Refused::usage(anyhow!(
                "nobody is named; give --user or --item, or a spec with lists in [delete]"
            )));
        }
        Ok(forgotten)
    }
}

/// Prove that users or items are nowhere in an output
#[derive(Debug, Args)]
#[command(after_help = "\
Every id column of every table, every vector file with ids and every key table of the state is read, of
all generations whose files are there. Exits with 65 where an id is found, and names the files. A checkpoint
counts as holding it; \"tidemill gc --purge\" removes those, and generations from before the deletion.

Examples:
  tidemill forget-check jobs/nightly.toml
  tidemill forget-check s3://shop-recs/nightly/ --user 4711 --json
  tidemill forget-check s3://shop-recs/nightly/ --receipt _receipts/2026-11-22T040000Z-….json")]
pub(super) struct ForgetCheckArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    ids: IdArgs,
    /// Hold a receipt of a purge against the output, in place of a search: its path below the output, or
    /// a file
    #[arg(long, value_name = "PATH")]
    receipt: Option<PathBuf>,
}

pub(super) fn forget_check(args: &ForgetCheckArgs) -> Result<()> {
    let output = args.output.open()?;
    if let Some(path) = &args.receipt {
        return check_receipt(args, &output, path);
    }
    let forgotten = args.ids.forgotten(&args.output)?;
    let found = looked(&output, &forgotten, args.output.json)?;
    match args.output.json {
        true => print(&serde_json::to_string_pretty(&found)?),
        false => print(&described(&found)),
    }
    match found.holdings.len() {
        0 => Ok(()),
        n => Err(Refused::bad_data(anyhow!(
            "{n} files hold what is to be gone; list it in [delete], run the job, then \"tidemill gc \
             --purge --delete\""
        ))),
    }
}

/// Files that are named to people.
const LISTED: usize = 20;

fn looked(output: &Output, forgotten: &Forgotten, quiet: bool) -> Result<ForgetCheck> {
    let observer = progress::observer(quiet);
    observer.begin("forget-check", None);
    let start = std::time::Instant::now();
    let found = run::forget_check(output, forgotten, &|path| {
        tracing::debug!(path, "looking");
        observer.advance(1);
    })?;
    observer.end("forget-check", start.elapsed().as_secs_f64(), "");
    Ok(found)
}

fn described(found: &ForgetCheck) -> String {
    let head = format!(
        "{} ids in {} files of {} generations were looked at",
        HumanCount(found.ids),
        HumanCount(found.files as u64),
        found.generations
    );
    if found.holdings.is_empty() {
        return format!("{head}: none of those asked for is there");
    }
    let lines = found.holdings.iter().take(LISTED).map(|holding| {
        let of = match holding.generation {
            Some(generation) => format!("generation {generation}"),
            None => "left by a run".to_owned(),
        };
        format!("\n  {} ids in {} ({of})", holding.ids, holding.path)
    });
    let more = match found.holdings.len().saturating_sub(LISTED) {
        0 => String::new(),
        n => format!("\n  and in {} more files: --json lists all", HumanCount(n as u64)),
    };
    format!("{head}:{}{more}", lines.collect::<String>())
}

/// What a purge did: `_receipts/<time>-<nonce>.json`. It names no user and no item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    format: u32,
    output: String,
    /// RFC 3339.
    at: String,
    code_version: String,
    /// Who answers for it, as they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signed_off_by: Option<String>,
    nonce: String,
    users: usize,
    items: usize,
    /// Digest of the nonce and the ids, so that whoever knows the ids can tell that they were these.
    ids_sha256: String,
    /// The entry of the log that gives the runs up.
    generation: Option<u64>,
    /// Runs that are gone.
    runs: Vec<String>,
    /// Objects that are gone.
    objects: Vec<Removed>,
    /// Generations that are left, with the digests of their manifests.
    left: Vec<(u64, String)>,
    /// What was looked at afterwards, and nothing was found.
    checked: ForgetCounts,
    /// Digest of this receipt with this field empty.
    sha256: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ForgetCounts {
    generations: usize,
    files: usize,
    ids: u64,
}

fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

impl Receipt {
    fn digest(&self) -> Result<String> {
        let unsigned = Self { sha256: String::new(), ..self.clone() };
        Ok(hex(&serde_json::to_vec(&unsigned)?))
    }
}

/// One line per id, users first; the nonce keeps digests of the same ids apart.
fn digest_of_ids(nonce: &str, forgotten: &Forgotten) -> String {
    let users = forgotten.users.iter().map(|id| format!("user {id}\n"));
    let items = forgotten.items.iter().map(|id| format!("item {id}\n"));
    hex(format!("{nonce}\n{}", users.chain(items).collect::<String>()).as_bytes())
}

/// What `tidemill gc --purge` is told.
pub(super) struct Purge<'a> {
    pub(super) output: &'a OutputArgs,
    pub(super) ids: &'a IdArgs,
    pub(super) signed_off_by: Option<&'a str>,
    /// Delete, or only show.
    pub(super) delete: bool,
}

pub(super) fn purge(purge: &Purge<'_>) -> Result<()> {
    let output = purge.output.open()?;
    let forgotten = purge.ids.forgotten(purge.output)?;
    let before = looked(&output, &forgotten, purge.output.json)?;
    let runs: BTreeSet<String> =
        before.holdings.iter().filter_map(|holding| holding.run_id.clone()).collect();
    if !purge.delete {
        match purge.output.json {
            true => print(&serde_json::to_string_pretty(
                &json!({ "deleted": false, "runs": runs, "holdings": before.holdings }),
            )?),
            false => {
                print(&format!("{}\n--delete removes {} runs", described(&before), runs.len()));
            }
        }
        return Ok(());
    }
    let (at, nonce) = (clock::now(), clock::run_id());
    let done = output.purge(&runs, &at, &nonce)?;
    let after = looked(&output, &forgotten, purge.output.json)?;
    if !after.holdings.is_empty() {
        return Err(Refused::bad_data(anyhow!(
            "{} files still hold what is to be gone; {}",
            after.holdings.len(),
            described(&after)
        )));
    }
    let left = output.read_log()?;
    let left = left.publications().filter(|entry| !left.is_collected(&entry.run.run_id));
    let mut receipt = Receipt {
        format: RECEIPT_FORMAT,
        output: output.url().to_owned(),
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        signed_off_by: purge.signed_off_by.map(str::to_owned),
        users: forgotten.users.len(),
        items: forgotten.items.len(),
        ids_sha256: digest_of_ids(&nonce, &forgotten),
        generation: done.generation,
        runs: runs.into_iter().collect(),
        objects: done.objects,
        left: left.map(|entry| (entry.run.generation, entry.run.manifest_sha256.clone())).collect(),
        checked: ForgetCounts {
            generations: after.generations,
            files: after.files,
            ids: after.ids,
        },
        sha256: String::new(),
        at,
        nonce,
    };
    receipt.sha256 = receipt.digest()?;
    let path = format!("_receipts/{}-{}.json", receipt.at.replace(':', ""), receipt.nonce);
    output.put(&path, serde_json::to_vec_pretty(&receipt)?.into())?;
    match purge.output.json {
        true => print(&serde_json::to_string_pretty(
            &json!({ "deleted": true, "path": path, "receipt": receipt }),
        )?),
        false => print(&format!(
            "removed {} runs, {} objects, {}; none of those asked for is left\nreceipt {}",
            receipt.runs.len(),
            HumanCount(receipt.objects.len() as u64),
            BinaryBytes(receipt.objects.iter().map(|object| object.bytes).sum()),
            output.url_of(&path)
        )),
    }
    Ok(())
}

/// Holds a receipt against itself and the output as it is now.
fn check_receipt(args: &ForgetCheckArgs, output: &Output, path: &PathBuf) -> Result<()> {
    let text = path.to_str().context("the path of a receipt is text")?;
    let bytes = match output.get(text)? {
        Some(bytes) => bytes.to_vec(),
        None => std::fs::read(path)
            .with_context(|| format!("receipt \"{text}\" cannot be read"))
            .map_err(Refused::no_input)?,
    };
    let receipt: Receipt = serde_json::from_slice(&bytes)
        .with_context(|| format!("\"{text}\" is no receipt"))
        .map_err(Refused::bad_data)?;
    let mut problems = Vec::new();
    if receipt.digest()? != receipt.sha256 {
        problems.push("it was changed after it was written".to_owned());
    }
    for object in &receipt.objects {
        if output.get(&object.path)?.is_some() {
            problems.push(format!("\"{}\" is there", object.path));
        }
    }
    let log = output.read_log()?;
    for (generation, sha256) in &receipt.left {
        let is_it = log.publications().any(|entry| {
            entry.run.generation == *generation && entry.run.manifest_sha256 == *sha256
        });
        if !is_it {
            problems.push(format!("generation {generation} of the log is another one"));
        }
    }
    if !args.ids.users.is_empty() || !args.ids.items.is_empty() {
        let forgotten = args.ids.forgotten(&args.output)?;
        if digest_of_ids(&receipt.nonce, &forgotten) != receipt.ids_sha256 {
            problems.push("it is about other ids".to_owned());
        }
    }
    match args.output.json {
        true => print(&serde_json::to_string_pretty(
            &json!({ "receipt": receipt, "problems": problems }),
        )?),
        false if problems.is_empty() => print(&format!(
            "the receipt of {} holds: {} objects of {} runs are gone",
            receipt.at,
            receipt.objects.len(),
            receipt.runs.len()
        )),
        false => print(&format!("the receipt does not hold:\n  {}", problems.join("\n  "))),
    }
    match problems.len() {
        0 => Ok(()),
        n => Err(Refused::bad_data(anyhow!("the receipt has {n} problems"))),
    }
}
