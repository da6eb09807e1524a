//! Our devices: the `ublk-bpf` on the PATH, started and asked as a user does.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::counts::{Cached, Counts};
use host::command;

/// A client that has ended releases a device within this time.
const STOP_LIMIT: Duration = Duration::from_secs(5);
const STOP_PAUSE: Duration = Duration::from_millis(20);

/// A device of ublk-bpf's; dropped, it is stopped.
pub struct Device {
    id: String,
    path: PathBuf,
    stopped: bool,
}

impl Device {
    /// Makes a device with these options of `run`.
    pub fn start(options: &[&str]) -> Result<Self> {
        let mut run = Command::new("ublk-bpf");
        let said = command::output(run.arg("run").args(options).arg("--daemon"))?;
        Self::named(&said)
    }

    /// Makes one of a queue of depth 128 that passes everything to this backing.
    pub(crate) fn passthrough(backing: &str) -> Result<Self> {
        let queue = ["--queues", "1", "--depth", "128", "--policy", "passthrough"];
        Self::start(&[["--backing", backing].as_slice(), &queue].concat())
    }

    /// Makes the devices of a configuration file, all in one process.
    pub fn start_all(config: &Path) -> Result<Vec<Self>> {
        let mut run = Command::new("ublk-bpf");
        let said = command::output(run.args(["run", "--daemon", "--config"]).arg(config))?;
        said.lines().map(Self::named).collect()
    }

    /// The device of a line that says that it is ready.
    fn named(line: &str) -> Result<Self> {
        let path = line.split_whitespace().next().unwrap_or_default();
        let id = path
            .strip_prefix("/dev/ublkb")
            .filter(|_| Path::new(path).exists())
            .with_context(|| format!("ublk-bpf named no device, but said: {line}"))?;
        Ok(Self {
            id: id.to_owned(),
            path: path.into(),
            stopped: false,
        })
    }

    /// The device's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its server's process.
    pub fn server(&self) -> Result<u32> {
        let text = command::output(Command::new("ublk-bpf").args(["show", &self.id, "--json"]))?;
        let status: Value = serde_json::from_str(&text).context("the device's state is no JSON")?;
        let pid = status["server"].as_u64().and_then(|pid| pid.try_into().ok());
        pid.with_context(|| format!("{} has no server", self.path.display()))
    }

    /// All its counters, as `stats` prints them.
    pub fn stats(&self) -> Result<Value> {
        let text = command::output(Command::new("ublk-bpf").args(["stats", &self.id, "--json"]))?;
        serde_json::from_str(&text).context("the statistics are no JSON")
    }

    /// Starts to record its requests.
    pub fn record(&self) -> Result<Recording> {
        let mut trace = Command::new("ublk-bpf");
        trace.args(["trace", &self.id, "--record", "/tmp/bench.trace"]);
        let mut recorder = trace
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run ublk-bpf")?;
        let output = recorder.stdout.take().context("it has no output")?;
        let mut output = BufReader::new(output);
        let mut said = String::new();
        output.read_line(&mut said)?;
        ensure!(said.starts_with("recording"), "a recording did not start: {said}");
        Ok(Recording { recorder, output })
    }

    /// Bytes that a pinned map of its takes.
    pub fn map_bytes(&self, map: &str) -> Result<u64> {
        let pin = format!("/sys/fs/bpf/ublk-bpf/ublkb{}/{map}", self.id);
        let text = command::output(Command::new("bpftool").args(["-j", "map", "show", "pinned", &pin]))?;
        let shown: Value = serde_json::from_str(&text).context("what bpftool shows is no JSON")?;
        let bytes = &shown["bytes_memlock"];
        // bpftool gives it as a number in some versions, and as words in others.
        let number = bytes.as_u64().or_else(|| bytes.as_str()?.parse().ok());
        number.with_context(|| format!("bpftool tells no size of the map {map}"))
    }

    /// Stops it; fails if it is not gone then.
    pub fn stop(mut self) -> Result<()> {
        self.stopped = true;
        stop(&self.id)
    }
}

/// `ublk-bpf trace` in the background.
pub struct Recording {
    recorder: Child,
    output: BufReader<ChildStdout>,
}

impl Recording {
    /// Ends it; fails if it has missed a request.
    pub fn end(mut self) -> Result<()> {
        let process = self.recorder.id().to_string();
        command::output(Command::new("kill").args(["-INT", &process]))?;
        let mut said = String::new();
        self.output.read_to_string(&mut said)?;
        self.recorder.wait()?;
        ensure!(said.contains(" 0 dropped"), "the recording has a gap: {said}");
        Ok(())
    }
}

/// The kernel takes a client's files from its ring a moment after the client has ended.
fn stop(id: &str) -> Result<()> {
    let deadline = Instant::now() + STOP_LIMIT;
    loop {
        match command::output(Command::new("ublk-bpf").args(["stop", id])) {
            Err(error) if error.to_string().contains("is in use") && Instant::now() < deadline => {
                std::thread::sleep(STOP_PAUSE);
            }
            ended => return ended.map(drop),
        }
    }
}

impl Cached for Device {
    fn path(&self) -> &Path {
        &self.path
    }

    fn counts(&self) -> Result<Counts> {
        parse(&self.stats()?)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.stopped {
            // This runs while an error is returned, which is reported instead.
            let _ = stop(&self.id);
        }
    }
}

fn parse(stats: &Value) -> Result<Counts> {
    let number = |path: &str| {
        let value = stats.pointer(path).and_then(Value::as_u64);
        value.with_context(|| format!("the statistics have no number {path}"))
    };
    let counts = Counts {
        reads: number("/server/arrived")?,
        hits: number("/server/hits")?,
        promoted: number("/cache/promoted")?,
    };
    ensure!(counts.hits <= counts.reads, "more hits than reads: {counts:?}");
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_are_read_from_the_statistics() {
        let stats = json!({"server": {"arrived": 10, "hits": 7}, "cache": {"promoted": 3}});
        let counts = Counts {
            reads: 10,
            hits: 7,
            promoted: 3,
        };
        assert_eq!(parse(&stats).expect("parsed"), counts);
        let stats = json!({"server": {"arrived": 10, "hits": 7}, "cache": null});
        let error = parse(&stats).expect_err("no cache");
        assert!(error.to_string().contains("/cache/promoted"), "{error}");
    }
}
