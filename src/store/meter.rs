//! What a process asked of its stores: requests by kind, bytes, failures below the retries.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use serde::{Deserialize, Serialize};

/// Requests and bytes of one run, over all its stores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCounts {
    /// Requests by kind: get, head, put, part, list, delete, copy. A listing of many keys is one.
    pub requests: BTreeMap<String, u64>,
    /// HTTP requests, retries included; 0 on a local disk.
    pub http_requests: u64,
    /// Of these, those that failed and were answered by asking again.
    pub http_retries: u64,
    /// Bytes of objects received.
    pub bytes_read: u64,
    /// Bytes of objects sent.
    pub bytes_written: u64,
}

const KINDS: [&str; 7] = ["get", "head", "put", "part", "list", "delete", "copy"];

#[derive(Clone, Copy)]
enum Kind {
    Get,
    Head,
    Put,
    Part,
    List,
    Delete,
    Copy,
}

/// Counters that all stores of a process share.
#[derive(Debug, Default)]
pub(super) struct Meter {
    requests: [AtomicU64; KINDS.len()],
    http_requests: AtomicU64,
    http_retries: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Meter {
    pub(super) fn counts(&self) -> StoreCounts {
        let requests = KINDS.iter().zip(&self.requests);
        let requests = requests.map(|(kind, count)| ((*kind).to_owned(), count.load(Relaxed)));
        StoreCounts {
            requests: requests.filter(|(_, count)| *count > 0).collect(),
            http_requests: self.http_requests.load(Relaxed),
            http_retries: self.http_retries.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
        }
    }

    pub(super) fn http_request(&self, failed: bool) {
        self.http_requests.fetch_add(1, Relaxed);
        self.http_retries.fetch_add(failed.into(), Relaxed);
    }

    fn request(&self, kind: Kind) {
        self.requests[kind as usize].fetch_add(1, Relaxed);
    }

    fn read(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Relaxed);
    }

    fn wrote(&self, bytes: usize) {
        self.bytes_written.fetch_add(bytes as u64, Relaxed);
    }
}

/// Hands everything through and counts it.
#[derive(Debug)]
pub(super) struct MeteredStore {
    inner: Arc<dyn ObjectStore>,
    meter: Arc<Meter>,
}

impl MeteredStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }

    async fn get_counted(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.meter.request(if options.head { Kind::Head } else { Kind::Get });
        let is_head = options.head;
        let mut found = self.inner.get_opts(path, options).await?;
        if is_head {
            return Ok(found);
        }
        found.payload = match found.payload {
            GetResultPayload::Stream(stream) => {
                let meter = self.meter.clone();
                let counted = stream.inspect_ok(move |bytes| meter.read(bytes.len() as u64));
                GetResultPayload::Stream(counted.boxed())
            }
            file => {
                self.meter.read(found.range.end - found.range.start);
                file
            }
        };
        Ok(found)
    }
}

impl fmt::Display for MeteredStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// What the methods of the trait return, written out: it is declared by `async_trait`.
type Reply<'a, T> = BoxFuture<'a, Result<T>>;

impl ObjectStore for MeteredStore {
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
        self.meter.request(Kind::Put);
        self.meter.wrote(payload.content_length());
        self.inner.put_opts(path, payload, options)
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
        Box::pin(async move {
            self.meter.request(Kind::Put);
            let inner = self.inner.put_multipart_opts(path, options).await?;
            let upload = MeteredUpload { inner, meter: self.meter.clone() };
            Ok(Box::new(upload) as Box<dyn MultipartUpload>)
        })
    }

    fn get_opts<'s, 'p, 'a>(&'s self, path: &'p Path, options: GetOptions) -> Reply<'a, GetResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(self.get_counted(path, options))
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let meter = self.meter.clone();
        let paths = paths.inspect_ok(move |_| meter.request(Kind::Delete)).boxed();
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.meter.request(Kind::List);
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.meter.request(Kind::List);
        self.inner.list_with_offset(prefix, offset)
    }

    fn list_with_delimiter<'s, 'p, 'a>(&'s self, prefix: Option<&'p Path>) -> Reply<'a, ListResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        self.meter.request(Kind::List);
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
        self.meter.request(Kind::Copy);
        self.inner.copy_opts(from, to, options)
    }
}

#[derive(Debug)]
struct MeteredUpload {
    inner: Box<dyn MultipartUpload>,
    meter: Arc<Meter>,
}

impl MultipartUpload for MeteredUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.meter.request(Kind::Part);
        self.meter.wrote(data.content_length());
        self.inner.put_part(data)
    }

    fn complete<'s, 'a>(&'s mut self) -> Reply<'a, PutResult>
    where
        's: 'a,
        Self: 'a,
    {
        self.meter.request(Kind::Put);
        self.inner.complete()
    }

    fn abort<'s, 'a>(&'s mut self) -> Reply<'a, ()>
    where
        's: 'a,
        Self: 'a,
    {
        self.meter.request(Kind::Delete);
        self.inner.abort()
    }
}
