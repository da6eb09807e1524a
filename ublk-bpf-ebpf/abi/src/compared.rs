//! How the answers of a shadow policy compare with those of the policy that decides.

use crate::{Op, Reason, Verdict};

/// The requests of one operation on one CPU since the shadow policy was attached.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// By the live verdict, [`Verdict::None`] too, and the shadow's: none is [`Verdict::None`].
    pub verdicts: [[u64; Verdict::COUNT]; Verdict::COUNT],
    /// By the live policy's reason, where it has a verdict.
    pub live_reasons: [u64; Reason::COUNT],
    /// By the shadow's reason.
    pub shadow_reasons: [u64; Reason::COUNT],
    /// By whether the live policy brings the block into the cache (bit 0), and the shadow would (bit 1).
    pub cached: [u64; 4],
    /// The operation, so that a dump labels each entry.
    pub op: Op,
}

impl Compared {
    /// Index of the counter of two verdicts, in words.
    #[must_use]
    pub const fn word(live: Verdict, shadow: Verdict) -> usize {
        live as usize * Verdict::COUNT + shadow as usize
    }

    /// Index of the first of `live_reasons`, in words.
    pub const LIVE_REASONS: usize = Verdict::COUNT * Verdict::COUNT;
    /// Index of the first of `shadow_reasons`, in words.
    pub const SHADOW_REASONS: usize = Self::LIVE_REASONS + Reason::COUNT;
    /// Index of the first of `cached`, in words.
    pub const CACHED: usize = Self::SHADOW_REASONS + Reason::COUNT;
    /// Size of this type in words, including `op`.
    pub const WORDS: usize = Self::CACHED + 5;
}

/// Which policy is the shadow, for the commands: [`map::ABOUT`](crate::map::ABOUT) has one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AboutShadow {
    /// Memory limit for the maps of a policy loaded from a file, in bytes.
    pub policy_memory: u64,
    /// When it was attached, in seconds since 1970.
    pub since: u64,
    /// Its name, or the absolute path of its object as commands print it; zero padded.
    pub policy: [u8; Self::NAME],
}

impl AboutShadow {
    /// Bytes for the name.
    pub const NAME: usize = 4080;
}
