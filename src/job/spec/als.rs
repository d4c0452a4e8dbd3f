//! The section `[als]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kernels::als::{Confidence, Dialect, Objective, Solver};

/// Factors of users and items by alternating least squares on implicit feedback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Als {
    /// Whose formulas are followed.
    #[schemars(example = &"hu-koren")]
    pub dialect: AlsDialect,
    /// Numbers per user and item.
    #[schemars(range(min = 1, max = 1024), extend("x-unit" = "factors"), example = 128)]
    pub n_factors: usize,
    /// Passes over users and items. With `loss_tolerance`, at most.
    #[schemars(range(min = 1, max = 10_000), extend("x-unit" = "iterations"), example = 20)]
    pub iterations: usize,
    /// Iterations of a fit that goes on: its items start from the `item_factors` of the generation that
    /// readers saw when the run began, new items as ever. A day more of events is a small step, so 2 or 3
    /// come as close as `iterations` do from scratch. The fit begins from scratch where nothing was
    /// published, where the rest of this section was another one, where the lists of `[delete]` were others
    /// (what the people on them did is in no factor then), where that generation stands for a later day, for
    /// `--sample-users`, and now and then, see `warm_runs_max`. Factors then depend on the runs before: the
    /// same runs in the same order, from the first on, give the same bytes. `fit_start` in the manifest says
    /// where a fit began.
    ///
    /// 0: there is no fit between those from scratch. Items keep their vectors, so an index of them stays as it
    /// is; users with a new history are solved from them, then new items from all users. Everybody else
    /// keeps vector and list (`history_digest` of `user_factors` tells who), where `als` alone ranks; what
    /// lists may hold since is put in. Lists fall behind those of a fit by some per cent, the more users are
    /// new. With `half_life_days` every history is new each day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 0, max = 10_000),
        extend("x-unit" = "iterations", "x-default" = "every fit begins from scratch"),
        example = 3
    )]
    pub warm_iterations: Option<usize>,
    /// After so many runs in a row that went on, one begins from scratch. 0: each run does, as for once with
    /// `--set als.warm_runs_max=0`.
    #[schemars(range(min = 0, max = 10_000), extend("x-unit" = "runs"), example = 13)]
    pub warm_runs_max: usize,
    /// λ: holds factors back, the more the larger. `spark` scales it by the number of interactions,
    /// `ials++` by (n + `unobserved_weight` × N)^`regularization_exponent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        extend("exclusiveMinimum" = 0, "x-default" = "0.01; `spark` 0.1; `ials++` 0.0001"),
        range(max = 1_000_000_000_000_i64),
        example = 10.0
    )]
    pub regularization: Option<f64>,
    /// α: how much the weight of an interaction raises its confidence. Not for `ials++`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        extend("exclusiveMinimum" = 0, "x-default" = "1; `hu-koren` 40"),
        range(max = 1_000_000_000_000_i64),
        example = 2.0
    )]
    pub alpha: Option<f64>,
    /// How confidence grows with the weight r of an interaction. Not for `ials++`.
    #[schemars(example = &"log")]
    pub confidence: ConfidenceScale,
    /// ε of `confidence = "log"`: the weight at which the logarithm sets in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        extend("exclusiveMinimum" = 0, "x-unit" = "weight", "x-default" = "1"),
        range(max = 1_000_000_000_000_i64),
        example = 0.5
    )]
    pub confidence_epsilon: Option<f64>,
    /// Weight of every pair of a user and an item, observed or not, where an observed one weighs 1.
    /// For `ials++` alone; elsewhere it is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        extend("exclusiveMinimum" = 0, "x-default" = "0.1"),
        range(max = 1_000_000),
        example = 0.03
    )]
    pub unobserved_weight: Option<f64>,
    /// How much more often seen rows are held back: 0 is the same for all, 1 in proportion. For
    /// `ials++` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2), extend("x-default" = "1"), example = 0.5)]
    pub regularization_exponent: Option<f64>,
    /// How the equations of a row are solved.
    #[schemars(example = &"cholesky")]
    pub solver: AlsSolver,
    /// Steps of `solver = "cg"` per row and half iteration.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 1, max = 1000),
        extend("x-unit" = "steps", "x-default" = "3"),
        example = 5
    )]
    pub cg_steps: Option<usize>,
    /// How factors are read pair by pair under `solver = "cg"`. What is published is in 32 bits.
    #[schemars(example = &"f32")]
    pub gathered_as: AlsGathered,
    /// Stop when an iteration lowers the loss by less than this share of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        extend("exclusiveMinimum" = 0, "x-unit" = "share of the loss", "x-default" = "no early stop"),
        range(max = 1),
        example = 0.001
    )]
    pub loss_tolerance: Option<f64>,
    /// Users with fewer items do not take part in the fit. They get factors from the fitted items
    /// afterwards, so they have lists like anybody else.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-unit" = "items"), example = 3)]
    pub interactions_per_user_min: usize,
    /// Seed of the starting values of the items; the values of an item depend on it and on the
    /// item's id alone.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64), example = 7)]
    pub seed: u64,
}

impl Default for Als {
    fn default() -> Self {
        Self {
            dialect: AlsDialect::Implicit,
            n_factors: 64,
            iterations: 15,
            warm_iterations: None,
            warm_runs_max: 6,
            regularization: None,
            alpha: None,
            confidence: ConfidenceScale::Linear,
            confidence_epsilon: None,
            unobserved_weight: None,
            regularization_exponent: None,
            solver: AlsSolver::Cg,
            cg_steps: None,
            gathered_as: AlsGathered::F16,
            loss_tolerance: None,
            interactions_per_user_min: 1,
            seed: 0,
        }
    }
}

/// Whose formulas are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AlsDialect {
    /// The library `implicit`: confidence α·r, no "1 +".
    #[serde(rename = "implicit")]
    Implicit,
    /// Hu, Koren and Volinsky: confidence 1 + α·r.
    #[serde(rename = "hu-koren")]
    HuKoren,
    /// Spark MLlib: confidence 1 + α·r, λ scaled by the number of interactions of the row.
    #[serde(rename = "spark")]
    Spark,
    /// Rendle and others: an observed pair weighs 1, every pair `unobserved_weight`, λ scaled by
    /// how often a row is seen.
    #[serde(rename = "ials++")]
    IalsPlusPlus,
}

/// How confidence grows with the weight of an interaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConfidenceScale {
    /// α·r.
    Linear,
    /// α·ln(1 + r/ε).
    Log,
}

/// How the equations of a row are solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlsSolver {
    /// A few steps of conjugate gradient from the values of the last iteration: fastest.
    Cg,
    /// Exactly: several times slower per iteration, for few factors.
    Cholesky,
}

/// How factors are read pair by pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlsGathered {
    /// Rounded to 11 significant bits, so by less than a 2,000th: faster with many factors. The loss
    /// differs from that of `f32` in the sixth digit.
    F16,
    /// As they are.
    F32,
}

impl Als {
    /// This section with every default written out, also those that depend on the dialect.
    pub(super) fn with_defaults(&self) -> Self {
        let ials = self.dialect == AlsDialect::IalsPlusPlus;
        let regularization = match self.dialect {
            AlsDialect::Implicit | AlsDialect::HuKoren => 0.01,
            AlsDialect::Spark => 0.1,
            AlsDialect::IalsPlusPlus => 1e-4,
        };
        let alpha = if self.dialect == AlsDialect::HuKoren { 40.0 } else { 1.0 };
        let log = self.confidence == ConfidenceScale::Log;
        let cg = self.solver == AlsSolver::Cg;
        Self {
            regularization: self.regularization.or(Some(regularization)),
            alpha: self.alpha.or((!ials).then_some(alpha)),
            confidence_epsilon: self.confidence_epsilon.or(log.then_some(1.0)),
            unobserved_weight: self.unobserved_weight.or(ials.then_some(0.1)),
            regularization_exponent: self.regularization_exponent.or(ials.then_some(1.0)),
            cg_steps: self.cg_steps.or(cg.then_some(3)),
            ..self.clone()
        }
    }

    /// What is minimized.
    pub fn objective(&self) -> Objective {
        let full = self.with_defaults();
        let dialect = match self.dialect {
            AlsDialect::Implicit => Dialect::Implicit,
            AlsDialect::HuKoren => Dialect::HuKoren,
            AlsDialect::Spark => Dialect::Spark,
            AlsDialect::IalsPlusPlus => Dialect::IalsPlusPlus {
                unobserved: full.unobserved_weight.expect("filled in for this dialect"),
                exponent: full.regularization_exponent.expect("filled in for this dialect"),
            },
        };
        let alpha = full.alpha.unwrap_or(1.0);
        let confidence = match full.confidence_epsilon {
            Some(epsilon) if self.confidence == ConfidenceScale::Log => {
                Confidence::Log { alpha, epsilon }
            }
            _ => Confidence::Linear { alpha },
        };
        let regularization = full.regularization.expect("filled in for every dialect");
        Objective { dialect, confidence, regularization }
    }

    /// How rows are solved.
    pub fn solver(&self) -> Solver {
        match self.with_defaults().cg_steps {
            Some(steps) if self.solver == AlsSolver::Cg => Solver::ConjugateGradient { steps },
            _ => Solver::Cholesky,
        }
    }

    /// Whether the fixed side is read in 16 bits.
    pub(crate) fn reads_halves(&self) -> bool {
        self.gathered_as == AlsGathered::F16 && self.solver == AlsSolver::Cg
    }

    /// A key that is written but means nothing with the others: its name and why.
    pub(crate) fn idle_key(&self) -> Option<(&'static str, f64, &'static str)> {
        let ials = self.dialect == AlsDialect::IalsPlusPlus;
        let other = "has no effect unless dialect = \"ials++\"; remove it";
        let own =
            "has no effect with dialect = \"ials++\", where every interaction weighs 1; remove it";
        let rules = [
            ("alpha", self.alpha, ials, own),
            ("confidence_epsilon", self.confidence_epsilon, ials, own),
            ("unobserved_weight", self.unobserved_weight, !ials, other),
            ("regularization_exponent", self.regularization_exponent, !ials, other),
            (
                "confidence_epsilon",
                self.confidence_epsilon,
                self.confidence == ConfidenceScale::Linear,
                "has no effect unless confidence = \"log\"; set that, or remove it",
            ),
            (
                "cg_steps",
                self.cg_steps.map(|steps| steps as f64),
                self.solver == AlsSolver::Cholesky,
                "has no effect with solver = \"cholesky\"; remove it",
            ),
        ];
        rules.into_iter().find_map(|(key, value, idle, why)| {
            value.filter(|_| idle).map(|value| (key, value, why))
        })
    }
}
