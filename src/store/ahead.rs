//! Answers of a store asked for before they are needed: each takes its time, however many are on their way.

use std::fmt;
use std::sync::Mutex;

use futures::future::BoxFuture;
use tokio::task::JoinHandle;

use super::runtime::IoRuntime;

/// Requests that are begun with each that is taken: those that follow it.
const REQUESTS_AHEAD: usize = 8;

/// Most requests that are on their way, or answered and not taken, at a time.
const REQUESTS_MAX: usize = 32;

type Start<T> = Box<dyn Fn(usize) -> BoxFuture<'static, T> + Send + Sync>;

/// Requests that will be taken roughly in their order, each once, by several threads.
///
/// With each that is taken, some that follow it are begun, if there is room for them. A local disk answers
/// at once, and from there each is asked for as it is taken.
pub(super) struct Ahead<T> {
    runtime: IoRuntime,
    start: Start<T>,
    /// Bytes of each answer.
    bytes: Vec<u64>,
    /// Most bytes of those that are begun and not taken; none are begun on a local disk.
    bytes_max: Option<u64>,
    begun: Mutex<Begun<T>>,
}

struct Begun<T> {
    requests: Vec<Request<T>>,
    n: usize,
    bytes: u64,
}

enum Request<T> {
    Waits,
    Begun(JoinHandle<T>),
    Taken,
}

impl<T: Send + 'static> Ahead<T> {
    /// `start` makes a request by its place among `bytes`, the sizes of the answers.
    pub(super) fn new(
        runtime: &IoRuntime,
        is_on_disk: bool,
        bytes: Vec<u64>,
        start: impl Fn(usize) -> BoxFuture<'static, T> + Send + Sync + 'static,
    ) -> Self {
        let requests = bytes.iter().map(|_| Request::Waits).collect();
        let bytes_max = (!is_on_disk).then(|| runtime.read_bytes_in_flight_max());
        let begun = Mutex::new(Begun { requests, n: 0, bytes: 0 });
        Self { runtime: runtime.clone(), start: Box::new(start), bytes, bytes_max, begun }
    }

    /// The answer to a request, for which it waits; `None` if it was taken before.
    pub(super) fn take(&self, place: usize) -> Option<T> {
        let taken = {
            let mut begun = self.begun.lock().expect("no thread panics with the lock");
            let taken = std::mem::replace(&mut begun.requests[place], Request::Taken);
            if matches!(taken, Request::Begun(_)) {
                begun.n -= 1;
                begun.bytes -= self.bytes[place];
            }
            self.begin_after(place, &mut begun);
            taken
        };
        match taken {
            Request::Waits => Some(self.runtime.wait((self.start)(place))),
            Request::Begun(request) => {
                let answer = self.runtime.wait(request);
                Some(answer.expect("a request neither panics nor is given up"))
            }
            Request::Taken => None,
        }
    }

    fn begin_after(&self, place: usize, begun: &mut Begun<T>) {
        let Some(bytes_max) = self.bytes_max else { return };
        let end = self.bytes.len().min(place + 1 + REQUESTS_AHEAD);
        for next in place + 1..end {
            if !matches!(begun.requests[next], Request::Waits) {
                continue;
            }
            if begun.n == REQUESTS_MAX || begun.bytes + self.bytes[next] > bytes_max {
                return;
            }
            begun.requests[next] = Request::Begun(self.runtime.spawn((self.start)(next)));
            begun.n += 1;
            begun.bytes += self.bytes[next];
        }
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        let begun = self.begun.get_mut().expect("no thread panics with the lock");
        for request in &begun.requests {
            if let Request::Begun(request) = request {
                request.abort();
            }
        }
    }
}

impl<T> fmt::Debug for Ahead<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").field("requests", &self.bytes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::super::runtime::StoreOptions;
    use super::*;

    /// Requests of so many bytes each, and which of them were begun, sorted.
    fn ahead(is_on_disk: bool, bytes: Vec<u64>) -> (Ahead<usize>, impl Fn() -> Vec<usize>) {
        let options = StoreOptions { read_bytes_in_flight_max: 1000, ..StoreOptions::default() };
        let runtime = IoRuntime::with_options(options).unwrap();
        let begun = Arc::new(Mutex::new(Vec::new()));
        let noted = begun.clone();
        let ahead = Ahead::new(&runtime, is_on_disk, bytes, move |place| {
            noted.lock().unwrap().push(place);
            async move { place }.boxed()
        });
        let sorted = move || {
            let mut begun = begun.lock().unwrap().clone();
            begun.sort_unstable();
            begun
        };
        (ahead, sorted)
    }

    #[test]
    fn those_that_follow_are_begun_and_each_is_taken_once() {
        let (ahead, begun) = ahead(false, vec![1; 100]);
        assert_eq!(begun(), Vec::<usize>::new(), "nothing is asked for before the first is taken");
        assert_eq!(ahead.take(0), Some(0));
        assert_eq!(begun(), (0..=8).collect::<Vec<_>>());
        assert_eq!(ahead.take(50), Some(50), "another thread begins elsewhere");
        assert_eq!(begun(), (0..=8).chain(50..=58).collect::<Vec<_>>());
        for place in (1..50).chain(51..100) {
            assert_eq!(ahead.take(place), Some(place));
        }
        assert_eq!(begun(), (0..100).collect::<Vec<_>>(), "each is asked for once");
        assert_eq!(ahead.take(7), None);
    }

    #[test]
    fn no_more_are_begun_than_there_is_room_for() {
        let (by_bytes, begun) = ahead(false, vec![2000, 400, 400, 400, 2000, 400]);
        by_bytes.take(0);
        assert_eq!(begun(), [0, 1, 2], "a third has no room");
        by_bytes.take(1);
        assert_eq!(begun(), [0, 1, 2, 3]);
        // One that is larger than all the room is asked for when it is taken.
        by_bytes.take(4);
        assert_eq!(begun(), [0, 1, 2, 3, 4]);
        let (by_number, begun) = ahead(false, vec![0; 100]);
        (0..10).for_each(|thread| assert_eq!(by_number.take(10 * thread), Some(10 * thread)));
        assert_eq!(begun().len(), 10 + REQUESTS_MAX);
    }

    #[test]
    fn a_disk_is_asked_for_what_is_taken_alone() {
        let (ahead, begun) = ahead(true, vec![0; 10]);
        ahead.take(3);
        assert_eq!(begun(), [3]);
    }
}
