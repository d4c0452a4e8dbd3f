//! Integration tests: the real binary and the library's `run`, in temporary folders.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why"
)]

mod bytes_moved;
mod cli;
mod deployment;
mod fixture;
mod gates;
mod incremental;
mod input_policy;
mod jobs;
mod jobsim;
mod kubernetes;
mod layers;
mod oracle;
mod plan;
mod processes;
mod profile;
mod real_logs;
mod s3;
mod s3_jobs;
mod same_bytes;
mod vectors;
