//! Files on their way to a store that takes its time, while the next ones are made.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::error::PublishError;
use super::output::Output;
use super::runtime::IoRuntime;

/// Most files on their way at a time.
const FILES_MAX: usize = 32;

/// Most bytes of files on their way at a time, if there is not one larger file alone.
pub const BYTES_BEHIND_MAX: u64 = 64 << 20;

/// Room that a file takes for each so many bytes.
const BYTES_PER_PERMIT: usize = BYTES_BEHIND_MAX as usize / FILES_MAX;

type Written = Result<(), PublishError>;

/// The writes of an output that were begun and not waited for.
#[derive(Debug)]
pub(super) struct WriteBehind {
    begun: Mutex<Vec<JoinHandle<Written>>>,
    room: Arc<Semaphore>,
    has_failed: Arc<AtomicBool>,
}

impl Default for WriteBehind {
    fn default() -> Self {
        let (room, has_failed) = (Arc::new(Semaphore::new(FILES_MAX)), Arc::default());
        Self { begun: Mutex::default(), room, has_failed }
    }
}

impl WriteBehind {
    /// Begins a write of so many bytes as soon as there is room for it.
    fn begin(
        &self,
        runtime: &IoRuntime,
        bytes: usize,
        write: impl Future<Output = Written> + Send + 'static,
    ) {
        let permits = bytes.div_ceil(BYTES_PER_PERMIT).clamp(1, FILES_MAX) as u32;
        let room = runtime.wait(self.room.clone().acquire_many_owned(permits));
        let room = room.expect("the semaphore is never closed");
        let has_failed = self.has_failed.clone();
        let write = runtime.spawn(async move {
            let written = write.await;
            has_failed.fetch_or(written.is_err(), Relaxed);
            drop(room);
            written
        });
        self.begun.lock().expect("no thread panics with the lock").push(write);
    }

    fn take(&self) -> Vec<JoinHandle<Written>> {
        std::mem::take(&mut *self.begun.lock().expect("no thread panics with the lock"))
    }
}

impl Output {
    /// Writes a file beside the calling thread where the store takes its time; [`Output::settle`] tells
    /// what became of it. On a local disk it is written when this returns.
    ///
    /// # Errors
    /// [`PublishError::Store`], also of a file that was begun before.
    pub(super) fn put_behind(&self, path: &str, bytes: Bytes) -> Result<(), PublishError> {
        if self.folder.is_some() {
            return self.put(path, bytes);
        }
        if self.behind.has_failed.load(Relaxed) {
            self.settle()?;
        }
        let (output, path, n_bytes) = (self.clone(), path.to_owned(), bytes.len());
        let write = async move { output.put_all(&path, bytes).await };
        self.behind.begin(&self.runtime, n_bytes, write);
        Ok(())
    }

    /// `done`, once the files that were begun are written, also where it is an error.
    ///
    /// # Errors
    /// Those of `done` and of [`Output::settle`].
    pub fn settled<T, E: From<PublishError>>(&self, done: Result<T, E>) -> Result<T, E> {
        let settled = self.settle();
        done.and_then(|done| Ok(settled.map(|()| done)?))
    }

    /// Waits until all files that were begun are written. Before that, no one may be told of them.
    ///
    /// # Errors
    /// [`PublishError::Store`], of the first that failed.
    pub fn settle(&self) -> Result<(), PublishError> {
        let mut settled = Ok(());
        self.behind.has_failed.store(false, Relaxed);
        for write in self.behind.take() {
            let written = self.runtime.wait(write).expect("a write neither panics nor is given up");
            settled = settled.and(written);
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::faults::{Call, Fault, FaultStore, World};
    use super::*;

    fn output(
        world: &World,
        fault: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static,
    ) -> Output {
        let runtime = IoRuntime::new().unwrap();
        runtime.insert_bucket("s3://shop", Arc::new(FaultStore::new(world, fault)));
        Output::open(&runtime, "s3://shop/out/", Path::new("")).unwrap()
    }

    #[test]
    fn all_that_was_begun_is_there_once_it_is_settled() {
        let world = World::new();
        let output = output(&world, |_| None);
        // More than may be on their way, a large one among them.
        let sizes: Vec<usize> = (0..100).map(|n| if n == 50 { 100 << 20 } else { n }).collect();
        for (n, &size) in sizes.iter().enumerate() {
            output.put_behind(&format!("{n}"), vec![n as u8; size].into()).unwrap();
        }
        output.settle().unwrap();
        for (n, &size) in sizes.iter().enumerate() {
            let bytes = output.get(&format!("{n}")).unwrap().unwrap();
            assert!(bytes.len() == size && bytes.iter().all(|&byte| byte == n as u8), "{n}");
        }
        output.settle().unwrap();
    }

    #[test]
    fn a_write_that_fails_is_told_of_once_and_by_name() {
        let world = World::new();
        let output = output(&world, |call| call.path.ends_with("bad").then_some(Fault::NotApplied));
        for name in ["a", "bad"] {
            output.put_behind(name, name.into()).unwrap();
        }
        let told = output.settled(Ok::<_, PublishError>(())).unwrap_err();
        assert!(told.to_string().contains("s3://shop/out/bad"), "{told}");
        output.settled(Ok::<_, PublishError>(())).unwrap();
        assert!(output.get("a").unwrap().is_some());
        let failed = output.settled(Err::<(), _>(PublishError::Changed { path: "x".into() }));
        assert!(matches!(failed, Err(PublishError::Changed { .. })));
    }

    #[test]
    fn later_writes_are_told_of_one_that_failed() {
        let world = World::new();
        let output = output(&world, |_| Some(Fault::NotApplied));
        output.put_behind("a", "a".into()).unwrap();
        let told = (0..1000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            output.put_behind("b", "b".into()).err()
        });
        assert!(told.is_some(), "a thousand writes were begun after one had failed");
    }

    #[test]
    fn on_a_disk_a_file_is_there_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = IoRuntime::new().unwrap();
        let output = Output::create(&runtime, "out/", folder.path()).unwrap();
        output.put_behind("a", "a".into()).unwrap();
        assert!(folder.path().join("out/a").exists());
    }
}
