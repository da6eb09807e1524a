//! fio jobs and what they report.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

/// A fio job over one device.
#[derive(Clone, Debug)]
pub struct Fio {
    args: Vec<String>,
    /// The cgroup that it runs in, if not the test's.
    cgroup: Option<String>,
}

/// Result of a job, as counted by fio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Reads issued, including those of the verification.
    pub reads: u64,
    /// Writes issued.
    pub writes: u64,
    /// Trims issued.
    pub trims: u64,
    /// Completion latencies of the last job's reads, in nanoseconds: the median and the 99th percentile. 0 without reads.
    pub read_ns: [u64; 2],
}

/// A job that runs in the background.
#[derive(Debug)]
pub struct Running {
    child: Child,
    args: Vec<String>,
}

impl Fio {
    /// A direct-I/O job over `path` through io_uring.
    pub fn new(path: &Path) -> Self {
        let mut job = Self {
            args: Vec::new(),
            cgroup: None,
        };
        job.args.extend(
            [
                "--name=job",
                "--direct=1",
                "--ioengine=io_uring",
                "--output-format=json",
                "--randseed=7",
            ]
            .map(String::from),
        );
        job.arg("filename", &path.display().to_string())
    }

    /// Mixed random reads and writes of 512 bytes to 1 MiB, verified during and after the run.
    pub fn verify(path: &Path) -> Self {
        Self::new(path)
            .arg("rw", "randrw")
            .arg("bsrange", "512-1m")
            .arg("verify", "crc32c")
            .arg("verify_fatal", "1")
    }

    /// The same for some 16 seconds, whatever the device can do.
    pub fn verify_slowly(path: &Path) -> Self {
        Self::verify(path)
            .arg("iodepth", "32")
            .arg("size", "48m")
            .arg("rate", "3m")
    }

    /// Adds `--name=value`.
    #[must_use]
    pub fn arg(mut self, name: &str, value: &str) -> Self {
        self.args.push(format!("--{name}={value}"));
        self
    }

    /// Runs in the cgroup with this directory.
    #[must_use]
    pub fn within(mut self, cgroup: &str) -> Self {
        self.cgroup = Some(cgroup.to_owned());
        self
    }

    /// Runs the job; panics unless every byte verified and no I/O failed.
    pub fn run(self) -> Done {
        self.start().finish()
    }

    /// Starts the job in the background.
    pub fn start(self) -> Running {
        let mut command = match &self.cgroup {
            None => Command::new("fio"),
            Some(cgroup) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec fio "$@""#, cgroup]);
                shell
            }
        };
        let child = command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run fio: {e}"));
        Running {
            child,
            args: self.args,
        }
    }
}

impl Running {
    /// Whether the job still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the job's end; panics unless every byte verified and no I/O failed.
    pub fn finish(self) -> Done {
        let args = self.args;
        let output = self
            .child
            .wait_with_output()
            .unwrap_or_else(|e| panic!("cannot wait for fio: {e}"));
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "fio {args:?}: {}\n{text}{errors}",
            output.status
        );
        // fio prints notes before the JSON document.
        let start = text
            .find('{')
            .unwrap_or_else(|| panic!("fio {args:?} printed no JSON:\n{text}{errors}"));
        let report: serde_json::Value = serde_json::from_str(&text[start..])
            .unwrap_or_else(|e| panic!("fio {args:?} printed bad JSON: {e}\n{text}"));
        let mut done = Done::default();
        for job in report["jobs"].as_array().into_iter().flatten() {
            assert_eq!(job["error"], 0, "fio {args:?} reports an error:\n{text}");
            let ios = |what: &str| job[what]["total_ios"].as_u64().unwrap_or(0);
            done.reads += ios("read");
            done.writes += ios("write");
            done.trims += ios("trim");
            done.read_ns = ["50.000000", "99.000000"].map(|part| {
                let value = &job["read"]["clat_ns"]["percentile"][part];
                value.as_u64().unwrap_or(0)
            });
        }
        done
    }
}
