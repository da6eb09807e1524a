//! Metrics of a process's devices for Prometheus, in OpenMetrics text, over HTTP.
//!
//! The endpoint has a thread of its own. A scrape reads the pinned maps, as `ublk-bpf stats` does: it shares no lock and
//! no memory with the threads that serve requests.

mod address;
mod families;
mod http;
mod series;

use std::collections::BTreeSet;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{Shutdown, shutdown};

pub use address::Address;

use crate::control::DeviceId;
use series::Series;

/// The devices that a process serves at the moment.
#[derive(Clone, Debug, Default)]
pub struct Devices(Arc<Mutex<BTreeSet<DeviceId>>>);

impl Devices {
    /// From now on its metrics are served.
    pub fn add(&self, id: DeviceId) {
        self.with(|all| all.insert(id));
    }

    /// From now on they are not.
    pub fn remove(&self, id: DeviceId) {
        self.with(|all| all.remove(&id));
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeSet<DeviceId>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What every device has counted. One that ends meanwhile is left out.
    fn read(&self) -> Vec<Series> {
        let ids: Vec<DeviceId> = self.with(|all| all.iter().copied().collect());
        let read = |id| Series::read(id).inspect_err(|error| tracing::debug!("no metrics: {error:#}"));
        ids.into_iter().filter_map(|id| read(id).ok()).collect()
    }
}

/// An address that listens.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    devices: Devices,
    is_closed: AtomicBool,
}

impl Endpoint {
    /// Listens at the address. The kernel holds connections until [`Endpoint::serve`].
    ///
    /// # Errors
    /// If the system refuses the address, for example because it is in use.
    pub fn bind(address: Address) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address.socket())?,
            devices: Devices::default(),
            is_closed: AtomicBool::new(false),
        })
    }

    /// The devices whose metrics are served: none at first.
    #[must_use]
    pub fn devices(&self) -> Devices {
        self.devices.clone()
    }

    /// Answers scrapes, one at a time, until [`Endpoint::close`].
    pub fn serve(&self) {
        while !self.is_closed.load(Ordering::Relaxed) {
            http::next(&self.listener, || families::text(&self.devices.read()));
        }
    }

    /// Ends [`Endpoint::serve`] in another thread.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for clients. If it cannot be woken, it ends with the process.
        let _ = shutdown(&self.listener, Shutdown::Both);
    }
}
