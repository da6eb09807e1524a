//! What a kernel's ublk can do, by name and Linux version.

use std::fmt;

use crate::sys::uapi;

bitflags::bitflags! {
    /// A feature word: what the driver has (GET_FEATURES), or what a device was made with.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// Request pages can be registered as io_uring buffers by command.
        const ZERO_COPY = uapi::UBLK_F_SUPPORT_ZERO_COPY;
        /// Commands complete in task work.
        const COMPLETE_IN_TASK = uapi::UBLK_F_URING_CMD_COMP_IN_TASK;
        /// Writes ask for a buffer first.
        const NEED_GET_DATA = uapi::UBLK_F_NEED_GET_DATA;
        /// The device outlives its server.
        const RECOVERY = uapi::UBLK_F_USER_RECOVERY;
        /// What a dead server had in hand is issued again to the next.
        const RECOVERY_REISSUE = uapi::UBLK_F_USER_RECOVERY_REISSUE;
        /// The device belongs to a user without privileges.
        const UNPRIVILEGED = uapi::UBLK_F_UNPRIVILEGED_DEV;
        /// Commands are encoded as ioctl numbers.
        const IOCTL_ENCODE = uapi::UBLK_F_CMD_IOCTL_ENCODE;
        /// Request data can be copied by read and write on the character device.
        const USER_COPY = uapi::UBLK_F_USER_COPY;
        /// Zoned devices.
        const ZONED = uapi::UBLK_F_ZONED;
        /// Requests fail while there is no server.
        const RECOVERY_FAIL_IO = uapi::UBLK_F_USER_RECOVERY_FAIL_IO;
        /// A live device can change its size.
        const UPDATE_SIZE = uapi::UBLK_F_UPDATE_SIZE;
        /// Request pages are registered as io_uring buffers before the tag is delivered.
        const AUTO_BUF_REG = uapi::UBLK_F_AUTO_BUF_REG;
        /// A live device can be taken from its server.
        const QUIESCE = uapi::UBLK_F_QUIESCE;
        /// Each tag may have its own task.
        const PER_IO_DAEMON = uapi::UBLK_F_PER_IO_DAEMON;
        /// Buffers can be registered from any task.
        const BUF_REG_OFF_DAEMON = uapi::UBLK_F_BUF_REG_OFF_DAEMON;
        /// Tags are fetched and committed in batches.
        const BATCH_IO = uapi::UBLK_F_BATCH_IO;
        /// Requests may carry integrity metadata.
        const INTEGRITY = uapi::UBLK_F_INTEGRITY;
        /// A device can be stopped on the condition that it is not open.
        const SAFE_STOP = uapi::UBLK_F_SAFE_STOP_DEV;
        /// Partitions need not be scanned at start.
        const NO_PARTITION_SCAN = uapi::UBLK_F_NO_AUTO_PART_SCAN;
        /// Buffers in shared memory are recognised in requests.
        const SHARED_MEMORY = uapi::UBLK_F_SHMEM_ZC;
        /// The server chooses the descriptor's size.
        const DESCRIPTOR_SIZE = uapi::UBLK_F_IO_DESC_SIZE;

        // A later kernel's features are kept, not understood.
        const _ = !0;
    }
}

impl Features {
    /// What this server's devices are made with, always.
    pub const SERVED: Self = Self::BATCH_IO
        .union(Self::AUTO_BUF_REG)
        .union(Self::USER_COPY)
        .union(Self::IOCTL_ENCODE);

    /// What a kernel must have to serve any device.
    pub const NEEDED: Self = Self::SERVED.union(Self::SAFE_STOP);

    /// Checks that nothing of `wanted` is missing here.
    pub fn require(self, wanted: Self) -> Result<(), Missing> {
        let missing = wanted.difference(self);
        if missing.is_empty() {
            Ok(())
        } else {
            Err(Missing(missing))
        }
    }

    /// Every feature that is set here and known, in the order of the bits.
    pub fn known(self) -> impl Iterator<Item = &'static Feature> {
        FEATURES.iter().filter(move |feature| self.contains(feature.flag))
    }

    /// The bits set here that no feature known to this program has.
    pub fn unknown_bits(self) -> u64 {
        FEATURES
            .iter()
            .fold(self, |rest, feature| rest.difference(feature.flag))
            .bits()
    }
}

/// One feature of ublk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its bit.
    pub flag: Features,
    /// Its name in `linux/ublk_cmd.h`.
    pub name: &'static str,
    /// What it is, in a few words.
    pub what: &'static str,
    /// The first Linux that has it, major and minor.
    pub since: (u8, u8),
}

/// Every feature, in the order of the bits.
///
/// The versions are those whose `ublk_cmd.h` first has the flag. Zero copy is the exception: its bit is as old as the
/// driver, which refused it until it was made to work in Linux 6.15.
pub const FEATURES: [Feature; 21] = [
    feature(
        Features::ZERO_COPY,
        "UBLK_F_SUPPORT_ZERO_COPY",
        "zero copy by command",
        (6, 15),
    ),
    feature(
        Features::COMPLETE_IN_TASK,
        "UBLK_F_URING_CMD_COMP_IN_TASK",
        "completion in task work",
        (6, 0),
    ),
    feature(
        Features::NEED_GET_DATA,
        "UBLK_F_NEED_GET_DATA",
        "late write buffers",
        (6, 0),
    ),
    feature(Features::RECOVERY, "UBLK_F_USER_RECOVERY", "recovery", (6, 1)),
    feature(
        Features::RECOVERY_REISSUE,
        "UBLK_F_USER_RECOVERY_REISSUE",
        "recovery with reissue",
        (6, 1),
    ),
    feature(
        Features::UNPRIVILEGED,
        "UBLK_F_UNPRIVILEGED_DEV",
        "unprivileged devices",
        (6, 3),
    ),
    feature(
        Features::IOCTL_ENCODE,
        "UBLK_F_CMD_IOCTL_ENCODE",
        "ioctl-encoded commands",
        (6, 4),
    ),
    feature(Features::USER_COPY, "UBLK_F_USER_COPY", "user copy", (6, 5)),
    feature(Features::ZONED, "UBLK_F_ZONED", "zoned devices", (6, 6)),
    feature(
        Features::RECOVERY_FAIL_IO,
        "UBLK_F_USER_RECOVERY_FAIL_IO",
        "recovery with failed I/O",
        (6, 13),
    ),
    feature(
        Features::UPDATE_SIZE,
        "UBLK_F_UPDATE_SIZE",
        "live resizing",
        (6, 16),
    ),
    feature(
        Features::AUTO_BUF_REG,
        "UBLK_F_AUTO_BUF_REG",
        "automatic buffer registration",
        (6, 16),
    ),
    feature(Features::QUIESCE, "UBLK_F_QUIESCE", "quiescing", (6, 16)),
    feature(
        Features::PER_IO_DAEMON,
        "UBLK_F_PER_IO_DAEMON",
        "a task for each tag",
        (6, 16),
    ),
    feature(
        Features::BUF_REG_OFF_DAEMON,
        "UBLK_F_BUF_REG_OFF_DAEMON",
        "buffer registration from any task",
        (6, 17),
    ),
    feature(Features::BATCH_IO, "UBLK_F_BATCH_IO", "batch I/O", (7, 0)),
    feature(
        Features::INTEGRITY,
        "UBLK_F_INTEGRITY",
        "integrity metadata",
        (7, 0),
    ),
    feature(
        Features::SAFE_STOP,
        "UBLK_F_SAFE_STOP_DEV",
        "stop unless open",
        (7, 0),
    ),
    feature(
        Features::NO_PARTITION_SCAN,
        "UBLK_F_NO_AUTO_PART_SCAN",
        "start without a partition scan",
        (7, 0),
    ),
    feature(
        Features::SHARED_MEMORY,
        "UBLK_F_SHMEM_ZC",
        "zero copy by shared memory",
        (7, 1),
    ),
    feature(
        Features::DESCRIPTOR_SIZE,
        "UBLK_F_IO_DESC_SIZE",
        "descriptor size",
        (7, 3),
    ),
];

const fn feature(flag: Features, name: &'static str, what: &'static str, since: (u8, u8)) -> Feature {
    Feature {
        flag,
        name,
        what,
        since,
    }
}

/// Features that were required and are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Missing(Features);

impl Missing {
    /// Which ones.
    pub fn features(self) -> Features {
        self.0
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this kernel's ublk has no ")?;
        let mut needed = (0, 0);
        for (i, feature) in self.0.known().enumerate() {
            let separator = if i == 0 { "" } else { ", no " };
            let (major, minor) = feature.since;
            write!(
                f,
                "{separator}{} ({}, Linux >= {major}.{minor})",
                feature.what, feature.name
            )?;
            needed = needed.max(feature.since);
        }
        let unknown = self.0.unknown_bits();
        if unknown != 0 {
            return write!(
                f,
                "feature bits {unknown:#x}, which this program does not know either"
            );
        }
        write!(f, ": boot Linux {}.{} or later", needed.0, needed.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_bit_once_and_in_order() {
        for (bit, feature) in FEATURES.iter().enumerate() {
            assert_eq!(feature.flag.bits(), 1 << bit, "{}", feature.name);
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_version() {
        let linux_6_16 = Features::from_bits_retain(0x3fff);
        assert_eq!(
            linux_6_16.require(Features::SERVED).unwrap_err().to_string(),
            "this kernel's ublk has no batch I/O (UBLK_F_BATCH_IO, Linux >= 7.0): boot Linux 7.0 or later"
        );
        let linux_6_1 = Features::from_bits_retain(0x1f);
        assert_eq!(
            linux_6_1
                .require(Features::USER_COPY | Features::QUIESCE)
                .unwrap_err()
                .to_string(),
            "this kernel's ublk has no user copy (UBLK_F_USER_COPY, Linux >= 6.5), \
             no quiescing (UBLK_F_QUIESCE, Linux >= 6.16): boot Linux 6.16 or later"
        );
        Features::from_bits_retain(0x1f_ffff)
            .require(Features::SERVED)
            .unwrap();
    }

    #[test]
    fn a_later_kernels_features_are_kept() {
        let word = Features::from_bits_retain(1 << 40 | 1);
        assert_eq!(word.unknown_bits(), 1 << 40);
        assert_eq!(
            word.known().map(|feature| feature.name).collect::<Vec<_>>(),
            ["UBLK_F_SUPPORT_ZERO_COPY"]
        );
    }
}
