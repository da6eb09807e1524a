//! Starts every peer once, reads from it, and sees that nothing of it is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::kinds;
use crate::fio::{self, Job};
use crate::subject::{Kind, Shape};

const SHAPE: Shape = Shape {
    queues: 1,
    depth: 128,
};

/// Prints a line for each peer, and gives how many do not work.
pub fn table() -> usize {
    println!(
        "random reads of 4k, one queue of depth 128, one run of 1 s on the instruction clock after one before"
    );
    println!("\n{:<22}{:>10}{:>9}  version", "device", "IOPS", "servers");
    let mut broken = 0;
    for kind in kinds() {
        match line(&kind) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                broken += 1;
                println!("{:<22}{error:#}", kind.name);
            }
        }
    }
    broken
}

fn line(kind: &Kind) -> Result<String> {
    let version = (kind.version)()?;
    let before = disks()?;
    let subject = (kind.start)(SHAPE)?;
    let job = Job {
        devices: &[subject.path()],
        block: "4k",
        range_mib: None,
    };
    // The first run after a start costs more.
    fio::run(&job, &[])?;
    let result = fio::run(&job, &[])?;
    let servers = subject.servers();
    drop(subject);
    ensure!(disks()? == before, "it left a device behind");
    ensure!(
        !servers
            .iter()
            .any(|pid| Path::new("/proc").join(pid.to_string()).exists()),
        "it left a server behind"
    );
    Ok(format!(
        "{:<22}{:>10.0}{:>9}  {version}",
        kind.name,
        result.iops,
        servers.len()
    ))
}

/// The block devices of any size.
fn disks() -> Result<BTreeSet<PathBuf>> {
    let mut disks = BTreeSet::new();
    for entry in fs::read_dir("/sys/block").context("cannot read /sys/block")? {
        let folder = entry?.path();
        let size = fs::read_to_string(folder.join("size")).unwrap_or_default();
        if size.trim() != "0" {
            disks.insert(folder);
        }
    }
    Ok(disks)
}
