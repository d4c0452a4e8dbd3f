//! A store whose writes go wrong in a way that a test chooses.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// What happens to a write.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// It arrives, the reply does not.
    ReplyLost,
    /// It arrives, and is answered as if another had been there first.
    AppliedThenExists,
    /// It does not arrive.
    NotSent,
}

/// Hands everything through, and the next writes below `_log/` to their faults.
#[derive(Debug)]
pub(super) struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    faults: Mutex<VecDeque<Fault>>,
}

impl FaultStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, faults: &[Fault]) -> Self {
        Self { inner, faults: Mutex::new(faults.iter().copied().collect()) }
    }

    async fn put_with(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let fault = match path.as_ref().starts_with("_log/") {
            true => self.faults.lock().unwrap().pop_front(),
            false => None,
        };
        let lost = || Error::Generic { store: "fault", source: "timed out".into() };
        match fault {
            None => self.inner.put_opts(path, payload, options).await,
            Some(Fault::NotSent) => Err(lost()),
            Some(Fault::ReplyLost) => {
                self.inner.put_opts(path, payload, options).await?;
                Err(lost())
            }
            Some(Fault::AppliedThenExists) => {
                self.inner.put_opts(path, payload, options).await?;
                Err(Error::AlreadyExists { path: path.to_string(), source: "412".into() })
            }
        }
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faults over {}", self.inner)
    }
}

impl ObjectStore for FaultStore {
    fn put_opts<'s, 'p, 'a>(
        &'s self,
        path: &'p Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Reply<'a, PutResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(self.put_with(path, payload, options))
    }

    fn put_multipart_opts<'s, 'p, 'a>(
        &'s self,
        path: &'p Path,
        options: PutMultipartOptions,
    ) -> Reply<'a, Box<dyn MultipartUpload>>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        self.inner.put_multipart_opts(path, options)
    }

    fn get_opts<'s, 'p, 'a>(&'s self, path: &'p Path, options: GetOptions) -> Reply<'a, GetResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        self.inner.get_opts(path, options)
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'s, 'p, 'a>(&'s self, prefix: Option<&'p Path>) -> Reply<'a, ListResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'s, 'f, 't, 'a>(
        &'s self,
        from: &'f Path,
        to: &'t Path,
        options: CopyOptions,
    ) -> Reply<'a, ()>
    where
        's: 'a,
        'f: 'a,
        't: 'a,
        Self: 'a,
    {
        self.inner.copy_opts(from, to, options)
    }
}
