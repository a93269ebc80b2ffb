//! Groups of responders that do the same, and how much each has in hand. Known under the lock of the service.

use std::collections::HashMap;

use bytestring::ByteString;

/// The groups of one service.
#[derive(Debug, Default)]
pub(super) struct Groups {
    all: Vec<Group>,
    /// Where those are that have members. The names come from peers.
    names: HashMap<ByteString, usize>,
    /// Where those are that have none.
    free: Vec<usize>,
}

#[derive(Debug)]
struct Group {
    name: ByteString,
    members: usize,
    in_hand: usize,
}

impl Groups {
    /// The group of this name, with one member more.
    pub(super) fn join(&mut self, name: &ByteString) -> usize {
        if let Some(&at) = self.names.get(name)
            && let Some(group) = self.all.get_mut(at)
        {
            group.members += 1;
            return at;
        }
        let new = Group { name: name.clone(), members: 1, in_hand: 0 };
        let at = self.free.pop().unwrap_or(self.all.len());
        match self.all.get_mut(at) {
            Some(group) => *group = new,
            None => self.all.push(new),
        }
        self.names.insert(name.clone(), at);
        at
    }

    /// A member has left with what it has in hand.
    pub(super) fn leave(&mut self, at: usize, in_hand: usize) {
        let Some(group) = self.all.get_mut(at) else { return };
        group.members -= 1;
        group.in_hand -= in_hand;
        if group.members == 0 {
            self.names.remove(&group.name);
            self.free.push(at);
        }
    }

    /// A member has so many more in hand.
    pub(super) fn took(&mut self, at: usize, count: usize) {
        if let Some(group) = self.all.get_mut(at) {
            group.in_hand += count;
        }
    }

    /// A member has one less in hand.
    pub(super) fn gave(&mut self, at: usize) {
        if let Some(group) = self.all.get_mut(at) {
            group.in_hand -= 1;
        }
    }

    /// What all members have in hand.
    pub(super) fn in_hand(&self, at: usize) -> usize {
        self.all.get(at).map_or(0, |group| group.in_hand)
    }

    /// How many are kept, and how many of them have members.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 2] {
        [self.all.len(), self.names.len()]
    }
}
