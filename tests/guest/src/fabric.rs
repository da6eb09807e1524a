//! NVMe over TCP on the loopback interface: the kernel's target exports a disk, and its host connects to it.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::leftover::SOON;
use crate::{read, run, try_run, wait_until, write};

const TARGET: &str = "/sys/kernel/config/nvmet";
/// How long the host tries to connect again, in seconds, and how often.
const PATIENCE: u32 = 600;
const RETRY: u32 = 1;

/// A disk that is exported, and connected to; both ends when dropped.
#[derive(Debug)]
pub struct Fabric {
    name: String,
    port: u16,
}

impl Fabric {
    /// Exports `disk` by the name and TCP port, and connects to it.
    pub fn new(name: &str, port: u16, disk: &str) -> Self {
        for module in ["nvmet_tcp", "nvme_tcp"] {
            run("modprobe", &[module]);
        }
        if !Path::new(TARGET).exists() {
            run("mount", &["-t", "configfs", "none", "/sys/kernel/config"]);
        }
        let fabric = Self {
            name: name.to_owned(),
            port,
        };
        let subsystem = fabric.subsystem();
        make(&subsystem);
        write(subsystem.join("attr_allow_any_host"), "1");
        let namespace = subsystem.join("namespaces/1");
        make(&namespace);
        write(namespace.join("device_path"), disk);
        write(namespace.join("enable"), "1");
        fabric.plug();
        fabric.connect();
        fabric
    }

    /// The disk of the host.
    pub fn path(&self) -> PathBuf {
        let mut found = None;
        wait_until("the host has the disk", SOON, || {
            found = self.disk();
            found.is_some()
        });
        found.expect("just found")
    }

    /// Cuts the connections, and lets none be made.
    pub fn unplug(&self) {
        let port = self.port_folder();
        let _ = fs::remove_file(port.join("subsystems").join(&self.name));
        let _ = fs::remove_dir(port);
    }

    /// Takes connections.
    pub fn plug(&self) {
        let port = self.port_folder();
        make(&port);
        for (attribute, value) in [
            ("addr_trtype", "tcp".to_owned()),
            ("addr_adrfam", "ipv4".to_owned()),
            ("addr_traddr", "127.0.0.1".to_owned()),
            ("addr_trsvcid", self.port.to_string()),
        ] {
            write(port.join(attribute), &value);
        }
        let link = port.join("subsystems").join(&self.name);
        symlink(self.subsystem(), &link).unwrap_or_else(|e| panic!("cannot make {}: {e}", link.display()));
    }

    /// The state of the host's controller: `live`, `connecting`.
    pub fn state(&self) -> String {
        let controller = self.controller().expect("it is connected");
        read(controller.join("state")).trim().to_owned()
    }

    fn connect(&self) {
        let options = format!(
            "transport=tcp,traddr=127.0.0.1,trsvcid={},nqn={},hostnqn=nqn.2014-08.org.nvmexpress:uuid:\
             0a0b0c0d-0000-4000-8000-00000000{:04x},hostid=0a0b0c0d-0000-4000-8000-00000000{:04x},\
             ctrl_loss_tmo={PATIENCE},reconnect_delay={RETRY},keep_alive_tmo=5,nr_io_queues=1",
            self.port, self.name, self.port, self.port
        );
        let mut door = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/nvme-fabrics")
            .expect("the host's door");
        door.write_all(options.as_bytes()).expect("it connects");
        let mut said = String::new();
        door.read_to_string(&mut said).expect("it says which instance");
    }

    fn subsystem(&self) -> PathBuf {
        Path::new(TARGET).join("subsystems").join(&self.name)
    }

    fn port_folder(&self) -> PathBuf {
        Path::new(TARGET).join("ports").join(self.port.to_string())
    }

    fn controller(&self) -> Option<PathBuf> {
        let all = fs::read_dir("/sys/class/nvme").ok()?;
        let mut all = all.filter_map(|entry| Some(entry.ok()?.path()));
        all.find(|path| read(path.join("subsysnqn")).trim() == self.name)
    }

    /// The disk of the controller, which has a path to it or is it.
    fn disk(&self) -> Option<PathBuf> {
        let controller = self.controller()?;
        let instance = controller.file_name()?.to_str()?.strip_prefix("nvme")?.to_owned();
        let disk = Path::new("/dev").join(format!("nvme{instance}n1"));
        disk.exists().then_some(disk)
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        if let Some(controller) = self.controller() {
            let _ = fs::write(controller.join("delete_controller"), "1");
        }
        self.unplug();
        let subsystem = self.subsystem();
        let _ = fs::write(subsystem.join("namespaces/1/enable"), "0");
        let _ = fs::remove_dir(subsystem.join("namespaces/1"));
        let _ = fs::remove_dir(subsystem);
        for module in ["nvme_tcp", "nvmet_tcp"] {
            let _ = try_run("rmmod", &[module]);
        }
        // What the host's work queue still has of the controller.
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn make(folder: &Path) {
    fs::create_dir(folder).unwrap_or_else(|e| panic!("cannot make {}: {e}", folder.display()));
}
