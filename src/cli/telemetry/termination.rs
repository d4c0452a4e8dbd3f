//! The one line that `kubectl describe pod` shows.

use std::path::Path;

use serde_json::{Value, json};

use super::warn;
use crate::run::{Report, code, exit_code, one_line};

/// Where Kubernetes looks, unless a pod says otherwise.
const USUAL: &str = "/dev/termination-log";

/// Kubernetes keeps 4,096 bytes; the other fields need some.
const MESSAGE_BYTES_MAX: usize = 3_000;

/// Tells why a command stopped that has no report.
pub(in crate::cli) fn refused(error: &anyhow::Error) {
    let code = exit_code(error);
    write(&json!({
        "code": code,
        "kind": code::name(code),
        "message": shortened(&one_line(error.as_ref())),
        "retryable": code::is_retryable(code),
    }));
}

/// Tells how a run ended.
pub(in crate::cli) fn ended(report: &Report) {
    let mut line = json!({
        "code": report.exit_code,
        "kind": report.kind,
        "outcome": report.outcome,
        "run_id": report.run_id,
    });
    if let Some(error) = &report.error {
        line["stage"] = json!(report.stage);
        line["message"] = json!(shortened(error));
        line["retryable"] = json!(report.retryable);
    }
    if let Some(current) = &report.current {
        line["generation"] = json!(current.generation);
    }
    write(&line);
}

fn write(line: &Value) {
    let path = match std::env::var("TIDEMILL_TERMINATION_LOG") {
        Ok(path) if path.is_empty() => return,
        Ok(path) => path,
        Err(_) if Path::new(USUAL).exists() => USUAL.to_owned(),
        Err(_) => return,
    };
    warn("the termination log", &path, std::fs::write(&path, format!("{line}\n")));
}

fn shortened(text: &str) -> &str {
    let end = (0..=text.len().min(MESSAGE_BYTES_MAX)).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = "å".repeat(2_000);
        assert_eq!(shortened(&long).len(), MESSAGE_BYTES_MAX);
        let odd = format!("x{long}");
        assert_eq!(shortened(&odd).len(), MESSAGE_BYTES_MAX - 1);
    }
}
