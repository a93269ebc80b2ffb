//! The subscriptions of one session. Most have few: those lie side by side.

use std::collections::BTreeMap;

use super::entry::Subscription;
use crate::types::topic::FilterSpec;

/// With more they are a tree, which has room for eleven in its first node.
const FEW: usize = 8;

/// See the module.
#[derive(Debug)]
pub(crate) enum Subscriptions {
    Few(Vec<(FilterSpec, Subscription)>),
    Many(BTreeMap<FilterSpec, Subscription>),
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Subscriptions {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    pub(crate) fn get(&self, spec: &FilterSpec) -> Option<&Subscription> {
        match self {
            Self::Few(few) => few.iter().find(|(other, _)| other == spec).map(|(_, there)| there),
            Self::Many(many) => many.get(spec),
        }
    }

    pub(crate) fn contains(&self, spec: &FilterSpec) -> bool {
        self.get(spec).is_some()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&FilterSpec, &Subscription)> {
        let (few, many) = match self {
            Self::Few(few) => (Some(few), None),
            Self::Many(many) => (None, Some(many)),
        };
        few.into_iter().flatten().map(|(spec, there)| (spec, there)).chain(many.into_iter().flatten())
    }

    /// Returns what was there before.
    pub(super) fn insert(&mut self, spec: FilterSpec, new: Subscription) -> Option<Subscription> {
        match self {
            Self::Few(few) => {
                if let Some((_, there)) = few.iter_mut().find(|(other, _)| *other == spec) {
                    return Some(std::mem::replace(there, new));
                }
                if few.len() < FEW {
                    few.reserve_exact(1);
                    few.push((spec, new));
                } else {
                    let all = std::mem::take(few).into_iter().chain([(spec, new)]);
                    *self = Self::Many(all.collect());
                }
                None
            }
            Self::Many(many) => many.insert(spec, new),
        }
    }

    pub(super) fn remove(&mut self, spec: &FilterSpec) -> Option<Subscription> {
        match self {
            Self::Few(few) => {
                let at = few.iter().position(|(other, _)| other == spec)?;
                Some(few.swap_remove(at).1)
            }
            Self::Many(many) => {
                let removed = many.remove(spec);
                // Half as many, so that one that comes and goes does not change it each time.
                if many.len() <= FEW / 2 {
                    *self = Self::Few(std::mem::take(many).into_iter().collect());
                }
                removed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::SubscribeOptions;

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((0u32..24, any::<bool>()), 0..200)) {
            let (mut ours, mut model) = (Subscriptions::default(), BTreeMap::new());
            for (at, (filter, adds)) in (1u32..).zip(steps) {
                let spec: FilterSpec = format!("a/{filter}").parse().unwrap();
                let number = NonZeroU32::new(at);
                let of = |old: Option<Subscription>| old.map(|old| old.options.identifier);
                if adds {
                    let options = SubscribeOptions { identifier: number, ..SubscribeOptions::default() };
                    let old = ours.insert(spec.clone(), Subscription { options, group: None });
                    prop_assert_eq!(of(old), model.insert(spec, number));
                } else {
                    prop_assert_eq!(of(ours.remove(&spec)), model.remove(&spec));
                }
                let mut all: Vec<_> = ours.iter().map(|(spec, there)| (spec.clone(), there.options.identifier)).collect();
                all.sort();
                prop_assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
                prop_assert_eq!(ours.len(), model.len());
                prop_assert!(model.keys().all(|spec| ours.contains(spec)));
            }
        }
    }
}
