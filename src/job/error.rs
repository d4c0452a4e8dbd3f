//! What can be wrong with a spec.

use thiserror::Error;

/// What is wrong with a spec: where it was written, which key, and what to do.
///
/// Keys are paths in the form that `--set` takes: `top_k.k`, `events.0.columns.user`.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum SpecError {
    /// The problem, and who wrote it: the file, a flag or an environment variable.
    #[error("in {origin}: {problem}")]
    In {
        /// The file in quotes, `--set`, or the name of the environment variable.
        origin: String,
        /// What is wrong there.
        problem: Box<SpecError>,
    },
    /// The text is not TOML.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What the TOML parser says.
        message: String,
    },
    /// A key that no section of this name has.
    #[error(
        "unknown key \"{key}\"{}; known keys here: {}",
        nearest.as_ref().map(|near| format!(", did you mean \"{near}\"?")).unwrap_or_default(),
        known.join(", ")
    )]
    UnknownKey {
        /// Path of the key.
        key: String,
        /// The known key that is spelled most alike, if any is close.
        nearest: Option<String>,
        /// Every key that may stand there.
        known: Vec<String>,
    },
    /// A required key or section is absent.
    #[error("\"{key}\" is missing; {remedy}")]
    Missing {
        /// Path of the key.
        key: String,
        /// What to add.
        remedy: String,
    },
    /// A value of the wrong type, or outside a fixed list of words.
    #[error("\"{key}\" is {found}, expected {expected}")]
    Unexpected {
        /// Path of the key.
        key: String,
        /// What was written.
        found: String,
        /// What may stand there.
        expected: String,
    },
    /// A value that is out of range, or that does not go with the rest of the spec.
    #[error("\"{key}\" = {value}: {problem}")]
    Value {
        /// Path of the key.
        key: String,
        /// What was written.
        value: String,
        /// Why it cannot be, and what to do.
        problem: String,
    },
    /// `${VAR}` names a variable that is not set.
    #[error(
        "environment variable \"{variable}\", used in \"{key}\", is not set; set it, or write ${{{variable}:-default}}"
    )]
    UnsetVariable {
        /// Path of the key whose value names the variable.
        key: String,
        /// Name of the variable.
        variable: String,
    },
    /// An override that cannot be applied.
    #[error("cannot set \"{key}\": {problem}")]
    Override {
        /// The key as it was given.
        key: String,
        /// Why not, and what to do.
        problem: String,
    },
}

impl SpecError {
    /// Path of the key that is wrong; `None` where the text is not TOML.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::In { problem, .. } => problem.key(),
            Self::Syntax { .. } => None,
            Self::UnknownKey { key, .. }
            | Self::Missing { key, .. }
            | Self::Unexpected { key, .. }
            | Self::Value { key, .. }
            | Self::UnsetVariable { key, .. }
            | Self::Override { key, .. } => Some(key),
        }
    }

    pub(crate) fn within(self, origin: &str) -> Self {
        Self::In { origin: origin.to_owned(), problem: Box::new(self) }
    }

    pub(crate) fn value(
        key: impl Into<String>,
        value: impl ToString,
        problem: impl Into<String>,
    ) -> Self {
        Self::Value { key: key.into(), value: value.to_string(), problem: problem.into() }
    }
}
