//! Layer `job`: the spec (what the user wrote) and the plan (what will be done).

mod check;
#[cfg(test)]
mod check_tests;
mod error;
mod load;
#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod mutant_tests;
pub mod plan;
#[cfg(test)]
mod plan_tests;
pub mod reference;
mod set;
pub mod spec;
mod walk;

pub use error::SpecError;
pub use load::load;
pub use spec::Spec;
