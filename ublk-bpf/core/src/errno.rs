//! The kernel's error numbers.

use std::fmt;

/// A Linux error number: 1 to 4095 (the kernel's `MAX_ERRNO`), without the sign.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(u16);

/// Declares the numbers that the program names, and shows them by these names.
macro_rules! named {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)+) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($number);)+

            const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)+
                    _ => None,
                }
            }
        }
    };
}

named! {
    /// Not permitted.
    EPERM = 1;
    /// No such file or object.
    ENOENT = 2;
    /// Interrupted before anything was done.
    EINTR = 4;
    /// Input/output error.
    EIO = 5;
    /// Try again.
    EAGAIN = 11;
    /// Out of memory.
    ENOMEM = 12;
    /// Permission denied.
    EACCES = 13;
    /// The memory of the command could not be read.
    EFAULT = 14;
    /// In use. COMMIT: the server does not own this tag.
    EBUSY = 16;
    /// It exists already.
    EEXIST = 17;
    /// No such device. FETCH, PREP: the queue is being cancelled or the device removed (`UBLK_IO_RES_ABORT`).
    ENODEV = 19;
    /// The request or command is invalid.
    EINVAL = 22;
    /// No space.
    ENOSPC = 28;
    /// A write to a read-only device.
    EROFS = 30;
    /// An operation that is not supported.
    EOPNOTSUPP = 95;
    /// FETCH: no room in the provided buffer or in the completion queue.
    ENOBUFS = 105;
    /// The command was cancelled.
    ECANCELED = 125;
}

impl Errno {
    const MAX: i32 = 4095;

    /// The error of a negative result, EIO if it is outside the kernel's range; `None` if the result is no error.
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
        -self.number()
    }

    /// The number, as the C library has it: positive.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0 as i32
    }

    /// What a client of the device sees. The block layer would pass on EAGAIN (as `BLK_STS_AGAIN`) and EINTR, which
    /// make sense only to a non-blocking request: they become EIO.
    #[must_use]
    pub fn for_client(self) -> Self {
        if self == Self::EAGAIN || self == Self::EINTR {
            Self::EIO
        } else {
            self
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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

    #[test]
    fn an_error_is_shown_by_its_name_or_its_number() {
        assert_eq!(Errno::EOPNOTSUPP.to_string(), "EOPNOTSUPP");
        assert_eq!(Errno::of_result(-121).unwrap().to_string(), "errno 121");
    }

    #[test]
    fn the_numbers_are_those_of_the_c_library() {
        assert_eq!(Errno::ECANCELED.number(), libc::ECANCELED);
        assert_eq!(Errno::EOPNOTSUPP.number(), libc::EOPNOTSUPP);
        assert_eq!(Errno::EEXIST.number(), libc::EEXIST);
    }
}
