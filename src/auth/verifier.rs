//! What is stored of a password: enough to check one, not enough to log in with.
//!
//! ```text
//! SaltedPassword = PBKDF2-HMAC-SHA-256(password, salt, iterations)
//! StoredKey      = SHA-256(HMAC(SaltedPassword, "Client Key"))
//! ServerKey      = HMAC(SaltedPassword, "Server Key")
//! as a text      = SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>, the last three in base64
//! ```

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};
use smallvec::SmallVec;
use subtle::ConstantTimeEq;

/// How often a password may be hashed: from what RFC 7677 asks for to what can still be waited for.
pub const ITERATIONS: RangeInclusive<u32> = 4096..=1_000_000;
/// How often it is hashed unless told otherwise: about 0.1 s on a small device, which does it too.
pub const DEFAULT_ITERATIONS: u32 = 15_000;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;
/// Bytes of a salt that is made here.
pub(super) const SALT_BYTES: usize = 16;
/// Bytes of a salt that is taken.
const SALTS: RangeInclusive<usize> = 8..=KEY_BYTES;
/// What a verifier as a text begins with.
const MECHANISM: &str = "SCRAM-SHA-256";

pub(super) type Key = [u8; KEY_BYTES];
pub(super) type Salt = SmallVec<[u8; SALT_BYTES]>;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub(super) salt: Salt,
    pub(super) iterations: NonZeroU32,
    pub(super) stored_key: Key,
    pub(super) server_key: Key,
}

/// A text with characters that a user name or a password cannot have (RFC 4013).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("has characters that RFC 4013 (SASLprep) does not permit, or is empty after it")]
pub struct Unprepared;

/// The text is no [`Verifier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAVerifier {
    /// It is not of the form.
    #[error("not of the form SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY")]
    Form,
    /// The number of iterations is out of range.
    #[error("the iterations are not a number from {} to {}", ITERATIONS.start(), ITERATIONS.end())]
    Iterations,
    /// The salt is no base64, or of another length.
    #[error("the salt is not base64 of {} to {} bytes", SALTS.start(), SALTS.end())]
    Salt,
    /// A key is no base64, or of another length.
    #[error("a key is not base64 of {KEY_BYTES} bytes")]
    Key,
}

/// The system has no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandom;

/// Why there is no verifier of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NewError {
    /// The password cannot be one.
    #[error("the password {0}")]
    Password(#[from] Unprepared),
    /// There is no salt.
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
}

/// A user name or password as it is compared: SASLprep (RFC 4013).
///
/// # Errors
/// [`Unprepared`]
pub(super) fn prepare(text: &str) -> Result<Cow<'_, str>, Unprepared> {
    stringprep::saslprep(text).ok().filter(|prepared| !prepared.is_empty()).ok_or(Unprepared)
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandom)?;
    Ok(bytes)
}

pub(super) fn hmac_sha256(key: &[u8], data: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data);
    filled(tag.as_ref())
}

pub(super) fn sha256(data: &[u8]) -> Key {
    filled(digest::digest(&digest::SHA256, data).as_ref())
}

/// As many bytes as a key has; `bytes` are never fewer.
fn filled(bytes: &[u8]) -> Key {
    let mut key = [0; KEY_BYTES];
    key.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    key
}

impl Verifier {
    /// Of a new password, with a salt of its own. Takes as long as the iterations do: milliseconds to seconds.
    ///
    /// # Errors
    /// [`NewError`]
    pub fn new(password: &str, iterations: NonZeroU32) -> Result<Self, NewError> {
        let password = prepare(password)?;
        let salt: [u8; SALT_BYTES] = random()?;
        Ok(Self::derive(&password, salt.into(), iterations))
    }

    fn derive(password: &str, salt: Salt, iterations: NonZeroU32) -> Self {
        let mut salted = [0; KEY_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password.as_bytes(), &mut salted);
        let stored_key = sha256(&hmac_sha256(&salted, b"Client Key"));
        Self { salt, iterations, stored_key, server_key: hmac_sha256(&salted, b"Server Key") }
    }

    /// Whether this is the password. Takes as long as the iterations do, whatever comes of it.
    pub(super) fn is_of(&self, password: &[u8]) -> bool {
        let prepared = std::str::from_utf8(password).ok().and_then(|text| prepare(text).ok());
        let derived =
            Self::derive(prepared.as_deref().unwrap_or_default(), self.salt.clone(), self.iterations);
        let same = derived.stored_key.ct_eq(&self.stored_key);
        bool::from(same) && prepared.is_some()
    }
}

/// Says nothing of the keys.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// As it is stored.
impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { salt, iterations, stored_key, server_key } = self;
        let [salt, stored, server] = [&salt[..], stored_key, server_key].map(|bytes| BASE64.encode(bytes));
        write!(f, "{MECHANISM}${iterations}:{salt}${stored}:{server}")
    }
}

impl FromStr for Verifier {
    type Err = NotAVerifier;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fields = text.strip_prefix(MECHANISM).and_then(|rest| rest.strip_prefix('$'));
        let fields = fields.and_then(|rest| rest.split_once('$'));
        let pairs = fields.and_then(|(how, keys)| how.split_once(':').zip(keys.split_once(':')));
        let ((iterations, salt), (stored, server)) = pairs.ok_or(NotAVerifier::Form)?;
        let iterations = iterations.parse().ok().filter(|number| ITERATIONS.contains(number));
        let iterations = iterations.and_then(NonZeroU32::new).ok_or(NotAVerifier::Iterations)?;
        let salt = BASE64.decode(salt).ok().filter(|salt| SALTS.contains(&salt.len()));
        Ok(Self {
            salt: salt.ok_or(NotAVerifier::Salt)?.into(),
            iterations,
            stored_key: key(stored).ok_or(NotAVerifier::Key)?,
            server_key: key(server).ok_or(NotAVerifier::Key)?,
        })
    }
}

/// A key in base64.
pub(super) fn key(text: &str) -> Option<Key> {
    BASE64.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// RFC 7677, section 3: user `user`, password `pencil`.
    pub(in crate::auth) fn pencil() -> Verifier {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        Verifier::derive("pencil", salt.into(), NonZeroU32::new(4096).unwrap())
    }

    #[test]
    fn a_verifier_is_what_others_make_of_the_password() {
        // As PostgreSQL stores it, which has the same form.
        let stored = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==\
                      $WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert_eq!(pencil().to_string(), stored);
        assert_eq!(stored.parse(), Ok(pencil()));
    }

    #[test]
    fn a_password_is_found_again_and_another_is_not() {
        let iterations = NonZeroU32::new(4096).unwrap();
        let made = Verifier::new("I\u{ad}X", iterations).unwrap();
        // RFC 4013, section 3: both come to "IX".
        assert!(made.is_of(b"IX") && made.is_of("I\u{ad}X".as_bytes()) && made.is_of("\u{2168}".as_bytes()));
        for wrong in [&b"ix"[..], b"", b"IX ", b"\xff", "\u{7}".as_bytes()] {
            assert!(!made.is_of(wrong), "{wrong:?}");
        }
        assert_ne!(Verifier::new("IX", iterations).unwrap().salt, made.salt);
        assert_eq!(Verifier::new("\u{7}", iterations), Err(Unprepared.into()));
        assert_eq!(Verifier::new("\u{ad}", iterations), Err(Unprepared.into()));
        assert!(!format!("{made:?}").contains(&BASE64.encode(made.stored_key)));
    }

    #[test]
    fn what_is_no_verifier_is_named() {
        use NotAVerifier as N;
        let with = |iterations: &str, salt: &str, stored: &str, server: &str| {
            format!("SCRAM-SHA-256${iterations}:{salt}${stored}:{server}").parse::<Verifier>()
        };
        let (salt, key) = (BASE64.encode([1; 16]), BASE64.encode([2; 32]));
        assert!(with("4096", &salt, &key, &key).is_ok());
        for bad in ["4095", "1000001", "-1", "", "x"] {
            assert_eq!(with(bad, &salt, &key, &key), Err(N::Iterations), "{bad}");
        }
        for bad in ["", "!", &BASE64.encode([1; 7]), &BASE64.encode([1; 33])] {
            assert_eq!(with("4096", bad, &key, &key), Err(N::Salt), "{bad}");
        }
        assert_eq!(with("4096", &salt, &salt, &key), Err(N::Key));
        assert_eq!(with("4096", &salt, &key, ""), Err(N::Key));
        for bad in ["", "secret", "SCRAM-SHA-1$4096:x$y:z", "SCRAM-SHA-256$4096", "SCRAM-SHA-256$4096:x"] {
            assert_eq!(bad.parse::<Verifier>(), Err(N::Form), "{bad}");
        }
    }
}
