//! What the kernel's tracer sees of a server's threads.

use std::path::PathBuf;

use crate::{Device, read, write};

/// A thread of a server.
#[derive(Clone, Debug)]
pub struct Thread {
    /// Its id.
    pub id: String,
    /// Its name, at most 15 bytes.
    pub name: String,
}

/// The threads of a device's server.
pub fn threads(device: &Device) -> Vec<Thread> {
    let tasks = format!("/proc/{}/task", device.server());
    let tasks = std::fs::read_dir(&tasks).unwrap_or_else(|e| panic!("cannot read {tasks}: {e}"));
    tasks
        .map(|entry| {
            let entry = entry.expect("a thread");
            Thread {
                id: entry.file_name().to_string_lossy().into_owned(),
                name: read(entry.path().join("comm")),
            }
        })
        .collect()
}

/// A trace that runs until it is finished.
#[derive(Debug)]
pub struct Trace {
    events: Vec<PathBuf>,
}

impl Trace {
    /// Traces these events, such as `raw_syscalls/sys_enter`, in these threads.
    pub fn start(threads: &[Thread], events: &[&str]) -> Self {
        let ids: Vec<&str> = threads.iter().map(|thread| thread.id.as_str()).collect();
        write(file("set_event_pid"), &ids.join(" "));
        write(file("trace"), "");
        let switch = |event: &&str| file(&format!("events/{event}/enable"));
        let events: Vec<PathBuf> = events.iter().map(switch).collect();
        events.iter().for_each(|event| write(event, "1"));
        Self { events }
    }

    /// Ends it, and gives one line for each event seen.
    pub fn finish(self) -> Vec<String> {
        self.events.iter().for_each(|event| write(event, "0"));
        let trace = read(file("trace"));
        write(file("set_event_pid"), "");
        let events = trace.lines().filter(|line| !line.starts_with('#'));
        events.map(str::to_owned).collect()
    }
}

fn file(name: &str) -> PathBuf {
    PathBuf::from("/sys/kernel/tracing").join(name)
}
