//! Errors as people read them.

use std::error::Error;

/// What went wrong and its causes, on one line. A cause that the text before it quotes is not told again, as
/// clients of stores quote theirs at every level.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn causes_are_told_once() {
        // An error that quotes its cause, and names it as well.
        let source = object_store::Error::Generic { store: "S3", source: "it is slow".into() };
        let error = anyhow!(source).context("cannot write \"s3://shop/out/a\"");
        let line = one_line(error.as_ref());
        assert!(line.ends_with("\"s3://shop/out/a\": Generic S3 error: it is slow"), "{line}");
        let causes = anyhow!("the disk is full").context("no file is written").context("no run");
        assert_eq!(one_line(causes.as_ref()), "no run: no file is written: the disk is full");
    }
}
