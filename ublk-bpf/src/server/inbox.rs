//! What the main thread waits for: news of the devices' threads, and signals.
//!
//! A signal handler can write to a socket and not send on a channel, so a byte in a socket stands for each of both.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::sys::process;

/// The main thread's end.
pub(super) struct Inbox<T> {
    bytes: UnixStream,
    news: Receiver<T>,
}

/// The other threads' end.
pub(super) struct Outbox<T> {
    bytes: Arc<UnixStream>,
    news: Sender<T>,
}

/// What has arrived.
pub(super) enum Received<T> {
    /// One of those that end a server.
    Signal,
    /// From another thread.
    News(T),
}

impl<T> Inbox<T> {
    /// Catches SIGINT, SIGTERM and SIGHUP until the process ends, but for a SIGHUP that `nohup` has it ignore.
    pub(super) fn new() -> io::Result<(Outbox<T>, Self)> {
        let (write, read) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if signal != SIGHUP || !process::ignores(SIGHUP)? {
                pipe::register(signal, write.try_clone()?)?;
            }
        }
        let (sender, receiver) = channel();
        let outbox = Outbox {
            bytes: Arc::new(write),
            news: sender,
        };
        let inbox = Self {
            bytes: read,
            news: receiver,
        };
        Ok((outbox, inbox))
    }

    /// Has [`next`](Self::next) return at least this often, more than zero.
    pub(super) fn wake_every(&self, interval: Option<Duration>) -> io::Result<()> {
        self.bytes.set_read_timeout(interval)
    }

    /// Waits for the next arrival; `None`: the interval has passed.
    pub(super) fn next(&mut self) -> io::Result<Option<Received<T>>> {
        match self.bytes.read_exact(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // News is sent before its byte, so a byte without news is a signal's.
            read => read.map(|()| Some(self.news.try_recv().map_or(Received::Signal, Received::News))),
        }
    }
}

impl<T> Outbox<T> {
    /// Sends to the main thread, if it has not ended.
    pub(super) fn send(&self, news: T) {
        let sent = self.news.send(news);
        let _ = sent.map(|()| (&*self.bytes).write_all(&[0]));
    }
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self {
            bytes: Arc::clone(&self.bytes),
            news: self.news.clone(),
        }
    }
}
