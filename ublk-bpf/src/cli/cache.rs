//! `ublk-bpf cache`.

pub(super) mod live;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;

use super::args::{DeviceArg, OutputFormat};
use super::output::print_line;
use super::table;
use crate::backend::Size;
use crate::cache::disk::inspect::{Dirty, Inspection, inspect};
use crate::cache::disk::verify::verify;
use crate::path_text::ShowPath as _;

/// Inspect or verify a cache device, or write back what is dirty
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: CacheAction,
}

#[derive(Debug, Subcommand)]
enum CacheAction {
    /// Show the content of a cache device and check it for damage, without changing it
    ///
    /// The exit status is 1 if it is damaged or is not a cache.
    Inspect {
        /// The file or block device that was given with --cache
        #[arg(value_name = "PATH")]
        path: PathBuf,
        #[command(flatten)]
        format: OutputFormat,
    },
    /// Check every checksum of a cache's metadata and say what is wrong where, without changing it
    ///
    /// The exit status is 1 if anything is damaged or it is not a cache.
    Verify {
        /// The file or block device that was given with --cache
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Write back all that is dirty in the cache of a running device
    ///
    /// Writes end on the backing meanwhile. If this command is interrupted, the drain is ended.
    Drain {
        #[command(flatten)]
        device: DeviceArg,
    },
    /// Write back all that is dirty, and use the cache no longer
    ///
    /// The device goes on without it, as after a failure of the cache device. The server has the cache device open until the
    /// device stops; the next start with it begins with an empty cache.
    Detach {
        #[command(flatten)]
        device: DeviceArg,
    },
    /// Put another device in the place of a cache that is detached
    ///
    /// It begins empty, with the options of the cache before. The device is handed over to a new server for that, so it needs
    /// --recovery, and requests wait meanwhile.
    Attach {
        #[command(flatten)]
        device: DeviceArg,
        /// The file or block device; with write-back, no larger than the one before
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
}

/// Carries out one of these.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.action {
        CacheAction::Inspect { path, format } => show(path, format),
        CacheAction::Verify { path } => check(path),
        CacheAction::Drain { device } => live::drain(device.id),
        CacheAction::Detach { device } => live::detach(device.id),
        CacheAction::Attach { device, path } => live::attach(device.id, path),
    }
}

fn check(path: &Path) -> anyhow::Result<()> {
    let name = || format!("cache {}", path.shown());
    let file = open(path).with_context(name)?;
    let Some(parts) = verify(&file).with_context(name)? else {
        bail!("{}: is blank: there is nothing to verify", name());
    };
    let words = |found: &Result<String, String>| found.as_ref().unwrap_or_else(|wrong| wrong).clone();
    let facts: Vec<_> = parts.iter().map(|part| (part.part, words(&part.found))).collect();
    table::print_facts(&facts)?;
    match parts.iter().filter(|part| part.found.is_err()).count() {
        0 => Ok(()),
        wrong => bail!("{}: {wrong} of {} parts are damaged", name(), parts.len()),
    }
}

fn show(path: &Path, format: &OutputFormat) -> anyhow::Result<()> {
    let name = || format!("cache {}", path.shown());
    let file = open(path).with_context(name)?;
    let Some(found) = inspect(&file).with_context(name)? else {
        bail!(
            "{}: is blank: `ublk-bpf run --cache` formats it as a cache",
            name()
        );
    };
    if format.json {
        print_line(serde_json::to_string_pretty(&found)?)?;
    } else {
        table::print_facts(&facts(&found))?;
    }
    match found.damage {
        Some(damage) => bail!("{}: {damage}", name()),
        None => Ok(()),
    }
}

/// Opens the file or block device for reading, even if it is in use.
fn open(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        // Opening a pipe would block until it has a writer.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .context("cannot open it")?;
    let kind = file.metadata().context("cannot look at it")?.file_type();
    if !(kind.is_file() || kind.is_block_device()) {
        bail!("is neither a regular file nor a block device");
    }
    Ok(file)
}

fn facts(found: &Inspection) -> Vec<(&'static str, String)> {
    let state = match found.clean {
        true => "clean: the next start uses its content if the backing is unchanged",
        false => "in use, or not shut down cleanly: a start now would begin cold",
    };
    let in_use = match (found.in_use, found.in_part) {
        (Some(slots), Some(0)) => slots.to_string(),
        (Some(slots), Some(in_part)) => format!("{slots}, {in_part} of them with a part of their block"),
        _ => "unknown".to_owned(),
    };
    let [a, b] = &found.copies;
    let mut facts = vec![
        ("format", format!("version {}", found.version)),
        ("state", state.to_owned()),
        ("block size", Size(found.block_bytes.into()).to_string()),
        ("slots", found.slots.to_string()),
        ("in use", in_use),
        (
            "data offset",
            format!("{} ({} bytes)", Size(found.data_offset), found.data_offset),
        ),
        ("cache id", found.cache_id.clone()),
        ("backing", found.backing.clone()),
        ("generation", found.generation.to_string()),
        ("copy A", a.clone()),
        ("copy B", b.clone()),
    ];
    if let Some(dirty) = &found.dirty {
        facts.extend([
            ("dirty", amount(dirty)),
            ("dirty ranges", ranges(dirty)),
            ("log", log(dirty)),
        ]);
    }
    facts
}

fn amount(dirty: &Dirty) -> String {
    format!("{} blocks, {}", dirty.blocks, Size(dirty.bytes))
}

fn log(dirty: &Dirty) -> String {
    format!("{} pages after checkpoint {}", dirty.log_pages, dirty.checkpoint)
}

/// Offset and length of the first ranges, and how many more there are.
fn ranges(dirty: &Dirty) -> String {
    let first = dirty.first.iter();
    let mut words: Vec<String> = first
        .map(|(offset, bytes)| format!("{}+{}", Size(*offset), Size(*bytes)))
        .collect();
    let more = dirty.ranges - dirty.first.len();
    if more != 0 {
        words.push(format!("and {more} more"));
    }
    words.join(" ")
}
