//! Progress of long work, on stderr: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One piece of work in progress. Dropped without [`Step::done`], it leaves no line that claims success.
pub struct Step {
    bar: Option<ProgressBar>,
    started: Instant,
}

/// Says what begins now.
pub fn step(what: impl Into<String>) -> Step {
    let what = what.into();
    let started = Instant::now();
    if !std::io::stderr().is_terminal() {
        eprintln!("xtask: {what} ...");
        return Step { bar: None, started };
    }
    let bar = ProgressBar::new_spinner().with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    Step {
        bar: Some(bar),
        started,
    }
}

/// Says something that needs no time.
pub fn note(what: &str) {
    eprintln!("xtask: {what}");
}

impl Step {
    /// Says what it is at, on a terminal.
    pub fn at(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    /// Says what came of it.
    pub fn done(self, result: &str) {
        let seconds = self.started.elapsed().as_secs_f32();
        self.clear();
        eprintln!("xtask: {result} ({seconds:.1} s)");
    }

    /// Ends without a word: the work prints for itself.
    pub fn clear(self) {
        drop(self);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
