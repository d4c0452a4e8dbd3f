//! The one runtime on which object stores work.

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

/// Two threads that drive requests to object stores: made once per process, cloned freely.
#[derive(Clone, Debug)]
pub struct IoRuntime(Arc<Runtime>);

impl IoRuntime {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system gives no more threads.
    pub fn new() -> std::io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).thread_name("tidemill-io").enable_all().build()?;
        Ok(Self(Arc::new(runtime)))
    }

    /// Waits for `work` on the calling thread.
    ///
    /// # Panics
    /// If the calling thread is one of the runtime's own.
    pub(super) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.0.block_on(work)
    }
}
