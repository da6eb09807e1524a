//! `cargo xtask test`: unit and simulation tests on this machine, then those that need ublk in one guest, and in another
//! one whether an I/O costs more than it did.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::bench::guard;
use crate::guest::{self, Config, Inherit, Outcome, Sink};
use crate::tally::Tally;
use crate::{build_ebpf, command, progress, setup, vm, workspace};

/// The package whose tests need ublk.
const GUEST_PACKAGE: &str = "ublk-bpf-guest";
const GUEST_TESTS: &str = "tests/guest";
/// Tells the tests of the command line which binary is meant: then the one that the guest gets is tested here too.
const BINARY_VARIABLE: &str = "UBLK_BPF_BINARY";
/// Where the guest has the test programs.
const GUEST_FOLDER: &str = "/usr/local/lib/tests";
/// The packages of policies that the tests attach, and where the guest has the objects.
const POLICIES: [&str; 5] = [
    "tests/policies",
    "examples/cgroup-tiers",
    "examples/metadata-first",
    "examples/pin-range",
    "examples/size-histogram",
];
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
    let (host, guest) = (!options.guest && options.programs.is_empty(), !options.host);
    if guest {
        setup::guest_tools()?;
    }
    let server = if guest { Some(vm::server()?) } else { None };
    build_ebpf::ensure()?;
    let programs = build(options)?;
    let mut tally = Tally::default();
    if host {
        on_host(options.filter.as_deref(), server.as_ref(), &mut tally)?;
    }
    if let Some(server) = server {
        in_guest(options.filter.as_deref(), server, programs, &mut tally)?;
    }
    if host && guest && options.filter.is_none() {
        println!();
        cost(&mut tally);
    }
    println!();
    for name in &tally.failures {
        println!("failed: {name}");
    }
    println!("{}", tally.counts);
    Ok(if tally.counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs this machine's tests. cargo's own words and the tests' come by one pipe, so that they stay in order.
fn on_host(filter: Option<&str>, server: Option<&(PathBuf, String)>, tally: &mut Tally) -> Result<()> {
    setup::kernel_headers()?;
    let (mut output, input) = std::io::pipe().context("cannot make a pipe")?;
    let mut cargo = workspace::cargo()?;
    cargo
        .args(["test", "--workspace", "--exclude", GUEST_PACKAGE])
        .arg("--no-fail-fast")
        .args(filter)
        .stdout(input.try_clone()?)
        .stderr(input);
    if let Some((path, _)) = server {
        cargo.env(BINARY_VARIABLE, path);
    }
    if std::io::stdout().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    let failed = tally.counts.failed;
    let line = command::line(&cargo);
    let mut child = cargo.spawn().context("cannot start cargo")?;
    // It holds the pipe's other end, which has to be closed for the output to end.
    drop(cargo);
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
    if !status.success() && tally.counts.failed == failed {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

fn in_guest(
    filter: Option<&str>,
    server: (PathBuf, String),
    programs: Vec<(String, PathBuf)>,
    tally: &mut Tally,
) -> Result<()> {
    let kernel = setup::guest()?;
    let place = |(name, path)| (path, format!("{GUEST_FOLDER}/{name}"));
    let built = programs.into_iter().map(place).chain([server]).collect();
    let config = Config {
        cpus: GUEST_CPUS,
        memory: GUEST_MEMORY.to_owned(),
        silence: Some(GUEST_SILENCE),
        files: policies()?,
        built,
        ..Config::default()
    };
    progress::note(&format!(
        "booting Linux {} for the tests that need ublk",
        kernel.release
    ));
    let failed = tally.counts.failed;
    let outcome = guest::run(&config, &kernel, &script(filter), &mut Watcher { tally })?;
    match outcome {
        Outcome::Exited(0) => {}
        Outcome::Exited(_) if tally.counts.failed > failed => {}
        ended => {
            let test = tally
                .running()
                .map_or_else(String::new, |name| format!(" during the test {name}"));
            let what = format!("{}{test}", guest::describe(&ended));
            eprintln!("error: {what}");
            tally.fail(&what);
        }
    }
    Ok(())
}

/// Counts as one test that an I/O costs no more than it did.
fn cost(tally: &mut Tally) {
    match guard::holds() {
        Ok(true) => tally.counts.passed += 1,
        Ok(false) => tally.fail("instructions per I/O (cargo xtask bench --guard)"),
        Err(error) => tally.fail(&format!("cargo xtask bench --guard: {error:#}")),
    }
}

/// The objects of the policies that the tests attach, and where the guest has them.
fn policies() -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for package in POLICIES {
        for object in build_ebpf::policy(&workspace::root()?.join(package))? {
            let name = object
                .file_name()
                .context("an object has a name")?
                .to_string_lossy();
            let place = format!("{POLICY_FOLDER}/{name}");
            files.push((object, place));
        }
    }
    Ok(files)
}

/// Passes the output on and counts.
struct Watcher<'a> {
    tally: &'a mut Tally,
}

impl Sink for Watcher<'_> {
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

/// Builds all test programs that are asked for; gives the names and paths of the guest's.
///
/// Always from the whole workspace, whatever is asked for: what is built of a library depends on who else is in the
/// selection, and would be built again for another.
fn build(options: &Options) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = workspace::cargo()?;
    cargo.args(["test", "--workspace", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics");
    if options.host {
        cargo.args(["--exclude", GUEST_PACKAGE]);
    } else if options.guest && options.programs.is_empty() {
        let names = guest_programs()?;
        cargo.args(names.iter().flat_map(|name| ["--test", name]));
    } else {
        cargo.args(options.programs.iter().flat_map(|name| ["--test", name]));
    }
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`{}` failed: {}", command::line(&cargo), output.status);
    }
    let manifest = workspace::root()?.join(GUEST_TESTS).join("Cargo.toml");
    Ok(parse_messages(
        &String::from_utf8_lossy(&output.stdout),
        &manifest,
    ))
}

/// The names of the guest's test programs.
fn guest_programs() -> Result<Vec<String>> {
    let folder = workspace::root()?.join(GUEST_TESTS).join("tests");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// The test programs of the package with this manifest among cargo's messages.
fn parse_messages(text: &str, manifest: &Path) -> Vec<(String, PathBuf)> {
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = |message: Value| {
        let path = message.get("executable")?.as_str()?;
        let test = message.get("profile")?.get("test")?.as_bool()?;
        let name = message.get("target")?.get("name")?.as_str()?;
        let package = message.get("manifest_path")?.as_str()?;
        (test && Path::new(package) == manifest).then(|| (name.to_owned(), PathBuf::from(path)))
    };
    messages.filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let message = |package: &str, name: &str, test: bool, path: &str| {
            format!(
                "{{\"manifest_path\":\"{package}\",\"target\":{{\"name\":\"{name}\"}},\
                 \"profile\":{{\"test\":{test}}},\"executable\":{path}}}\n"
            )
        };
        let text = [
            message("/w/guest/Cargo.toml", "data", true, "\"/t/data-1\""),
            message("/w/guest/Cargo.toml", "tool", false, "\"/t/tool\""),
            message("/w/guest/Cargo.toml", "lib", true, "null"),
            message("/w/cli/Cargo.toml", "cli", true, "\"/t/cli-1\""),
        ];
        assert_eq!(
            parse_messages(&text.concat(), Path::new("/w/guest/Cargo.toml")),
            [("data".to_owned(), PathBuf::from("/t/data-1"))]
        );
    }

    #[test]
    fn the_guests_programs_are_known() {
        let names = guest_programs().expect("listed");
        assert!(names.contains(&"data".to_owned()), "{names:?}");
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
