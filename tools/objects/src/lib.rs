//! The BPF objects that `ublk-bpf` embeds: `cargo xtask build-ebpf` builds them, `ublk-bpf/build.rs` picks them up.
//!
//! Both need the same facts: where the objects are, and which sources they were built from. A server that embeds
//! objects of other sources than its own would distrust every verdict.
//!
//! Every path here is relative to the root of a checkout, which the caller finds at run time. A path that is baked in
//! when a program is compiled survives a copy of the checkout, with its `target` folder, and points to the old one.

mod fingerprint;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The objects that the server embeds, without `.o`.
pub const NAMES: [&str; 16] = [
    "classifier",
    "passthrough",
    "drop-discard",
    "sparse",
    "fault",
    "lru",
    "scan-resistant",
    "auto",
    "frugal",
    "shares",
    "watch",
    "recorder",
    "histograms",
    "tracer",
    "asker",
    "shadow",
];
/// The folder of the objects, wherever cargo builds everything else.
pub const FOLDER: &str = "target/ebpf";
/// The folder of their sources, which is all that is compiled for BPF.
pub const SOURCES: &str = "ublk-bpf-ebpf";
/// The file beside the objects that says which sources they were built from.
const STAMP: &str = "fingerprint";

/// An object's file below the root of a checkout.
#[must_use]
pub fn path(root: &Path, name: &str) -> PathBuf {
    root.join(FOLDER).join(name).with_extension("o")
}

/// The file that says which sources the objects were built from.
#[must_use]
pub fn stamp(root: &Path) -> PathBuf {
    root.join(FOLDER).join(STAMP)
}

/// A number that changes when a source or manifest of the objects does: 16 hexadecimal digits.
///
/// # Errors
/// If a source cannot be read.
pub fn fingerprint(root: &Path) -> io::Result<String> {
    fingerprint::of(&root.join(SOURCES))
}

/// What is wrong with the objects of this checkout, if anything is.
#[must_use]
pub fn fault(root: &Path) -> Option<String> {
    for name in NAMES {
        let object = path(root, name);
        if !object.metadata().is_ok_and(|facts| facts.len() > 0) {
            return Some(format!("the BPF object {} is missing", object.display()));
        }
    }
    match fingerprint(root) {
        Err(error) => Some(format!("cannot read {}: {error}", root.join(SOURCES).display())),
        Ok(now) if fs::read_to_string(stamp(root)).is_ok_and(|then| then == now) => None,
        Ok(_) => Some("the BPF objects are older than their sources".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_good_as_long_as_their_sources_stay_the_same() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path();
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        let source = root.join(SOURCES).join("src/classifier.rs");
        write(source.clone(), "one");
        let fault = || fault(root).unwrap_or_default();
        assert!(fault().contains("classifier.o is missing"), "{}", fault());
        for name in NAMES {
            write(path(root, name), "object");
        }
        assert!(fault().contains("older"), "{}", fault());
        write(stamp(root), &fingerprint(root).expect("read"));
        assert_eq!(fault(), "");
        write(source, "two");
        assert!(fault().contains("older"), "{}", fault());
    }
}
