//! What the stages of a run took, as a table or as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use indicatif::BinaryBytes;
use serde_json::Value;

use crate::run::Profile;
use crate::store::Stage;

/// The table, on stderr: stdout is for the outcome.
pub(super) fn print(profile: &Profile) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "\n{}", table(profile));
}

/// The profile as JSON in a file.
pub(super) fn write(profile: &Profile, path: &Path) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(profile)?;
    json.push(b'\n');
    let name = path.display().to_string();
    fs::write(path, json).with_context(|| format!("\"{name}\" cannot be written"))
}

/// Columns of the table after the name of the stage.
type Cells = [String; 9];

fn table(profile: &Profile) -> String {
    let head =
        ["seconds", "cores", "read", "written", "sent", "memory", "peak", "work", "a second"];
    let mut out = row("stage", head.map(str::to_owned));
    for stage in &profile.stages {
        out += &row(&stage.name, of_stage(stage));
    }
    out += &row("between them", seconds_alone(profile.seconds_between()));
    out += &row("all", of_all(profile));
    out += &iterations(&profile.stages);
    let processes = profile.cluster.processes;
    if processes > 1 {
        out += "sent and work are of all processes, the rest is of the first one\n";
    }
    let threads = profile.cluster.threads;
    let plural = |n: usize, ending: &'static str| if n == 1 { "" } else { ending };
    out += &format!(
        "on {processes} process{} of {threads} thread{}, {}",
        plural(processes, "es"),
        plural(threads, "s"),
        profile.instruction_set
    );
    out
}

fn row(name: &str, cells: Cells) -> String {
    let [seconds, cores, read, written, sent, memory, peak, work, rate] = cells;
    format!(
        "{name:<16}{seconds:>9}{cores:>7}{read:>13}{written:>13}{sent:>13}{memory:>13}{peak:>13}\
         {work:>18}{rate:>20}\n"
    )
}

fn of_stage(stage: &Stage) -> Cells {
    let bytes = |key: &str| bytes(stage, key);
    let (work, rate) = work(stage, stage.seconds).unwrap_or_default();
    [
        format!("{:.3}", stage.seconds),
        number(stage, "cpu_seconds").map_or(String::new(), |cpu| cores(cpu, stage.seconds)),
        bytes("bytes_read"),
        bytes("bytes_written"),
        bytes("bytes_moved"),
        bytes("memory_bytes"),
        bytes("memory_bytes_peak"),
        work,
        rate,
    ]
}

fn of_all(profile: &Profile) -> Cells {
    let sum = |key: &str| profile.stages.iter().filter_map(|of| number(of, key)).sum::<f64>();
    let bytes = |key: &str| told(sum(key));
    let mut cells = seconds_alone(profile.seconds);
    cells[1] = cores(sum("cpu_seconds"), profile.seconds);
    cells[2..5].clone_from_slice(&["bytes_read", "bytes_written", "bytes_moved"].map(bytes));
    cells[6] = profile.peak_memory_bytes.map_or(String::new(), |bytes| told(bytes as f64));
    cells
}

fn seconds_alone(seconds: f64) -> Cells {
    let mut cells = Cells::default();
    cells[0] = format!("{seconds:.3}");
    cells
}

/// The seconds of each iteration of ALS, and the rate of the middle one.
fn iterations(stages: &[Stage]) -> String {
    let of_stage = |stage: &Stage| -> Option<String> {
        let seconds = stage.more.get("iteration_seconds")?.as_array()?;
        let seconds: Vec<f64> = seconds.iter().filter_map(Value::as_f64).collect();
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let median = *sorted.get(sorted.len() / 2)?;
        let told: Vec<String> = seconds.iter().map(|seconds| format!("{seconds:.3}")).collect();
        let each = number(stage, "work").map(|work| work / seconds.len() as f64);
        let rate = each.map_or(String::new(), |each| {
            format!("; the middle one {}", scaled(each / median, "FLOP/s"))
        });
        Some(format!("{} iterations in seconds: {}{rate}\n", stage.name, told.join(" ")))
    };
    stages.iter().filter_map(of_stage).collect()
}

/// Cores at work, on average; nothing where a hundredth of a second is too coarse to tell.
fn cores(cpu_seconds: f64, seconds: f64) -> String {
    if seconds < 0.05 { String::new() } else { format!("{:.2}", cpu_seconds / seconds) }
}

fn number(stage: &Stage, key: &str) -> Option<f64> {
    stage.more.get(key).and_then(Value::as_f64)
}

fn bytes(stage: &Stage, key: &str) -> String {
    number(stage, key).map_or(String::new(), told)
}

/// Bytes as a person reads them; nothing for none.
fn told(bytes: f64) -> String {
    if bytes == 0.0 { String::new() } else { BinaryBytes(bytes as u64).to_string() }
}

/// The work of a stage, and what a second had of it.
fn work(stage: &Stage, seconds: f64) -> Option<(String, String)> {
    let unit = match stage.more.get("work_unit")?.as_str()? {
        "flop" => "FLOP",
        other => other,
    };
    let work = number(stage, "work")?;
    Some((scaled(work, unit), scaled(work / seconds, &format!("{unit}/s"))))
}

/// Three digits with the prefix of the unit: `31.0 GFLOP`, `12.1 M rows`.
fn scaled(value: f64, unit: &str) -> String {
    let prefixes = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];
    let (scale, prefix) =
        prefixes.into_iter().find(|(scale, _)| value >= *scale).unwrap_or((1.0, ""));
    let blank = if unit.starts_with("FLOP") || prefix.is_empty() { "" } else { " " };
    let value = value / scale;
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {prefix}{blank}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(scaled(31.04e9, "FLOP"), "31.0 GFLOP");
        assert_eq!(scaled(1_500.0, "rows/s"), "1.50 k rows/s");
        assert_eq!(scaled(123.4, "rows"), "123 rows");
        assert_eq!(scaled(0.0, "rows"), "0.00 rows");
    }

    #[test]
    fn cores_need_time_to_be_told() {
        assert_eq!(cores(0.19, 0.1), "1.90");
        assert_eq!(cores(0.01, 0.01), "");
    }
}
