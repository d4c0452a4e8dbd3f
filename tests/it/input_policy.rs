//! Rows and files that are not what they should be: filtered, rejected or refused, and counted.

use std::fs;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, DictionaryArray, Float64Array, Int32Array, Int64Array,
    LargeStringArray, RecordBatch, StringArray, TimestampMicrosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray,
};
use arrow::datatypes::{DataType, Int8Type};
use serde_json::Value;

use crate::fixture::{Sandbox, batch, column, write_parquet};

const SPEC: &str = r#"
name = "policy"
[[events]]
url = "log.parquet"
columns = { user = "user", item = "item", time = "time", event = "event", value = "value" }
[events.weights]
buy = { weight = 1.0, value = "linear" }
view = 0.5
[popularity]
[item_neighbors]
[top_k]
k = 3
exclude_seen = false
[limits]
reject_share_max = 0.5
[output]
url = "out/"
"#;

const DAY: i64 = 86_400_000_000;
const START: i64 = 20_000 * DAY;

fn text(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn times(values: &[Option<i64>]) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(values.to_vec()).with_timezone("UTC"))
}

fn values(values: &[Option<f64>]) -> ArrayRef {
    Arc::new(Float64Array::from(values.to_vec()))
}

/// Eight good rows: four users, three items.
fn good() -> RecordBatch {
    let users = ["a", "a", "b", "b", "c", "c", "d", "d"].map(Some);
    let items = ["x", "y", "x", "y", "x", "z", "y", "z"].map(Some);
    batch(&[
        ("user", text(&users)),
        ("item", text(&items)),
        ("time", times(&std::array::from_fn::<_, 8, _>(|row| Some(START + row as i64)))),
        ("event", text(&[Some("buy"); 8])),
        ("value", values(&[Some(1.0); 8])),
    ])
}

fn sandbox(log: &RecordBatch) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.spec(SPEC);
    sandbox.write("log.parquet", log);
    sandbox
}

fn counts(outcome: &Value) -> &Value {
    &outcome["manifest"]["counts"]
}

/// The good log and one more row.
fn with_row(
    user: Option<&str>,
    item: Option<&str>,
    time: Option<i64>,
    event: &str,
    value: Option<f64>,
) -> Sandbox {
    let row = batch(&[
        ("user", text(&[user])),
        ("item", text(&[item])),
        ("time", times(&[time])),
        ("event", text(&[Some(event)])),
        ("value", values(&[value])),
    ]);
    sandbox(&arrow::compute::concat_batches(&row.schema(), [&good(), &row]).unwrap())
}

#[test]
fn rows_that_do_not_count_are_filtered() {
    let time = Some(START + 3);
    for (reason, sandbox) in [
        ("no_user", with_row(None, Some("x"), time, "buy", Some(1.0))),
        ("no_user", with_row(Some(""), Some("x"), time, "buy", Some(1.0))),
        ("value_zero", with_row(Some("a"), Some("x"), time, "buy", Some(0.0))),
        ("event_without_weight", with_row(Some("a"), Some("x"), time, "scroll", Some(1.0))),
    ] {
        let outcome = sandbox.run(&[]);
        let counts = counts(&outcome);
        assert_eq!(counts["rows_filtered"][reason], 1, "{reason}: {counts}");
        assert_eq!(counts["rows_used"], 8);
        assert_eq!(counts["rows_rejected"].as_object().unwrap().len(), 0);
    }
}

#[test]
fn rows_that_cannot_be_used_are_rejected_with_their_place() {
    let time = Some(START + 3);
    let long = "i".repeat(1_025);
    for (reason, sandbox) in [
        ("null_item", with_row(Some("a"), None, time, "buy", Some(1.0))),
        ("empty_item", with_row(Some("a"), Some(""), time, "buy", Some(1.0))),
        ("item_id_too_long", with_row(Some("a"), Some(&long), time, "buy", Some(1.0))),
        ("value_nan", with_row(Some("a"), Some("x"), time, "buy", Some(f64::NAN))),
        ("value_infinite", with_row(Some("a"), Some("x"), time, "buy", Some(f64::INFINITY))),
        ("value_negative", with_row(Some("a"), Some("x"), time, "buy", Some(-1.0))),
        ("value_null", with_row(Some("a"), Some("x"), time, "buy", None)),
        ("time_null_or_out_of_range", with_row(Some("a"), Some("x"), None, "buy", Some(1.0))),
        (
            "time_null_or_out_of_range",
            with_row(Some("a"), Some("x"), Some(i64::MAX), "buy", Some(1.0)),
        ),
    ] {
        let outcome = sandbox.run(&[]);
        assert_eq!(counts(&outcome)["rows_rejected"][reason], 1, "{reason}");
        assert_eq!(counts(&outcome)["rows_used"], 8);
        let rejects = sandbox.table(&outcome, "rejects");
        assert_eq!(column(&rejects, "reason"), [reason]);
        assert_eq!(column(&rejects, "first_row"), ["8"]);
        assert_eq!(column(&rejects, "file"), ["log.parquet"]);
    }
}

#[test]
fn a_value_that_is_not_looked_at_is_not_judged() {
    let sandbox = with_row(Some("a"), Some("x"), Some(START), "view", Some(f64::NAN));
    assert_eq!(counts(&sandbox.run(&[]))["rows_used"], 9);
}

#[test]
fn events_after_as_of_do_not_exist_yet() {
    let sandbox = with_row(Some("a"), Some("late"), Some(START + DAY), "buy", Some(1.0));
    let outcome = sandbox.run(&["--date", "2024-10-04"]);
    assert_eq!(counts(&outcome)["rows_filtered"]["after_as_of"], 1);
    assert_eq!(outcome["manifest"]["logical_date"], "2024-10-04");
    assert_eq!(outcome["manifest"]["as_of"], "2024-10-05T00:00:00Z");
    let items = sandbox.table(&outcome, "items");
    let late = column(&items, "item_id").iter().position(|item| item == "late").unwrap();
    assert_eq!(column(&items, "eligible")[late], "false");
}

#[test]
fn too_many_rejected_rows_are_refused() {
    let sandbox = with_row(Some("a"), Some("x"), Some(START), "buy", Some(f64::NAN));
    sandbox.refused(
        65,
        &["1 of 9 rows", "value_nan 1", "row 8 of \"log.parquet\"", "reject_share_max"],
        &["--set", "limits.reject_share_max=0.1"],
    );
}

#[test]
fn weights_that_could_wrap_are_refused_by_item() {
    // The square of a weight reaches 2^63 units at 46,341.
    let sandbox = with_row(Some("a"), Some("dear"), Some(START), "buy", Some(50_000.0));
    let weighted = ["--set", "item_neighbors.weights=affinity"];
    sandbox.refused(65, &["\"dear\"", "events.weights", "\"binary\""], &weighted);
    assert_eq!(counts(&sandbox.run(&[]))["rows_used"], 9);
}

#[test]
fn what_is_no_input_is_refused() {
    let empty = sandbox(&good().slice(0, 0));
    empty.refused(66, &["log.parquet", "no row"], &[]);
    let nothing = Sandbox::new();
    nothing.spec(SPEC);
    nothing.refused(66, &["log.parquet"], &[]);
    fs::create_dir(nothing.path("folder")).unwrap();
    nothing.refused(66, &["folder"], &["--set", "events.0.url=folder/"]);
    let output = nothing.tidemill(&["run", "other.toml"]);
    assert_eq!(output.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"other.toml\""));
}

#[test]
fn damaged_files_are_refused_by_name() {
    let sandbox = sandbox(&good());
    let whole = fs::read(sandbox.path("log.parquet")).unwrap();
    for content in
        [&whole[..whole.len() - 20], &whole[..whole.len() / 2], b"no parquet at all", b""]
    {
        fs::write(sandbox.path("log.parquet"), content).unwrap();
        sandbox.refused(65, &["log.parquet"], &[]);
    }
}

#[test]
fn columns_and_keys_that_do_not_exist_name_their_neighbors() {
    let sandbox = sandbox(&good());
    let wrong = ["--set", "events.0.columns.user=usr"];
    sandbox.refused(65, &["\"log.parquet\"", "\"usr\"", "did you mean \"user\"?"], &wrong);
    sandbox.refused(
        65,
        &["\"event\" is Utf8", "a number"],
        &["--set", "events.0.columns.value=event"],
    );
    let spelled = ["--set", "item_neighbors.n_neighbours=3"];
    sandbox.refused(78, &["n_neighbours", "did you mean \"n_neighbors\"?"], &spelled);
    sandbox.refused(64, &["--set", "write"], &["--set", "top_k.k"]);
    sandbox.refused(64, &["\"yesterday\" is not a date"], &["--date", "yesterday"]);
    sandbox.refused(78, &["memory_bytes_max"], &["--set", "limits.memory_bytes_max=1000000"]);
}

#[test]
fn ids_of_two_kinds_are_refused_and_two_widths_are_not() {
    let sandbox = Sandbox::new();
    sandbox.spec(&SPEC.replace("log.parquet", "log/"));
    let log = |user: ArrayRef| {
        let mut columns: Vec<(&str, ArrayRef)> = vec![("user", user)];
        let rest = good();
        for name in ["item", "time", "event", "value"] {
            columns.push((name, rest.column_by_name(name).unwrap().clone()));
        }
        batch(&columns)
    };
    let narrow: ArrayRef = Arc::new(Int32Array::from_iter_values([1, 1, 2, 2, 3, 3, 4, 4]));
    let wide: ArrayRef = Arc::new(Int64Array::from_iter_values([5, 5, 6, 6, 7, 7, 8, 8]));
    sandbox.write("log/1.parquet", &log(narrow));
    sandbox.write("log/2.parquet", &log(wide));
    let outcome = sandbox.run(&[]);
    let users = sandbox.table(&outcome, "users");
    assert_eq!(users.column_by_name("user_id").unwrap().data_type(), &DataType::Int64);
    assert_eq!(users.num_rows(), 8);
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    sandbox.write("log/3.parquet", &good());
    sandbox.refused(65, &["user ids", "log/1.parquet", "log/3.parquet", "cast"], &[]);
}

/// The good log with the ids of users and items as `cast` makes them.
fn with_ids(cast: impl Fn(&ArrayRef) -> ArrayRef) -> Sandbox {
    let good = good();
    let columns: Vec<(&str, ArrayRef)> = ["user", "item", "time", "event", "value"]
        .into_iter()
        .map(|name| {
            let array = good.column_by_name(name).unwrap();
            (name, if matches!(name, "user" | "item") { cast(array) } else { array.clone() })
        })
        .collect();
    sandbox(&batch(&columns))
}

#[test]
fn ids_come_back_in_their_own_type() {
    let large = |array: &ArrayRef| -> ArrayRef {
        Arc::new(array.as_string::<i32>().iter().collect::<LargeStringArray>())
    };
    let dictionary = |array: &ArrayRef| -> ArrayRef {
        Arc::new(array.as_string::<i32>().iter().collect::<DictionaryArray<Int8Type>>())
    };
    let binary = |array: &ArrayRef| -> ArrayRef {
        let bytes = array.as_string::<i32>().iter().map(|id| id.map(str::as_bytes));
        Arc::new(bytes.collect::<BinaryArray>())
    };
    let int = |array: &ArrayRef| -> ArrayRef {
        let first = |id: Option<&str>| id.map(|id| i32::from(id.as_bytes()[0]));
        Arc::new(array.as_string::<i32>().iter().map(first).collect::<Int32Array>())
    };
    for (sandbox, expected) in [
        (with_ids(large), DataType::LargeUtf8),
        (with_ids(dictionary), DataType::Utf8),
        (with_ids(binary), DataType::Binary),
        (with_ids(int), DataType::Int32),
    ] {
        let outcome = sandbox.run(&[]);
        let lists = sandbox.table(&outcome, "user_top_k");
        assert!(lists.num_rows() > 0);
        for column in ["user_id", "item_id", "because_item_id"] {
            assert_eq!(lists.column_by_name(column).unwrap().data_type(), &expected);
        }
    }
}

#[test]
fn every_unit_of_time_means_the_same_instant() {
    let micros: Vec<i64> = (0..8).map(|row| START + row * 3_600_000_000).collect();
    let scaled = |divisor: i64| micros.iter().map(|time| time / divisor).collect::<Vec<_>>();
    let nanos: Vec<i64> = micros.iter().map(|time| time * 1_000).collect();
    let arrays: [(ArrayRef, &[&str]); 6] = [
        (Arc::new(TimestampMicrosecondArray::from(micros.clone()).with_timezone("+05:00")), &[]),
        (Arc::new(TimestampSecondArray::from(scaled(1_000_000))), &[]),
        (Arc::new(TimestampMillisecondArray::from(scaled(1_000))), &[]),
        (Arc::new(TimestampNanosecondArray::from(nanos)), &[]),
        (Arc::new(Int64Array::from(scaled(1_000_000))), &["--set", "events.0.time_unit=s"]),
        (Arc::new(Int64Array::from(scaled(1_000))), &["--set", "events.0.time_unit=ms"]),
    ];
    for (array, flags) in arrays {
        let good = good();
        let sandbox = sandbox(&batch(&[
            ("user", good.column(0).clone()),
            ("item", good.column(1).clone()),
            ("time", array),
            ("event", good.column(3).clone()),
            ("value", good.column(4).clone()),
        ]));
        let outcome = sandbox.run(flags);
        assert_eq!(outcome["manifest"]["as_of"], "2024-10-04T07:00:00.000001Z");
    }
}

#[test]
fn naive_times_are_read_in_the_job_s_zone() {
    let good = good();
    let local: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(
        (0..8).map(|row| START + row * 3_600_000_000),
    ));
    let sandbox = sandbox(&batch(&[
        ("user", good.column(0).clone()),
        ("item", good.column(1).clone()),
        ("time", local),
        ("event", good.column(3).clone()),
        ("value", good.column(4).clone()),
    ]));
    let outcome = sandbox.run(&["--set", "time_zone=Europe/Amsterdam"]);
    assert_eq!(outcome["manifest"]["as_of"], "2024-10-04T05:00:00.000001Z");
}

#[test]
fn folders_can_stand_for_columns_and_be_picked() {
    let sandbox = Sandbox::new();
    let spec = SPEC.replace("log.parquet", "log/");
    sandbox.spec(&spec.replace(
        "[events.weights]",
        "partition_where = { shop = [\"nl\", \"be\"] }\n[events.weights]",
    ));
    let good = good();
    let columns = [0, 1, 2, 4].map(|column| {
        (["user", "item", "time", "event", "value"][column], good.column(column).clone())
    });
    for folder in ["shop=nl/event=buy", "shop=be/event=view", "shop=fr/event=buy"] {
        write_parquet(&sandbox.path(&format!("log/{folder}/1.parquet")), &batch(&columns), 3);
    }
    let outcome = sandbox.run(&[]);
    assert_eq!(counts(&outcome)["rows"], 16);
    let popularity = sandbox.table(&outcome, "item_popularity");
    // "x" was bought and viewed by three users each.
    assert_eq!(column(&popularity, "item_id")[0], "x");
    assert_eq!(column(&popularity, "weight")[0], "4.5");
}

#[test]
fn popularity_is_that_of_the_user_s_segment() {
    // "x" leads among all users and "z" in the segment of c and d; e has no segment.
    let users = ["a", "a", "b", "c", "c", "d", "e", "e"].map(Some);
    let items = ["x", "y", "x", "z", "x", "z", "x", "y"].map(Some);
    let rest = good();
    let log = |name: &'static str| (name, rest.column_by_name(name).unwrap().clone());
    let sandbox = sandbox(&batch(&[
        ("user", text(&users)),
        ("item", text(&items)),
        log("time"),
        log("event"),
        log("value"),
    ]));
    sandbox.write(
        "users.parquet",
        &batch(&[
            ("user", text(&["a", "b", "c", "d"].map(Some))),
            ("segment", text(&["nl", "nl", "se", "se"].map(Some))),
        ]),
    );
    let users = "[users]\nurl = \"users.parquet\"\n\
                 columns = { user = \"user\", segment = \"segment\" }\n[popularity]";
    let lists = "[top_k]\ncandidates = { popularity = 1.0 }";
    sandbox.spec(&SPEC.replace("[popularity]", users).replace("[top_k]", lists));
    let lists = sandbox.table(&sandbox.run(&[]), "user_top_k");
    let rows = column(&lists, "user_id")
        .into_iter()
        .zip(column(&lists, "item_id").into_iter().zip(column(&lists, "source")));
    let of = |user: &str| -> Vec<String> {
        let rows = rows.clone().filter(|(id, _)| id == user);
        rows.map(|(_, (item, source))| format!("{item} {source}")).collect()
    };
    assert_eq!(of("a"), ["x popularity", "y popularity", "z fallback"]);
    assert_eq!(of("d"), ["z popularity", "x popularity", "y fallback"]);
    assert_eq!(of("e"), ["x popularity", "y popularity", "z popularity"]);
}

/// A log of four files: one is truncated, one damaged in its middle, one holds no row.
fn damaged_log() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.spec(&SPEC.replace("log.parquet", "log/"));
    sandbox.write("log/1.parquet", &good());
    sandbox.write("log/4.parquet", &good().slice(0, 0));
    write_parquet(&sandbox.path("log/2.parquet"), &good(), 3);
    let whole = fs::read(sandbox.path("log/2.parquet")).unwrap();
    fs::write(sandbox.path("log/3.parquet"), &whole[..whole.len() - 9]).unwrap();
    let mut bytes = whole;
    // The pages come first; the footer stays as it is.
    bytes[4..40].fill(0xff);
    fs::write(sandbox.path("log/2.parquet"), bytes).unwrap();
    sandbox
}

#[test]
fn damaged_files_are_left_out_whole_where_the_spec_allows_it() {
    let sandbox = damaged_log();
    sandbox.refused(65, &["log/3.parquet", "truncated"], &[]);
    sandbox.refused(65, &["log/2.parquet", "corrupt"], &["--set", "limits.bad_files_max=1"]);
    let outcome = sandbox.run(&["--set", "limits.bad_files_max=2"]);
    assert_eq!(counts(&outcome)["rows"], 8, "all rows of the sound file, and none of the others");
    let left_out = counts(&outcome)["files_left_out"].as_array().unwrap();
    let urls: Vec<&str> = left_out.iter().map(|file| file["url"].as_str().unwrap()).collect();
    assert_eq!(urls, ["log/3.parquet", "log/2.parquet"]);
    assert!(left_out[1]["reason"].as_str().unwrap().contains("row group 0"), "{left_out:?}");
    assert_eq!(outcome["manifest"]["input"].as_array().unwrap().len(), 2);
    let again = sandbox.run(&["--set", "limits.bad_files_max=2"]);
    assert_eq!(again["outcome"], "already_published");

    for file in ["log/1.parquet", "log/4.parquet"] {
        fs::remove_file(sandbox.path(file)).unwrap();
    }
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    sandbox.refused(65, &["every file of log \"log/\""], &["--set", "limits.bad_files_max=9"]);
}

#[test]
fn files_of_a_log_may_differ_in_all_that_does_not_matter() {
    let good = good();
    let column = |name: &str| good.column_by_name(name).unwrap().clone();
    let cast = |name: &str, to: DataType| arrow::compute::cast(&column(name), &to).unwrap();
    let dictionary =
        |name| cast(name, DataType::Dictionary(DataType::Int8.into(), DataType::Utf8.into()));
    let utc = |unit| DataType::Timestamp(unit, Some("UTC".into()));
    let files = [
        good.clone(),
        // Another order, and a column that nobody asked for.
        batch(&[
            ("value", column("value")),
            ("extra", column("event")),
            ("event", column("event")),
            ("time", column("time")),
            ("item", column("item")),
            ("user", column("user")),
        ]),
        batch(&[
            ("user", cast("user", DataType::LargeUtf8)),
            ("item", cast("item", DataType::Utf8View)),
            ("time", cast("time", utc(arrow::datatypes::TimeUnit::Nanosecond))),
            ("event", dictionary("event")),
            ("value", cast("value", DataType::Int32)),
        ]),
        batch(&[
            ("user", dictionary("user")),
            ("item", dictionary("item")),
            ("time", column("time")),
            ("event", cast("event", DataType::LargeUtf8)),
            ("value", cast("value", DataType::Float32)),
        ]),
    ];
    let sandbox = Sandbox::new();
    sandbox.spec(&SPEC.replace("log.parquet", "log/"));
    for (number, file) in files.iter().enumerate() {
        sandbox.write(&format!("log/{number}.parquet"), file);
    }
    let outcome = sandbox.run(&[]);
    assert_eq!(counts(&outcome)["rows_used"], 32);
    let items = sandbox.table(&outcome, "item_popularity");
    assert_eq!(self::column(&items, "events"), ["12", "12", "8"]);
}

#[test]
fn robots_are_cut_to_their_newest_items_and_reported() {
    let rows = 3_000;
    let items: Vec<String> = (0..rows).map(|row| format!("item{:04}", row % 1_500)).collect();
    let items: Vec<Option<&str>> = items.iter().map(|item| Some(item.as_str())).collect();
    let robot = batch(&[
        ("user", text(&vec![Some("robot"); rows])),
        ("item", text(&items)),
        ("time", times(&(0..rows as i64).map(|row| Some(START + row)).collect::<Vec<_>>())),
        ("event", text(&vec![Some("buy"); rows])),
        ("value", values(&vec![Some(1.0); rows])),
    ]);
    let all = arrow::compute::concat_batches(&robot.schema(), [&good(), &robot]).unwrap();
    let sandbox = sandbox(&all);
    let outcome = sandbox.run(&[]);
    let counts = counts(&outcome);
    assert_eq!(counts["users_over_cap"], 1);
    assert_eq!(counts["interactions_dropped"]["over_cap"], 500);
    assert_eq!(counts["events_of_user_max"], 3_000);
    assert_eq!(counts["users_of_item_max"], 3);
    let users = sandbox.table(&outcome, "users");
    let robot = column(&users, "user_id").iter().position(|user| user == "robot").unwrap();
    assert_eq!(column(&users, "items")[robot], "1000");
}

#[test]
fn an_event_from_the_future_does_not_pass_unnoticed() {
    let far = 4_000_000_000_000_000;
    let sandbox = with_row(Some("a"), Some("x"), Some(far), "buy", Some(1.0));
    let output = sandbox.tidemill(&["run", "job.toml"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("2096-10-02T07:06:40Z"), "{stderr}");
    let outcome = sandbox.run(&["--date", "2024-10-05"]);
    assert_eq!(counts(&outcome)["rows_filtered"]["after_as_of"], 1);
    assert_eq!(counts(&outcome)["newest_event"], "2024-10-04T00:00:00.000007Z");
}
