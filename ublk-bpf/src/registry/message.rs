//! What a command and a running server say to each other: JSON, a message a line.
//!
//! A command connects to the socket of the server's process, sends one [`Request`], and reads [`Reply`]s until the
//! [last one](Reply::is_last). Both ends refuse a message that is longer than 64 KiB, or late. A descriptor may come with
//! a request.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use super::options::Scheduler;
use crate::cache::Mode;
use crate::cache::evict::Algorithm;
use crate::control::DeviceId;

/// Version of the messages. A server of another version refuses the request, and says which one it has.
const VERSION: u32 = 1;
/// Bytes of a message at most, the newline among them.
const MAX_BYTES: usize = 64 << 10;
/// A server that has nothing to report says so at this interval.
pub(crate) const WORKING: Duration = Duration::from_secs(1);
/// How long either end may take to send a message that it has, or to take one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What a server is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Something of one of its devices.
    Device {
        /// Which one.
        id: DeviceId,
        /// What.
        command: DeviceCommand,
    },
    /// To make its devices what its configuration describes now. The descriptor that comes with it is of the mount namespace
    /// in which paths are meant.
    Reload,
}

/// What a device is asked. `server/commands.rs` carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DeviceCommand {
    /// Change an option.
    Set(Setting),
    /// Leave the device waiting for another server.
    Leave,
    /// Grow to so many bytes; none: to the size of its backing.
    Resize(Option<u64>),
    /// List the dirty ranges that cannot be written back, as JSON: a list of [`FailingRange`](crate::cache::FailingRange).
    Failing,
    /// Write back all that is dirty.
    Drain(AfterDrain),
    /// End a drain that [holds](AfterDrain::Hold): writes may end in the cache again.
    EndDrain,
}

/// What follows once nothing is dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterDrain {
    /// Writes may end in the cache again.
    Resume,
    /// No write ends in the cache until the drain is ended.
    Hold,
    /// The cache is used no longer.
    Detach,
}

/// An option that a running device can change, with its new value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Setting {
    /// Bytes that may be promoted in a second; none: no limit.
    PromoteLimit(Option<u64>),
    /// How writes treat cached blocks, where their policy says nothing.
    CacheMode(Mode),
    /// Percent of the cache that may be dirty: 1 to [`MAX_DIRTY`](super::MAX_DIRTY).
    DirtyHigh(u8),
    /// Bytes that may be written back in a second; none: no limit.
    CleanLimit(Option<u64>),
    /// The algorithm by which blocks are evicted.
    CacheEviction(Algorithm),
    /// The I/O scheduler of its disk.
    Scheduler(Scheduler),
    /// How much the server logs, as the number of times that `--verbose` is given: 0 to 3. Of all its devices, and until it
    /// ends.
    Verbose(u8),
}

/// A server's reply. There may be several, of which the last is [`Ok`](Self::Ok) or [`Error`](Self::Error).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is at work and has nothing to report.
    Working,
    /// How far it is, for the user to read.
    Progress(String),
    /// It is done: a line for the user, which may be empty.
    Ok(String),
    /// It is refused, or has failed: what was wanted, what was found, what to do.
    Error(String),
}

/// A request with the version of its words.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Versioned<T> {
    version: u32,
    request: T,
}

impl Request {
    fn parse(line: &[u8]) -> Result<Self, String> {
        /// Read before the rest, which another version may have changed.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let wrong = |error: serde_json::Error| format!("the server does not understand the request: {error}");
        let Head { version } = serde_json::from_slice(line).map_err(wrong)?;
        if version != VERSION {
            return Err(format!(
                "the server understands requests of version {VERSION}, and this one has version {version}: use the \
                 ublk-bpf that the server was started with, or restart the server"
            ));
        }
        let versioned: Versioned<Self> = serde_json::from_slice(line).map_err(wrong)?;
        Ok(versioned.request)
    }
}

impl Reply {
    /// Whether no other follows it.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Ok(_) | Self::Error(_))
    }
}

/// One end of a connection between a command and a server.
#[derive(Debug)]
pub(crate) struct Line {
    stream: UnixStream,
    /// What has come after the last newline.
    read: Vec<u8>,
    /// What has come with it.
    descriptor: Option<OwnedFd>,
}

impl Line {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            read: Vec::new(),
            descriptor: None,
        })
    }

    /// Sends a request, as [`receive_request`](Self::receive_request) takes it, and a descriptor with it.
    pub(crate) fn send_request(&self, request: &Request, with: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if let Some(descriptor) = with {
            self.send_descriptor(descriptor)?;
        }
        self.send(&Versioned {
            version: VERSION,
            request,
        })
    }

    /// With a blank, which JSON may begin with.
    fn send_descriptor(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut buffer = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        buffer.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = sendmsg(
            &self.stream,
            &[IoSlice::new(b" ")],
            &mut buffer,
            SendFlags::NOSIGNAL,
        )?;
        if sent == 1 {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// The request that the other end sends within [`PATIENCE`].
    ///
    /// # Errors
    /// Why there is none, to be told to the other end.
    pub(crate) fn receive_request(&mut self) -> Result<Request, String> {
        let line = self.next(PATIENCE);
        let line = line.map_err(|error| format!("the server has received no request: {error}"))?;
        Request::parse(&line)
    }

    /// The descriptor that came with what was received.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    pub(crate) fn send_reply(&self, reply: &Reply) -> io::Result<()> {
        self.send(reply)
    }

    /// The next reply, if it comes within `patience`.
    pub(crate) fn receive_reply(&mut self, patience: Duration) -> io::Result<Reply> {
        Ok(serde_json::from_slice(&self.next(patience)?)?)
    }

    fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        if line.len() > MAX_BYTES {
            return Err(too_long());
        }
        (&self.stream).write_all(&line)
    }

    /// The next line, without its newline, if all of it comes within `patience`.
    fn next(&mut self, patience: Duration) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                self.read.pop();
                return Ok(std::mem::replace(&mut self.read, rest));
            }
            if self.read.len() >= MAX_BYTES {
                return Err(too_long());
            }
            self.read_more(deadline)?;
        }
    }

    fn read_more(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut part = [0; 4096];
        match self.receive(&mut part) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.read.extend_from_slice(&part[..length]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error),
        }
    }
}

impl Line {
    /// Reads from the stream, and keeps a descriptor that comes with the bytes.
    fn receive(&mut self, part: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut buffer = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(part)];
        let received = recvmsg(&self.stream, &mut parts, &mut buffer, RecvFlags::CMSG_CLOEXEC)?;
        for message in buffer.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptor = descriptors.last();
            }
        }
        Ok(received.bytes)
    }
}

fn too_long() -> io::Error {
    let what = "a message is longer than 64 KiB, the limit";
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use super::*;

    fn pair() -> (Line, Line) {
        let (one, other) = UnixStream::pair().unwrap();
        (Line::new(one).unwrap(), Line::new(other).unwrap())
    }

    fn request() -> Request {
        Request::Device {
            id: DeviceId::new(3).unwrap(),
            command: DeviceCommand::Set(Setting::PromoteLimit(Some(1 << 20))),
        }
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (command, mut server) = pair();
        command.send_request(&request(), None).unwrap();
        assert_eq!(server.receive_request(), Ok(request()));
        assert!(server.take_descriptor().is_none());
        let mut command = command;
        let replies = [
            Reply::Working,
            Reply::Progress("half\nof it".into()),
            Reply::Ok(String::new()),
        ];
        for reply in &replies {
            server.send_reply(reply).unwrap();
        }
        for reply in &replies {
            assert_eq!(&command.receive_reply(PATIENCE).unwrap(), reply);
        }
        drop(server);
        let gone = command.receive_reply(PATIENCE).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_descriptor_arrives_with_its_request() {
        let (command, mut server) = pair();
        let (mut ours, theirs) = io::pipe().unwrap();
        command
            .send_request(&Request::Reload, Some(theirs.as_fd()))
            .unwrap();
        drop(theirs);
        assert_eq!(server.receive_request(), Ok(Request::Reload));
        let arrived = server.take_descriptor().unwrap();
        std::fs::File::from(arrived).write_all(b"!").unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "!");
    }

    #[test]
    fn what_is_no_request_is_refused_in_words() {
        for (line, words) in [
            ("", "does not understand the request: EOF"),
            ("{}", "missing field `version`"),
            (
                r#"{"version":2,"request":7}"#,
                "understands requests of version 1, and this one has version 2",
            ),
            (r#"{"version":1,"request":"x"}"#, "unknown variant `x`"),
            (
                r#"{"version":1,"request":{"device":{"id":4294967295,"command":{"set":{"promote-limit":null}}}}}"#,
                "4294967295",
            ),
            (
                r#"{"version":1,"request":{"device":{"id":1,"command":{"set":{"depth":1}}}}}"#,
                "unknown variant `depth`",
            ),
            (r#"{"version":1,"request":{"device":{"id":1}}}"#, "missing field"),
        ] {
            let why = Request::parse(line.as_bytes()).unwrap_err();
            assert!(why.contains(words), "{line}: {why}");
        }
        let deep = format!("{{\"version\":1,\"request\":{}", "[".repeat(60_000));
        assert!(Request::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_message_has_an_end_in_bytes_and_in_time() {
        let (command, mut server) = pair();
        let writer = std::thread::spawn(move || (&command.stream).write_all(&vec![b'x'; MAX_BYTES + 1]));
        let why = server.receive_request().unwrap_err();
        assert!(why.contains("longer than 64 KiB"), "{why}");
        drop(server);
        // Its rest was not taken, or just so.
        let _ = writer.join().unwrap();

        let (command, mut server) = pair();
        (&command.stream).write_all(b"{").unwrap();
        let late = server.next(Duration::from_millis(20)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }
}
