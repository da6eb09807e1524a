//! bpf-linker, which makes BPF objects of what rustc compiles for `bpfel-unknown-none`.

use std::path::PathBuf;

use anyhow::Result;

use super::crates_io::{Crate, version_of};
use crate::command;

const BPF_LINKER: Crate = Crate {
    name: "bpf-linker",
    // The last one that links with the LLVM inside rustc 1.95; 0.11 wants a system LLVM 23.
    version: "0.10.3",
    options: &[],
    flags: None,
};

/// The linker, if it is there: in the cache, or on the user's PATH in this version.
pub fn present() -> Result<Option<PathBuf>> {
    if let Some(path) = BPF_LINKER.present()? {
        return Ok(Some(path));
    }
    let path = command::find(BPF_LINKER.name);
    Ok(path.filter(|path| version_of(path).as_deref() == Some(BPF_LINKER.version)))
}

/// The linker, built if it is not there. The caller holds the cache's lock.
pub fn obtain() -> Result<PathBuf> {
    match present()? {
        Some(path) => Ok(path),
        None => BPF_LINKER.build(),
    }
}
