//! Who a peer is: users with passwords, checked as they are or by SCRAM-SHA-256 (RFC 5802, RFC 7677).
//!
//! - `verifier`: what is stored of a password;
//! - `file`: the users' file, read and changed;
//! - `users`: the file in use, read again on demand;
//! - `passwords`: passwords checked on threads that may block, so many at a time;
//! - [`scram`]: the server's side of an exchange, without I/O.
//!
//! Invariants: no password is stored or logged; what is compared with a secret is compared in constant time; who is not
//! known is answered as if it were, and at the same cost. Knows no protocol, no socket and no configuration.

mod file;
mod passwords;
pub mod scram;
mod users;
mod verifier;

pub use file::{ChangeError, FileError, LineProblem, NameProblem, change};
pub use passwords::{Busy, Passwords};
pub use users::{Users, UsersError};
pub use verifier::{DEFAULT_ITERATIONS, ITERATIONS, NewError, NoRandom, NotAVerifier, Unprepared, Verifier};
