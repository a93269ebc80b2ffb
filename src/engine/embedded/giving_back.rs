//! Leases that their consumers give back.

use std::time::Duration;

use super::Embedded;
use super::burial::{self, Burial, Why};
use super::keeper::{self, Job};
use super::lanes::Work;
use super::returns::{Return, Returned};
use crate::engine::{EngineError, LeaseRef, Nack, Settled, Ticket};
use crate::types::TargetId;
use crate::types::clock::unix_now;

impl Embedded {
    /// See [`Engine::nack`](crate::engine::Engine::nack).
    pub(super) fn give_back(
        &self,
        target: TargetId,
        leases: &[LeaseRef],
        how: Nack,
        delay: Option<Duration>,
    ) -> Result<Settled, EngineError> {
        let target = self.shared.target(target)?;
        let settings = target.settings.load_full();
        let at = unix_now();
        let until = delay.map(|delay| at.after(delay).0);
        let bury = matches!(how, Nack::DeadLetter(_)) && settings.dead_letter.is_some();
        let back = match how {
            Nack::Release => Return::Released,
            Nack::Failed(_) | Nack::DeadLetter(_) => Return::Failed,
            Nack::Lost => Return::Lost,
        };
        let (mut failed, mut marks) = (Vec::new(), Vec::new());
        let (mut exhausted, mut last) = (Vec::new(), Vec::new());
        let _placing = self.shared.lanes.placing();
        {
            let mut state = target.state.lock();
            for (place, lease) in leases.iter().enumerate() {
                if bury {
                    match state.set_aside(lease) {
                        Ok(aside) => exhausted.extend(aside),
                        Err(error) => failed.push((place, error)),
                    }
                    continue;
                }
                match state.give_back(lease, back, settings.retries, until, at) {
                    Ok(Returned { entry, mark, exhausted: true, .. }) => {
                        exhausted.push((entry, mark.attempts));
                        last.push((entry, mark));
                    }
                    Ok(Returned { entry, mark, changed: true, .. }) => {
                        marks.push((entry.sequence, entry.location(), mark));
                    }
                    Ok(_) => {}
                    Err(error) => failed.push((place, error)),
                }
            }
            self.shared.tasks.register(&target, &mut state, at);
        }
        if back == Return::Lost {
            self.shared.counts.leases_lost.add((leases.len() - failed.len()) as u64);
        }
        let (reply, durable) = Ticket::new();
        let reply = if exhausted.is_empty() {
            Some(reply)
        } else {
            let why = match how {
                Nack::DeadLetter(said) if bury => Why::Said(said),
                Nack::DeadLetter(how) => Why::Exhausted(Some(how)),
                Nack::Failed(how) => Why::Exhausted(how),
                Nack::Lost => Why::Exhausted(Some(burial::LOST)),
                Nack::Release => Why::Exhausted(None),
            };
            // A crash before they are moved makes nobody get them once more.
            keeper::write_marks(&self.shared, &target, last);
            let reply = if marks.is_empty() { Some(reply) } else { None };
            self.shared.tasks.push(Job::Bury(Burial::new(target.clone(), exhausted, why, reply)));
            None
        };
        if marks.is_empty() {
            if let Some(reply) = reply {
                drop(reply.send(Ok(())));
            }
        } else {
            self.shared.lanes.push(Work::Mark { target, marks, reply });
        }
        Ok(Settled { failed, durable })
    }
}
