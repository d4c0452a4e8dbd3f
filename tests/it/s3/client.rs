//! A client for the tests: `object_store` with a runtime of its own, and short waits.

use std::time::Duration;

use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, S3ConditionalPut};
use object_store::client::{HttpClient, HttpRequestBody};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutResult,
    Result, RetryConfig,
};
use tokio::runtime::{Builder, Runtime};

/// Longer than any honest answer on loopback, however busy the machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A store that blocks, for tests that are not asynchronous.
pub(super) struct Client {
    pub(super) store: AmazonS3,
    runtime: Runtime,
}

pub(super) fn retries(most: usize) -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(2),
        max_backoff: Duration::from_millis(10),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: most, retry_timeout: Duration::from_secs(10) }
}

/// The variables that say where a store is and who asks.
type Variables = Vec<(&'static str, String)>;

/// A builder as the variables say; tests change what they are about.
pub(super) fn builder(variables: Variables) -> AmazonS3Builder {
    rustls::crypto::ring::default_provider().install_default().ok();
    let options = ClientOptions::new().with_timeout(TIMEOUT);
    let mut builder = AmazonS3Builder::new().with_client_options(options);
    for (name, value) in variables {
        builder = builder.with_config(name.to_lowercase().parse().unwrap(), value);
    }
    builder
        .with_bucket_name("bucket")
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(retries(5))
}

impl Client {
    pub(super) fn of(variables: Variables) -> Self {
        Self::built(builder(variables))
    }

    /// A client that gives the first failure to the test.
    pub(super) fn without_retries(variables: Variables) -> Self {
        Self::built(builder(variables).with_retry(retries(0)))
    }

    pub(super) fn built(builder: AmazonS3Builder) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        Self { store: builder.build().unwrap(), runtime }
    }

    pub(super) fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub(super) fn put(&self, key: &str, bytes: &[u8]) -> Result<PutResult> {
        self.put_as(key, bytes, PutMode::Overwrite)
    }

    pub(super) fn put_as(&self, key: &str, bytes: &[u8], mode: PutMode) -> Result<PutResult> {
        let payload = Bytes::copy_from_slice(bytes).into();
        self.wait(self.store.put_opts(&Path::from(key), payload, mode.into()))
    }

    pub(super) fn get(&self, key: &str) -> Result<Bytes> {
        self.get_as(key, GetOptions::default())
    }

    pub(super) fn get_as(&self, key: &str, options: GetOptions) -> Result<Bytes> {
        self.wait(async { self.store.get_opts(&Path::from(key), options).await?.bytes().await })
    }

    pub(super) fn head(&self, key: &str) -> Result<object_store::ObjectMeta> {
        self.wait(self.store.head(&Path::from(key)))
    }
}

/// Sends one signed request that `object_store` has no call for; gives the status and the text.
pub(super) fn signed(
    client: &Client,
    request: hyper::http::request::Builder,
    body: &str,
) -> (u16, String) {
    let mut request = request.body(HttpRequestBody::from(body.to_owned())).unwrap();
    client.wait(async {
        let credential = client.store.credentials().get_credential().await.unwrap();
        let authorizer = AwsAuthorizer::new(&credential, "s3", "us-east-1");
        authorizer.try_authorize(&mut request, None).unwrap();
        let answer = HttpClient::new(reqwest::Client::new()).execute(request).await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.into_body().bytes().await.unwrap();
        (status, String::from_utf8_lossy(&text).into_owned())
    })
}
