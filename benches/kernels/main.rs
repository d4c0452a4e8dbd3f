//! Each kernel beside its plain twin: the same result the obvious way, with maps and sorts.
//!
//! `cargo bench` takes a few minutes. Divide the median of `plain` by that of `kernel`: a kernel
//! that is not well ahead of its twin needs another reason to be there. `event_rows` has one, 10 bytes
//! a row; `histories` adds sums per item. Everything runs on one
//! thread, so the ratio is one of work and not of cores. Before anything is measured, every pair is
//! held to equal results on a small log.

mod als;
mod cosine;
mod event_rows;
mod factor_scores;
mod histories;
mod log;
mod neighbor_scores;

fn main() {
    als::assert_equal();
    factor_scores::assert_equal();
    cosine::assert_equal();
    neighbor_scores::assert_equal();
    event_rows::assert_equal();
    histories::assert_equal();
    divan::main();
}
