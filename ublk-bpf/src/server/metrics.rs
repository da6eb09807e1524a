//! The thread that serves the metrics of this process's devices.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::Scope;

use super::error::ServeError;
use super::isolation::protect_thread;
use super::limits;
use crate::metrics::{Address, Devices, Endpoint};

/// The address of the metrics, if there is one. It is closed when this is dropped.
pub(super) struct Metrics(Option<Arc<Endpoint>>);

impl Metrics {
    /// Listens, so that an address that is in use is refused before anything is made.
    pub(super) fn open(address: Option<Address>) -> Result<Self, ServeError> {
        let open = |address| {
            let endpoint = Endpoint::bind(address);
            endpoint
                .map(Arc::new)
                .map_err(|source| ServeError::Metrics { address, source })
        };
        Ok(Self(address.map(open).transpose()?))
    }

    /// The devices whose metrics are served.
    pub(super) fn devices(&self) -> Devices {
        self.0
            .as_ref()
            .map_or_else(Devices::default, |endpoint| endpoint.devices())
    }

    /// Starts the thread. A panic of it ends only the metrics.
    pub(super) fn serve<'scope>(&self, scope: &'scope Scope<'scope, '_>) -> Result<(), ServeError> {
        let Some(endpoint) = self.0.clone() else {
            return Ok(());
        };
        let serve = move || {
            protect_thread();
            let _ = catch_unwind(AssertUnwindSafe(|| endpoint.serve()));
        };
        let thread = limits::thread("metrics".to_owned()).spawn_scoped(scope, serve);
        let no_thread = limits::no_thread("start the thread of the metrics");
        thread.map(drop).map_err(no_thread)
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.0 {
            endpoint.close();
        }
    }
}
