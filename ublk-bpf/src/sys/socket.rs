//! Unix sockets with a path.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen as start, socket_with,
};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Makes a socket at `path` and listens. Its file has this mode from the first moment, less what the umask takes: it is
/// that of the socket when it is bound (`unix_bind_bsd` in `net/unix/af_unix.c`).
pub(crate) fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    start(&socket, BACKLOG)?;
    Ok(socket.into())
}
