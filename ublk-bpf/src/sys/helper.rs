//! A helper process, for system calls that the calling process must not wait in.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::thread;

use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};

use super::fork::{Side, fork, replace_standard_files};

/// Bytes of a request or an answer at most.
const MAX_BYTES: usize = 1024;
/// Bytes of the stack of a thread of the helper.
const STACK: usize = 128 << 10;

/// A process that does what it is asked, several things at the same time. It shares no memory and no open file with its
/// parent, and ends after it.
#[derive(Debug)]
pub(crate) struct Helper(OwnedFd);

impl Helper {
    /// Makes the process, which answers each request by `work`. The calling process must have one thread.
    ///
    /// # Errors
    /// If the calling process has more threads, or the kernel refuses a process or a socket.
    pub(crate) fn start(work: fn(&[u8]) -> Vec<u8>) -> io::Result<Self> {
        let (ours, theirs) = pair()?;
        match fork()? {
            Side::Parent(_) => Ok(Self(ours)),
            Side::Child => {
                // A panic must not unwind into what the parent does.
                let _ = std::panic::catch_unwind(|| serve(&theirs, work));
                // SAFETY: it ends the process and nothing else: what the parent registered to be done at its end is not
                // done here.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Has the helper do what `request` says, and waits for its answer.
    ///
    /// # Errors
    /// If the helper has ended.
    pub(crate) fn ask(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let (ours, theirs) = pair()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [theirs.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let parts = [IoSlice::new(request)];
        retry_on_intr(|| sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL))?;
        // The helper's copy is the last one: the socket ends with it.
        drop(theirs);
        let mut answer = [0; MAX_BYTES];
        match retry_on_intr(|| recv(&ours, &mut answer, RecvFlags::empty()))? {
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (length, _) => Ok(answer[..length].to_vec()),
        }
    }
}

/// Sockets that keep the bounds of messages.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// The helper: until its parent has ended, and all that it was asked.
fn serve(requests: &OwnedFd, work: fn(&[u8]) -> Vec<u8>) -> io::Result<()> {
    ignore_signals();
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    replace_standard_files(&null, &null)?;
    drop(null);
    close_all_but(requests)?;
    answer_all(requests, work)
}

/// Answers each request on a thread of its own, until there is no parent to ask.
fn answer_all(requests: &OwnedFd, work: fn(&[u8]) -> Vec<u8>) -> io::Result<()> {
    thread::scope(|scope| {
        while let Some((request, answer)) = next(requests)? {
            let done = move || {
                // One that does not wait for the answer has ended.
                let _ = send(&answer, &work(&request), SendFlags::NOSIGNAL);
            };
            thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, done)?;
        }
        Ok(())
    })
}

/// The next request, and where its answer goes; `None` if there is no parent to ask.
fn next(requests: &OwnedFd) -> io::Result<Option<(Vec<u8>, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut request = [0; MAX_BYTES];
    let received = retry_on_intr(|| {
        let parts = &mut [IoSliceMut::new(&mut request)];
        recvmsg(requests, parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut answer = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            answer = descriptors.last();
        }
    }
    Ok(answer.map(|answer| (request[..received.bytes].to_vec(), answer)))
}

/// The signals that end a server: it may still need the helper, which ends after it.
fn ignore_signals() {
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
    ] {
        // SAFETY: no handler is installed; the disposition is the process's own.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Closes every descriptor but the standard ones and this: a copy would keep what the parent has locked, opened for
/// itself or mounted beyond its end.
fn close_all_but(kept: &OwnedFd) -> io::Result<()> {
    let kept = u32::try_from(kept.as_raw_fd()).expect("a descriptor is not negative");
    for (first, last) in [(3, kept - 1), (kept + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: the owners of these descriptors are values of the parent, of which this process has copies that it
            // neither uses nor drops: it ends by `_exit`.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests have several threads, so a thread stands in for the process.
    fn helper(work: fn(&[u8]) -> Vec<u8>) -> (Helper, thread::JoinHandle<()>) {
        let (ours, theirs) = pair().unwrap();
        (
            Helper(ours),
            thread::spawn(move || answer_all(&theirs, work).unwrap()),
        )
    }

    #[test]
    fn each_answer_is_that_of_its_request() {
        let (helper, thread) = helper(|request| {
            // The first is answered last.
            thread::sleep(std::time::Duration::from_millis(u64::from(50 - request[0])));
            vec![request[0] + 1]
        });
        thread::scope(|scope| {
            for number in 0..50 {
                let helper = &helper;
                scope.spawn(move || assert_eq!(helper.ask(&[number]).unwrap(), [number + 1]));
            }
        });
        drop(helper);
        thread.join().unwrap();
    }

    #[test]
    fn a_helper_that_has_ended_is_noticed() {
        let (ours, theirs) = pair().unwrap();
        drop(theirs);
        Helper(ours).ask(b"x").unwrap_err();
    }

    #[test]
    fn a_process_with_threads_has_no_helper() {
        // The test harness has its own.
        let error = Helper::start(|_| Vec::new()).unwrap_err();
        assert!(error.to_string().contains("threads"), "{error}");
    }
}
