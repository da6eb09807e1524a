//! The quotas of a device's policy, which a map of it holds: limits of cgroups, and what they have taken.

use serde::Serialize;
use serde_json::Value;
use ublk_bpf_abi::{TENANTS, map};

use super::error::PolicyError;
use super::own_map::{OwnEntry, OwnMap, OwnMapError};
use super::pin::{PinDir, open_map};

/// The policy's map.
const QUOTAS: &str = "quotas";

/// Why quotas cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    /// The policy has none.
    #[error(
        "the device's policy has no quotas: swap in `shares`, or a policy of your own that declares them with `quotas!`"
    )]
    None,
    /// Its map is not what a policy with quotas has.
    #[error("the policy's map `{QUOTAS}` has no field `{0}`: build the policy with the SDK of this ublk-bpf")]
    Layout(&'static str),
    /// Every tenant has a quota.
    #[error("{0} cgroups share the cache by quotas, which is the most: remove one first")]
    TooMany(u32),
    /// The map cannot be used.
    #[error(transparent)]
    Map(#[from] OwnMapError),
    /// Neither can that of what tenants have.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Nor read.
    #[error("cannot read map `{map}`: {source}", map = map::USAGE)]
    Usage {
        /// Why.
        #[from]
        source: aya::maps::MapError,
    },
}

/// A limit to set. `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Requests a second.
    Iops(Option<u64>),
    /// Bytes a second.
    Bandwidth(Option<u64>),
    /// Blocks of the cache.
    CacheBlocks(Option<u64>),
}

/// What a cgroup may take, and has. A limit of 0 is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QuotaState {
    /// Its path.
    pub cgroup: String,
    /// Requests a second.
    pub iops: u64,
    /// Bytes a second.
    pub bandwidth: u64,
    /// Blocks of the cache, if `tenant` is not 0.
    pub cache_blocks: u64,
    /// By what number its blocks are accounted; 0: they are not limited.
    pub tenant: u64,
    /// Blocks that it has.
    pub used_blocks: u64,
    /// Requests that were delayed.
    pub delayed: u64,
    /// Requests that were not to bring their block into the cache.
    pub refused: u64,
}

/// The quotas of a device.
#[derive(Debug)]
pub struct QuotaMap {
    map: OwnMap,
    /// Blocks of each tenant.
    used: Vec<u64>,
}

impl QuotaMap {
    /// Opens those of the device with these pins.
    ///
    /// # Errors
    /// If its policy has none.
    pub fn open(pins: &PinDir) -> Result<Self, QuotaError> {
        if !OwnMap::names(pins)?.iter().any(|name| name == QUOTAS) {
            return Err(QuotaError::None);
        }
        let usage = open_map(&pins.map(map::USAGE), size_of::<u64>(), TENANTS)?;
        let usage = aya::maps::Array::<_, u64>::try_from(aya::maps::Map::Array(usage))?;
        let used = (0..TENANTS).map(|tenant| usage.get(&tenant, 0));
        Ok(Self {
            map: OwnMap::open(pins, QUOTAS)?,
            used: used.collect::<Result<_, _>>()?,
        })
    }

    /// All quotas.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn list(&self) -> Result<Vec<QuotaState>, QuotaError> {
        self.map.list()?.iter().map(|entry| self.state(entry)).collect()
    }

    /// Sets limits of a cgroup. What it owes is forgotten: it is owed by the former limits.
    ///
    /// # Errors
    /// If there is no such cgroup, or no room.
    pub fn set(&self, cgroup: &str, limits: &[Limit]) -> Result<QuotaState, QuotaError> {
        self.forget_gone()?;
        let mut parts = vec!["ios_paid=0".to_owned(), "bytes_paid=0".to_owned()];
        for limit in limits {
            match limit {
                Limit::Iops(iops) => parts.push(format!("iops={}", iops.unwrap_or(0))),
                Limit::Bandwidth(bytes) => parts.push(format!("bandwidth={}", bytes.unwrap_or(0))),
                Limit::CacheBlocks(blocks) => {
                    let tenant = blocks.map_or(Ok(0), |_| self.tenant_of(cgroup))?;
                    parts.push(format!("cache_blocks={}", blocks.unwrap_or(0)));
                    parts.push(format!("tenant={tenant}"));
                }
            }
        }
        self.state(&self.map.set(cgroup, &parts)?)
    }

    /// Removes the quota of a cgroup.
    ///
    /// # Errors
    /// If it has none.
    pub fn remove(&self, cgroup: &str) -> Result<(), QuotaError> {
        Ok(self.map.remove(cgroup)?)
    }

    /// Removes the quotas of cgroups that are gone. A service has a new cgroup at each start, under the same path.
    fn forget_gone(&self) -> Result<(), QuotaError> {
        for entry in self.map.list()? {
            // One without a path is named by its number.
            if !entry.key.starts_with('/') {
                self.map.remove(&entry.key)?;
            }
        }
        Ok(())
    }

    /// The number by which a cgroup's blocks are accounted: its own, or one that no other has. Rather one without blocks that
    /// a former cgroup has left.
    fn tenant_of(&self, cgroup: &str) -> Result<u64, QuotaError> {
        if let Ok(entry) = self.map.get(cgroup)
            && let own @ 1.. = self.state(&entry)?.tenant
        {
            return Ok(own);
        }
        let others = self.list()?;
        let is_free = |tenant: &u64| others.iter().all(|other| other.tenant != *tenant);
        let free = (1..u64::from(TENANTS)).filter(is_free);
        free.min_by_key(|tenant| (self.used_by(*tenant), *tenant))
            .ok_or(QuotaError::TooMany(TENANTS - 1))
    }

    fn used_by(&self, tenant: u64) -> u64 {
        let used = usize::try_from(tenant)
            .ok()
            .and_then(|tenant| self.used.get(tenant));
        used.copied().unwrap_or(0)
    }

    fn state(&self, entry: &OwnEntry) -> Result<QuotaState, QuotaError> {
        let field = |name| {
            let value = entry.value_json.get(name).and_then(Value::as_u64);
            value.ok_or(QuotaError::Layout(name))
        };
        let tenant = field("tenant")?;
        Ok(QuotaState {
            cgroup: entry.key.clone(),
            iops: field("iops")?,
            bandwidth: field("bandwidth")?,
            cache_blocks: field("cache_blocks")?,
            tenant,
            used_blocks: if tenant == 0 { 0 } else { self.used_by(tenant) },
            delayed: field("delayed")?,
            refused: field("refused")?,
        })
    }
}
