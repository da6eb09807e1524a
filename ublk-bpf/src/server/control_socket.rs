//! The door for commands to the running server: the socket `/run/ublk-bpf/server-PID.sock` of the process.
//!
//! A thread waits for clients, and each client has one while it is served, so that none holds up another, nor a device.
//! What a client wants goes to the main thread, which passes it on to the thread of the device; the replies come back
//! on a channel ([`Answer`]). `registry/message.rs` has the messages, `registry/ask.rs` the client's end.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, Scope};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};

use super::error::ServeError;
use super::limits;
use crate::registry::message::{Line, Reply, Request, WORKING};
use crate::registry::run_dir::{RunDir, socket_name};
use crate::registry::{RecordError, stale};
use crate::sys::trust::check_peer;

/// Clients that are served at once; more are refused.
pub(super) const MAX_CLIENTS: usize = 8;
/// After a client could not be accepted, for lack of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);

/// A client's request, for the main thread.
pub(super) struct Asked {
    pub(super) request: Request,
    /// What came with it.
    pub(super) descriptor: Option<OwnedFd>,
    pub(super) answer: Answer,
}

/// The way back to a client. If it is dropped before [`end`](Self::end), the client is told that the device has ended.
#[derive(Debug)]
pub(super) struct Answer(Sender<Reply>);

impl Answer {
    /// One for a request of the process's own, and where its replies come.
    pub(super) fn new() -> (Self, Receiver<Reply>) {
        let (sender, replies) = channel();
        (Self(sender), replies)
    }

    /// Tells the client how far its request is. Returns false if it has gone.
    pub(super) fn progress(&self, text: impl Into<String>) -> bool {
        self.0.send(Reply::Progress(text.into())).is_ok()
    }

    /// Tells the client the result, in words: a line for its user, which may be empty, or why there is none.
    pub(super) fn end(self, result: Result<String, String>) {
        // The client may have gone.
        let _ = self.0.send(result.map_or_else(Reply::Error, Reply::Ok));
    }
}

/// The socket. It takes no more clients when this is dropped, and its file is removed.
pub(super) struct ControlSocket {
    run: RunDir,
    listener: Arc<UnixListener>,
    is_closed: Arc<AtomicBool>,
}

impl ControlSocket {
    /// Makes the socket of this process.
    pub(super) fn open() -> Result<Self, RecordError> {
        let run = RunDir::make()?;
        stale::remove_of_dead_processes();
        let listener = run.listen(&socket_name(std::process::id()))?;
        Ok(Self {
            run,
            listener: Arc::new(listener),
            is_closed: Arc::default(),
        })
    }

    /// Starts the thread that takes clients, and passes what they ask to `pass_on`.
    pub(super) fn serve<'scope, 'env>(
        &self,
        scope: &'scope Scope<'scope, 'env>,
        pass_on: impl Fn(Asked) + Clone + Send + 'scope,
    ) -> Result<(), ServeError> {
        let (listener, is_closed) = (Arc::clone(&self.listener), Arc::clone(&self.is_closed));
        let path = self.run.path(&socket_name(std::process::id()));
        let clients = Arc::new(());
        let take = move || {
            while !is_closed.load(Ordering::Relaxed) {
                let client = listener.accept().map(|(stream, _)| stream);
                match client.and_then(|stream| admitted(stream, &path, &clients)) {
                    Ok(Some(line)) => start(scope, line, Arc::clone(&clients), pass_on.clone()),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!("no client of the control socket: {error}");
                        thread::sleep(PAUSE);
                    }
                }
            }
        };
        let thread = limits::thread("control".to_owned()).spawn_scoped(scope, take);
        let no_thread = limits::no_thread("start the thread of the control socket");
        thread.map(drop).map_err(no_thread)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.is_closed.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for clients.
        let _ = shutdown(&self.listener, Shutdown::Both);
        if let Err(error) = self.run.remove(&socket_name(std::process::id())) {
            tracing::warn!("{error}");
        }
    }
}

/// The connection to a client, if it is root's and not one too many. `clients` has a reference for each that is served.
fn admitted(stream: UnixStream, path: &Path, clients: &Arc<()>) -> io::Result<Option<Line>> {
    // Only root can open the socket; this does not rest on the file's mode alone.
    if let Err(error) = check_peer("client of", path, stream.as_fd()) {
        tracing::warn!("{error}");
        return Ok(None);
    }
    admit(stream, clients)
}

/// The same of one that is root's.
fn admit(stream: UnixStream, clients: &Arc<()>) -> io::Result<Option<Line>> {
    let line = Line::new(stream)?;
    if Arc::strong_count(clients) <= MAX_CLIENTS {
        return Ok(Some(line));
    }
    let why = format!("the server has {MAX_CLIENTS} other commands to carry out: try again later");
    // It fits into the socket's buffer, so this does not wait.
    line.send_reply(&Reply::Error(why))?;
    Ok(None)
}

/// Gives a client its thread.
fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    line: Line,
    client: Arc<()>,
    pass_on: impl Fn(Asked) + Send + 'scope,
) {
    let attend = move || {
        let attended = catch_unwind(AssertUnwindSafe(|| attend(line, pass_on)));
        if let Ok(Err(error)) = attended {
            tracing::debug!("a client of the control socket is gone: {error}");
        }
        drop(client);
    };
    if let Err(error) = limits::thread("client".to_owned()).spawn_scoped(scope, attend) {
        tracing::warn!("a client of the control socket is not served: {error}");
    }
}

/// A client, from its request to the last reply.
fn attend(mut line: Line, pass_on: impl Fn(Asked)) -> io::Result<()> {
    let request = match line.receive_request() {
        Ok(request) => request,
        Err(why) => return line.send_reply(&Reply::Error(why)),
    };
    let (answer, replies) = Answer::new();
    pass_on(Asked {
        request,
        descriptor: line.take_descriptor(),
        answer,
    });
    loop {
        let reply = next(&replies);
        line.send_reply(&reply)?;
        if reply.is_last() {
            return Ok(());
        }
    }
}

fn next(replies: &Receiver<Reply>) -> Reply {
    match replies.recv_timeout(WORKING) {
        Ok(reply) => reply,
        Err(RecvTimeoutError::Timeout) => Reply::Working,
        Err(RecvTimeoutError::Disconnected) => {
            Reply::Error("the server has ended before it was done: see `ublk-bpf list`".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn one_client_too_many_is_told_so_until_another_has_gone() {
        let clients = Arc::new(());
        let mut served: Vec<_> = (0..MAX_CLIENTS).map(|_| Arc::clone(&clients)).collect();
        let (server, mut client) = UnixStream::pair().unwrap();
        assert!(admit(server, &clients).unwrap().is_none());
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert!(
            said.starts_with("{\"error\":") && said.contains("8 other commands"),
            "{said}"
        );
        served.pop();
        let (server, _client) = UnixStream::pair().unwrap();
        assert!(admit(server, &clients).unwrap().is_some());
    }
}
