//! Reason codes: one table for both versions, with the packets that may carry each.

use super::frame::PacketType;

macro_rules! reason_codes {
    ($($value:literal $name:ident $text:literal: $($packet:ident)+;)+) => {
        /// Why something ended as it did. Codes from 0x80 up are failures.
        ///
        /// 0x00 also means "normal disconnection" and "granted QoS 0". In 3.1.1 the same values stand for
        /// CONNACK's return codes, translated by the codec, and SUBACK's 0x80.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum ReasonCode {
            $(#[doc = $text] $name = $value,)+
        }

        impl ReasonCode {
            /// Every code there is, ascending.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The code with this number, if 5.0 defines it.
            #[must_use]
            pub const fn from_u8(value: u8) -> Option<Self> {
                match value {
                    $($value => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The name 5.0 gives it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            const fn packets(self) -> u16 {
                match self {
                    $(Self::$name => 0 $(| PacketType::$packet.bit())+,)+
                }
            }
        }
    };
}

// MQTT 5, table 2.6, with the tables of each packet. 0x00 is SUBACK's granted QoS 0 too.
reason_codes! {
    0x00 Success "Success": ConnAck PubAck PubRec PubRel PubComp SubAck UnsubAck Disconnect Auth;
    0x01 GrantedQos1 "Granted QoS 1": SubAck;
    0x02 GrantedQos2 "Granted QoS 2": SubAck;
    0x04 DisconnectWithWill "Disconnect with Will Message": Disconnect;
    0x10 NoMatchingSubscribers "No matching subscribers": PubAck PubRec;
    0x11 NoSubscriptionExisted "No subscription existed": UnsubAck;
    0x18 ContinueAuthentication "Continue authentication": Auth;
    0x19 ReAuthenticate "Re-authenticate": Auth;
    0x80 UnspecifiedError "Unspecified error": ConnAck PubAck PubRec SubAck UnsubAck Disconnect;
    0x81 MalformedPacket "Malformed Packet": ConnAck Disconnect;
    0x82 ProtocolError "Protocol Error": ConnAck Disconnect;
    0x83 ImplementationSpecificError "Implementation specific error":
        ConnAck PubAck PubRec SubAck UnsubAck Disconnect;
    0x84 UnsupportedProtocolVersion "Unsupported Protocol Version": ConnAck;
    0x85 ClientIdentifierNotValid "Client Identifier not valid": ConnAck;
    0x86 BadUserNameOrPassword "Bad User Name or Password": ConnAck;
    0x87 NotAuthorized "Not authorized": ConnAck PubAck PubRec SubAck UnsubAck Disconnect;
    0x88 ServerUnavailable "Server unavailable": ConnAck;
    0x89 ServerBusy "Server busy": ConnAck Disconnect;
    0x8a Banned "Banned": ConnAck;
    0x8b ServerShuttingDown "Server shutting down": Disconnect;
    0x8c BadAuthenticationMethod "Bad authentication method": ConnAck Disconnect;
    0x8d KeepAliveTimeout "Keep Alive timeout": Disconnect;
    0x8e SessionTakenOver "Session taken over": Disconnect;
    0x8f TopicFilterInvalid "Topic Filter invalid": SubAck UnsubAck Disconnect;
    0x90 TopicNameInvalid "Topic Name invalid": ConnAck PubAck PubRec Disconnect;
    0x91 PacketIdentifierInUse "Packet Identifier in use": PubAck PubRec SubAck UnsubAck;
    0x92 PacketIdentifierNotFound "Packet Identifier not found": PubRel PubComp;
    0x93 ReceiveMaximumExceeded "Receive Maximum exceeded": Disconnect;
    0x94 TopicAliasInvalid "Topic Alias invalid": Disconnect;
    0x95 PacketTooLarge "Packet too large": ConnAck Disconnect;
    0x96 MessageRateTooHigh "Message rate too high": Disconnect;
    0x97 QuotaExceeded "Quota exceeded": ConnAck PubAck PubRec SubAck Disconnect;
    0x98 AdministrativeAction "Administrative action": Disconnect;
    0x99 PayloadFormatInvalid "Payload format invalid": ConnAck PubAck PubRec Disconnect;
    0x9a RetainNotSupported "Retain not supported": ConnAck Disconnect;
    0x9b QosNotSupported "QoS not supported": ConnAck Disconnect;
    0x9c UseAnotherServer "Use another server": ConnAck Disconnect;
    0x9d ServerMoved "Server moved": ConnAck Disconnect;
    0x9e SharedSubscriptionsNotSupported "Shared Subscriptions not supported": SubAck Disconnect;
    0x9f ConnectionRateExceeded "Connection rate exceeded": ConnAck Disconnect;
    0xa0 MaximumConnectTime "Maximum connect time": Disconnect;
    0xa1 SubscriptionIdentifiersNotSupported "Subscription Identifiers not supported": SubAck Disconnect;
    0xa2 WildcardSubscriptionsNotSupported "Wildcard Subscriptions not supported": SubAck Disconnect;
}

impl ReasonCode {
    /// Whether it tells of a failure.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        self as u8 >= 0x80
    }

    /// Whether 5.0 lists it for this packet, from either side.
    #[must_use]
    pub const fn permitted_in(self, packet: PacketType) -> bool {
        self.packets() & packet.bit() != 0
    }

    /// CONNACK's return code in 3.1.1, or `None` when none fits: then the server closes without a CONNACK
    /// [3.1.1: MQTT-3.2.2-6].
    #[must_use]
    pub const fn to_return_code(self) -> Option<u8> {
        Some(match self {
            Self::Success => 0,
            Self::UnsupportedProtocolVersion => 1,
            Self::ClientIdentifierNotValid => 2,
            Self::ServerUnavailable
            | Self::ServerBusy
            | Self::QuotaExceeded
            | Self::ConnectionRateExceeded => 3,
            Self::BadUserNameOrPassword => 4,
            Self::NotAuthorized | Self::Banned => 5,
            _ => return None,
        })
    }

    /// The reason code for a CONNACK return code of 3.1.1; `None` for the reserved ones.
    #[must_use]
    pub const fn from_return_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Success,
            1 => Self::UnsupportedProtocolVersion,
            2 => Self::ClientIdentifierNotValid,
            3 => Self::ServerUnavailable,
            4 => Self::BadUserNameOrPassword,
            5 => Self::NotAuthorized,
            _ => return None,
        })
    }
}

impl std::fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (0x{:02x})", self.name(), *self as u8)
    }
}
