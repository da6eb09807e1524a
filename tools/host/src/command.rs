//! Runs other programs; an error says which program, with which arguments, and what it said.

use std::ffi::OsStr;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Lines of a failed program's output that go into the error.
const ERROR_LINES: usize = 12;

/// Runs a program whose output the user shall see.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a program in silence and gives its standard output back; what it said on failure is in the error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}: {}", line(command), output.status, said(&output));
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something else than text", line(command)))
}

/// Runs a program in silence for at most `limit`; `Ok(None)` if it had to be killed, with all that it started.
pub fn output_within(command: &mut Command, limit: Duration) -> Result<Option<Output>> {
    use std::os::unix::process::CommandExt as _;
    // A file, not a pipe: it need not be read meanwhile, and a process left behind does not keep this from ending.
    let mut said = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            kill_group(&child);
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut stderr = Vec::new();
    said.rewind()?;
    said.read_to_end(&mut stderr)?;
    Ok(Some(Output {
        status,
        stdout: Vec::new(),
        stderr,
    }))
}

/// Kills a child that leads a process group, and the group.
fn kill_group(leader: &Child) {
    let Ok(group) = i32::try_from(leader.id()) else {
        return;
    };
    // SAFETY: kill takes no pointer. The child is not waited for yet, so that its id, the group's, is no one else's.
    unsafe { libc::kill(-group, libc::SIGKILL) };
}

/// The last lines a program printed, errors first, joined to one.
pub fn said(output: &Output) -> String {
    let text = if output.stderr.trim_ascii().is_empty() {
        &output.stdout
    } else {
        &output.stderr
    };
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(ERROR_LINES)..].join("; ")
}

/// A program's path, searched in `PATH` and in the folders of the system's own programs, which an ordinary
/// user's `PATH` lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        let path = PathBuf::from(program);
        return path.is_file().then_some(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The command as one would type it.
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(quote)
        .collect::<Vec<_>>()
        .join(" ")
}

/// `word` as a shell takes it literally.
pub fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_a_shell() {
        for word in [
            "plain",
            "",
            "two words",
            "it's",
            "$HOME `x` \"y\" \\ \n z",
            "a;b|c>d&",
            "*?[x]~#!",
        ] {
            let script = format!("printf %s {}", quote(OsStr::new(word)));
            let printed = Command::new("sh")
                .args(["-c", &script])
                .output()
                .expect("sh runs")
                .stdout;
            assert_eq!(String::from_utf8_lossy(&printed), word, "{script}");
        }
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"])).expect_err("fails");
        let text = format!("{error:#}");
        assert!(
            text.contains("sh -c") && text.contains("no luck") && text.contains('3'),
            "{text}"
        );
    }

    #[test]
    fn a_program_that_says_much_and_leaves_another_behind_ends() {
        let script = "sleep 5 & head -c 300000 /dev/zero >&2; exit 3";
        let output = output_within(Command::new("sh").args(["-c", script]), Duration::from_secs(4));
        let output = output.expect("sh starts").expect("it ends");
        assert_eq!((output.status.code(), output.stderr.len()), (Some(3), 300_000));
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let start = Instant::now();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let id = folder.path().join("id");
        let script = format!("sleep 60 & echo $! >{}; wait", quote(id.as_os_str()));
        let outcome = output_within(Command::new("sh").args(["-c", &script]), Duration::from_secs(1));
        assert!(outcome.expect("sh starts").is_none());
        assert!(start.elapsed() < Duration::from_secs(10));
        let id = std::fs::read_to_string(id).expect("sh has written it");
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", id.trim()));
        while state().is_ok_and(|state| !state.contains(") Z")) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "what it started is killed too"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
