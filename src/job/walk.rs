//! Holds a value against the JSON Schema of the spec before serde sees it.
//!
//! The schema knows every path, word list and range, so one generic walk gives every error its
//! full path and its remedy, inside maps and "number or table" values too, where serde cannot.

use serde_json::{Map, Value};

use super::SpecError;
use super::spec::ByteSize;

/// Checks `value` and all below it: keys, types, word lists, ranges, formats.
///
/// `schema` is without references, as [`super::reference::schema`] makes it. `path` is where
/// `value` stands, empty for the whole spec.
///
/// # Errors
/// The first problem in document order; within a table unknown keys first, since a missing key is
/// often a misspelled one.
pub(crate) fn walk(value: &Value, schema: &Value, path: &str) -> Result<(), SpecError> {
    let alternatives = alternatives(schema);
    let fitting: Vec<&Value> =
        alternatives.iter().copied().filter(|schema| has_type_of(schema, value)).collect();
    let words = words(&fitting);
    if words.contains(&value) {
        return Ok(());
    }
    match fitting.iter().find(|schema| constants(schema).is_none()) {
        Some(schema) => walk_inside(value, schema, path),
        None => Err(SpecError::Unexpected {
            key: path.to_owned(),
            found: found(value),
            expected: expected(&alternatives, path) + &did_you_mean(value, &words),
        }),
    }
}

fn walk_inside(value: &Value, schema: &Value, path: &str) -> Result<(), SpecError> {
    match value {
        Value::Object(table) => walk_table(table, schema, path),
        Value::Array(values) => {
            if schema["minItems"].as_u64() > Some(values.len() as u64) {
                return Err(SpecError::value(
                    path,
                    value,
                    "must hold at least one; add one, or remove the key",
                ));
            }
            let each = |(row, value)| walk(value, &schema["items"], &join(path, &format!("{row}")));
            values.iter().enumerate().try_for_each(each)
        }
        Value::Number(number) => check_range(number.as_f64().unwrap_or(f64::NAN), schema)
            .map_err(|problem| SpecError::value(path, value, problem)),
        Value::String(text) => {
            check_text(text, schema).map_err(|problem| SpecError::value(path, value, problem))
        }
        Value::Bool(_) | Value::Null => Ok(()),
    }
}

fn walk_table(table: &Map<String, Value>, schema: &Value, path: &str) -> Result<(), SpecError> {
    let none = Map::new();
    let known = schema["properties"].as_object().unwrap_or(&none);
    let others = schema.get("additionalProperties").filter(|schema| schema.is_object());
    if let Some(key) = table.keys().find(|key| others.is_none() && !known.contains_key(*key)) {
        return Err(SpecError::UnknownKey {
            key: join(path, key),
            nearest: nearest(key, known.keys().map(String::as_str)),
            known: known.keys().cloned().collect(),
        });
    }
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for key in required {
        if !table.contains_key(key) {
            return Err(missing(path, key, &known[key]));
        }
    }
    for (key, value) in table {
        if let Some(schema) = known.get(key).or(others) {
            walk(value, schema, &join(path, key))?;
        }
    }
    Ok(())
}

fn missing(path: &str, key: &str, schema: &Value) -> SpecError {
    let section = join(path, key);
    let remedy = match (schema["type"].as_str(), &schema["examples"][0]) {
        (Some("array"), _) => format!("add a section [[{section}]]"),
        (Some("object"), Value::Null) => format!("add a section [{section}]"),
        (_, Value::Null) => "add it".to_owned(),
        (_, example) => format!("add for example {key} = {}", toml_text(example)),
    };
    SpecError::Missing { key: section, remedy }
}

fn check_range(number: f64, schema: &Value) -> Result<(), String> {
    let bound = |key: &str| schema[key].as_f64();
    let outside = |text: &str, key: &str| Err(format!("must be {text} {}", schema[key]));
    if bound("minimum").is_some_and(|least| number < least) {
        return outside("at least", "minimum");
    }
    if bound("exclusiveMinimum").is_some_and(|least| number <= least) {
        return outside("above", "exclusiveMinimum");
    }
    if bound("maximum").is_some_and(|most| number > most) {
        return outside("at most", "maximum");
    }
    Ok(())
}

fn check_text(text: &str, schema: &Value) -> Result<(), String> {
    if schema["minLength"].as_u64() > Some(text.len() as u64) {
        return Err("must not be empty".to_owned());
    }
    match schema["format"].as_str() {
        Some("name") => check_name(text),
        Some("time-zone") => jiff::tz::TimeZone::get(text).map(drop).map_err(|_| {
            "is not a time zone; write an IANA name such as \"Europe/Stockholm\"".to_owned()
        }),
        Some("byte-size") => text.parse::<ByteSize>().map(drop),
        _ => Ok(()),
    }
}

fn check_name(text: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !text.is_empty() && text.chars().all(fits) {
        return Ok(());
    }
    Err("may hold letters, digits, - and _ only; rename it".to_owned())
}

/// The schemas of which a value must fit one, `anyOf` and `oneOf` taken apart.
pub(crate) fn alternatives(schema: &Value) -> Vec<&Value> {
    match schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
        Some(several) => several.iter().flat_map(alternatives).collect(),
        None => vec![schema],
    }
}

/// The only values that `schema` takes, if it is a list of words.
pub(crate) fn constants(schema: &Value) -> Option<Vec<&Value>> {
    match (&schema["const"], &schema["enum"]) {
        (Value::Null, Value::Array(values)) => Some(values.iter().collect()),
        (Value::Null, _) => None,
        (value, _) => Some(vec![value]),
    }
}

fn words<'s>(schemas: &[&'s Value]) -> Vec<&'s Value> {
    schemas.iter().filter_map(|schema| constants(schema)).flatten().collect()
}

/// The JSON types that `schema` takes.
pub(crate) fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn has_type_of(schema: &Value, value: &Value) -> bool {
    types(schema).iter().any(|name| match *name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => false,
    })
}

fn found(value: &Value) -> String {
    match value {
        Value::Object(_) => "a table".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        other => other.to_string(),
    }
}

fn did_you_mean(value: &Value, words: &[&Value]) -> String {
    let near = value
        .as_str()
        .and_then(|word| nearest(word, words.iter().copied().filter_map(Value::as_str)));
    near.map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default()
}

fn expected(alternatives: &[&Value], path: &str) -> String {
    let mut kinds = Vec::new();
    for schema in alternatives {
        match constants(schema) {
            Some(values) => kinds.extend(values.iter().map(|value| value.to_string())),
            None if schema["items"]["properties"].is_object() => {
                kinds.push(format!("a list of tables, each written [[{path}]]"));
            }
            None => kinds.extend(types(schema).iter().map(|name| with_article(name).to_owned())),
        }
    }
    match kinds.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".to_owned(),
    }
}

fn with_article(json_type: &str) -> &str {
    match json_type {
        "object" => "a table",
        "array" => "a list",
        "string" => "a string",
        "boolean" => "true or false",
        "integer" => "an integer",
        _ => "a number",
    }
}

/// The candidate spelled most like `key`, if any is close; the first of equals.
pub(crate) fn nearest<'k>(key: &str, candidates: impl Iterator<Item = &'k str>) -> Option<String> {
    // Six tenths of the letters in place: enough for a typo, too much for another word.
    let mut best = (0.6, None);
    for candidate in candidates {
        let likeness = strsim::normalized_damerau_levenshtein(key, candidate);
        if likeness > best.0 {
            best = (likeness, Some(candidate.to_owned()));
        }
    }
    best.1
}

/// The path of `key` below `path`; keys that TOML would quote are quoted.
pub(crate) fn join(path: &str, key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let quoted = key.is_empty() || !key.chars().all(bare);
    let key = if quoted { format!("{key:?}") } else { key.to_owned() };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// A value as one would write it in TOML, on one line.
pub(crate) fn toml_text(value: &Value) -> String {
    match value {
        Value::Array(values) => {
            format!("[{}]", values.iter().map(toml_text).collect::<Vec<_>>().join(", "))
        }
        Value::Object(table) if table.is_empty() => "{}".to_owned(),
        Value::Object(table) => {
            let pairs = table
                .iter()
                .map(|(key, value)| format!("{} = {}", join("", key), toml_text(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
