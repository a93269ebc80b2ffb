//! The packets that the codec's own property tests are made of.

#[expect(dead_code, reason = "the codec's own tests ask for more")]
#[path = "../../../../src/mqtt/codec/tests/packets.rs"]
mod packets;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use stafett::mqtt::codec::{Packet, Version};

/// So many of this version, the same on every run.
pub(super) fn packets(version: Version, count: usize) -> Vec<Packet> {
    let mut runner = TestRunner::deterministic();
    let strategy = packets::packet(version);
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}
