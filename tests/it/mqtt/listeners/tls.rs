//! TLS: versions, certificates of clients, ALPN, files that are wrong, and new ones.

use std::io::ErrorKind::UnexpectedEof;

use rustix::process::Signal;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ProtocolVersion;

use super::*;

/// A handshake as this client wants it.
async fn shake(broker: &Broker, config: &ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(broker.address("mqtt.x")).await?;
    let connector = TlsConnector::from(Arc::new(config.clone()));
    within("a handshake", connector.connect("localhost".try_into().unwrap(), stream)).await
}

/// In TLS 1.3 a client learns that its certificate is refused when it reads.
async fn is_refused(broker: &Broker, config: &ClientConfig) {
    if let Ok(mut stream) = shake(broker, config).await {
        let read = within("the alert", stream.read_u8()).await;
        assert!(read.is_err(), "the handshake was accepted");
    }
}

#[tokio::test]
async fn both_versions_are_spoken_and_mqtt_is_agreed_on() {
    let (directory, authority) = certified();
    let broker = broker_with_x(&tls_lines(&directory)).await;
    for (version, number) in
        [(&version::TLS12, ProtocolVersion::TLSv1_2), (&version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        for mqtt in BOTH {
            let mut client = authority.client(&[version], None);
            let plain = shake(&broker, &client).await.unwrap();
            assert_eq!(plain.get_ref().1.protocol_version(), Some(number));
            assert_eq!(plain.get_ref().1.alpn_protocol(), None);
            works(plain, mqtt).await.leave().await;
            client.alpn_protocols = vec![b"other".to_vec(), b"mqtt".to_vec()];
            let agreed = shake(&broker, &client).await.unwrap();
            assert_eq!(agreed.get_ref().1.alpn_protocol(), Some(&b"mqtt"[..]));
            works(agreed, mqtt).await.leave().await;
            client.alpn_protocols = vec![b"h2".to_vec()];
            assert!(shake(&broker, &client).await.is_err());
        }
    }
}

#[tokio::test]
async fn certificates_of_clients_are_required_or_optional() {
    let (directory, authority) = certified();
    let (clients, strangers) = (Authority::new(), Authority::new());
    std::fs::write(directory.path().join("clients.pem"), clients.pem()).unwrap();
    for (asks, needs) in [("required", true), ("optional", false)] {
        let ca = directory.path().join("clients.pem");
        let lines = format!("tls.client_cert = \"{asks}\"\ntls.client_ca = \"{}\"\n", ca.display());
        let broker = broker_with_x(&(tls_lines(&directory) + &lines)).await;
        for version in BOTH_TLS {
            let own = clients.issue();
            let known = authority.client(&[version], Some(&own));
            works(shake(&broker, &known).await.unwrap(), V5).await.leave().await;
            let own = strangers.issue();
            is_refused(&broker, &authority.client(&[version], Some(&own))).await;
            let none = authority.client(&[version], None);
            if needs {
                is_refused(&broker, &none).await;
            } else {
                works(shake(&broker, &none).await.unwrap(), V5).await.leave().await;
            }
        }
    }
}

#[tokio::test]
async fn who_does_not_shake_hands_is_cut_and_holds_up_nobody() {
    let (directory, authority) = certified();
    let broker = broker_with_x(&("connect_timeout = \"1s\"\n".to_owned() + &tls_lines(&directory))).await;
    let mut silent = Peer::open(broker.address("mqtt.x"), V311).await;
    let mut slow = Peer::open(broker.address("mqtt.x"), V311).await;
    slow.send_bytes(b"\x16\x03\x01\x02\x00\x01").await;
    let mut shaken = shake(&broker, &authority.client(BOTH_TLS, None)).await.unwrap();
    // It does not speak TLS, and is cut at once; what it is told is no MQTT.
    let mut plain = TcpStream::connect(broker.address("mqtt.x")).await.unwrap();
    plain.write_all(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00").await.unwrap();
    let mut alert = Vec::new();
    within("the end", plain.read_to_end(&mut alert)).await.unwrap();
    assert!(alert.first().is_none_or(|kind| *kind == 0x15), "{alert:?}");
    // The others work meanwhile.
    let client = authority.client(BOTH_TLS, None);
    let mut good = works(shake(&broker, &client).await.unwrap(), V311).await;
    assert_eq!(silent.next_or_end().await, None);
    assert_eq!(slow.next_or_end().await, None);
    // The handshake is not CONNECT.
    assert!(matches!(within("the end", shaken.read_u8()).await, Err(error) if error.kind() == UnexpectedEof));
    good.nothing_came().await;
}

#[tokio::test]
async fn a_handshake_takes_a_place_and_who_has_none_is_told() {
    let (directory, authority) = certified();
    let broker = broker_with_x(&("max_connections = 1\n".to_owned() + &tls_lines(&directory))).await;
    let silent = TcpStream::connect(broker.address("mqtt.x")).await.unwrap();
    let client = authority.client(BOTH_TLS, None);
    for (version, code) in [(V5, 0x97), (V311, 3)] {
        let stream = shake(&broker, &client).await.unwrap();
        let (mut peer, connack) = Peer::over(stream, version).greeted(connect(version, "")).await;
        let told = if version == V5 { Some(connack.reason as u8) } else { connack.reason.to_return_code() };
        assert_eq!(told, Some(code));
        assert_eq!(peer.next_or_end().await, None);
    }
    drop(silent);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_bounded() {
    let (directory, authority) = certified();
    let lines = "outbox_bytes = \"64KiB\"\noutbox_messages = 100\n".to_owned() + &tls_lines(&directory);
    let broker = broker_with_x(&lines).await;
    let client = authority.client(BOTH_TLS, None);
    let mut lagging = works(shake(&broker, &client).await.unwrap(), V5).await;
    lagging.subscribe("f", QOS1).await;
    let mut reader = Peer::subscribed(&broker, V5, "f", QOS1).await;
    let mut publisher = Peer::clean(&broker, V5, "").await;
    let payload = "x".repeat(10_000);
    for n in 0..2000 {
        publisher.say("f", QOS1, &format!("{n} {payload}")).await;
        assert!(text(&reader.receive().await).starts_with(&format!("{n} ")));
    }
    // It was disconnected, with a word or, as it does not read, without.
    let mut got = Vec::new();
    within("the end", lagging.stream.read_to_end(&mut got)).await.ok();
    assert!(got.len() < 2000 * payload.len(), "the bound did not hold");
}

#[tokio::test]
async fn a_stop_is_told_and_ends_the_stream_in_order() {
    let (directory, authority) = certified();
    let mut broker = broker_with_x(&tls_lines(&directory)).await;
    let client = authority.client(BOTH_TLS, None);
    let peer = works(shake(&broker, &client).await.unwrap(), V5).await;
    broker.process().signal(Signal::TERM);
    // Without close_notify reading would fail.
    assert_eq!(peer.told().await, Some(ReasonCode::ServerShuttingDown));
    assert_eq!(broker.end().await.code, Some(0));
}

#[tokio::test]
async fn wrong_files_are_named() {
    let (directory, authority) = certified();
    let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let lines = tls_lines(&directory);
    let (cert_name, key_name) = (cert.display().to_string(), key.display().to_string());
    let Issued { cert: good_cert, key: good_key } = authority.issue();
    let cases: [(&str, &str, String); 6] = [
        ("", &good_key, format!("tls.cert: no certificate in {cert_name}")),
        (&good_cert, "", format!("tls.key: no private key in {key_name}")),
        (&good_cert, &good_cert, format!("tls.key: no private key in {key_name}")),
        (
            &good_cert,
            &authority.issue().key,
            format!("tls.key: the key in {key_name} is not that of the certificate in {cert_name}"),
        ),
        ("-----BEGIN CERTIFICATE-----\nAAA\n", &good_key, format!("tls.cert: {cert_name} is not PEM")),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &good_key,
            format!("tls.cert: {cert_name} cannot be used"),
        ),
    ];
    for (cert_text, key_text, expected) in cases {
        std::fs::write(&cert, cert_text).unwrap();
        std::fs::write(&key, key_text).unwrap();
        let ended = refused(&lines).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{}", ended.stderr);
        let expected = format!("the listener mqtt.x has no TLS: {expected}");
        assert!(ended.stderr.contains(&expected), "{expected}\n{}", ended.stderr);
    }
    std::fs::remove_file(&cert).unwrap();
    let ended = refused(&lines).await;
    let expected = format!("tls.cert: cannot read {cert_name}: No such file");
    assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
}

#[tokio::test]
async fn new_files_are_read_at_sighup() {
    let (directory, authority) = certified();
    let mut broker = broker_with_x(&tls_lines(&directory)).await;
    let old = authority.client(BOTH_TLS, None);
    let mut before = works(shake(&broker, &old).await.unwrap(), V5).await;

    let other = Authority::new();
    other.issue().put(directory.path());
    broker.process().signal(Signal::HUP);
    broker.process().says("certificate read again").await;
    let new = other.client(BOTH_TLS, None);
    let mut after = works(shake(&broker, &new).await.unwrap(), V5).await;
    assert!(shake(&broker, &old).await.is_err());
    before.nothing_came().await;

    std::fs::write(directory.path().join("key.pem"), "").unwrap();
    broker.process().signal(Signal::HUP);
    broker.process().says("the certificate that was in use stays").await;
    works(shake(&broker, &new).await.unwrap(), V5).await.leave().await;
    after.nothing_came().await;
}
