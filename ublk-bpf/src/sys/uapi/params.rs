//! The parameters of a device (`SET_PARAMS`, `GET_PARAMS`).

use std::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`ParamBasic::attrs`]: writes are refused.
pub const UBLK_ATTR_READ_ONLY: u32 = 1 << 0;
/// [`ParamBasic::attrs`]: seeks are slow.
pub const UBLK_ATTR_ROTATIONAL: u32 = 1 << 1;
/// [`ParamBasic::attrs`]: a completed write is durable only after a flush.
pub const UBLK_ATTR_VOLATILE_CACHE: u32 = 1 << 2;
/// [`ParamBasic::attrs`]: single writes can be made durable. Without a volatile cache it means nothing.
pub const UBLK_ATTR_FUA: u32 = 1 << 3;

/// [`RawParams::basic`] is set.
pub const UBLK_PARAM_TYPE_BASIC: u32 = 1 << 0;
/// [`RawParams::discard`] is set.
pub const UBLK_PARAM_TYPE_DISCARD: u32 = 1 << 1;
/// [`RawParams::devt`] is set, by the kernel only.
pub const UBLK_PARAM_TYPE_DEVT: u32 = 1 << 2;
/// [`RawParams::zoned`] is set.
pub const UBLK_PARAM_TYPE_ZONED: u32 = 1 << 3;
/// [`RawParams::dma`] is set.
pub const UBLK_PARAM_TYPE_DMA_ALIGN: u32 = 1 << 4;
/// [`RawParams::seg`] is set.
pub const UBLK_PARAM_TYPE_SEGMENT: u32 = 1 << 5;
/// [`RawParams::integrity`] is set.
pub const UBLK_PARAM_TYPE_INTEGRITY: u32 = 1 << 6;

/// `struct ublk_param_basic`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamBasic {
    /// `UBLK_ATTR_*`.
    pub attrs: u32,
    /// log2 of the logical block size in bytes.
    pub logical_bs_shift: u8,
    /// log2 of the physical block size in bytes.
    pub physical_bs_shift: u8,
    /// log2 of the optimal I/O size in bytes.
    pub io_opt_shift: u8,
    /// log2 of the smallest preferred I/O size in bytes.
    pub io_min_shift: u8,
    /// Most sectors of a request.
    pub max_sectors: u32,
    /// Reads and writes do not cross multiples of this many sectors; 0: no such limit.
    pub chunk_sectors: u32,
    /// The device's size in sectors.
    pub dev_sectors: u64,
    /// Mask of addresses that a data segment must not cross; 0: none.
    pub virt_boundary_mask: u64,
}

/// `struct ublk_param_discard`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamDiscard {
    /// Offset in bytes of the first discardable unit.
    pub discard_alignment: u32,
    /// Smallest unit of discards in bytes; not 0.
    pub discard_granularity: u32,
    /// Most sectors of a discard; 0: discards are not supported.
    pub max_discard_sectors: u32,
    /// Most sectors of a write-zeroes; 0: not supported.
    pub max_write_zeroes_sectors: u32,
    /// 1, where discards are supported.
    pub max_discard_segments: u16,
    /// Zero.
    pub reserved0: u16,
}

/// `struct ublk_param_devt`: device numbers, filled in by the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamDevt {
    /// Of `/dev/ublkcN`.
    pub char_major: u32,
    /// Of `/dev/ublkcN`.
    pub char_minor: u32,
    /// Of `/dev/ublkbN`; 0 before it starts.
    pub disk_major: u32,
    /// Of `/dev/ublkbN`; 0 before it starts.
    pub disk_minor: u32,
}

/// `struct ublk_param_zoned`: not used here, but part of the layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamZoned {
    /// Most open zones.
    pub max_open_zones: u32,
    /// Most active zones.
    pub max_active_zones: u32,
    /// Most sectors of a zone append.
    pub max_zone_append_sectors: u32,
    /// Zero.
    pub reserved: [u8; 20],
}

/// `struct ublk_param_dma_align`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamDmaAlign {
    /// Mask (a power of two less one) that the address of a request's data is aligned to.
    pub alignment: u32,
    /// Zero.
    pub pad: [u8; 4],
}

/// `struct ublk_param_segment`: not used here, but part of the layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamSegment {
    /// Mask of addresses that a segment must not cross.
    pub seg_boundary_mask: u64,
    /// Most bytes of a segment.
    pub max_segment_size: u32,
    /// Most segments of a request.
    pub max_segments: u16,
    /// Zero.
    pub pad: [u8; 2],
}

/// `struct ublk_param_integrity`: not used here, but part of the layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParamIntegrity {
    /// `LBMD_PI_CAP_*`.
    pub flags: u32,
    /// Most segments of integrity data.
    pub max_integrity_segments: u16,
    /// log2 of the data bytes that one tuple covers.
    pub interval_exp: u8,
    /// Bytes of metadata for each interval.
    pub metadata_size: u8,
    /// Where the tuple is in the metadata.
    pub pi_offset: u8,
    /// `LBMD_PI_CSUM_*`.
    pub csum_type: u8,
    /// Bytes of the application's tag.
    pub tag_size: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// `struct ublk_params`: the parameters of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RawParams {
    /// Bytes of this struct that count.
    pub len: u32,
    /// `UBLK_PARAM_TYPE_*`: which of the members below count.
    pub types: u32,
    /// Always set.
    pub basic: ParamBasic,
    /// Discard and write-zeroes.
    pub discard: ParamDiscard,
    /// Device numbers.
    pub devt: ParamDevt,
    /// Zones.
    pub zoned: ParamZoned,
    /// Alignment of data.
    pub dma: ParamDmaAlign,
    /// The padding that C inserts here; zero.
    pub padding: [u8; 4],
    /// Limits of segments.
    pub seg: ParamSegment,
    /// Integrity metadata.
    pub integrity: ParamIntegrity,
}

/// Bytes of [`RawParams`].
#[expect(clippy::cast_possible_truncation, reason = "152, asserted below")]
pub const PARAMS_BYTES: u32 = size_of::<RawParams>() as u32;

const _: () = {
    assert!(size_of::<ParamBasic>() == 32);
    assert!(size_of::<ParamDiscard>() == 20);
    assert!(size_of::<ParamDevt>() == 16);
    assert!(size_of::<ParamZoned>() == 32);
    assert!(size_of::<ParamDmaAlign>() == 8);
    assert!(size_of::<ParamSegment>() == 16);
    assert!(size_of::<ParamIntegrity>() == 16);
    assert!(size_of::<RawParams>() == 152);
    assert!(offset_of!(RawParams, seg) == 120);
};
