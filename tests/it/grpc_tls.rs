//! The gRPC door over TLS, with the client commands.

use std::path::Path;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::certificates::{Authority, certified, tls_lines};
use crate::harness::{Broker, Ended, config_file, stafett, within};

/// A broker whose gRPC door has the certificate in `directory`, and `lines` more.
async fn broker_with(directory: &TempDir, authority: &Authority, lines: &str) -> Broker {
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    let (_config, path) = config_file(&format!("[grpc]\n{}{lines}", tls_lines(directory)));
    Broker::start_with(&["--config", &path]).await
}

/// A client command over TLS.
async fn command(broker: &Broker, directory: &Path, words: &[&str]) -> Ended {
    let server = format!("https://localhost:{}", broker.address("grpc").port());
    let ca = directory.join("ca.pem");
    let common = ["--server", &server, "--ca", ca.to_str().unwrap()];
    stafett(words.iter().copied().chain(common)).await
}

#[tokio::test]
async fn the_client_commands_speak_tls() {
    let (directory, authority) = certified();
    let mut broker = broker_with(&directory, &authority, "").await;
    broker.process().says("try: stafett info --server https://").await;
    let ask = async |words: &[&str]| command(&broker, directory.path(), words).await;
    assert_eq!(ask(&["health"]).await.stdout, "SERVING\n");
    assert_eq!(ask(&["queue", "create", "q"]).await.code, Some(0));
    assert_eq!(ask(&["queue", "send", "q", "secret"]).await.code, Some(0));
    assert_eq!(ask(&["queue", "consume", "q", "--count", "1"]).await.stdout, "secret\n");
    // Neither without TLS, nor trusting somebody else.
    let plain = stafett(["health", "--server", &broker.url(), "--timeout", "2s"]).await;
    assert_eq!(plain.code, Some(3), "{}", plain.stderr);
    std::fs::write(directory.path().join("ca.pem"), Authority::new().pem()).unwrap();
    let ended = command(&broker, directory.path(), &["health"]).await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("certificate"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_client_shows_its_certificate() {
    let (directory, authority) = certified();
    let clients = Authority::new();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("clients.pem"), clients.pem()).unwrap();
    let own = clients.issue();
    std::fs::write(path("own.pem"), &own.cert).unwrap();
    std::fs::write(path("own.key"), &own.key).unwrap();
    let lines = format!("tls.client_cert = \"required\"\ntls.client_ca = \"{}\"\n", path("clients.pem"));
    let broker = broker_with(&directory, &authority, &lines).await;
    let ended = command(&broker, directory.path(), &["health"]).await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("CertificateRequired"), "{}", ended.stderr);
    let known = ["health", "--cert", &path("own.pem"), "--key", &path("own.key")];
    assert_eq!(command(&broker, directory.path(), &known).await.stdout, "SERVING\n");
}

#[tokio::test]
async fn a_handshake_holds_up_nobody_and_new_files_are_read() {
    let (directory, authority) = certified();
    let mut broker = broker_with(&directory, &authority, "").await;
    let silent = TcpStream::connect(broker.address("grpc")).await.unwrap();
    let mut wrong = TcpStream::connect(broker.address("grpc")).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut wrong, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    within("the end", wrong.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(command(&broker, directory.path(), &["health"]).await.code, Some(0));

    let other = Authority::new();
    other.issue().put(directory.path());
    std::fs::write(directory.path().join("ca.pem"), other.pem()).unwrap();
    assert_eq!(command(&broker, directory.path(), &["health"]).await.code, Some(3));
    broker.process().signal(Signal::HUP);
    broker.process().says("certificate read again").await;
    assert_eq!(command(&broker, directory.path(), &["health"]).await.code, Some(0));
    drop(silent);
    assert_eq!(broker.terminate().await.code, Some(0));
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let (directory, _) = certified();
    let (_config, path) = config_file(&format!("[grpc]\n{}", tls_lines(&directory)));
    std::fs::remove_file(directory.path().join("key.pem")).unwrap();
    let data = tempfile::tempdir().unwrap();
    let args =
        ["serve", "--config", &path, "--grpc-listen", "127.0.0.1:0", "--mqtt-listen", "off", "--data-dir"];
    let ended = stafett(args.into_iter().chain([data.path().to_str().unwrap()])).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{}", ended.stderr);
    let expected = "error: the listener grpc has no TLS: tls.key: cannot read";
    assert!(ended.stderr.contains(expected), "{}", ended.stderr);

    let ended = stafett(["health", "--server", "https://localhost:1", "--ca", "missing.pem"]).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--ca: cannot read missing.pem"), "{}", ended.stderr);
    let ended = stafett(["health", "--ca", "missing.pem"]).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("need a --server at https://"), "{}", ended.stderr);
}

#[tokio::test]
async fn who_speaks_tls_where_none_is_and_the_reverse_is_told() {
    let (directory, authority) = certified();
    let secured = broker_with(&directory, &authority, "").await;
    let plain = Broker::start().await;
    let ended = command(&plain, directory.path(), &["health"]).await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("no TLS is spoken there: try http://"), "{}", ended.stderr);
    let ended = stafett(["health", "--server", &secured.url()]).await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("try https://"), "{}", ended.stderr);
}
