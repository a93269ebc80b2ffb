//! The users' file.
//!
//! ```text
//! # a comment, or an empty line
//! :unknown:SECRET          at most once: what salts of unknown users are made of, 32 bytes in base64
//! NAME:VERIFIER            a user; see `verifier`
//! ```

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::verifier::{self, Key, NoRandom, NotAVerifier, Unprepared, Verifier};

/// Users of one file.
const MAX_USERS: usize = 1_000_000;
/// Bytes of a user name.
pub(super) const MAX_NAME_BYTES: usize = 256;
/// Bytes of a file: more than as many users as there may be need.
pub(super) const MAX_FILE_BYTES: u64 = 512 << 20;
/// What the line of the secret begins with. No user has an empty name.
const SECRET: &str = ":unknown:";

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// With the line of each.
    pub(super) users: HashMap<Box<str>, (Verifier, usize)>,
    /// The one that comes first.
    pub(super) first: Option<Verifier>,
    pub(super) secret: Option<Key>,
}

/// A line that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct FileError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: LineProblem,
}

/// What is wrong with a line. Says nothing of its secrets.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineProblem {
    /// There is no colon.
    #[error("not of the form NAME:VERIFIER")]
    Form,
    /// The bytes are no text.
    #[error("not UTF-8")]
    NotUtf8,
    /// The name cannot be one.
    #[error("the user name {0}")]
    Name(NameProblem),
    /// What follows the name is no verifier.
    #[error("the verifier of user `{name}` is {problem}")]
    Verifier {
        /// Whose.
        name: String,
        /// Why.
        problem: NotAVerifier,
    },
    /// The user is there already.
    #[error("user `{name}` stands in line {first} already")]
    Twice {
        /// Who.
        name: String,
        /// Where.
        first: usize,
    },
    /// There is a second secret, or it is none.
    #[error("{SECRET} needs 32 bytes in base64, once")]
    Secret,
    /// There are too many users.
    #[error("more than {MAX_USERS} users")]
    TooMany,
}

/// Why a user name cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameProblem {
    /// It is empty or too long.
    #[error("has to have 1 to {MAX_NAME_BYTES} bytes")]
    Length,
    /// It has a colon, or begins like a comment.
    #[error("must not have a colon, nor begin with #")]
    Reserved,
    /// It has characters that it cannot have.
    #[error(transparent)]
    Unprepared(#[from] Unprepared),
    /// It is another one after SASLprep.
    #[error("is not written as RFC 4013 (SASLprep) does it")]
    NotPrepared,
}

/// Why a user is not in the file now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The file has a line that cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The name cannot be one.
    #[error("the user name {0}")]
    Name(NameProblem),
    /// There is no such user.
    #[error("there is no user `{0}`")]
    NoSuchUser(String),
    /// The system has no random numbers.
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
}

/// Reads the text of a file.
pub(super) fn parse(bytes: &[u8]) -> Result<Contents, FileError> {
    let mut contents = Contents::default();
    for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line_number = at + 1;
        contents.line(line, line_number).map_err(|problem| FileError { line: line_number, problem })?;
    }
    Ok(contents)
}

impl Contents {
    fn line(&mut self, line: &[u8], number: usize) -> Result<(), LineProblem> {
        let line = std::str::from_utf8(line).map_err(|_| LineProblem::NotUtf8)?;
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.trim().is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if let Some(secret) = line.strip_prefix(SECRET) {
            let secret = verifier::key(secret).filter(|_| self.secret.is_none());
            self.secret = Some(secret.ok_or(LineProblem::Secret)?);
            return Ok(());
        }
        let (name, verifier) = line.split_once(':').ok_or(LineProblem::Form)?;
        check_name(name).map_err(LineProblem::Name)?;
        let verifier: Verifier =
            verifier.parse().map_err(|problem| LineProblem::Verifier { name: name.to_owned(), problem })?;
        if self.users.len() >= MAX_USERS {
            return Err(LineProblem::TooMany);
        }
        match self.users.entry(name.into()) {
            Entry::Occupied(there) => Err(LineProblem::Twice { name: name.to_owned(), first: there.get().1 }),
            Entry::Vacant(place) => {
                self.first.get_or_insert_with(|| verifier.clone());
                place.insert((verifier, number));
                Ok(())
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), NameProblem> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(NameProblem::Length);
    }
    if name.contains(':') || name.starts_with('#') {
        return Err(NameProblem::Reserved);
    }
    if verifier::prepare(name)? == name { Ok(()) } else { Err(NameProblem::NotPrepared) }
}

/// The text of a file in which the user has this verifier, or none. The other lines stay as they are; a file without a
/// secret gets one. True: the user was there before.
///
/// # Errors
/// [`ChangeError`]
pub fn change(file: &[u8], user: &str, to: Option<&Verifier>) -> Result<(Vec<u8>, bool), ChangeError> {
    let contents = parse(file)?;
    let name = verifier::prepare(user).map_err(|error| ChangeError::Name(error.into()))?;
    check_name(&name).map_err(ChangeError::Name)?;
    let there = contents.users.get(&*name).map(|(_, line)| *line);
    let written = to.map(|verifier| format!("{name}:{verifier}"));
    if written.is_none() && there.is_none() {
        return Err(ChangeError::NoSuchUser(name.into_owned()));
    }
    let mut lines: Vec<Vec<u8>> = Vec::new();
    if contents.secret.is_none() {
        let secret: Key = verifier::random()?;
        lines.push(format!("{SECRET}{}", BASE64.encode(secret)).into_bytes());
    }
    let file = file.strip_suffix(b"\n").unwrap_or(file);
    let before = file.split(|byte| *byte == b'\n').enumerate();
    for (at, line) in before.filter(|_| !file.is_empty()) {
        match (&written, there == Some(at + 1)) {
            (Some(written), true) => lines.push(written.clone().into_bytes()),
            (None, true) => {}
            (_, false) => lines.push(line.to_owned()),
        }
    }
    if let Some(written) = written.filter(|_| there.is_none()) {
        lines.push(written.into_bytes());
    }
    let mut text = lines.join(&b'\n');
    text.push(b'\n');
    Ok((text, there.is_some()))
}

/// Reads at most as much as a file may have; `None`: it has more.
pub(super) fn read(from: impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = from.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((read as u64 <= MAX_FILE_BYTES).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::verifier::tests::pencil;

    fn problem(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_changed_can_be_read_and_the_rest_stays() {
        let pencil = pencil();
        let (text, there) = change(b"# ours\n\n", "ann", Some(&pencil)).unwrap();
        assert!(!there);
        let (text, there) = change(&text, "bob x", Some(&pencil)).unwrap();
        assert!(!there);
        let mut other = pencil.clone();
        other.stored_key = [7; 32];
        let (text, there) = change(&text, "ann", Some(&other)).unwrap();
        assert!(there);
        let contents = parse(&text).unwrap();
        assert_eq!(contents.users["ann"], (other.clone(), 4));
        assert_eq!(contents.users["bob x"], (pencil.clone(), 5));
        assert_eq!(contents.first, Some(other));
        assert!(contents.secret.is_some());
        let (text, there) = change(&text, "ann", None).unwrap();
        assert!(there);
        let lines: Vec<_> = std::str::from_utf8(&text).unwrap().lines().collect();
        assert!(lines[0].starts_with(SECRET));
        assert_eq!(lines[1..], ["# ours", "", &format!("bob x:{pencil}")]);
        assert!(matches!(change(&text, "ann", None), Err(ChangeError::NoSuchUser(name)) if name == "ann"));
        // From nothing, and with the ends of lines of another system.
        assert_eq!(change(b"", "ann", Some(&pencil)).unwrap().0.iter().filter(|b| **b == b'\n').count(), 2);
        assert_eq!(parse(format!("ann:{pencil}\r\n").as_bytes()).unwrap().users.len(), 1);
    }

    #[test]
    fn a_bad_line_is_named_with_its_reason() {
        let good = format!("ann:{}", pencil());
        assert_eq!(problem("# a\nann\n"), "line 2: not of the form NAME:VERIFIER");
        assert_eq!(problem(&format!("{good}\n\n{good}\n")), "line 3: user `ann` stands in line 1 already");
        assert_eq!(
            problem("ann:secret"),
            "line 1: the verifier of user `ann` is not of the form SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY"
        );
        assert!(problem(&good.replace("4096", "1")).contains("the iterations are not a number from 4096"));
        assert!(problem(":x").starts_with("line 1: the user name has to have 1 to 256 bytes"));
        assert!(problem(&format!("{}:x", "a".repeat(257))).contains("1 to 256 bytes"));
        assert!(problem("\u{7}:x").contains("RFC 4013"));
        assert!(problem("\u{2168}:x").contains("is not written as RFC 4013"));
        let secret = format!("{SECRET}{}\n", BASE64.encode([1; 32]));
        assert!(parse(secret.as_bytes()).unwrap().secret.is_some());
        assert!(problem(&format!("{secret}{secret}")).starts_with("line 2: :unknown: needs 32 bytes"));
        assert!(problem(&format!("{SECRET}AAAA")).contains("needs 32 bytes"));
        assert_eq!(parse(b"\n\xff\n").unwrap_err().to_string(), "line 2: not UTF-8");
        // A secret is never repeated.
        assert!(!problem("ann:hunter2").contains("hunter2"));
    }

    #[test]
    fn a_name_that_cannot_be_one_is_refused_before_it_is_written() {
        for name in ["", "a:b", "#a", "\u{7}", &"a".repeat(257)] {
            assert!(matches!(change(b"", name, Some(&pencil())), Err(ChangeError::Name(_))), "{name:?}");
        }
        // Another way to write it is the same user.
        let (text, _) = change(b"", "IX", Some(&pencil())).unwrap();
        assert!(change(&text, "\u{2168}", None).unwrap().1);
    }
}
