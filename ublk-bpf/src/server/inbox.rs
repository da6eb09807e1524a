//! What the main thread waits for: news of the devices' threads, and signals.
//!
//! A signal handler can write to a socket and not send on a channel, so a byte in a socket stands for each of both. SIGHUP has
//! a socket of its own where it does not end the server.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::sys::process;

/// The main thread's end.
pub(super) struct Inbox<T> {
    bytes: UnixStream,
    /// Of SIGHUP, where it is for a reload.
    hangups: UnixStream,
    /// Without a writer, that would look like something to read.
    _hangup: UnixStream,
    interval: Option<Timespec>,
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
    /// A SIGHUP that asks for a reload.
    Hangup,
    /// From another thread.
    News(T),
}

impl<T> Inbox<T> {
    /// Catches SIGINT, SIGTERM and SIGHUP until the process ends, but for a SIGHUP that `nohup` has it ignore. With
    /// `reloads`, that one is for a reload.
    pub(super) fn new(reloads: bool) -> io::Result<(Outbox<T>, Self)> {
        let (write, read) = UnixStream::pair()?;
        let (hangup, hangups) = UnixStream::pair()?;
        let kept = hangup.try_clone()?;
        // A wake-up may turn out to be for nothing.
        read.set_nonblocking(true)?;
        hangups.set_nonblocking(true)?;
        for signal in [SIGINT, SIGTERM] {
            pipe::register(signal, write.try_clone()?)?;
        }
        if !process::ignores(SIGHUP)? {
            pipe::register(SIGHUP, if reloads { hangup } else { write.try_clone()? })?;
        }
        let (sender, receiver) = channel();
        let outbox = Outbox {
            bytes: Arc::new(write),
            news: sender,
        };
        let inbox = Self {
            bytes: read,
            hangups,
            _hangup: kept,
            interval: None,
            news: receiver,
        };
        Ok((outbox, inbox))
    }

    /// Has [`next`](Self::next) return at least this often, more than zero.
    pub(super) fn wake_every(&mut self, interval: Option<Duration>) {
        // Such an interval has a value in the kernel's type.
        self.interval = interval.and_then(|interval| interval.try_into().ok());
    }

    /// Waits for the next arrival; `None`: the interval has passed, or there was nothing.
    pub(super) fn next(&mut self) -> io::Result<Option<Received<T>>> {
        self.wait()?;
        if has_byte(&self.bytes)? {
            // News is sent before its byte, so a byte without news is a signal's.
            let news = self.news.try_recv();
            return Ok(Some(news.map_or(Received::Signal, Received::News)));
        }
        let mut is_hangup = false;
        // Several before now are one.
        while has_byte(&self.hangups)? {
            is_hangup = true;
        }
        Ok(is_hangup.then_some(Received::Hangup))
    }

    fn wait(&self) -> io::Result<()> {
        let mut sockets = [&self.bytes, &self.hangups].map(|socket| PollFd::new(socket, PollFlags::IN));
        match poll(&mut sockets, self.interval.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes a byte, if there is one.
fn has_byte(mut socket: &UnixStream) -> io::Result<bool> {
    match socket.read(&mut [0]) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
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
