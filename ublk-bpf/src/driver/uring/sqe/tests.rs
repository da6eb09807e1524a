//! What each entry looks like to the kernel.

use super::*;
use crate::queue::{Staging, Tier};

const WAYS: RingOps = RingOps {
    block_discard: false,
    zero_range: true,
};

/// An entry's fields at the offsets of `struct io_uring_sqe`.
#[derive(Debug, PartialEq, Eq)]
struct Fields {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    len: u32,
    op_flags: u32,
    user_data: u64,
    buf: u16,
    rest: [u8; 22],
}

fn fields(entry: &Entry) -> Fields {
    // SAFETY: an entry is 64 initialised bytes, see `into_multishot`.
    let b = unsafe { &*std::ptr::from_ref(entry).cast::<[u8; 64]>() };
    let u16_at = |at: usize| u16::from_ne_bytes(b[at..at + 2].try_into().unwrap());
    let u32_at = |at: usize| u32::from_ne_bytes(b[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_ne_bytes(b[at..at + 8].try_into().unwrap());
    Fields {
        opcode: b[0],
        flags: b[1],
        ioprio: u16_at(2),
        fd: i32::from_ne_bytes(b[4..8].try_into().unwrap()),
        off: u64_at(8),
        addr: u64_at(16),
        len: u32_at(24),
        op_flags: u32_at(28),
        user_data: u64_at(32),
        buf: u16_at(40),
        rest: b[42..64].try_into().unwrap(),
    }
}

fn place(buffer: u16, skip: u32, index: Option<u16>) -> Place {
    Place {
        address: (usize::from(buffer) * 0x1000 + skip as usize) as *mut u8,
        index,
    }
}

fn executor_of(io: Io, ops: RingOps) -> Executor {
    executor(
        7,
        io,
        ops,
        |buffer, skip| place(buffer, skip, None),
        std::ptr::null,
    )
}

fn operation_fields(io: Io, ops: RingOps) -> Fields {
    match executor_of(io, ops) {
        Executor::Ring(entry) => fields(&entry),
        other @ (Executor::Copy(_) | Executor::Timer(_)) => {
            panic!("{other:?} is not an operation of the ring")
        }
    }
}

/// A registered file, no modifiers, everything else zero.
fn plain(opcode: u8, fd: i32) -> Fields {
    Fields {
        opcode,
        flags: 1,
        ioprio: 0,
        fd,
        off: 0,
        addr: 0,
        len: 0,
        op_flags: 0,
        user_data: 7,
        buf: 0,
        rest: [0; 22],
    }
}

fn with_command_area(area: &[u8]) -> [u8; 22] {
    // The command area starts at byte 48; `rest` at 42.
    let mut rest = [0; 22];
    rest[6..6 + area.len()].copy_from_slice(area);
    rest
}

#[test]
fn data_moves_between_the_registered_buffer_of_the_tag_and_the_backing() {
    let read = Io::Read {
        from: Tier::Backing,
        offset: 4096,
        at: 512,
        len: 1024,
    };
    let expected = Fields {
        off: 4096,
        addr: 512,
        len: 1024,
        buf: 7,
        ..plain(4, 1)
    };
    assert_eq!(operation_fields(read, WAYS), expected);
    let write = |durable| Io::Write {
        to: Tier::Backing,
        offset: 4096,
        at: 512,
        len: 1024,
        durable,
    };
    let expected = |op_flags| Fields {
        off: 4096,
        addr: 512,
        len: 1024,
        buf: 7,
        op_flags,
        ..plain(5, 1)
    };
    assert_eq!(operation_fields(write(false), WAYS), expected(0));
    assert_eq!(operation_fields(write(true), WAYS), expected(2));
    let zero = Io::Zero { at: 512, len: 1024 };
    assert_eq!(
        operation_fields(zero, WAYS),
        Fields {
            addr: 512,
            len: 1024,
            buf: 7,
            ..plain(4, 2)
        }
    );
}

#[test]
fn registered_buffers_are_named_by_their_place_in_the_table() {
    let of = |io| {
        fields(&fill(FillBuffer(2), io, |buffer, skip| {
            place(buffer, skip, Some(9))
        }))
    };
    let user_data = Tagged::Fill(2).pack();
    let (offset, skip, len) = (1 << 20, 4096, 512);
    let fixed = |opcode, fd| Fields {
        off: offset,
        addr: 0x3000,
        len,
        user_data,
        buf: 9,
        ..plain(opcode, fd)
    };
    assert_eq!(of(FillIo::Load { offset, skip, len }), fixed(4, 1));
    assert_eq!(of(FillIo::Store { offset, skip, len }), fixed(5, 4));
}

#[test]
fn staging_buffers_are_ordinary_memory() {
    let load = Io::Load {
        from: Tier::Backing,
        offset: 4096,
        staging: Staging(3),
        skip: 512,
        len: 1024,
    };
    assert_eq!(
        operation_fields(load, WAYS),
        Fields {
            off: 4096,
            addr: 0x3200,
            len: 1024,
            ..plain(22, 1)
        }
    );
    let store = Io::Store {
        to: Tier::Backing,
        offset: 4096,
        staging: Staging(3),
        skip: 0,
        len: 1024,
        durable: true,
    };
    let expected = Fields {
        off: 4096,
        addr: 0x3000,
        len: 1024,
        op_flags: 2,
        ..plain(23, 1)
    };
    assert_eq!(operation_fields(store, WAYS), expected);
}

#[test]
fn operations_without_data_use_what_the_target_supports() {
    let device = Tier::Backing;
    assert_eq!(
        operation_fields(Io::Flush { device }, WAYS),
        Fields {
            op_flags: 1,
            ..plain(3, 1)
        }
    );
    let discard = Io::Discard {
        device,
        offset: 4096,
        len: 1 << 33,
    };
    let hole = Fields {
        off: 4096,
        addr: 1 << 33,
        len: 3,
        ..plain(17, 1)
    };
    assert_eq!(operation_fields(discard, WAYS), hole);
    let block = RingOps {
        block_discard: true,
        ..WAYS
    };
    let rest = with_command_area(&(1_u64 << 33).to_ne_bytes());
    let command = Fields {
        off: 0x1200,
        addr: 4096,
        rest,
        ..plain(46, 1)
    };
    assert_eq!(operation_fields(discard, block), command);
}

#[test]
fn zeroes_keep_their_space_where_the_target_can() {
    let zeroes = |keep_allocated| Io::WriteZeroes {
        device: Tier::Backing,
        offset: 4096,
        len: 8192,
        keep_allocated,
    };
    let with_mode = |len| Fields {
        off: 4096,
        addr: 8192,
        len,
        ..plain(17, 1)
    };
    assert_eq!(operation_fields(zeroes(true), WAYS), with_mode(0x11));
    assert_eq!(operation_fields(zeroes(false), WAYS), with_mode(3));
    let without = RingOps {
        zero_range: false,
        ..WAYS
    };
    assert_eq!(operation_fields(zeroes(true), without), with_mode(3));
}

#[test]
fn user_copies_are_not_for_the_ring() {
    let copy = Io::Copy(UserCopy::Zero { at: 0, len: 512 });
    assert!(matches!(
        executor_of(copy, WAYS),
        Executor::Copy(UserCopy::Zero { at: 0, len: 512 })
    ));
}

#[test]
fn a_request_that_is_kept_ends_by_a_timer_of_its_tag() {
    let delay = Io::Delay { micros: 5000 };
    assert!(matches!(executor_of(delay, WAYS), Executor::Timer(5000)));
    let time = Timespec::from(std::time::Duration::from_micros(5000));
    let expected = Fields {
        flags: 0,
        addr: (&raw const time).expose_provenance() as u64,
        len: 1,
        user_data: 7,
        ..plain(11, -1)
    };
    assert_eq!(fields(&timer(7, &time)), expected);
}

#[test]
fn fetch_is_multishot_into_the_buffers_of_its_group() {
    let rest = with_command_area(&[3, 0, 0, 0, 0, 0, 2, 0]);
    let expected = Fields {
        flags: 1 | 1 << 5,
        off: 0xc010_7527,
        op_flags: 2,
        user_data: 1 << 32 | 1,
        buf: 1,
        rest,
        ..plain(46, 0)
    };
    assert_eq!(fields(&fetch(3, 1)), expected);
}

#[test]
fn batches_say_how_many_elements_and_where() {
    let elements = [ElemHeader::default(); 5];
    // Queue 3, flags: fall back if registering fails (1 << 2), 5 elements of 8 bytes.
    let rest = with_command_area(&[3, 0, 4, 0, 5, 0, 8, 0]);
    let addr = elements.as_ptr() as u64;
    let expected = |off, user_data, rest| Fields {
        off,
        addr,
        user_data,
        rest,
        ..plain(46, 0)
    };
    assert_eq!(
        fields(&prepare(3, &elements)),
        expected(0xc010_7525, 3 << 32, rest)
    );
    assert_eq!(
        fields(&commit(3, 2, &elements)),
        expected(0xc010_7526, 2 << 32 | 2, rest)
    );
}

#[test]
fn completions_are_known_by_what_was_submitted() {
    for tagged in [
        Tagged::Io(0xffff),
        Tagged::Fetch(1),
        Tagged::Commit(255),
        Tagged::Prepare,
        Tagged::Stop,
        Tagged::Wake,
        Tagged::Tick,
        Tagged::Fill(63),
        Tagged::Rung,
    ] {
        assert_eq!(Tagged::parse(tagged.pack()), Some(tagged));
    }
    assert_eq!(Tagged::parse(9 << 32), None);
    assert_eq!(Tagged::parse(u64::MAX), None);
}
