//! Stafett.
