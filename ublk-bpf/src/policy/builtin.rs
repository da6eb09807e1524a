//! The objects that come with this program, built by `cargo xtask build-ebpf` and copied to `OUT_DIR` by `build.rs`.

/// Embeds an object, aligned as the ELF reader requires.
macro_rules! object {
    ($name:literal) => {
        aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/", $name, ".o"))
    };
}

/// The classifier.
pub(super) static CLASSIFIER: &[u8] = object!("classifier");
/// The watch for truncated files.
pub(super) static WATCH: &[u8] = object!("watch");
/// The recorder of requests.
pub(super) static RECORDER: &[u8] = object!("recorder");
/// The histograms of requests.
pub(super) static HISTOGRAMS: &[u8] = object!("histograms");
/// The asker of policies.
pub(super) static ASKER: &[u8] = object!("asker");
/// The tracer of requests from issue to end.
pub(super) static TRACER: &[u8] = object!("tracer");
/// The shadow, which compares a second policy's answers.
pub(super) static SHADOW: &[u8] = object!("shadow");
/// The policy `passthrough`, named for the tests.
pub(super) static PASSTHROUGH: &[u8] = object!("passthrough");

/// A policy that comes with this program.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    /// The name that selects it.
    pub name: &'static str,
    /// What it does, in one line.
    pub description: &'static str,
    /// Without a cache it does what `passthrough` does.
    pub needs_cache: bool,
    object: &'static [u8],
}

impl Builtin {
    /// Its BPF object, as `policy swap` would read it from a file.
    #[must_use]
    pub fn object(&self) -> &'static [u8] {
        self.object
    }
}

static ALL: [Builtin; 9] = [
    Builtin {
        name: "passthrough",
        description: "sends every request to the backing device",
        needs_cache: false,
        object: PASSTHROUGH,
    },
    Builtin {
        name: "drop-discard",
        description: "drops discards (they are advisory); sends the rest to the backing device",
        needs_cache: false,
        object: object!("drop-discard"),
    },
    Builtin {
        name: "sparse",
        description: "completes reads of blocks that hold no data with zeroes, without I/O",
        needs_cache: false,
        object: object!("sparse"),
    },
    Builtin {
        name: "fault",
        description: "fails requests that touch the sectors in its map fault_range (needs --allow-lossy)",
        needs_cache: false,
        object: object!("fault"),
    },
    Builtin {
        name: "lru",
        description: "promotes every block that is read; serves cached blocks from the cache",
        needs_cache: true,
        object: object!("lru"),
    },
    Builtin {
        name: "scan-resistant",
        description: "promotes blocks that are read twice; long sequential runs bypass the cache",
        needs_cache: true,
        object: object!("scan-resistant"),
    },
    Builtin {
        name: "auto",
        description: "fills the cache with each read that misses, by whole blocks, as long as that pays",
        needs_cache: true,
        object: object!("auto"),
    },
    Builtin {
        name: "frugal",
        description: "like auto, but reads no more from the backing device than requests want",
        needs_cache: true,
        object: object!("frugal"),
    },
    Builtin {
        name: "shares",
        description: "like auto, within the quotas of cgroups that `ublk-bpf quota` sets",
        needs_cache: false,
        object: object!("shares"),
    },
];

/// The policies that come with this program.
#[must_use]
pub fn builtin() -> &'static [Builtin] {
    &ALL
}
