//! Enhanced authentication of MQTT 5 with SCRAM-SHA-256 [5: section 4.12].

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::{digest, hmac, pbkdf2};
use stafett::mqtt::codec::{Auth, AuthProperties};

use super::*;

const METHOD: &str = "SCRAM-SHA-256";

/// The client's side of one exchange.
struct Scram {
    bare: String,
    password: &'static str,
    nonce: &'static str,
}

fn hmac(key: &[u8], data: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, data.as_bytes()).as_ref().to_vec()
}

impl Scram {
    fn new(user: &str, password: &'static str) -> Self {
        let nonce = "fyko+d2lbbFgONRv9qkxdawL";
        Self { bare: format!("n={user},r={nonce}"), password, nonce }
    }

    fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// The last message that answers this challenge, and what the server has to say then.
    fn last(&self, challenge: &Bytes) -> (String, String) {
        let challenge = std::str::from_utf8(challenge).unwrap();
        let fields: Vec<_> = challenge.split(',').map(|field| &field[2..]).collect();
        let [nonce, salt, iterations] = fields[..] else { panic!("{challenge}") };
        assert!(nonce.len() > self.nonce.len() + 20 && nonce.starts_with(self.nonce));
        let mut salted = [0; 32];
        let (salt, iterations) = (BASE64.decode(salt).unwrap(), iterations.parse().unwrap());
        let iterations = NonZeroU32::new(iterations).unwrap();
        let password = self.password.as_bytes();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password, &mut salted);
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{challenge},{without_proof}", self.bare);
        let client_key = hmac(&salted, "Client Key");
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        let signature = hmac(stored_key.as_ref(), &signed);
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, byte)| key ^ byte).collect();
        let server = hmac(&hmac(&salted, "Server Key"), &signed);
        (format!("{without_proof},p={}", BASE64.encode(proof)), format!("v={}", BASE64.encode(server)))
    }
}

fn with_method(mut connect: Connect, data: Option<&str>) -> Connect {
    connect.properties.authentication_method = Some(METHOD.into());
    connect.properties.authentication_data = data.map(|data| Bytes::copy_from_slice(data.as_bytes()));
    connect
}

fn auth(reason: ReasonCode, data: &str) -> Packet {
    let properties = AuthProperties {
        authentication_method: Some(METHOD.into()),
        authentication_data: Some(Bytes::copy_from_slice(data.as_bytes())),
        ..AuthProperties::default()
    };
    Packet::Auth(Auth { reason, properties: Some(Box::new(properties)) })
}

fn go_on(data: &str) -> Packet {
    auth(ReasonCode::ContinueAuthentication, data)
}

fn again(data: &str) -> Packet {
    auth(ReasonCode::ReAuthenticate, data)
}

/// The next packet is an AUTH with this code and the method, and says no more than its data.
async fn asked(peer: &mut Peer, reason: ReasonCode) -> Option<Bytes> {
    let Packet::Auth(auth) = peer.next().await else { panic!("no AUTH") };
    assert_eq!(auth.reason, reason);
    let properties = auth.properties.unwrap();
    // 5: [MQTT-4.12.0-5], [MQTT-3.15.2-2], [MQTT-3.15.2-3].
    assert_eq!(properties.authentication_method.as_deref(), Some(METHOD));
    assert_eq!((properties.reason_string.as_ref(), properties.user_properties.len()), (None, 0));
    properties.authentication_data
}

async fn challenged(peer: &mut Peer) -> Bytes {
    asked(peer, ReasonCode::ContinueAuthentication).await.unwrap()
}

/// Sends CONNECT and is asked for the last message.
async fn begun(broker: &Broker, connect: Connect, scram: &Scram) -> (Peer, Bytes) {
    let mut peer = Peer::open(broker.address("mqtt"), V5).await;
    peer.send(Packet::Connect(Box::new(with_method(connect, Some(&scram.first()))))).await;
    let challenge = challenged(&mut peer).await;
    (peer, challenge)
}

async fn authenticated(broker: &Broker, connect: Connect, scram: &Scram) -> Peer {
    let (mut peer, challenge) = begun(broker, connect, scram).await;
    let (last, signature) = scram.last(&challenge);
    peer.send(go_on(&last)).await;
    let Packet::ConnAck(connack) = peer.next().await else { panic!() };
    assert_eq!(connack.reason, ReasonCode::Success);
    // 5: [MQTT-4.12.0-5]. The server shows that it knows the user, too.
    assert_eq!(connack.properties.authentication_method.as_deref(), Some(METHOD));
    assert_eq!(connack.properties.authentication_data.as_deref(), Some(signature.as_bytes()));
    peer
}

/// CONNACK refuses with this code, then the connection ends.
async fn refused(mut peer: Peer, code: u8) {
    let Packet::ConnAck(connack) = peer.next().await else { panic!() };
    assert_eq!((connack.reason as u8, connack.session_present), (code, false), "{:?}", connack.properties);
    assert_eq!(peer.next_or_end().await, None);
}

#[tokio::test]
async fn who_proves_to_know_the_password_is_let_in() {
    // 5: [MQTT-4.12.0-2].
    let configured = Configured::new().await;
    let broker = configured.broker("").await;
    let mut peer = authenticated(&broker, connect(V5, "c"), &Scram::new("ann", "nna")).await;
    peer.nothing_came().await;
    peer.subscribe("a", QOS1).await;
    peer.leave().await;
    // No password was hashed for it.
    broker.counts("password_checks_total", 0).await;
    // A password beside the method does not count.
    let beside = as_user(connect(V5, "c"), "bob", "wrong");
    authenticated(&broker, beside, &Scram::new("ann", "nna")).await.leave().await;
}

#[tokio::test]
async fn who_does_not_begin_is_asked_to() {
    let configured = Configured::new().await;
    let broker = configured.broker("").await;
    let scram = Scram::new("bob", "bob's");
    let mut peer = Peer::open(broker.address("mqtt"), V5).await;
    peer.send(Packet::Connect(Box::new(with_method(connect(V5, "c"), None)))).await;
    assert_eq!(asked(&mut peer, ReasonCode::ContinueAuthentication).await, None);
    peer.send(go_on(&scram.first())).await;
    let (last, _) = scram.last(&challenged(&mut peer).await);
    peer.send(go_on(&last)).await;
    assert!(matches!(peer.next().await, Packet::ConnAck(connack) if connack.reason == ReasonCode::Success));
    peer.leave().await;
}

#[tokio::test]
async fn who_does_not_know_the_password_is_refused_and_learns_no_names() {
    // 5: [MQTT-4.12.0-4].
    let configured = Configured::new().await;
    let broker = configured.broker("").await;
    for (user, password) in [("ann", "bob's"), ("ann", ""), ("nobody", "nna")] {
        let scram = Scram::new(user, password);
        let (mut peer, challenge) = begun(&broker, connect(V5, "c"), &scram).await;
        peer.send(go_on(&scram.last(&challenge).0)).await;
        refused(peer, 0x87).await;
    }
    broker.counts("mqtt_logins_refused_total", 3).await;
    // The salt of who is not there is made up, and stays, also over a restart.
    let salt_of = async |broker: &Broker, user| {
        let (_peer, challenge) = begun(broker, connect(V5, ""), &Scram::new(user, "")).await;
        let challenge = String::from_utf8(challenge.to_vec()).unwrap();
        challenge[challenge.find(",s=").unwrap()..].to_owned()
    };
    let (known, unknown) = (salt_of(&broker, "ann").await, salt_of(&broker, "nobody").await);
    assert_eq!((known.len(), &known[known.len() - 7..]), (unknown.len(), &unknown[unknown.len() - 7..]));
    assert_ne!(unknown, salt_of(&broker, "nobody2").await);
    broker.terminate().await;
    let broker = configured.broker("").await;
    assert_eq!((salt_of(&broker, "ann").await, salt_of(&broker, "nobody").await), (known, unknown));
}

#[tokio::test]
async fn only_auth_and_disconnect_come_before_connack() {
    // 5: [MQTT-3.1.2-30], [MQTT-4.12.0-3].
    let configured = Configured::new().await;
    let broker = configured.broker("").await;
    let scram = Scram::new("ann", "nna");
    let publish = Packet::Publish(publish("a", QOS0, 0, "early"));
    let mut other = auth(ReasonCode::ContinueAuthentication, "x");
    if let Packet::Auth(auth) = &mut other {
        auth.properties.as_mut().unwrap().authentication_method = Some("SCRAM-SHA-1".into());
    }
    let bare = Packet::Auth(Auth { reason: ReasonCode::Success, properties: None });
    for (packet, code) in [
        (publish, 0x82),
        (Packet::PingReq, 0x82),
        (again(&scram.first()), 0x82),
        (auth(ReasonCode::Success, ""), 0x82),
        (bare, 0x82),
        (other, 0x82),
        (go_on("nonsense"), 0x87),
        (go_on(""), 0x87),
    ] {
        let (mut peer, _) = begun(&broker, connect(V5, "c"), &scram).await;
        peer.send(packet).await;
        refused(peer, code).await;
    }
    let (mut peer, _) = begun(&broker, connect(V5, "c"), &scram).await;
    peer.send_bytes(b"\xf1\x00").await;
    refused(peer, 0x81).await;
    let (peer, _) = begun(&broker, connect(V5, "c"), &scram).await;
    peer.leave().await;
    for first in ["", "nonsense", "p=tls-exporter,,n=ann,r=x", "n,a=bob,n=ann,r=x"] {
        let mut peer = Peer::open(broker.address("mqtt"), V5).await;
        peer.send(Packet::Connect(Box::new(with_method(connect(V5, "c"), Some(first))))).await;
        refused(peer, 0x87).await;
    }
    // There is one method, and none without users.
    let mut unknown = with_method(connect(V5, "c"), Some(&scram.first()));
    unknown.properties.authentication_method = Some("SCRAM-SHA-256-PLUS".into());
    assert_eq!(refusal(&broker, unknown).await, 0x8c);
    let open = Broker::start().await;
    assert_eq!(refusal(&open, with_method(connect(V5, "c"), Some(&scram.first()))).await, 0x8c);
}

#[tokio::test]
async fn who_does_not_finish_is_closed() {
    let configured = Configured::new().await;
    let broker = configured.broker("connect_timeout = \"1s\"").await;
    let scram = Scram::new("ann", "nna");
    let (mut silent, _) = begun(&broker, connect(V5, "c"), &scram).await;
    assert_eq!(silent.next_or_end().await, None);
    broker.counts("mqtt_connect_timeouts_total", 1).await;
    broker.counts("mqtt_logins_refused_total", 0).await;
    authenticated(&broker, connect(V5, "c"), &scram).await.leave().await;
}

#[tokio::test]
async fn an_auth_that_the_client_does_not_take_is_not_sent() {
    let configured = Configured::new().await;
    let broker = configured.broker("").await;
    let scram = Scram::new("ann", "nna");
    let bounded = |bytes| {
        let mut connect = connect(V5, "c");
        connect.properties.maximum_packet_size = NonZeroU32::new(bytes);
        connect
    };
    let mut peer = Peer::open(broker.address("mqtt"), V5).await;
    let small = with_method(bounded(60), Some(&scram.first()));
    peer.send(Packet::Connect(Box::new(small))).await;
    refused(peer, 0x95).await;
    authenticated(&broker, bounded(200), &scram).await.leave().await;
}

#[tokio::test]
async fn a_client_authenticates_again_while_it_works() {
    let configured = Configured::new().await;
    let broker = configured.broker("").await;
    let scram = Scram::new("ann", "nna");
    let mut peer = authenticated(&broker, connect(V5, "c"), &scram).await;
    peer.subscribe("a", QOS1).await;
    for round in 0..3 {
        peer.send(again(&scram.first())).await;
        let challenge = challenged(&mut peer).await;
        // What else there is goes on meanwhile.
        let mut other = Peer::connected(&broker, as_user(connect(V5, ""), "bob", "bob's")).await;
        other.say("a", QOS1, &format!("{round}")).await;
        assert_eq!(text(&peer.receive().await), format!("{round}"));
        let (last, signature) = scram.last(&challenge);
        peer.send(go_on(&last)).await;
        let data = asked(&mut peer, ReasonCode::Success).await.unwrap();
        assert_eq!(data, signature);
        peer.nothing_came().await;
    }
}

#[tokio::test]
async fn a_client_that_fails_to_authenticate_again_is_disconnected() {
    // 5: [MQTT-4.12.1-2].
    let configured = Configured::new().await;
    let broker = configured.broker("").await;
    let ann = Scram::new("ann", "nna");
    let mut watch = Peer::connected(&broker, as_user(connect(V5, "w"), "bob", "bob's")).await;
    watch.subscribe("gone", QOS1).await;
    for (scram, code) in [
        (Scram::new("ann", "wrong"), 0x87),
        (Scram::new("nobody", "nna"), 0x87),
        (Scram::new("bob", "bob's"), 0x87),
    ] {
        let with_will = Connect { will: Some(will("gone", "will")), ..connect(V5, "c") };
        let mut peer = authenticated(&broker, with_will, &ann).await;
        peer.send(again(&scram.first())).await;
        let challenge = challenged(&mut peer).await;
        peer.send(go_on(&scram.last(&challenge).0)).await;
        assert_eq!(peer.told().await.map(|code| code as u8), Some(code));
        assert_eq!(text(&watch.receive().await), "will");
    }
    let mut other = again(&ann.first());
    if let Packet::Auth(auth) = &mut other {
        auth.properties.as_mut().unwrap().authentication_method = Some("SCRAM-SHA-1".into());
    }
    for (packet, code) in [
        (other, 0x82),
        (go_on(&ann.first()), 0x82),
        (again("nonsense"), 0x87),
        (auth(ReasonCode::Success, ""), 0x82),
    ] {
        let mut peer = authenticated(&broker, connect(V5, "c"), &ann).await;
        peer.send(packet).await;
        assert_eq!(peer.told().await.map(|code| code as u8), Some(code));
    }
    // A second beginning before the end of the first.
    let mut peer = authenticated(&broker, connect(V5, "c"), &ann).await;
    peer.send(again(&ann.first())).await;
    challenged(&mut peer).await;
    peer.send(again(&ann.first())).await;
    assert_eq!(peer.told().await, Some(ReasonCode::ProtocolError));
    // By a password alone no method was agreed on.
    let mut peer = Peer::connected(&broker, as_user(connect(V5, "c"), "ann", "nna")).await;
    peer.send(again(&ann.first())).await;
    assert_eq!(peer.told().await, Some(ReasonCode::ProtocolError));
}
