//! What the benchmark compares ublk-bpf with, as far as the guest's kernel does not bring it: kublk and rublk are
//! built, nbdkit, nbd-client, make-bcache and losetup are Debian's.

mod kublk;
mod rublk;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::packages;
use crate::guest::Config;
use crate::{cache, command};
use kublk::Kublk;

/// Where the guest has the version of the sources that kublk was built from: it cannot say it.
pub(crate) const KUBLK_VERSION: &str = "/usr/local/share/kublk/version";

/// Folder of the guest's PATH for what is built here.
const GUEST_BIN: &str = "/usr/local/bin";
/// nbdkit's plugin that holds nothing.
const NBDKIT_PLUGIN: &str = "nbdkit-null-plugin.so";

/// Everything that a guest has to be given.
#[derive(Debug)]
pub(crate) struct Peers {
    kublk: Kublk,
    rublk: PathBuf,
    nbdkit_plugin: PathBuf,
}

impl Peers {
    /// Adds them to what a guest is made of.
    pub(crate) fn hand_to(self, config: &mut Config) {
        // nbdkit looks for its plugin in the same place here and there.
        let plugin_in_guest = self.nbdkit_plugin.to_string_lossy().into_owned();
        config.built.extend([
            (self.kublk.program, format!("{GUEST_BIN}/kublk")),
            (self.rublk, format!("{GUEST_BIN}/rublk")),
            (self.nbdkit_plugin, plugin_in_guest),
        ]);
        config.files.push((self.kublk.version, KUBLK_VERSION.to_owned()));
        let programs = packages::PEERS.iter().map(|program| program.name.to_owned());
        config.programs.extend(programs);
    }
}

/// What is not there.
pub(crate) fn missing() -> Result<Vec<String>> {
    let mut missing = super::missing_packages(&packages::PEERS);
    if kublk::present()?.is_none() {
        missing.push("kublk".to_owned());
    }
    if rublk::present()?.is_none() {
        missing.push("rublk".to_owned());
    }
    Ok(missing)
}

/// Everything, obtained as far as it is missing.
pub(crate) fn obtain() -> Result<Peers> {
    packages::obtain(&packages::PEERS)?;
    let built = (kublk::present()?, rublk::present()?);
    let (kublk, rublk) = if let (Some(kublk), Some(rublk)) = built {
        (kublk, rublk)
    } else {
        packages::obtain(&packages::PEERS_BUILD)?;
        let kernel = super::guest()?;
        super::kernel_headers()?;
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
