//! Tidemill precomputes recommendations in batches: Parquet interaction logs in, item popularity,
//! debiasing weights, item-item neighbors and per-user top-K lists out, published all or nothing.
//!
//! A folder is a layer, and imports follow the arrows, nothing else:
//!
//! ```text
//! types -> kernels -> dataflow -> run -> cli
//! cluster -> dataflow, run, cli
//! types -> schema  -> store    -> run
//! kernels, schema  -> job      -> run
//! ```
//!
//! | layer | what it is | what it never does |
//! |---|---|---|
//! | [`types`] | ids, indices, sharded histories, the item dictionary: plain data | compute a model |
//! | [`kernels`] | pure functions on slices: the maths | see a file, a clock, Arrow or timely |
//! | [`schema`] | the columns of every input and output table | open a URL |
//! | [`job`] | the spec (what the user wrote) and the plan (what will be done) | read data |
//! | [`store`] | listing, reading, writing, publication | know what a column means |
//! | [`cluster`] | processes that find, know and watch each other | know what a run computes |
//! | [`dataflow`] | timely: blocks, collectives, status agreement, the windowed source | do IO, read a spec |
//! | [`run`] | the only place where plan, store and dataflow meet | print |
//! | [`cli`] | one file per subcommand | compute |

pub mod types;

pub mod kernels;

pub mod schema;

pub mod job;

pub mod store;

pub mod cluster;

pub mod dataflow;

pub mod run;

pub mod cli;
