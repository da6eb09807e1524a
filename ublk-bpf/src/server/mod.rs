//! One device's life: from its options to a disk that serves, and back to nothing.

pub mod options;
pub mod record;

pub use options::{Options, Recovery};
pub use record::Record;
