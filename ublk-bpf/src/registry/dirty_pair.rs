//! Which backings lack what a cache holds dirty, outside of both devices: `/var/lib/ublk-bpf`, a file for each cache.
//!
//! The backing carries no label, and a cache that is gone cannot say that it was dirty. So a pair is remembered here before
//! its first dirty write, and forgotten when nothing is dirty; a start of such a backing without its cache finds it. The
//! directory and its files are root's alone, and every change is durable when it returns.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zerocopy::{FromBytes, IntoBytes};

use crate::backend::fingerprint::{Difference, Identity, SavedIdentity, Uuid};
use crate::sys::trust::{self, Distrusted, OpenError};

/// Where the records are.
pub(crate) const DIRECTORY: &str = "/var/lib/ublk-bpf";
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// No record is larger.
const MAX_BYTES: u64 = 64 << 10;

/// A backing, and the cache that holds what it has yet to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyPair {
    /// The backing, when the cache became dirty.
    pub backing: Identity,
    /// Where it was.
    pub backing_path: PathBuf,
    /// The cache's id.
    pub cache_id: [u8; 16],
    /// Where the cache was.
    pub cache_path: PathBuf,
}

/// Why the records could not be used. One line: what was tried, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A record or the directory can be changed by users other than root.
    #[error(transparent)]
    Distrusted(#[from] Distrusted),
    /// A record that was not written by this program.
    #[error(
        "the record of a dirty cache {} cannot be read ({reason}): if no cache holds dirty blocks, remove it",
        path.display()
    )]
    Corrupt {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused.
    #[error("cannot {what} {}, where dirty caches are recorded: {source}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Records that this cache holds what this backing lacks, before it does; replaces what was recorded of the cache.
///
/// # Errors
/// If it is not durable: then nothing may become dirty.
pub fn remember(pair: &DirtyPair) -> Result<(), PairError> {
    Pairs::new(DIRECTORY).remember(pair)
}

/// Records that this cache holds nothing that its backing lacks, if the opposite is recorded.
///
/// # Errors
/// If the record cannot be removed.
pub fn forget(cache_id: [u8; 16]) -> Result<(), PairError> {
    Pairs::new(DIRECTORY).forget(cache_id)
}

/// Records that what this cache holds dirty is lost on purpose: its backing goes on without it, and it must never be written
/// back.
///
/// # Errors
/// If the record cannot be changed.
pub fn abandon(cache_id: [u8; 16]) -> Result<(), PairError> {
    Pairs::new(DIRECTORY).abandon(cache_id)
}

/// Whether what this cache holds dirty was abandoned.
///
/// # Errors
/// If the directory cannot be used.
pub fn is_abandoned(cache_id: [u8; 16]) -> Result<bool, PairError> {
    Pairs::new(DIRECTORY).is_abandoned(cache_id)
}

/// The pair of this backing, at this path, if a cache holds what it lacks. The path counts only where the identity does not
/// tell it from others.
///
/// # Errors
/// If a record cannot be read: it may be this backing's.
pub fn dirty_cache_of(backing: &Identity, path: &Path) -> Result<Option<DirtyPair>, PairError> {
    Pairs::new(DIRECTORY).of(backing, path)
}

/// All pairs, in no order.
///
/// # Errors
/// If a record cannot be read.
pub fn all() -> Result<Vec<DirtyPair>, PairError> {
    Pairs::new(DIRECTORY).all()
}

/// A record's text. The identity is that of the cache's superblock, in hexadecimal digits.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    #[expect(dead_code, reason = "for those who read the file")]
    about: String,
    backing: PathBuf,
    cache: PathBuf,
    identity: String,
}

/// The door to the directory.
struct Pairs {
    path: PathBuf,
}

impl Pairs {
    fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn remember(&self, pair: &DirtyPair) -> Result<(), PairError> {
        self.make()?;
        let path = self.file(pair.cache_id);
        let fresh = path.with_extension("new");
        remove(&fresh)?;
        let mut options = File::options();
        options.write(true).create_new(true).mode(FILE_MODE);
        let file = trust::open_file("record of a dirty cache", &fresh, &mut options);
        let mut file = file.map_err(|error| failed("make", &fresh, error))?;
        let system = |source| failed("write", &path, OpenError::System(source));
        file.write_all(text(pair).as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(system)?;
        sync(&self.path)
    }

    fn forget(&self, cache_id: [u8; 16]) -> Result<(), PairError> {
        if !self.is_there()? {
            return Ok(());
        }
        remove(&self.file(cache_id))?;
        remove(&self.abandoned(cache_id))?;
        sync(&self.path)
    }

    fn abandon(&self, cache_id: [u8; 16]) -> Result<(), PairError> {
        self.make()?;
        let path = self.file(cache_id);
        fs::rename(&path, self.abandoned(cache_id))
            .map_err(|source| failed("rename", &path, OpenError::System(source)))?;
        sync(&self.path)
    }

    fn is_abandoned(&self, cache_id: [u8; 16]) -> Result<bool, PairError> {
        Ok(self.is_there()? && self.abandoned(cache_id).exists())
    }

    fn of(&self, backing: &Identity, path: &Path) -> Result<Option<DirtyPair>, PairError> {
        let is_it = |pair: &DirtyPair| {
            let is_same = match pair.backing.same_backing(backing) {
                Ok(()) | Err(Difference::Resized { .. }) => true,
                Err(_) => false,
            };
            is_same && (backing.is_named() || pair.backing_path == path)
        };
        Ok(self.all()?.into_iter().find(is_it))
    }

    fn all(&self) -> Result<Vec<DirtyPair>, PairError> {
        if !self.is_there()? {
            return Ok(Vec::new());
        }
        let system = |source| failed("read", &self.path, OpenError::System(source));
        let mut pairs = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(system)? {
            let path = entry.map_err(system)?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                pairs.extend(read(&path)?);
            }
        }
        Ok(pairs)
    }

    fn file(&self, cache_id: [u8; 16]) -> PathBuf {
        self.path.join(format!("{}.toml", Uuid(cache_id)))
    }

    fn abandoned(&self, cache_id: [u8; 16]) -> PathBuf {
        self.file(cache_id).with_extension("abandoned")
    }

    fn is_there(&self) -> Result<bool, PairError> {
        trust::check_directory("state directory", &self.path)
            .map_err(|error| failed("open", &self.path, error))
    }

    fn make(&self) -> Result<(), PairError> {
        let system = |source| failed("make", &self.path, OpenError::System(source));
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(system)?;
        match DirBuilder::new().mode(DIRECTORY_MODE).create(&self.path) {
            Ok(()) => sync(parent)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(system(error)),
        }
        match self.is_there()? {
            true => Ok(()),
            false => Err(system(io::ErrorKind::NotFound.into())),
        }
    }
}

/// The pair of a record; `None` if it was removed meanwhile.
fn read(path: &Path) -> Result<Option<DirtyPair>, PairError> {
    let file = match trust::open_file("record of a dirty cache", path, File::options().read(true)) {
        Err(OpenError::System(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| failed("open", path, error))?,
    };
    let mut text = String::new();
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|source| failed("read", path, OpenError::System(source)))?;
    parse(path, &text).map(Some).map_err(|reason| PairError::Corrupt {
        path: path.to_owned(),
        reason,
    })
}

fn parse(path: &Path, text: &str) -> Result<DirtyPair, String> {
    let record: Record = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let id = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    let cache_id = bytes(&id.replace('-', "")).and_then(|bytes| bytes.try_into().ok());
    let saved = bytes(&record.identity).unwrap_or_default();
    let saved = SavedIdentity::read_from_bytes(&saved).ok();
    Ok(DirtyPair {
        backing: saved
            .and_then(|saved| saved.parse())
            .ok_or("its identity is not that of a backing")?,
        backing_path: record.backing,
        cache_id: cache_id.ok_or("its name is not the id of a cache")?,
        cache_path: record.cache,
    })
}

fn text(pair: &DirtyPair) -> String {
    let saved = SavedIdentity::new(&pair.backing);
    let identity: String = saved
        .as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "# This cache holds data that its backing has yet to get.\nabout = {}\nbacking = {}\ncache = {}\nidentity = \"{identity}\"\n",
        quoted(&pair.backing.to_string()),
        quoted(&pair.backing_path.to_string_lossy()),
        quoted(&pair.cache_path.to_string_lossy()),
    )
}

/// A TOML string: what JSON escapes is escaped there likewise, but for one character.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007F")
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes().chunks(2);
    digits
        .map(|two| u8::from_str_radix(str::from_utf8(two).ok()?, 16).ok())
        .collect()
}

fn remove(path: &Path) -> Result<(), PairError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", path, OpenError::System(error)))
        }
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
fn sync(path: &Path) -> Result<(), PairError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| failed("write", path, OpenError::System(source)))
}

fn failed(what: &'static str, path: &Path, error: OpenError) -> PairError {
    match error {
        OpenError::Distrusted(distrusted) => distrusted.into(),
        OpenError::System(source) => PairError::System {
            what,
            path: path.to_owned(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::backend::{Backend, Spec};

    fn pair(folder: &Path, name: &str, id: u8) -> DirtyPair {
        let path = folder.join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        DirtyPair {
            backing: identity(&path),
            backing_path: path,
            cache_id: [id; 16],
            cache_path: PathBuf::from("/dev/\"fast\"\u{7f}\n"),
        }
    }

    fn identity(path: &Path) -> Identity {
        Identity::of(&Backend::open(&Spec::Path(path.to_owned()), false).unwrap()).unwrap()
    }

    #[test]
    fn a_pair_is_found_by_its_backing_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let pairs = Pairs::new(folder.path().join("none/state"));
        let (one, other) = (pair(folder.path(), "one", 1), pair(folder.path(), "other", 0xfe));
        let found = |pair: &DirtyPair| pairs.of(&pair.backing, &pair.backing_path).unwrap();
        assert_eq!(found(&one), None);
        pairs.forget(one.cache_id).unwrap();
        pairs.remember(&one).unwrap();
        pairs.remember(&one).unwrap();
        assert_eq!((found(&one), found(&other)), (Some(one.clone()), None));
        pairs.remember(&other).unwrap();
        pairs.remember(&one).unwrap();
        pairs.abandon(one.cache_id).unwrap();
        assert!(pairs.is_abandoned(one.cache_id).unwrap() && !pairs.is_abandoned(other.cache_id).unwrap());
        assert_eq!(found(&one), None, "its backing goes on without it");
        pairs.forget(one.cache_id).unwrap();
        assert!(!pairs.is_abandoned(one.cache_id).unwrap());
        pairs.remember(&one).unwrap();
        assert_eq!(pairs.all().unwrap().len(), 2);
        pairs.forget(one.cache_id).unwrap();
        assert_eq!((found(&one), found(&other)), (None, Some(other.clone())));
        // It has grown since, and was written to.
        File::options()
            .write(true)
            .open(&other.backing_path)
            .unwrap()
            .set_len(2 << 20)
            .unwrap();
        let now = identity(&other.backing_path);
        assert_eq!(pairs.of(&now, &other.backing_path).unwrap(), Some(other));
    }

    #[test]
    fn records_are_roots_alone() {
        let folder = tempfile::tempdir().unwrap();
        let pairs = Pairs::new(folder.path().join("state"));
        let one = pair(folder.path(), "one", 1);
        pairs.remember(&one).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let record = pairs.file(one.cache_id);
        assert_eq!((mode(&pairs.path), mode(&record)), (0o700, 0o600));
        fs::set_permissions(&record, Permissions::from_mode(0o666)).unwrap();
        let said = pairs.all().unwrap_err().to_string();
        assert!(said.contains("mode 0666"), "{said}");
        fs::set_permissions(&pairs.path, Permissions::from_mode(0o777)).unwrap();
        for said in [pairs.all().map(drop), pairs.remember(&one), pairs.forget([9; 16])] {
            assert!(said.unwrap_err().to_string().contains("mode 0777"));
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let pairs = Pairs::new(folder.path().join("state"));
        let one = pair(folder.path(), "one", 1);
        pairs.remember(&one).unwrap();
        let record = pairs.file(one.cache_id);
        let good = fs::read_to_string(&record).unwrap();
        // What a crash leaves of a record that was being written.
        fs::write(record.with_extension("new"), "").unwrap();
        assert_eq!(pairs.all().unwrap(), [one]);
        let half = &good[..good.len() / 2];
        for text in [
            "",
            half,
            &good.replace("identity = \"", "identity = \"ff"),
            "x = 1",
        ] {
            fs::write(&record, text).unwrap();
            let said = pairs.all().unwrap_err().to_string();
            assert!(
                said.contains("cannot be read (") && !said.contains('\n'),
                "{said}"
            );
        }
        fs::rename(&record, pairs.path.join("name.toml")).unwrap();
        fs::write(pairs.path.join("name.toml"), good).unwrap();
        assert!(
            pairs
                .all()
                .unwrap_err()
                .to_string()
                .contains("not the id of a cache")
        );
    }
}
