//! The section about how object stores are reached.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ByteSize;

/// How object stores are reached: `s3://`, `gs://` and `az://` urls. Credentials and encryption
/// come from the environment that each cloud's own tools read (`AWS_ACCESS_KEY_ID`,
/// `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_SSE_KMS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`,
/// `AZURE_STORAGE_ACCOUNT_NAME`, …) or from the instance, never from here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Where the store answers, if not where its cloud has it, such as a store of your own. S3
    /// buckets are then part of the path. `http://` is not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`AWS_ENDPOINT_URL`, else the cloud's"), example = &"http://minio:9000")]
    pub endpoint: Option<String>,
    /// Region of the S3 buckets.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`AWS_REGION`, else us-east-1"), example = &"eu-north-1")]
    pub region: Option<String>,
    /// A request, its body included, may take this long before it is tried again.
    #[schemars(range(min = 1, max = 3600), extend("x-unit" = "seconds"), example = 120)]
    pub request_timeout_seconds: f64,
    /// A connection may be silent for this long in the middle of a reply.
    #[schemars(range(min = 0.1, max = 3600), extend("x-unit" = "seconds"), example = 30)]
    pub stall_timeout_seconds: f64,
    /// A failed request is tried again, later and later, until this long after its first attempt.
    #[schemars(range(min = 0, max = 280), extend("x-unit" = "seconds"), example = 60)]
    pub retry_seconds_max: f64,
    /// Most input that is asked for and not yet received, and most that is asked for ahead of its use, over
    /// all threads of a process.
    #[schemars(extend("x-default" = "`\"64MiB\"`"), example = &"256MiB")]
    pub read_bytes_in_flight_max: ByteSize,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            request_timeout_seconds: 60.0,
            stall_timeout_seconds: 10.0,
            retry_seconds_max: 180.0,
            read_bytes_in_flight_max: ByteSize(64 << 20),
        }
    }
}

impl Store {
    /// See `request_timeout_seconds`.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.request_timeout_seconds)
    }

    /// See `stall_timeout_seconds`.
    pub fn stall_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.stall_timeout_seconds)
    }

    /// See `retry_seconds_max`.
    pub fn retry_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.retry_seconds_max)
    }
}
