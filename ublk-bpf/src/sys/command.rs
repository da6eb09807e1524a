//! One ublk control command at a time: an io_uring command with a 128-byte SQE, bounded in time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use zerocopy::IntoBytes;

use super::uapi::CtrlCmd;

/// How long to wait for a cancelled command before it is abandoned.
const CANCEL_GRACE: Duration = Duration::from_secs(1);
const COMMAND: u64 = 1;
const CANCEL: u64 = 2;

type CommandRing = IoUring<squeue::Entry128, cqueue::Entry>;

/// The kernel's reply.
#[derive(Debug)]
pub struct Reply {
    /// The command's result: 0 or more, or a negative errno.
    pub result: i32,
    /// The command's buffer, with what the kernel wrote to it.
    pub buffer: Box<[u8]>,
}

/// Why there is no reply.
#[derive(Debug)]
pub enum NoReply {
    /// io_uring itself does not work here.
    Ring(io::Error),
    /// The time ran out. `cancelled`: the command has ended, with no or part of its effect. Otherwise it still runs in
    /// the kernel, and the process cannot exit before it ends.
    TimedOut {
        /// Whether the kernel cancelled the command.
        cancelled: bool,
    },
}

/// Sends the command with ioctl number `code` to `device` (`/dev/ublk-control`) and waits for its reply, at most
/// `within` and a second's grace for its cancellation. `command.addr` and `command.len` are set from `buffer`.
///
/// Each call creates its own ring: control commands are rare, and one that never returns then blocks no other. Signals
/// do not end the wait.
///
/// # Panics
///
/// If the buffer is longer than 65535 bytes, which a command cannot describe.
pub fn execute(
    device: BorrowedFd<'_>,
    code: u32,
    mut command: CtrlCmd,
    buffer: Box<[u8]>,
    within: Duration,
) -> Result<Reply, NoReply> {
    command.len = u16::try_from(buffer.len()).expect("no command has a buffer of 64 KiB");
    let mut ring: CommandRing = IoUring::builder().build(2).map_err(NoReply::Ring)?;

    // The kernel may write to the buffer until the command's CQE: until then no Rust value owns it, and if that
    // CQE never comes it is leaked.
    let buffer = Box::into_raw(buffer);
    command.addr = buffer.cast::<u8>().expose_provenance() as u64;
    let mut area = [0; 80];
    area[..size_of::<CtrlCmd>()].copy_from_slice(command.as_bytes());
    let entry = opcode::UringCmd80::new(Fd(device.as_raw_fd()), code)
        .cmd(area)
        .build();
    // SAFETY: `buffer` stays allocated until the CQE, see above; the SQE holds the rest by value.
    let result = unsafe { run(&mut ring, entry, within) }?;
    // SAFETY: made by `Box::into_raw` above; the CQE has come, so the kernel no longer accesses it.
    let buffer = unsafe { Box::from_raw(buffer) };
    result
        .map(|result| Reply { result, buffer })
        .ok_or(NoReply::TimedOut { cancelled: true })
}

/// Runs one operation to its CQE and returns its result; `None`: it was cancelled because its time ran out. After an
/// error its CQE has not come.
///
/// # Safety
///
/// The memory that the entry points to stays valid until its CQE has come.
unsafe fn run(
    ring: &mut CommandRing,
    entry: squeue::Entry128,
    within: Duration,
) -> Result<Option<i32>, NoReply> {
    // SAFETY: passed on from the caller.
    unsafe { push(ring, &entry.user_data(COMMAND)) };
    if let Some(result) = wait(ring, Instant::now() + within).map_err(NoReply::Ring)? {
        return Ok(Some(result));
    }
    let cancel = squeue::Entry128::from(opcode::AsyncCancel::new(COMMAND).build());
    // SAFETY: a cancellation has no buffer.
    unsafe { push(ring, &cancel.user_data(CANCEL)) };
    match wait(ring, Instant::now() + CANCEL_GRACE).map_err(NoReply::Ring)? {
        Some(result) if result == -libc::EINTR || result == -libc::ECANCELED => Ok(None),
        // It completed at the last moment.
        Some(result) => Ok(Some(result)),
        None => Err(NoReply::TimedOut { cancelled: false }),
    }
}

/// Puts an entry in the submission queue.
///
/// # Safety
///
/// The memory that the entry points to stays valid until its CQE has come.
unsafe fn push(ring: &mut CommandRing, entry: &squeue::Entry128) {
    // SAFETY: passed on from the caller.
    let result = unsafe { ring.submission().push(entry) };
    result.expect("a ring of two entries has room for a command and its cancellation");
}

/// Submits what is queued and waits for the command's result until `deadline`; `None`: it did not come.
fn wait(ring: &mut CommandRing, deadline: Instant) -> io::Result<Option<i32>> {
    loop {
        let left = Timespec::from(deadline.saturating_duration_since(Instant::now()));
        match ring
            .submitter()
            .submit_with_args(1, &SubmitArgs::new().timespec(&left))
        {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
        if let Some(entry) = ring.completion().find(|entry| entry.user_data() == COMMAND) {
            return Ok(Some(entry.result()));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_without_commands_answers_with_an_errno_and_gives_the_buffer_back() {
        let file = tempfile::tempfile().unwrap();
        let buffer = vec![7; 64].into_boxed_slice();
        let answer = execute(
            file.as_fd(),
            1,
            CtrlCmd::default(),
            buffer,
            Duration::from_secs(5),
        )
        .unwrap();
        assert_eq!(answer.result, -libc::EOPNOTSUPP);
        assert_eq!(&*answer.buffer, [7; 64]);
    }

    #[test]
    fn what_takes_too_long_is_cancelled_in_time() {
        let (reader, _writer) = io::pipe().unwrap();
        let mut ring: CommandRing = IoUring::builder().build(2).unwrap();
        let mut byte = [0u8; 1];
        let entry = opcode::Read::new(Fd(reader.as_raw_fd()), byte.as_mut_ptr(), 1)
            .build()
            .into();
        let started = Instant::now();
        // SAFETY: `byte` outlives the read, which ends with its cancellation.
        let result = unsafe { run(&mut ring, entry, Duration::from_millis(20)) };
        assert!(matches!(result, Ok(None)), "{result:?}");
        let took = started.elapsed();
        assert!(
            took >= Duration::from_millis(20) && took < CANCEL_GRACE,
            "{took:?}"
        );
    }

    #[test]
    fn a_result_within_its_time_comes_back() {
        let mut ring: CommandRing = IoUring::builder().build(2).unwrap();
        let entry = squeue::Entry128::from(opcode::Nop::new().build());
        // SAFETY: a no-op points to nothing.
        let result = unsafe { run(&mut ring, entry, Duration::from_secs(5)) };
        assert!(matches!(result, Ok(Some(0))), "{result:?}");
    }

    #[test]
    #[should_panic(expected = "no command has a buffer of 64 KiB")]
    fn a_buffer_that_no_command_can_describe_is_not_sent() {
        let file = tempfile::tempfile().unwrap();
        let buffer = vec![0; 1 << 16].into_boxed_slice();
        let _ = execute(
            file.as_fd(),
            1,
            CtrlCmd::default(),
            buffer,
            Duration::from_secs(5),
        );
    }
}
