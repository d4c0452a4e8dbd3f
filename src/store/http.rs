//! HTTP requests, counted below the retries that the client of a store makes by itself.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::{ClientOptions, Result};

use super::meter::Meter;
use super::runtime::IoRuntime;

/// Makes clients whose requests are counted.
#[derive(Debug)]
pub(super) struct CountingConnector {
    meter: Arc<Meter>,
}

impl CountingConnector {
    pub(super) fn new(meter: Arc<Meter>) -> Self {
        Self { meter }
    }
}

impl HttpConnector for CountingConnector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Counting { client, meter: self.meter.clone() }))
    }
}

#[derive(Debug)]
struct Counting {
    client: HttpClient,
    meter: Arc<Meter>,
}

impl HttpService for Counting {
    // Written out, as the trait is declared by `async_trait`.
    fn call<'s, 'a>(
        &'s self,
        request: HttpRequest,
    ) -> BoxFuture<'a, std::result::Result<HttpResponse, HttpError>>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let reply = self.client.execute(request).await;
            let failed = match &reply {
                Ok(reply) => is_worth_a_retry(reply.status().as_u16()),
                Err(_) => true,
            };
            self.meter.http_request(failed);
            reply
        })
    }
}

impl IoRuntime {
    /// Posts a small message to a service that is no store.
    ///
    /// # Errors
    /// When it does not arrive in time, or is refused. The text does not hold the url.
    pub fn post(
        &self,
        url: &str,
        content_type: &str,
        bearer: Option<&str>,
        body: String,
        patience: Duration,
    ) -> std::result::Result<(), reqwest::Error> {
        self.wait(async {
            let client = reqwest::Client::builder().timeout(patience).build()?;
            let mut request = client.post(url).header("content-type", content_type).body(body);
            if let Some(token) = bearer {
                request = request.bearer_auth(token);
            }
            request.send().await?.error_for_status().map(drop)
        })
        .map_err(reqwest::Error::without_url)
    }
}

/// Replies that the client answers by asking again.
fn is_worth_a_retry(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}
