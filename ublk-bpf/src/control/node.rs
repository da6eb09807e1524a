//! Device nodes: they appear a moment after the command that makes their device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::ControlError;
use super::id::DeviceId;

/// devtmpfs makes a node at once, udev may still change it: short enough not to be noticed.
const PAUSE: Duration = Duration::from_millis(2);

/// Opens `/dev/ublkcN` for reading and writing, waiting for it to appear, at most `within`. One process at a time
/// has it open; the kernel takes that process for the server.
pub fn open_char_device(id: DeviceId, within: Duration) -> Result<File, ControlError> {
    wait_for(id.char_path(), within, |path| {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let is_node = file.metadata()?.file_type().is_char_device();
        Ok(is_node.then_some(file))
    })
}

/// Waits until `/dev/ublkbN` is there and is a block device, at most `within`.
pub fn wait_for_block_device(id: DeviceId, within: Duration) -> Result<(), ControlError> {
    wait_for(id.block_path(), within, |path| {
        let is_node = path.metadata()?.file_type().is_block_device();
        Ok(is_node.then_some(()))
    })
}

/// Waits until there is something at `path`. `look` returns `None` if that is not the node.
fn wait_for<T>(
    path: PathBuf,
    within: Duration,
    look: impl Fn(&Path) -> io::Result<Option<T>>,
) -> Result<T, ControlError> {
    let deadline = Instant::now() + within;
    loop {
        match look(&path) {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => return Err(ControlError::NotANode { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ControlError::Node { path, source }),
        }
        if Instant::now() >= deadline {
            return Err(ControlError::NoNode { path, after: within });
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_does_not_appear_is_named() {
        let id = DeviceId::new(1_048_575).unwrap();
        let within = Duration::from_millis(10);
        assert_eq!(
            open_char_device(id, within).unwrap_err().to_string(),
            "/dev/ublkc1048575 did not appear within 0.01 s; is devtmpfs mounted on /dev?"
        );
        wait_for_block_device(id, within).unwrap_err();
    }
}
