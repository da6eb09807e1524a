//! Finds the BPF objects that this crate embeds.

use std::path::{Path, PathBuf};

/// What `cargo xtask build-ebpf` makes.
const OBJECTS: [&str; 5] = ["classifier", "passthrough", "drop-discard", "sparse", "fault"];

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf");
    let folder = folder.canonicalize().unwrap_or(folder);
    let paths: Vec<PathBuf> = OBJECTS
        .iter()
        .map(|name| folder.join(format!("{name}.o")))
        .collect();
    for path in &paths {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let missing = paths.iter().find(|path| !path.is_file());
    println!("cargo::rustc-env=UBLK_BPF_OBJECTS={}", folder.display());
    if let Some(missing) = missing {
        // Until the command exists everybody else's work must still build: an empty object is no object to the loader.
        println!(
            "cargo::warning=the BPF object {} is missing: run `cargo xtask build-ebpf` first",
            missing.display()
        );
        let _ = std::fs::create_dir_all(&folder);
        for path in paths.iter().filter(|path| !path.is_file()) {
            let _ = std::fs::write(path, []);
        }
    }
}
