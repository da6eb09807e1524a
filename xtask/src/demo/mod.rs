//! `cargo xtask demo`: the main job, shown from end to end, with everything set up that it needs.
//!
//! On a kernel with batch-mode ublk, and as root, it runs right here; elsewhere in a guest. The scenario is the same
//! program either way: this one, as `xtask demo --here`, which the guest gets with its libraries.

mod cached;
mod device;
mod scenario;
mod tree;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use serde_json::Value;

use host::setup::packages;
use host::{apt, command, progress, setup, workspace};
use vm::{Config, Disk};

/// Where the guest has the source tree that is copied.
const GUEST_SOURCE: &str = "/root/source";
/// The guest's disk, on which the backing file lies.
const GUEST_DISK: &str = "/dev/vda";
const GUEST_DISK_BYTES: u64 = 1 << 30;

/// Where the guest has this program.
const GUEST_XTASK: &str = "/usr/local/bin/xtask";

/// Options of `demo`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run in the guest even if this kernel would do
    #[arg(long, conflicts_with = "here")]
    guest: bool,
    /// Run the scenario in this system and with the ublk-bpf on the PATH, whatever they are
    #[arg(long, hide = true)]
    here: bool,
    /// The folder to copy in and out
    #[arg(long, hide = true, value_name = "DIR", requires = "here")]
    source: Option<PathBuf>,
    /// A disk to make a file system on, for the backing file; all that is on it is lost
    #[arg(long, hide = true, value_name = "DEVICE", requires = "here")]
    scratch_disk: Option<PathBuf>,
}

/// Runs the scenario where it can be run.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.here {
        let source = match &options.source {
            Some(source) => source.as_path(),
            None => workspace::root()?,
        };
        return scenario::run(source, options.scratch_disk.as_deref());
    }
    // What may need the user's hand comes before the long build.
    if options.guest || !apt::is_root() {
        setup::guest_tools()?;
    } else {
        packages::obtain(&packages::TOOLS)?;
    }
    let server = vm::server()?;
    if !options.guest {
        match native(&server.0) {
            Ok(()) => return natively(&server.0),
            Err(why) => progress::note(&format!("{why:#}: the demo runs in a guest")),
        }
    }
    in_guest(server)
}

/// Whether this system can run the demo itself; the error says what it lacks.
fn native(ublk_bpf: &std::path::Path) -> Result<()> {
    anyhow::ensure!(apt::is_root(), "not root here");
    let said = command::output(Command::new(ublk_bpf).args(["features", "--json"]));
    let said = said.ok().context("no ublk in this kernel")?;
    let features: Value =
        serde_json::from_str(&said).context("`ublk-bpf features --json` printed no JSON")?;
    let sufficient = features.get("sufficient").and_then(Value::as_bool);
    anyhow::ensure!(
        sufficient == Some(true),
        "this kernel's ublk has no batch mode (Linux >= 7.0 has)"
    );
    Ok(())
}

fn natively(server: &std::path::Path) -> Result<ExitCode> {
    let binaries = server.parent().context("a program is in a folder")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths(std::iter::once(binaries.to_path_buf()).chain(std::env::split_paths(&path)))?;
    let (xtask, _) = this_program()?;
    let mut command = Command::new(&xtask);
    command
        .args(["demo", "--here", "--source"])
        .arg(workspace::root()?)
        .env("PATH", path);
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", xtask.display()))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn in_guest(server: (PathBuf, String)) -> Result<ExitCode> {
    setup::guest_tools()?;
    let kernel = setup::guest()?;
    let mut files = Vec::new();
    for path in tree::files(workspace::root()?)? {
        files.push((
            workspace::root()?.join(&path),
            format!("{GUEST_SOURCE}/{}", path.display()),
        ));
    }
    let config = Config {
        files,
        built: vec![server, this_program()?],
        disks: vec![Disk {
            bytes: GUEST_DISK_BYTES,
        }],
        ..Config::default()
    };
    progress::note(&format!("booting Linux {} in a guest", kernel.release));
    let argv = [
        GUEST_XTASK,
        "demo",
        "--here",
        "--source",
        GUEST_SOURCE,
        "--scratch-disk",
        GUEST_DISK,
    ];
    let outcome = vm::run(&config, &kernel, &argv.map(str::to_owned), &mut vm::Inherit)?;
    Ok(vm::exit_code(&outcome))
}

/// This program, and where the guest has it.
fn this_program() -> Result<(PathBuf, String)> {
    let path = std::env::current_exe().context("cannot find out where this program is")?;
    Ok((path, GUEST_XTASK.to_owned()))
}
