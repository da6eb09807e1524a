//! The error numbers that the machine gives to the kernel or gets from it.

use std::fmt;

/// A Linux error number: 1 to 4095 (`MAX_ERRNO` of the kernel), without the sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(u16);

impl Errno {
    /// Interrupted before anything was done.
    pub const EINTR: Self = Self(4);
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// Try again.
    pub const EAGAIN: Self = Self(11);
    /// No memory for it now.
    pub const ENOMEM: Self = Self(12);
    /// The memory of the command could not be read.
    pub const EFAULT: Self = Self(14);
    /// COMMIT: the server does not own this tag.
    pub const EBUSY: Self = Self(16);
    /// FETCH, PREP: the queue is being cancelled or the device removed (`UBLK_IO_RES_ABORT`).
    pub const ENODEV: Self = Self(19);
    /// The request or the command is wrong in itself.
    pub const EINVAL: Self = Self(22);
    /// A write to a read-only device.
    pub const EROFS: Self = Self(30);
    /// An operation that this device does not serve.
    pub const EOPNOTSUPP: Self = Self(95);
    /// FETCH: no room in the provided buffer or in the completion queue.
    pub const ENOBUFS: Self = Self(105);

    const MAX: i32 = 4095;

    /// The error that a negative result stands for; one outside the kernel's range is EIO. `None`: no error.
    #[must_use]
    pub const fn of_result(result: i32) -> Option<Self> {
        if result >= 0 {
            return None;
        }
        if result < -Self::MAX {
            return Some(Self::EIO);
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "1 to 4095, by the two lines above"
        )]
        Some(Self(result.unsigned_abs() as u16))
    }

    /// The error as a result: negative.
    #[must_use]
    pub const fn result(self) -> i32 {
        -(self.0 as i32)
    }

    /// What the block layer shall see. EAGAIN and EINTR would reach the client as they are (the block layer
    /// maps EAGAIN to `BLK_STS_AGAIN`), and it did not ask for a non-blocking request: they become EIO.
    #[must_use]
    pub(super) fn for_client(self) -> Self {
        if self == Self::EAGAIN || self == Self::EINTR {
            Self::EIO
        } else {
            self
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn results_and_errors_translate_both_ways() {
        assert_eq!(Errno::of_result(0), None);
        assert_eq!(Errno::of_result(4096), None);
        assert_eq!(Errno::of_result(-5), Some(Errno::EIO));
        assert_eq!(Errno::of_result(-105).map(Errno::result), Some(-105));
    }

    #[test]
    fn numbers_outside_the_range_are_eio() {
        assert_eq!(Errno::of_result(-4096), Some(Errno::EIO));
        assert_eq!(Errno::of_result(i32::MIN), Some(Errno::EIO));
    }

    #[test]
    fn a_client_never_sees_try_again() {
        assert_eq!(Errno::EAGAIN.for_client(), Errno::EIO);
        assert_eq!(Errno::EINTR.for_client(), Errno::EIO);
        assert_eq!(Errno::EOPNOTSUPP.for_client(), Errno::EOPNOTSUPP);
    }
}
