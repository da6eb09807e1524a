//! Checks that only root can write a file or directory: later commands act on what the server wrote there, so no other
//! user may change it.
//!
//! The metadata comes from an opened descriptor, so that the checked file is the used one. Symbolic links are not
//! followed. A path below a directory that passed is safe to use by name: only root can change the names in it.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;

/// Checks that the process at the other end of a connected Unix socket was root's when it connected, or listened.
pub(crate) fn check_peer(what: &'static str, path: &Path, socket: BorrowedFd<'_>) -> Result<(), Distrusted> {
    let user = socket_peercred(socket).map_or(u32::MAX, |peer| peer.uid.as_raw());
    if doubt(user, 0).is_none() {
        return Ok(());
    }
    Err(Distrusted {
        what,
        path: path.to_owned(),
        why: Why::Peer(user),
    })
}

/// The bits of a mode that let group or others write.
const WRITE_BY_OTHERS: u32 = 0o022;
/// `S_ISVTX`: in such a directory only the owner of an entry can rename or remove it.
const STICKY: u32 = 0o1000;

/// A file or directory that a user other than root can change, or that is of the wrong kind.
#[derive(Debug, thiserror::Error)]
#[error("the {what} {} {why}", path.display())]
pub struct Distrusted {
    /// What it is used for: `record`, `run directory`.
    what: &'static str,
    path: PathBuf,
    why: Why,
}

/// What is wrong. `Display` adds what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Owner(u32),
    Mode(u32),
    Link,
    Kind(&'static str),
    Peer(u32),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(uid) => write!(
                f,
                "belongs to user {uid}, not to root: check its contents, then remove it or give it to root (chown root)"
            ),
            Self::Mode(mode) => write!(
                f,
                "can be written by users other than root (mode {mode:04o}): check its contents, then remove it or protect it (chmod go-w)"
            ),
            Self::Link => f.write_str("is a symbolic link, which ublk-bpf does not follow: remove it"),
            Self::Peer(user) => write!(f, "is a process of user {user}, not of root: end that process"),
            Self::Kind(wanted) => write!(f, "is not a {wanted}: remove it"),
        }
    }
}

/// Why a trusted file could not be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// It failed the check.
    Distrusted(Distrusted),
    /// A system call failed.
    System(io::Error),
}

/// Opens a regular file that only root can write, with these options. Neither a link nor a FIFO blocks the caller.
pub(crate) fn open_file(
    what: &'static str,
    path: &Path,
    options: &mut std::fs::OpenOptions,
) -> Result<File, OpenError> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = options.custom_flags(flags).open(path).map_err(|error| {
        // `ENXIO`: a FIFO without a reader. `EISDIR`: a directory cannot be opened for writing.
        match error.raw_os_error() {
            Some(libc::ELOOP) => distrusted(what, path, Why::Link),
            Some(libc::ENXIO | libc::EISDIR) => distrusted(what, path, Why::Kind("regular file")),
            _ => OpenError::System(error),
        }
    })?;
    let facts = file.metadata().map_err(OpenError::System)?;
    if !facts.is_file() {
        return Err(distrusted(what, path, Why::Kind("regular file")));
    }
    match doubt(facts.uid(), facts.mode()) {
        Some(why) => Err(distrusted(what, path, why)),
        None => Ok(file),
    }
}

/// Checks that only root can write a directory. `Ok(false)`: it does not exist.
pub(crate) fn check_directory(what: &'static str, path: &Path) -> Result<bool, OpenError> {
    let Some(facts) = facts_of(path)? else {
        return Ok(false);
    };
    let why = match facts {
        _ if facts.is_symlink() => Some(Why::Link),
        _ if !facts.is_dir() => Some(Why::Kind("directory")),
        _ => doubt(facts.uid(), facts.mode()),
    };
    why.map_or(Ok(true), |why| Err(distrusted(what, path, why)))
}

/// Checks that only root can replace root's entries in a directory: it belongs to root, and is sticky if other users
/// may write to it. `Ok(false)`: it does not exist.
pub(crate) fn check_parent(what: &'static str, path: &Path) -> Result<bool, OpenError> {
    let Some(facts) = facts_of(path)? else {
        return Ok(false);
    };
    match doubt(facts.uid(), facts.mode()) {
        Some(Why::Mode(mode)) if mode & STICKY != 0 => Ok(true),
        Some(why) => Err(distrusted(what, path, why)),
        None => Ok(true),
    }
}

/// The metadata of the file at a path; of a symbolic link, its own.
fn facts_of(path: &Path) -> Result<Option<Metadata>, OpenError> {
    let mut options = File::options();
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    match options.read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened
            .and_then(|file| file.metadata())
            .map(Some)
            .map_err(OpenError::System),
    }
}

/// What is wrong with the owner or the mode. A server that runs with capabilities, not as root, trusts itself too.
fn doubt(owner: u32, mode: u32) -> Option<Why> {
    let mode = mode & 0o7777;
    if owner != 0 && owner != super::process::effective_user() {
        Some(Why::Owner(owner))
    } else if mode & WRITE_BY_OTHERS != 0 {
        Some(Why::Mode(mode))
    } else {
        None
    }
}

fn distrusted(what: &'static str, path: &Path, why: Why) -> OpenError {
    OpenError::Distrusted(Distrusted {
        what,
        path: path.to_owned(),
        why,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn refusal<T>(result: Result<T, OpenError>) -> String {
        match result {
            Err(OpenError::Distrusted(why)) => why.to_string(),
            Err(OpenError::System(error)) => panic!("{error}"),
            Ok(_) => panic!("it is trusted"),
        }
    }

    fn open(path: &Path) -> Result<File, OpenError> {
        open_file("record", path, File::options().read(true))
    }

    #[test]
    fn what_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "text").unwrap();
        for (mode, trusted) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(open(&path).is_ok(), trusted, "{mode:o}");
            fs::set_permissions(folder.path(), Permissions::from_mode(mode | 0o111)).unwrap();
            assert_eq!(
                check_directory("run directory", folder.path()).is_ok(),
                trusted,
                "{mode:o}"
            );
        }
        let said = refusal(open(&path));
        let wanted = format!(
            "the record {} can be written by users other than root (mode 0646)",
            path.display()
        );
        assert!(said.starts_with(&wanted), "{said}");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        assert!(matches!(check_parent("mount", folder.path()), Ok(true)));
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(refusal(check_parent("mount", folder.path())).contains("0777"));
    }

    #[test]
    fn the_owner_is_root_or_who_asks() {
        let me = super::super::process::effective_user();
        assert_eq!(doubt(0, 0o100_600), None);
        assert_eq!(doubt(me, 0o100_644), None);
        assert_eq!(doubt(me ^ 65534, 0o100_600), Some(Why::Owner(me ^ 65534)));
        assert_eq!(doubt(0, 0o041_777), Some(Why::Mode(0o1777)));
    }

    #[test]
    fn links_and_other_kinds_are_refused_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "text").unwrap();
        let link = folder.path().join("link");
        symlink(&file, &link).unwrap();
        assert!(refusal(open(&link)).contains("symbolic link"));
        assert!(refusal(open(folder.path())).contains("not a regular file"));
        assert!(refusal(check_directory("run directory", &file)).contains("not a directory"));
        let to_folder = folder.path().join("to-folder");
        symlink(folder.path(), &to_folder).unwrap();
        assert!(refusal(check_directory("run directory", &to_folder)).contains("symbolic link"));
        let fifo = std::ffi::CString::new(folder.path().join("fifo").into_os_string().into_encoded_bytes());
        let fifo = fifo.unwrap();
        // SAFETY: the path is a C string that lives over the call.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        assert!(refusal(open(&folder.path().join("fifo"))).contains("not a regular file"));
        assert!(matches!(
            check_directory("run directory", &folder.path().join("none")),
            Ok(false)
        ));
    }
}
