//! Packets of MQTT 3.1.1 and 5 as rumqttc writes and reads them, for both versions alike.

use anyhow::{Result, bail};
use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use rumqttc::mqttbytes::{self, QoS, v4};
use rumqttc::v5::mqttbytes::{self as mqttbytes5, QoS as QoS5, v5};

/// Longest packet that is read or written, bytes.
const LONGEST: usize = 16 << 20;
/// How long a session of MQTT 5 outlives its connection, s.
const EXPIRY: u32 = 3600;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Version {
    #[value(name = "3.1.1")]
    V4,
    #[value(name = "5")]
    V5,
}

/// What a client hears; `true` where it stands for success.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet {
    /// success, session present, how many publishes above QoS 0 may be in flight
    ConnAck(bool, bool, usize),
    SubAck(bool),
    Publish {
        qos: u8,
        id: u16,
        payload: Bytes,
    },
    PubAck(u16, bool),
    PubRec(u16, bool),
    PubRel(u16),
    PubComp(u16, bool),
    PingResp,
}

/// A publish that is sent again and again, with another payload each time.
pub enum Template {
    V4(v4::Publish),
    V5(v5::Publish),
}

/// What a client answers with.
#[derive(Clone, Copy)]
pub enum Answer {
    /// PUBACK
    Ack,
    /// PUBREC
    Receive,
    /// PUBREL
    Release,
    /// PUBCOMP
    Complete,
}

fn qos4(qos: u8) -> QoS {
    mqttbytes::qos(qos).unwrap_or(QoS::ExactlyOnce)
}

fn qos5(qos: u8) -> QoS5 {
    mqttbytes5::qos(qos).unwrap_or(QoS5::ExactlyOnce)
}

impl Template {
    pub fn new(version: Version, topic: &str, qos: u8, retain: bool) -> Self {
        match version {
            Version::V4 => {
                let mut publish = v4::Publish::new(topic, qos4(qos), Vec::new());
                publish.retain = retain;
                Template::V4(publish)
            }
            Version::V5 => {
                let mut publish = v5::Publish::new(topic, qos5(qos), Bytes::new(), None);
                publish.retain = retain;
                Template::V5(publish)
            }
        }
    }

    pub fn write(&mut self, id: u16, payload: Bytes, out: &mut BytesMut) -> Result<()> {
        match self {
            Template::V4(publish) => {
                (publish.pkid, publish.payload) = (id, payload);
                publish.write(out)?;
            }
            Template::V5(publish) => {
                (publish.pkid, publish.payload) = (id, payload);
                publish.write(out)?;
            }
        }
        Ok(())
    }
}

impl Version {
    pub fn connect(self, client: &str, clean: bool, out: &mut BytesMut) -> Result<()> {
        match self {
            Version::V4 => {
                let mut connect = v4::Connect::new(client);
                (connect.keep_alive, connect.clean_session) = (600, clean);
                v4::Packet::Connect(connect).write(out, LONGEST)?;
            }
            Version::V5 => {
                let mut properties = v5::ConnectProperties::new();
                properties.session_expiry_interval = (!clean).then_some(EXPIRY);
                let connect = v5::Connect {
                    keep_alive: 600,
                    client_id: client.into(),
                    clean_start: clean,
                    properties: Some(properties),
                };
                v5::Packet::Connect(connect, None, None).write(out, None)?;
            }
        }
        Ok(())
    }

    pub fn subscribe(self, filters: &[String], qos: u8, out: &mut BytesMut) -> Result<()> {
        match self {
            Version::V4 => {
                let filters = filters.iter().map(|f| v4::SubscribeFilter::new(f.clone(), qos4(qos)));
                let mut subscribe = v4::Subscribe::new_many(filters);
                subscribe.pkid = 1;
                v4::Packet::Subscribe(subscribe).write(out, LONGEST)?;
            }
            Version::V5 => {
                let filters = filters.iter().map(|f| v5::Filter::new(f.clone(), qos5(qos)));
                let mut subscribe = v5::Subscribe::new_many(filters, None);
                subscribe.pkid = 1;
                v5::Packet::Subscribe(subscribe).write(out, None)?;
            }
        }
        Ok(())
    }

    pub fn answer(self, answer: Answer, id: u16, out: &mut BytesMut) -> Result<()> {
        match self {
            Version::V4 => {
                let packet = match answer {
                    Answer::Ack => v4::Packet::PubAck(v4::PubAck::new(id)),
                    Answer::Receive => v4::Packet::PubRec(v4::PubRec::new(id)),
                    Answer::Release => v4::Packet::PubRel(v4::PubRel::new(id)),
                    Answer::Complete => v4::Packet::PubComp(v4::PubComp::new(id)),
                };
                packet.write(out, LONGEST)?;
            }
            Version::V5 => {
                let packet = match answer {
                    Answer::Ack => v5::Packet::PubAck(v5::PubAck::new(id, None)),
                    Answer::Receive => v5::Packet::PubRec(v5::PubRec::new(id, None)),
                    Answer::Release => v5::Packet::PubRel(v5::PubRel::new(id, None)),
                    Answer::Complete => v5::Packet::PubComp(v5::PubComp::new(id, None)),
                };
                packet.write(out, None)?;
            }
        }
        Ok(())
    }

    pub fn disconnect(self, out: &mut BytesMut) -> Result<()> {
        match self {
            Version::V4 => v4::Packet::Disconnect.write(out, LONGEST)?,
            Version::V5 => {
                let reason = v5::DisconnectReasonCode::NormalDisconnection;
                v5::Packet::Disconnect(v5::Disconnect::new(reason)).write(out, None)?
            }
        };
        Ok(())
    }

    /// Takes the next whole packet.
    pub fn read(self, from: &mut BytesMut) -> Result<Option<Packet>> {
        match self {
            Version::V4 => match v4::Packet::read(from, LONGEST) {
                Ok(packet) => known4(packet).map(Some),
                Err(mqttbytes::Error::InsufficientBytes(_)) => Ok(None),
                Err(e) => Err(e.into()),
            },
            Version::V5 => match v5::Packet::read(from, Some(LONGEST as u32)) {
                Ok(packet) => known5(packet).map(Some),
                Err(mqttbytes5::Error::InsufficientBytes(_)) => Ok(None),
                Err(e) => Err(e.into()),
            },
        }
    }
}

fn known4(packet: v4::Packet) -> Result<Packet> {
    Ok(match packet {
        v4::Packet::ConnAck(ack) => {
            Packet::ConnAck(ack.code == v4::ConnectReturnCode::Success, ack.session_present, usize::MAX)
        }
        v4::Packet::SubAck(ack) => {
            Packet::SubAck(ack.return_codes.iter().all(|c| *c != v4::SubscribeReasonCode::Failure))
        }
        v4::Packet::Publish(publish) => {
            Packet::Publish { qos: publish.qos as u8, id: publish.pkid, payload: publish.payload }
        }
        v4::Packet::PubAck(ack) => Packet::PubAck(ack.pkid, true),
        v4::Packet::PubRec(ack) => Packet::PubRec(ack.pkid, true),
        v4::Packet::PubRel(ack) => Packet::PubRel(ack.pkid),
        v4::Packet::PubComp(ack) => Packet::PubComp(ack.pkid, true),
        v4::Packet::PingResp => Packet::PingResp,
        other => bail!("unexpected from a server: {other:?}"),
    })
}

fn known5(packet: v5::Packet) -> Result<Packet> {
    use v5::{PubAckReason, PubCompReason, PubRecReason};
    Ok(match packet {
        v5::Packet::ConnAck(ack) => {
            let most = ack.properties.as_ref().and_then(|p| p.receive_max).map_or(65535, usize::from);
            Packet::ConnAck(ack.code == v5::ConnectReturnCode::Success, ack.session_present, most)
        }
        v5::Packet::SubAck(ack) => {
            Packet::SubAck(ack.return_codes.iter().all(|c| matches!(c, v5::SubscribeReasonCode::Success(_))))
        }
        v5::Packet::Publish(publish) => {
            Packet::Publish { qos: publish.qos as u8, id: publish.pkid, payload: publish.payload }
        }
        v5::Packet::PubAck(ack) => Packet::PubAck(
            ack.pkid,
            matches!(ack.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers),
        ),
        v5::Packet::PubRec(ack) => Packet::PubRec(
            ack.pkid,
            matches!(ack.reason, PubRecReason::Success | PubRecReason::NoMatchingSubscribers),
        ),
        v5::Packet::PubRel(ack) => Packet::PubRel(ack.pkid),
        v5::Packet::PubComp(ack) => Packet::PubComp(ack.pkid, ack.reason == PubCompReason::Success),
        v5::Packet::PingResp(_) => Packet::PingResp,
        other => bail!("unexpected from a server: {other:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server would send, as a client of the other direction writes it.
    #[test]
    fn packets_are_read_as_they_were_written() {
        for version in [Version::V4, Version::V5] {
            for qos in 0..3 {
                let mut bytes = BytesMut::new();
                let payload = Bytes::from_static(b"payload");
                let id = if qos == 0 { 0 } else { 7 };
                Template::new(version, "a/b", qos, false).write(id, payload.clone(), &mut bytes).unwrap();
                version.answer(Answer::Release, 9, &mut bytes).unwrap();
                let mut whole = bytes.clone();
                assert_eq!(version.read(&mut whole).unwrap(), Some(Packet::Publish { qos, id, payload }));
                assert_eq!(version.read(&mut whole).unwrap(), Some(Packet::PubRel(9)));
                assert_eq!(version.read(&mut whole).unwrap(), None);
                bytes.truncate(5);
                assert_eq!(version.read(&mut bytes).unwrap(), None);
                assert_eq!(bytes.len(), 5);
            }
        }
    }
}
