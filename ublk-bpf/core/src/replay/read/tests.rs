use std::io::Cursor;

use ublk_bpf_abi::{Op, request_flags};

use super::*;
use crate::replay::trace::TraceRequest;
use crate::trace::{Header, TracedRequest, Writer};

const CSV: &str = "time_ms, OP, offset, bytes, pid, comm, flags\n\
    1.5,read,4096,8192,7,db,\n\
    # a comment\n\
    2,w,512,100,8,tar,sync+meta\n\
    3.25,flush,0,0,8,tar,\n";

const BLKPARSE: &str = "\
  8,0    1        1     0.000000000   697  Q   R 2048 + 16 [postgres]
  8,0    1        2     0.000000500   697  G   R 2048 + 16 [postgres]
  8,0    1        3     0.000001000   697  P   N [postgres]
  8,0    1        4     0.000002000   697  U   N [postgres] 1
  8,0    1        5     0.000010000   697  D  RM 2048 + 16 [postgres]
  8,0    0        1     0.000020000     3  D WFS 4096 + 8 [jbd2/sda 1]
  8,0    0        2     0.000030000     3  D  FN [jbd2/sda 1]
  8,0    1        6     0.000040000   697  C   R 2048 + 16 [0]
CPU0 (8,0):
 Reads Queued:           1,        8KiB
";

const FIO2: &str = "fio version 2 iolog\n/dev/sda add\n/dev/sda open\n/dev/sda read 0 4096\n\
    /dev/sda wait 1000 0\n/dev/sda write 8192 512\n/dev/sda sync\n/dev/sda trim 0 65536\n/dev/sda close\n";

const FIO3: &str = "fio version 3 iolog\n0 /dev/sda add\n1 /dev/sda open\n5 /dev/sda read 0 4096\n\
    1005 /dev/sda write 8192 512\n2000 /dev/sda datasync 0 0\n2001 /dev/sda close\n";

/// Little-endian numbers of several sizes in a row.
macro_rules! bytes {
    ($($number:expr),+) => { [$(&$number.to_le_bytes()[..]),+].concat() };
}

fn records() -> Vec<u8> {
    let record = |time: u64, sector: u64, sectors: u32, op: u32| bytes!(time, sector, sectors, op);
    [
        record(100, 8, 16, 0),
        record(150, 1 << 30, 1, 1),
        record(900, 0, 8, 0),
    ]
    .concat()
}

fn oracle() -> Vec<u8> {
    let record = |time: u32, object: u64, size: u32, next: i64| bytes!(time, object, size, next);
    [
        record(5, 64, 4096, 3),
        record(5, 128, 100, -1),
        record(9, 64, 4096, -1),
    ]
    .concat()
}

fn vscsi1() -> Vec<u8> {
    let record =
        |cmd: u16, len: u32, sector: u64, time: u64| bytes!(1u32, len, 1u32, cmd, 0x0100_u16, sector, time);
    [
        record(0x28, 4096, 8, 10),
        record(0x12, 96, 0, 11),
        record(0x2a, 512, 9, 12),
    ]
    .concat()
}

fn vscsi2() -> Vec<u8> {
    let record = |cmd: u16, len: u32, sector: u64, time: u64| {
        bytes!(cmd, 0x0200_u16, 1u32, len, 1u32, sector, time, 7u64)
    };
    [record(0x88, 4096, 8, 10), record(0x8a, 512, 9, 12)].concat()
}

fn recorded() -> Vec<u8> {
    let header = Header {
        device_sectors: 1 << 20,
        block_bytes: None,
        started_ns: 0,
        end: None,
    };
    let mut writer = Writer::new(Cursor::new(Vec::new()), header).unwrap();
    for (time_ns, sector) in [(0, 8), (2000, 16)] {
        let request = TracedRequest {
            time_ns,
            pid: 7,
            ..TracedRequest::new(Op::Read, sector, 8)
        };
        writer.push(&request).unwrap();
    }
    writer.finish(0).unwrap().into_inner()
}

fn samples() -> Vec<(TraceFormat, Vec<u8>)> {
    vec![
        (TraceFormat::UblkBpf, recorded()),
        (TraceFormat::Csv, CSV.into()),
        (TraceFormat::Blkparse, BLKPARSE.into()),
        (TraceFormat::Fio, FIO2.into()),
        (TraceFormat::Fio, FIO3.into()),
        (TraceFormat::OracleGeneral, oracle()),
        (TraceFormat::Vscsi, vscsi1()),
        (TraceFormat::Vscsi, vscsi2()),
        (TraceFormat::Records, records()),
    ]
}

fn parsed(bytes: impl AsRef<[u8]>) -> Trace {
    parse(bytes.as_ref(), &ReadOptions::default()).unwrap()
}

/// Time in microseconds, operation, sector and sectors of each request.
fn requests(trace: &Trace) -> Vec<(u64, Op, u64, u32)> {
    let tuple = |of: &TraceRequest| (of.time_ns / 1000, of.op, of.sector, of.nr_sectors);
    trace.requests().iter().map(tuple).collect()
}

fn fault(text: &str) -> String {
    parse(text.as_bytes(), &ReadOptions::default())
        .unwrap_err()
        .to_string()
}

#[test]
fn each_format_is_recognised_by_its_content() {
    for (format, bytes) in samples() {
        assert_eq!(TraceFormat::of(&bytes), Some(format));
    }
}

#[test]
fn csv_has_the_columns_that_it_names() {
    let trace = parsed(CSV);
    let expected = [
        (0, Op::Read, 8, 16),
        (500, Op::Write, 1, 1),
        (1750, Op::Flush, 0, 0),
    ];
    assert_eq!(requests(&trace), expected);
    let write = trace.requests()[1];
    assert_eq!(write.flags, request_flags::SYNC | request_flags::META);
    assert_eq!(
        trace.tasks()[write.task as usize],
        crate::replay::Task::new(8, "tar", 0)
    );
    let sectors = parsed("sectors,sector,else\n8,16,x\n");
    assert_eq!(requests(&sectors), [(0, Op::Read, 16, 8)]);
}

#[test]
fn blkparse_counts_what_was_issued_to_the_device() {
    let trace = parsed(BLKPARSE);
    let expected = [
        (0, Op::Read, 2048, 16),
        (10, Op::Write, 4096, 8),
        (20, Op::Flush, 0, 0),
    ];
    assert_eq!(requests(&trace), expected);
    assert_eq!(trace.requests()[0].flags, request_flags::META);
    assert_eq!(
        trace.requests()[1].flags,
        request_flags::FUA | request_flags::SYNC
    );
    assert_eq!(trace.tasks()[2].comm, *b"jbd2/sda 1\0\0\0\0\0\0");
    let queued = BLKPARSE.replace(" D ", " M ");
    assert_eq!(requests(&parsed(queued)), [(0, Op::Read, 2048, 16)]);
}

#[test]
fn fio_logs_of_both_versions_have_times() {
    let first = [(0, Op::Read, 0, 8), (1000, Op::Write, 16, 1)];
    assert_eq!(requests(&parsed(FIO2))[..2], first);
    assert_eq!(requests(&parsed(FIO3))[..2], first);
    assert_eq!(requests(&parsed(FIO2))[3].1, Op::Discard);
    assert_eq!(requests(&parsed(FIO3))[2], (1995, Op::Flush, 0, 0));
}

#[test]
fn binary_formats_are_read_field_by_field() {
    let second = 1_000_000;
    let found = requests(&parsed(records()));
    assert_eq!(
        found,
        [
            (0, Op::Read, 8, 16),
            (50, Op::Write, 1 << 30, 1),
            (800, Op::Read, 0, 8)
        ]
    );
    let found = requests(&parsed(oracle()));
    assert_eq!(
        found,
        [
            (0, Op::Read, 64, 8),
            (2 * second, Op::Read, 128, 1),
            (4 * second, Op::Read, 64, 8)
        ]
    );
    for bytes in [vscsi1(), vscsi2()] {
        assert_eq!(
            requests(&parsed(bytes)),
            [(0, Op::Read, 8, 8), (2, Op::Write, 9, 1)]
        );
    }
    let trace = parsed(recorded());
    assert_eq!(requests(&trace), [(0, Op::Read, 8, 8), (2, Op::Read, 16, 8)]);
    assert_eq!(trace.tasks()[1].pid, 7);
}

#[test]
fn page_lists_must_be_named() {
    let bytes = [7u32.to_be_bytes(), 9u32.to_be_bytes()].concat();
    assert!(parse(&bytes, &ReadOptions::default()).is_err());
    let options = ReadOptions {
        format: Some(TraceFormat::Pages),
        unit: Some(1024),
        rate: 1000,
    };
    let trace = parse(&bytes, &options).unwrap();
    assert_eq!(requests(&trace), [(0, Op::Read, 14, 2), (1000, Op::Read, 18, 2)]);
}

#[test]
fn a_fault_says_where_and_what() {
    assert_eq!(
        fault("sector,bytes\n1,2\n3\n"),
        "line 3: wanted 2 values, as there are columns, found 1"
    );
    assert_eq!(
        fault("sector,bytes\n1,-2\n"),
        "line 2: wanted a number of bytes, a whole number, found \"-2\""
    );
    assert_eq!(
        fault("sector,bytes\n1,0\n"),
        "line 2: wanted a request that a device can get, found a read of 0 sectors"
    );
    assert_eq!(
        fault("fio version 3 iolog\n5 x jump 1 2\n"),
        "line 2: wanted an action of fio, found \"jump\""
    );
    let two = BLKPARSE.replacen("8,0    0", "8,16   0", 1);
    assert_eq!(fault(&two), "line 6: wanted device 8,0, found 8,16");
    let cut = &records()[..60];
    let error = parse(cut, &ReadOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "byte 48: wanted a record of 24 bytes, found the last 12");
}

#[test]
fn what_is_no_trace_is_named() {
    assert!(fault("").contains("an empty file"));
    assert!(fault("root:x:0:0\n").contains("text that starts with \"root:x:0:0\""));
    assert!(fault("\u{fffd}\0\0\0").contains("--format"));
    let error = parse(b"\xfd7zXZ\0\0", &ReadOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("xz -dk"), "{error}");
}

/// xorshift64.
fn next(random: &mut u64) -> usize {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    usize::try_from(*random >> 33).unwrap()
}

/// Damages every sample at random, with fixed seeds. Whatever is read of it must be possible, and a fault one line.
#[test]
fn a_damaged_trace_is_read_or_refused() {
    let mut random = 0x9e37_79b9_7f4a_7c15;
    let mut refused = 0;
    for (format, good) in samples() {
        for _ in 0..2000 {
            let mut bytes = good.clone();
            for _ in 0..=next(&mut random) % 3 {
                let at = next(&mut random) % bytes.len();
                match next(&mut random) % 4 {
                    0 => bytes.truncate(at + 1),
                    1 => bytes[at] ^= 1 << (next(&mut random) % 8),
                    2 => bytes[at] = b"09 ,\n\xff\x00-"[next(&mut random) % 8],
                    _ => bytes.extend_from_within(..=at),
                }
            }
            for format in [None, Some(format)] {
                let options = ReadOptions {
                    format,
                    ..ReadOptions::default()
                };
                match parse(&bytes, &options) {
                    Ok(trace) => check(&trace),
                    Err(fault) => {
                        refused += 1;
                        assert!(!fault.to_string().contains(['\n', '\0']), "{fault}");
                    }
                }
            }
        }
    }
    assert!(refused > 5000, "{refused}");
}

fn check(trace: &Trace) {
    let mut latest = 0;
    for request in trace.requests() {
        assert!(request.time_ns >= latest && (request.task as usize) < trace.tasks().len());
        assert!(request.nr_sectors > 0 || !request.has_data());
        assert!(request.end() <= 1 << 54);
        latest = request.time_ns;
    }
}
