//! How the command reports an error: one line.

use std::process::ExitCode;

use clap::error::ErrorKind;

use super::output::OutputError;
use crate::log;

/// A wrong command line that clap does not detect: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// Prints what clap has to say. Help and version are answers, not failures.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // If standard output is closed, there is nowhere to report it.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            log::say(condense(&error.render().to_string()));
            ExitCode::from(2)
        }
    }
}

/// What a shell makes of a program that SIGPIPE ended.
const UNREAD: u8 = 128 + 13;

/// Prints why a command failed, with every cause. A closed pipe on standard output is not an error.
pub(super) fn failure(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref().is_some_and(OutputError::is_unread) {
        return ExitCode::from(UNREAD);
    }
    log::say(one_line(error));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}

/// An error and its causes in one line. A cause whose text is already part of the line is skipped.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    plain(&told.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

/// The text without control characters, which a name in it may have brought to the terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// clap's report in one line: what is wrong, its tips, and where to read on.
fn condense(report: &str) -> String {
    let mut parts = Vec::new();
    let mut help = "ublk-bpf --help".to_owned();
    for paragraph in report.trim().split("\n\n") {
        let line = paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        if let Some(what) = line.strip_prefix("error: ") {
            parts.push(what.to_owned());
        } else if let Some(tip) = line.strip_prefix("tip: ") {
            parts.push(tip.to_owned());
        } else if let Some(synopsis) = line.strip_prefix("Usage: ") {
            let command: Vec<_> = synopsis
                .split(' ')
                .take_while(|w| !w.starts_with(['-', '<', '[']) && *w != "...")
                .collect();
            help = format!("{} --help", command.join(" "));
        }
    }
    plain(&format!("{} (see `{help}`)", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_clap_becomes_one_line() {
        assert_eq!(
            condense(
                "error: the following required arguments were not provided:\n  <ID>\n\nUsage: ublk-bpf show <ID>\n\nFor more information, try '--help'.\n"
            ),
            "the following required arguments were not provided: <ID> (see `ublk-bpf show --help`)"
        );
        assert_eq!(
            condense(
                "error: unrecognized subcommand 'lst'\n\n  tip: a similar subcommand exists: 'list'\n\nUsage: ublk-bpf [OPTIONS] <COMMAND>\n"
            ),
            "unrecognized subcommand 'lst'; a similar subcommand exists: 'list' (see `ublk-bpf --help`)"
        );
    }

    #[test]
    fn causes_are_told_in_the_same_line() {
        let error = anyhow::anyhow!("first\nsecond").context("outer");
        assert_eq!(one_line(&error), "outer: first second");
        let error = anyhow::anyhow!("denied").context("cannot open it: denied");
        assert_eq!(one_line(&error), "cannot open it: denied");
    }
}
