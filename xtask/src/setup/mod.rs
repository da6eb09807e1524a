//! `cargo xtask setup`: obtains what is missing, says what it did, and is quick when nothing is.
//!
//! Other subcommands call the part they need. Everything goes to the cache folder but the programs of Debian that
//! [`packages`] lists, which are installed, and `rust-src` where rustup has it.

pub(crate) mod bpf_linker;
mod crates_io;
pub(crate) mod headers;
pub(crate) mod kernel;
pub(crate) mod packages;
pub(crate) mod peers;
pub(crate) mod rust_src;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::{cache, progress};
use kernel::Kernel;
use packages::Program;
use rust_src::Rustc;

/// Options of `setup`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only say what is missing; exit status 1 if something is
    #[arg(long)]
    check: bool,
    /// Also obtain what the benchmark compares and profiles with, as `bench` does when it needs it
    #[arg(long)]
    peers: bool,
}

/// What building BPF objects needs.
#[derive(Clone, Debug)]
pub(crate) struct BpfTools {
    pub(crate) linker: PathBuf,
    pub(crate) rustc: Rustc,
}

/// Obtains everything, or says what is missing.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.check {
        return check(options.peers);
    }
    // First what may need the user's hand.
    guest_tools()?;
    bpf_tools()?;
    kernel_headers()?;
    let kernel = guest()?;
    if options.peers {
        profiler()?;
        peers::obtain()?;
    }
    progress::note(&format!(
        "ready: BPF objects can be built, and Linux {} boots in the guest",
        kernel.release
    ));
    Ok(ExitCode::SUCCESS)
}

/// What building BPF objects needs: bpf-linker and the sources of `core`.
pub(crate) fn bpf_tools() -> Result<BpfTools> {
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
pub(crate) fn guest() -> Result<Kernel> {
    packages::obtain(&packages::GUEST)?;
    match kernel::present()? {
        Some(kernel) => Ok(kernel),
        None => {
            let _lock = cache::lock()?;
            kernel::obtain()
        }
    }
}

/// The kernel's headers that the tests compare with.
pub(crate) fn kernel_headers() -> Result<()> {
    if headers::present()?.is_none() {
        let _lock = cache::lock()?;
        headers::obtain()?;
    }
    Ok(())
}

/// The programs that the demo and the tests run in the guest.
pub(crate) fn guest_tools() -> Result<()> {
    packages::obtain(packages::GUEST.iter().chain(&packages::TOOLS))
}

/// What the benchmark profiles with.
pub(crate) fn profiler() -> Result<()> {
    packages::obtain(&packages::PROFILER)
}

fn check(with_peers: bool) -> Result<ExitCode> {
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
    if headers::present()?.is_none() {
        missing.push("the kernel's headers".to_owned());
    }
    if with_peers {
        missing.extend(missing_packages(&packages::PROFILER));
        missing.extend(peers::missing()?);
    }
    if missing.is_empty() {
        progress::note("nothing is missing");
        return Ok(ExitCode::SUCCESS);
    }
    progress::note(&format!(
        "missing: {}; `cargo xtask setup{}` obtains it",
        missing.join(", "),
        if with_peers { " --peers" } else { "" }
    ));
    Ok(ExitCode::FAILURE)
}

fn missing_packages<'a>(programs: impl IntoIterator<Item = &'a Program>) -> Vec<String> {
    let missing = packages::missing(programs).into_iter();
    missing.map(|package| format!("package {package}")).collect()
}
