//! The users' reference of the spec, made from the spec's types.

use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Spec;
use super::walk::{alternatives, constants, join, toml_text, types};

const INTRO: &str = r#"# Job specs

A job is one TOML file: what is read, what is computed, where it goes. `tidemill check FILE` says
whether it is right and `tidemill run FILE` runs it. The specs in this folder are ready to be copied.

* **A section that is absent is a stage that does not run**; `[history]`, `[limits]`, `[gates]` and
  `[store]` have defaults. An empty section, such as `[popularity]`, runs the stage with its defaults.
* **Unknown keys are errors**, and the message names the nearest known key.
* **Relative paths are relative to the folder of the spec file**, not to where you stand.
* **Variables:** `${VAR}` inside a text value is replaced from the environment, `${VAR:-default}`
  when it is unset or empty, `$$` is a plain `$`. An unset variable without a default is an error.
  Credentials do not belong here: object stores take them from their usual variables.
* **Overriding:** flags override the environment, which overrides the file. `--set top_k.k=20` sets
  any key, `--set events.0.url=data/` one in a list (the first log), `--set 'events.0.weights."*"=2'`
  one that needs quotes. `TIDEMILL__TOP_K__K=20` does the same: upper case, two underscores for each
  dot. A value is read as TOML (`20`, `true`, `["purchase"]`, `'"20"'`), else it is text. Setting a
  key of an absent section adds the section.
* **Editors:** put `#:schema ./tidemill.schema.json` on the first line of a spec, and an editor with
  TOML support (Even Better TOML, Tombi, Taplo) completes keys and marks mistakes.

This file and the JSON Schema are generated from the code; a test holds them to it
(`TIDEMILL_BLESS=1 cargo test --release reference` rewrites them).
"#;

/// The JSON Schema of the spec, for editors.
pub fn json_schema() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).expect("a JSON value has a text");
    text.push('\n');
    text
}

/// The reference of every key: type, unit, default, example, meaning.
pub fn markdown() -> String {
    let mut out = INTRO.to_owned();
    write_section(&mut out, "", &schema());
    out
}

/// The JSON Schema of the spec without references, and without `null`, which TOML does not have.
pub(crate) fn schema() -> Value {
    // Draft 7 is what editors know best; inline, since it forbids words beside a reference.
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Spec>().to_value();
    tidy(&mut schema);
    schema
}

fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.retain(|key, value| !(key == "default" && value.is_null()));
            // Widths of Rust's numbers mean nothing to an editor.
            map.retain(|key, value| {
                !(key == "format"
                    && matches!(value.as_str(), Some("double" | "uint" | "uint32" | "int64")))
            });
            // A doc comment is wrapped for its source file; here each paragraph is one line.
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace("\n\n", "\0").replace('\n', " ").replace('\0', "\n\n");
            }
            for key in ["type", "enum", "anyOf"] {
                without_null(map, key);
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(values) => values.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Takes the alternative `null` out, and the list around the last one left.
fn without_null(map: &mut Map<String, Value>, key: &str) {
    let Some(Value::Array(values)) = map.get_mut(key) else {
        return;
    };
    let before = values.len();
    values
        .retain(|value| !value.is_null() && value != "null" && *value != json!({ "type": "null" }));
    if values.len() == before || values.len() > 1 || key == "enum" {
        return;
    }
    let only = values.remove(0);
    match only {
        Value::Object(inner) => {
            map.remove(key);
            for (key, value) in inner {
                map.entry(key).or_insert(value);
            }
        }
        other => {
            map.insert(key.to_owned(), other);
        }
    }
}

/// Writes the table of the keys of `schema`, then the sections below it.
fn write_section(out: &mut String, path: &str, schema: &Value) {
    let hashes = if path.contains('.') { "###" } else { "##" };
    let title = if path.is_empty() { "Top level".to_owned() } else { format!("`{path}`") };
    write_to(out, format_args!("\n{hashes} {title}\n"));
    if let (false, Some(text)) = (path.is_empty(), schema["description"].as_str()) {
        write_to(out, format_args!("{}\n", one_line(text)));
    }
    write_to(out, format_args!("\n| key | type | unit | default | example | meaning |\n"));
    write_to(out, format_args!("|---|---|---|---|---|---|\n"));
    let properties = schema["properties"].as_object();
    for (key, property) in properties.into_iter().flatten() {
        let required = schema["required"].as_array().is_some_and(|keys| keys.contains(&json!(key)));
        write_to(out, format_args!("{}\n", row(key, property, required)));
    }
    for (key, property) in properties.into_iter().flatten() {
        for (path, table) in tables_of(&section_path(path, key), property) {
            write_section(out, &path, table);
        }
    }
}

fn write_to(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String does not fail");
}

fn section_path(path: &str, key: &str) -> String {
    // `[[events]]` and `[items]` are written with their brackets; the path below is bare.
    join(path.trim_start_matches('[').trim_end_matches(']'), key)
}

/// The tables that may stand under a key, each with the path to show.
fn tables_of<'s>(path: &str, schema: &'s Value) -> Vec<(String, &'s Value)> {
    let mut tables = Vec::new();
    for schema in alternatives(schema) {
        if schema["properties"].is_object() {
            let shown = if path.contains('.') { path.to_owned() } else { format!("[{path}]") };
            tables.push((shown, schema));
        } else if schema["items"]["properties"].is_object() {
            tables.push((format!("[[{path}]]"), &schema["items"]));
        }
    }
    let entries = &schema["additionalProperties"];
    if entries.is_object() {
        let key = schema["x-key"].as_str().unwrap_or("key");
        tables.extend(tables_of(&format!("{path}.<{key}>"), entries));
    }
    tables
}

fn row(key: &str, schema: &Value, required: bool) -> String {
    let code = |value: &Value| format!("`{}`", toml_text(value));
    let unit = schema["x-unit"].as_str().unwrap_or_default();
    let default = match (required, &schema["x-default"], &schema["default"]) {
        (true, ..) => "required".to_owned(),
        (_, Value::String(text), _) => text.clone(),
        (_, _, Value::Null) => "absent".to_owned(),
        (_, _, value) => code(value),
    };
    let example = schema["examples"].get(0).map(code).unwrap_or_default();
    let meaning = meaning(schema);
    let kind = kind(schema);
    format!("| `{key}` | {kind} | {unit} | {default} | {example} | {meaning} |")
}

fn meaning(schema: &Value) -> String {
    let mut text = one_line(schema["description"].as_str().unwrap_or_default());
    for word in alternatives(schema) {
        if let (Some(value), Some(words)) = (word["const"].as_str(), word["description"].as_str()) {
            write_to(&mut text, format_args!(" `\"{value}\"`: {}", one_line(words)));
        }
    }
    text
}

/// The types a key takes, in words, with the range.
fn kind(schema: &Value) -> String {
    let mut kinds = Vec::new();
    for schema in alternatives(schema) {
        if let Some(values) = constants(schema).filter(|values| values.len() <= 8) {
            kinds.extend(values.iter().map(|value| format!("`{value}`")));
            continue;
        }
        for name in types(schema) {
            kinds.push(match name {
                "object" if schema["additionalProperties"].is_object() => {
                    let key = schema["x-key"].as_str().unwrap_or("key");
                    format!("table: {key} = {}", kind(&schema["additionalProperties"]))
                }
                "object" => "table".to_owned(),
                "array" if schema["items"]["properties"].is_object() => "tables".to_owned(),
                "array" => format!("list of {}", kind(&schema["items"])),
                "boolean" => "true/false".to_owned(),
                "integer" | "number" => format!("{name}{}", range(schema)),
                _ => name.to_owned(),
            });
        }
    }
    kinds.join(" or ")
}

fn range(schema: &Value) -> String {
    let bound = |sign: &str, key: &str| match &schema[key] {
        Value::Null => String::new(),
        bound => format!(" {sign} {bound}"),
    };
    let least = bound(">", "exclusiveMinimum") + &bound("≥", "minimum");
    let between = if least.is_empty() || schema["maximum"].is_null() { "" } else { "," };
    least + between + &bound("≤", "maximum")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(file: &str, expected: &str) {
        let path = format!("{}/jobs/{file}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("TIDEMILL_BLESS").is_some() {
            std::fs::write(&path, expected).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == expected,
            "jobs/{file} differs from the code; run with TIDEMILL_BLESS=1"
        );
    }

    #[test]
    fn reference_files_equal_the_code() {
        compare("README.md", &markdown());
        compare("tidemill.schema.json", &json_schema());
    }

    /// Every key in the schema has a meaning, and every example and default fits its own key.
    #[test]
    fn every_key_is_described_and_its_examples_fit() {
        fn visit(schema: &Value, path: &str, n_keys: &mut usize) {
            for (key, property) in schema["properties"].as_object().into_iter().flatten() {
                let path = join(path, key);
                *n_keys += 1;
                assert!(property["description"].is_string(), "{path} has no description");
                let examples = property["examples"].as_array().into_iter().flatten();
                for value in examples.chain(property.get("default")) {
                    crate::job::walk::walk(value, property, &path).unwrap();
                }
                for (path, table) in tables_of(&path, property) {
                    visit(table, &path, n_keys);
                }
            }
        }
        let mut n_keys = 0;
        visit(&schema(), "", &mut n_keys);
        assert!(n_keys > 60, "{n_keys}");
    }

    #[test]
    fn the_schema_holds_no_reference_and_no_null() {
        let text = json_schema();
        assert!(!text.contains("$ref") && !text.contains("null"), "{text}");
    }
}
