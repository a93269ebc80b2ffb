//! The trie of filters: a node per level, subscribers where a filter ends.
//!
//! ```text
//! a/+/c   root ─ "a" ─ plus ─ "c" { exact: subscribers }
//! a/#     root ─ "a" { multi: subscribers }              also wants the parent, `a`
//! ```
//!
//! Nodes are shared between snapshots and never change once published: a change copies the nodes on
//! its path that are shared (`Arc::make_mut`), which cost a few pointers each.
//!
//! Invariants: below the root no node is without subscribers and without children (removal prunes);
//! a node is reached on one path only, so a match visits a node at most once. Nothing recurses by
//! level: matching, changing and dropping a filter of 65 536 levels need no deep stack.

use std::hash::{Hash, RandomState};
use std::sync::Arc;

use smallvec::SmallVec;

use super::level::Level;
use super::map::Map;
use crate::types::topic::{TopicFilter, TopicName};

/// How many `+` branches a match can have put aside before it allocates.
const ASIDE: usize = 32;

pub(super) struct Node<K, V> {
    /// By literal level.
    children: Map<Level, Arc<Node<K, V>>>,
    /// The level `+`.
    plus: Option<Arc<Node<K, V>>>,
    /// Who subscribes to the filter that ends at this node.
    exact: Map<K, V>,
    /// Who subscribes to the filter that ends with `#` after this node.
    multi: Map<K, V>,
}

impl<K, V> Default for Node<K, V> {
    fn default() -> Self {
        Self { children: Map::default(), plus: None, exact: Map::default(), multi: Map::default() }
    }
}

impl<K, V> Clone for Node<K, V> {
    fn clone(&self) -> Self {
        Self {
            children: self.children.clone(),
            plus: self.plus.clone(),
            exact: self.exact.clone(),
            multi: self.multi.clone(),
        }
    }
}

impl<K, V> Node<K, V> {
    fn has_children(&self) -> bool {
        self.plus.is_some() || !self.children.is_empty()
    }

    fn has_subscribers(&self) -> bool {
        !self.exact.is_empty() || !self.multi.is_empty()
    }

    /// Moves the children that no one else holds to `orphans`. Those without children of their own
    /// are dropped at once, so that a wide node does not make a long list.
    fn disown(&mut self, orphans: &mut Vec<Self>) {
        let mut adopt = |child| match Arc::into_inner(child) {
            Some(node) if Self::has_children(&node) => orphans.push(node),
            _ => {}
        };
        if let Some(plus) = self.plus.take() {
            adopt(plus);
        }
        self.children.dismantle(&mut adopt);
    }
}

/// Drops the nodes below one after another: a deep trie would overflow the stack otherwise.
impl<K, V> Drop for Node<K, V> {
    fn drop(&mut self) {
        let mut orphans = Vec::new();
        self.disown(&mut orphans);
        while let Some(mut node) = orphans.pop() {
            node.disown(&mut orphans);
        }
    }
}

/// A node, its name, and what of a filter is left for what lies below it.
type Named<'a, K, V> = (Arc<Node<K, V>>, String, Option<&'a str>);

/// What a removal did.
pub(super) struct Removed<V> {
    pub(super) value: V,
    /// How many nodes went with it.
    pub(super) pruned: usize,
}

impl<K: Clone + Ord + Hash, V: Clone> Node<K, V> {
    /// Subscribes `key` to `filter`. Returns the value it had and how many nodes are new.
    pub(super) fn insert(
        root: &mut Arc<Self>,
        filter: &TopicFilter,
        key: K,
        value: V,
        hasher: &RandomState,
    ) -> (Option<V>, usize) {
        let mut created = 0;
        let mut new = || {
            created += 1;
            Arc::default()
        };
        let mut node = Arc::make_mut(root);
        for level in filter.levels() {
            let child = match level {
                "#" => return (node.multi.insert(key, value, hasher), created),
                "+" => node.plus.get_or_insert_with(&mut new),
                _ => {
                    node.children.get_or_insert_with(level.as_bytes(), hasher, || (Level::new(level), new()))
                }
            };
            node = Arc::make_mut(child);
        }
        (node.exact.insert(key, value, hasher), created)
    }

    /// Ends the subscription of `key` to `filter` and prunes what is left empty. Copies nothing when
    /// there is no such subscription.
    pub(super) fn remove(
        root: &mut Arc<Self>,
        filter: &TopicFilter,
        key: &K,
        hasher: &RandomState,
    ) -> Option<Removed<V>> {
        // Read down to the filter's end. The edge to cut is the one below the deepest node that has
        // something beside this path; the root always stays.
        let (mut node, mut depth, mut cut) = (&**root, 0, 0);
        let mut multi = false;
        for level in filter.levels() {
            if level == "#" {
                multi = true;
                break;
            }
            if depth > 0 && !node.is_only_a_step() {
                cut = depth;
            }
            node = node.child(level, hasher)?;
            depth += 1;
        }
        let (own, other) = if multi { (&node.multi, &node.exact) } else { (&node.exact, &node.multi) };
        let value = own.get(key, hasher)?.clone();
        let stays = depth == 0 || !own.is_single() || !other.is_empty() || node.has_children();

        let (steps, pruned) = if stays { (depth, 0) } else { (cut, depth - cut) };
        let mut levels = filter.levels();
        let mut node = Arc::make_mut(root);
        for level in levels.by_ref().take(steps) {
            node = Arc::make_mut(node.child_mut(level, hasher)?);
        }
        if stays {
            let own = if multi { &mut node.multi } else { &mut node.exact };
            own.remove(key, hasher);
        } else {
            match levels.next()? {
                "+" => node.plus = None,
                level => drop(node.children.remove(level.as_bytes(), hasher)),
            }
        }
        Some(Removed { value, pruned })
    }

    /// Calls `out` for every subscription whose filter matches `topic`.
    pub(super) fn for_each_match(
        &self,
        topic: &TopicName,
        hasher: &RandomState,
        out: &mut impl FnMut(&K, &V),
    ) {
        let mut aside: SmallVec<[(&Self, Option<&str>); ASIDE]> = SmallVec::new();
        if topic.is_reserved() {
            // [MQTT-4.7.2-1]: from the root neither `#` nor `+` is followed.
            let (level, rest) = split_level(topic.as_str());
            if let Some(child) = self.children.get(level.as_bytes(), hasher) {
                aside.push((child, rest));
            }
        } else {
            aside.push((self, Some(topic.as_str())));
        }
        while let Some((mut node, mut rest)) = aside.pop() {
            loop {
                node.multi.for_each(out); // with nothing left too: `a/#` wants `a`
                let Some(text) = rest else {
                    node.exact.for_each(out);
                    break;
                };
                if !node.has_children() {
                    break;
                }
                let (level, after) = split_level(text);
                if let Some(plus) = &node.plus {
                    aside.push((plus, after));
                }
                let Some(child) = node.children.get(level.as_bytes(), hasher) else { break };
                (node, rest) = (child, after);
            }
        }
    }

    /// Calls `out` with each topic that `filter` matches and that somebody subscribes to by its name, until it returns false,
    /// or until so many nodes were looked at. Tells whether all were.
    pub(super) fn for_each_name(
        &self,
        filter: &TopicFilter,
        hasher: &RandomState,
        nodes: usize,
        out: &mut impl FnMut(&str) -> bool,
    ) -> bool {
        let mut looked = 0;
        let mut aside: Vec<Named<'_, K, V>> = Vec::new();
        let (first, rest) = split_level(filter.as_str());
        self.named_below(first, rest, None, hasher, &mut aside);
        while let Some((node, name, rest)) = aside.pop() {
            looked += 1;
            let ends = rest.is_none_or(|rest| rest == "#");
            if looked > nodes || (ends && !node.exact.is_empty() && !out(&name)) {
                return false;
            }
            if let Some(rest) = rest {
                let (level, after) = split_level(rest);
                node.named_below(level, after, Some(&name), hasher, &mut aside);
            }
        }
        true
    }

    /// The children that a level of a filter matches, as in [`Self::for_each_name`].
    fn named_below<'a>(
        &self,
        level: &str,
        rest: Option<&'a str>,
        name: Option<&str>,
        hasher: &RandomState,
        aside: &mut Vec<Named<'a, K, V>>,
    ) {
        let below = |level: &str| match name {
            Some(name) => format!("{name}/{level}"),
            None => level.to_owned(),
        };
        if !matches!(level, "+" | "#") {
            let child = self.children.get(level.as_bytes(), hasher);
            aside.extend(child.map(|child| (Arc::clone(child), below(level), rest)));
            return;
        }
        let rest = if level == "#" { Some("#") } else { rest };
        self.children.for_each(&mut |level: &Level, child| {
            let Some(level) = level.as_str() else { return };
            // [MQTT-4.7.2-1]
            if name.is_some() || !level.starts_with('$') {
                aside.push((Arc::clone(child), below(level), rest));
            }
        });
    }

    /// Whether the node is there for one child alone.
    fn is_only_a_step(&self) -> bool {
        let one_child = match self.plus {
            Some(_) => self.children.is_empty(),
            None => self.children.is_single(),
        };
        one_child && !self.has_subscribers()
    }

    fn child(&self, level: &str, hasher: &RandomState) -> Option<&Self> {
        if level == "+" {
            self.plus.as_deref()
        } else {
            self.children.get(level.as_bytes(), hasher).map(|child| &**child)
        }
    }

    fn child_mut(&mut self, level: &str, hasher: &RandomState) -> Option<&mut Arc<Self>> {
        if level == "+" { self.plus.as_mut() } else { self.children.get_mut(level.as_bytes(), hasher) }
    }
}

/// The first level and, if there is one more, the text behind its `/`.
fn split_level(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (text, None),
    }
}
