//! From text, environment and flags to a checked spec.

use std::collections::BTreeMap;

use serde_json::Value;
use toml::Table;

use super::walk::join;
use super::{Spec, SpecError, reference, set, walk};

/// Reads a spec: flags override the environment, which overrides the text.
///
/// `file_name` is for messages only. `env` is the whole environment: variables named
/// `TIDEMILL__SECTION__KEY` override keys, and `${VAR}` in values is replaced (`${VAR:-default}`
/// where `VAR` is unset or empty, `$$` for `$`). `overrides` are the pairs of `--set key=value`.
/// An overridden value is never expanded, so its variables need not be set.
///
/// # Errors
/// The first problem, with the place it was written in and the path of the key.
pub fn load(
    text: &str,
    file_name: &str,
    env: &BTreeMap<String, String>,
    overrides: &[(String, String)],
) -> Result<Spec, SpecError> {
    let file = format!("\"{file_name}\"");
    let mut table = parse(text).map_err(|problem| problem.within(&file))?;
    let mut origins = Vec::new();
    for asked in set::from_env(env).into_iter().chain(set::from_flags(overrides)) {
        let path = set::apply(&mut table, &asked).map_err(|p| p.within(&asked.origin))?;
        origins.push((path, asked.origin));
    }
    from_table(table, env).map_err(|problem| {
        let origin = problem.key().and_then(|key| origin_of(key, &origins));
        problem.within(origin.unwrap_or(&file))
    })
}

/// Parses a spec and reports syntax errors by line and column.
fn parse(text: &str) -> Result<Table, SpecError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        SpecError::Syntax {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: error.message().replace('\n', ", "),
        }
    })
}

fn from_table(table: Table, env: &BTreeMap<String, String>) -> Result<Spec, SpecError> {
    let value = expand(toml::Value::Table(table), "", env)?;
    walk::walk(&value, &reference::schema(), "")?;
    let spec: Spec = serde_json::from_value(value).map_err(|error| SpecError::Unexpected {
        key: "the spec".to_owned(),
        found: format!("not readable ({error})"),
        expected: "what jobs/README.md describes".to_owned(),
    })?;
    spec.check()?;
    Ok(spec)
}

/// Who set `key`: the last override of it or of a section around it.
fn origin_of<'o>(key: &str, origins: &'o [(String, String)]) -> Option<&'o str> {
    let covers = |path: &str| {
        key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    origins.iter().rev().find(|(path, _)| covers(path)).map(|(_, origin)| origin.as_str())
}

/// The same value as JSON, with the variables in its texts replaced.
fn expand(
    value: toml::Value,
    path: &str,
    env: &BTreeMap<String, String>,
) -> Result<Value, SpecError> {
    Ok(match value {
        toml::Value::Table(table) => {
            let pairs = table.into_iter().map(|(key, value)| {
                let value = expand(value, &join(path, &key), env)?;
                Ok((key, value))
            });
            Value::Object(pairs.collect::<Result<_, SpecError>>()?)
        }
        toml::Value::Array(values) => {
            let values = values.into_iter().enumerate();
            let expanded =
                values.map(|(row, value)| expand(value, &join(path, &format!("{row}")), env));
            Value::Array(expanded.collect::<Result<_, SpecError>>()?)
        }
        toml::Value::String(text) => Value::String(expand_text(&text, path, env)?),
        toml::Value::Float(number) => serde_json::Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| SpecError::value(path, number, "must be a finite number"))?,
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Boolean(flag) => Value::Bool(flag),
        // A bare date is how one would write the value of a folder key.
        toml::Value::Datetime(time) => Value::String(time.to_string()),
    })
}

fn expand_text(text: &str, key: &str, env: &BTreeMap<String, String>) -> Result<String, SpecError> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let (inside, after) = after.split_once('}').ok_or_else(|| {
                SpecError::value(key, format!("{text:?}"), "${ without }; write $$ for a plain $")
            })?;
            out.push_str(variable(inside, key, env)?);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn variable<'v>(
    inside: &'v str,
    key: &str,
    env: &'v BTreeMap<String, String>,
) -> Result<&'v str, SpecError> {
    if let Some((name, default)) = inside.split_once(":-") {
        return Ok(env.get(name).filter(|value| !value.is_empty()).map_or(default, String::as_str));
    }
    env.get(inside).map(String::as_str).ok_or_else(|| SpecError::UnsetVariable {
        key: key.to_owned(),
        variable: inside.to_owned(),
    })
}
