//! The one runtime on which object stores work, and what all stores of a process share.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

use super::bucket::{self, BucketUrl};
use super::error::UrlError;
use super::meter::{Meter, MeteredStore, StoreCounts};
use super::renewed::RenewedStore;

/// How requests to object stores are made. Nothing of it changes a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Where the store answers, if not where its cloud has it: `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// Region of S3 buckets.
    pub region: Option<String>,
    /// A request, its body included, may take this long.
    pub request_timeout: Duration,
    /// A connection may be silent for this long in the middle of a reply.
    pub stall_timeout: Duration,
    /// A failed request is tried again until this long after its first attempt. Below 5 minutes,
    /// since retries carry the first signature.
    pub retry_timeout: Duration,
    /// Bytes of input asked for and not yet received, and of answers to each reader that wait to be used.
    pub read_bytes_in_flight_max: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            request_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(10),
            retry_timeout: Duration::from_secs(180),
            read_bytes_in_flight_max: 64 << 20,
        }
    }
}

/// Threads that drive requests to object stores, the connections they keep and what they count:
/// made once per process, cloned freely.
#[derive(Clone, Debug)]
pub struct IoRuntime(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// There until it is dropped.
    runtime: Option<Runtime>,
    options: StoreOptions,
    meter: Arc<Meter>,
    /// One client per bucket: connections are worth keeping.
    buckets: Mutex<BTreeMap<String, Arc<dyn ObjectStore>>>,
    in_flight: Semaphore,
}

impl Shared {
    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Shared {
    /// The last to hold it may be a request that nobody waits for, on one of its own threads, which must
    /// not wait for themselves.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The unit of [`StoreOptions::read_bytes_in_flight_max`], as semaphores count in 32 bits.
const PERMIT_BYTES: u64 = 1 << 10;

impl IoRuntime {
    /// Starts the threads, with the default options.
    ///
    /// # Errors
    /// When the operating system gives no more threads.
    pub fn new() -> std::io::Result<Self> {
        Self::with_options(StoreOptions::default())
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system gives no more threads.
    pub fn with_options(options: StoreOptions) -> std::io::Result<Self> {
        // The only TLS that is compiled in; a second start finds the first one's choice.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).thread_name("tidemill-io").enable_all().build()?;
        let permits = (options.read_bytes_in_flight_max / PERMIT_BYTES).max(1);
        let in_flight = Semaphore::new(permits.min(Semaphore::MAX_PERMITS as u64) as usize);
        let (meter, buckets) = (Arc::default(), Mutex::default());
        let runtime = Some(runtime);
        Ok(Self(Arc::new(Shared { runtime, options, meter, buckets, in_flight })))
    }

    /// Requests and bytes so far.
    pub fn counts(&self) -> StoreCounts {
        self.0.meter.counts()
    }

    /// Waits for `work` on the calling thread.
    ///
    /// # Panics
    /// If the calling thread is one of the runtime's own.
    pub(super) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.0.runtime().block_on(work)
    }

    /// Waits for many requests, so many of which are on their way at a time; their answers in order.
    ///
    /// # Errors
    /// The first in order, and no more are made.
    pub(super) fn wait_for_all<T, E>(
        &self,
        at_once: usize,
        requests: impl IntoIterator<Item = impl Future<Output = Result<T, E>>>,
    ) -> Result<Vec<T>, E> {
        self.wait(stream::iter(requests).buffered(at_once).try_collect())
    }

    /// Starts `work` beside the calling thread.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.runtime().spawn(work)
    }

    /// See [`StoreOptions::read_bytes_in_flight_max`].
    pub(super) fn read_bytes_in_flight_max(&self) -> u64 {
        self.0.options.read_bytes_in_flight_max
    }

    /// Waits until `bytes` more may be asked for; they count until the permit is dropped.
    pub(super) async fn reserve(&self, bytes: u64) -> SemaphorePermit<'_> {
        let most = (self.0.options.read_bytes_in_flight_max / PERMIT_BYTES).max(1);
        let permits = bytes.div_ceil(PERMIT_BYTES).clamp(1, most);
        let permits = permits.min(u64::from(u32::MAX)) as u32;
        self.0.in_flight.acquire_many(permits).await.expect("the semaphore is never closed")
    }

    /// The bucket of `url`, with a client that is shared by all who ask.
    pub(super) fn bucket(&self, url: &BucketUrl) -> Result<Arc<dyn ObjectStore>, UrlError> {
        let mut buckets = self.0.buckets.lock().expect("no thread panics with the lock");
        if let Some(store) = buckets.get(&url.bucket) {
            return Ok(store.clone());
        }
        let client = bucket::connect(url, &self.0.options, &self.0.meter)?;
        let (options, meter, again) = (self.0.options.clone(), self.0.meter.clone(), url.clone());
        let connect = move || bucket::connect(&again, &options, &meter).ok();
        let store = self.metered(Arc::new(RenewedStore::new(client, connect)));
        buckets.insert(url.bucket.clone(), store.clone());
        Ok(store)
    }

    /// `store`, its requests counted.
    pub(super) fn metered(&self, store: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(MeteredStore::new(store, self.0.meter.clone()))
    }

    /// Makes `bucket`, such as `s3://test`, a store that a test has made.
    #[cfg(test)]
    pub(crate) fn insert_bucket(&self, bucket: &str, store: Arc<dyn ObjectStore>) {
        let store = self.metered(store);
        self.0.buckets.lock().unwrap().insert(bucket.to_owned(), store);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_may_outlive_whoever_made_it() {
        let runtime = IoRuntime::new().unwrap();
        let (held, (told, hear)) = (runtime.clone(), std::sync::mpsc::channel());
        runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(held);
            told.send(()).unwrap();
        });
        drop(runtime);
        hear.recv().expect("the request does not panic");
    }
}
