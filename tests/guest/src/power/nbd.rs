//! Volatile disks as block devices: the kernel's network block device, whose other end is a thread of the test.
//!
//! The protocol is that of `include/uapi/linux/nbd.h`: numbers are big-endian, and each answer has the cookie of its
//! request.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use super::disk::{Refusal, Request, VolatileDisk};
use crate::leftover::SOON;
use crate::torture::Disk as _;
use crate::torture::content::mix;
use crate::{open, run, wait_until, write};

/// `_IO(0xab, N)` of `linux/nbd.h`.
const SET_SOCK: u64 = 0xab00;
const SET_BLKSIZE: u64 = 0xab01;
const DO_IT: u64 = 0xab03;
const CLEAR_SOCK: u64 = 0xab04;
const SET_SIZE_BLOCKS: u64 = 0xab07;
const SET_FLAGS: u64 = 0xab0a;
/// `NBD_FLAG_HAS_FLAGS`, `_SEND_FLUSH`, `_SEND_FUA`, `_SEND_TRIM` and `_SEND_WRITE_ZEROES`.
const FLAGS: u64 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;
/// Bytes that the kernel may have sent and the disk not taken: more than all requests in flight.
static BUFFER: libc::c_int = 256 << 20;
/// Bytes of a logical block.
const BLOCK: u64 = 512;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// `NBD_CMD_FLAG_FUA`.
const FORCED: u16 = 1;

/// A volatile disk that is `/dev/nbdN`; unplugged when dropped.
#[derive(Debug)]
pub struct Plug {
    path: PathBuf,
    socket: UnixStream,
    threads: Vec<JoinHandle<()>>,
}

impl Plug {
    /// Makes the disk `/dev/nbdN`.
    pub fn new(disk: &Arc<VolatileDisk>, number: u32) -> Self {
        run("modprobe", &["nbd", "nbds_max=4", "max_part=0"]);
        let path = PathBuf::from(format!("/dev/nbd{number}"));
        let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
        never_block(&theirs);
        let device = open(&path);
        let blocks = disk.size() / BLOCK;
        let kernel = thread::spawn(move || connect(&device, &theirs, blocks));
        let mut threads = serve(disk, &socket);
        threads.push(kernel);
        let plug = Self {
            path,
            socket,
            threads,
        };
        disk.connect(plug.socket.try_clone().expect("a copy of the socket"));
        let is = |file: &str, value: &str| {
            let path = format!("/sys/block/nbd{number}/{file}");
            std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
        };
        wait_until("the volatile disk is there", SOON, || {
            Path::new(&format!("/sys/block/nbd{number}/pid")).exists()
                && is("size", &blocks.to_string())
                && is("queue/write_cache", "write back")
                && is("queue/fua", "1")
        });
        // A request that is merged with one of a broken part would fail with it.
        write(format!("/sys/block/nbd{number}/queue/nomerges"), "2");
        plug
    }

    /// `/dev/nbdN`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        // It fails where the other end is closed.
        let _ = self.socket.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Gives the kernel room for all that it may send. A send that waits for room ends with its sender, in a part, and the
/// kernel finishes it in a work of the driver. If the connection is closed before that runs, Linux 7.3 crashes
/// (`nbd_mark_nsock_dead` takes away what `nbd_pending_cmd_work` sends, in drivers/block/nbd.c).
fn never_block(socket: &UnixStream) {
    let length = libc::socklen_t::try_from(size_of_val(&BUFFER)).expect("a few bytes");
    // SAFETY: the option is an integer, which is read from BUFFER.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (&raw const BUFFER).cast(),
            length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Gives the kernel its end of the connection, until that is closed.
fn connect(device: &File, socket: &UnixStream, blocks: u64) {
    let fd = u64::try_from(socket.as_raw_fd()).expect("a descriptor");
    for (request, argument) in [
        (SET_BLKSIZE, BLOCK),
        (SET_SIZE_BLOCKS, blocks),
        (SET_FLAGS, FLAGS),
        (SET_SOCK, fd),
    ] {
        let result = control(device, request, argument);
        assert!(
            result.is_ok(),
            "nbd refuses {request:#x} {argument:#x}: {result:?}"
        );
    }
    // It returns when the connection is closed, with an error.
    let _ = control(device, DO_IT, 0);
    // This fails what is in flight.
    control(device, CLEAR_SOCK, 0).expect("nbd gives its connection up");
}

fn control(device: &File, request: u64, argument: u64) -> std::io::Result<()> {
    // SAFETY: these requests take their argument as a number.
    match unsafe { libc::ioctl(device.as_raw_fd(), request, argument) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// An answer on its way.
struct Reply {
    cookie: [u8; 8],
    taken: Result<Option<u64>, Refusal>,
    content: Vec<u8>,
}

/// One thread takes requests and another answers them, in another order where several are ready.
fn serve(disk: &Arc<VolatileDisk>, socket: &UnixStream) -> Vec<JoinHandle<()>> {
    let (sender, replies) = channel();
    let end = || socket.try_clone().expect("a copy of the socket");
    let (incoming, outgoing) = (end(), end());
    let (takes, answers) = (Arc::clone(disk), Arc::clone(disk));
    vec![
        thread::spawn(move || take_all(&takes, incoming, &sender)),
        thread::spawn(move || answer_all(&answers, outgoing, &replies)),
    ]
}

fn take_all(disk: &VolatileDisk, mut socket: UnixStream, replies: &Sender<Reply>) {
    let mut header = [0; 28];
    let mut content = Vec::new();
    while socket.read_exact(&mut header).is_ok() {
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let half = |at: usize| u16::from_be_bytes(header[at..at + 2].try_into().expect("two bytes"));
        assert_eq!(word(0), REQUEST_MAGIC, "no request of nbd");
        let (forced, command) = (half(4) & FORCED != 0, half(6));
        let offset = u64::from_be_bytes(header[16..24].try_into().expect("eight bytes"));
        let length = word(24);
        let mut found = Vec::new();
        let taken = match command {
            0 => {
                found = vec![0; length as usize];
                disk.take(Request::Read(offset, &mut found))
            }
            1 => {
                content.resize(length as usize, 0);
                if socket.read_exact(&mut content).is_err() {
                    return;
                }
                disk.take(Request::Write(offset, &content, forced))
            }
            2 => return,
            3 => disk.take(Request::Flush),
            4 | 6 => disk.take(Request::Zero(offset, length.into(), forced)),
            other => panic!("nbd sent command {other}, which was not offered"),
        };
        let cookie = header[8..16].try_into().expect("eight bytes");
        let reply = Reply {
            cookie,
            taken,
            content: found,
        };
        if replies.send(reply).is_err() {
            return;
        }
    }
}

fn answer_all(disk: &VolatileDisk, mut socket: UnixStream, replies: &Receiver<Reply>) {
    let mut sent = 0_u64;
    while let Ok(first) = replies.recv() {
        let mut ready = vec![first];
        ready.extend(replies.try_iter());
        while !ready.is_empty() {
            sent += 1;
            let any = usize::try_from(mix(sent) % ready.len() as u64).expect("within the list");
            let reply = ready.swap_remove(any);
            let done = disk.answer(reply.taken, |result| {
                send(&mut socket, &reply.cookie, result, &reply.content)
            });
            if done.is_err() {
                return;
            }
        }
    }
}

fn send(
    socket: &mut UnixStream,
    cookie: &[u8; 8],
    result: Result<(), Refusal>,
    content: &[u8],
) -> std::io::Result<()> {
    let (error, content) = match result {
        Ok(()) => (0, content),
        Err(Refusal::Silent) => return Ok(()),
        Err(Refusal::Failed) => (libc::EIO.unsigned_abs(), &[][..]),
    };
    let mut reply = Vec::with_capacity(16 + content.len());
    reply.extend(REPLY_MAGIC.to_be_bytes());
    reply.extend(error.to_be_bytes());
    reply.extend(cookie);
    reply.extend(content);
    socket.write_all(&reply)
}
