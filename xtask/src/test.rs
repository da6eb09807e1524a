//! `cargo xtask test`: unit and simulation tests on this machine, then those that need ublk in one guest.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::guest::{self, Config, Inherit, Outcome, Sink};
use crate::tally::{Counts, Tally};
use crate::{build_ebpf, command, progress, setup, vm, workspace};

/// The package whose tests need ublk.
const GUEST_PACKAGE: &str = "ublk-bpf-guest";
/// Where the guest has the test programs.
const GUEST_FOLDER: &str = "/usr/local/lib/tests";
/// The packages of policies that the tests attach, and where the guest has the objects.
const POLICIES: [&str; 2] = ["tests/policies", "examples/size-histogram"];
const POLICY_FOLDER: &str = "/root/policies";
const GUEST_CPUS: u32 = 4;
const GUEST_MEMORY: &str = "4G";
/// A test is silent until it ends, and everything is slow under emulation.
const GUEST_SILENCE: Duration = Duration::from_secs(300);

/// Options of `test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the tests that run on this machine
    #[arg(long, conflicts_with = "guest")]
    host: bool,
    /// Only the tests that run in the guest
    #[arg(long)]
    guest: bool,
    /// Of the guest's test programs, only this one (may be given several times)
    #[arg(long = "program", value_name = "NAME", conflicts_with = "host")]
    programs: Vec<String>,
    /// Only tests with this in their name
    filter: Option<String>,
}

impl Options {
    /// Everything.
    pub(crate) fn all() -> Self {
        Self {
            host: false,
            guest: false,
            programs: Vec::new(),
            filter: None,
        }
    }
}

/// Runs the tests and prints how many passed and failed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    build_ebpf::ensure()?;
    let mut counts = Counts::default();
    if !options.guest && options.programs.is_empty() {
        counts += host(options.filter.as_deref())?;
    }
    if !options.host {
        counts += in_guest(options)?;
    }
    println!("\n{counts}");
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn host(filter: Option<&str>) -> Result<Counts> {
    setup::kernel_headers()?;
    let mut cargo = workspace::cargo();
    cargo
        .args([
            "test",
            "--workspace",
            "--exclude",
            GUEST_PACKAGE,
            "--no-fail-fast",
        ])
        .args(filter);
    let mut child = cargo
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut output = child.stdout.take().context("cargo's output is piped")?;
    let mut tally = Tally::default();
    let mut buffer = [0; 16 * 1024];
    loop {
        match output.read(&mut buffer)? {
            0 => break,
            n => {
                tally.feed(&buffer[..n]);
                Inherit.out(&buffer[..n]);
            }
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.counts.failed == 0 {
        bail!("`{}` failed: {status}", command::line(&cargo));
    }
    Ok(tally.counts)
}

fn in_guest(options: &Options) -> Result<Counts> {
    setup::guest_tools()?;
    let kernel = setup::guest()?;
    let mut files = vec![(
        vm::build_static(&["ublk-bpf"])?.join("ublk-bpf"),
        "/usr/local/bin/ublk-bpf".to_owned(),
    )];
    for (name, path) in programs(&options.programs)? {
        files.push((path, format!("{GUEST_FOLDER}/{name}")));
    }
    for package in POLICIES {
        for object in build_ebpf::policy(&workspace::root().join(package))? {
            let name = object
                .file_name()
                .context("an object has a name")?
                .to_string_lossy();
            let place = format!("{POLICY_FOLDER}/{name}");
            files.push((object, place));
        }
    }
    let config = Config {
        cpus: GUEST_CPUS,
        memory: GUEST_MEMORY.to_owned(),
        silence: Some(GUEST_SILENCE),
        files,
        ..Config::default()
    };
    progress::note(&format!(
        "booting Linux {} for the tests that need ublk",
        kernel.release
    ));
    let mut watcher = Watcher::default();
    let outcome = guest::run(&config, &kernel, &script(options.filter.as_deref()), &mut watcher)?;
    let mut counts = watcher.tally.counts;
    match outcome {
        Outcome::Exited(0) => {}
        Outcome::Exited(_) if counts.failed > 0 => {}
        ended => {
            let test = watcher
                .tally
                .running()
                .map_or_else(String::new, |name| format!(" during the test {name}"));
            eprintln!("error: {}{test}", guest::describe(&ended));
            counts.failed += 1;
        }
    }
    Ok(counts)
}

/// Passes the output on and counts.
#[derive(Default)]
struct Watcher {
    tally: Tally,
}

impl Sink for Watcher {
    fn out(&mut self, bytes: &[u8]) {
        self.tally.feed(bytes);
        Inherit.out(bytes);
    }

    fn err(&mut self, bytes: &[u8]) {
        let _ = std::io::stderr().write_all(bytes);
    }
}

/// What the guest runs: every test program, one test at a time, and on after a failure.
fn script(filter: Option<&str>) -> [String; 3] {
    let filter = filter.map_or_else(String::new, |filter| command::quote(filter.as_ref()));
    let script = format!(
        "status=0; for program in {GUEST_FOLDER}/*; do \
         echo; echo \"     Running ${{program##*/}} (guest)\"; \
         \"$program\" --test-threads=1 {filter} || status=1; done; exit $status"
    );
    ["sh".to_owned(), "-c".to_owned(), script]
}

/// Builds the guest's test programs, static; gives their names and paths.
fn programs(only: &[String]) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "test",
        "--no-run",
        "--package",
        GUEST_PACKAGE,
        "--message-format=json-render-diagnostics",
    ]);
    match only {
        [] => {
            cargo.arg("--tests");
        }
        names => {
            cargo.args(names.iter().flat_map(|name| ["--test", name]));
        }
    }
    vm::make_static(&mut cargo);
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`{}` failed: {}", command::line(&cargo), output.status);
    }
    Ok(parse_messages(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_messages(text: &str) -> Vec<(String, PathBuf)> {
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = |message: Value| {
        let path = message.get("executable")?.as_str()?;
        let test = message.get("profile")?.get("test")?.as_bool()?;
        let name = message.get("target")?.get("name")?.as_str()?;
        test.then(|| (name.to_owned(), PathBuf::from(path)))
    };
    messages.filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let message = |name: &str, test: bool, path: &str| {
            format!(
                "{{\"target\":{{\"name\":\"{name}\"}},\"profile\":{{\"test\":{test}}},\"executable\":{path}}}\n"
            )
        };
        let text = [
            message("data", true, "\"/t/data-1\""),
            message("tool", false, "\"/t/tool\""),
            message("lib", true, "null"),
        ];
        assert_eq!(
            parse_messages(&text.concat()),
            [("data".to_owned(), PathBuf::from("/t/data-1"))]
        );
    }

    #[test]
    fn the_guest_goes_on_after_a_failure_and_remembers_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, body) in [("a", "exit 1"), ("b", "echo \"$2\"")] {
            let path = folder.path().join(name);
            crate::cache::write_whole(&path, format!("#!/bin/sh\n{body}\n").as_bytes()).expect("written");
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(path, executable).expect("made executable");
        }
        let [shell, flag, script] = script(Some("it's"));
        let script = script.replace(GUEST_FOLDER, &folder.path().to_string_lossy());
        let output = std::process::Command::new(shell)
            .args([flag, script])
            .output()
            .expect("sh runs");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("it's"),
            "{output:?}"
        );
        assert_eq!(output.status.code(), Some(1));
    }
}
