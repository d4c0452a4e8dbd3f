//! Overrides: `--set top_k.k=20` and `TIDEMILL__TOP_K__K=20`.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::SpecError;
use super::walk::join;

/// What the name of an overriding environment variable starts with.
const PREFIX: &str = "TIDEMILL__";

/// One override: who asks for it, which key, what value.
pub(crate) struct Override {
    /// `--set`, or the name of the environment variable.
    pub(crate) origin: String,
    /// The key, in the form `top_k.k`.
    pub(crate) key: String,
    /// The value as text.
    pub(crate) text: String,
}

/// The overrides that the environment asks for, in the order of the variables' names.
pub(crate) fn from_env(env: &BTreeMap<String, String>) -> Vec<Override> {
    let overrides = env.iter().filter_map(|(name, text)| {
        let key = name.strip_prefix(PREFIX)?.to_ascii_lowercase().replace("__", ".");
        let origin = format!("the environment variable {name}");
        Some(Override { origin, key, text: text.clone() })
    });
    overrides.collect()
}

/// The overrides of `--set` flags, in their order.
pub(crate) fn from_flags(flags: &[(String, String)]) -> Vec<Override> {
    let overrides = flags.iter().map(|(key, text)| Override {
        origin: "--set".to_owned(),
        key: key.clone(),
        text: text.clone(),
    });
    overrides.collect()
}

/// Applies one override to `spec`; sections on the way to the key are made where absent.
///
/// Returns the path of what it wrote, as errors name it: the key, or the first section it made.
///
/// # Errors
/// When the key is not a path of keys, or leads through something that is not a table or list.
pub(crate) fn apply(spec: &mut Table, asked: &Override) -> Result<String, SpecError> {
    let refuse = |problem: String| SpecError::Override { key: asked.key.clone(), problem };
    let keys = parse_key(&asked.key).ok_or_else(|| {
        refuse("not a key; write section.key=value, for example top_k.k=20".into())
    })?;
    let (last, sections) = keys.split_last().expect("a parsed key has at least one part");
    let (mut path, mut made) = (String::new(), None);
    let mut table = Place::Table(spec);
    for key in sections {
        path = join(&path, key);
        if matches!(&table, Place::Table(table) if !table.contains_key(key)) {
            made.get_or_insert(path.clone());
        }
        table = step(table, key, &path).map_err(&refuse)?;
    }
    put(table, last, parse_value(&asked.text)).map_err(&refuse)?;
    Ok(made.unwrap_or_else(|| join(&path, last)))
}

enum Place<'t> {
    Table(&'t mut Table),
    List(&'t mut Vec<Value>),
}

fn step<'t>(place: Place<'t>, key: &str, path: &str) -> Result<Place<'t>, String> {
    let value = match place {
        Place::Table(table) => {
            table.entry(key.to_owned()).or_insert_with(|| Value::Table(Table::new()))
        }
        Place::List(values) => at(values, key)?,
    };
    match value {
        Value::Table(table) => Ok(Place::Table(table)),
        Value::Array(values) => Ok(Place::List(values)),
        other => {
            let kind = other.type_str();
            Err(format!("\"{path}\" holds a value ({kind}), not a section; set it as a whole"))
        }
    }
}

fn put(place: Place<'_>, key: &str, value: Value) -> Result<(), String> {
    match place {
        Place::Table(table) => {
            table.insert(key.to_owned(), value);
        }
        Place::List(values) => *at(values, key)? = value,
    }
    Ok(())
}

fn at<'t>(values: &'t mut [Value], key: &str) -> Result<&'t mut Value, String> {
    let n_values = values.len();
    key.parse::<usize>().ok().and_then(|row| values.get_mut(row)).ok_or_else(|| {
        format!("\"{key}\" is no position in a list of {n_values}; positions start at 0")
    })
}

/// The parts of a dotted key, which TOML itself takes apart, quotes and all.
fn parse_key(key: &str) -> Option<Vec<String>> {
    // A line break would let a second key in.
    let line = (!key.contains(['\n', '='])).then(|| format!("{key} = 0"))?;
    let mut table: Table = toml::from_str(&line).ok()?;
    let mut keys = Vec::new();
    loop {
        let (key, value) = table.into_iter().next()?;
        keys.push(key);
        match value {
            Value::Table(inner) => table = inner,
            _ => return Some(keys),
        }
    }
}

/// `text` as a TOML value, or as it stands where it is not one: `20`, `[1, 2]`, `purchase`.
fn parse_value(text: &str) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}"));
    match parsed {
        Ok(mut table) if table.len() == 1 => {
            table.remove("value").expect("the only key is the one just written")
        }
        _ => Value::String(text.to_owned()),
    }
}
