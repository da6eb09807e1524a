//! The qemu process and its channels: four sockets, each read by a thread that passes on what comes.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::config::Config;
use host::setup::kernel::Kernel;

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The kernel's messages (the serial port).
    Console,
    /// The command's standard output (hvc0).
    Out,
    /// The command's standard error (hvc1).
    Err,
    /// What the guest's process 1 and its command say to us, and we to them (hvc2).
    Control,
}

const SOURCES: [(Source, &str); 4] = [
    (Source::Console, "console"),
    (Source::Out, "out"),
    (Source::Err, "err"),
    (Source::Control, "control"),
];

/// Something that came from the guest.
pub(crate) enum Received {
    Bytes(Source, Vec<u8>),
    /// Nothing within the time.
    Nothing,
    /// All channels are closed: qemu has ended.
    Closed,
}

/// A running guest; dropped, it is killed.
pub(crate) struct Machine {
    qemu: Child,
    incoming: Receiver<(Source, Vec<u8>)>,
    /// Our end of the control channel, once qemu has connected.
    control: Arc<OnceLock<UnixStream>>,
}

impl Machine {
    /// Starts qemu; the files in `folder` must stay until the guest runs.
    pub(crate) fn start(config: &Config, kernel: &Kernel, folder: &Path) -> Result<Self> {
        let mut command = Command::new("qemu-system-x86_64");
        arguments(&mut command, config, kernel, folder);
        let (sender, incoming) = channel();
        let control = Arc::new(OnceLock::new());
        for (source, name) in SOURCES {
            let path = folder.join(name);
            let listener =
                UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
            let (sender, control) = (sender.clone(), Arc::clone(&control));
            std::thread::spawn(move || pass_on(&listener, source, &sender, &control));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: the closure runs between fork and exec, and makes one system call, which is async-signal-safe.
        unsafe { command.pre_exec(die_with_parent) };
        let qemu = command
            .spawn()
            .context("cannot start qemu-system-x86_64: run `cargo xtask setup`")?;
        Ok(Self {
            qemu,
            incoming,
            control,
        })
    }

    /// Sends a line to who reads the control channel in the guest.
    pub(crate) fn tell(&self, line: &str) -> Result<()> {
        let mut control = self.control.get().context("the control channel is not open")?;
        control
            .write_all(format!("{line}\n").as_bytes())
            .context("cannot write to the control channel")
    }

    /// Waits for something from the guest.
    pub(crate) fn receive(&mut self, limit: Duration) -> Result<Received> {
        match self.incoming.recv_timeout(limit) {
            Ok((source, bytes)) => Ok(Received::Bytes(source, bytes)),
            // Before qemu has connected, its end closes no channel.
            Err(RecvTimeoutError::Timeout) if self.qemu.try_wait()?.is_some() => Ok(Received::Closed),
            Err(RecvTimeoutError::Timeout) => Ok(Received::Nothing),
            Err(RecvTimeoutError::Disconnected) => Ok(Received::Closed),
        }
    }

    /// Waits for qemu's end and gives back how it ended and what it said about itself.
    pub(crate) fn ended(&mut self) -> Result<(ExitStatus, String)> {
        let status = self.qemu.wait()?;
        let mut said = String::new();
        if let Some(mut stderr) = self.qemu.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        Ok((status, said.trim().to_owned()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and was waited for.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn pass_on(
    listener: &UnixListener,
    source: Source,
    sender: &Sender<(Source, Vec<u8>)>,
    control: &OnceLock<UnixStream>,
) {
    let Ok((mut stream, _)) = listener.accept() else {
        return;
    };
    if source == Source::Control
        && let Ok(ours) = stream.try_clone()
    {
        control.get_or_init(|| ours);
    }
    let mut buffer = [0; 16 * 1024];
    while let Some(bytes) = read(&mut stream, &mut buffer) {
        if sender.send((source, bytes.to_vec())).is_err() {
            return;
        }
    }
}

fn read<'a>(stream: &mut UnixStream, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    match stream.read(buffer) {
        Ok(0) | Err(_) => None,
        Ok(n) => Some(&buffer[..n]),
    }
}

/// A guest must not outlive the program that watches it.
fn die_with_parent() -> std::io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn arguments(command: &mut Command, config: &Config, kernel: &Kernel, folder: &Path) {
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-m", &config.memory]);
    // The guest's CPUs take turns in one thread. With a thread for each, QEMU 7.2 now and then runs an `int3` that the
    // kernel has put into its text for a moment, after the text is whole again: the kernel dies with "Oops: int3".
    command.args(["-accel", "tcg,thread=single"]);
    if config.icount {
        // One guest nanosecond for each instruction, of whichever CPU. Without the string instructions that copy any
        // number of bytes in one, so that a copy has its price.
        command.args(["-icount", "shift=0,sleep=off", "-cpu", "max,-erms,-fsrm"]);
    } else {
        command.args(["-cpu", "max"]);
    }
    command.args(["-smp", &config.cpus.to_string()]);
    command
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(folder.join("initramfs"));
    command.args(["-append", &config.kernel_arguments()]);
    for (_, name) in SOURCES {
        let path = folder.join(name);
        command.args(["-chardev", &format!("socket,id={name},path={}", path.display())]);
    }
    command.args(["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
    for name in ["out", "err", "control"] {
        command.args(["-device", &format!("virtconsole,chardev={name}")]);
    }
    for n in 0..config.disks.len() {
        let file = folder.join(format!("disk{n}"));
        let drive = format!(
            "if=none,id=disk{n},format=raw,cache=unsafe,file={}",
            file.display()
        );
        command.args([
            "-drive",
            &drive,
            "-device",
            &format!("virtio-blk-pci,drive=disk{n},serial=disk{n}"),
        ]);
    }
}
