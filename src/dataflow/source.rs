//! A stream of items from IO threads into this worker, at the worker's own pace.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::{Operator, source};
use timely::scheduling::{Activator, SyncActivator};
use timely::worker::Worker;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Items that may wait in the channel; together with those in the dataflow, what is in memory.
const QUEUE_ITEMS: usize = 4;

/// Items that may be in the dataflow, taken from the channel and not yet handed to the sink.
const WINDOW_ITEMS: usize = 2;

/// The end of a source that IO threads fill. Clone it for several writers.
///
/// Every item, and the drop of a sender, wakes the worker: a forgotten wake would leave it parked.
pub struct SourceSender<B, E> {
    items: Option<Sender<Result<B, E>>>,
    waker: SyncActivator,
}

/// The source has met an error and takes no more items; the writer should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source takes no more items")]
pub struct SourceClosed;

impl<B, E> SourceSender<B, E> {
    /// Sends an item, or the error that ends the stream; waits while the queue is full.
    ///
    /// # Errors
    /// [`SourceClosed`], if nobody will read it.
    pub async fn send(&self, item: Result<B, E>) -> Result<(), SourceClosed> {
        self.sender().send(item).await.map_err(|_| SourceClosed)?;
        self.wake();
        Ok(())
    }

    /// As [`send`](Self::send), for a plain thread.
    ///
    /// # Errors
    /// [`SourceClosed`], if nobody will read it.
    ///
    /// # Panics
    /// Inside an async task.
    pub fn blocking_send(&self, item: Result<B, E>) -> Result<(), SourceClosed> {
        self.sender().blocking_send(item).map_err(|_| SourceClosed)?;
        self.wake();
        Ok(())
    }

    fn sender(&self) -> &Sender<Result<B, E>> {
        self.items.as_ref().expect("only drop takes it")
    }

    fn wake(&self) {
        // It fails only if the worker is gone, and then nobody needs to wake.
        let _ = self.waker.activate();
    }
}

impl<B, E> Clone for SourceSender<B, E> {
    fn clone(&self) -> Self {
        SourceSender { items: self.items.clone(), waker: self.waker.clone() }
    }
}

impl<B, E> Drop for SourceSender<B, E> {
    fn drop(&mut self) {
        // The end of the channel must be there to see before the worker looks.
        drop(self.items.take());
        self.wake();
    }
}

/// What the operators and the driver share.
struct State<B, E> {
    arrived: VecDeque<B>,
    n_in_flight: usize,
    /// Set once, when the stream has ended.
    end: Option<Result<(), E>>,
}

type Shared<B, E> = Rc<RefCell<State<B, E>>>;

/// Feeds `sink` with what the writers send, until all senders are dropped; returns the item count.
///
/// `start` hands the sender to IO threads and returns at once. The end of the stream looks the same
/// whether a writer was done or died, so the caller must hold the count against its plan. Order is
/// that of the channel. Every worker must call it at the same point, even with nothing to read; it
/// ends on each worker by itself and is no barrier.
///
/// At most a handful of items wait on this side: the operator stops when its window is full, and
/// then the bounded channel stops the writers. The window is counted on this worker and not by a
/// probe, whose frontier would hold all workers to the pace of the slowest reader. Other dataflows
/// of the worker go on in the meantime.
///
/// # Errors
/// The first error in the stream, after the items before it went to `sink`. Nothing is read after
/// it. It is this worker's alone: agree on it.
pub fn windowed_source<B: 'static, E: 'static>(
    worker: &mut Worker,
    name: &str,
    start: impl FnOnce(SourceSender<B, E>),
    mut sink: impl FnMut(B),
) -> Result<u64, E> {
    let (sender, receiver) = channel(QUEUE_ITEMS);
    let state = State { arrived: VecDeque::new(), n_in_flight: 0, end: None };
    let state = Rc::new(RefCell::new(state));
    let (waker, activator) = build_dataflow(worker, name, receiver, &state);
    start(SourceSender { items: Some(sender), waker });
    activator.activate();
    let mut n_items = 0;
    loop {
        // Not borrowed while the sink runs: it is foreign code.
        let arrived = std::mem::take(&mut state.borrow_mut().arrived);
        let n_arrived = arrived.len();
        arrived.into_iter().for_each(&mut sink);
        n_items += n_arrived as u64;
        let mut shared = state.borrow_mut();
        shared.n_in_flight -= n_arrived;
        if shared.n_in_flight == 0
            && let Some(end) = shared.end.take()
        {
            return end.map(|()| n_items);
        }
        drop(shared);
        if n_arrived > 0 {
            // There is room in the window again.
            activator.activate();
        }
        worker.step_or_park(None);
    }
}

/// Source and sink operators; returns what wakes the source, from other threads and from this one.
fn build_dataflow<B: 'static, E: 'static>(
    worker: &mut Worker,
    name: &str,
    receiver: Receiver<Result<B, E>>,
    state: &Shared<B, E>,
) -> (SyncActivator, Activator) {
    let mut wakers = None;
    let (pulled, arrived) = (Rc::clone(state), Rc::clone(state));
    worker.dataflow_named::<u64, _, _>(name, |scope| {
        source::<_, CapacityContainerBuilder<Vec<B>>, _, _>(scope, name, |capability, info| {
            let waker = scope.worker().sync_activator_for(info.address.to_vec());
            wakers = Some((waker, scope.activator_for(info.address)));
            let mut open = Some((capability, receiver));
            move |output| {
                let Some((capability, receiver)) = &mut open else { return };
                let mut session = output.session(capability);
                let ended = pull(receiver, &pulled, |item| session.give(item));
                drop(session);
                if ended {
                    open = None;
                }
            }
        })
        .sink(Pipeline, "windowed source: sink", move |(input, _)| {
            input.for_each(|_, items| arrived.borrow_mut().arrived.extend(items.drain(..)));
        });
    });
    wakers.expect("the source was built")
}

/// Moves items from the channel to `give` while the window has room; true at the end of the stream.
fn pull<B, E>(
    receiver: &mut Receiver<Result<B, E>>,
    state: &Shared<B, E>,
    mut give: impl FnMut(B),
) -> bool {
    let mut state = state.borrow_mut();
    while state.n_in_flight < WINDOW_ITEMS {
        let end = match receiver.try_recv() {
            Ok(Ok(item)) => {
                state.n_in_flight += 1;
                give(item);
                continue;
            }
            Err(TryRecvError::Empty) => return false,
            Ok(Err(error)) => Err(error),
            Err(TryRecvError::Disconnected) => Ok(()),
        };
        state.end = Some(end);
        return true;
    }
    false
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
