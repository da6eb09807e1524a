//! The owners of storage: no device may use storage of another one, served or waiting.
//!
//! Locks and exclusive opens keep storage only while a server lives, so a device that waits has nothing but its record.
//! A start checks what it opened against all records, first when it opens them and again under `choose.lock`, where it
//! makes its own record (`Claim::make` in `server/claim.rs`): of two starts one sees the other's.

use std::fs;
use std::thread;
use std::time::Instant;

use super::error::RecordError;
use super::lock::Lock;
use super::options::{DeviceOptions, Role};
use super::record::{self, Record};
use super::stale::{self, POLL, SETTLING};
use crate::backend::{Backend, BackendError, Spec, StorageStack};
use crate::control::{Control, ControlError, DeviceId};
use crate::sys::process;

/// Why storage cannot be used for a device. One line: what was wanted, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The backing or the cache cannot serve.
    #[error("{role} {source}")]
    Backend {
        /// What it was to be.
        role: Role,
        /// What is wrong with it.
        source: BackendError,
    },
    /// Two backends of one process are the same storage.
    #[error("{role} {name}: in use: it is the same storage as {other}: give another")]
    Twice {
        /// What the second one was to be.
        role: Role,
        /// The second one, as it was named.
        name: String,
        /// What the first one is.
        other: String,
    },
    /// A device with a server has it.
    #[error(
        "{role} {name}: in use by {}, whose {theirs} is the same storage: stop that device with `ublk-bpf stop {id}`, or give another {role}",
        id.disk_name()
    )]
    Served {
        /// What it was to be.
        role: Role,
        /// As it was named.
        name: String,
        /// Whose it is.
        id: DeviceId,
        /// What it is there.
        theirs: Role,
    },
    /// A device that waits for its next server has it.
    #[error(
        "{role} {name}: in use: it is the {theirs} of {}, which waits for a server: recover that device with \
         `ublk-bpf run --recover {id}` or `--recover-waiting`, or remove it with `ublk-bpf stop {id}`",
        id.disk_name()
    )]
    Waiting {
        /// What it was to be.
        role: Role,
        /// As it was named.
        name: String,
        /// Whose it is.
        id: DeviceId,
        /// What it is there.
        theirs: Role,
    },
    /// A device waits for its next server, and its record does not say on what.
    #[error(
        "{} waits for a server and may use the same storage: {source}",
        id.disk_name()
    )]
    Unreadable {
        /// Which device.
        id: DeviceId,
        /// What is wrong with its record.
        source: RecordError,
    },
    /// The kernel does not say what has become of another device.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The records or locks of other devices cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl StorageError {
    /// The error of a backend in this role.
    pub(crate) fn backend(role: Role) -> impl Fn(BackendError) -> Self {
        move |source| Self::Backend { role, source }
    }
}

/// What a process opens for its devices.
pub(crate) struct Opening<'c> {
    /// `None` if there is no ublk, and so no other device.
    control: Option<&'c Control>,
    /// How many devices it is to have.
    of: usize,
    /// Which of them is next, counted from 1.
    number: usize,
    /// What it opened already, and what for.
    taken: Vec<(String, StorageStack)>,
}

/// Whether a conflict resolves itself.
enum StorageHold {
    /// No other device has the storage.
    Free,
    /// A device that is gone had it: the kernel may not have closed all files of the dead server yet.
    Dying,
}

impl<'c> Opening<'c> {
    pub(crate) const fn new(control: Option<&'c Control>, of: usize) -> Self {
        Self {
            control,
            of,
            number: 0,
            taken: Vec::new(),
        }
    }

    /// What is opened from here on is for the next device.
    pub(crate) const fn next_device(&mut self) {
        self.number += 1;
    }

    /// Opens a backend for a new device, or for device `own`, which waits; refuses what another device has.
    pub(crate) fn backend(
        &mut self,
        role: Role,
        spec: &Spec,
        read_only: bool,
        own: Option<DeviceId>,
    ) -> Result<Backend, StorageError> {
        let deadline = Instant::now() + SETTLING;
        loop {
            match Backend::open(spec, read_only) {
                Ok(backend) => {
                    if let Some(storage) = backend.storage() {
                        self.check(role, spec, &storage, own)?;
                        self.taken.push((self.name(role, spec), storage));
                    }
                    return Ok(backend);
                }
                Err(error @ BackendError::InUse { .. }) => {
                    // The owner's name says more than that it is in use.
                    let hold = match storage_at(spec, read_only) {
                        Some(storage) => self.check(role, spec, &storage, own)?,
                        None => StorageHold::Free,
                    };
                    let is_ending = own.is_some() || matches!(hold, StorageHold::Dying);
                    if !is_ending || Instant::now() >= deadline {
                        return Err(StorageError::backend(role)(error));
                    }
                    thread::sleep(POLL);
                }
                Err(error) => return Err(StorageError::backend(role)(error)),
            }
        }
    }

    /// Refuses storage that this process or another device has.
    fn check(
        &self,
        role: Role,
        spec: &Spec,
        storage: &StorageStack,
        own: Option<DeviceId>,
    ) -> Result<StorageHold, StorageError> {
        if let Some((other, _)) = self.taken.iter().find(|(_, taken)| taken.conflicts_with(storage)) {
            return Err(StorageError::Twice {
                role,
                name: spec.to_string(),
                other: other.clone(),
            });
        }
        match self.control {
            Some(control) => check(control, role, spec, storage, own),
            None => Ok(StorageHold::Free),
        }
    }

    fn name(&self, role: Role, spec: &Spec) -> String {
        match self.of {
            1 => format!("the {role} {spec}"),
            _ => format!("the {role} {spec} of device {}", self.number),
        }
    }
}

/// Refuses an open backend that another device has. To be called with `choose.lock` held, before the record is written.
pub(crate) fn check_open(control: &Control, role: Role, backend: &Backend) -> Result<(), StorageError> {
    match backend.storage() {
        Some(storage) => check(control, role, backend.spec(), &storage, None).map(drop),
        None => Ok(()),
    }
}

/// The device that waits on the backing of these options.
pub(crate) fn waiting_on(
    control: &Control,
    options: &DeviceOptions,
) -> Result<Option<DeviceId>, StorageError> {
    let found = described_by(control, options)?.filter(|(_, standing)| *standing == Standing::Waiting);
    Ok(found.map(|(record, _)| record.id()))
}

/// The device that these options describe, if it is served or waits: the one on their backing. Memory and null devices
/// are known by their names.
pub(crate) fn described_by(
    control: &Control,
    options: &DeviceOptions,
) -> Result<Option<(Record, Standing)>, StorageError> {
    let backing = storage_at(&options.backing, options.read_only);
    for id in record::ids()? {
        // What cannot be read is for `check`, which every start goes through.
        let Ok(record) = Record::read(id) else { continue };
        if !is_on(&record, options, backing.as_ref()) {
            continue;
        }
        let standing = standing(control, id)?;
        if standing != Standing::Gone {
            return Ok(Some((record, standing)));
        }
    }
    Ok(None)
}

/// Whether a device is on the backing that these options name, or has their name and nothing to share.
pub(crate) fn is_on_backing(record: &Record, options: &DeviceOptions) -> bool {
    is_on(
        record,
        options,
        storage_at(&options.backing, options.read_only).as_ref(),
    )
}

/// Whether a device is on `backing`, the storage that these options name, or has their name and nothing to share.
fn is_on(record: &Record, options: &DeviceOptions, backing: Option<&StorageStack>) -> bool {
    let is_same = |backing: &StorageStack| {
        let is_backing =
            |(role, storage): &(Role, StorageStack)| *role == Role::Backing && storage.is_same_as(backing);
        record.storages().iter().any(is_backing)
    };
    match (&options.backing, backing) {
        (Spec::Path(_), backing) => backing.is_some_and(is_same),
        _ => options.name.is_some() && record.name == options.name && record.backing == options.backing,
    }
}

/// What a path leads to now; `None` if nothing, or if it is no path.
pub(crate) fn storage_at(spec: &Spec, read_only: bool) -> Option<StorageStack> {
    match spec {
        Spec::Path(path) => StorageStack::of(&fs::metadata(path).ok()?, read_only),
        _ => None,
    }
}

/// Refuses storage that any device but `own` has.
fn check(
    control: &Control,
    role: Role,
    spec: &Spec,
    storage: &StorageStack,
    own: Option<DeviceId>,
) -> Result<StorageHold, StorageError> {
    let mut hold = StorageHold::Free;
    for id in record::ids()?.into_iter().filter(|&id| Some(id) != own) {
        let theirs = match Record::read(id) {
            // Without a record it has not been made, or has ended.
            Err(RecordError::Absent(_)) => continue,
            // It may be on anything. Unless it waits, the next sweep removes it, or its server keeps what it has.
            Err(source) if standing(control, id)? == Standing::Waiting => {
                return Err(StorageError::Unreadable { id, source });
            }
            Err(_) => continue,
            Ok(record) => record.storages(),
        };
        let Some((theirs, _)) = theirs.iter().find(|(_, theirs)| theirs.conflicts_with(storage)) else {
            continue;
        };
        let (name, theirs) = (spec.to_string(), *theirs);
        match standing(control, id)? {
            Standing::Served => {
                return Err(StorageError::Served {
                    role,
                    name,
                    id,
                    theirs,
                });
            }
            Standing::Waiting => {
                return Err(StorageError::Waiting {
                    role,
                    name,
                    id,
                    theirs,
                });
            }
            Standing::Gone => hold = StorageHold::Dying,
        }
    }
    Ok(hold)
}

/// What a device with a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has a server.
    Served,
    /// It waits for one.
    Waiting,
    /// It went away with its server.
    Gone,
}

fn standing(control: &Control, id: DeviceId) -> Result<Standing, StorageError> {
    let is_dying = || Record::read(id).is_ok_and(|record| process::is_dying(record.pid));
    let deadline = Instant::now() + SETTLING;
    while Lock::is_served(id)? {
        if !is_dying() || Instant::now() >= deadline {
            return Ok(Standing::Served);
        }
        thread::sleep(POLL);
    }
    Ok(match stale::settled(control, id)? {
        Some(info) if info.state.is_recoverable() => Standing::Waiting,
        // By a dead server, whose last operation has not ended.
        Some(info) if stale::is_held(&info) => Standing::Served,
        _ => Standing::Gone,
    })
}
