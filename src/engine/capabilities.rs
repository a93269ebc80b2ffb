//! What an engine can honour, and how it does.

/// What an acknowledgement waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The disk has it: survives a killed process and a power cut.
    #[default]
    Fsync,
    /// Given at once; the disk has it within the configured interval.
    Interval,
    /// Given at once; the disk has it some time.
    Memory,
}

/// What an engine can honour; a setting beyond it is refused when it is made.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// Its name in the configuration.
    pub name: &'static str,
    /// What its tickets promise.
    pub durability: Durability,
}

/// How the engine does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Well.
    Ok,
    /// New messages are refused until there is room.
    LowDisk {
        /// What is left.
        free_bytes: u64,
        /// What is kept.
        watermark_bytes: u64,
    },
    /// Nothing is acknowledged any more.
    Failed(String),
}
