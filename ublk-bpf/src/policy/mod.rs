//! The classifier and the policies: loaded into the kernel, pinned, replaced, reopened.
//!
//! A server [loads](Classifier::load) its device's classifier before it starts the device, and passes the maps to its
//! threads. Other processes use the pins: [`swap()`] and [`reset`] replace the policy under load, [`crate::observe`]
//! reads the counters.

mod ask;
mod btf_format;
mod builtin;
mod bytes;
mod causes;
mod config;
mod error;
mod fault;
mod histograms;
mod kernel_types;
mod load;
mod loader;
mod maps;
mod object;
mod offsets;
mod own_map;
mod patch;
mod pin;
mod quotas;
mod reasons;
mod recorder;
mod shadow;
mod spec;
mod state;
mod swap;
mod tracer;
mod trial;
mod types;
mod verifier;
mod watch;

pub use ask::Asker;
pub use builtin::{Builtin, builtin};
pub(crate) use causes::chain;
pub use config::{BlockShifts, block_shifts, has_cache, is_counting};
pub use error::PolicyError;
pub use fault::set_fault_range;
pub use load::Classifier;
pub use maps::{CacheMaps, DeviceCounters, QueueCounters, QueueVerdicts, Verdicts, WrittenMap};
pub use object::{
    DEFAULT_POLICY_MEMORY, MapFacts, ObjectError, ObjectFacts, POLICY_SECTION, PolicyObject,
    check_policy_object,
};
pub use offsets::{BtfError, KernelLayout, VMLINUX_BTF};
pub(crate) use own_map::cgroup_path;
pub use own_map::{OwnEntry, OwnMap, OwnMapError};
pub use patch::{Offsets, PatchError};
pub(crate) use pin::pin_error;
pub use pin::{Disk, PinDir, check_bpffs, ensure_bpffs, pinned_disks, remove_stale};
pub use quotas::{Limit, QuotaError, QuotaMap, QuotaState};
pub use reasons::{ReasonNames, reason_names};
pub use recorder::Recorder;
pub use shadow::{ShadowPolicy, attach_shadow, detach_shadow, promote_shadow};
pub use spec::{CacheSpec, ClassifierSpec, Observe, WrittenSpec};
pub use swap::{DEFAULT_POLICY, Policy, Verified, reset, swap};
pub use tracer::Tracer;
pub use trial::{Judgement, try_classifier, try_policy, try_watch};
pub use verifier::Refusal;
pub use watch::Watch;
