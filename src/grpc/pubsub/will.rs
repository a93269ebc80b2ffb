//! Wills as the contract writes them.

use std::time::Duration;

use crate::core::{Broker, CoreError, Will};
use crate::grpc::bounds::intake;
use crate::grpc::convert::duration;
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::message::Schedule;
use crate::types::clock;

use super::publish::inbound_of;

/// A will that can be published when its time comes.
///
/// # Errors
/// [`CoreError::Invalid`] and [`CoreError::TooLarge`] with the field's path below the will.
pub(super) fn will_of(broker: &Broker, will: v1::Will) -> Result<Box<Will>, CoreError> {
    let message = will.message.ok_or_else(|| CoreError::invalid("message", "must be given"))?;
    let delay = match &will.delay {
        Some(delay) => duration("delay", delay)?,
        None => Duration::ZERO,
    };
    if let Some(schedule) = &message.schedule {
        let field = match schedule {
            Schedule::Delay(_) => "message.delay",
            Schedule::DeliverAt(_) => "message.deliver_at",
        };
        return Err(CoreError::invalid(field, "a will is delayed by its own `delay` alone"));
    }
    let now = clock::unix_now();
    let below = |error: CoreError| error.within("message");
    let inbound = inbound_of(intake(broker, now), message).map_err(below)?;
    let expiry = inbound.message.expires_at.map(|at| at.since(now));
    let will = Will::new(inbound, delay, expiry);
    will.check(broker.limits()).map_err(below)?;
    Ok(Box::new(will))
}
