//! What the classifier is told when it is loaded.

use crate::request_flags;

/// The name of the classifier's read-only global of type [`Config`].
pub const CONFIG_GLOBAL: &str = "CONFIG";

/// What the classifier is told when it is loaded, as one read-only global that the kernel freezes.
///
/// The verifier knows the values of a frozen map, so an offset read from here is a constant to it.
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
    /// Where the running kernel's structures have what the classifier reads.
    pub offsets: Offsets,
    /// Hardware queues of the device.
    pub queues: u32,
    /// Cache block size as a power of two, in bytes; 0: the device has no cache.
    pub cache_shift: u32,
    /// Where a block's count in [`map::HEAT`](crate::map::HEAT) stops: 1 to 255.
    pub heat_limit: u32,
}

/// Byte offsets of structure members, resolved from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `request.q`
    pub rq_q: u32,
    /// `request.mq_hctx`
    pub rq_mq_hctx: u32,
    /// `request.cmd_flags`
    pub rq_cmd_flags: u32,
    /// `request.tag`
    pub rq_tag: u32,
    /// `request.__data_len`
    pub rq_data_len: u32,
    /// `request.__sector`
    pub rq_sector: u32,
    /// `request.bio`
    pub rq_bio: u32,
    /// `bio.bi_ioprio`
    pub bio_ioprio: u32,
    /// `request_queue.disk`
    pub queue_disk: u32,
    /// `gendisk.disk_name`
    pub disk_name: u32,
    /// `blk_mq_hw_ctx.queue_num`
    pub hctx_queue_num: u32,
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
