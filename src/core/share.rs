//! Share groups: of each message one member gets one.
//!
//! A group whose members all end with their connections is live only: a member is chosen when a message is routed.
//! As soon as one member's session outlives its connection, the group is a durable target: what is published at
//! QoS 1 and 2 is stored once for the group and leased to whichever member has room.
//!
//! Invariant: a group is in the router exactly as long as it has members, and has a target exactly as long as it has
//! a durable member.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use super::route::{Route, RouteChange, RouteKey};
use super::router::Change;
use super::session::{SessionEntry, SessionKey};
use crate::engine::{Levels, SubscribeOptions, Ticket};
use crate::types::TargetId;
use crate::types::topic::FilterSpec;

/// Identifies a share group while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareKey(pub(crate) u64);

/// The members of `$share/<group>/<filter>`.
#[derive(Debug)]
pub struct ShareGroup {
    pub(crate) key: ShareKey,
    pub(crate) spec: FilterSpec,
    members: RwLock<Members>,
    /// Where the next choice begins.
    turn: AtomicUsize,
}

#[derive(Debug, Default)]
struct Members {
    list: Vec<Member>,
    durable: usize,
    target: Option<TargetId>,
}

#[derive(Debug)]
struct Member {
    entry: Arc<SessionEntry>,
    options: SubscribeOptions,
}

/// The member that gets a message.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) entry: Arc<SessionEntry>,
    pub(crate) levels: Levels,
    pub(crate) identifier: Option<NonZeroU32>,
}

/// Of so many members the one with the least backlog is chosen; asking all of a large group would cost more than
/// it gains.
const ASKED: usize = 8;

impl ShareGroup {
    /// Where the messages of QoS 1 and 2 are stored, if the group has a durable member.
    pub(crate) fn target(&self) -> Option<TargetId> {
        self.members.read().target
    }

    /// The connected member with the least backlog, in turn among equals. `assigned` says what a member was given
    /// in the batch at hand and has not been offered yet.
    pub(crate) fn choose(
        &self,
        except: Option<SessionKey>,
        mut assigned: impl FnMut(SessionKey) -> usize,
    ) -> Option<Chosen> {
        let members = self.members.read();
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % members.list.len().max(1);
        let (before, after) = members.list.split_at(start.min(members.list.len()));
        let mut best: Option<(usize, &Member)> = None;
        let mut asked = 0;
        for member in after.iter().chain(before).filter(|member| Some(member.entry.key) != except) {
            let attached = member.entry.attached.load();
            let Some(attached) = &*attached else { continue };
            let backlog = attached.outbox.backlog() + assigned(member.entry.key);
            if best.is_none_or(|(least, _)| backlog < least) {
                best = Some((backlog, member));
            }
            asked += 1;
            if backlog == 0 || asked == ASKED {
                break;
            }
        }
        best.map(|(_, member)| Chosen {
            entry: Arc::clone(&member.entry),
            levels: member.options.levels(),
            identifier: member.options.identifier,
        })
    }

    /// The members' sessions.
    pub(crate) fn members(&self) -> Vec<Arc<SessionEntry>> {
        self.members.read().list.iter().map(|member| Arc::clone(&member.entry)).collect()
    }
}

/// What joining a group asks the caller to do, in this order.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) group: Arc<ShareGroup>,
    /// Puts the group in the router. Also asked of those who join later, since they are to wait until it is there.
    pub(crate) route: RouteChange,
    /// The group has become durable: when this completes, all connected members are to take from its target.
    pub(crate) defined: Option<(TargetId, Ticket)>,
}

/// What leaving a group asks the caller to do.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The group is gone: take it out of the router.
    pub(crate) route: Option<RouteChange>,
    /// It has no durable member any more: delete this target.
    pub(crate) target: Option<TargetId>,
}

/// All share groups.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// By what members subscribed to; the names come from peers.
    map: Mutex<HashMap<FilterSpec, Arc<ShareGroup>>>,
}

impl Groups {
    /// Adds a member, or replaces its options. `define` is called, under the lock, when the group becomes durable:
    /// it hands the definition of a target to the engine. `None` when there are `max` members.
    pub(crate) fn join(
        &self,
        key: impl FnOnce() -> ShareKey,
        spec: &FilterSpec,
        entry: &Arc<SessionEntry>,
        options: SubscribeOptions,
        max: usize,
        define: impl FnOnce() -> (TargetId, Ticket),
    ) -> Option<Joined> {
        let mut map = self.map.lock();
        let (group, new) = match map.get(spec) {
            Some(group) => (Arc::clone(group), false),
            None => {
                let group = Arc::new(ShareGroup {
                    key: key(),
                    spec: spec.clone(),
                    members: RwLock::default(),
                    turn: AtomicUsize::new(0),
                });
                (group, true)
            }
        };
        let mut members = group.members.write();
        let mut defined = None;
        match members.list.iter().position(|member| member.entry.key == entry.key) {
            Some(at) => {
                if let Some(member) = members.list.get_mut(at) {
                    member.options = options;
                }
            }
            None if members.list.len() >= max => return None,
            None => {
                members.list.push(Member { entry: Arc::clone(entry), options });
                members.durable += usize::from(entry.target.is_some());
                if entry.target.is_some() && members.target.is_none() {
                    let (target, ticket) = define();
                    members.target = Some(target);
                    defined = Some((target, ticket));
                }
            }
        }
        drop(members);
        if new {
            map.insert(spec.clone(), Arc::clone(&group));
        }
        let route = Change::Insert {
            filter: spec.filter().clone(),
            key: RouteKey::Share(group.key),
            value: Route::Share(Arc::clone(&group)),
        };
        Some(Joined { group, route, defined })
    }

    /// Removes a member.
    pub(crate) fn leave(&self, group: &Arc<ShareGroup>, session: SessionKey) -> Left {
        let mut map = self.map.lock();
        let mut members = group.members.write();
        let Some(at) = members.list.iter().position(|member| member.entry.key == session) else {
            return Left::default();
        };
        let member = members.list.swap_remove(at);
        members.durable -= usize::from(member.entry.target.is_some());
        let target = if members.durable == 0 { members.target.take() } else { None };
        let route = members.list.is_empty().then(|| {
            map.remove(&group.spec);
            Change::Remove { filter: group.spec.filter().clone(), key: RouteKey::Share(group.key) }
        });
        Left { route, target }
    }
}
