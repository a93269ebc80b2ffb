//! Generates the clients from the published contract. Needs no `protoc`.

use std::error::Error;

const FILES: [&str; 3] = ["stafett/v1/call.proto", "stafett/v1/pubsub.proto", "stafett/v1/queue.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../../proto");
    tonic_prost_build::configure()
        .build_server(false)
        .extern_path(".google.rpc", "::tonic_types::pb")
        .emit_rerun_if_changed(false)
        .compile_fds(protox::compile(FILES, ["../../proto"])?)?;
    Ok(())
}
