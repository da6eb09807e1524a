//! What the classifier is told when it is loaded.

use crate::request_flags;

/// The name of the classifier's read-only global of type [`Config`].
pub const CONFIG_GLOBAL: &str = "CONFIG";

/// What the classifier is told when it is loaded, as one read-only global that the kernel freezes.
///
/// The verifier knows the values of a frozen map, and leaves out what they rule out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// First 16 bytes of the disk's name (`gendisk.disk_name`), zero padded.
    pub disk_name: [u64; 2],
    /// [`ABI_VERSION`](crate::ABI_VERSION) of the loader.
    pub abi_version: u32,
    /// Tags in a hardware queue.
    pub depth: u32,
    /// Block size of [`map::WRITTEN`](crate::map::WRITTEN) as a power of two, in bytes; 0: the map says nothing.
    pub written_shift: u32,
    /// `req_flag_bits` of the running kernel, as masks, in the order of [`request_flags`]' first bits.
    pub flag_masks: [u32; request_flags::FROM_KERNEL],
    /// All of `flag_masks`.
    pub any_flag: u32,
    /// Hardware queues of the device.
    pub queues: u32,
    /// Cache block size as a power of two, in bytes; 0: the device has no cache.
    pub cache_shift: u32,
    /// Where a block's count in [`map::HEAT`](crate::map::HEAT) stops: 1 to 255.
    pub heat_limit: u32,
    /// Zero: it fills the last word.
    pub reserved: u32,
}

numbered! {
    /// A member of one of the kernel's structures that the classifier loads.
    ///
    /// Its offset differs from kernel to kernel, and Rust cannot leave it to the loader as C does (by CO-RE). So the
    /// classifier's instructions have a placeholder in its stead, and the server puts the running kernel's offset there.
    Member {
        /// `struct request_queue *`
        RequestQueue = 0, "request.q";
        /// `struct blk_mq_hw_ctx *`
        RequestHctx = 1, "request.mq_hctx";
        /// `u32`: the operation and its flags.
        RequestFlags = 2, "request.cmd_flags";
        /// `int`
        RequestTag = 3, "request.tag";
        /// `unsigned int`, in bytes.
        RequestBytes = 4, "request.__data_len";
        /// `u64`
        RequestSector = 5, "request.__sector";
        /// `struct bio *`
        RequestBio = 6, "request.bio";
        /// `unsigned short`
        BioPriority = 7, "bio.bi_ioprio";
        /// `struct gendisk *`
        QueueDisk = 8, "request_queue.disk";
        /// `char[32]`: its first eight bytes.
        DiskName = 9, "gendisk.disk_name";
        /// The next eight of them.
        DiskNameEnd = 10, "gendisk.disk_name+8";
        /// `unsigned int`
        HctxNumber = 11, "blk_mq_hw_ctx.queue_num";
    }
}

impl Member {
    /// The placeholder of the first one. No structure that a BPF program has to do with is so long.
    pub const FIRST_PLACEHOLDER: u16 = 0x7f00;

    /// What stands for its offset in a load instruction.
    #[must_use]
    #[inline(always)]
    pub const fn placeholder(self) -> u16 {
        Self::FIRST_PLACEHOLDER + self as u16
    }
}

/// `REQ_OP_*` as the classifier knows them. The loader compares them with the running kernel's `enum req_op`.
pub mod req_op {
    /// `REQ_OP_READ`
    pub const READ: u32 = 0;
    /// `REQ_OP_WRITE`
    pub const WRITE: u32 = 1;
    /// `REQ_OP_FLUSH`
    pub const FLUSH: u32 = 2;
    /// `REQ_OP_DISCARD`
    pub const DISCARD: u32 = 3;
    /// `REQ_OP_WRITE_ZEROES`
    pub const WRITE_ZEROES: u32 = 9;
    /// The bits of `request.cmd_flags` that hold the operation (`REQ_OP_MASK`).
    pub const MASK: u32 = 0xff;
}
