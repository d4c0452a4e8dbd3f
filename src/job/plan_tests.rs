use std::collections::BTreeMap;

use jiff::civil::date;
use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::plan::*;
use super::spec::*;
use super::{Spec, load};
use crate::types::{DAY_US, IdType};

const SPEC: &str = r#"
name = "plan"
[[events]]
url = "events/"
columns = { user = "u", item = "i", time = "t", event = "e" }
weights = { buy = 2.0, view = 1.0 }
[output]
url = "out/"
"#;

fn spec(more: &str) -> Spec {
    load(&format!("{SPEC}{more}"), "job.toml", &BTreeMap::new(), &[]).unwrap()
}

fn plan(spec: Spec) -> Plan {
    Plan {
        spec,
        sources: Vec::new(),
        side_tables: SideTables::default(),
        n_shards: 1,
        user_id_type: IdType::Int64,
        item_id_type: IdType::Int64,
        as_of_us: None,
        logical_date: None,
        sample_users: None,
        n_rows: 0,
        files_pruned: 0,
    }
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn micros(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().unwrap().as_microsecond()
}

#[test]
fn shards_are_a_power_of_two_at_or_below_one_per_262_144_rows() {
    for (n_rows, n) in [
        (0, 1),
        (1, 1),
        (262_144, 1),
        (524_287, 1),
        (524_288, 2),
        (1_048_575, 2),
        (1_048_576, 4),
        (4_095 * 262_144, 2_048),
        (4_096 * 262_144, 4_096),
        (u64::MAX, 4_096),
    ] {
        assert_eq!(n_shards(n_rows), n, "{n_rows} rows");
    }
}

proptest! {
    #[test]
    fn shards_are_never_fewer_for_more_rows(n_rows in 0u64..1 << 40, more in 0u64..1 << 40) {
        let n = n_shards(n_rows);
        prop_assert!(n.is_power_of_two() && n <= n_shards(n_rows + more));
        prop_assert!(n == 1 || u64::from(n) * 262_144 <= n_rows);
        prop_assert!(n == 4_096 || n_rows < 2 * u64::from(n) * 262_144);
    }

    #[test]
    fn a_date_is_the_day_before_its_end(
        day in 0i64..40_000,
        name in prop::sample::select(vec![
            "UTC", "Europe/Amsterdam", "America/St_Johns", "Asia/Kathmandu", "Pacific/Kiritimati",
            "America/Santiago", "Asia/Beirut", "Pacific/Apia",
        ]),
    ) {
        let date = date(1970, 1, 1) + jiff::ToSpan::days(day);
        let zone = zone(name);
        let end = end_of_day(date, &zone).unwrap();
        // Samoa skipped 2011-12-30 when it crossed the date line: that day has no time of its own.
        let skipped = name == "Pacific/Apia" && date == jiff::civil::date(2011, 12, 30);
        prop_assert!(skipped || date_before(end, &zone).unwrap() == date);
        prop_assert!(date_before(end + 1, &zone).unwrap() > date);
    }
}

#[test]
fn a_day_ends_at_midnight_of_its_zone() {
    let end = |day, name| end_of_day(day, &zone(name)).unwrap();
    assert_eq!(end(date(2026, 11, 22), "UTC"), micros("2026-11-23T00:00:00Z"));
    assert_eq!(end(date(2026, 11, 22), "Asia/Tokyo"), micros("2026-11-22T15:00:00Z"));
    // Days of 23 and 25 hours.
    let spring = [date(2026, 3, 28), date(2026, 3, 29)].map(|day| end(day, "Europe/Amsterdam"));
    assert_eq!(spring[1] - spring[0], DAY_US - 3_600_000_000);
    let autumn = [date(2026, 10, 24), date(2026, 10, 25)].map(|day| end(day, "Europe/Amsterdam"));
    assert_eq!(autumn[1] - autumn[0], DAY_US + 3_600_000_000);
    let error = end_of_day(jiff::civil::Date::MAX, &TimeZone::UTC).unwrap_err().to_string();
    assert!(error.starts_with("date \"9999-12-31\" has no end"), "{error}");
}

#[test]
fn an_instant_may_be_written_in_several_ways() {
    let instant = micros("2026-11-22T23:00:00Z");
    let amsterdam = zone("Europe/Amsterdam");
    for text in [
        "2026-11-22T23:00:00Z",
        "2026-11-23T00:00:00+01:00",
        "2026-11-23T00:00:00",
        "2026-11-23T00:00",
        "2026-11-23 00:00",
        "2026-11-23",
    ] {
        assert_eq!(parse_instant(text, &amsterdam).unwrap(), instant, "{text}");
    }
    for text in ["", "yesterday", "1790000000", "2026-13-01", "2026-11-23T25:00"] {
        let error = parse_instant(text, &amsterdam).unwrap_err().to_string();
        assert!(error.starts_with(&format!("\"{text}\" is not a time; write ")), "{error}");
    }
}

#[test]
fn the_calendar_follows_as_of() {
    let as_of = 1_000 * DAY_US;
    let top_k = "[item_neighbors]\n[top_k]\nexclude_seen_days = 300\n";
    let history = "[history]\nwindow_days = 100\nhalf_life_days = 30.5\n";
    let full = plan(spec(&format!("{history}{top_k}"))).calendar(as_of, 0);
    assert_eq!(full.as_of_us, as_of);
    assert_eq!(full.window_start_us, 900 * DAY_US);
    assert_eq!(full.seen_start_us, 700 * DAY_US);
    assert_eq!(full.middle_us, 950 * DAY_US, "half of the window");
    assert_eq!(full.decay.as_of_us, as_of);
    assert_eq!(full.decay.half_life_us, Some(30 * DAY_US + DAY_US / 2));
    // A log that is shorter than the window is halved where it is.
    let short = plan(spec(history)).calendar(as_of, 960 * DAY_US);
    assert_eq!(short.middle_us, 980 * DAY_US);
    assert_eq!(short.seen_start_us, i64::MIN, "no lists, no limit");
    let plain = plan(spec("")).calendar(as_of, 200 * DAY_US);
    assert_eq!((plain.window_start_us, plain.seen_start_us), (i64::MIN, i64::MIN));
    assert_eq!(plain.middle_us, 600 * DAY_US);
    assert_eq!(plain.decay.half_life_us, None);
    // No event before `as_of`: nothing overflows.
    assert_eq!(plan(spec("")).calendar(as_of, i64::MAX).middle_us, as_of);
}

#[test]
fn a_folder_is_left_out_when_no_zone_can_bring_its_day_back() {
    let day = date(2026, 11, 22);
    let start = micros("2026-11-22T00:00:00Z");
    assert!(is_prunable(day, start - DAY_US, None), "the day is over a day after as_of");
    assert!(!is_prunable(day, start - DAY_US + 1, None));
    let now = start + 400 * DAY_US;
    assert!(is_prunable(day, now, Some(start + 2 * DAY_US)));
    assert!(!is_prunable(day, now, Some(start + 2 * DAY_US - 1)));
    assert!(!is_prunable(day, now, None), "without a window every past day counts");
}

proptest! {
    /// Whatever the zone: an event that lies in the day of its folder and that counts is read.
    #[test]
    fn no_event_that_counts_is_left_out(
        time in 0i64..4_000 * DAY_US,
        as_of in 0i64..4_000 * DAY_US,
        window in 1i64..400 * DAY_US,
        hours in -12i64..=14,
    ) {
        let local = jiff::Timestamp::from_microsecond(time + hours * 3_600_000_000).unwrap();
        let day = TimeZone::UTC.to_datetime(local).date();
        let counts = (as_of - window..as_of).contains(&time);
        prop_assert!(!(counts && is_prunable(day, as_of, Some(as_of - window))));
    }
}

#[test]
fn what_is_needed_is_what_window_and_seen_items_look_at() {
    let as_of = 1_000 * DAY_US;
    let needed = |more: &str| oldest_needed_us(&spec(more), as_of).map(|time| time / DAY_US);
    let window = "[history]\nwindow_days = 100\n[item_neighbors]\n";
    assert_eq!(needed(""), None, "no window");
    assert_eq!(needed(window), Some(900), "no lists");
    let with = |top_k: &str| needed(&format!("{window}[top_k]\n{top_k}"));
    assert_eq!(with(""), None, "seen for ever");
    assert_eq!(with("exclude_seen = [\"buy\"]"), None);
    assert_eq!(with("exclude_seen = false"), Some(900));
    assert_eq!(with("exclude_seen_days = 300"), Some(700));
    assert_eq!(with("exclude_seen_days = 30"), Some(900));
    let hides = SPEC.replace("view = 1.0", "hide = { excludes_item = true }");
    let hides = format!("{hides}{window}[top_k]\nexclude_seen_days = 300");
    let hides = load(&hides, "job.toml", &BTreeMap::new(), &[]).unwrap();
    assert_eq!(oldest_needed_us(&hides, as_of), None, "hidden for ever");
}

#[test]
fn the_widest_id_type_does_not_depend_on_the_order_of_files() {
    let of = |types: &[IdType]| {
        let files = ["a", "b", "c"].into_iter().zip(types.iter().copied());
        widest("user", files).map_err(|error| error.to_string())
    };
    assert_eq!(of(&[]), Ok(None));
    for types in [
        [IdType::Int32, IdType::Int64, IdType::Int32],
        [IdType::Int64, IdType::Int32, IdType::Int32],
    ] {
        assert_eq!(of(&types), Ok(Some(IdType::Int64)));
    }
    assert_eq!(of(&[IdType::LargeUtf8, IdType::Utf8]), Ok(Some(IdType::LargeUtf8)));
    let expected = "user ids are Int32 in \"a\" and Utf8 in \"c\"; cast one of them upstream";
    assert_eq!(of(&[IdType::Int32, IdType::Int32, IdType::Utf8]), Err(expected.to_owned()));
    // Bytes are no strings, although they may look alike.
    assert!(of(&[IdType::Utf8, IdType::Binary]).is_err());
}

#[test]
fn an_event_type_of_two_logs_is_one_group() {
    let second = "[[events]]\nurl = \"more/\"\n\
                  columns = { user = \"u\", item = \"i\", time = \"t\", event = \"e\" }\n\
                  [events.weights]\nbuy = 3.0\nreturn = { undoes = \"buy\" }\n\
                  [item_neighbors]\n[top_k]\nexclude_seen = [\"buy\"]\n";
    let spec = spec(second);
    assert_eq!(kind_names(&spec.events[0]), ["buy", "view"]);
    assert_eq!(kind_names(&spec.events[1]), ["buy", "return"]);
    let kinds = event_kinds(&spec);
    let weights: Vec<f64> = kinds.iter().map(|kind| kind.weight).collect();
    assert_eq!(weights[..3], [2.0, 1.0, 3.0]);
    assert_eq!(kinds[0].group, kinds[2].group);
    assert_ne!(kinds[0].group, kinds[1].group);
    assert_eq!(kinds[3].undoes, Some(kinds[0].group));
    let seen: Vec<bool> = kinds.iter().map(|kind| kind.marks_seen).collect();
    assert_eq!(seen, [true, false, true, false]);
}

#[test]
fn one_kind_too_many_is_refused() {
    let with = |n_kinds: usize| {
        let mut spec = spec("");
        let weights = (0..n_kinds).map(|kind| (format!("kind {kind}"), Weight::plain(1.0)));
        spec.events[0].weights = weights.collect();
        check_kinds(&spec).map_err(|error| error.to_string())
    };
    assert_eq!(with(255), Ok(()));
    let expected = "the logs name 256 event types, at most 255 are possible; merge some";
    assert_eq!(with(256), Err(expected.to_owned()));
}

#[test]
fn a_unit_has_the_name_that_the_reader_of_times_knows() {
    use crate::schema::TimeReader;
    for unit in
        [TimeUnit::Seconds, TimeUnit::Milliseconds, TimeUnit::Microseconds, TimeUnit::Nanoseconds]
    {
        let text = serde_json::to_value(unit).unwrap();
        assert_eq!(text, unit_name(unit));
        let reader = TimeReader::new(Some(unit_name(unit)), TimeZone::UTC);
        assert!(reader.check("t", &arrow::datatypes::DataType::Int64).is_ok());
    }
}
