//! `--native`: fio on disks of this machine. What is measured is in `bench_guest::native`.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use host::{build, command, progress, setup, workspace};
use vm::Config;

use crate::{boot, obtain};

const HOW: &str = "\
# What an I/O takes on this machine

fio on real disks, by the clock on the wall, each subject in turn with all that is read in its cache: `cargo xtask bench
--native`. Latencies are those of the reads where there are any.
";

/// Measures on these devices, and writes the page.
pub(crate) fn run(devices: &[String], destroy_data: bool, options: &[(&str, u64)]) -> Result<ExitCode> {
    let (runner, server) = (boot::runner()?.0, build::server()?);
    let mut measure = Command::new(runner);
    measure.arg("native").args(devices);
    measure.args(destroy_data.then_some("--destroy-data"));
    for (name, value) in options {
        measure.args([*name, &value.to_string()]);
    }
    measure.env("PATH", path_with(&server)?);
    progress::note(&format!("measuring on {}", devices.join(" and ")));
    let rows = command::output(&mut measure)?;
    print!("{rows}");
    let page = workspace::target_dir()?.join("bench/native.md");
    fs::create_dir_all(page.parent().context("a page is in a folder")?)?;
    fs::write(&page, format!("{HOW}\n{rows}")).with_context(|| format!("cannot write {}", page.display()))?;
    progress::note(&format!("written: {}", page.display()));
    Ok(ExitCode::SUCCESS)
}

/// The RAM disks are empty at first; then they hold data, and are refused.
const IN_GUEST: &str = "\
modprobe brd rd_nr=2 rd_size=1048576 || exit
bench-guest native --seconds 1 --mib 32 /dev/ram1 /dev/ram0 || exit
echo data | dd of=/dev/ram0 bs=512 seek=2 conv=notrunc 2>/dev/null
! bench-guest native --seconds 1 --mib 32 /dev/ram1 /dev/ram0";

/// Does the same on the RAM disks of a guest, where times mean nothing.
pub(crate) fn in_guest() -> Result<ExitCode> {
    let kernel = setup::guest()?;
    let mut config = Config {
        built: vec![boot::runner()?, vm::server()?],
        ..boot::machine()
    };
    obtain::peers()?.hand_to(&mut config);
    progress::note(&format!("booting Linux {} for --native", kernel.release));
    let line = ["sh", "-c", IN_GUEST].map(str::to_owned);
    let outcome = vm::run(&config, &kernel, &line, &mut vm::Inherit)?;
    Ok(vm::exit_code(&outcome))
}

/// This program's folder before all others.
fn path_with(program: &Path) -> Result<std::ffi::OsString> {
    let folder = program
        .parent()
        .context("a program is in a folder")?
        .to_path_buf();
    let known = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder).chain(env::split_paths(&known));
    Ok(env::join_paths(folders)?)
}
