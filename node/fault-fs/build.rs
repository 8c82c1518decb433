//! Compiles the shim against the headers of the RocksDB that is linked.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src/shim.cc");
    let sources = env::var_os("DEP_ROCKSDB_CARGO_MANIFEST_DIR")
        .map(|crate_dir| PathBuf::from(crate_dir).join("rocksdb"))
        .expect("librocksdb-sys says where it is");
    // Whatever decides about the layout of a class has to be as in the build of RocksDB itself.
    cc::Build::new()
        .cpp(true)
        .file("src/shim.cc")
        .include(&sources)
        .include(sources.join("include"))
        .flag("-std=c++20")
        .flag("-fno-rtti")
        .flag("-include")
        .flag("cstdint")
        .flag("-Wno-unused-parameter")
        .define("NDEBUG", "1")
        .define("OS_LINUX", None)
        .define("ROCKSDB_PLATFORM_POSIX", None)
        .define("ROCKSDB_LIB_IO_POSIX", None)
        .define("HAVE_ALIGNED_NEW", None)
        .define("HAVE_UINT128_EXTENSION", None)
        .compile("dynamo_fault_fs");
}
