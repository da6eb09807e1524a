//! The door to `/run/ublk-bpf`: every record, lock, log and socket is opened, made and removed here.
//!
//! Later commands of root's act on what is in there: which policy to load, which process to end. So the directory and each
//! file must be root's alone to write. What is not is refused, and nothing is made with another mode than is said here,
//! whatever the umask is.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::error::RecordError;
use crate::control::DeviceId;
use crate::sys::socket;
use crate::sys::trust::{self, OpenError};

/// Where records, locks and logs are.
pub(crate) const DIRECTORY: &str = "/run/ublk-bpf";

/// Everyone may look, so that `list` works without privileges.
const DIRECTORY_MODE: u32 = 0o755;
/// A record is for everyone to read.
const RECORD_MODE: u32 = 0o644;
/// Locks, logs and sockets are the server's.
const PRIVATE_MODE: u32 = 0o600;

/// No record is larger; a file that is was not written by a server.
const MAX_BYTES: u64 = 64 << 10;

/// The directory, found to be root's alone to write.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Opens it; `None` if it is not there.
    pub(crate) fn open() -> Result<Option<Self>, RecordError> {
        Self::at(Path::new(DIRECTORY))
    }

    /// Opens it, and makes it if it is not there.
    pub(crate) fn make() -> Result<Self, RecordError> {
        Self::make_at(Path::new(DIRECTORY))
    }

    fn at(path: &Path) -> Result<Option<Self>, RecordError> {
        let is_there =
            trust::check_directory("run directory", path).map_err(|error| failed("open", path, error))?;
        Ok(is_there.then(|| Self {
            path: path.to_owned(),
        }))
    }

    fn make_at(path: &Path) -> Result<Self, RecordError> {
        let system = |source| failed("make", path, OpenError::System(source));
        match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(system(error)),
            _ => {}
        }
        Self::at(path)?.ok_or_else(|| system(io::ErrorKind::NotFound.into()))
    }

    /// Where a file of this name is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names of everything in it. What is not UTF-8 is none of the server's.
    pub(crate) fn names(&self) -> Result<Vec<String>, RecordError> {
        let system = |source| failed("read", &self.path, OpenError::System(source));
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(system)? {
            names.extend(entry.map_err(system)?.file_name().into_string());
        }
        Ok(names)
    }

    /// The content of a record; `None` if there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, RecordError> {
        let path = self.path(name);
        let Some(file) = self.open_file("record", name)? else {
            return Ok(None);
        };
        let system = |source| failed("read", &path, OpenError::System(source));
        let mut content = Vec::new();
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut content)
            .map_err(system)?;
        if content.len() as u64 > MAX_BYTES {
            return Err(system(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is larger than 64 KiB, the limit for a record",
            )));
        }
        Ok(Some(content))
    }

    /// Opens a file to read it; `None` if there is none.
    pub(crate) fn open_file(&self, what: &'static str, name: &str) -> Result<Option<File>, RecordError> {
        let path = self.path(name);
        match trust::open_file(what, &path, File::options().read(true)) {
            Err(OpenError::System(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).map_err(|error| failed("open", &path, error)),
        }
    }

    /// Writes a record, replacing the one before as a whole.
    pub(crate) fn write_record(&self, name: &str, content: &[u8]) -> Result<(), RecordError> {
        let fresh = self.new_name(name);
        let mut file = self.create(&fresh)?;
        let path = self.path(name);
        file.write_all(content)
            .and_then(|()| file.set_permissions(Permissions::from_mode(RECORD_MODE)))
            .and_then(|()| fs::rename(self.path(&fresh), &path))
            .map_err(|source| failed("write the record", &path, OpenError::System(source)))
    }

    /// The name of a record while it is written.
    pub(crate) fn new_name(&self, name: &str) -> String {
        format!("{name}.new")
    }

    /// Makes a file that only root can read. One that is there already is replaced.
    pub(crate) fn create(&self, name: &str) -> Result<File, RecordError> {
        let path = self.path(name);
        self.remove(name)?;
        let mut options = File::options();
        options.write(true).create_new(true).mode(PRIVATE_MODE);
        trust::open_file("file", &path, &mut options).map_err(|error| failed("make", &path, error))
    }

    /// Opens a lock's file, and makes it if it is not there.
    pub(crate) fn lock_file(&self, name: &str) -> Result<File, RecordError> {
        let path = self.path(name);
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE_MODE);
        trust::open_file("lock", &path, &mut options).map_err(|error| failed("open", &path, error))
    }

    /// Makes a socket that only root can connect to, and listens. One that a dead process left is replaced.
    pub(crate) fn listen(&self, name: &str) -> Result<UnixListener, RecordError> {
        let path = self.path(name);
        self.remove(name)?;
        socket::listen(&path, PRIVATE_MODE)
            .map_err(|source| failed("make the socket", &path, OpenError::System(source)))
    }

    /// Gives a file a second name, in the place of what has that name.
    pub(crate) fn link(&self, name: &str, second: &str) -> Result<(), RecordError> {
        self.remove(second)?;
        let path = self.path(second);
        fs::hard_link(self.path(name), &path)
            .map_err(|source| failed("name the log", &path, OpenError::System(source)))
    }

    /// Removes a file; none is as good as a removed one.
    pub(crate) fn remove(&self, name: &str) -> Result<(), RecordError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path, OpenError::System(error)))
            }
            _ => Ok(()),
        }
    }
}

/// The name of a file of device `id`.
pub(crate) fn file_name(id: DeviceId, kind: &str) -> String {
    format!("{}.{kind}", id.disk_name())
}

/// The name of the socket of a server's process.
pub(crate) fn socket_name(process: u32) -> String {
    format!("{SOCKET}{process}.sock")
}

/// The process whose socket has this name.
pub(crate) fn process_of_socket(name: &str) -> Option<u32> {
    name.strip_prefix(SOCKET)?.strip_suffix(".sock")?.parse().ok()
}

const SOCKET: &str = "server-";

fn failed(what: &'static str, path: &Path, error: OpenError) -> RecordError {
    match error {
        OpenError::Distrusted(why) => why.into(),
        OpenError::System(source) => RecordError::System {
            what,
            path: path.to_owned(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::sys::process::file_mode_mask;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn what_is_made_has_its_mode_whatever_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        // Other tests make files in the meantime: none of them minds.
        let before = file_mode_mask(0);
        let made = RunDir::make_at(&folder.path().join("run"));
        let result = made.and_then(|run| {
            run.create("log")?;
            run.lock_file("lock")?;
            run.listen("socket")?;
            run.write_record("record.json", b"{}")?;
            Ok(run)
        });
        file_mode_mask(before);
        let run = result.unwrap();
        assert_eq!(mode(&run.path), 0o755);
        assert_eq!(mode(&run.path("log")), 0o600);
        assert_eq!(mode(&run.path("lock")), 0o600);
        assert_eq!(mode(&run.path("socket")), 0o600);
        assert_eq!(mode(&run.path("record.json")), 0o644);
        assert_eq!(run.read("record.json").unwrap().unwrap(), b"{}");
        assert_eq!(run.names().unwrap().len(), 4);
    }

    #[test]
    fn nothing_is_read_or_written_by_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::make_at(&folder.path().join("run")).unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "content").unwrap();
        for name in ["log", "lock", "record.json", "record.json.new"] {
            symlink(&victim, run.path(name)).unwrap();
        }
        for said in [
            run.read("record.json").unwrap_err(),
            run.lock_file("lock").unwrap_err(),
        ] {
            assert!(said.to_string().contains("is a symbolic link"), "{said}");
        }
        run.create("log").unwrap().write_all(b"log").unwrap();
        run.write_record("record.json", b"{}").unwrap();
        assert_eq!(run.read("record.json").unwrap().unwrap(), b"{}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "content");
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        assert!(RunDir::at(&path).unwrap().is_none());
        RunDir::make_at(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        for refused in [RunDir::at(&path).map(drop), RunDir::make_at(&path).map(drop)] {
            let said = refused.unwrap_err().to_string();
            assert!(said.starts_with("the run directory "), "{said}");
            assert!(
                said.contains("mode 0777") && said.contains("chmod go-w"),
                "{said}"
            );
        }
    }
}
