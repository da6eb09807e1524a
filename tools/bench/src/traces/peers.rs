//! libCacheSim's algorithms on the block stream that our replay has.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::thread::ScopedJoinHandle;

use anyhow::{Context as _, Result};
use ublk_bpf_abi::Op;
use ublk_bpf_core::replay::{Counts, Stream, Trace};

use host::command;

/// The program.
const SCRIPT: &str = include_str!("peers.py");

/// Its algorithms that know a block by its number alone and are not trained.
pub(super) const ALGORITHMS: [&str; 20] = [
    "LRU",
    "FIFO",
    "LFU",
    "ARC",
    "Clock",
    "ClockPro",
    "Clock2QPlus",
    "S3FIFO",
    "Sieve",
    "SLRU",
    "TwoQ",
    "WTinyLFU",
    "LIRS",
    "LeCaR",
    "Cacheus",
    "MQ",
    "LRUK",
    "Hyperbolic",
    "LHD",
    "GDSF",
];

/// Each algorithm's result on a trace's reads, by its name and the number of slots.
pub(super) type Results = HashMap<(String, u64), Counts>;

/// Runs all of them, in as many processes as there are CPUs.
pub(super) fn run(python: &Path, trace: &Trace, stream: &Stream, slots: &[u64]) -> Result<Results> {
    let reads = reads(trace, stream);
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let file = folder.path().join("stream");
    write(&file, &reads)?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let share = ALGORITHMS.len().div_ceil(cpus);
    let slots: Vec<String> = slots.iter().map(ToString::to_string).collect();
    let outputs: Vec<Result<String>> = std::thread::scope(|scope| {
        let run = |algorithms: &[&str]| {
            let mut script = Command::new(python);
            script
                .args(["-c", SCRIPT])
                .arg(&file)
                .args([slots.join(","), algorithms.join(",")]);
            command::output(&mut script)
        };
        let running: Vec<_> = ALGORITHMS
            .chunks(share)
            .map(|part| scope.spawn(move || run(part)))
            .collect();
        let ended = running.into_iter().map(ScopedJoinHandle::join);
        ended
            .map(|result| result.unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
            .collect()
    });
    let mut results = Results::new();
    for output in outputs {
        for line in output?.lines() {
            let (key, counts) =
                parse(line, &reads, stream.shift).with_context(|| format!("libCacheSim: {line}"))?;
            results.insert(key, counts);
        }
    }
    Ok(results)
}

/// Block and length in bytes of each read.
fn reads(trace: &Trace, stream: &Stream) -> Vec<(u32, u32)> {
    let reads = stream
        .parts
        .iter()
        .filter(|part| trace.requests()[part.request as usize].op == Op::Read);
    reads.map(|part| (part.block, part.nr_sectors << 9)).collect()
}

fn write(path: &Path, reads: &[(u32, u32)]) -> Result<()> {
    let bytes: Vec<u8> = reads
        .iter()
        .flat_map(|(block, length)| [block.to_ne_bytes(), length.to_ne_bytes()])
        .flatten()
        .collect();
    let mut file = std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(&bytes)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A line of the script. A miss is taken to load its whole block with one read, which serves it too.
fn parse(line: &str, reads: &[(u32, u32)], shift: u32) -> Result<((String, u64), Counts)> {
    let mut words = line.split_whitespace();
    let name = words.next().context("no algorithm")?.to_owned();
    let mut number = || -> Result<u64> { Ok(words.next().context("a number is missing")?.parse()?) };
    let (slots, hits, hit_bytes, loaded) = (number()?, number()?, number()?, number()?);
    let counts = Counts {
        reads: reads.len() as u64,
        read_bytes: reads.iter().map(|(_, length)| u64::from(*length)).sum(),
        hits,
        hit_bytes,
        backing_reads: loaded,
        backing_bytes: loaded << shift,
        filled_bytes: loaded << shift,
        ..Counts::default()
    };
    Ok(((name, slots), counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_script_is_understood() {
        let ((name, slots), counts) =
            parse("LRU 5 1 512 2", &[(0, 512), (0, 512), (7, 1024)], 12).expect("parsed");
        assert_eq!(
            (name.as_str(), slots, counts.hits, counts.backing_bytes),
            ("LRU", 5, 1, 8192)
        );
        assert_eq!((counts.reads, counts.read_bytes), (3, 2048));
        assert!(parse("LRU 5 1", &[], 12).is_err());
    }
}
