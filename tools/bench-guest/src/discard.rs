//! Takes a ram disk's pages back from it while another program uses the disk.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use io_uring::{IoUring, opcode, types};

/// `BLOCK_URING_CMD_DISCARD`, `_IO(0x12, 0)` in linux/blkdev.h. The ioctl BLKDISCARD, which blkdiscard(8) makes, is
/// refused for a disk that is opened exclusively, as device-mapper and ublk-bpf do.
const DISCARD: u32 = 0x1200;

/// Discards the first `bytes` of a device: a ram disk then has no page there, and reads as zeroes.
pub fn discard(device: &str, bytes: u64) -> Result<()> {
    let context = || format!("cannot discard {bytes} bytes of {device}");
    let file = File::options()
        .write(true)
        .open(Path::new(device))
        .with_context(context)?;
    // The command takes its start from `addr`, which this entry leaves at 0, and its length from what `cmd` starts
    // with, which is where `addr3` is.
    let mut length = [0; 16];
    length[..8].copy_from_slice(&bytes.to_ne_bytes());
    let entry = opcode::UringCmd16::new(types::Fd(file.as_raw_fd()), DISCARD)
        .cmd(length)
        .build();
    let mut ring = IoUring::new(1).with_context(context)?;
    // SAFETY: the entry refers to no memory, and to a file that is open until the end of this function.
    if unsafe { ring.submission().push(&entry) }.is_err() {
        bail!("a new ring has no room");
    }
    ring.submit_and_wait(1).with_context(context)?;
    let result = ring
        .completion()
        .next()
        .context("a ring woke for nothing")?
        .result();
    ensure!(
        result == 0,
        "{}: {}",
        context(),
        std::io::Error::from_raw_os_error(-result)
    );
    Ok(())
}
