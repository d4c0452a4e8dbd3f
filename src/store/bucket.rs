//! Buckets of object stores: what a url names, and a client for it.
//!
//! Credentials come from where the cloud's own tools take them: the environment, files it names,
//! web identity, the instance. They are in no spec, plan or manifest.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::error::UrlError;
use super::http::CountingConnector;
use super::meter::Meter;
use super::runtime::StoreOptions;

/// Which cloud a scheme belongs to.
const SCHEMES: [(&str, Cloud); 7] = [
    ("s3", Cloud::Amazon),
    ("s3a", Cloud::Amazon),
    ("gs", Cloud::Google),
    ("az", Cloud::Azure),
    ("azure", Cloud::Azure),
    ("abfs", Cloud::Azure),
    ("abfss", Cloud::Azure),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    Amazon,
    Google,
    Azure,
}

/// A url of an object store, cut in two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BucketUrl {
    /// `s3://shop`.
    pub(super) bucket: String,
    /// What follows, without the `/` between: `events/dt=*/`. Keys are taken as they are written.
    pub(super) path: String,
    cloud: Cloud,
}

impl BucketUrl {
    /// Cuts `url`; `None` where it is a path or a `file://` url.
    ///
    /// # Errors
    /// [`UrlError::Scheme`] for a store that there is no client for, [`UrlError::Malformed`] for
    /// a url without a bucket.
    pub(super) fn parse(url: &str) -> Result<Option<Self>, UrlError> {
        let Some((scheme, rest)) = url.split_once("://") else { return Ok(None) };
        if scheme == "file" {
            return Ok(None);
        }
        let found = SCHEMES.iter().find(|(name, _)| *name == scheme);
        let Some(&(_, cloud)) = found else {
            return Err(UrlError::Scheme { url: url.to_owned(), scheme: scheme.to_owned() });
        };
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(malformed(
                url,
                format!("it names no bucket; write {scheme}://bucket/folder/"),
            ));
        }
        let (bucket, path) = (format!("{scheme}://{bucket}"), path.to_owned());
        Ok(Some(Self { bucket, path, cloud }))
    }

    /// The key of a folder of this bucket: empty, or without a `/` at either end.
    ///
    /// # Errors
    /// [`UrlError::Malformed`] for empty or relative parts, which stores would take as they are.
    pub(super) fn folder_key(&self, folder: &str) -> Result<Key, UrlError> {
        let folder = folder.strip_suffix('/').unwrap_or(folder);
        Key::parse(folder).map_err(|error| {
            let url = format!("{}/{}", self.bucket, self.path);
            malformed(&url, format!("{error}; write it without empty or relative parts"))
        })
    }
}

fn malformed(url: &str, reason: String) -> UrlError {
    UrlError::Malformed { url: url.to_owned(), reason }
}

/// Whether a url names a place on a local disk, which answers at once.
pub fn is_on_disk(url: &str) -> bool {
    matches!(BucketUrl::parse(url), Ok(None))
}

/// A client for the bucket of `url`. No request is made yet.
pub(super) fn connect(
    url: &BucketUrl,
    options: &StoreOptions,
    meter: &Arc<Meter>,
) -> Result<Arc<dyn ObjectStore>, UrlError> {
    let store = match url.cloud {
        Cloud::Amazon => amazon(url, options, meter),
        Cloud::Google => google(url, options, meter),
        Cloud::Azure => azure(url, options, meter),
    };
    store.map_err(|source| UrlError::Client { url: url.bucket.clone(), source })
}

fn amazon(
    url: &BucketUrl,
    options: &StoreOptions,
    meter: &Arc<Meter>,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::from_env()
        .with_url(url.bucket.as_str())
        .with_client_options(client_options(options))
        .with_retry(retries(options))
        .with_http_connector(CountingConnector::new(meter.clone()));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    Ok(Arc::new(builder.build()?))
}

fn google(
    url: &BucketUrl,
    options: &StoreOptions,
    meter: &Arc<Meter>,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_url(url.bucket.as_str())
        .with_client_options(client_options(options))
        .with_retry(retries(options))
        .with_http_connector(CountingConnector::new(meter.clone()));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    Ok(Arc::new(builder.build()?))
}

fn azure(
    url: &BucketUrl,
    options: &StoreOptions,
    meter: &Arc<Meter>,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_url(url.bucket.as_str())
        .with_client_options(client_options(options))
        .with_retry(retries(options))
        .with_http_connector(CountingConnector::new(meter.clone()));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    Ok(Arc::new(builder.build()?))
}

/// Unencrypted connections only to an endpoint that says so, or where the environment allows them.
fn client_options(options: &StoreOptions) -> ClientOptions {
    let plain = options.endpoint.as_ref().is_some_and(|url| url.starts_with("http://"));
    let allowed = ["AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP"]
        .iter()
        .any(|name| std::env::var(name).is_ok_and(|value| value == "true" || value == "1"));
    ClientOptions::new()
        .with_allow_http(plain || allowed)
        .with_timeout(options.request_timeout)
        .with_read_timeout(options.stall_timeout)
        .with_user_agent(USER_AGENT)
}

const USER_AGENT: reqwest::header::HeaderValue =
    reqwest::header::HeaderValue::from_static(concat!("tidemill/", env!("CARGO_PKG_VERSION")));

fn retries(options: &StoreOptions) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 10,
        retry_timeout: options.retry_timeout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_buckets_are_cut_and_paths_are_left_to_the_disk() {
        let cut = |url| BucketUrl::parse(url).unwrap().map(|cut| (cut.bucket, cut.path));
        let both = |bucket: &str, path: &str| Some((bucket.to_owned(), path.to_owned()));
        assert_eq!(cut("s3://shop/events/dt=*/"), both("s3://shop", "events/dt=*/"));
        assert_eq!(cut("gs://shop"), both("gs://shop", ""));
        assert_eq!(
            cut("abfss://c@a.dfs.core.windows.net/x"),
            both("abfss://c@a.dfs.core.windows.net", "x")
        );
        assert_eq!(cut("events/"), None);
        assert_eq!(cut("file:///events/"), None);
        assert!(BucketUrl::parse("s3:///events/").unwrap_err().to_string().contains("no bucket"));
        assert!(BucketUrl::parse("hdfs://n/x").unwrap_err().to_string().contains("\"hdfs\""));
    }

    #[test]
    fn folders_with_relative_parts_are_refused() {
        let url = BucketUrl::parse("s3://shop/a/../b/").unwrap().unwrap();
        assert_eq!(url.folder_key(&url.path).unwrap_err().exit_code(), 78);
        assert_eq!(url.folder_key("a/b/").unwrap().as_ref(), "a/b");
        assert_eq!(url.folder_key("").unwrap().as_ref(), "");
    }
}
