//! Settings from flags, environment and file, as an operator meets them.

use crate::harness::{config_file, stafett};

#[tokio::test]
async fn an_unknown_flag_is_a_usage_error() {
    let ended = stafett(["serve", "--grpc-listne", "off"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    assert!(ended.stderr.contains("--grpc-listen"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_bad_value_names_the_flag_and_what_is_permitted() {
    let ended = stafett(["serve", "--grpc-listen", "50051"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    assert!(ended.stderr.starts_with("error: --grpc-listen: grpc.listen = \"50051\""), "{}", ended.stderr);
    assert!(ended.stderr.contains("HOST:PORT"), "{}", ended.stderr);
}

#[tokio::test]
async fn an_unknown_key_names_the_file_and_the_nearest_key() {
    let (_directory, path) = config_file("[grpc]\nlistne = \"127.0.0.1:0\"\n");
    let ended = stafett(["serve", "--config", &path]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    let expected = format!("error: {path}:2: unknown key grpc.listne; did you mean grpc.listen?\n");
    assert_eq!(ended.stderr, expected);
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let ended = stafett(["serve", "--config", "does-not-exist.toml"]).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("does-not-exist.toml: No such file"), "{}", ended.stderr);
}

#[tokio::test]
async fn check_config_prints_what_would_hold_and_ends() {
    let (_directory, path) = config_file("[log]\nlevel = \"warn\"\n");
    let args = ["serve", "--config", &path, "--grpc-listen", "127.0.0.1:4", "--check-config"];
    let ended = stafett(args).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    for line in ["level = \"warn\"", "listen = \"127.0.0.1:4\"", "durability = \"fsync\""] {
        assert!(ended.stdout.lines().any(|said| said == line), "no {line} in:\n{}", ended.stdout);
    }
    let (_directory, path) = config_file(&ended.stdout);
    let again = stafett(["serve", "--config", &path, "--check-config"]).await;
    assert_eq!(again.stdout, ended.stdout);
}

#[tokio::test]
async fn flags_of_the_client_commands_are_refused() {
    let ended = stafett(["serve", "--json"]).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--json is for the client commands"), "{}", ended.stderr);
}
