//! Timely as a shell: the same driver runs on every worker, and workers meet in collectives.
//!
//! One timely worker per process moves data; cores are used by kernels inside a worker. A stage is
//! ordinary Rust between collectives, so it can use `?`, stop early and checkpoint. Three rules
//! keep that sound:
//!
//! - Every worker calls the same collectives and sources in the same order.
//! - An error is agreed on ([`Collectives::agree`]) before it is returned: timely takes the input
//!   of a worker that left for the end of its data. A worker that leaves alone is noticed by the
//!   others, which then panic.
//! - A panic of one worker ends the process ([`execute`]), or its peers would wait for ever.
//!
//! Workers are threads of this process ([`execute`], for tests) or one in each of several processes
//! ([`execute_over`]); nothing else is different.
//!
//! Nothing here reads a file, a clock or a spec.

mod agree;
mod block;
mod changes;
mod collectives;
mod shell;
mod source;

pub use agree::AgreeError;
pub use block::BLOCK_BYTES;
pub use changes::consolidated;
pub use collectives::{BytesMoved, Collectives, Incoming, Outgoing, SLICE_BYTES, SumOverflow};
pub use shell::{PANIC_EXIT_CODE, Shell, StartError, execute, execute_over};
pub use source::{SourceClosed, SourceSender, windowed_source};
