//! An error with what is behind it, in one line.

use std::error::Error;

/// Adds what is behind an error, and nothing twice.
pub(crate) fn add(reason: &mut String, mut cause: Option<&(dyn Error + 'static)>) {
    while let Some(error) = cause {
        let said = error.to_string();
        if !reason.contains(&said) {
            reason.push_str(": ");
            reason.push_str(&said);
        }
        cause = error.source();
    }
}

/// An error and what is behind it.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    add(&mut text, error.source());
    text
}

#[cfg(test)]
mod tests {
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);

    #[test]
    fn each_cause_is_said_once() {
        let error = Said("no TLS", Some(Said("bad file", Some(Said("file", None).into())).into()));
        assert_eq!(super::with_causes(&error), "no TLS: bad file");
    }
}
