//! Compiles the echo service and the contract of the broker to Rust. Needs no `protoc`.

const CONTRACT: &str = "../../proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed={CONTRACT}");

    let echo = protox::compile(["proto/echo.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").emit_rerun_if_changed(false).compile_fds(echo)?;

    let services = ["stafett/v1/queue.proto", "stafett/v1/pubsub.proto", "stafett/v1/call.proto"];
    let contract = protox::compile(services, [CONTRACT])?;
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".")
        .extern_path(".stafett.v1.Message", "crate::stafett::lean::Message")
        .extern_path(".stafett.v1.Delivery", "crate::stafett::lean::Delivery")
        .extern_path(".stafett.v1.LeasedMessage", "crate::stafett::lean::LeasedMessage")
        .include_file("stafett.rs")
        .emit_rerun_if_changed(false)
        .compile_fds(contract)?;
    Ok(())
}
