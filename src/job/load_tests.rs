use std::collections::BTreeMap;

use super::spec::*;
use super::{Spec, SpecError, load};

pub(super) const FULL: &str = r#"
name = "nightly"
time_zone = "Europe/Stockholm"
shards = 16

[[events]]
url = "s3://shop/events/dt=*/"
columns = { user = "user_id", item = "item_id", time = "ts", event = "event", value = "quantity", id = "event_id", basket = "basket" }
time_unit = "ms"
partition_date = "dt"
partition_where = { country = ["SE", "NO"], year = "2026" }
[events.weights]
view = 1
purchase = { weight = 10.0, value = "log1p", value_max = 20, negative = "undo" }
return = { undoes = "purchase" }
hide = { excludes_item = true }
"add.to.cart" = 2.5

[[events]]
url = "ratings/"
columns = { user = "u", item = "i", time = "t", value = "stars" }

[items]
url = "s3://shop/items/"
columns = { item = "sku", title = "name" }
recommend_where = { in_stock = true, category = ["shoes", "bags"], store = 3 }

[users]
url = "s3://shop/users/"
columns = { user = "user_id", segment = "country" }

[deny]
items = { url = "denied.parquet", column = "sku" }
users = { url = "opted_out.parquet", column = "user_id" }

[history]
window_days = 180
half_life_days = 30.5
interactions_per_user_max = 500
users_per_item_min = 5

[popularity]
trend_prior = 5

[debias]
propensity_exponent = 0.75
propensity_min = 0.05
popularity = "events"

[item_neighbors]
similarity = "cosine"
weights = "affinity"
shrinkage = 10
users_per_pair_min = 2
n_neighbors = 50

[top_k]
k = 20
candidates = { item_neighbors = 1, popularity = 0.5 }
combine = "scaled_score"
reciprocal_rank_constant = 20
n_candidates = 100
history_weights = "affinity"
exclude_seen = ["purchase"]
exclude_seen_days = 365
debias = true
fallback = "none"
shape = "lists"

[limits]
memory_bytes_max = "1.5GiB"
reject_share_max = 0

[output]
url = "s3://recs/nightly/"
"#;

/// The least that is a spec.
const SMALL: &str = r#"
name = "small"
[[events]]
url = "events/"
columns = { user = "u", item = "i" }
[output]
url = "out/"
"#;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn with(text: &str, variables: &[(&str, &str)], sets: &[(&str, &str)]) -> Result<Spec, SpecError> {
    let sets: Vec<_> =
        sets.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    load(text, "job.toml", &env(variables), &sets)
}

fn plain(text: &str) -> Result<Spec, SpecError> {
    with(text, &[], &[])
}

fn message(loaded: Result<Spec, SpecError>) -> String {
    loaded.expect_err("this spec is wrong").to_string()
}

#[test]
fn a_full_spec_loads() {
    let spec = plain(FULL).unwrap();
    assert_eq!((spec.name.as_str(), spec.shards), ("nightly", Some(16)));
    let weights = &spec.events[0].weights;
    assert_eq!(weights["view"], Weight::plain(1.0));
    assert_eq!(weights["add.to.cart"].weight, 2.5);
    assert_eq!((weights["return"].weight, weights["hide"].weight), (0.0, 0.0));
    assert_eq!(
        weights["purchase"],
        Weight {
            weight: 10.0,
            value: ValueScale::Log1p,
            value_max: Some(20.0),
            negative: Negative::Undo,
            undoes: None,
            excludes_item: false,
        }
    );
    assert_eq!(spec.events[0].partition_where["year"], Values(vec!["2026".to_owned()]));
    let filters = &spec.items.as_ref().unwrap().recommend_where;
    assert_eq!(filters["in_stock"], Values(vec![FilterValue::Bool(true)]));
    assert_eq!(filters["store"], Values(vec![FilterValue::Integer(3)]));
    assert_eq!(filters["category"].0.len(), 2);
    assert_eq!(spec.history.half_life_days, Some(Days(30.5)));
    assert_eq!(spec.limits.memory_bytes_max, ByteSize(3 << 29));
    let rankers: Vec<_> = spec.candidates().rankers().collect();
    assert_eq!(rankers, [(Ranker::ItemNeighbors, 1.0), (Ranker::Popularity, 0.5)]);
    assert_eq!((spec.fallback(), spec.top_k.unwrap().n_candidates()), (Fallback::None, 100));
}

#[test]
fn absent_keys_take_their_defaults() {
    let spec = plain(SMALL).unwrap();
    assert_eq!((spec.time_zone.as_str(), spec.shards), ("UTC", None));
    assert_eq!(spec.history, History::default());
    assert_eq!(spec.history.interactions_per_user_max, 1000);
    assert_eq!(
        spec.limits,
        Limits { memory_bytes_max: ByteSize(8 << 30), reject_share_max: 0.001, bad_files_max: 0 }
    );
    assert!(spec.popularity.is_none() && spec.top_k.is_none() && !spec.has_time());
    assert_eq!(spec.events[0].weights_or_default(), [("*".into(), Weight::plain(1.0))].into());

    let spec = plain(&format!("{SMALL}[popularity]\n[item_neighbors]\n[top_k]\nk = 80")).unwrap();
    assert_eq!(spec.popularity.as_ref().unwrap().trend_prior, 10.0);
    assert_eq!(spec.item_neighbors.as_ref().unwrap().n_neighbors, 100);
    assert_eq!(
        spec.candidates(),
        Candidates { item_neighbors: Some(1.0), ..Candidates::default() }
    );
    assert_eq!(spec.fallback(), Fallback::Popularity);
    let top_k = spec.top_k.unwrap();
    assert!(top_k.because);
    assert_eq!((top_k.n_candidates(), top_k.exclude_seen), (320, ExcludeSeen::Any(true)));
    let spec = plain(&format!("{SMALL}[popularity]\n[top_k]\nbecause = false")).unwrap();
    assert!(!spec.top_k.unwrap().because);

    let spec = plain(&format!("{SMALL}[popularity]\n[top_k]")).unwrap();
    assert_eq!(spec.candidates(), Candidates { popularity: Some(1.0), ..Candidates::default() });
    let spec = plain(&format!("{SMALL}[item_neighbors]\n[top_k]")).unwrap();
    assert_eq!(spec.fallback(), Fallback::None);
}

#[test]
fn every_row_counts_its_value_where_one_is_mapped() {
    let text = SMALL.replace("item = \"i\"", "item = \"i\", value = \"stars\"");
    let weights = plain(&text).unwrap().events[0].weights_or_default();
    assert_eq!(weights["*"].value, ValueScale::Linear);
    let spec = with(&text, &[], &[("events.0.weights.\"*\"", "2")]).unwrap();
    assert_eq!(spec.events[0].weights_or_default()["*"], Weight::plain(2.0));
}

#[test]
fn unknown_keys_at_every_level_are_named_in_full() {
    let known = "known keys here: weight, value, value_max, negative, undoes, excludes_item";
    for (key, near) in [
        ("topk.k", "top_k"),
        ("item_neighbors.n_neighbours", "n_neighbors"),
        ("events.0.ulr", "url"),
        ("events.0.columns.users", "user"),
        ("events.0.weights.purchase.wieght", "weight"),
        ("top_k.candidates.item_neighbor", "item_neighbors"),
        ("deny.items.colum", "column"),
        ("items.columns.titel", "title"),
    ] {
        let section = &key[..key.rfind('.').unwrap()];
        let at = if section == "topk" { section } else { key };
        let message = message(with(FULL, &[], &[(key, "1")]));
        let start = format!("in --set: unknown key \"{at}\", did you mean \"{near}\"?; known");
        assert!(message.starts_with(&start), "{message}");
        assert!(!key.contains("wieght") || message.ends_with(known), "{message}");
    }
    let message = message(plain(&format!("{SMALL}[alt]\nn_factors = 64")));
    assert_eq!(
        message,
        "in \"job.toml\": unknown key \"alt\", did you mean \"als\"?; known keys here: name, \
         time_zone, shards, events, items, users, deny, delete, history, popularity, debias, \
         item_neighbors, als, top_k, limits, gates, store, checkpoints, incremental, output"
    );
}

#[test]
fn wrong_types_and_words_are_named_with_what_is_expected() {
    for (key, value, says) in [
        ("name", "5", "\"name\" is 5, expected a string"),
        ("top_k.k", "many", "\"top_k.k\" is \"many\", expected an integer"),
        ("top_k.k", "1.5", "\"top_k.k\" is 1.5, expected an integer"),
        ("top_k.k", "-1", "\"top_k.k\" = -1: must be at least 1"),
        ("top_k", "7", "\"top_k\" is 7, expected a table"),
        (
            "events",
            "{}",
            "\"events\" is a table, expected a list of tables, each written [[events]]",
        ),
        ("events", "[]", "\"events\" = []: must hold at least one"),
        ("events.0.weights.view", "x", "weights.view\" is \"x\", expected a number or a table"),
        ("events.0.weights.view", "nan", "weights.view\" = NaN: must be a finite number"),
        ("events.0.time_unit", "msec", "expected \"s\", \"ms\", \"us\" or \"ns\""),
        (
            "top_k.combine",
            "reciprocal_ranks",
            "or \"scaled_score\"; did you mean \"reciprocal_rank\"?",
        ),
        ("top_k.exclude_seen", "purchase", "is \"purchase\", expected true or false or a list"),
        ("top_k.exclude_seen", "[1]", "\"top_k.exclude_seen.0\" is 1, expected a string"),
        ("items.recommend_where.x", "1.5", "true or false, an integer, a string or a list"),
        ("items.recommend_where.x", "[]", "must hold at least one"),
        ("limits.memory_bytes_max", "8 gigs", "= \"8 gigs\": unknown unit \"gigs\"; use B, kB"),
        ("limits.memory_bytes_max", "0", "= 0: must be at least 1"),
        ("limits.reject_share_max", "1.01", "= 1.01: must be at most 1"),
        ("history.window_days", "0", "\"history.window_days\" = 0: must be above 0"),
        ("debias.propensity_min", "0.0", "= 0.0: must be above 0"),
        ("shards", "3", "\"shards\" is 3, expected 1, 2, 4, 8, 16"),
        ("time_zone", "Mars/Base", "\"time_zone\" = \"Mars/Base\": is not a time zone; write"),
        ("name", "a b", "\"name\" = \"a b\": may hold letters, digits, - and _ only"),
        ("output.url", "''", "\"output.url\" = \"\": must not be empty"),
    ] {
        let message = message(with(FULL, &[], &[(key, value)]));
        assert!(message.starts_with("in --set: ") && message.contains(says), "{message}");
    }
}

#[test]
fn missing_keys_name_themselves_and_a_remedy() {
    for (gone, says) in [
        ("name = \"small\"", "\"name\" is missing; add for example name = \"nightly\""),
        ("url = \"events/\"", "\"events.0.url\" is missing; add for example url = \"s3://"),
        (
            "item = \"i\"",
            "\"events.0.columns.item\" is missing; add for example item = \"item_id\"",
        ),
        ("[output]\nurl = \"out/\"", "\"output\" is missing; add a section [output]"),
    ] {
        let message = message(plain(&SMALL.replace(gone, "")));
        assert!(message.contains(says), "{message}");
    }
    assert!(
        message(plain("name = 'x'")).contains("\"events\" is missing; add a section [[events]]")
    );
}

#[test]
fn syntax_errors_keep_line_and_column() {
    let error = plain("name = \"é\"\nshards = = 2\n").unwrap_err();
    assert_eq!(error.key(), None);
    let message = error.to_string();
    assert!(message.starts_with("in \"job.toml\": line 2, column 10: "), "{message}");
    assert!(!message.contains('\n'));
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let k = |variables: &[(&str, &str)], sets: &[(&str, &str)]| {
        with(FULL, variables, sets).unwrap().top_k.unwrap().k
    };
    let variable = ("TIDEMILL__TOP_K__K", "30");
    assert_eq!(k(&[], &[]), 20);
    assert_eq!(k(&[variable], &[]), 30);
    assert_eq!(k(&[variable], &[("top_k.k", "40"), ("top_k.k", "41")]), 41);
    assert_eq!(k(&[("TIDEMILL_LOG", "debug")], &[]), 20);
    let message = message(with(FULL, &[("TIDEMILL__TOP_K__KK", "1")], &[]));
    let start = "in the environment variable TIDEMILL__TOP_K__KK: unknown key \"top_k.kk\"";
    assert!(message.starts_with(start), "{message}");
}

#[test]
fn overrides_reach_lists_maps_and_absent_sections() {
    let spec = with(
        SMALL,
        &[("TIDEMILL__POPULARITY__TREND_PRIOR", "3")],
        &[
            ("events.0.url", "other/dt=*/"),
            ("events.0.partition_where.dt", "2026-11-22"),
            ("top_k", "{ k = 7 }"),
            ("top_k.candidates.popularity", "2"),
            ("output.url", "out = x"),
        ],
    )
    .unwrap();
    assert_eq!(spec.events[0].url, "other/dt=*/");
    assert_eq!(spec.events[0].partition_where["dt"], Values(vec!["2026-11-22".to_owned()]));
    assert_eq!(spec.popularity.as_ref().unwrap().trend_prior, 3.0);
    assert_eq!(spec.candidates(), Candidates { popularity: Some(2.0), ..Candidates::default() });
    assert_eq!((spec.top_k.unwrap().k, spec.output.url.as_str()), (7, "out = x"));
}

#[test]
fn overrides_that_lead_nowhere_are_refused() {
    for (key, says) in [
        ("events.1.url", "cannot set \"events.1.url\": \"1\" is no position in a list of 1"),
        ("events.first.url", "\"first\" is no position"),
        ("name.first", "\"name\" holds a value (string), not a section; set it as a whole"),
        ("events.0.weights.*", "not a key; write section.key=value"),
        ("", "not a key"),
        ("a\nb", "not a key"),
    ] {
        let message = message(with(SMALL, &[], &[(key, "1")]));
        assert!(message.starts_with("in --set: ") && message.contains(says), "{message}");
    }
}

#[test]
fn variables_in_values_are_replaced() {
    let url = |text: &str, variables: &[(&str, &str)]| {
        with(&SMALL.replace("out/", text), variables, &[]).map(|spec| spec.output.url)
    };
    let set = [("BUCKET", "recs"), ("EMPTY", ""), ("NESTED", "${BUCKET}")];
    for (text, expanded) in [
        ("s3://${BUCKET}/a/${BUCKET}", "s3://recs/a/recs"),
        ("x${EMPTY}y", "xy"),
        ("${EMPTY:-d}${NO:-e:-f}${NO:-}${BUCKET:-g}", "de:-frecs"),
        ("$${BUCKET} $$ $5 $", "${BUCKET} $ $5 $"),
        ("${NESTED}", "${BUCKET}"),
    ] {
        assert_eq!(url(text, &set).unwrap(), expanded, "{text}");
    }
    assert_eq!(
        url("${NO}", &set).unwrap_err().to_string(),
        "in \"job.toml\": environment variable \"NO\", used in \"output.url\", is not set; \
         set it, or write ${NO:-default}"
    );
    assert!(url("a${NO", &set).unwrap_err().to_string().contains("${ without }"));
    let overridden = SMALL.replace("out/", "${NO}");
    assert_eq!(with(&overridden, &[], &[("output.url", "x")]).unwrap().output.url, "x");
}

#[test]
fn the_resolved_spec_is_the_same_however_it_was_written() {
    for text in [FULL, SMALL, &format!("{SMALL}[top_k]\n[popularity]")] {
        let spec = plain(text).unwrap();
        let resolved = spec.resolved();
        let again = plain(&resolved).unwrap();
        assert_eq!(again, spec.with_defaults(), "{resolved}");
        assert_eq!(again.resolved(), resolved);
        assert_eq!(again.candidates(), spec.candidates());
    }
    let written = plain(&format!(
        "{SMALL}[history]\nusers_per_item_min = 1\n[limits]\nmemory_bytes_max = 8589934592"
    ));
    assert_eq!(written.unwrap().resolved(), plain(SMALL).unwrap().resolved());
    let dollars = plain(&SMALL.replace("out/", "a$${B}$$")).unwrap();
    assert_eq!(dollars.output.url, "a${B}$");
    assert_eq!(plain(&dollars.resolved()).unwrap().output.url, "a${B}$");
}
