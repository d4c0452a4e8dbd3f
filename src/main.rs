//! The `tidemill` binary: argv in, exit code out.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tidemill::{cli, run};

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let is_help = !error.use_stderr();
            let _ = error.print();
            return ExitCode::from(if is_help { 0 } else { run::code::USAGE });
        }
    };
    match cli::dispatch(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", run::one_line(error.as_ref()));
            ExitCode::from(run::exit_code(&error))
        }
    }
}
