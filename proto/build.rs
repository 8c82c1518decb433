//! Compiles the `.proto` files with protox, so that no `protoc` needs to be installed.
use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut files = vec![
        "dynamo/v1/kv.proto",
        "dynamo/peer/v1/peer.proto",
        "dynamo/admin/v1/admin.proto",
    ];
    if env::var_os("CARGO_FEATURE_FAULTS").is_some() {
        files.push("dynamo/fault/v1/fault.proto");
    }
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(path, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
