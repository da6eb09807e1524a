//! Obtains what is missing, says what it did, and is quick when nothing is. Everything goes to the cache folder but the programs of Debian that
//! [`packages`] lists, which are installed, and `rust-src` where rustup has it.

pub mod bpf_linker;
pub mod crates_io;
pub mod headers;
pub mod kernel;
pub mod packages;
pub mod rust_src;
pub mod system;

use std::path::PathBuf;

use anyhow::Result;

use crate::cache;
use kernel::Kernel;
use packages::Program;
use rust_src::Rustc;

/// What building BPF objects needs.
#[derive(Clone, Debug)]
pub struct BpfTools {
    /// bpf-linker.
    pub linker: PathBuf,
    /// The compiler, with the sources of `core`.
    pub rustc: Rustc,
}

/// What building BPF objects needs: bpf-linker and the sources of `core`.
pub fn bpf_tools() -> Result<BpfTools> {
    if let (Some(linker), Some(rustc)) = (bpf_linker::present()?, rust_src::present()?) {
        return Ok(BpfTools { linker, rustc });
    }
    let _lock = cache::lock()?;
    Ok(BpfTools {
        rustc: rust_src::obtain()?,
        linker: bpf_linker::obtain()?,
    })
}

/// What booting a guest needs: qemu, busybox, a kernel.
pub fn guest() -> Result<Kernel> {
    packages::obtain(&packages::GUEST)?;
    match kernel::present()? {
        Some(kernel) => Ok(kernel),
        None => {
            let _lock = cache::lock()?;
            kernel::obtain()
        }
    }
}

/// The root file system with systemd for the guest that boots one.
pub fn system() -> Result<PathBuf> {
    match system::present()? {
        Some(folder) => Ok(folder),
        None => {
            let _lock = cache::lock()?;
            system::obtain()
        }
    }
}

/// The kernel's headers that the tests compare with.
pub fn kernel_headers() -> Result<()> {
    if headers::present()?.is_none() {
        let _lock = cache::lock()?;
        headers::obtain()?;
    }
    Ok(())
}

/// The programs that the demo and the tests run in the guest.
pub fn guest_tools() -> Result<()> {
    packages::obtain(packages::GUEST.iter().chain(&packages::TOOLS))
}

/// What is missing of all that the above obtain, in words.
///
/// # Errors
/// If the cache cannot be read.
pub fn missing() -> Result<Vec<String>> {
    let mut missing = missing_packages(packages::GUEST.iter().chain(&packages::TOOLS));
    if bpf_linker::present()?.is_none() {
        missing.push("bpf-linker".to_owned());
    }
    if rust_src::present()?.is_none() {
        missing.push("rust-src".to_owned());
    }
    if kernel::present()?.is_none() {
        missing.push("a Linux >= 7.0 kernel for the guest".to_owned());
    }
    if system::present()?.is_none() {
        missing.push("a system with systemd for the guest".to_owned());
    }
    if headers::present()?.is_none() {
        missing.push("the kernel's headers".to_owned());
    }
    Ok(missing)
}

/// The packages of the programs that are not there, in words.
pub fn missing_packages<'a>(programs: impl IntoIterator<Item = &'a Program>) -> Vec<String> {
    let missing = packages::missing(programs).into_iter();
    missing.map(|package| format!("package {package}")).collect()
}
