//! Filling the map of the policy `fault`.

use aya::maps::{Array, Map, MapData, MapError};
use ublk_bpf_abi::{FaultRange, map};

use super::causes::chain;
use super::error::PolicyError;
use super::pin::{Disk, PinDir};

/// Sets which requests of a disk the policy `fault` fails from now on. The policy must be attached.
pub fn set_fault_range(disk: &Disk, range: FaultRange) -> Result<(), PolicyError> {
    let path = PinDir::open(disk)?.policy_maps().join(map::FAULT_RANGE);
    let failed = |e: MapError| PolicyError::Access {
        map: map::FAULT_RANGE,
        detail: chain(&e),
    };
    let map = MapData::from_pin(path).map_err(failed)?;
    let mut map: Array<_, [u64; 3]> = Array::try_from(Map::Array(map)).map_err(failed)?;
    map.set(0, [range.first_sector, range.last_sector, range.ops], 0)
        .map_err(failed)
}
