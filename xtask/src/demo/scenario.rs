//! The demo's scenario, in a system that has ublk: a device on a file, a file system on it, data in and out, what was
//! decided about it; and a cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::device::{Device, Steps, shown};
use super::{cached, tree};
use host::command;

const BACKING_BYTES: u64 = 512 << 20;
/// Lines of a map that are shown: the counts of the first operation, reads, on the first CPU.
const MAP_LINES: usize = 21;

/// Runs the whole and says whether every byte was right.
pub(crate) fn run(source: &Path, disk: Option<&Path>) -> Result<ExitCode> {
    let folder = tempfile::Builder::new()
        .prefix("ublk-bpf-demo-")
        .tempdir()
        .context("cannot make a folder for the demo")?;
    let outcome = scenario(source, disk, folder.path());
    println!();
    match outcome {
        Ok(()) => {
            println!("every byte was right");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            println!("not right: {error:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn scenario(source: &Path, disk: Option<&Path>, folder: &Path) -> Result<()> {
    let scratch = folder.join("scratch");
    let point = folder.join("mnt");
    let mut scratch_mounts = Mounts::default();
    fs::create_dir(&scratch)?;
    fs::create_dir(&point)?;
    if let Some(disk) = disk {
        command::output(Command::new("mkfs.ext4").arg("-q").arg(disk))?;
        scratch_mounts.mount(disk, &scratch)?;
    }

    let mut steps = Steps::new(5 + cached::STEPS);
    steps.next("a device on a file, each request classified by an eBPF program");
    let backing = scratch.join("disk.img");
    File::create(&backing)
        .and_then(|file| file.set_len(BACKING_BYTES))
        .context("cannot make the backing file")?;
    let device = Device::start(&backing, &["--policy", "sparse", "--queues", "2"])?;
    // After the device, so that on the way out of an error it goes before it.
    let mut mounts = Mounts::default();

    steps.next("a file system on it, and a source tree in and out");
    shown(
        Command::new("mkfs.ext4")
            .args(["-q", "-m", "0"])
            .arg(&device.path),
    )?;
    mounts.mount(&device.path, &point)?;
    println!("mounted {} at {}", device.path.display(), point.display());

    copy_in_and_out(source, &device, &point, folder, &mut mounts)?;

    steps.next("fio, random reads and writes, each block verified with its crc32c");
    fio(&point)?;
    mounts.unmount_last()?;
    shown(Command::new("e2fsck").args(["-f", "-n"]).arg(&device.path))?;

    steps.next("what was decided about it");
    shown(Command::new("ublk-bpf").args(["stats", &device.id]))?;

    steps.next("what bpftool shows of it");
    bpftool(&device)?;

    device.stop()?;

    cached::show(&scratch, &mut steps)?;
    steps.end();
    scratch_mounts.unmount_all()
}

/// Copies the tree to the device, reads it back from there and not from memory, and compares.
fn copy_in_and_out(
    source: &Path,
    device: &Device,
    point: &Path,
    folder: &Path,
    mounts: &mut Mounts,
) -> Result<()> {
    let files = tree::files(source)?;
    ensure!(!files.is_empty(), "{} holds no files to copy", source.display());
    let wanted = tree::sums(source, &files)?;
    let bytes = tree::copy(&files, source, &point.join("tree"))?;
    println!("copied in:  {} files, {} KiB", files.len(), bytes >> 10);
    // Mounted anew, the file system knows nothing: every byte comes from the device.
    mounts.unmount_last()?;
    mounts.mount(&device.path, point)?;
    let out = folder.join("out");
    tree::copy(&files, &point.join("tree"), &out)?;
    println!("copied out: after the file system was mounted anew");
    let found = tree::sums(&out, &files)?;
    let different = tree::differences(&wanted, &found);
    if let Some(first) = different.first() {
        bail!(
            "{} of {} files came back different, the first is {}",
            different.len(),
            files.len(),
            first.display()
        );
    }
    println!("compared:   {} SHA-256 sums, all the same", files.len());
    Ok(())
}

fn fio(point: &Path) -> Result<()> {
    let mut fio = Command::new("fio");
    fio.arg(format!("--filename={}", point.join("fio").display()));
    fio.args([
        "--name=demo",
        "--size=64M",
        "--rw=randrw",
        "--bsrange=4k-256k",
        "--direct=1",
    ]);
    fio.args([
        "--ioengine=io_uring",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--output-format=json",
    ]);
    println!("$ {}", command::line(&fio));
    let text = command::output(&mut fio)?;
    // Notes may come before the JSON.
    let json = &text[text.find('{').context("fio printed no result")?..];
    let result: Value = serde_json::from_str(json).context("fio's result is no JSON")?;
    let job = result.pointer("/jobs/0").context("fio's result has no job")?;
    let number = |path: &str| job.pointer(path).and_then(Value::as_u64).unwrap_or_default();
    let (reads, writes, errors) = (
        number("/read/total_ios"),
        number("/write/total_ios"),
        number("/error"),
    );
    ensure!(
        errors == 0 && reads > 0 && writes > 0,
        "fio: error {errors} after {reads} reads and {writes} writes"
    );
    println!("{reads} reads (with those that verify), {writes} writes, no error");
    Ok(())
}

fn bpftool(device: &Device) -> Result<()> {
    let pins = Path::new("/sys/fs/bpf/ublk-bpf").join(&device.name);
    shown(
        Command::new("bpftool")
            .args(["prog", "show", "pinned"])
            .arg(pins.join("classifier")),
    )?;
    shown(
        Command::new("bpftool")
            .args(["prog", "show", "pinned"])
            .arg(pins.join("policy")),
    )?;
    let mut names: Vec<_> = fs::read_dir(&pins)
        .with_context(|| format!("cannot read {}", pins.display()))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    println!("pinned in {}: {}\n", pins.display(), names.join(" "));
    let mut dump = Command::new("bpftool");
    dump.args(["map", "dump", "pinned"]).arg(pins.join("decisions"));
    println!("$ {}", command::line(&dump));
    let text = command::output(&mut dump)?;
    let lines: Vec<&str> = text.lines().collect();
    for line in lines.iter().take(MAP_LINES) {
        println!("{line}");
    }
    if lines.len() > MAP_LINES {
        println!("... {} more lines", lines.len() - MAP_LINES);
    }
    Ok(())
}

/// What is mounted; dropped, all of it is unmounted, the last first.
#[derive(Default)]
struct Mounts {
    points: Vec<PathBuf>,
}

impl Mounts {
    fn mount(&mut self, device: &Path, point: &Path) -> Result<()> {
        command::output(Command::new("mount").args(["-t", "ext4"]).args([device, point]))?;
        self.points.push(point.to_path_buf());
        Ok(())
    }

    fn unmount_last(&mut self) -> Result<()> {
        let point = self.points.pop().context("nothing is mounted")?;
        command::output(Command::new("umount").arg(point)).map(drop)
    }

    fn unmount_all(&mut self) -> Result<()> {
        while !self.points.is_empty() {
            self.unmount_last()?;
        }
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        // On the way out of an error, which is what will be told.
        let _ = self.unmount_all();
    }
}
