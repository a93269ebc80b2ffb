//! Share groups: of each message one member gets one.

/// Identifies a share group while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareKey(pub(crate) u64);

/// The members of `$share/<group>/<filter>`.
#[derive(Debug)]
pub struct ShareGroup {
    _key: ShareKey,
}
