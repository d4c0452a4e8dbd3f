//! Progress: a bar per stage on a terminal, a line per stage elsewhere.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::run::{Observer, Silent};

/// The observer that fits stderr; none where nothing but a result is wanted.
pub(super) fn observer(quiet: bool) -> Arc<dyn Observer> {
    if quiet {
        return Arc::new(Silent);
    }
    match std::io::stderr().is_terminal() {
        true => Arc::new(Bars(Mutex::new(ProgressBar::hidden()))),
        false => Arc::new(Lines),
    }
}

/// One bar at a time, replaced by a line when its stage ends.
struct Bars(Mutex<ProgressBar>);

impl Observer for Bars {
    fn begin(&self, stage: &str, total: Option<(u64, &'static str)>) {
        let bar = match total {
            Some((total, unit)) => {
                let template = format!(
                    "{{prefix:16}} {{bar:30.cyan}} {{human_pos}} of {{human_len}} {unit}, \
                     {{per_sec}}, {{eta}} left"
                );
                let style = ProgressStyle::with_template(&template).expect("a fixed template");
                ProgressBar::new(total).with_style(style)
            }
            None => {
                let style = ProgressStyle::with_template("{prefix:16} {spinner} {elapsed}");
                ProgressBar::new_spinner().with_style(style.expect("a fixed template"))
            }
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_prefix(stage.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        *self.0.lock().expect("no thread panics with the bar") = bar;
    }

    fn advance(&self, units: u64) {
        self.0.lock().expect("no thread panics with the bar").inc(units);
    }

    fn note(&self, stage: &str, text: &str) {
        let bar = self.0.lock().expect("no thread panics with the bar");
        bar.suspend(|| note(stage, text));
    }

    fn end(&self, stage: &str, seconds: f64, note: &str) {
        let bar = self.0.lock().expect("no thread panics with the bar");
        let done = bar.position();
        bar.finish_and_clear();
        drop(bar);
        line(stage, done, seconds, note);
    }
}

/// A line when a stage ends.
struct Lines;

impl Observer for Lines {
    fn begin(&self, _: &str, _: Option<(u64, &'static str)>) {}

    fn advance(&self, _: u64) {}

    fn note(&self, stage: &str, text: &str) {
        note(stage, text);
    }

    fn end(&self, stage: &str, seconds: f64, note: &str) {
        line(stage, 0, seconds, note);
    }
}

fn note(stage: &str, text: &str) {
    use std::io::Write;
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{stage:<16} {text}");
}

fn line(stage: &str, done: u64, seconds: f64, note: &str) {
    use std::io::Write;
    let count = if done > 0 { format!("  {}", HumanCount(done)) } else { String::new() };
    let note = if note.is_empty() { String::new() } else { format!("  {note}") };
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{stage:<16} {seconds:>8.2} s{count}{note}");
}
