//! The tests that need ublk: as many guests at once as this machine has CPUs for, each of which asks for the next test
//! program as soon as it is done with one.

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::programs;
use super::sections::Sections;
use super::tally::Tally;
use host::setup::kernel::Kernel;
use host::{command, progress, setup};
use vm::{Config, Disk, Outcome, Sink};

/// Where the guest has the test programs.
const FOLDER: &str = "/usr/local/lib/tests";
/// Where the guest's script asks for the next one.
const CONTROL: &str = "/dev/hvc2";
/// CPUs of a guest. They take turns on one of this machine's.
const CPUS: u32 = 4;
const MEMORY_GIB: u64 = 4;
/// A test is silent until it ends, and everything is slow under emulation.
const SILENCE: Duration = Duration::from_secs(600);
/// The test program of the guest with systemd: it is run before that is booted, as its service, and after its shutdown.
const SYSTEM: &str = "systemd";
/// It takes a third of that.
const SYSTEM_LIMIT: Duration = Duration::from_secs(300);
/// Of the guest with systemd, the disk that a device is on.
const SYSTEM_DISK: u64 = 256 << 20;
/// The programs that take longest, in this order: begun last, one of them would run alone at the end.
const LONGEST: [&str; 5] = ["torture", "cache", "warm", "robust", "several"];

/// Runs all these test programs.
pub(super) fn run(
    filter: Option<&str>,
    server: (PathBuf, String),
    programs: Vec<(String, PathBuf)>,
    live: bool,
) -> Result<Tally> {
    let kernel = setup::guest()?;
    let (of_system, programs): (Vec<_>, Vec<_>) = programs.into_iter().partition(|(name, _)| name == SYSTEM);
    // Its parts make one test.
    let of_system = of_system.into_iter().next().filter(|_| filter.is_none());
    let of_system = of_system
        .map(|program| system(program, server.clone()))
        .transpose()?;
    let names = longest_first(programs.iter().map(|(name, _)| name.clone()).collect());
    let cpus = available_parallelism().map_or(1, usize::from);
    let guests = at_once(names.len(), cpus, &std::fs::read_to_string("/proc/meminfo")?);
    let ordinary = Config {
        cpus: CPUS,
        memory: format!("{MEMORY_GIB}G"),
        silence: Some(SILENCE),
        files: programs::policies()?,
        built: programs.into_iter().map(place).chain([server]).collect(),
        ..Config::default()
    };
    progress::note(&format!(
        "booting Linux {} for the tests that need ublk ({guests} at a time)",
        kernel.release
    ));
    let queue = Queue(Mutex::new(names.into()));
    let mut tally = Tally::default();
    let live = live && guests == 1;
    let run = |config: Option<&Config>| {
        let mut tally = Tally::default();
        if let Some(config) = config {
            tally = one_guest(config, &kernel, &script_of_system(), &Queue::default(), live)?;
        }
        if !queue.names().is_empty() {
            tally.absorb(one_guest(&ordinary, &kernel, &script(filter), &queue, live)?);
        }
        Ok::<_, anyhow::Error>(tally)
    };
    let run = &run;
    std::thread::scope(|scope| {
        // The first has that guest before its own.
        let configs = std::iter::once(of_system.as_ref()).chain(std::iter::repeat(None));
        let started: Vec<_> = configs
            .take(guests)
            .map(|config| scope.spawn(move || run(config)))
            .collect();
        for guest in started {
            tally.absorb(guest.join().map_err(|_| anyhow!("a guest's thread panicked"))??);
        }
        Ok::<_, anyhow::Error>(())
    })?;
    for name in queue.rest() {
        tally.fail(&format!("{name} was not run: no guest was left"));
    }
    Ok(tally)
}

/// The guest with systemd, for its test program.
fn system(program: (String, PathBuf), server: (PathBuf, String)) -> Result<Config> {
    Ok(Config {
        memory: "2G".to_owned(),
        timeout: Some(SYSTEM_LIMIT),
        built: vec![place(program), server],
        system: Some(setup::system()?),
        disks: vec![Disk { bytes: SYSTEM_DISK }],
        ..Config::default()
    })
}

/// A test program, and where the guest has it.
fn place((name, path): (String, PathBuf)) -> (PathBuf, String) {
    (path, format!("{FOLDER}/{name}"))
}

/// Runs programs of the queue in one guest until none is left.
fn one_guest(
    config: &Config,
    kernel: &Kernel,
    script: &[String],
    queue: &Queue,
    live: bool,
) -> Result<Tally> {
    let mut job = Job {
        tally: Tally::default(),
        sections: Sections::new(live),
        queue,
    };
    let outcome = vm::run(config, kernel, script, &mut job)?;
    let Job { mut tally, .. } = job;
    match outcome {
        Outcome::Exited(0) => {}
        Outcome::Exited(_) if tally.counts.failed > 0 => {}
        ended => {
            let test = tally
                .running()
                .map_or_else(String::new, |name| format!(" during the test {name}"));
            let what = format!("{}{test}", vm::describe(&ended));
            eprintln!("error: {what}");
            tally.fail(&what);
        }
    }
    Ok(tally)
}

/// The programs that no guest has begun.
#[derive(Default)]
struct Queue(Mutex<VecDeque<String>>);

impl Queue {
    fn names(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rest(&self) -> Vec<String> {
        self.names().drain(..).collect()
    }
}

/// What one guest does: it takes programs from the queue, and their output is passed on and counted.
struct Job<'a> {
    tally: Tally,
    sections: Sections,
    queue: &'a Queue,
}

impl Sink for Job<'_> {
    fn out(&mut self, bytes: &[u8]) {
        self.tally.feed(bytes);
        self.sections.feed(bytes);
    }

    fn err(&mut self, bytes: &[u8]) {
        let _ = std::io::stderr().write_all(bytes);
    }

    fn next(&mut self) -> Option<String> {
        self.queue.names().pop_front()
    }
}

/// How many guests are booted for so many programs: one for each CPU, and no more than this machine has memory for.
fn at_once(programs: usize, cpus: usize, meminfo: &str) -> usize {
    let available = meminfo.lines().find_map(|line| {
        let kib = line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?;
        kib.parse::<u64>().ok()
    });
    let fit = available.unwrap_or(0) / (MEMORY_GIB << 20);
    programs
        .min(cpus)
        .min(usize::try_from(fit).unwrap_or(usize::MAX))
        .max(1)
}

/// These programs in the order in which they are begun.
fn longest_first(mut names: Vec<String>) -> Vec<String> {
    let rank = |name: &String| {
        LONGEST
            .iter()
            .position(|long| long == name)
            .unwrap_or(LONGEST.len())
    };
    names.sort_by(|one, other| rank(one).cmp(&rank(other)).then_with(|| one.cmp(other)));
    names
}

/// What a guest runs: the test programs that it is given, one test at a time, and on after a failure.
fn script(filter: Option<&str>) -> [String; 3] {
    // What a failed test has left must not fail others.
    let filter = filter.map_or_else(String::new, |filter| command::quote(filter.as_ref()));
    let script = format!(
        "exec 5<>{CONTROL}; status=0; \
         while echo next >&5 && read -r program <&5 && [ -n \"$program\" ]; do \
         echo; echo \"     Running $program (guest)\"; \
         {FOLDER}/\"$program\" --test-threads=1 {filter} 5>&- && continue; \
         status=1; ublk-bpf stop --all --force 5>&-; done; exit $status"
    );
    ["sh".to_owned(), "-c".to_owned(), script]
}

/// What a guest with systemd runs three times: the tests of the module that its argument names.
fn script_of_system() -> [String; 4] {
    let script = format!(
        "echo; echo \"     Running {SYSTEM}, $1 (guest)\"; exec {FOLDER}/{SYSTEM} --test-threads=1 \"$1::\""
    );
    ["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_guests_as_programs_cpus_and_memory_allow() {
        let with = |gib: u64| format!("MemTotal: 1 kB\nMemAvailable:   {} kB\n", (gib << 20) + 1);
        assert_eq!(at_once(16, 2, &with(20)), 2);
        assert_eq!(at_once(1, 2, &with(20)), 1);
        assert_eq!(at_once(16, 8, &with(14)), 3);
        assert_eq!(at_once(16, 8, &with(2)), 1, "it may be enough");
        assert_eq!(at_once(16, 8, ""), 1);
    }

    #[test]
    fn the_longest_programs_are_begun_first() {
        let names = ["classifier", "several", "torture", "data"].map(str::to_owned);
        assert_eq!(
            longest_first(names.to_vec()),
            ["torture", "several", "classifier", "data"]
        );
        let there = programs::guest_programs().expect("listed");
        for name in LONGEST {
            assert!(
                there.iter().any(|other| other == name),
                "{name} is not in {there:?}"
            );
        }
    }

    #[test]
    fn the_guest_goes_on_after_a_failure_and_remembers_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, body) in [("a", "exit 1"), ("b", "echo \"$2\"")] {
            let path = folder.path().join(name);
            host::cache::write_whole(&path, format!("#!/bin/sh\n{body}\n").as_bytes()).expect("written");
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(path, executable).expect("made executable");
        }
        // A file in the place of the channel: each question goes to the dots, and the answer stands after them.
        let control = folder.path().join("control");
        std::fs::write(&control, "....\na\n....\nb\n....\n\n").expect("written");
        let [shell, flag, script] = script(Some("it's"));
        let script = script
            .replace(FOLDER, &folder.path().to_string_lossy())
            .replace(CONTROL, &control.to_string_lossy());
        let output = std::process::Command::new(shell)
            .args([flag, script])
            .output()
            .expect("sh runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("Running b (guest)\nit's\n"), "{output:?}");
        assert_eq!(output.status.code(), Some(1));
        let asked = std::fs::read_to_string(control).expect("read");
        assert_eq!(asked, "next\na\nnext\nb\nnext\n\n");
    }
}
