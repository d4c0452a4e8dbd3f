use std::collections::BTreeMap;

use super::load;

const BASE: &str = r#"
name = "base"
[[events]]
url = "events/"
columns = { user = "u", item = "i", time = "t", event = "e", value = "v" }
weights = { view = 1, purchase = 10 }
[[events]]
url = "ratings/"
columns = { user = "u", item = "i", time = "t" }
[popularity]
[debias]
[item_neighbors]
[top_k]
[output]
url = "out/"
"#;

fn check(text: &str, sets: &[(&str, &str)]) -> Result<(), String> {
    let sets: Vec<_> =
        sets.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    load(text, "job.toml", &BTreeMap::new(), &sets).map(drop).map_err(|error| error.to_string())
}

#[track_caller]
fn refuses(text: &str, sets: &[(&str, &str)], says: &str) {
    let message = check(text, sets).expect_err("this spec is wrong");
    assert!(message.contains(says), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

fn without(section: &str) -> String {
    BASE.replace(&format!("[{section}]\n"), "")
}

fn without_time() -> String {
    BASE.replace(
        "[[events]]\nurl = \"ratings/\"\ncolumns = { user = \"u\", item = \"i\", time = \"t\" }",
        "[[events]]\nurl = \"ratings/\"\ncolumns = { user = \"u\", item = \"i\" }",
    )
}

#[test]
fn weights_must_count_something() {
    let view = "events.0.weights.view";
    refuses(BASE, &[(view, "-1")], "view.weight\" = -1: below 0 it is for ALS alone; add [als]");
    refuses(BASE, &[(view, "1e10")], "must be at most 1e9");
    refuses(BASE, &[(view, "1e-6")], "rounds to 0 in units of 2^-16; scale all weights up");
    refuses(BASE, &[(view, "inf")], "must be a finite number");
    check(BASE, &[(view, "0")]).unwrap();
    let zero = [("events.0.weights", "{ view = 0 }"), ("events.1.weights", "{ \"*\" = 0 }")];
    refuses(BASE, &zero, "no event type has a weight above 0");
}

#[test]
fn weights_are_listed_where_there_is_an_event_column() {
    let weights = "events.0.weights";
    refuses(BASE, &[(weights, "{}")], "\"events.0.weights\" is missing; an event type without");
    refuses(BASE, &[(weights, "{ \"*\" = 1 }")], "\"events.0.weights.\"*\"\" = {…}: is for logs");
    let listed = ("events.1.weights", "{ view = 1 }");
    refuses(BASE, &[listed], "\"events.1.weights.view\" = {…}: needs an event column");
    check(BASE, &[("events.1.weights", "{ \"*\" = 2 }")]).unwrap();
}

#[test]
fn value_keys_need_a_value() {
    let star = "events.1.weights.\"*\"";
    refuses(BASE, &[(star, "{ value = \"linear\" }")], "needs a value column; set columns.value");
    refuses(BASE, &[(star, "{ negative = \"undo\" }")], "\"undo\": needs a value column");
    let max = ("events.0.weights.view", "{ value_max = 3 }");
    refuses(BASE, &[max], "view.value_max\" = …: has no effect with value = \"none\"");
    let unit =
        [("events.1.columns", "{ user = \"u\", item = \"i\" }"), ("events.1.time_unit", "s")];
    refuses(BASE, &unit, "\"events.1.time_unit\" = …: has no time column to apply to");
}

#[test]
fn undoes_names_another_event_that_counts() {
    let undo = |target: &str| format!("{{ undoes = \"{target}\" }}");
    let refused = |target: &str, says: &str| {
        let back = "events.0.weights.return";
        let back_again = ("events.0.weights.unreturn", undo("purchase"));
        refuses(BASE, &[(back, &undo(target)), (back_again.0, &back_again.1)], says);
    };
    refused("return", "return.undoes\" = \"return\": an event type cannot undo itself");
    refused("purchases", "no log lists this event type, did you mean \"purchase\"?");
    refused("xyz", "no log lists this event type; listed are purchase, unreturn, view");
    refused("unreturn", "\"unreturn\" undoes events itself; name the type that counts");
    let without = ("events.1.weights.\"*\"", &*undo("purchase"));
    check(BASE, &[without, ("events.0.weights.return", &undo("view"))]).unwrap();
}

#[test]
fn keys_about_time_need_a_time_in_every_log() {
    let text = without_time();
    check(&text, &[]).unwrap();
    let says = "needs a time column in every log; set \"events.1.columns.time\"";
    for key in ["history.window_days", "history.half_life_days", "top_k.exclude_seen_days"] {
        refuses(&text, &[(key, "30")], &format!("\"{key}\" = 30: {says}"));
        check(BASE, &[(key, "30")]).unwrap();
    }
    let undo = ("events.0.weights.return", "{ undoes = \"purchase\" }");
    refuses(&text, &[undo], "weights.return\" = {…}: undoes earlier events, so it needs a time");
    check(BASE, &[undo]).unwrap();
}

#[test]
fn rankers_and_lists_need_their_sections() {
    refuses(
        &without("item_neighbors"),
        &[("top_k.candidates.item_neighbors", "1")],
        "\"top_k.candidates.item_neighbors\" = 1: needs a section [item_neighbors]; add it",
    );
    refuses(
        &without("popularity"),
        &[("top_k.candidates.popularity", "1")],
        "needs a section [popularity]; add it, or remove this ranker",
    );
    refuses(BASE, &[("top_k.candidates", "{}")], "no ranker proposes items");
    refuses(BASE, &[("top_k.candidates.popularity", "0")], "= 0: must be above 0");
    refuses(BASE, &[("top_k.candidates.als", "1")], "needs a section [als]; add it, or remove");
    refuses(&without("debias"), &[("top_k.debias", "true")], "needs a section [debias]; add it");
    refuses(
        &without("popularity"),
        &[("top_k.fallback", "popularity")],
        "\"top_k.fallback\" = \"popularity\": needs a section [popularity]",
    );
    let neither = without("popularity").replace("[item_neighbors]\n", "");
    refuses(&neither, &[], "\"top_k.candidates\" = {}: no ranker proposes items; add a section");
}

#[test]
fn lists_agree_with_themselves() {
    refuses(
        BASE,
        &[("top_k.k", "30"), ("top_k.n_candidates", "20")],
        "\"top_k.n_candidates\" = 20: must be at least top_k.k, which is 30",
    );
    refuses(
        BASE,
        &[("top_k.exclude_seen", "false"), ("top_k.exclude_seen_days", "9")],
        "has no effect with exclude_seen = false",
    );
    refuses(
        BASE,
        &[("top_k.exclude_seen", "[\"purchse\"]")],
        "\"top_k.exclude_seen\" = \"purchse\": no log lists this event type, did you mean \"purchase\"?",
    );
    refuses(BASE, &[("top_k.exclude_seen", "[]")], "must hold at least one");
    check(BASE, &[("top_k.exclude_seen", "[\"purchase\", \"view\"]")]).unwrap();
}

#[test]
fn a_spec_changed_in_memory_is_checked_as_a_whole() {
    let mut spec = load(BASE, "job.toml", &BTreeMap::new(), &[]).unwrap();
    spec.check().unwrap();
    spec.top_k.as_mut().unwrap().k = 0;
    assert_eq!(spec.check().unwrap_err().to_string(), "\"top_k.k\" = 0: must be at least 1");
    spec.top_k = None;
    spec.limits.reject_share_max = f64::NAN;
    let message = spec.check().unwrap_err().to_string();
    assert_eq!(message, "\"limits.reject_share_max\" is null, expected a number");
}

#[test]
fn keys_of_als_mean_something_together() {
    let als = |keys: &str| format!("{BASE}\n[als]\n{keys}\n");
    check(&als("dialect = \"ials++\"\nunobserved_weight = 0.5\nsolver = \"cholesky\""), &[])
        .unwrap();
    check(&als("confidence = \"log\"\nconfidence_epsilon = 0.5\ncg_steps = 4"), &[]).unwrap();
    for (keys, says) in [
        ("dialect = \"ials++\"\nalpha = 2.0", "\"als.alpha\" = 2: has no effect with dialect"),
        ("unobserved_weight = 0.5", "has no effect unless dialect = \"ials++\""),
        ("regularization_exponent = 0.5", "has no effect unless dialect = \"ials++\""),
        ("confidence_epsilon = 0.5", "has no effect unless confidence = \"log\""),
        ("solver = \"cholesky\"\ncg_steps = 4", "has no effect with solver = \"cholesky\""),
        ("n_factors = 0", "must be at least 1"),
        ("regularization = 0", "must be above 0"),
    ] {
        refuses(&als(keys), &[], says);
    }
}

#[test]
fn a_vector_file_is_written_once() {
    let without_als = |files: &str| format!("{BASE}vectors = [{files}]\n");
    let files = |files: &str| without_als(files) + "[als]\n";
    let (ip, cosine) = (
        r#"{ of = "item_factors", type = "flat_ip" }"#,
        r#"{ of = "item_factors", type = "cosine" }"#,
    );
    let users = r#"{ of = "user_factors", type = "flat_ip" }"#;
    check(&files(&[ip, cosine, users].join(", ")), &[]).unwrap();
    refuses(&without_als(ip), &[], "needs a section [als]; add it, or remove this file");
    let twice = files(&[ip, users, ip].join(", "));
    refuses(
        &twice,
        &[],
        "\"output.vectors.2\" = { of = \"item_factors\", type = \"flat_ip\" }: is the same as \
         output.vectors.0",
    );
    refuses(&files(r#"{ of = "item_factors", type = "flat" }"#), &[], "output.vectors.0.type");
    refuses(&files(r#"{ of = "item_factors" }"#), &[], "\"output.vectors.0.type\" is missing");
}
