//! Kinds of values that several keys share.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::types::DAY_US;

/// A positive length of time in days; fractions are allowed.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Days(pub f64);

impl Days {
    /// The same length in microseconds, rounded, at least 1.
    pub fn micros(self) -> i64 {
        ((self.0 * DAY_US as f64).round() as i64).max(1)
    }
}

impl JsonSchema for Days {
    fn schema_name() -> Cow<'static, str> {
        "Days".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // The upper end keeps microseconds far from the end of an i64.
        json_schema!({ "type": "number", "exclusiveMinimum": 0, "maximum": 100_000, "x-unit": "days" })
    }
}

/// A number of bytes, written as an integer or as text with a unit: `"8GiB"`, `"512MB"`, `"8Gi"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "IntegerOrText")]
pub struct ByteSize(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum IntegerOrText {
    Integer(u64),
    Text(String),
}

impl TryFrom<IntegerOrText> for ByteSize {
    type Error = String;

    fn try_from(written: IntegerOrText) -> Result<Self, String> {
        match written {
            IntegerOrText::Integer(bytes) => Ok(Self(bytes)),
            IntegerOrText::Text(text) => text.parse(),
        }
    }
}

impl std::str::FromStr for ByteSize {
    type Err = String;

    /// A number and a unit, with or without a space between; case does not matter.
    ///
    /// `KiB`, `Ki`, `MiB`, … are powers of 1024 and `kB`, `MB`, … powers of 1000.
    ///
    /// # Errors
    /// What is wrong and which units there are.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let unit_at =
            text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let number: f64 = number
            .replace('_', "")
            .parse()
            .map_err(|_| "does not start with a number; write for example \"8GiB\"".to_owned())?;
        let unit = unit.trim();
        let scale = unit_bytes(unit).ok_or_else(|| {
            format!("unknown unit \"{unit}\"; use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB")
        })?;
        let bytes = (number * scale as f64).round();
        // Above this the resolved spec, whose integers are TOML's, could not hold it.
        if (1.0..i64::MAX as f64).contains(&bytes) {
            Ok(Self(bytes as u64))
        } else {
            Err("must be at least one byte and below 2^63".to_owned())
        }
    }
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let (letter, base) = match unit.as_str() {
        "" | "b" => return Some(1),
        binary if binary.ends_with("ib") => (binary.strip_suffix("ib")?, 1024_u64),
        binary if binary.ends_with('i') => (binary.strip_suffix('i')?, 1024),
        decimal => (decimal.strip_suffix('b')?, 1000),
    };
    let power = ["k", "m", "g", "t"].iter().position(|known| *known == letter)?;
    Some(base.pow(power as u32 + 1))
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "minimum": 1,
            "format": "byte-size",
            "x-unit": "bytes",
        })
    }
}

/// One value or a list of them; never empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "OneOrMany<T>")]
pub struct Values<T>(pub Vec<T>);

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(#[schemars(length(min = 1))] Vec<T>),
}

impl<T> From<OneOrMany<T>> for Values<T> {
    fn from(written: OneOrMany<T>) -> Self {
        match written {
            OneOrMany::One(value) => Self(vec![value]),
            OneOrMany::Many(values) => Self(values),
        }
    }
}

/// A value that a column of the items table is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum FilterValue {
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// A string.
    Text(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_units() {
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("8Gi", 8 << 30),
            ("512MB", 512_000_000),
            ("1.5 kib", 1536),
            ("7", 7),
            ("7 B", 7),
            ("2TB", 2_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "8 gigs", "0", "-1GB", "1e3", "9999999TiB", "8i", "8ib"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn days_in_microseconds() {
        assert_eq!(Days(30.0).micros(), 30 * DAY_US);
        assert_eq!(Days(0.5).micros(), DAY_US / 2);
        assert_eq!(Days(1e-30).micros(), 1);
    }
}
