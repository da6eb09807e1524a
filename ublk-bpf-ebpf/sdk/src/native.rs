//! A policy on the host: its function with the maps, the task and the cache of a thread, and the program that replays traces with
//! it.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use ublk_bpf_core::replay::{NativePolicy, Progress, ReplayJob, Row, Task};

use crate::{CacheState, Decision, Request, cache, current, maps};

/// A policy's function, for a replay. [`policy!`](crate::policy!) makes one of each policy, `NATIVE_POLICY`.
#[derive(Clone, Copy, Debug)]
pub struct Native(pub fn(&Request) -> Decision);

impl NativePolicy for Native {
    fn reset(&self) {
        maps::clear();
    }

    fn decide(&self, task: &Task, request: &Request, state: CacheState) -> Decision {
        current::set(*task);
        cache::set(state);
        (self.0)(request)
    }
}

/// The argument with which `ublk-bpf replay --policy-crate` starts the policy's program.
pub const REPLAY_ARGUMENT: &str = "--replay-job";

/// What the program tells `ublk-bpf replay`, one line of JSON each.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// How far it is.
    Progress {
        /// Requests replayed.
        done: u64,
        /// Requests to replay, as far as is known.
        known: u64,
    },
    /// The results.
    Rows(Vec<Row>),
    /// Why there are none.
    Error(String),
}

/// Time between two messages of progress.
const INTERVAL: Duration = Duration::from_millis(100);

/// The program that a policy is on the host. It replays the job that it reads on standard input.
#[must_use]
pub fn main(policy: Native) -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some(REPLAY_ARGUMENT) {
        let hint = "this is a ublk-bpf policy: `cargo test` tests it, `ublk-bpf replay --policy-crate DIR TRACE` \
                    replays traces with it, and `cargo xtask build-ebpf --policy DIR` builds its BPF object";
        // If standard error is closed, there is nowhere to report it.
        let _ = writeln!(io::stderr(), "{hint}");
        return ExitCode::from(2);
    }
    let last = match serde_json::from_reader(io::stdin().lock()) {
        Ok(job) => run(&job, policy),
        Err(error) => Message::Error(format!(
            "the job cannot be read: {error}: build the policy with the SDK of this ublk-bpf"
        )),
    };
    let is_good = matches!(last, Message::Rows(_));
    if say(&last).is_ok() && is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(job: &ReplayJob, policy: Native) -> Message {
    let progress = Progress::default();
    thread::scope(|scope| {
        let work = scope.spawn(|| job.run(&[("policy", &policy)], &progress));
        while !work.is_finished() {
            thread::sleep(INTERVAL);
            let (done, known) = (&progress.done, &progress.known);
            let (done, known) = (done.load(Ordering::Relaxed), known.load(Ordering::Relaxed));
            // Without a reader nothing can be said at the end either.
            let _ = say(&Message::Progress { done, known });
        }
        match work.join() {
            Ok(Ok(rows)) => Message::Rows(rows),
            Ok(Err(error)) => Message::Error(error.to_string()),
            Err(_) => Message::Error("the policy panicked".to_owned()),
        }
    })
}

fn say(message: &Message) -> io::Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()
}
