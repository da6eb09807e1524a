//! Copies the BPF objects that this crate embeds to `OUT_DIR`, after a check that they are as new as their sources.
//!
//! All paths are relative to this package, which is cargo's current folder for a build script. With absolute paths a
//! copied checkout would go on embedding the objects of the one it was copied from, and never notice.

use std::path::Path;
use std::{env, fs};

/// The checkout's root.
const ROOT: &str = "..";

fn main() {
    let root = Path::new(ROOT);
    for name in ublk_bpf_objects::NAMES {
        rerun_if_changed(&ublk_bpf_objects::path(root, name));
    }
    rerun_if_changed(&ublk_bpf_objects::stamp(root));
    rerun_if_changed(&root.join(ublk_bpf_objects::SOURCES));
    let fault = ublk_bpf_objects::fault(root).or_else(|| copy(root).err());
    if let Some(fault) = fault {
        println!("cargo::error={fault}: run `cargo xtask build-ebpf`");
    }
}

fn rerun_if_changed(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

/// Copies every object to where the compiler looks for it.
fn copy(root: &Path) -> Result<(), String> {
    let out = env::var_os("OUT_DIR").ok_or("cargo has not set OUT_DIR")?;
    for name in ublk_bpf_objects::NAMES {
        let from = ublk_bpf_objects::path(root, name);
        let to = Path::new(&out).join(format!("{name}.o"));
        fs::copy(&from, &to).map_err(|error| format!("cannot copy {}: {error}", from.display()))?;
    }
    Ok(())
}
