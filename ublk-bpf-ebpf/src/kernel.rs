//! The kernel's structures, as every program that reads them does.

use ublk_bpf_abi::Member;

/// A pointer to a kernel structure. Loads from it cannot fault: if the pointer is invalid, the kernel makes the
/// load return zero.
#[derive(Clone, Copy)]
pub(crate) struct KernelPtr(pub(crate) *const u8);

impl KernelPtr {
    /// Loads a member of the structure.
    #[inline(always)]
    pub(crate) fn load<T: Copy>(self, member: Member) -> T {
        let placeholder = usize::from(member.placeholder());
        // SAFETY: The verifier accepts this load only if the structure has a member of this size at this offset,
        // and the kernel handles a fault.
        unsafe { self.0.add(placeholder).cast::<T>().read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn pointer(self, member: Member) -> Self {
        Self(self.load(member))
    }
}
