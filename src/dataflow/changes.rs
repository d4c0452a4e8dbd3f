//! What remains of many changes: differential dataflow, behind one function.
//!
//! Differential keeps a collection as updates, each with a time and a weight, and adds up the weights of
//! equal records. Here it holds what a run is told of changed input, never the whole log: 125 bytes and a
//! third of a microsecond per record are little for one per cent of a log and too much for all of it.

use std::cell::RefCell;
use std::hash::Hash;
use std::rc::Rc;

use differential_dataflow::ExchangeData;
use differential_dataflow::input::InputSession;
use differential_dataflow::operators::arrange::arrangement::arrange_core;
use differential_dataflow::trace::implementations::{KeyBatcher, KeySpine};
use timely::dataflow::channels::pact::Exchange;
use timely::worker::Worker;

/// Updates of records of type `D`, as differential ships them.
type Update<D> = ((D, ()), u32, i64);

/// Adds up the weights of equal records over all workers; returns, on the worker that owns them, the
/// records whose weight is not 0, sorted.
///
/// Every worker calls this, with any part of `updates`; `owner` gives the same worker for equal records.
/// Cost: about a microsecond and 150 bytes per update.
pub fn consolidated<D: ExchangeData + Hash>(
    worker: &mut Worker,
    owner: impl Fn(&D) -> usize + 'static,
    updates: impl IntoIterator<Item = (D, i64)>,
) -> Vec<(D, i64)> {
    let found = Rc::new(RefCell::new(Vec::new()));
    let (mut input, mut probe) = (InputSession::<u32, (D, ()), i64>::new(), None);
    let results = Rc::clone(&found);
    worker.dataflow::<u32, _, _>(|scope| {
        let route = Exchange::new(move |update: &Update<D>| owner(&update.0.0) as u64);
        let updates = input.to_collection(scope).inner;
        let sums = arrange_core::<_, _, KeyBatcher<D, u32, i64>, KeySpine<D, u32, i64>>(
            updates,
            route,
            "changes",
            KeyBatcher::new,
        );
        let sums = sums.as_collection(|record: &D, ()| record.clone());
        let seen = sums.inspect(move |(record, _, weight)| {
            results.borrow_mut().push((record.clone(), *weight));
        });
        probe = Some(seen.probe().0);
    });
    for (record, weight) in updates {
        input.update((record, ()), weight);
    }
    input.close();
    let probe = probe.expect("the dataflow is built");
    while !probe.done() {
        worker.step_or_park(None);
    }
    let mut found = found.take();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataflow::{StartError, execute};

    #[test]
    fn equal_records_add_up_where_they_belong() {
        for n_workers in 1..=3 {
            let results = execute::<_, StartError, _>(n_workers, move |shell| {
                let index = shell.index as u32;
                // Everybody tells of the same records; the fifth takes back what the others add.
                let told = (0..1000u32).flat_map(|record| {
                    let weight = if record % 5 == 0 { 1 - i64::from(index) } else { 2 };
                    [((record, record % 7), weight), ((record, 100 + index), i64::from(index))]
                });
                let owner = move |record: &(u32, u32)| record.0 as usize % n_workers;
                Ok((shell.index, consolidated(&mut shell.worker, owner, told)))
            });
            let mut all = Vec::new();
            for (index, found) in results.unwrap() {
                assert!(found.is_sorted());
                assert!(found.iter().all(|((record, _), _)| *record as usize % n_workers == index));
                all.extend(found);
            }
            all.sort_unstable();
            let of_fifths: i64 = (0..n_workers as i64).map(|index| 1 - index).sum();
            let mut expected = Vec::new();
            for record in 0..1000u32 {
                let weight = if record % 5 == 0 { of_fifths } else { 2 * n_workers as i64 };
                expected.push(((record, record % 7), weight));
                expected.extend(
                    (1..n_workers as u32).map(|index| ((record, 100 + index), i64::from(index))),
                );
            }
            expected.retain(|(_, weight)| *weight != 0);
            assert_eq!(all, expected, "{n_workers} workers");
        }
    }

    #[test]
    fn nothing_told_is_nothing_found() {
        let found = execute::<_, StartError, _>(2, |shell| {
            Ok(consolidated(&mut shell.worker, |_: &u32| 0, Vec::new()))
        });
        assert_eq!(found.unwrap(), [[], []]);
    }
}
