//! What each dialect of implicit ALS makes of a weight and of a row.

/// Whose formulas are followed. r is the summed, decayed weight of a user-item pair; p, the
/// preference, is 1 where r > 0 and 0 where r < 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dialect {
    /// The library `implicit`: c = s(|r|), λ as it is.
    Implicit,
    /// Hu, Koren, Volinsky (ICDM 2008): c = 1 + s(|r|), λ as it is.
    HuKoren,
    /// Spark MLlib: c = 1 + s(|r|), λ · number of positive r in the row.
    Spark,
    /// Rendle and others (RecSys 2022): an observed pair weighs 1, every pair `unobserved`, and
    /// λ · (n + unobserved · N)^exponent, n = observed pairs of the row, N = rows of the other side.
    IalsPlusPlus {
        /// Weight of every pair, observed or not.
        unobserved: f64,
        /// How much more often seen rows are held back: 0 is λ for all, 1 is the paper's choice.
        exponent: f64,
    },
}

/// s(|r|) of [`Dialect`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Confidence {
    /// α·r.
    Linear {
        /// The scale.
        alpha: f64,
    },
    /// α·ln(1 + r/ε).
    Log {
        /// The scale.
        alpha: f64,
        /// The weight at which the logarithm sets in.
        epsilon: f64,
    },
}

/// The objective that is minimized.
///
/// An observed pair is kept as one signed number c, its confidence: negative where the preference is
/// 0. Then extra = |c| − `base` and target = max(c, 0).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The dialect.
    pub dialect: Dialect,
    /// The scale of confidences; iALS++ has none.
    pub confidence: Confidence,
    /// λ.
    pub regularization: f64,
}

/// An observed pair in the normal equations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Coefficient of the outer product.
    pub extra: f32,
    /// Coefficient of the right-hand side.
    pub target: f32,
}

impl Objective {
    /// Signed confidence of a pair with weight `r`, which is not 0. Infinite where it leaves f32.
    pub fn confidence(&self, r: f64) -> f32 {
        let scaled = match self.confidence {
            Confidence::Linear { alpha } => alpha * r.abs(),
            Confidence::Log { alpha, epsilon } => alpha * libm::log1p(r.abs() / epsilon),
        };
        let confidence = match self.dialect {
            Dialect::Implicit => scaled,
            Dialect::HuKoren | Dialect::Spark => 1.0 + scaled,
            Dialect::IalsPlusPlus { .. } => 1.0,
        };
        confidence.copysign(r) as f32
    }

    /// Weight of every pair, observed or not.
    pub fn unobserved(&self) -> f32 {
        match self.dialect {
            Dialect::IalsPlusPlus { unobserved, .. } => unobserved as f32,
            _ => 1.0,
        }
    }

    /// What is taken off a confidence, since every pair weighs [`Objective::unobserved`] already.
    pub fn base(&self) -> f32 {
        match self.dialect {
            Dialect::IalsPlusPlus { .. } => 0.0,
            _ => 1.0,
        }
    }

    /// λ of a row with so many observed pairs, of them so many positive, when the other side has
    /// `n_other` rows.
    pub fn regularization_of(&self, n_observed: u64, n_positive: u64, n_other: u64) -> f32 {
        let scale = match self.dialect {
            Dialect::Implicit | Dialect::HuKoren => 1.0,
            // A row without a positive weight has the solution 0 for any λ above 0.
            Dialect::Spark => n_positive.max(1) as f64,
            Dialect::IalsPlusPlus { unobserved, exponent } => {
                libm::pow(n_observed as f64 + unobserved * n_other as f64, exponent)
            }
        };
        (self.regularization * scale) as f32
    }
}

/// The coefficients of a pair with signed confidence `c`.
#[inline(always)]
pub(crate) fn pair(c: f32, base: f32) -> Pair {
    Pair { extra: c.abs() - base, target: c.max(0.0) }
}
