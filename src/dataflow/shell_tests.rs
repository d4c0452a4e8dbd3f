use std::process::{Command, Output};

use bytes::Bytes;

use super::*;
use crate::dataflow::source::{SourceSender, windowed_source};

const MODE: &str = "TIDEMILL_TEST_SHELL";

#[test]
fn results_are_in_the_order_of_workers() {
    for n_workers in 1..4 {
        let results = execute::<_, StartError, _>(n_workers, |s| Ok((s.index, s.peers))).unwrap();
        assert!(results.into_iter().eq((0..n_workers).map(|index| (index, n_workers))));
    }
}

#[test]
fn an_agreed_error_is_returned() {
    for n_workers in 1..4 {
        let error = execute::<(), anyhow::Error, _>(n_workers, move |shell| {
            let failing = shell.index == n_workers - 1;
            let status = if failing { Err(anyhow::anyhow!("no luck")) } else { Ok(()) };
            Ok(shell.collectives.agree(status, |_| 65)?)
        });
        assert!(error.unwrap_err().to_string().ends_with("no luck"));
    }
}

#[test]
fn the_only_workers_panic_goes_on_in_the_caller() {
    let panic = catch_unwind(|| {
        execute::<(), StartError, _>(1, |shell| {
            let start = |sender: SourceSender<u8, ()>| {
                thread::spawn(move || while sender.blocking_send(Ok(0)).is_ok() {});
            };
            let _ = windowed_source(&mut shell.worker, "endless", start, |_| panic!("too much"));
            Ok(())
        })
    });
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"too much"));
}

/// Runs `in_a_process_of_its_own` in a child, since what it does ends the process.
fn child(mode: &str) -> Output {
    let module = module_path!().split_once("::").unwrap().1;
    let test = format!("{module}::in_a_process_of_its_own");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&test, "--exact", "--nocapture", "--quiet"]).env(MODE, mode).output().unwrap()
}

#[test]
fn in_a_process_of_its_own() {
    let Ok(mode) = std::env::var(MODE) else { return };
    let results = execute::<_, anyhow::Error, _>(3, move |shell| {
        if shell.index == 1 && mode == "panic" {
            panic!("kernel met a NaN");
        }
        if shell.index == 1 && mode == "leave" {
            anyhow::bail!("told nobody");
        }
        Ok(shell.collectives.all_gather(Bytes::new()).len())
    });
    assert_eq!(results.unwrap(), [3, 3, 3]);
}

#[test]
fn a_panic_ends_the_process() {
    let output = child("panic");
    assert_eq!(output.status.code(), Some(PANIC_EXIT_CODE));
    assert!(String::from_utf8_lossy(&output.stderr).contains("kernel met a NaN"));
}

#[test]
fn leaving_alone_ends_the_process() {
    let output = child("leave");
    assert_eq!(output.status.code(), Some(PANIC_EXIT_CODE));
    assert!(String::from_utf8_lossy(&output.stderr).contains("worker 1 left before collective 1"));
}

#[test]
fn nothing_is_printed() {
    let output = child("fine");
    assert!(output.status.success());
    let stdout = String::from_utf8_lossy(&output.stdout);
    let own = |line: &&str| !line.is_empty() && !line.starts_with("running 1 test");
    let lines: Vec<_> = stdout.lines().filter(own).collect();
    assert!(
        lines.len() == 2 && lines[0] == "." && lines[1].starts_with("test result: ok"),
        "{stdout}"
    );
    assert!(output.stderr.is_empty());
}
