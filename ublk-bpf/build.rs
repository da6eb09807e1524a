//! Finds the BPF objects that this crate embeds.

use std::path::Path;

/// What `cargo xtask build-ebpf` makes.
const OBJECTS: [&str; 5] = ["classifier", "passthrough", "drop-discard", "sparse", "fault"];

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf");
    let folder = folder.canonicalize().unwrap_or(folder);
    println!("cargo::rustc-env=UBLK_BPF_OBJECTS={}", folder.display());
    for name in OBJECTS {
        let object = folder.join(format!("{name}.o"));
        println!("cargo::rerun-if-changed={}", object.display());
        let is_there = object.metadata().is_ok_and(|facts| facts.len() > 0);
        if !is_there {
            println!(
                "cargo::error=the BPF object {} is missing: run `cargo xtask build-ebpf`",
                object.display()
            );
            return;
        }
    }
}
