use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::dataflow::shell::{Shell, StartError, execute};

fn run<T: Send + 'static>(
    n_workers: usize,
    driver: impl Fn(&mut Shell) -> T + Send + Sync + 'static,
) -> Vec<T> {
    execute::<T, StartError, _>(n_workers, move |shell| Ok(driver(shell))).unwrap()
}

#[test]
fn items_come_in_order_from_plain_threads() {
    for n_workers in 1..4 {
        let results = run(n_workers, |shell| {
            // Unequal amounts: a worker without any must not hold up the others.
            let (n_items, mut items) = (100 * shell.index, Vec::new());
            let start = move |sender: SourceSender<usize, ()>| {
                thread::spawn(move || {
                    (0..n_items).for_each(|i| sender.blocking_send(Ok(i)).unwrap())
                });
            };
            let n_read =
                windowed_source(&mut shell.worker, "numbers", start, |item| items.push(item));
            // What follows works on the same worker.
            let n_workers = shell.collectives.all_gather(bytes::Bytes::new()).len();
            (n_read, items, n_workers)
        });
        for (index, (n_read, items, peers)) in results.into_iter().enumerate() {
            assert_eq!((n_read, peers), (Ok(100 * index as u64), n_workers));
            assert!(items.into_iter().eq(0..100 * index));
        }
    }
}

#[test]
fn items_come_from_several_async_tasks() {
    let results = run(2, |shell| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let mut items = Vec::new();
        let start = |sender: SourceSender<usize, ()>| {
            for task in 0..5 {
                let sender = sender.clone();
                runtime.spawn(async move {
                    for i in 0..20 {
                        sender.send(Ok(100 * task + i)).await.unwrap();
                    }
                });
            }
        };
        let n_read = windowed_source(&mut shell.worker, "tasks", start, |item| items.push(item));
        items.sort_unstable();
        (n_read, items)
    });
    for (n_read, items) in results {
        assert_eq!(n_read, Ok(100));
        assert!(items.into_iter().eq((0..5).flat_map(|task| 100 * task..100 * task + 20)));
    }
}

#[test]
fn an_error_ends_the_stream_after_the_items_before_it() {
    for n_workers in 1..4 {
        let results = run(n_workers, |shell| {
            let (done, finished) = std::sync::mpsc::channel();
            let start = move |sender: SourceSender<usize, String>| {
                thread::spawn(move || {
                    let item = |i| if i == 37 { Err("page 37 is torn".to_owned()) } else { Ok(i) };
                    // The writer hears that nobody reads on.
                    let closed = (0..1000).find_map(|i| sender.blocking_send(item(i)).err());
                    done.send(closed).unwrap();
                });
            };
            let mut items = Vec::new();
            let result = windowed_source(&mut shell.worker, "torn", start, |item| items.push(item));
            (result, items, finished.recv().unwrap())
        });
        for (result, items, closed) in results {
            assert_eq!(result, Err("page 37 is torn".to_owned()));
            assert!(items.into_iter().eq(0..37));
            assert_eq!(closed, Some(SourceClosed));
        }
    }
}

#[test]
fn a_slow_sink_stops_the_writer() {
    run(1, |shell| {
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let start = move |sender: SourceSender<usize, ()>| {
            thread::spawn(move || {
                for i in 0..60 {
                    sender.blocking_send(Ok(i)).unwrap();
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        };
        let (mut n_sunk, mut worst) = (0, 0);
        let n_read = windowed_source(&mut shell.worker, "slow", start, |_| {
            thread::sleep(Duration::from_millis(1));
            worst = worst.max(sent.load(Ordering::SeqCst) - n_sunk);
            n_sunk += 1;
        });
        assert_eq!(n_read, Ok(60));
        assert!(worst <= QUEUE_ITEMS + WINDOW_ITEMS, "{worst} items were in memory");
    });
}

#[test]
fn no_items_and_dead_writers_end_the_stream() {
    run(2, |shell| {
        let dropped = |sender: SourceSender<(), ()>| drop(sender);
        assert_eq!(windowed_source(&mut shell.worker, "empty", dropped, |()| ()), Ok(0));
        let late = |sender: SourceSender<(), ()>| {
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                drop(sender);
            });
        };
        assert_eq!(windowed_source(&mut shell.worker, "late", late, |()| ()), Ok(0));
    });
}
