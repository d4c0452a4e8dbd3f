//! Runs the same driver on every worker.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use timely::worker::Worker;
use timely::{CommunicationConfig, WorkerConfig};

use super::collectives::Collectives;

/// The exit code after a panic in one of several workers.
pub const PANIC_EXIT_CODE: i32 = 70;

/// What a driver has at hand on its worker.
pub struct Shell {
    /// For [`windowed_source`](super::windowed_source) and dataflows of the driver's own.
    pub worker: Worker,
    /// The operations that all workers take part in.
    pub collectives: Collectives,
    /// This worker, `0..peers`.
    pub index: usize,
    /// The number of workers in all processes.
    pub peers: usize,
}

/// The workers could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the workers did not start: {0}")]
pub struct StartError(String);

/// Runs `driver` on `n_workers` threads of this process; returns the results by worker.
///
/// A production run has one worker per process. More than one in a process is for tests: they prove
/// that no stage assumes that it sees everything.
///
/// After a panic in the only worker, the panic goes on in the caller. With several workers it ends
/// the process with [`PANIC_EXIT_CODE`], after the panic hook has written its message: the peers
/// wait for a worker that will not come, and timely does not tell them. No hook is installed here.
///
/// # Errors
/// The error of the lowest worker that returned one, or [`StartError`].
///
/// # Panics
/// If `n_workers` is 0; as the driver does, if there is one worker.
pub fn execute<T, E, F>(n_workers: usize, driver: F) -> Result<Vec<T>, E>
where
    T: Send + 'static,
    E: From<StartError> + Send + 'static,
    F: Fn(&mut Shell) -> Result<T, E> + Send + Sync + 'static,
{
    assert!(n_workers > 0, "a run needs a worker");
    let communication = match n_workers {
        1 => CommunicationConfig::Thread,
        n => CommunicationConfig::Process(n),
    };
    execute_on(communication, driver)
}

/// As [`execute`], with the workers and channels of `communication`; returns those of this process.
pub(super) fn execute_on<T, E, F>(
    communication: CommunicationConfig,
    driver: F,
) -> Result<Vec<T>, E>
where
    T: Send + 'static,
    E: From<StartError> + Send + 'static,
    F: Fn(&mut Shell) -> Result<T, E> + Send + Sync + 'static,
{
    let config = timely::Config { communication, worker: WorkerConfig::default() };
    let guards = timely::execute(config, move |worker| run_worker(worker, &driver));
    let outcomes = guards.map_err(StartError)?.join();
    let outcome = |joined: Result<_, String>| match joined {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(panic) => panic!("a worker panicked after its driver: {panic}"),
    };
    // All are looked at before the first error returns, so that no panic is lost.
    let results: Vec<Result<T, E>> = outcomes.into_iter().map(outcome).collect();
    results.into_iter().collect()
}

/// Runs the driver and then whatever is left to do for the peers.
fn run_worker<R>(worker: &mut Worker, driver: impl FnOnce(&mut Shell) -> R) -> thread::Result<R> {
    let mut shell = Shell {
        collectives: Collectives::new(worker),
        index: worker.index(),
        peers: worker.peers(),
        worker: worker.clone(),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let result = driver(&mut shell);
        shell.collectives.leave();
        while shell.worker.has_dataflows() {
            shell.worker.step_or_park(None);
        }
        result
    }));
    if outcome.is_err() {
        if shell.peers > 1 {
            std::process::exit(PANIC_EXIT_CODE);
        }
        // What the driver left half done would never end by itself.
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    }
    outcome
}

#[cfg(test)]
#[path = "shell_tests.rs"]
mod tests;
