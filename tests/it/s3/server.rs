//! An S3 server on loopback that checks signatures, over one bucket in memory.
//!
//! Real stores differ in what they refuse; this one is strict where Amazon's is, so that what
//! works here is not an accident of a lenient store.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use hyper::service::service_fn;
use hyper::{Request, body::Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, HttpResponse, S3Result, s3_error};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use super::backend::{Backend, Conditions};

const KEY_ID: &str = "tidemill-test";
const SECRET: &str = "a-secret-of-the-tests";

/// More than any request of the tests, so that a runaway upload fails instead of eating memory.
const LARGEST_REQUEST: usize = 256 << 20;

/// What the server's threads and the test share.
pub(super) struct Shared {
    bucket: String,
    backend: Mutex<Backend>,
    requests: Mutex<BTreeMap<String, u64>>,
    /// Requests that are being answered, and the most there were.
    at_once: Mutex<(u64, u64)>,
    /// Writes by the key of the key service that they asked for, empty for none.
    kms_keys: Mutex<BTreeMap<String, u64>>,
}

impl Shared {
    pub(super) fn note_key(&self, key: Option<String>) {
        *self.kms_keys.lock().unwrap().entry(key.unwrap_or_default()).or_default() += 1;
    }

    pub(super) fn backend(&self) -> MutexGuard<'_, Backend> {
        self.backend.lock().unwrap()
    }
}

/// A server that runs on threads of its own until it is dropped.
pub(crate) struct S3Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl S3Server {
    /// Starts a server with one empty bucket on a free port.
    pub(crate) fn start(bucket: &str) -> Self {
        Self::start_slow(bucket, Duration::ZERO)
    }

    /// The same, which waits for a while before it answers a request.
    pub(crate) fn start_slow(bucket: &str, delay: Duration) -> Self {
        let shared = Arc::new(Shared {
            bucket: bucket.to_owned(),
            backend: Mutex::default(),
            requests: Mutex::default(),
            at_once: Mutex::default(),
            kms_keys: Mutex::default(),
        });
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let clerk = Clerk { service: service(&shared), shared: shared.clone(), delay };
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(clerk.clone().serve(stream));
            }
        });
        Self { shared, address, runtime: Some(runtime) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The variables with which a client finds this server and may use it.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        environment(&self.endpoint())
    }

    /// Makes a store that takes conditional writes and does not look at their conditions.
    pub(crate) fn ignore_preconditions(&self, ignores: bool) {
        self.shared.backend().ignores_preconditions = ignores;
    }

    /// How many well-signed requests came, by the name of the operation, as `PutObject`.
    pub(crate) fn requests(&self) -> BTreeMap<String, u64> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The most requests that were answered at the same time since this was last asked.
    pub(crate) fn take_requests_at_once(&self) -> u64 {
        let mut at_once = self.shared.at_once.lock().unwrap();
        let most = at_once.1;
        at_once.1 = at_once.0;
        most
    }

    /// How many writes asked for which key of the key service; empty for none.
    pub(crate) fn kms_keys(&self) -> BTreeMap<String, u64> {
        self.shared.kms_keys.lock().unwrap().clone()
    }

    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let backend = self.shared.backend();
        backend.objects.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    pub(crate) fn bytes_of(&self, key: &str) -> Option<Bytes> {
        self.shared.backend().objects.get(key).map(|stored| stored.bytes.clone())
    }

    pub(crate) fn put(&self, key: &str, bytes: impl Into<Bytes>) {
        let put = self.shared.backend().put(key, bytes.into(), &Conditions::default());
        assert!(put.is_ok());
    }

    /// The keys of the uploads that were begun and neither completed nor aborted.
    pub(crate) fn open_uploads(&self) -> Vec<String> {
        self.shared.backend().uploads.values().map(|upload| upload.key.clone()).collect()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Waiting for the threads would panic in a test that is itself asynchronous.
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// The variables for an endpoint, which may be a proxy in front of the server.
pub(crate) fn environment(endpoint: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", endpoint.to_owned()),
        ("AWS_ACCESS_KEY_ID", KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
    ]
}

fn service(shared: &Arc<Shared>) -> S3Service {
    let mut builder = S3ServiceBuilder::new(super::operations::Operations(shared.clone()));
    builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
    builder.set_access(Gate(shared.clone()));
    builder.build()
}

/// Answers the requests of a connection.
#[derive(Clone)]
struct Clerk {
    service: S3Service,
    shared: Arc<Shared>,
    delay: Duration,
}

impl Clerk {
    async fn serve(self, stream: TcpStream) {
        // Small answers would wait for the client's delayed acknowledgement.
        stream.set_nodelay(true).ok();
        let answer = service_fn(move |request| self.clone().answer(request));
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60));
        // A client that hangs up is no failure of the server.
        http.serve_connection(TokioIo::new(stream), answer).await.ok();
    }

    /// Answers after the whole request was read: a refusal that leaves a body unread would break the
    /// next request on the connection.
    async fn answer(self, request: Request<Incoming>) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let mut body = Body::from(body);
        body.store_all_limited(LARGEST_REQUEST).await.map_err(HttpError::new)?;
        self.note(|(now, most)| (now + 1, most.max(now + 1)));
        tokio::time::sleep(self.delay).await;
        let answer = self.service.call(Request::from_parts(head, body)).await;
        self.note(|(now, most)| (now - 1, most));
        answer
    }

    fn note(&self, change: impl Fn((u64, u64)) -> (u64, u64)) {
        let mut at_once = self.shared.at_once.lock().unwrap();
        *at_once = change(*at_once);
    }
}

/// Counts requests, and turns away the unsigned ones and those for another bucket.
struct Gate(Arc<Shared>);

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(s3_error!(AccessDenied));
        }
        if context.s3_path().get_bucket_name() != Some(self.0.bucket.as_str()) {
            return Err(s3_error!(NoSuchBucket));
        }
        let mut requests = self.0.requests.lock().unwrap();
        *requests.entry(context.s3_op().name().to_owned()).or_default() += 1;
        Ok(())
    }
}
