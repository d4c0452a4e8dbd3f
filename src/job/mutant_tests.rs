//! Specs with text changed at random: each loads, and means the same when it is written out again,
//! or is refused in a sentence.
//!
//! `TIDEMILL_MUTANTS=0..100000` runs other seeds than those of every test run.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::load;
use super::load_tests::FULL;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("TIDEMILL_MUTANTS") else { return 0..3_000 };
    let (first, end) = text.split_once("..").expect("TIDEMILL_MUTANTS is first..end");
    first.parse().unwrap()..end.parse().unwrap()
}

/// What may stand where something else stood.
const WORDS: [&str; 24] = [
    "0",
    "-1",
    "1e308",
    "nan",
    "inf",
    "9223372036854775807",
    "99999999999999999999",
    "true",
    "\"\"",
    "\"..\"",
    "\"${HOME}\"",
    "\"${\"",
    "\"$$\"",
    "[]",
    "{}",
    "[[events]]",
    "[top_k]",
    "=",
    "\"\"\"",
    "\u{0}",
    "å",
    "\n",
    "1979-05-27",
    "name",
];

fn mutate(text: &str, rng: &mut ChaCha8Rng) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..rng.random_range(1..4) {
        // A token: what lies between blanks or quotes.
        let at = rng.random_range(0..chars.len());
        let is_edge = |c: &char| c.is_whitespace() || "=,\"[]{}".contains(*c);
        let start = chars[..at].iter().rposition(is_edge).map_or(0, |edge| edge + 1);
        let end = chars[at..].iter().position(is_edge).map_or(chars.len(), |edge| at + edge);
        let word = WORDS[rng.random_range(0..WORDS.len())].chars();
        match rng.random_range(0..6) {
            0 => drop(chars.splice(start..end, word)),
            1 => drop(chars.splice(at..at, word)),
            2 => drop(chars.remove(at)),
            3 => {
                let end = (at + rng.random_range(1..80)).min(chars.len());
                let part = chars[at..end].to_vec();
                let to = rng.random_range(0..chars.len());
                chars.splice(to..to, part);
            }
            4 => drop(chars.drain(at..(at + rng.random_range(1..80)).min(chars.len()))),
            _ => chars[at] = char::from(rng.random_range(32..127_u8)),
        }
    }
    chars.into_iter().collect()
}

#[test]
fn mutated_specs_load_or_are_refused() {
    let environment = BTreeMap::from([("HOME".to_owned(), "/home/${HOME}".to_owned())]);
    let (mut n_loaded, mut n_refused) = (0, 0);
    for seed in seeds() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let text = mutate(FULL, &mut rng);
        match load(&text, "job.toml", &environment, &[]) {
            Ok(spec) => {
                n_loaded += 1;
                let resolved = spec.resolved();
                let again = load(&resolved, "resolved", &BTreeMap::new(), &[]);
                let again =
                    again.unwrap_or_else(|error| panic!("seed {seed}: {error}\n{resolved}"));
                assert_eq!(again.resolved(), resolved, "seed {seed}");
            }
            Err(error) => {
                n_refused += 1;
                assert!(error.to_string().contains("job.toml"), "seed {seed}: {error}");
            }
        }
    }
    assert!(n_loaded > 100 && n_refused > 100, "{n_loaded} loaded, {n_refused} refused");
}
