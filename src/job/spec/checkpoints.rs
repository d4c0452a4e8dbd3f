//! The section about what a run saves on its way.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a run saves on its way, so that the next one goes on where it died.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoints {
    /// Folder or prefix of the checkpoints, which all processes reach. `tidemill gc` looks after
    /// the default place; elsewhere, let the bucket's lifecycle rules remove what dead runs leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1),
        extend("x-default" = "`_checkpoints/` below `output.url`"),
        example = &"s3://shop-scratch/checkpoints/"
    )]
    pub url: Option<String>,
    /// A checkpoint is made every so many iterations of ALS, and after the last one.
    #[schemars(range(min = 1, max = 10_000), extend("x-unit" = "iterations"), example = 2)]
    pub als_iterations: usize,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { url: None, als_iterations: 5 }
    }
}
