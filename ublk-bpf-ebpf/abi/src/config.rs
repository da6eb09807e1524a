//! Load-time configuration of the classifier.

use crate::request_flags;

/// The name of the classifier's read-only global of type [`Config`].
pub const CONFIG_GLOBAL: &str = "CONFIG";

/// Load-time configuration of the classifier: one read-only global that the kernel freezes.
///
/// The verifier knows the values in a frozen map and removes the branches they make dead.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// First 16 bytes of the disk's name (`gendisk.disk_name`), zero padded.
    pub disk_name: [u64; 2],
    /// [`ABI_VERSION`](crate::ABI_VERSION) of the loader.
    pub abi_version: u32,
    /// Tags in a hardware queue.
    pub depth: u32,
    /// log2 of the block size of [`map::WRITTEN`](crate::map::WRITTEN), in bytes; 0: the map is not used.
    pub written_shift: u32,
    /// The running kernel's `req_flag_bits` as masks, in the order of the first bits of [`request_flags`].
    pub flag_masks: [u32; request_flags::FROM_KERNEL],
    /// All of `flag_masks`, or-ed together.
    pub any_flag: u32,
    /// Hardware queues of the device.
    pub queues: u32,
    /// log2 of the cache block size, in bytes; 0: the device has no cache.
    pub cache_shift: u32,
    /// Maximum heat of a block ([`map::HEAT`](crate::map::HEAT)): 1 to 255.
    pub heat_limit: u32,
    /// 0: decisions are counted in [`map::DECISIONS`](crate::map::DECISIONS).
    pub uncounted: u32,
}

numbered! {
    /// A member of a kernel structure that the classifier loads.
    ///
    /// Its offset differs between kernels, and Rust has no CO-RE relocations. The classifier's instructions therefore
    /// hold a placeholder, and the server patches in the running kernel's offset.
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
        /// `char[32]`: the first eight bytes.
        DiskName = 9, "gendisk.disk_name";
        /// The next eight bytes of the name.
        DiskNameEnd = 10, "gendisk.disk_name+8";
        /// `unsigned int`
        HctxNumber = 11, "blk_mq_hw_ctx.queue_num";
        /// `unsigned int`: which attributes are set.
        AttributesSet = 12, "iattr.ia_valid";
        /// `loff_t`
        AttributeSize = 13, "iattr.ia_size";
        /// `struct inode *`
        DentryInode = 14, "dentry.d_inode";
        /// `u64`
        InodeNumber = 15, "inode.i_ino";
        /// `struct super_block *`
        InodeSuperBlock = 16, "inode.i_sb";
        /// `dev_t`
        SuperBlockDevice = 17, "super_block.s_dev";
    }
}

impl Member {
    /// Those that the classifier loads; the others are the watch's.
    pub const CLASSIFIED: usize = 12;
}

/// The name of the watch's read-only global of type [`WatchedFiles`].
pub const WATCH_GLOBAL: &str = "WATCHED";

/// The files of a device that may be truncated by others: its backing and its cache device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchedFiles(pub [WatchedFile; 2]);

/// A file as the kernel knows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchedFile {
    /// Its inode's number; 0: there is no file to watch.
    pub inode: u64,
    /// Its file system's device as the kernel writes it: the major number above 20 bits of the minor one.
    pub device: u64,
}

impl Member {
    /// Placeholder of the first member, larger than any kernel structure that the classifier reads.
    pub const FIRST_PLACEHOLDER: u16 = 0x7f00;

    /// The value that a load instruction holds in place of this member's offset.
    #[must_use]
    #[inline(always)]
    pub const fn placeholder(self) -> u16 {
        Self::FIRST_PLACEHOLDER + self as u16
    }
}

/// `REQ_OP_*` values compiled into the classifier. The loader checks them against the running kernel's `enum req_op`.
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
