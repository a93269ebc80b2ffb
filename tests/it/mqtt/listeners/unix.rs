//! Sockets in the file system.

use std::os::unix::fs::PermissionsExt;

use tokio::net::UnixStream;

use super::*;

fn listener_at(path: &Path, lines: &str) -> (TempDir, String) {
    let path = path.display();
    config_file(&format!("[[mqtt.listeners]]\nname = \"u\"\nlisten = \"unix:{path}\"\n{lines}"))
}

#[tokio::test]
async fn the_file_is_there_while_the_broker_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mqtt.sock");
    let (_config, config) = listener_at(&path, "unix_mode = \"600\"\n");
    let broker = Broker::start_with(&["--config", &config]).await;
    assert_eq!(broker.bound("mqtt.u"), format!("unix:{}", path.display()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for version in BOTH {
        works(UnixStream::connect(&path).await.unwrap(), version).await.leave().await;
    }
    assert_eq!(broker.terminate().await.code, Some(0));
    assert!(!path.exists());
}

#[tokio::test]
async fn a_file_that_a_crash_left_is_taken_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mqtt.sock");
    let (_config, config) = listener_at(&path, "");
    let broker = Broker::start_with(&["--config", &config]).await;
    broker.kill9().await;
    assert!(path.exists());
    let broker = Broker::start_with(&["--config", &config]).await;
    works(UnixStream::connect(&path).await.unwrap(), V5).await.leave().await;

    let data = tempfile::tempdir().unwrap();
    let doors = ["serve", "--config", &config, "--grpc-listen", "off", "--mqtt-listen", "127.0.0.1:0"];
    let args = doors.into_iter().chain(["--data-dir", data.path().to_str().unwrap()]);
    let ended = stafett(args.clone()).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    let expected = format!("cannot listen on unix:{} (mqtt.u: listen)", path.display());
    assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
    assert!(ended.stderr.contains("another process listens there"), "{}", ended.stderr);
    // The live one is not disturbed.
    works(UnixStream::connect(&path).await.unwrap(), V5).await.leave().await;
    broker.terminate().await;

    // What is no socket is not touched, and neither is there one without its directory.
    std::fs::write(&path, "precious").unwrap();
    let ended = stafett(args.clone()).await;
    assert!(ended.stderr.contains("something else than a socket is there"), "{}", ended.stderr);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    directory.close().unwrap();
    let ended = stafett(args).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("No such file"), "{}", ended.stderr);
}
