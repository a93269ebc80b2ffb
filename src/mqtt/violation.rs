//! What a peer is told when something goes wrong: the one place where errors become reason codes.
//!
//! A [`Violation`] is a rule that the peer broke: it ends the connection. A [`CoreError`] is a refusal of the broker: it
//! goes into the acknowledgement of what was asked. Both have a code for 5.0; 3.1.1 has codes in CONNACK and SUBACK
//! alone, elsewhere it can only be told by closing.

use std::time::Duration;

use super::codec::{DecodeError, PacketType, ReasonCode};
use crate::auth::scram::ScramError;
use crate::core::{CloseReason, CoreError, Published};
use crate::engine::EngineError;

/// How long a 3.1.1 publisher that was refused for want of room is not read before its connection is closed: it has no
/// word for "later", and would come back at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A rule that the peer broke. The connection is closed, in 5.0 after a DISCONNECT with the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// What came is no packet.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A packet that only servers send.
    #[error("{0:?} from a client")]
    FromServersAlone(PacketType),
    /// A packet that only clients send, or that was not agreed on.
    #[error("{0:?} from a server")]
    NotFromServers(PacketType),
    /// More QoS 1 and 2 publishes unacknowledged than were announced.
    #[error("more QoS 1 and 2 publishes unacknowledged than the receive maximum of {0}")]
    ReceiveMaximum(u16),
    /// An alias above the announced maximum.
    #[error("topic alias {alias} is above the maximum of {maximum}")]
    TopicAliasAboveMaximum {
        /// As sent.
        alias: u16,
        /// As announced.
        maximum: u16,
    },
    /// An alias that stands for nothing yet.
    #[error("topic alias {0} was not given a topic")]
    TopicAliasUnknown(u16),
    /// A topic name that cannot be one.
    #[error("the topic name is not one, or longer than {0} bytes")]
    TopicName(usize),
    /// A subscription identifier in a client's PUBLISH.
    #[error("subscription identifier in a client's PUBLISH")]
    SubscriptionIdentifier,
    /// PUBACK for a delivery at QoS 2, or PUBREC for one at QoS 1.
    #[error("{0:?} does not fit the delivery that it names")]
    WrongAcknowledgement(PacketType),
    /// A session that was to end with the connection is to outlive it after all.
    #[error("DISCONNECT sets a session expiry where CONNECT had none")]
    SessionExpiryRaised,
    /// AUTH where no method was agreed.
    #[error("AUTH without an authentication method in CONNECT")]
    Auth,
    /// AUTH with a code that is not to come now, or another packet while authentication is on.
    #[error("this packet cannot come at this point of the authentication")]
    AuthOutOfTurn,
    /// AUTH with another method than CONNECT.
    #[error("AUTH with another authentication method than CONNECT")]
    AnotherMethod,
    /// The client is not who it says.
    #[error("not authenticated: {0}")]
    NotAuthenticated(ScramError),
    /// It was authenticated again, as another user.
    #[error("authenticated as another user than before")]
    AnotherUser,
    /// A QoS above the announced maximum, in PUBLISH or in a will.
    #[error("the highest QoS is {0} here")]
    QosAboveMaximum(u8),
    /// Retained, in PUBLISH or in a will.
    #[error("nothing is retained here")]
    RetainNotAvailable,
    /// A wildcard in a filter.
    #[error("filters have no wildcards here")]
    WildcardsNotAvailable,
    /// A shared subscription.
    #[error("subscriptions are not shared here")]
    SharesNotAvailable,
    /// A subscription identifier.
    #[error("subscriptions have no identifiers here")]
    IdentifiersNotAvailable,
    /// Nothing came for one and a half keep alive periods.
    #[error("nothing came for one and a half keep alive periods")]
    KeepAlive,
}

impl Violation {
    /// The code for DISCONNECT, or for CONNACK before that.
    pub(super) const fn code(&self) -> ReasonCode {
        self.verdict().0
    }

    /// The rule, as the standard numbers it.
    pub(super) const fn rule(&self) -> &'static str {
        self.verdict().1
    }

    const fn verdict(&self) -> (ReasonCode, &'static str) {
        use ReasonCode as R;
        match self {
            Self::Decode(error) => (error.reason_code(), error.rule()),
            Self::FromServersAlone(_) | Self::NotFromServers(_) => {
                (R::ProtocolError, "3.1.1 and 5: section 2.1, table 2.1")
            }
            Self::ReceiveMaximum(_) => (R::ReceiveMaximumExceeded, "5: [MQTT-3.3.4-7]"),
            Self::TopicAliasAboveMaximum { .. } => (R::TopicAliasInvalid, "5: [MQTT-3.3.2-9]"),
            Self::TopicAliasUnknown(_) => (R::ProtocolError, "5: section 3.3.2.3.4"),
            Self::TopicName(_) => (R::TopicNameInvalid, "[MQTT-4.7.3-3]"),
            Self::SubscriptionIdentifier => (R::ProtocolError, "5: [MQTT-3.3.4-6]"),
            Self::WrongAcknowledgement(_) => (R::ProtocolError, "3.1.1: [MQTT-2.3.1-6]; 5: [MQTT-2.2.1-5]"),
            Self::SessionExpiryRaised => (R::ProtocolError, "5: section 3.14.2.2.2"),
            Self::Auth => (R::ProtocolError, "5: [MQTT-4.12.0-7]"),
            Self::AuthOutOfTurn => (R::ProtocolError, "5: [MQTT-4.12.0-3], [MQTT-3.1.2-30]"),
            Self::AnotherMethod => (R::ProtocolError, "5: [MQTT-4.12.0-5], [MQTT-4.12.1-1]"),
            Self::NotAuthenticated(_) => (R::NotAuthorized, "5: [MQTT-4.12.0-4], [MQTT-4.12.1-2]"),
            Self::AnotherUser => (R::NotAuthorized, "5: [MQTT-4.12.1-2]"),
            Self::QosAboveMaximum(_) => (R::QosNotSupported, "5: [MQTT-3.2.2-11], [MQTT-3.2.2-12]"),
            Self::RetainNotAvailable => (R::RetainNotSupported, "5: [MQTT-3.2.2-13], [MQTT-3.2.2-14]"),
            Self::WildcardsNotAvailable => (R::WildcardSubscriptionsNotSupported, "5: section 3.2.2.3.11"),
            Self::SharesNotAvailable => (R::SharedSubscriptionsNotSupported, "5: section 3.2.2.3.13"),
            Self::IdentifiersNotAvailable => {
                (R::SubscriptionIdentifiersNotSupported, "5: section 3.2.2.3.12")
            }
            Self::KeepAlive => (R::KeepAliveTimeout, "3.1.1: [MQTT-3.1.2-24]; 5: [MQTT-3.1.2-22]"),
        }
    }
}

/// The code that tells `error` in the packet that answers the request.
pub(super) fn refusal(error: &CoreError, packet: PacketType) -> ReasonCode {
    use ReasonCode as R;
    let topic = match packet {
        PacketType::SubAck | PacketType::UnsubAck => R::TopicFilterInvalid,
        PacketType::ConnAck => R::ClientIdentifierNotValid,
        _ => R::TopicNameInvalid,
    };
    let code = match error {
        CoreError::Invalid { .. } | CoreError::NotFound { .. } => topic,
        CoreError::TooLarge { field, .. } => match field.as_str() {
            "topic" | "filter" | "reply_to" => topic,
            _ => R::QuotaExceeded,
        },
        CoreError::Unsupported(_)
        | CoreError::NoResponders { .. }
        | CoreError::ResponderLost { .. }
        | CoreError::BadReply { .. } => R::ImplementationSpecificError,
        CoreError::AlreadyExists { .. }
        | CoreError::OutOfRange { .. }
        | CoreError::OtherNext { .. }
        | CoreError::Lease(_) => R::UnspecifiedError,
        // A client's: its session is another principal's.
        CoreError::Precondition { .. } if matches!(packet, PacketType::ConnAck) => {
            R::ClientIdentifierNotValid
        }
        CoreError::Precondition { .. } => R::UnspecifiedError,
        CoreError::Denied(_) => R::NotAuthorized,
        CoreError::Item { error, .. } => return refusal(error, packet),
        CoreError::Full { .. }
        | CoreError::Limit { .. }
        | CoreError::LowDisk { .. }
        | CoreError::Unread { .. } => R::QuotaExceeded,
        CoreError::Draining => match packet {
            PacketType::ConnAck => R::ServerUnavailable,
            _ => R::ServerShuttingDown,
        },
        CoreError::Engine(error) => match error {
            EngineError::Failed(_)
            | EngineError::Stopped
            | EngineError::NoSuchTarget(_)
            | EngineError::Damaged(_) => R::UnspecifiedError,
        },
    };
    if code.permitted_in(packet) { code } else { R::UnspecifiedError }
}

/// What a publish that was refused does to its connection, beside the acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consequence {
    /// None: the acknowledgement says it. 3.1.1 has no word for it, and is closed after so long.
    Told(Duration),
    /// Nothing is acknowledged: the publisher keeps the message and comes again.
    Closed(ReasonCode),
}

/// See [`Consequence`].
pub(super) fn consequence(error: &CoreError) -> Consequence {
    match error {
        CoreError::Draining => Consequence::Closed(ReasonCode::ServerShuttingDown),
        CoreError::Engine(_) => Consequence::Closed(ReasonCode::UnspecifiedError),
        CoreError::Item { error, .. } => consequence(error),
        CoreError::Full { .. } | CoreError::Limit { .. } | CoreError::LowDisk { .. } => {
            Consequence::Told(PATIENCE)
        }
        CoreError::Invalid { .. }
        | CoreError::TooLarge { .. }
        | CoreError::Unsupported(_)
        | CoreError::NotFound { .. }
        | CoreError::AlreadyExists { .. }
        | CoreError::Precondition { .. }
        | CoreError::OutOfRange { .. }
        | CoreError::OtherNext { .. }
        | CoreError::Denied(_)
        | CoreError::NoResponders { .. }
        | CoreError::Unread { .. }
        | CoreError::ResponderLost { .. }
        | CoreError::BadReply { .. }
        | CoreError::Lease(_) => Consequence::Told(Duration::ZERO),
    }
}

/// The code of an accepted publish.
pub(super) const fn accepted(published: &Published) -> ReasonCode {
    if published.subscribers == 0 && published.queues == 0 && published.streams == 0 {
        ReasonCode::NoMatchingSubscribers
    } else {
        ReasonCode::Success
    }
}

/// The code of a DISCONNECT that the core asked for.
pub(super) const fn closed(reason: CloseReason) -> ReasonCode {
    match reason {
        CloseReason::TakenOver => ReasonCode::SessionTakenOver, // 5: [MQTT-3.1.4-3]
        CloseReason::Deleted | CloseReason::Disconnected => ReasonCode::AdministrativeAction,
        CloseReason::Draining => ReasonCode::ServerShuttingDown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::LeaseError;
    use crate::types::TargetId;

    /// Every kind of error, with its code in PUBACK, SUBACK, UNSUBACK and CONNACK, and whether 3.1.1 is closed at once,
    /// later, or everyone is.
    fn every_error() -> Vec<(CoreError, [u8; 4], char)> {
        let text = || "x".to_owned();
        let too_large =
            |field: &str| CoreError::TooLarge { field: field.into(), len: 2, max: 1, unit: "bytes" };
        vec![
            (CoreError::Invalid { field: text(), what: text() }, [0x90, 0x8f, 0x8f, 0x85], 'n'),
            (too_large("payload"), [0x97, 0x97, 0x80, 0x97], 'n'),
            (too_large("topic"), [0x90, 0x8f, 0x8f, 0x85], 'n'),
            (CoreError::Unsupported(text()), [0x83; 4], 'n'),
            (CoreError::NotFound { kind: "queue", name: text() }, [0x90, 0x8f, 0x8f, 0x85], 'n'),
            (CoreError::AlreadyExists { kind: "queue", name: text(), difference: text() }, [0x80; 4], 'n'),
            (CoreError::Precondition { reason: "X", what: text() }, [0x80, 0x80, 0x80, 0x85], 'n'),
            (CoreError::OutOfRange { field: text(), what: text() }, [0x80; 4], 'n'),
            (CoreError::OtherNext { stream: text(), next: 2, expected: 1 }, [0x80; 4], 'n'),
            (CoreError::Denied(text()), [0x87; 4], 'n'),
            (CoreError::Lease(LeaseError::Expired), [0x80; 4], 'n'),
            (CoreError::Lease(LeaseError::Unknown), [0x80; 4], 'n'),
            (CoreError::Full { queue: text(), bound: text() }, [0x97, 0x97, 0x80, 0x97], 'l'),
            (CoreError::Denied(text()).of_item(2), [0x87; 4], 'n'),
            (CoreError::Limit { what: text(), max: 1 }, [0x97, 0x97, 0x80, 0x97], 'l'),
            (CoreError::LowDisk { free_bytes: 1, watermark_bytes: 2 }, [0x97, 0x97, 0x80, 0x97], 'l'),
            (CoreError::NoResponders { service: text() }, [0x83; 4], 'n'),
            (CoreError::Unread { service: text() }, [0x97, 0x97, 0x80, 0x97], 'n'),
            (CoreError::ResponderLost { service: text(), responder: text() }, [0x83; 4], 'n'),
            (CoreError::BadReply { responder: text(), what: text() }, [0x83; 4], 'n'),
            (CoreError::Draining, [0x80, 0x80, 0x80, 0x88], 'e'),
            (CoreError::Engine(EngineError::Failed(text())), [0x80; 4], 'e'),
            (CoreError::Engine(EngineError::Stopped), [0x80; 4], 'e'),
            (CoreError::Engine(EngineError::NoSuchTarget(TargetId(1))), [0x80; 4], 'e'),
            (CoreError::Engine(EngineError::Damaged(text())), [0x80; 4], 'e'),
        ]
    }

    #[test]
    fn every_error_has_a_code_that_its_packet_permits() {
        let packets = [PacketType::PubAck, PacketType::SubAck, PacketType::UnsubAck, PacketType::ConnAck];
        for (error, codes, when) in every_error() {
            for (packet, code) in packets.into_iter().zip(codes) {
                let told = refusal(&error, packet);
                assert_eq!(told as u8, code, "{error:?} in {packet:?}");
                assert!(told.permitted_in(packet) && told.is_failure());
            }
            assert_eq!(refusal(&error, PacketType::PubRec), refusal(&error, PacketType::PubAck));
            let closed = match consequence(&error) {
                Consequence::Told(Duration::ZERO) => 'n',
                Consequence::Told(_) => 'l',
                Consequence::Closed(code) => {
                    assert!(code.permitted_in(PacketType::Disconnect));
                    'e'
                }
            };
            assert_eq!(closed, when, "{error:?}");
        }
    }

    #[test]
    fn what_ends_a_connection_can_be_told() {
        let violations = [
            (Violation::Decode(DecodeError::Truncated), 0x81),
            (Violation::FromServersAlone(PacketType::SubAck), 0x82),
            (Violation::ReceiveMaximum(1), 0x93),
            (Violation::TopicAliasAboveMaximum { alias: 2, maximum: 1 }, 0x94),
            (Violation::TopicAliasUnknown(1), 0x82),
            (Violation::TopicName(1), 0x90),
            (Violation::SubscriptionIdentifier, 0x82),
            (Violation::WrongAcknowledgement(PacketType::PubAck), 0x82),
            (Violation::SessionExpiryRaised, 0x82),
            (Violation::Auth, 0x82),
            (Violation::AuthOutOfTurn, 0x82),
            (Violation::AnotherMethod, 0x82),
            (Violation::NotAuthenticated(ScramError::Wrong), 0x87),
            (Violation::AnotherUser, 0x87),
            (Violation::QosAboveMaximum(1), 0x9b),
            (Violation::RetainNotAvailable, 0x9a),
            (Violation::WildcardsNotAvailable, 0xa2),
            (Violation::SharesNotAvailable, 0x9e),
            (Violation::IdentifiersNotAvailable, 0xa1),
            (Violation::KeepAlive, 0x8d),
        ];
        for (violation, code) in violations {
            assert_eq!(violation.code() as u8, code, "{violation}");
            assert!(violation.code().permitted_in(PacketType::Disconnect));
            assert!(!violation.rule().is_empty());
        }
        for reason in
            [CloseReason::TakenOver, CloseReason::Deleted, CloseReason::Disconnected, CloseReason::Draining]
        {
            assert!(closed(reason).permitted_in(PacketType::Disconnect));
        }
    }
}
