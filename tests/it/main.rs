//! Integration tests: the real binary and the library's `run`, in temporary folders.

mod cli;
mod fixture;
mod input_policy;
mod jobs;
mod layers;
mod real_logs;
mod same_bytes;
