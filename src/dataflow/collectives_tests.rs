use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use timely::CommunicationConfig;

use super::*;
use crate::dataflow::shell::{Shell, StartError, execute_on};

/// Runs the driver at 1, 2 and 3 workers that pass pointers, and at 2 and 3 that serialize.
fn on_workers<T: Send + 'static>(
    driver: impl Fn(&mut Shell) -> T + Send + Sync + 'static,
    check: impl Fn(Vec<T>),
) {
    let driver = Arc::new(driver);
    let mut configs = vec![CommunicationConfig::Thread];
    configs.extend([2, 3].map(CommunicationConfig::Process));
    configs.extend([2, 3].map(CommunicationConfig::ProcessBinary));
    for config in configs {
        check(run(config, Arc::clone(&driver)));
    }
}

fn run<T: Send + 'static>(
    config: CommunicationConfig,
    driver: Arc<impl Fn(&mut Shell) -> T + Send + Sync + 'static>,
) -> Vec<T> {
    execute_on::<T, StartError, _>(config, move |shell| Ok(driver(shell))).unwrap()
}

/// Bytes that differ by seed and position.
fn bytes(seed: usize, length: usize) -> Bytes {
    (0..length).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ seed.wrapping_mul(97)) as u8).collect()
}

#[test]
fn broadcast_reaches_everyone_from_everyone() {
    on_workers(
        |shell| {
            let mut received = Vec::new();
            for from in 0..shell.peers {
                for length in [0, 5, BLOCK_BYTES, 3 * BLOCK_BYTES + 1] {
                    let payload = (shell.index == from).then(|| bytes(from, length));
                    received.push(shell.collectives.broadcast(from, payload));
                }
            }
            received
        },
        |results| {
            for received in &results {
                let lengths = [0, 5, BLOCK_BYTES, 3 * BLOCK_BYTES + 1];
                let expected = (0..results.len()).flat_map(|from| lengths.map(|l| bytes(from, l)));
                assert!(expected.eq(received.iter().cloned()));
            }
        },
    );
}

#[test]
fn all_gather_keeps_sources_apart_for_any_length() {
    let length = |worker| [0, 4 * BLOCK_BYTES + 17, 9][worker];
    on_workers(
        move |shell| shell.collectives.all_gather(bytes(shell.index, length(shell.index))),
        |results| {
            let expected: Vec<_> = (0..results.len()).map(|w| bytes(w, length(w))).collect();
            assert!(results.iter().all(|parts| *parts == expected));
        },
    );
}

#[test]
fn payloads_are_not_copied_inside_a_process() {
    let driver = |shell: &mut Shell| {
        let payload = bytes(shell.index, BLOCK_BYTES);
        let sent = payload.as_ptr() as usize;
        let parts = shell.collectives.all_gather(payload.clone());
        let mut streamed = Vec::new();
        let outgoing =
            (0..shell.peers).map(|target| Outgoing { target, tag: 0, payload: payload.clone() });
        shell
            .collectives
            .all_to_all(outgoing, |block| streamed.push((block.source, block.payload)));
        streamed.sort_by_key(|block| block.0);
        let gathered = parts.iter().map(|part| part.as_ptr() as usize).collect::<Vec<_>>();
        let streamed = streamed.iter().map(|block| block.1.as_ptr() as usize).collect::<Vec<_>>();
        // The payloads live until here, so that no address is used twice.
        shell.collectives.all_gather(Bytes::new());
        (sent, gathered, streamed)
    };
    for config in [CommunicationConfig::Thread, CommunicationConfig::Process(3)] {
        let results = run(config, Arc::new(driver));
        let sent: Vec<_> = results.iter().map(|result| result.0).collect();
        assert!(results.iter().all(|result| result.1 == sent && result.2 == sent));
    }
}

#[test]
fn a_fast_worker_does_not_mix_up_collectives() {
    on_workers(
        |shell| {
            let gather = |shell: &mut Shell, round: usize| {
                if shell.index == 0 {
                    std::thread::sleep(Duration::from_millis(20));
                }
                shell.collectives.all_gather(bytes(10 * round + shell.index, 100 * round))
            };
            (1..4).map(|round| gather(shell, round)).collect::<Vec<_>>()
        },
        |results| {
            for (round, worker) in
                (1..4_usize).flat_map(|r| (0..results.len()).map(move |w| (r, w)))
            {
                let expected = bytes(10 * round + worker, 100 * round);
                assert!(results.iter().all(|rounds| rounds[round - 1][worker] == expected));
            }
        },
    );
}

#[test]
fn all_to_all_takes_skewed_senders() {
    // The first worker sends everything, in blocks of every size, and all of it to the last.
    let lengths = [0, 1, 70_000, 3 * BLOCK_BYTES, 0, 900];
    on_workers(
        move |shell| {
            shell.collectives.slice_bytes = 1000;
            let (target, n_sent) = (shell.peers - 1, if shell.index == 0 { 300 } else { 0 });
            let outgoing = (0..n_sent).map(|i| Outgoing {
                target,
                tag: i as u64,
                payload: bytes(i, lengths[i % lengths.len()]),
            });
            let mut received = Vec::new();
            shell.collectives.all_to_all(outgoing, |block| received.push(block));
            received.sort_by_key(|block| (block.source, block.sequence));
            received
        },
        |mut results| {
            let last = results.pop().unwrap();
            assert!(results.iter().all(Vec::is_empty));
            assert_eq!(last.len(), 300);
            for (i, block) in last.into_iter().enumerate() {
                let (tag, payload) = (i as u64, bytes(i, lengths[i % lengths.len()]));
                assert_eq!(block, Incoming { source: 0, sequence: i as u32, tag, payload });
            }
        },
    );
}

#[test]
fn all_to_all_holds_the_sender_to_the_window() {
    let (sent, received) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let worst = Arc::new(AtomicUsize::new(0));
    let (count, worst_seen) = ((Arc::clone(&sent), Arc::clone(&received)), Arc::clone(&worst));
    let driver = move |shell: &mut Shell| {
        let (sent, received) = (&count.0, &count.1);
        shell.collectives.slice_bytes = 10 * (1000 + HEADER_BYTES);
        let n_sent = if shell.index == 0 { 400 } else { 0 };
        let outgoing = (0..n_sent).map(|_| {
            let under_way = sent.fetch_add(1, Ordering::SeqCst) - received.load(Ordering::SeqCst);
            worst_seen.fetch_max(under_way, Ordering::SeqCst);
            Outgoing { target: 1, tag: 0, payload: bytes(0, 1000) }
        });
        shell.collectives.all_to_all(outgoing, |_| {
            std::thread::sleep(Duration::from_micros(100));
            received.fetch_add(1, Ordering::SeqCst);
        });
    };
    run(CommunicationConfig::Process(2), Arc::new(driver));
    assert_eq!(received.load(Ordering::SeqCst), 400);
    // Two slices on their way, one being made, and as many in the hands of the receiver.
    let worst = worst.load(Ordering::SeqCst);
    assert!(worst <= 60, "{worst} blocks were under way");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn all_to_all_equals_the_oracle(
        n_workers in 1..4_usize,
        slice_bytes in 50..2000_usize,
        messages in prop::collection::vec((0..3_usize, 0..3_usize, any::<u64>(), 0..300_usize), 0..80),
    ) {
        let messages: Vec<_> =
            messages.into_iter().map(|(s, t, tag, n)| (s % n_workers, t % n_workers, tag, n)).collect();
        let mut expected = vec![Vec::new(); n_workers];
        for &(source, target, tag, length) in &messages {
            let earlier = |block: &&Incoming| block.source == source;
            let sequence = expected[target].iter().filter(earlier).count() as u32;
            let payload = bytes(tag as usize, length);
            expected[target].push(Incoming { source, sequence, tag, payload });
        }
        expected.iter_mut().for_each(|blocks| blocks.sort_by_key(|b| (b.source, b.sequence)));
        let driver = move |shell: &mut Shell| {
            shell.collectives.slice_bytes = slice_bytes;
            let own = messages.iter().filter(|message| message.0 == shell.index);
            let outgoing = own.map(|&(_, target, tag, length)| {
                Outgoing { target, tag, payload: bytes(tag as usize, length) }
            });
            let mut received = Vec::new();
            shell.collectives.all_to_all(outgoing, |block| received.push(block));
            received.sort_by_key(|block| (block.source, block.sequence));
            received
        };
        prop_assert_eq!(run(CommunicationConfig::Process(n_workers), Arc::new(driver)), expected);
    }
}

/// What worker `worker` adds at `position`; sums pass the limits of i64 on the way, not at the end.
fn summand(worker: usize, position: usize) -> i64 {
    match (position % 3, worker) {
        (0, _) => (position * (worker + 1)) as i64 - 1000,
        (_, 0) => i64::MAX,
        (_, 1) => i64::MIN,
        (_, _) => i64::MAX - position as i64,
    }
}

#[test]
fn sums_equal_the_oracle_for_any_length() {
    for n_values in [0, 1, 2, 7, 3 * BLOCK_BYTES / 8 + 5] {
        on_workers(
            move |shell| {
                let values = (0..n_values).map(|i| summand(shell.index, i)).collect();
                shell.collectives.all_reduce_sum(values).unwrap()
            },
            |results| {
                for (i, &sum) in results[0].iter().enumerate() {
                    let exact: i128 = (0..results.len()).map(|w| i128::from(summand(w, i))).sum();
                    assert_eq!(i128::from(sum), exact);
                }
                assert!(results.iter().all(|sums| sums.len() == n_values && *sums == results[0]));
            },
        );
    }
}

#[test]
fn overflow_names_the_lowest_position_everywhere() {
    on_workers(
        |shell| {
            let mut values = vec![1; 1000];
            for position in [123, 124, 999] {
                values[position] = i64::MIN;
            }
            shell.collectives.all_reduce_sum(values)
        },
        |results| {
            let expected = Err(SumOverflow { position: 123 });
            assert!(results.len() == 1 || results.iter().all(|result| *result == expected));
        },
    );
}

#[test]
fn extremes_of_all_workers() {
    on_workers(
        |shell| {
            let value = [-5, i64::MIN, 40][shell.index];
            (shell.collectives.all_reduce_max(value), shell.collectives.all_reduce_min(value))
        },
        |results| {
            let expected = [(-5, -5), (-5, i64::MIN), (40, i64::MIN)][results.len() - 1];
            assert!(results.iter().all(|&result| result == expected));
        },
    );
}

#[derive(Debug, thiserror::Error)]
#[error("worker {0} cannot read")]
struct Unreadable(usize, #[source] std::io::Error);

/// The outcome of `agree` when the workers in `failing` fail: displayed, code, worker, own, source.
fn agree(shell: &mut Shell, failing: &[usize]) -> Result<usize, (String, u8, usize, bool, bool)> {
    let index = shell.index;
    let status = match failing.contains(&index) {
        true => Err(Unreadable(index, std::io::Error::other("disk on fire"))),
        false => Ok(index),
    };
    shell.collectives.agree(status, |error| 60 + error.0 as u8).map_err(|error| {
        let own = error.own.as_ref().is_some_and(|own| own.is::<Unreadable>());
        (error.to_string(), error.code, error.worker, own, error.source().is_some())
    })
}

#[test]
fn all_agree_on_the_error_of_the_lowest_worker() {
    on_workers(
        |shell| [agree(shell, &[]), agree(shell, &[2, 1]), agree(shell, &[0])],
        |results| {
            let n_workers = results.len();
            for (index, [fine, later, first]) in results.into_iter().enumerate() {
                assert_eq!(fine, Ok(index));
                let expected = |worker: usize| match worker == index {
                    true => Err((format!("worker {worker} cannot read"), worker, true)),
                    false => Err((
                        format!(
                            "process {worker} failed: worker {worker} cannot read: disk on fire"
                        ),
                        worker,
                        false,
                    )),
                };
                let check = |result: Result<usize, (String, u8, usize, bool, bool)>, worker| {
                    let result = result.map_err(|(text, code, worker, own, source)| {
                        assert_eq!((usize::from(code), source), (60 + worker, own));
                        (text, worker, own)
                    });
                    assert_eq!(result, expected(worker));
                };
                check(first, 0);
                match n_workers {
                    1 => assert_eq!(later, Ok(index)),
                    _ => check(later, 1),
                }
            }
        },
    );
}

#[test]
fn bytes_to_other_workers_are_counted_by_kind() {
    on_workers(
        |shell| {
            shell.collectives.all_gather(bytes(0, 1000));
            let payload = (shell.index == 0).then(|| bytes(0, 500));
            shell.collectives.broadcast(0, payload);
            let everyone =
                (0..shell.peers).map(|target| Outgoing { target, tag: 0, payload: bytes(0, 7) });
            shell.collectives.all_to_all(everyone, |_| ());
            shell.collectives.all_reduce_max(0);
            shell.collectives.agree(Ok::<_, StartError>(()), |_| 0).unwrap();
            (shell.collectives.take_bytes_moved(), shell.collectives.take_bytes_moved())
        },
        |results| {
            let others = results.len() as u64 - 1;
            for (index, (moved, after)) in results.into_iter().enumerate() {
                let expected = BytesMoved {
                    broadcast: if index == 0 { 500 * others } else { 0 },
                    all_gather: 1000 * others,
                    all_to_all: 7 * others,
                    all_reduce: 8 * others,
                    agree: 0,
                };
                assert_eq!((moved, after), (expected, BytesMoved::default()));
            }
        },
    );
}
