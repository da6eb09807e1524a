//! The power of the machine under test: one supply for its disks and its server.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::Duration;

/// Power for any number of disks and one process.
#[derive(Debug)]
pub struct Supply {
    power: RwLock<Power>,
    /// Requests until the power is cut; 0: it stays.
    countdown: Mutex<u64>,
    /// How the next cut goes.
    fading: AtomicBool,
    /// What ends with the power.
    process: Mutex<Option<Child>>,
    /// The disks' connections, which end with it too.
    lines: Mutex<Vec<UnixStream>>,
}

/// Whether there is power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    On,
    /// Disks do not answer.
    Silent,
    /// Disks answer with errors: they are off a moment before the processor is.
    Fading,
}

impl Supply {
    /// Power that is on.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            power: RwLock::new(Power::On),
            countdown: Mutex::new(0),
            fading: AtomicBool::new(false),
            process: Mutex::new(None),
            lines: Mutex::default(),
        })
    }

    /// The power is cut after so many more requests of disks, at least one. With `fading` the disks answer with errors
    /// until the process is killed; without, nothing answers and the process is killed at that moment.
    pub fn cut_after(&self, requests: u64, fading: bool) {
        self.fading.store(fading, SeqCst);
        *lock(&self.countdown) = requests.max(1);
    }

    /// The power stays on, unless it is already off.
    pub fn keep(&self) {
        *lock(&self.countdown) = 0;
    }

    /// Whether the power is on.
    pub fn is_on(&self) -> bool {
        *self.power() == Power::On
    }

    /// Cuts the power.
    pub fn cut(&self) {
        let fading = self.fading.load(SeqCst);
        *self.power.write().unwrap_or_else(PoisonError::into_inner) = match fading {
            true => Power::Fading,
            false => Power::Silent,
        };
        if !fading {
            self.end();
        }
    }

    /// Kills the process, and ends what waits for disks.
    pub(super) fn end(&self) {
        self.kill();
        for line in lock(&self.lines).drain(..) {
            // It fails where the other end is closed.
            let _ = line.shutdown(Shutdown::Both);
        }
    }

    /// From now on this connection ends with the power.
    pub(super) fn connect(&self, line: UnixStream) {
        lock(&self.lines).push(line);
    }

    /// Switches the power on again.
    pub(super) fn restore(&self) {
        *self.power.write().unwrap_or_else(PoisonError::into_inner) = Power::On;
    }

    /// From now on this process ends with the power.
    pub(super) fn feed(&self, process: Child) {
        *lock(&self.process) = Some(process);
        if !self.is_on() {
            self.kill();
        }
    }

    /// Kills the process.
    pub(super) fn kill(&self) {
        if let Some(process) = &mut *lock(&self.process) {
            // It may have ended by itself.
            let _ = process.kill();
        }
    }

    /// Waits for the process's end.
    pub(super) fn wait(&self) {
        let runs = |process: &mut Child| matches!(process.try_wait(), Ok(None));
        while lock(&self.process).as_mut().is_some_and(runs) {
            thread::sleep(Duration::from_millis(2));
        }
        *lock(&self.process) = None;
    }

    /// Counts a request of a disk, which may be the last one.
    pub(super) fn count(&self) {
        let mut countdown = lock(&self.countdown);
        if *countdown == 1 {
            self.cut();
        }
        *countdown = countdown.saturating_sub(1);
    }

    /// The power, which does not change while the guard lives.
    pub(super) fn power(&self) -> RwLockReadGuard<'_, Power> {
        self.power.read().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
