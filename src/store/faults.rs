//! A store whose requests go wrong, in turns that a seed decides.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::table_writer::sha256_hex;

type Reply<'a, T> = BoxFuture<'a, Result<T>>;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not applied, and its sender is told of a failure.
    NotApplied,
    /// It is applied, and its sender hears nothing.
    ReplyLost,
    /// A conditional write is applied, and answered as if another had been there first: a client
    /// that tries again after a lost reply is told so.
    AppliedThenRefused,
    /// A conditional write is not applied, as another was in flight: 409.
    Conflict,
    /// It is applied long after its sender gave up on it.
    Late,
    /// The process dies before it is applied, and asks nothing ever again.
    CrashBefore,
    /// The process dies after it was applied.
    CrashAfter,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// From 0, of one process.
    pub(crate) number: u64,
    /// put, get, list, delete, part.
    pub(crate) kind: &'static str,
    pub(crate) path: String,
}

type Script = Arc<dyn Fn(&Call) -> Option<Fault> + Send + Sync>;

/// What all processes share: the objects, and writes that are still on their way.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) objects: Arc<InMemory>,
    late: Arc<Mutex<Vec<(Path, PutPayload, PutMode)>>>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { objects: Arc::new(InMemory::new()), late: Arc::default() }
    }

    /// Writes under a condition. Versions are digests of the content, as on S3, so an object that
    /// is changed and changed back has its old version again. Nothing else writes meanwhile.
    async fn put(&self, path: &Path, payload: PutPayload, mode: PutMode) -> Result<PutResult> {
        let PutMode::Update(wanted) = mode else {
            return self.objects.put_opts(path, payload, mode.into()).await;
        };
        let found = match self.objects.get(path).await {
            Ok(found) => Some(version_of(&found.bytes().await?)),
            Err(_) => None,
        };
        if found != wanted.e_tag {
            let source = "412".into();
            return Err(Error::Precondition { path: path.to_string(), source });
        }
        self.objects.put(path, payload).await
    }

    /// Lets the oldest write that is still on its way arrive.
    async fn arrive_late(&self) {
        let next = {
            let mut late = self.late.lock().unwrap();
            (!late.is_empty()).then(|| late.remove(0))
        };
        if let Some((path, payload, mode)) = next {
            let _ = self.put(&path, payload, mode).await;
        }
    }

    /// Lets all of them arrive.
    pub(crate) fn settle(&self) {
        while !self.late.lock().unwrap().is_empty() {
            self.arrive_late().now_or_never().expect("a store in memory never waits");
        }
    }
}

fn version_of(bytes: &Bytes) -> String {
    format!("\"{}\"", &sha256_hex(bytes)[..32])
}

/// Lets one of several threads make a request at a time, the next by a seed.
pub(crate) struct Turns {
    state: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    rng: ChaCha8Rng,
    waiting: Vec<usize>,
    live: usize,
    granted: Option<usize>,
}

impl Turns {
    pub(crate) fn new(seed: u64, threads: usize) -> Arc<Self> {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let state = Waiting { rng, waiting: Vec::new(), live: threads, granted: None };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Blocks until all threads want something and this one is chosen.
    fn wait(&self, thread: usize) {
        let mut state = self.state.lock().unwrap();
        state.waiting.push(thread);
        self.choose(&mut state);
        let mut state =
            self.changed.wait_while(state, |state| state.granted != Some(thread)).unwrap();
        state.granted = None;
        state.waiting.retain(|waiting| *waiting != thread);
    }

    /// The thread asks for nothing more.
    pub(crate) fn finish(&self) {
        let mut state = self.state.lock().unwrap();
        state.live -= 1;
        self.choose(&mut state);
    }

    fn choose(&self, state: &mut Waiting) {
        if state.granted.is_none() && !state.waiting.is_empty() && state.waiting.len() == state.live
        {
            state.waiting.sort_unstable();
            let chosen = state.rng.random_range(0..state.waiting.len());
            state.granted = Some(state.waiting[chosen]);
            self.changed.notify_all();
        }
    }
}

/// One process's view of the objects.
#[derive(Clone)]
pub(crate) struct FaultStore {
    world: World,
    script: Script,
    turns: Option<(Arc<Turns>, usize)>,
    calls: Arc<AtomicU64>,
    crashed: Arc<AtomicBool>,
}

impl FaultStore {
    pub(crate) fn new(
        world: &World,
        script: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let (calls, crashed) = (Arc::default(), Arc::default());
        Self { world: world.clone(), script: Arc::new(script), turns: None, calls, crashed }
    }

    /// The same as thread `thread` of those that take turns.
    pub(crate) fn in_turns(mut self, turns: &Arc<Turns>, thread: usize) -> Self {
        self.turns = Some((turns.clone(), thread));
        self
    }

    /// Requests so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(SeqCst)
    }

    /// What becomes of a request, decided in its turn.
    async fn fate(&self, kind: &'static str, path: &Path) -> Result<Option<Fault>> {
        if let Some((turns, thread)) = &self.turns {
            turns.wait(*thread);
        }
        let number = self.calls.fetch_add(1, SeqCst);
        if self.crashed.load(SeqCst) {
            return Err(failure("the process is dead"));
        }
        if number % 3 == 2 {
            self.world.arrive_late().await;
        }
        let fault = (self.script)(&Call { number, kind, path: path.to_string() });
        match fault {
            Some(Fault::NotApplied) => Err(failure("not applied")),
            Some(Fault::CrashBefore) => {
                self.crashed.store(true, SeqCst);
                Err(failure("died before"))
            }
            fault => Ok(fault),
        }
    }

    /// The reply to a request that was applied.
    fn reply<T>(&self, fault: Option<Fault>, result: Result<T>) -> Result<T> {
        match fault {
            Some(Fault::CrashAfter) => {
                self.crashed.store(true, SeqCst);
                Err(failure("died after"))
            }
            Some(Fault::ReplyLost) => Err(failure("reply lost")),
            _ => result,
        }
    }

    async fn put_with(&self, path: &Path, payload: PutPayload, mode: PutMode) -> Result<PutResult> {
        let fault = self.fate("put", path).await?;
        let (place, source) = (path.to_string(), "412".into());
        let refusal = match &mode {
            PutMode::Overwrite => None,
            PutMode::Create => Some(Error::AlreadyExists { path: place, source }),
            PutMode::Update(_) => Some(Error::Precondition { path: place, source }),
        };
        match (fault, refusal) {
            (Some(Fault::Late), _) => {
                self.world.late.lock().unwrap().push((path.clone(), payload, mode));
                Err(failure("timed out"))
            }
            (Some(Fault::Conflict), Some(refusal)) => Err(refusal),
            (Some(Fault::AppliedThenRefused), Some(refusal)) => {
                self.world.put(path, payload, mode).await?;
                Err(refusal)
            }
            (fault, _) => self.reply(fault, self.world.put(path, payload, mode).await),
        }
    }

    async fn get_with(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.fate("get", path).await?;
        let whole = !options.head && options.range.is_none();
        let found = self.world.objects.get_opts(path, options).await;
        let mut found = self.reply(fault, found)?;
        if whole {
            let meta = found.meta.clone();
            let bytes = found.bytes().await?;
            let e_tag = Some(version_of(&bytes));
            let range = 0..bytes.len() as u64;
            let payload = futures::stream::once(async { Ok(bytes) }).boxed();
            let (meta, payload) = (ObjectMeta { e_tag, ..meta }, GetResultPayload::Stream(payload));
            let (attributes, extensions) = (Default::default(), Default::default());
            found = GetResult { payload, meta, range, attributes, extensions };
        }
        Ok(found)
    }

    async fn list_with(&self, prefix: Option<Path>) -> Result<Vec<ObjectMeta>> {
        let fault = self.fate("list", &prefix.clone().unwrap_or_default()).await?;
        let listed = self.world.objects.list(prefix.as_ref()).try_collect().await;
        self.reply(fault, listed)
    }

    async fn delete_with(&self, path: Path) -> Result<Path> {
        let fault = self.fate("delete", &path).await?;
        let deleted = self.world.objects.delete(&path).await;
        self.reply(fault, deleted).map(|()| path)
    }
}

fn failure(what: &str) -> Error {
    Error::Generic { store: "S3", source: what.to_owned().into() }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faults over memory")
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
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
        self.put_with(path, payload, options.mode).boxed()
    }

    fn put_multipart_opts<'s, 'p, 'a>(
        &'s self,
        path: &'p Path,
        _: PutMultipartOptions,
    ) -> Reply<'a, Box<dyn MultipartUpload>>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        async move {
            let fault = self.fate("put", path).await?;
            let (store, path, parts) = (self.clone(), path.clone(), Vec::new());
            let upload: Box<dyn MultipartUpload> = Box::new(Upload { store, path, parts });
            self.reply(fault, Ok(upload))
        }
        .boxed()
    }

    fn get_opts<'s, 'p, 'a>(&'s self, path: &'p Path, options: GetOptions) -> Reply<'a, GetResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        self.get_with(path, options).boxed()
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        paths
            .then(move |path| {
                let store = store.clone();
                async move { store.delete_with(path?).await }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listed = async move { store.list_with(prefix).await };
        let found = futures::stream::once(listed)
            .map_ok(|listed| futures::stream::iter(listed.into_iter().map(Ok)));
        found.try_flatten().boxed()
    }

    fn list_with_delimiter<'s, 'p, 'a>(&'s self, prefix: Option<&'p Path>) -> Reply<'a, ListResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        self.world.objects.list_with_delimiter(prefix)
    }

    fn copy_opts<'s, 'f, 't, 'a>(
        &'s self,
        _: &'f Path,
        _: &'t Path,
        _: CopyOptions,
    ) -> Reply<'a, ()>
    where
        's: 'a,
        'f: 'a,
        't: 'a,
        Self: 'a,
    {
        unreachable!("nothing is copied")
    }
}

/// Parts that become an object all at once.
#[derive(Debug)]
struct Upload {
    store: FaultStore,
    path: Path,
    parts: Vec<PutPayload>,
}

impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.push(data);
        let (store, path) = (self.store.clone(), self.path.clone());
        async move {
            let fault = store.fate("part", &path).await?;
            store.reply(fault, Ok(()))
        }
        .boxed()
    }

    fn complete<'s, 'a>(&'s mut self) -> Reply<'a, PutResult>
    where
        's: 'a,
        Self: 'a,
    {
        let payload: PutPayload = self.parts.drain(..).flatten().collect();
        async move { self.store.put_with(&self.path, payload, PutMode::Overwrite).await }.boxed()
    }

    fn abort<'s, 'a>(&'s mut self) -> Reply<'a, ()>
    where
        's: 'a,
        Self: 'a,
    {
        async { Ok(()) }.boxed()
    }
}
