//! Programs that the benchmark compares ublk-bpf with and that are not in the guest's kernel: kublk and rublk are
//! built, nbdkit, nbd-client, make-bcache and losetup are Debian's.

mod kublk;
pub(crate) mod libcachesim;
mod rublk;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use host::setup::packages::{self, Program};
use host::{cache, command, setup};
use kublk::Kublk;
use vm::Config;

use bench_guest::peers::KUBLK_VERSION;

/// Folder of the guest's PATH for what is built here.
const GUEST_BIN: &str = "/usr/local/bin";
/// nbdkit's plugin that holds nothing.
const NBDKIT_PLUGIN: &str = "nbdkit-null-plugin.so";

/// Debian packages that the benchmark compares with.
const PEERS: [Program; 4] = [
    Program {
        name: "nbdkit",
        package: "nbdkit",
    },
    Program {
        name: "nbd-client",
        package: "nbd-client",
    },
    Program {
        name: "make-bcache",
        package: "bcache-tools",
    },
    Program {
        name: "losetup",
        package: "mount",
    },
];

/// Debian packages that are needed to build the others. libublk's build script wants libclang, which comes with clang.
const PEERS_BUILD: [Program; 2] = [
    Program {
        name: "gcc",
        package: "gcc",
    },
    Program {
        name: "clang",
        package: "clang",
    },
];

/// Debian packages that the benchmark profiles with.
const PROFILER: [Program; 1] = [Program {
    name: "perf",
    package: "linux-perf",
}];

/// Everything that is copied to a guest.
#[derive(Debug)]
pub(crate) struct Peers {
    kublk: Kublk,
    rublk: PathBuf,
    nbdkit_plugin: PathBuf,
}

impl Peers {
    /// Adds them to the guest's files.
    pub(crate) fn hand_to(self, config: &mut Config) {
        // nbdkit looks for its plugin in the same place in the guest as here.
        let plugin_in_guest = self.nbdkit_plugin.to_string_lossy().into_owned();
        config.built.extend([
            (self.kublk.program, format!("{GUEST_BIN}/kublk")),
            (self.rublk, format!("{GUEST_BIN}/rublk")),
            (self.nbdkit_plugin, plugin_in_guest),
        ]);
        config.files.push((self.kublk.version, KUBLK_VERSION.to_owned()));
        let programs = PEERS.iter().map(|program| program.name.to_owned());
        config.programs.extend(programs);
    }
}

/// Obtains the profiler.
pub(crate) fn profiler() -> Result<()> {
    packages::obtain(&PROFILER)
}

/// What is missing.
pub(crate) fn missing() -> Result<Vec<String>> {
    let mut missing = setup::missing_packages(PEERS.iter().chain(&PROFILER));
    if kublk::present()?.is_none() {
        missing.push("kublk".to_owned());
    }
    if rublk::present()?.is_none() {
        missing.push("rublk".to_owned());
    }
    if libcachesim::present()?.is_none() {
        missing.push(format!("libcachesim {}", libcachesim::VERSION));
    }
    Ok(missing)
}

/// The cache algorithms that the cache is compared with.
pub(crate) fn algorithms() -> Result<()> {
    if libcachesim::present()?.is_none() {
        let _lock = cache::lock()?;
        libcachesim::obtain()?;
    }
    Ok(())
}

/// Obtains everything that is missing.
pub(crate) fn peers() -> Result<Peers> {
    packages::obtain(&PEERS)?;
    let built = (kublk::present()?, rublk::present()?);
    let (kublk, rublk) = if let (Some(kublk), Some(rublk)) = built {
        (kublk, rublk)
    } else {
        packages::obtain(&PEERS_BUILD)?;
        let kernel = setup::guest()?;
        setup::kernel_headers()?;
        let _lock = cache::lock()?;
        (kublk::obtain(&kernel)?, rublk::obtain()?)
    };
    Ok(Peers {
        kublk,
        rublk,
        nbdkit_plugin: nbdkit_plugin()?,
    })
}

/// Where this machine's nbdkit has its plugin.
fn nbdkit_plugin() -> Result<PathBuf> {
    let text = command::output(Command::new("nbdkit").arg("--dump-config"))?;
    let folder = text.lines().find_map(|line| line.strip_prefix("plugindir="));
    let folder = folder.context("`nbdkit --dump-config` names no plugindir")?;
    let plugin = PathBuf::from(folder).join(NBDKIT_PLUGIN);
    ensure!(
        plugin.is_file(),
        "nbdkit's null plugin was wanted, but there is no {}: reinstall nbdkit",
        plugin.display()
    );
    Ok(plugin)
}
