//! What this process has used, as far as the system tells: a stage is what lies between two looks.

use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::store::{IoRuntime, StoreCounts};

/// A look at the clocks and counters of the process.
pub(super) struct Usage {
    at: Instant,
    cpu_seconds: Option<f64>,
    store: StoreCounts,
}

/// Memory of the process that is backed by pages, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// Now.
    pub(super) bytes: u64,
    /// The most so far.
    pub(super) bytes_peak: u64,
}

impl Usage {
    /// What was used until now.
    pub(super) fn now(runtime: &IoRuntime) -> Self {
        Self { at: Instant::now(), cpu_seconds: cpu_seconds(), store: runtime.counts() }
    }

    /// Seconds since, and what the manifest says of a stage that began then: `cpu_seconds` of all
    /// threads, `bytes_read` from stores and `bytes_written` to them, `memory_bytes` at its end and
    /// `memory_bytes_peak` of the process until then. What the system does not tell is absent.
    pub(super) fn since(&self, runtime: &IoRuntime) -> (f64, Map<String, Value>) {
        let now = Self::now(runtime);
        let mut more = Map::new();
        let mut insert = |key: &str, value: Value| more.insert(key.to_owned(), value);
        if let (Some(before), Some(now)) = (self.cpu_seconds, now.cpu_seconds) {
            // Ticks of a hundredth, whose difference is not one in binary fractions.
            insert("cpu_seconds", json!(((now - before) * 100.0).round() / 100.0));
        }
        insert("bytes_read", json!(now.store.bytes_read - self.store.bytes_read));
        insert("bytes_written", json!(now.store.bytes_written - self.store.bytes_written));
        if let Some(Memory { bytes, bytes_peak }) = memory() {
            insert("memory_bytes", json!(bytes));
            insert("memory_bytes_peak", json!(bytes_peak));
        }
        ((now.at - self.at).as_secs_f64(), more)
    }
}

/// Memory of this process, where Linux tells it.
pub(super) fn memory() -> Option<Memory> {
    parse_memory(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Seconds of processors that all threads of this process had, those that ended too; where Linux
/// tells them, to a hundredth.
fn cpu_seconds() -> Option<f64> {
    parse_cpu_seconds(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

fn parse_memory(status: &str) -> Option<Memory> {
    let bytes = |key: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    };
    Some(Memory { bytes: bytes("VmRSS:")?, bytes_peak: bytes("VmHWM:")? })
}

fn parse_cpu_seconds(stat: &str) -> Option<f64> {
    /// What programs are told, whatever the kernel counts in.
    const TICKS_PER_SECOND: f64 = 100.0;
    // The second field is the program's name, which may hold blanks and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_does_not_shift_the_fields() {
        let stat = "7 (a b) c)) R 1 7 7 0 -1 4194304 9 0 0 0 1234 66 5 6 20 0 3 0 99 1 2";
        assert_eq!(parse_cpu_seconds(stat), Some(13.0));
        assert_eq!(parse_cpu_seconds("7 (a) R 1"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t      10 kB\n";
        assert_eq!(parse_memory(status), Some(Memory { bytes: 10 << 10, bytes_peak: 2 << 20 }));
        assert_eq!(parse_memory("VmHWM:\t 2048 kB\n"), None);
    }

    #[test]
    fn work_is_seen() {
        let runtime = IoRuntime::new().unwrap();
        let before = Usage::now(&runtime);
        let mut sum = 0_u64;
        while before.at.elapsed().as_millis() < 200 {
            sum = sum.wrapping_mul(31).wrapping_add(1);
        }
        assert_ne!(sum, 0);
        let (seconds, more) = before.since(&runtime);
        assert!(seconds >= 0.2);
        assert_eq!((&more["bytes_read"], &more["bytes_written"]), (&json!(0), &json!(0)));
        if let Some(cpu) = more.get("cpu_seconds").and_then(Value::as_f64) {
            // Other tests run in this process at the same time, and others on this machine.
            assert!(cpu > 0.0, "{cpu}");
            assert!(more["memory_bytes"].as_u64() > Some(1 << 20));
        }
    }
}
