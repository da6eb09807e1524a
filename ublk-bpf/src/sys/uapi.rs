//! The binary interface of ublk: `include/uapi/linux/ublk_cmd.h` as of Linux 7.3, as far as this server uses it.
//!
//! Constants keep the header's names, so that one search finds both; structs have Rust names and say which
//! struct of the header they are. Sizes and offsets are asserted at compile time on every 64-bit architecture, and
//! `tests/headers` compares everything in these modules with a real header.

mod command;
mod device;
mod params;
mod request;

pub use self::command::*;
pub use self::device::*;
pub use self::params::*;
pub use self::request::*;

#[cfg(any(
    target_arch = "powerpc64",
    target_arch = "powerpc",
    target_arch = "mips64",
    target_arch = "sparc64"
))]
compile_error!("ioctl numbers are encoded differently on this architecture");
