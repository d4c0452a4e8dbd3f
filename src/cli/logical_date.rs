//! The day a run is for, where the scheduler says it: in the name of its job.

use anyhow::{Result, anyhow};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use super::telemetry::variable;
use crate::job::{Spec, plan};
use crate::run::Refused;

/// What stands in the place of a date.
const FROM_JOB_NAME: &str = "from-job-name";

/// Stands in the place of `--date` where that is not given.
const DATE: &str = "TIDEMILL_DATE";

/// The name of the job, as Kubernetes labels its pods with.
const JOB_NAME: &str = "TIDEMILL_JOB_NAME";

/// 2020-01-01 in minutes since 1970. Below are numbers that people write, such as 20261122.
const MINUTES_MIN: i64 = 26_297_280;

/// The value of `--date`, or of the environment; with the name of a job in the place of its word.
///
/// A job that nobody scheduled has no date in its name: the date is then derived from the log, as
/// without `--date`.
///
/// # Errors
/// The name of the job is asked for and is not in the environment.
pub(super) fn date(flag: Option<&str>, spec: &Spec, now_us: i64) -> Result<Option<String>> {
    let Some(date) = flag.map(str::to_owned).or_else(|| variable(DATE)) else {
        return Ok(None);
    };
    if date != FROM_JOB_NAME {
        return Ok(Some(date));
    }
    let name = variable(JOB_NAME).ok_or_else(|| {
        Refused::usage(anyhow!(
            "the date is {FROM_JOB_NAME} and {JOB_NAME} is not set; take it from the pod's label \
             batch.kubernetes.io/job-name, or write a date"
        ))
    })?;
    let day = day_before_schedule(&name, &plan::time_zone(spec), now_us);
    if day.is_none() {
        tracing::info!(job = name, "its name holds no time: the date comes from the log");
    }
    Ok(day)
}

/// The day before the one that a job was scheduled on, in `zone`.
///
/// A CronJob names its jobs `<name>-<minutes since 1970>`, by the time that was due and not the
/// time that they began, so all attempts of a job have one day. `None` where the name does not end
/// in minutes from 2020 up to an hour after now.
fn day_before_schedule(job_name: &str, zone: &TimeZone, now_us: i64) -> Option<String> {
    let (_, digits) = job_name.rsplit_once('-')?;
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let minutes: i64 = digits.parse().ok().filter(|_| is_number)?;
    let last = now_us / 60_000_000 + 60;
    if !(MINUTES_MIN..=last).contains(&minutes) {
        return None;
    }
    let due = Timestamp::from_second(minutes * 60).ok()?;
    let day = zone.to_datetime(due).date().checked_sub(Span::new().days(1)).ok()?;
    Some(day.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-12-01 00:00 UTC.
    const NOW_US: i64 = 1_796_083_200_000_000;

    fn day(name: &str, zone: &str) -> Option<String> {
        day_before_schedule(name, &TimeZone::get(zone).unwrap(), NOW_US)
    }

    /// 2026-11-26 02:30 UTC.
    const DUE: i64 = 29_927_670;

    #[test]
    fn a_scheduled_job_is_for_the_day_before() {
        assert_eq!(day(&format!("tidemill-{DUE}"), "UTC").unwrap(), "2026-11-25");
        assert_eq!(day(&format!("shop-nightly-{DUE}"), "UTC").unwrap(), "2026-11-25");
        // 18:30 on the day before, so two days before.
        let west = day(&format!("tidemill-{DUE}"), "America/Los_Angeles");
        assert_eq!(west.unwrap(), "2026-11-24");
        assert_eq!(day(&format!("tidemill-{}", DUE + 21 * 60), "UTC").unwrap(), "2026-11-25");
        assert_eq!(day(&format!("tidemill-{}", DUE + 22 * 60), "UTC").unwrap(), "2026-11-26");
    }

    #[test]
    fn days_of_23_and_25_hours_are_one_day_back_as_well() {
        let minutes = |time: &str| time.parse::<Timestamp>().unwrap().as_second() / 60;
        for (due, expected) in [
            ("2026-03-29T22:30:00Z", "2026-03-29"),
            ("2026-03-29T21:59:00Z", "2026-03-28"),
            ("2026-10-25T22:59:00Z", "2026-10-24"),
            ("2026-10-25T23:00:00Z", "2026-10-25"),
        ] {
            let name = format!("tidemill-{}", minutes(due));
            assert_eq!(day(&name, "Europe/Stockholm").unwrap(), expected, "{due}");
        }
    }

    #[test]
    fn a_job_by_hand_has_no_day() {
        let future = format!("tidemill-{}", NOW_US / 60_000_000 + 61);
        let plus = format!("tidemill-+{DUE}");
        let names = ["tidemill", "tidemill-now", "tidemill-2", "tidemill-20261122", "tidemill-"];
        for name in names.into_iter().chain(["99999999999999999999-9", &future, &plus]) {
            assert_eq!(day(name, "UTC"), None, "{name}");
        }
    }
}
