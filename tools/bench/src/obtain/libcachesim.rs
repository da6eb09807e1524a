//! libCacheSim, whose algorithms the cache is compared with on traces: the wheel of PyPI in a virtual environment.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use host::{cache, command, progress};

/// The version that is compared with.
pub(crate) const VERSION: &str = "0.3.5";
/// The interpreter in the environment.
const PYTHON: &str = "bin/python";

fn folder() -> Result<PathBuf> {
    Ok(cache::dir()?.join(format!("libcachesim-{VERSION}")))
}

/// A Python that has it.
pub(crate) fn present() -> Result<Option<PathBuf>> {
    let folder = folder()?;
    Ok(cache::is_complete(&folder).then(|| folder.join(PYTHON)))
}

/// The same, made if it is not there. The caller holds the cache's lock.
pub(super) fn obtain() -> Result<PathBuf> {
    if let Some(python) = present()? {
        return Ok(python);
    }
    let step = progress::step(format!("installing libcachesim {VERSION}"));
    let folder = folder()?;
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&folder);
    command::output(&mut venv)
        .context("a virtual environment needs Debian's package python3-venv, or its like")?;
    let python = folder.join(PYTHON);
    // Of the wheel's dependencies, its cache algorithms need only numpy.
    let wheel = format!("libcachesim=={VERSION}");
    for wanted in [&["numpy"][..], &["--no-deps", &wheel]] {
        let mut pip = Command::new(&python);
        command::output(pip.args(["-m", "pip", "install", "--quiet"]).args(wanted))?;
    }
    command::output(Command::new(&python).args(["-c", "import libcachesim"]))?;
    cache::complete(&folder, &[PathBuf::from("pyvenv.cfg"), PathBuf::from(PYTHON)])?;
    step.done(&format!("installed libcachesim {VERSION}"));
    Ok(python)
}
