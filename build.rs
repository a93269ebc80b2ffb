//! Compiles `proto/` to Rust, and keeps the descriptors for reflection. Needs no `protoc`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "grpc")]
    if let Err(error) = protos::compile() {
        println!("cargo::error=cannot compile proto/: {error}");
        std::process::exit(1);
    }
}

#[cfg(feature = "grpc")]
mod protos {
    use std::path::PathBuf;
    use std::{env, error, fs};

    const FILES: [&str; 8] = [
        "google/rpc/code.proto",
        "google/rpc/error_details.proto",
        "stafett/v1/admin.proto",
        "stafett/v1/call.proto",
        "stafett/v1/common.proto",
        "stafett/v1/pubsub.proto",
        "stafett/v1/queue.proto",
        "stafett/v1beta1/log.proto",
    ];

    pub(super) fn compile() -> Result<(), Box<dyn error::Error>> {
        println!("cargo::rerun-if-changed=proto");
        let mut compiler = protox::Compiler::new(["proto"])?;
        compiler.include_imports(true).include_source_info(true).open_files(FILES)?;

        let out = PathBuf::from(env::var("OUT_DIR")?);
        fs::write(out.join("stafett.bin"), compiler.encode_file_descriptor_set())?;
        tonic_prost_build::configure()
            .bytes(".")
            .extern_path(".google.rpc", "::tonic_types::pb")
            .extern_path(".stafett.v1.DeliveryBatch", "crate::grpc::DeliveryBatch")
            .emit_rerun_if_changed(false)
            .compile_fds(compiler.file_descriptor_set())?;
        Ok(())
    }
}
