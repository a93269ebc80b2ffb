//! The bodies of the fuzz targets (`fuzz/`) on stable: the cases as seeds, and a bounded number of seeded mutations.
//!
//! With `STAFETT_FUZZ_SEEDS=DIRECTORY` the seeds are written there, a directory for each target. `STAFETT_FUZZ_ROUNDS=N`
//! runs so many times the usual mutations, `STAFETT_SEED=N` others.

use std::path::PathBuf;

use stafett::mqtt::codec::{Mutator, fuzz_decode, peek_frame};
use stafett::mqtt::{fuzz_connection, fuzz_state};

use super::*;

/// Mutations of each seed.
const EACH: usize = 40;

/// What each peer of each case sends, CONNECT included.
pub(super) fn streams() -> Vec<(Version, Vec<u8>)> {
    let mut streams: Vec<(Version, Vec<u8>)> = Vec::new();
    for case in cases::files().into_iter().flat_map(|file| file.cases) {
        for version in BOTH {
            streams.extend(case.sent(version).into_iter().map(|bytes| (version, bytes)));
        }
    }
    assert!(streams.len() > 300, "{} seeds: are the cases found?", streams.len());
    // What takes long and says little.
    streams.retain(|(_, bytes)| bytes.len() < 10_000);
    streams
}

fn choice(version: Version) -> u8 {
    if version == V5 { 1 } else { 0 }
}

/// For the decoder: `[0]` and the stream, as a server reads it.
fn decode_seeds() -> Vec<Vec<u8>> {
    streams().into_iter().map(|(_, bytes)| [&[0][..], &bytes].concat()).collect()
}

/// For the state machine: `[choice]`, then each packet after CONNECT as `[0][length][packet]`, a delivery and an answer.
fn state_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (version, bytes) in streams() {
        for durable in [0, 2] {
            let mut seed = vec![choice(version) | durable];
            let mut rest = &bytes[..];
            while let Ok(Some(info)) = peek_frame(rest, &Limits::default()) {
                let Some((packet, after)) = rest.split_at_checked(info.total_len) else { break };
                rest = after;
                if packet[0] != 0x10 && packet.len() < 256 {
                    seed.extend_from_slice(&[0, packet.len() as u8]);
                    seed.extend_from_slice(packet);
                    seed.extend_from_slice(&[4, 1, 6, 1, 3, packet[0], 0, 1, 1]);
                }
            }
            seeds.push(seed);
        }
    }
    seeds
}

/// For a whole connection: `[pieces]` and the stream.
fn connection_seeds() -> Vec<Vec<u8>> {
    streams().into_iter().map(|(_, bytes)| [&[255][..], &bytes].concat()).collect()
}

/// Runs the seeds and so many mutations of each; writes the seeds where that is asked for.
fn run(target: &str, seeds: Vec<Vec<u8>>, each: usize, body: impl Fn(&[u8])) {
    if let Some(directory) = std::env::var_os("STAFETT_FUZZ_SEEDS") {
        let directory = PathBuf::from(directory).join(target);
        std::fs::create_dir_all(&directory).unwrap();
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(directory.join(format!("case-{number:04}")), seed).unwrap();
        }
    }
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<usize>().expect("a number"));
    let mut mutator = Mutator::seeded(number("STAFETT_SEED").unwrap_or(0x5eed).max(1) as u64);
    for seed in seeds {
        body(&seed);
        for _ in 0..each * number("STAFETT_FUZZ_ROUNDS").unwrap_or(1) {
            let mut data = seed.clone();
            for _ in 0..=mutator.below(4) {
                mutator.mutate(&mut data);
            }
            body(&data);
        }
    }
}

#[test]
fn the_decoder_survives() {
    run("decode", decode_seeds(), EACH, fuzz_decode);
}

#[test]
fn the_state_machine_survives() {
    run("state", state_seeds(), EACH, fuzz_state);
}

#[tokio::test]
async fn the_broker_survives() {
    let broker = Broker::start().await;
    let mut witness = Peer::subscribed(&broker, V5, "witness", QOS1).await;
    let before_kib = broker.resident_kib();
    let address = broker.address("mqtt");
    let fuzzing = tokio::task::spawn_blocking(move || {
        run("connection", connection_seeds(), 4, |data| fuzz_connection(address, data));
    });
    fuzzing.await.unwrap();
    witness.say("witness", QOS1, "x").await;
    assert_eq!(text(&witness.receive().await), "x");
    let grown = broker.resident_kib().saturating_sub(before_kib);
    assert!(grown < 64 << 10, "{grown} KiB more in memory");
    let ended = broker.terminate().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}
