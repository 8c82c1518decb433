//! Compiles the `.proto` files with protox, so that no `protoc` needs to be installed.
use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "dynamo/v1/kv.proto",
        "dynamo/peer/v1/peer.proto",
        "dynamo/admin/v1/admin.proto",
        "dynamo/fault/v1/fault.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let mut descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors.clone())?;
    // What users run has no faults on demand, so reflection does not speak of them.
    descriptors
        .file
        .retain(|file| file.package() != "dynamo.fault.v1");
    let path = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(path, descriptors.encode_to_vec())?;
    Ok(())
}
