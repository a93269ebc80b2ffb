//! `stafett passwd`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Ended, stafett, stafett_reading};

async fn passwd(file: &Path, args: &[&str], input: &str) -> Ended {
    let args = ["passwd", file.to_str().unwrap()].into_iter().chain(args.iter().copied());
    let ended = stafett_reading(input, args).await;
    assert_eq!(ended.stdout, "");
    ended
}

/// The lines of users, without the secret's.
fn lines(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().filter(|line| !line.starts_with(':')).map(str::to_owned).collect()
}

#[tokio::test]
async fn users_come_change_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("users");
    let ended = passwd(&file, &["ann", "--iterations", "4096"], "secret\n").await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stderr, format!("ann added to {}\n", file.display()));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let first = lines(&file);
    assert!(first[0].starts_with("ann:SCRAM-SHA-256$4096:") && first.len() == 1, "{first:?}");
    assert!(!std::fs::read_to_string(&file).unwrap().contains("secret"));

    // Its permissions stay, and a link stays one.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let ended = passwd(&link, &["bob"], "secret").await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(link.is_symlink());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    let ended = passwd(&file, &["ann"], "another\n").await;
    assert_eq!(ended.stderr, format!("ann has a new password in {}\n", file.display()));
    let second = lines(&file);
    assert!(second.len() == 2 && second[0] != first[0] && second[0].contains("$15000:"), "{second:?}");
    assert!(second[1].starts_with("bob:"));

    let ended = passwd(&file, &["ann", "--delete"], "").await;
    assert_eq!((ended.code, lines(&file)), (Some(0), second[1..].to_vec()));
    let ended = passwd(&file, &["ann", "--delete"], "").await;
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.stderr, "error: there is no user `ann`\n");
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[tokio::test]
async fn what_cannot_be_stored_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("users");
    let help = stafett(["passwd", "--help"]).await.stdout;
    assert!(help.contains("4096 to 1000000 times"), "{help}");
    for (args, input, problem) in [
        (&["ann"][..], "\n", "the password has characters"),
        (&["ann"], "", "the password has characters"),
        (&["ann"], "a\u{7}b\n", "the password has characters"),
        (&["ann"], &"x".repeat(1025), "more than 1024 bytes"),
        (&["a:b"], "x\n", "the user name must not have a colon"),
        (&[""], "x\n", "the user name has characters"),
        (&["ann", "--iterations", "4095"], "x\n", "4095 is not in 4096..=1000000"),
        (&["ann", "--json"], "x\n", "--json is for the client commands, not for passwd"),
    ] {
        let ended = passwd(&file, args, input).await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(problem), "{}", ended.stderr);
        assert!(ended.stderr.matches("RFC 4013").count() < 2, "it is said twice: {}", ended.stderr);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
    std::fs::write(&file, "ann:plain\n").unwrap();
    let ended = passwd(&file, &["bob"], "x\n").await;
    assert_eq!(ended.code, Some(2));
    let problem = format!("error: {}: line 1: the verifier of user `ann` is not of the form", file.display());
    assert!(ended.stderr.starts_with(&problem), "{}", ended.stderr);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "ann:plain\n");
    // Two at the same time would lose one of their changes.
    std::fs::write(directory.path().join("users.new"), "").unwrap();
    let ended = passwd(&file, &["bob"], "x\n").await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("another stafett passwd is at work"), "{}", ended.stderr);
    assert!(directory.path().join("users.new").exists());
    let missing = directory.path().join("no").join("users");
    let ended = stafett(["passwd", missing.to_str().unwrap(), "ann", "--delete"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("cannot make"), "{}", ended.stderr);
}
