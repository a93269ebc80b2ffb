//! The filters of a definition: what a queue or a stream is given of all that is published.

use std::collections::HashSet;

use super::system::SYSTEM;
use super::{CoreError, Limits};
use crate::types::TopicFilter;

/// What no filter sees: commands, and values that are never stored.
const UNSEEN: [&str; 6] = ["$queue", "$stream", "$replay", "$share", "$delayed", SYSTEM];

/// Each of them once.
pub(super) fn once(filters: &mut Vec<TopicFilter>) {
    let mut seen = HashSet::new();
    filters.retain(|filter| seen.insert(filter.clone()));
}

/// Those that are not among `others`.
pub(super) fn beyond(filters: &[TopicFilter], others: &[TopicFilter]) -> Vec<TopicFilter> {
    filters.iter().filter(|filter| !others.contains(filter)).cloned().collect()
}

/// Their texts, so that their order makes no difference.
pub(super) fn sorted(filters: &[TopicFilter]) -> Vec<String> {
    let mut texts: Vec<_> = filters.iter().map(|filter| filter.as_str().to_owned()).collect();
    texts.sort_unstable();
    texts
}

/// Whether a `kind`, whose `path` has them, can be given what they match.
///
/// # Errors
/// [`CoreError::Limit`], [`CoreError::Invalid`] with the path of the first that is wrong.
pub(super) fn check(
    filters: &[TopicFilter],
    kind: &str,
    path: &str,
    limits: &Limits,
) -> Result<(), CoreError> {
    let (max, what) = (limits.max_bindings, path.rsplit('.').next().unwrap_or(path));
    if filters.len() > max {
        return Err(CoreError::Limit { what: format!("too many {what}"), max: max as u64 });
    }
    for (at, filter) in filters.iter().enumerate() {
        let field = format!("{path}[{at}]");
        limits.check_filter(&field, filter)?;
        if UNSEEN.contains(&filter.first_level()) {
            let what = format!("`{}/…` is nothing that a {kind} can be given", filter.first_level());
            return Err(CoreError::invalid(field, what));
        }
    }
    Ok(())
}
