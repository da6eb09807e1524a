//! The parameters of a device, as the block layer gets them.

use crate::sys::process::page_size;
use crate::sys::uapi::{
    PARAMS_BYTES, ParamBasic, ParamDiscard, ParamDmaAlign, RawParams, UBLK_ATTR_FUA, UBLK_ATTR_READ_ONLY,
    UBLK_ATTR_ROTATIONAL, UBLK_ATTR_VOLATILE_CACHE, UBLK_PARAM_TYPE_BASIC, UBLK_PARAM_TYPE_DISCARD,
    UBLK_PARAM_TYPE_DMA_ALIGN,
};

const SECTOR: u32 = 512;
/// The driver's bound on block sizes and preferred I/O sizes.
const MAX_BLOCK: u32 = 256 << 20;
/// What the driver takes where nothing is said, in bytes.
const DEFAULT_DMA_ALIGNMENT: u32 = 4;

/// The parameters of a device, as the block layer gets them.
///
/// The kernel answers each wrong value with the same EINVAL; [`Params::check`] finds it first and says which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Size in sectors of 512 bytes; a multiple of the logical block, not zero.
    pub sectors: u64,
    /// Smallest unit of I/O in bytes: a power of two, 512 to the page size.
    pub logical_block: u32,
    /// What the medium writes at once, in bytes: a power of two, from the logical block to 256 MiB.
    pub physical_block: u32,
    /// Smallest preferred I/O in bytes: a power of two up to 256 MiB, or 0: nothing to say.
    pub io_min: u32,
    /// Best I/O in bytes: likewise.
    pub io_opt: u32,
    /// Most bytes of a request: from a page to the device's `max_io_bytes`, a multiple of the logical block.
    pub max_io_bytes: u32,
    /// Reads and writes do not cross multiples of this many sectors: a multiple of the logical block, or 0: no limit.
    pub chunk_sectors: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Seeks are slow.
    pub rotational: bool,
    /// A completed write is durable only after a flush.
    pub volatile_cache: bool,
    /// A single write can be made durable; only with a volatile cache.
    pub fua: bool,
    /// Discards; `None`: not supported.
    pub discard: Option<Discard>,
    /// Most sectors of a write-zeroes; 0: not supported, and the block layer writes zeroes itself.
    pub max_write_zeroes_sectors: u32,
    /// What the address of a request's data is a multiple of, in bytes: a power of two from 2 (for 1 the block
    /// layer would put 512) to the page size.
    pub dma_alignment: u32,
}

/// What discards a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Their unit in bytes: a multiple of the logical block.
    pub granularity: u32,
    /// Most sectors of one: not zero.
    pub max_sectors: u32,
}

impl Params {
    /// A device of this many sectors with 512-byte blocks, requests of up to 1 MiB, and nothing else to say.
    pub fn new(sectors: u64) -> Self {
        Self {
            sectors,
            logical_block: SECTOR,
            physical_block: SECTOR,
            io_min: 0,
            io_opt: 0,
            max_io_bytes: 1 << 20,
            chunk_sectors: 0,
            read_only: false,
            rotational: false,
            volatile_cache: false,
            fua: false,
            discard: None,
            max_write_zeroes_sectors: 0,
            dma_alignment: DEFAULT_DMA_ALIGNMENT,
        }
    }

    /// Checks every value against the driver's rules (`ublk_validate_params`), the block layer's
    /// (`blk_validate_limits`) and sense. `device_max_io` is [`DeviceInfo::max_io_bytes`](super::DeviceInfo).
    pub fn check(&self, device_max_io: u32) -> Result<(), InvalidParams> {
        let page = u32::try_from(page_size()).unwrap_or(u32::MAX);
        self.check_blocks(page)?;
        let block_sectors = self.logical_block / SECTOR;
        if self.sectors == 0 || !self.sectors.is_multiple_of(block_sectors.into()) {
            return Err(InvalidParams::Sectors {
                sectors: self.sectors,
                logical: self.logical_block,
            });
        }
        let max_io = self.max_io_bytes;
        if max_io < page || max_io > device_max_io || !max_io.is_multiple_of(self.logical_block) {
            let logical = self.logical_block;
            return Err(InvalidParams::MaxIo {
                bytes: max_io,
                page,
                device: device_max_io,
                logical,
            });
        }
        if !self.chunk_sectors.is_multiple_of(block_sectors) {
            return Err(InvalidParams::Chunk {
                sectors: self.chunk_sectors,
                logical: self.logical_block,
            });
        }
        if self.fua && !self.volatile_cache {
            return Err(InvalidParams::FuaWithoutCache);
        }
        if let Some(discard) = &self.discard {
            discard.check(self.logical_block)?;
        }
        if !self.dma_alignment.is_power_of_two() || self.dma_alignment < 2 || self.dma_alignment > page {
            return Err(InvalidParams::DmaAlignment {
                bytes: self.dma_alignment,
                page,
            });
        }
        Ok(())
    }

    fn check_blocks(&self, page: u32) -> Result<(), InvalidParams> {
        let (logical, physical) = (self.logical_block, self.physical_block);
        if !logical.is_power_of_two() || logical < SECTOR || logical > page {
            return Err(InvalidParams::LogicalBlock { bytes: logical, page });
        }
        if !physical.is_power_of_two() || physical < logical || physical > MAX_BLOCK {
            return Err(InvalidParams::PhysicalBlock {
                bytes: physical,
                logical,
            });
        }
        for (name, bytes) in [("smallest preferred", self.io_min), ("best", self.io_opt)] {
            if bytes != 0 && (!bytes.is_power_of_two() || bytes > MAX_BLOCK) {
                return Err(InvalidParams::PreferredIo { name, bytes });
            }
        }
        Ok(())
    }

    /// The kernel's form of it, where the kernel would take it.
    pub(super) fn to_raw(self, device_max_io: u32) -> Result<RawParams, InvalidParams> {
        self.check(device_max_io)?;
        let mut raw = RawParams {
            len: PARAMS_BYTES,
            types: UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DMA_ALIGN,
            basic: self.basic(),
            dma: ParamDmaAlign {
                alignment: self.dma_alignment - 1,
                pad: [0; 4],
            },
            ..RawParams::default()
        };
        if self.discard.is_some() || self.max_write_zeroes_sectors != 0 {
            raw.types |= UBLK_PARAM_TYPE_DISCARD;
            raw.discard = ParamDiscard {
                discard_alignment: 0,
                // Refused when zero, even where there is no discard to have a granularity.
                discard_granularity: self
                    .discard
                    .map_or(self.physical_block, |discard| discard.granularity),
                max_discard_sectors: self.discard.map_or(0, |discard| discard.max_sectors),
                max_write_zeroes_sectors: self.max_write_zeroes_sectors,
                max_discard_segments: 1,
                reserved0: 0,
            };
        }
        Ok(raw)
    }

    fn basic(&self) -> ParamBasic {
        let attribute = |holds: bool, flag: u32| if holds { flag } else { 0 };
        ParamBasic {
            attrs: attribute(self.read_only, UBLK_ATTR_READ_ONLY)
                | attribute(self.rotational, UBLK_ATTR_ROTATIONAL)
                | attribute(self.volatile_cache, UBLK_ATTR_VOLATILE_CACHE)
                | attribute(self.fua, UBLK_ATTR_FUA),
            logical_bs_shift: shift(self.logical_block),
            physical_bs_shift: shift(self.physical_block),
            io_opt_shift: shift(self.io_opt),
            io_min_shift: shift(self.io_min),
            max_sectors: self.max_io_bytes / SECTOR,
            chunk_sectors: self.chunk_sectors,
            dev_sectors: self.sectors,
            virt_boundary_mask: 0,
        }
    }

    /// Parses what the kernel says of any device, which another program may have set.
    pub(super) fn parse(raw: &RawParams) -> Result<Self, MalformedParams> {
        if raw.types & UBLK_PARAM_TYPE_BASIC == 0 {
            return Err(MalformedParams::NotSet);
        }
        let basic = &raw.basic;
        let has = |flag: u32| basic.attrs & flag != 0;
        let is_set = |kind: u32| raw.types & kind != 0;
        let discard = if is_set(UBLK_PARAM_TYPE_DISCARD) {
            raw.discard
        } else {
            ParamDiscard::default()
        };
        let dma_mask = if is_set(UBLK_PARAM_TYPE_DMA_ALIGN) {
            raw.dma.alignment
        } else {
            DEFAULT_DMA_ALIGNMENT - 1
        };
        Ok(Self {
            sectors: basic.dev_sectors,
            logical_block: bytes(basic.logical_bs_shift)?,
            physical_block: bytes(basic.physical_bs_shift)?,
            io_min: preferred(basic.io_min_shift)?,
            io_opt: preferred(basic.io_opt_shift)?,
            max_io_bytes: basic
                .max_sectors
                .checked_mul(SECTOR)
                .ok_or(MalformedParams::TooLarge)?,
            chunk_sectors: basic.chunk_sectors,
            read_only: has(UBLK_ATTR_READ_ONLY),
            rotational: has(UBLK_ATTR_ROTATIONAL),
            volatile_cache: has(UBLK_ATTR_VOLATILE_CACHE),
            fua: has(UBLK_ATTR_FUA),
            discard: (discard.max_discard_sectors != 0).then_some(Discard {
                granularity: discard.discard_granularity,
                max_sectors: discard.max_discard_sectors,
            }),
            max_write_zeroes_sectors: discard.max_write_zeroes_sectors,
            dma_alignment: dma_mask.checked_add(1).ok_or(MalformedParams::TooLarge)?,
        })
    }
}

impl Discard {
    fn check(self, logical: u32) -> Result<(), InvalidParams> {
        let Self {
            granularity,
            max_sectors,
        } = self;
        if granularity == 0 || !granularity.is_multiple_of(logical) {
            return Err(InvalidParams::DiscardGranularity {
                bytes: granularity,
                logical,
            });
        }
        if u64::from(max_sectors) * u64::from(SECTOR) < u64::from(granularity) {
            return Err(InvalidParams::DiscardMax {
                sectors: max_sectors,
                granularity,
            });
        }
        Ok(())
    }
}

/// log2 of a power of two; 0 for 0, which the block layer rounds to "nothing to say".
#[expect(clippy::cast_possible_truncation, reason = "at most 31")]
fn shift(bytes: u32) -> u8 {
    bytes.checked_ilog2().unwrap_or(0) as u8
}

fn bytes(shift: u8) -> Result<u32, MalformedParams> {
    1u32.checked_shl(shift.into()).ok_or(MalformedParams::TooLarge)
}

fn preferred(shift: u8) -> Result<u32, MalformedParams> {
    if shift == 0 { Ok(0) } else { bytes(shift) }
}

/// A value that the kernel would refuse, or take without it meaning what was meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum InvalidParams {
    /// Size.
    #[error(
        "a device cannot have {sectors} sectors: a multiple of its logical block of {logical} bytes, not zero, is possible"
    )]
    Sectors { sectors: u64, logical: u32 },
    /// Logical block.
    #[error("a logical block cannot have {bytes} bytes: a power of two from 512 to {page} is possible")]
    LogicalBlock { bytes: u32, page: u32 },
    /// Physical block.
    #[error(
        "a physical block cannot have {bytes} bytes: a power of two from {logical} to 268435456 is possible"
    )]
    PhysicalBlock { bytes: u32, logical: u32 },
    /// Preferred I/O sizes.
    #[error("the {name} I/O cannot have {bytes} bytes: a power of two up to 268435456, or 0, is possible")]
    PreferredIo { name: &'static str, bytes: u32 },
    /// Largest request.
    #[error(
        "requests cannot have up to {bytes} bytes: a multiple of {logical} from {page} to the device's {device} is possible"
    )]
    MaxIo {
        bytes: u32,
        page: u32,
        device: u32,
        logical: u32,
    },
    /// Chunk.
    #[error(
        "requests cannot be cut at {sectors} sectors: a multiple of the logical block of {logical} bytes, or 0, is possible"
    )]
    Chunk { sectors: u32, logical: u32 },
    /// FUA without a cache.
    #[error("a device without a volatile cache cannot have FUA: each of its writes is durable anyway")]
    FuaWithoutCache,
    /// Granularity of discards.
    #[error(
        "discards cannot have a granularity of {bytes} bytes: a multiple of {logical}, not zero, is possible"
    )]
    DiscardGranularity { bytes: u32, logical: u32 },
    /// Largest discard.
    #[error("discards cannot have up to {sectors} sectors: they must hold one unit of {granularity} bytes")]
    DiscardMax { sectors: u32, granularity: u32 },
    /// Alignment of data.
    #[error("request data cannot be aligned to {bytes} bytes: a power of two from 2 to {page} is possible")]
    DmaAlignment { bytes: u32, page: u32 },
}

/// Parameters from the kernel that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedParams {
    /// They have not been set yet.
    #[error("the device has no parameters yet")]
    NotSet,
    /// A size that no device has.
    #[error("it names a size of 4 GiB or more for a block, an I/O or an alignment")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    fn full() -> Params {
        Params {
            logical_block: 4096,
            physical_block: 8192,
            io_min: 8192,
            io_opt: 65536,
            max_io_bytes: MIB / 2,
            chunk_sectors: 128,
            read_only: true,
            rotational: true,
            volatile_cache: true,
            fua: true,
            discard: Some(Discard {
                granularity: 65536,
                max_sectors: 1 << 20,
            }),
            max_write_zeroes_sectors: 1 << 16,
            dma_alignment: 512,
            ..Params::new(1 << 20)
        }
    }

    #[test]
    fn what_is_told_comes_back() {
        for params in [
            Params::new(8),
            full(),
            Params {
                max_write_zeroes_sectors: 9,
                ..Params::new(8)
            },
        ] {
            assert_eq!(Params::parse(&params.to_raw(MIB).unwrap()), Ok(params));
        }
    }

    #[test]
    fn each_wrong_value_is_refused_in_words() {
        let said = |change: &dyn Fn(&mut Params)| {
            let mut params = full();
            change(&mut params);
            params.check(MIB).unwrap_err().to_string()
        };
        assert!(said(&|p| p.sectors = 0).starts_with("a device cannot have 0 sectors"));
        assert!(said(&|p| p.sectors = 9).starts_with("a device cannot have 9 sectors"));
        for bytes in [0, 256, 768, 128 << 10] {
            assert!(said(&|p| p.logical_block = bytes).starts_with("a logical block cannot have"));
        }
        assert!(said(&|p| p.physical_block = 512).contains("a power of two from 4096 to 268435456"));
        assert!(said(&|p| p.physical_block = 1 << 29).starts_with("a physical block"));
        assert!(said(&|p| p.io_min = 5000).starts_with("the smallest preferred I/O cannot have 5000"));
        assert!(said(&|p| p.io_opt = 1 << 29).starts_with("the best I/O"));
        assert!(said(&|p| p.max_io_bytes = 2048).starts_with("requests cannot have up to 2048 bytes"));
        assert!(said(&|p| p.max_io_bytes = 2 * MIB).contains("to the device's 1048576 is possible"));
        assert!(said(&|p| p.chunk_sectors = 9).starts_with("requests cannot be cut at 9 sectors"));
        assert!(said(&|p| p.volatile_cache = false).contains("cannot have FUA"));
        assert!(
            said(&|p| p.discard = Some(Discard {
                granularity: 0,
                max_sectors: 1
            }))
            .contains("granularity of 0")
        );
        assert!(
            said(&|p| p.discard = Some(Discard {
                granularity: 4096,
                max_sectors: 7
            }))
            .contains("up to 7 sectors")
        );
        for bytes in [0, 1, 3, 128 << 10] {
            assert!(said(&|p| p.dma_alignment = bytes).starts_with("request data cannot be aligned"));
        }
    }

    #[test]
    fn what_the_kernel_says_is_parsed() {
        assert_eq!(Params::parse(&RawParams::default()), Err(MalformedParams::NotSet));
        let mut raw = full().to_raw(MIB).unwrap();
        raw.basic.physical_bs_shift = 32;
        assert_eq!(Params::parse(&raw), Err(MalformedParams::TooLarge));
        raw.basic.physical_bs_shift = 12;
        raw.dma.alignment = u32::MAX;
        assert_eq!(Params::parse(&raw), Err(MalformedParams::TooLarge));
    }
}
