//! `cargo xtask vm`: runs any command in the guest and gives back its output and exit status.
//!
//! ```text
//! cargo xtask vm -- uname -a
//! cargo xtask vm -- sh -c 'modprobe null_blk && fio --name=x --filename=/dev/nullb0 --rw=randread --size=16M'
//! cargo xtask vm --cpus 4 --file ./script.sh:/root/run.sh --program gdb -- sh /root/run.sh
//! cargo xtask vm --no-build -- cat /proc/version      # no ublk-bpf wanted
//! cargo xtask vm --icount -- ublk-bpf features        # the guest's clock counts instructions
//! ```
//!
//! The guest has busybox, `ublk-bpf` (as released) and, where this machine has them, fio, bpftool, e2fsprogs and others
//! on its PATH, /tmp and /run as tmpfs, bpffs, cgroup2, debugfs and tracefs mounted, the modules ublk_drv, loop, dm-mod and
//! mq-deadline loaded, and brd, null_blk, nbd, bcache, xfs and several of device-mapper's at hand for `modprobe`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use host::setup;
use vm::{Config, Disk};

/// Options of `vm`.
#[derive(clap::Args)]
#[command(
    about = "Run a command in a guest with a Linux >= 7.0 kernel",
    long_about = "Run a command in a guest with a Linux >= 7.0 kernel and the built ublk-bpf on its PATH.\n\n\
                  The exit status is the command's; 124 if the guest was killed for taking too long, 125 if its kernel \
                  died (stderr says which, with the end of the kernel's console)."
)]
pub(crate) struct Options {
    /// CPUs of the guest [default: 2; with --icount 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// Memory of the guest
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = parse_size)]
    mem: u64,
    /// Make the guest's clock count instructions, 1 ns each, of all its CPUs together
    #[arg(long)]
    icount: bool,
    /// Kill the guest after so many seconds
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// Kill the guest when nothing has come from it for so many seconds (0: never)
    #[arg(long, value_name = "S", default_value_t = 120)]
    silence: u64,
    /// Hand in a file or folder; DEST defaults to /root/NAME
    #[arg(long = "file", value_name = "SRC[:DEST]", value_parser = parse_file)]
    files: Vec<(PathBuf, String)>,
    /// Hand in a program of this machine with its libraries
    #[arg(long = "program", value_name = "NAME")]
    programs: Vec<String>,
    /// Add an empty virtio disk: /dev/vda, /dev/vdb, ...
    #[arg(long = "disk", value_name = "SIZE", value_parser = parse_size)]
    disks: Vec<u64>,
    /// Show the kernel's console as it comes, on stderr
    #[arg(long)]
    console: bool,
    /// Do not build and hand in ublk-bpf
    #[arg(long)]
    no_build: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Boots the guest and runs the command.
pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let kernel = setup::guest()?;
    let built = if options.no_build {
        Vec::new()
    } else {
        vec![vm::server()?]
    };
    let seconds = |n: u64| (n > 0).then(|| Duration::from_secs(n));
    let config = Config {
        cpus: options.cpus.unwrap_or(if options.icount { 1 } else { 2 }),
        memory: format!("{}M", options.mem >> 20),
        icount: options.icount,
        timeout: options.timeout.and_then(seconds),
        silence: seconds(options.silence),
        files: options.files,
        built,
        programs: options.programs,
        system: None,
        disks: options.disks.iter().map(|&bytes| Disk { bytes }).collect(),
        console: options.console,
    };
    let outcome = vm::run(&config, &kernel, &options.command, &mut vm::Inherit)?;
    Ok(vm::exit_code(&outcome))
}

fn parse_file(text: &str) -> Result<(PathBuf, String)> {
    let (source, destination) = match text.split_once(':') {
        Some((source, destination)) => (PathBuf::from(source), destination.to_owned()),
        None => {
            let source = PathBuf::from(text);
            let name = source
                .file_name()
                .context("the file has no name: say SRC:DEST")?
                .to_string_lossy()
                .into_owned();
            (source, format!("/root/{name}"))
        }
    };
    if !destination.starts_with('/') {
        bail!("the path in the guest must begin with /: {destination}");
    }
    if !source.exists() {
        bail!("there is no {}", source.display());
    }
    Ok((source, destination))
}

/// `64K`, `2G`, `1GiB` or a number of bytes.
fn parse_size(text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("iB") {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => bail!("{text}: a size is a number and K, M, G or T"),
    };
    let number: u64 = number
        .parse()
        .with_context(|| format!("{text}: a size begins with a number"))?;
    number
        .checked_shl(shift)
        .filter(|bytes| bytes >> shift == number)
        .with_context(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &[&str]) -> Result<Options, clap::Error> {
        Line::try_parse_from([&["vm"], line].concat()).map(|line| line.options)
    }

    #[test]
    fn the_command_keeps_its_own_options() {
        let options = parse(&[
            "--cpus", "4", "--mem", "512M", "--", "fio", "--name=x", "--cpus", "9",
        ])
        .expect("parses");
        assert_eq!((options.cpus, options.mem), (Some(4), 512 << 20));
        assert_eq!(options.command, ["fio", "--name=x", "--cpus", "9"]);
        assert!(parse(&["--cpus", "4"]).is_err(), "there is no command");
    }

    #[test]
    fn files_have_a_place_in_the_guest() {
        assert_eq!(parse_file("/etc/passwd").expect("parses").1, "/root/passwd");
        assert_eq!(parse_file("/etc/passwd:/x/y").expect("parses").1, "/x/y");
        assert!(parse_file("/etc/passwd:relative").is_err());
        assert!(parse_file("/no/such/file").is_err());
    }

    #[test]
    fn sizes_are_read_as_usual() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64K", 64 << 10),
            ("1GiB", 1 << 30),
            ("2g", 2 << 30),
        ] {
            assert_eq!(parse_size(text).expect("parses"), bytes, "{text}");
        }
        for text in ["", "G", "1X", "-1", "99999999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
