//! What this machine has of what a device needs: each finding says what was found and, if that is not enough, what to do.
//!
//! Every check asks what a start would ask, by the same code, and leaves nothing behind.

mod finding;
mod kernel;
mod system;

pub use self::finding::{Finding, FindingState, can_serve};
use crate::control::Control;

/// Looks at everything, in the order in which a start needs it.
#[must_use]
pub fn findings() -> Vec<Finding> {
    let control = Control::open();
    let features = control.as_ref().ok().map(Control::features);
    let mut findings = vec![
        kernel::version(features.as_ref()),
        system::privilege(),
        kernel::driver(&control),
        kernel::features(features.as_ref()),
        kernel::io_uring(),
        kernel::btf(),
        kernel::bpffs(),
    ];
    findings.extend(kernel::programs());
    findings.extend([
        system::run_folder(),
        system::open_files(),
        system::locked_memory(),
        system::reclaim(),
        system::schedulers(),
    ]);
    findings
}
