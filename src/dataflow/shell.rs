//! Runs the same driver on every worker.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::zero_copy::stream::Stream;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::{Hooks, WorkerGuards};
use timely::worker::Worker;
use timely::{CommunicationConfig, WorkerConfig};

use super::collectives::Collectives;
use crate::cluster::Link;

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
    join(guards.map_err(StartError)?)
}

/// Runs `driver` on one worker of this process, which is connected with its peers by `links`: one for
/// each other process, in order, and none at `index`, which is this one.
///
/// The processes end together: this returns when all of them have left their drivers. When a
/// connection breaks before, a thread named `timely:…` panics, and it is the panic hook that has to end
/// the process: whatever waits for that peer waits for ever.
///
/// # Errors
/// As [`execute`].
pub fn execute_over<T, E, F>(links: Vec<Option<Link>>, index: usize, driver: F) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StartError> + Send + 'static,
    F: Fn(&mut Shell) -> Result<T, E> + Send + Sync + 'static,
{
    let hooks = Hooks::default();
    let process = ProcessBuilder::new_typed_vector(1, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) = initialize_networking_from_sockets(process, links, index, 1, hooks)
        .map_err(|error| StartError(error.to_string()))?;
    let builders = builders.into_iter().map(AllocatorBuilder::Tcp).collect();
    let config = WorkerConfig::default();
    let driver = move |worker: &mut Worker| run_worker(worker, &driver);
    let guards = timely::execute::execute_from(builders, Box::new(guard), config, driver);
    let results = join(guards.map_err(StartError)?)?;
    Ok(results.into_iter().next().expect("there is a worker"))
}

impl Stream for Link {
    fn try_clone(&self) -> std::io::Result<Self> {
        self.try_clone()
    }

    fn set_nonblocking(&self, nonblocking: bool) -> std::io::Result<()> {
        self.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: std::net::Shutdown) -> std::io::Result<()> {
        self.shutdown(how)
    }
}

/// The results of the workers of this process.
fn join<T, E>(guards: WorkerGuards<thread::Result<Result<T, E>>>) -> Result<Vec<T>, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    let outcomes = guards.join();
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
