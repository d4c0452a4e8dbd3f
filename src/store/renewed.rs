//! A store whose client is made anew, once per failure, when its credentials turn out to have expired.
//!
//! Clients fetch new credentials before the old ones end by their own clock. A token that a store
//! calls expired before that, after a revocation or on a clock that is wrong, would be sent again
//! with every request of the rest of the run.

use std::fmt;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

type Client = Arc<dyn ObjectStore>;
type Connect = Box<dyn Fn() -> Option<Client> + Send + Sync>;

/// Hands everything through to the newest client.
#[derive(Debug, Clone)]
pub(super) struct RenewedStore(Arc<Shared>);

struct Shared {
    connect: Connect,
    /// How many clients there were, and the last.
    newest: Mutex<(u64, Client)>,
}

impl RenewedStore {
    pub(super) fn new(
        client: Client,
        connect: impl Fn() -> Option<Client> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared { connect: Box::new(connect), newest: Mutex::new((0, client)) }))
    }

    fn newest(&self) -> (u64, Client) {
        self.0.newest.lock().expect("no thread panics with the lock").clone()
    }

    /// Makes a client in place of number `used`, unless somebody has.
    fn renew(&self, used: u64) {
        let mut newest = self.0.newest.lock().expect("no thread panics with the lock");
        if newest.0 == used
            && let Some(client) = (self.0.connect)()
        {
            tracing::warn!("credentials expired before their time; reading them again");
            *newest = (used + 1, client);
        }
    }

    /// Asks again with a new client where the store says that the credentials have expired.
    async fn twice<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let (used, client) = self.newest();
        match ask(client).await {
            Err(error) if is_expired(&error) => {
                self.renew(used);
                ask(self.newest().1).await
            }
            result => result,
        }
    }

    /// Whoever reads the stream asks again by himself; then there is a new client.
    fn watched<T: 'static>(
        &self,
        ask: impl FnOnce(Client) -> BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let (used, client) = self.newest();
        let shared = self.clone();
        let watch = move |error: &Error| {
            if is_expired(error) {
                shared.renew(used);
            }
        };
        ask(client).inspect_err(watch).boxed()
    }
}

/// Amazon answers 400 with this word, which clients take for a mistake of the request; to HEAD it
/// answers 400 and no word.
fn is_expired(error: &Error) -> bool {
    let Error::Generic { source, .. } = error else { return false };
    let text = source.to_string();
    text.contains("ExpiredToken") || (text.contains("performing HEAD") && text.contains(" 400 "))
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl fmt::Display for RenewedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.newest().1.fmt(f)
    }
}

/// What the methods of the trait return, written out: it is declared by `async_trait`.
type Reply<'a, T> = BoxFuture<'a, Result<T>>;

impl ObjectStore for RenewedStore {
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
        Box::pin(self.twice(move |client| {
            let (payload, options) = (payload.clone(), options.clone());
            async move { client.put_opts(path, payload, options).await }
        }))
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
        Box::pin(self.twice(move |client| {
            let options = options.clone();
            async move { client.put_multipart_opts(path, options).await }
        }))
    }

    fn get_opts<'s, 'p, 'a>(&'s self, path: &'p Path, options: GetOptions) -> Reply<'a, GetResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(self.twice(move |client| {
            let options = options.clone();
            async move { client.get_opts(path, options).await }
        }))
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.watched(|client| client.delete_stream(paths))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.watched(|client| client.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.watched(|client| client.list_with_offset(prefix, offset))
    }

    fn list_with_delimiter<'s, 'p, 'a>(&'s self, prefix: Option<&'p Path>) -> Reply<'a, ListResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(self.twice(move |client| async move { client.list_with_delimiter(prefix).await }))
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
        Box::pin(self.twice(move |client| {
            let options = options.clone();
            async move { client.copy_opts(from, to, options).await }
        }))
    }
}
