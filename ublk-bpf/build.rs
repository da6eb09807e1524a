//! Finds the BPF objects that this crate embeds, and checks that they were built from the sources that are there.

#[path = "../xtask/src/fingerprint.rs"]
mod fingerprint;

use std::fs;
use std::path::Path;

/// What `cargo xtask build-ebpf` makes.
const OBJECTS: [&str; 7] = [
    "classifier",
    "passthrough",
    "drop-discard",
    "sparse",
    "fault",
    "lru",
    "scan-resistant",
];

fn main() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let workspace = workspace.canonicalize().unwrap_or(workspace);
    let objects = workspace.join("target/ebpf");
    println!("cargo::rustc-env=UBLK_BPF_OBJECTS={}", objects.display());
    if let Some(wrong) = wrong(&objects, &workspace.join(fingerprint::SOURCES)) {
        println!("cargo::error={wrong}: run `cargo xtask build-ebpf`");
    }
}

/// What is wrong with the objects, if anything is.
fn wrong(objects: &Path, sources: &Path) -> Option<String> {
    let stamp = objects.join(fingerprint::FILE);
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-changed={}", stamp.display());
    for name in OBJECTS {
        let object = objects.join(format!("{name}.o"));
        println!("cargo::rerun-if-changed={}", object.display());
        if !object.metadata().is_ok_and(|facts| facts.len() > 0) {
            return Some(format!("the BPF object {} is missing", object.display()));
        }
    }
    match fingerprint::of(sources) {
        Err(error) => Some(format!("cannot read {}: {error}", sources.display())),
        Ok(now) if fs::read_to_string(stamp).is_ok_and(|then| then == now) => None,
        Ok(_) => Some("the BPF objects are older than their sources".to_owned()),
    }
}
