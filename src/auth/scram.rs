//! SCRAM-SHA-256, the server's side (RFC 5802, RFC 7677), without channel binding and without I/O.
//!
//! ```text
//! client-first   n,,n=USER,r=NONCE                  ─▶ Exchange::begin
//! server-first   r=NONCE+OURS,s=SALT,i=ITERATIONS   ◀─ Exchange::challenge
//! client-final   c=biws,r=NONCE+OURS,p=PROOF        ─▶ Exchange::end
//! server-final   v=SIGNATURE                        ◀─ Proven::signature
//! ```
//!
//! Invariant: a user that is not known is challenged as any other, and refused with the same word as a wrong password.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use bytestring::ByteString;
use subtle::ConstantTimeEq;

use super::file::MAX_NAME_BYTES;
use super::users::{Found, Users};
use super::verifier::{self, KEY_BYTES, NoRandom, hmac_sha256, sha256};

/// The name of the mechanism.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// Bytes of a message of the client.
const MAX_MESSAGE_BYTES: usize = 4096;
/// Bytes of our part of the nonce, before base64.
const NONCE_BYTES: usize = 24;

/// An exchange that waits for the client's last message.
#[derive(Debug)]
pub struct Exchange {
    user: ByteString,
    found: Found,
    /// What the last message is to begin with: channel binding and nonce.
    expected: String,
    /// client-first-message-bare, and server-first-message behind a comma.
    so_far: String,
    server_first_at: usize,
}

/// An exchange that came to a good end.
#[derive(Debug, PartialEq, Eq)]
pub struct Proven {
    /// Who it is.
    pub user: ByteString,
    /// The last message, by which the server shows that it knows the user, too.
    pub signature: Bytes,
}

/// Why an exchange came to nothing. Says nothing of whether there is such a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScramError {
    /// A message is not of the form.
    #[error("the message of SCRAM is not of the form: {0}")]
    Form(&'static str),
    /// It asks for what is not there.
    #[error("SCRAM {0} is not supported")]
    Unsupported(&'static str),
    /// The user is not known, or the proof is another's.
    #[error("the user is not known or its proof is wrong")]
    Wrong,
    /// There is no nonce.
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
}

impl Exchange {
    /// Takes the client's first message.
    ///
    /// # Errors
    /// [`ScramError`], but never [`ScramError::Wrong`].
    pub fn begin(users: &Users, client_first: &[u8]) -> Result<Self, ScramError> {
        let ours: [u8; NONCE_BYTES] = verifier::random()?;
        Self::begin_with(users, client_first, &BASE64.encode(ours))
    }

    fn begin_with(users: &Users, client_first: &[u8], ours: &str) -> Result<Self, ScramError> {
        let message = text(client_first)?;
        let mut parts = message.splitn(3, ',');
        let (Some(binding), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ScramError::Form("the first one begins n,,"));
        };
        match binding {
            "n" | "y" => {}
            _ if binding.starts_with("p=") => return Err(ScramError::Unsupported("with channel binding")),
            _ => return Err(ScramError::Form("the first one begins n,,")),
        }
        let mut attributes = bare.split(',');
        let name = match attributes.next() {
            Some(first) if first.starts_with("m=") => return Err(ScramError::Unsupported("extension m")),
            first => first.and_then(|first| first.strip_prefix("n=")),
        };
        let user = user_name(name.ok_or(ScramError::Form("n= comes first"))?)?;
        let acts_as = match authzid.strip_prefix("a=") {
            Some(name) => user_name(name)?,
            None if authzid.is_empty() => user.clone(),
            None => return Err(ScramError::Form("the first one begins n,,")),
        };
        if acts_as != user {
            return Err(ScramError::Unsupported("in another user's name"));
        }
        let nonce = attributes.next().and_then(|nonce| nonce.strip_prefix("r="));
        let printable = |nonce: &&str| !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic());
        let nonce = nonce.filter(printable).ok_or(ScramError::Form("r= comes second, printable"))?;
        let found = users.find(&user);
        let (salt, iterations) = (BASE64.encode(&found.verifier.salt), found.verifier.iterations);
        let header = BASE64.encode(format!("{binding},{authzid},"));
        Ok(Self {
            expected: format!("c={header},r={nonce}{ours}"),
            so_far: format!("{bare},r={nonce}{ours},s={salt},i={iterations}"),
            server_first_at: bare.len() + 1,
            user,
            found,
        })
    }

    /// The message that answers the first one.
    #[must_use]
    pub fn challenge(&self) -> Bytes {
        Bytes::copy_from_slice(self.so_far.get(self.server_first_at..).unwrap_or_default().as_bytes())
    }

    /// Takes the client's last message.
    ///
    /// # Errors
    /// [`ScramError`]
    pub fn end(self, client_final: &[u8]) -> Result<Proven, ScramError> {
        let message = text(client_final)?;
        let (without_proof, proof) =
            message.rsplit_once(",p=").ok_or(ScramError::Form("the last one ends with p="))?;
        let fits = without_proof
            .strip_prefix(&self.expected)
            .is_some_and(|extensions| extensions.is_empty() || extensions.starts_with(','));
        if !fits {
            return Err(ScramError::Form("c= and r= of the last one are those of the first two"));
        }
        let proof = verifier::key(proof).ok_or(ScramError::Form("p= is base64 of 32 bytes"))?;
        let auth_message = format!("{},{without_proof}", self.so_far);
        let Found { verifier, known } = &self.found;
        let mut client_key = hmac_sha256(&verifier.stored_key, auth_message.as_bytes());
        client_key.iter_mut().zip(proof).for_each(|(byte, proof)| *byte ^= proof);
        let same: bool = sha256(&client_key).ct_eq(&verifier.stored_key).into();
        if !same || !known {
            return Err(ScramError::Wrong);
        }
        let signature: [u8; KEY_BYTES] = hmac_sha256(&verifier.server_key, auth_message.as_bytes());
        Ok(Proven { user: self.user, signature: format!("v={}", BASE64.encode(signature)).into() })
    }
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(ScramError::Form("it is too long"));
    }
    std::str::from_utf8(message).map_err(|_| ScramError::Form("it is not UTF-8"))
}

/// A name with `=2C` for a comma and `=3D` for an equals sign, as it is compared.
fn user_name(escaped: &str) -> Result<ByteString, ScramError> {
    let mut parts = escaped.split('=');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (sign, rest) = match (part.strip_prefix("2C"), part.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (_, Some(rest)) => ('=', rest),
            (None, None) => return Err(ScramError::Form("= in a name is followed by 2C or 3D")),
        };
        name.push(sign);
        name.push_str(rest);
    }
    let prepared = verifier::prepare(&name).map_err(|_| ScramError::Form("the name is none"))?;
    if prepared.len() > MAX_NAME_BYTES {
        return Err(ScramError::Form("the name is too long"));
    }
    Ok(prepared.into_owned().into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::auth::users::tests::users;

    // RFC 7677, section 3.
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const OURS: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const CHALLENGE: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SIGNATURE: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn ends(users: &Users, first: &str, last: &str) -> Result<Proven, ScramError> {
        Exchange::begin_with(users, first.as_bytes(), OURS)?.end(last.as_bytes())
    }

    #[test]
    fn the_example_of_the_standard_holds() {
        let (_directory, users) = users();
        let exchange = Exchange::begin_with(&users, FIRST.as_bytes(), OURS).unwrap();
        assert_eq!(exchange.challenge(), CHALLENGE);
        let proven = exchange.end(LAST.as_bytes()).unwrap();
        assert_eq!(proven, Proven { user: "user".into(), signature: SIGNATURE.into() });
    }

    #[test]
    fn nonces_differ() {
        let (_directory, users) = users();
        let [one, two] = [(); 2].map(|()| Exchange::begin(&users, FIRST.as_bytes()).unwrap().challenge());
        assert_ne!(one, two);
        assert!(one.starts_with(b"r=rOprNGfwEbeRWgbNEkqO"));
    }

    #[test]
    fn an_unknown_user_and_a_wrong_proof_are_refused_alike() {
        let (_directory, users) = users();
        let unknown = FIRST.replace("n=user", "n=resu");
        assert_eq!(ends(&users, &unknown, LAST), Err(ScramError::Wrong));
        let proof = BASE64.encode([0; 32]);
        let last = LAST.split(",p=").next().unwrap();
        assert_eq!(ends(&users, FIRST, &format!("{last},p={proof}")), Err(ScramError::Wrong));
        // Whoever knows the secret of the file is not let in as nobody.
        let challenge = Exchange::begin_with(&users, unknown.as_bytes(), OURS).unwrap().challenge();
        let challenge = std::str::from_utf8(&challenge).unwrap();
        assert!(challenge.ends_with(",i=4096") && challenge.len() == CHALLENGE.len(), "{challenge}");
    }

    #[test]
    fn what_is_not_of_the_form_is_refused() {
        use ScramError as E;
        let (_directory, users) = users();
        let begin = |first: &str| Exchange::begin_with(&users, first.as_bytes(), OURS).map(|it| it.user);
        for form in [
            "",
            "n",
            "n,,",
            "n,,r=x",
            "n,,n=user",
            "n,,n=user,r=",
            "n,,n=user,r=a b",
            "x,,n=user,r=x",
            "n,b=user,n=user,r=x",
            "n,,n=,r=x",
            "n,,n=a=2Xb,r=x",
            "n,,n=\u{7},r=x",
            &format!("n,,n={},r=x", "a".repeat(257)),
            &format!("n,,n=user,r={}", "x".repeat(5000)),
        ] {
            assert!(matches!(begin(form), Err(E::Form(_))), "{form}: {:?}", begin(form));
        }
        for (unsupported, first) in [
            ("with channel binding", "p=tls-exporter,,n=user,r=x"),
            ("extension m", "n,,m=x,n=user,r=x"),
            ("in another user's name", "n,a=admin,n=user,r=x"),
        ] {
            assert_eq!(begin(first), Err(E::Unsupported(unsupported)));
        }
        assert_eq!(begin("y,a=user,n=user,r=x"), Ok("user".into()));
        assert_eq!(begin("n,,n=a=2Cb=3Dc,r=x,other=1"), Ok("a,b=c".into()));
        assert_eq!(Exchange::begin(&users, b"n,,n=\xff,r=x").unwrap_err(), E::Form("it is not UTF-8"));
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let key = BASE64.encode([0; 32]);
        for last in [
            String::new(),
            format!("c=biws,r={nonce}"),
            format!("c=biws,r={nonce}x,p={key}"),
            format!("c=biws,r=rOprNGfwEbeRWgbNEkqO,p={key}"),
            format!("c=eSws,r={nonce},p={key}"),
            format!("c=biws,r={nonce},p=AAAA"),
            format!("c=biws,r={nonce},p=!"),
        ] {
            assert!(matches!(ends(&users, FIRST, &last), Err(E::Form(_))), "{last}");
        }
        // An extension is passed over, but signed.
        assert_eq!(ends(&users, FIRST, &format!("c=biws,r={nonce},x=1,p={key}")), Err(E::Wrong));
    }

    /// The words of the standard's example with some bytes replaced, taken out or put in.
    fn spoilt(message: &'static str) -> impl Strategy<Value = Vec<u8>> {
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 0..4);
        changes.prop_map(|changes| {
            let mut bytes = message.as_bytes().to_vec();
            for (at, byte, how) in changes.into_iter().filter(|_| !message.is_empty()) {
                let at = at.index(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
                match how {
                    0 => bytes[at] = byte,
                    1 if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, byte),
                }
            }
            bytes
        })
    }

    proptest! {
        /// Whatever is said, nobody comes through but by the right words.
        #[test]
        fn no_other_words_are_a_proof(
            first in prop_oneof![spoilt(FIRST), prop::collection::vec(any::<u8>(), 0..100)],
            last in prop_oneof![spoilt(LAST), prop::collection::vec(any::<u8>(), 0..200)],
        ) {
            let (_directory, users) = users();
            if let Ok(exchange) = Exchange::begin_with(&users, &first, OURS) {
                let as_it_should = first == FIRST.as_bytes() && last == LAST.as_bytes();
                prop_assert_eq!(exchange.end(&last).is_ok(), as_it_should);
            }
        }
    }
}
