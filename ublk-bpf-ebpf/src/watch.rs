//! The watch: notes where a device's backing and cache file end from now on when another truncates them.
//!
//! Every change of a file's size that is not a write goes through `notify_change`, and this program runs at its end, in
//! the context of who truncates and while the file's inode is still locked. What would make the file longer again, a
//! write behind its end among others, takes that lock. So whatever is read or written after the truncation completes
//! after this has run: the server looks at the ends before it looks at completions, and believes none that it may not.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(target_arch = "bpf")]
mod watch {
    use aya_ebpf::{
        Global,
        bindings::BPF_F_MMAPABLE,
        btf_maps::Array,
        macros::{btf_map, fexit},
        programs::FExitContext,
    };
    use ublk_bpf_abi::{Member, WatchedFile, WatchedFiles};
    // Brings the panic handler.
    use ublk_bpf_policy as _;

    use crate::kernel::KernelPtr;

    /// `ATTR_SIZE` of `include/linux/fs.h`.
    const ATTR_SIZE: u32 = 1 << 3;

    /// Which files.
    #[unsafe(no_mangle)]
    static WATCHED: Global<WatchedFiles> =
        Global::new(WatchedFiles([WatchedFile { inode: 0, device: 0 }; 2]));

    /// The lowest size that each was truncated to, in bytes. The server sets what they begin with.
    #[btf_map(name = "ends")]
    static ENDS: Array<u64, 2, { BPF_F_MMAPABLE as usize }> = Array::new();

    /// The licence that the kernel reads.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    /// `int notify_change(struct mnt_idmap *, struct dentry *, struct iattr *, struct delegated_inode *)`, and its
    /// result behind its arguments.
    #[fexit(function = "notify_change")]
    fn watch(ctx: FExitContext) -> i32 {
        let attributes = KernelPtr(ctx.arg::<*const u8>(2));
        if ctx.arg::<i32>(4) == 0 && attributes.load::<u32>(Member::AttributesSet) & ATTR_SIZE != 0 {
            let inode = KernelPtr(ctx.arg::<*const u8>(1)).pointer(Member::DentryInode);
            note(inode, attributes.load(Member::AttributeSize));
        }
        0
    }

    fn note(inode: KernelPtr, size: u64) {
        let number = inode.load::<u64>(Member::InodeNumber);
        let device = inode
            .pointer(Member::InodeSuperBlock)
            .load::<u32>(Member::SuperBlockDevice);
        for file in 0..2_u32 {
            let watched = (&raw const WATCHED).cast::<WatchedFile>();
            // SAFETY: `Global` is a transparent wrapper of two initialised files that are never written.
            let watched = unsafe { watched.add(file as usize).read_volatile() };
            if watched.inode == number
                && watched.device == u64::from(device)
                && let Some(end) = ENDS.get_ptr_mut(file)
            {
                // SAFETY: a word of the map. The inode's lock keeps others from here; the server, which lowers it too,
                // looks at the size again.
                unsafe { end.write_volatile(end.read_volatile().min(size)) };
            }
        }
    }
}
