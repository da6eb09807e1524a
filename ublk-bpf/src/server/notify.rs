//! Messages to the service manager that started the server: `sd_notify(3)`, and its watchdog.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::life::Ready;

/// The manager's end, if it listens. The socket is connected before the process leaves its mounts, so that its path is
/// not needed later.
pub(super) struct Manager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// The manager that the environment names: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`. One that cannot be
    /// reached is logged.
    pub(super) fn of_environment() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Self::absent();
        };
        match connect(&address) {
            Ok(socket) => Self {
                socket: Some(socket),
                watchdog: watchdog(
                    env::var("WATCHDOG_USEC").ok().as_deref(),
                    env::var("WATCHDOG_PID").ok().as_deref(),
                ),
            },
            Err(error) => {
                tracing::warn!(
                    "cannot reach the service manager at {}: {error}",
                    address.display()
                );
                Self::absent()
            }
        }
    }

    const fn absent() -> Self {
        Self {
            socket: None,
            watchdog: None,
        }
    }

    /// How often [`alive`](Self::alive) is to be called at least: twice in the time that the manager waits for it.
    pub(super) fn interval(&self) -> Option<Duration> {
        self.watchdog.map(|patience| patience / 2)
    }

    /// All devices are ready.
    pub(super) fn ready(&self, devices: &[Ready]) {
        self.send(&format!("READY=1\n{}", status(devices)));
    }

    /// These are the devices now.
    pub(super) fn serves(&self, devices: &[Ready]) {
        self.send(&status(devices));
    }

    /// The main thread does its work.
    pub(super) fn alive(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1\n");
        }
    }

    /// All devices have ended.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1\n");
    }

    /// A manager that does not listen costs nothing but the message.
    fn send(&self, message: &str) {
        let sent = self.socket.as_ref().map(|socket| socket.send(message.as_bytes()));
        if let Some(Err(error)) = sent {
            tracing::debug!("the service manager does not take {message:?}: {error}");
        }
    }
}

fn status(devices: &[Ready]) -> String {
    let names: Vec<String> = devices
        .iter()
        .map(|device| device.record.id().disk_name())
        .collect();
    format!("STATUS=serving {}\n", names.join(", "))
}

/// An address that starts with `@` is in the abstract namespace. The socket never blocks the main thread.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match address.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        path => socket.connect(OsStr::from_bytes(path))?,
    }
    Ok(socket)
}

/// How long the manager waits for a sign of life of this process; `None`: it does not.
fn watchdog(micros: Option<&str>, process: Option<&str>) -> Option<Duration> {
    let is_ours = process.is_none_or(|process| process == std::process::id().to_string());
    let micros = micros?.parse().ok().filter(|&micros| is_ours && micros > 0)?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_a_path_and_a_name_even_when_the_path_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("@ublk-bpf-test-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        for (listener, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str()),
            (UnixDatagram::bind_addr(&by_name).unwrap(), OsStr::new(&name)),
        ] {
            let manager = Manager {
                socket: Some(connect(address).unwrap()),
                watchdog: Some(Duration::from_secs(1)),
            };
            std::fs::remove_file(&path).ok();
            manager.alive();
            manager.stopping();
            let mut message = [0; 64];
            for wanted in ["WATCHDOG=1\n", "STOPPING=1\n"] {
                let length = listener.recv(&mut message).unwrap();
                assert_eq!(&message[..length], wanted.as_bytes());
            }
            drop(listener);
            // It has gone, and nothing happens.
            manager.alive();
        }
        assert!(connect(path.as_os_str()).is_err());
    }

    #[test]
    fn the_watchdog_is_for_one_process() {
        let me = std::process::id().to_string();
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(Some("1000000"), Some(&me)), second);
        assert_eq!(watchdog(Some("1000000"), None), second);
        assert_eq!(watchdog(Some("1000000"), Some("1")), None);
        for none in [None, Some("0"), Some(""), Some("x")] {
            assert_eq!(watchdog(none, None), None);
        }
    }
}
