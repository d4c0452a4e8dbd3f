use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;

use super::scan::*;
use super::side::Deleted;
use super::{PlanFlags, open_log, plan};
use crate::job::load;
use crate::job::plan::Plan;
use crate::kernels::decay::ValueTransform;
use crate::kernels::event_rows::{Column, Packed, PackedUsers};
use crate::kernels::histories::EventKind;
use crate::schema::{EventBatch, IdColumn};
use crate::store::{IoRuntime, OpenFile};
use crate::types::{IdRef, shard_of};

fn split(row_group: usize, bytes: u64) -> Split {
    Split { source: 0, file: 0, row_group, first_row: 0, bytes }
}

proptest! {
    #[test]
    fn every_row_group_is_dealt_once_and_evenly(
        sizes in prop::collection::vec(0u64..1_000, 0..60),
        peers in 1usize..9,
    ) {
        let splits: Vec<Split> = sizes.iter().enumerate().map(|(n, &b)| split(n, b)).collect();
        let dealt: Vec<Vec<Split>> =
            (0..peers).map(|index| assigned(splits.clone(), index, peers)).collect();
        let mut all = dealt.concat();
        all.sort_by_key(|split| split.row_group);
        prop_assert_eq!(&all, &splits);
        // Empty row groups cost something too, or they would all go to one process.
        let loads: Vec<u64> =
            dealt.iter().map(|of| of.iter().map(|split| split.bytes.max(1)).sum()).collect();
        let largest = sizes.iter().map(|&size| size.max(1)).max().unwrap_or(0);
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= largest);
    }
}

#[test]
fn the_largest_goes_first_and_ties_keep_their_order() {
    let splits = vec![split(0, 5), split(1, 9), split(2, 5), split(3, 1)];
    let places = |index, peers| -> Vec<usize> {
        assigned(splits.clone(), index, peers).iter().map(|split| split.row_group).collect()
    };
    assert_eq!(places(0, 1), [1, 0, 2, 3]);
    assert_eq!([places(0, 2), places(1, 2)], [vec![1, 3], vec![0, 2]]);
    assert_eq!(places(5, 6), Vec::<usize>::new(), "more processes than row groups");
}

/// Two files of 10 and 7 rows in row groups of 4; the user of row n is n.
fn log(folder: &Path) -> (IoRuntime, Plan, Vec<Vec<OpenFile>>) {
    let spec = "name = \"scan\"\nshards = 2\n[[events]]\nurl = \"log/\"\n\
                columns = { user = \"user\", item = \"item\", value = \"value\" }\n\
                [output]\nurl = \"out/\"";
    std::fs::create_dir(folder.join("log")).unwrap();
    for (name, users) in [("1.parquet", 0..10), ("2.parquet", 10..17)] {
        let items = users.clone().map(|user| format!("item {}", user % 3));
        let values: Vec<f64> = users.clone().map(|user| user as f64).collect();
        let columns: [(&str, ArrayRef); 3] = [
            ("user", Arc::new(Int64Array::from_iter_values(users))),
            ("item", Arc::new(StringArray::from_iter_values(items))),
            ("value", Arc::new(Float64Array::from(values))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(4)).build();
        let file = File::create(folder.join("log").join(name)).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }
    let spec = load(spec, "job.toml", &BTreeMap::new(), &[]).unwrap();
    let runtime = IoRuntime::new().unwrap();
    let plan = plan(&runtime, &spec, folder, &PlanFlags::default()).unwrap();
    let logs = plan.sources.iter().map(|source| open_log(&runtime, folder, source).unwrap());
    let logs = logs.collect();
    (runtime, plan, logs)
}

#[test]
fn row_groups_know_their_place_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (_runtime, plan, _) = log(folder.path());
    let places: Vec<_> =
        splits(&plan).iter().map(|s| (s.source, s.file, s.row_group, s.first_row)).collect();
    assert_eq!(places, [(0, 0, 0, 0), (0, 0, 1, 4), (0, 0, 2, 8), (0, 1, 0, 0), (0, 1, 1, 4)]);
    assert!(splits(&plan).iter().all(|split| split.bytes > 0));
}

/// What readers side by side give: users with their shards, and the sums of rows, row groups, filtered
/// rows and readers.
fn read(
    runtime: &IoRuntime,
    plan: &Plan,
    logs: &[Vec<OpenFile>],
    n_readers: usize,
) -> (Vec<(u32, i64)>, [u64; 4]) {
    let (kinds, denied) = (plan.event_kinds(), HashSet::new());
    let (splits, next) = (splits(plan), AtomicUsize::new(0));
    let row_groups = row_groups(runtime, plan, logs, &splits);
    let context = ScanContext {
        plan,
        kinds: &kinds,
        denied: &denied,
        deleted: &Deleted::default(),
        files: None,
        splits: &splits,
        row_groups: &row_groups,
        next: &next,
        advance: &|_| (),
    };
    let scanned: Vec<Scanned> = std::thread::scope(|scope| {
        let reader = |reader| {
            let context = &context;
            scope.spawn(move || {
                let mut scanned = Vec::new();
                let mut emit = |one| {
                    scanned.push(one);
                    true
                };
                read_splits(context, reader, &mut emit).unwrap();
                scanned
            })
        };
        let readers: Vec<_> = (0..n_readers).map(reader).collect();
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    });
    let (mut users, mut sums) = (Vec::new(), [0; 4]);
    for one in scanned {
        match one {
            Scanned::Blocks { blocks, .. } => {
                for (shard, packed) in blocks {
                    let packed = Packed::new(&packed);
                    let PackedUsers::Int(ids) = &packed.users else { panic!("users are integers") };
                    ids.for_each(packed.n_rows, |user| users.push((shard, Column::as_i64(user))));
                }
            }
            Scanned::Finished { counts, .. } => {
                let more = [counts.rows, counts.row_groups, counts.n_filtered(), 1];
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
        }
    }
    users.sort_by_key(|&(_, user)| user);
    (users, sums)
}

#[test]
fn readers_share_the_row_groups_and_each_says_when_it_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let (runtime, plan, logs) = log(folder.path());
    // The value of user 0 is zero, so its only row is filtered.
    let expected: Vec<(u32, i64)> =
        (1..17).map(|user| (shard_of(IdRef::Int(user), 2), user)).collect();
    for n_readers in [1, 2, 7] {
        let (users, sums) = read(&runtime, &plan, &logs, n_readers);
        assert_eq!(users, expected, "{n_readers} readers");
        assert_eq!(sums, [17, 5, 1, n_readers as u64]);
    }
}

#[test]
fn a_reader_stops_when_nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let (runtime, plan, logs) = log(folder.path());
    let (kinds, denied, splits) = (plan.event_kinds(), HashSet::new(), splits(&plan));
    let row_groups = row_groups(&runtime, &plan, &logs, &splits);
    let next = AtomicUsize::new(0);
    let context = ScanContext {
        plan: &plan,
        kinds: &kinds,
        denied: &denied,
        deleted: &Deleted::default(),
        files: None,
        splits: &splits,
        row_groups: &row_groups,
        next: &next,
        advance: &|_| (),
    };
    let mut emitted = 0;
    let mut emit = |_| {
        emitted += 1;
        false
    };
    read_splits(&context, 0, &mut emit).unwrap();
    assert_eq!(emitted, 1);
}

const LOOKS: EventKind = EventKind {
    weight: 1.0,
    transform: ValueTransform::Linear,
    value_max: None,
    group: 0,
    undoes: None,
    negative_undoes: false,
    excludes_item: false,
    marks_seen: false,
};

fn value_of(given: Option<f64>, kind: &EventKind) -> Result<f32, Unused> {
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let columns = EventBatch {
        users: IdColumn::try_new(&ids).unwrap(),
        items: IdColumn::try_new(&ids).unwrap(),
        kinds: vec![0],
        times: None,
        values: Some(Float64Array::from(vec![given])),
        ids: None,
    };
    value(&columns, 0, kind)
}

#[test]
fn a_value_is_used_filtered_or_rejected() {
    let undo = EventKind { negative_undoes: true, ..LOOKS };
    let counted = EventKind { transform: ValueTransform::None, ..undo };
    for (given, plain, undoing, counting) in [
        (2.5, Ok(2.5), Ok(2.5), Ok(1.0)),
        (-2.5, Err(Unused::Rejected("value_negative")), Ok(-2.5), Ok(-2.5)),
    ] {
        assert_eq!(value_of(Some(given), &LOOKS), plain);
        assert_eq!(value_of(Some(given), &undo), undoing);
        assert_eq!(value_of(Some(given), &counted), counting, "only the sign counts");
    }
    // The last of the zeros and the first of the infinite ones leave the range of 32 bits.
    let never = [
        (Some(0.0), Unused::Filtered("value_zero")),
        (Some(-0.0), Unused::Filtered("value_zero")),
        (Some(1e-60), Unused::Filtered("value_zero")),
        (Some(1e39), Unused::Rejected("value_infinite")),
        (Some(f64::INFINITY), Unused::Rejected("value_infinite")),
        (Some(f64::NEG_INFINITY), Unused::Rejected("value_infinite")),
        (Some(f64::NAN), Unused::Rejected("value_nan")),
        (None, Unused::Rejected("value_null")),
    ];
    for (given, why) in never {
        for kind in [&LOOKS, &undo, &counted] {
            assert_eq!(value_of(given, kind), Err(why), "{given:?}");
        }
    }
    let blind = EventKind { transform: ValueTransform::None, ..LOOKS };
    for given in [None, Some(f64::NAN), Some(-3.0), Some(0.0)] {
        assert_eq!(value_of(given, &blind), Ok(1.0), "a value that is not looked at");
    }
}

#[test]
fn a_sample_keeps_its_share_of_users_and_grows_around_them() {
    let sampled = |share: f64| -> Vec<i64> {
        (0..10_000).filter(|&user| is_sampled(IdRef::Int(user), share)).collect()
    };
    let [tenth, half, all] = [0.1, 0.5, 1.0].map(sampled);
    assert!((900..1_100).contains(&tenth.len()) && (4_800..5_200).contains(&half.len()));
    assert!(tenth.iter().all(|user| half.binary_search(user).is_ok()));
    assert_eq!(all.len(), 10_000);
    // The same users for ever: samples of two runs are comparable.
    assert_eq!(tenth[..3], [1, 29, 38]);
}
