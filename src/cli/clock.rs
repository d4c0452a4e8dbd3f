//! The one clock: it names runs and dates publications, and no result depends on it.

/// Microseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks for the time")]
pub(super) fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// Now, RFC 3339.
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks for the time")]
pub(super) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// A name that was never used before, in order of time.
pub(super) fn run_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
