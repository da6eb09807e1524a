use std::io::Cursor;

use proptest::prelude::*;
use ublk_bpf_abi::{Op, Reason, Verdict, hint};

use super::*;

const SECTORS: u64 = 1 << 21;

fn header() -> Header {
    Header {
        device_sectors: SECTORS,
        block_bytes: Some(65536),
        started_ns: 1_700_000_000_000_000_000,
        end: None,
    }
}

/// A trace of these requests, ended or not.
fn written(requests: &[TracedRequest], dropped: Option<u64>) -> Vec<u8> {
    let mut writer = Writer::new(Cursor::new(Vec::new()), header()).expect("a header");
    for request in requests {
        writer.push(request).expect("pushed");
    }
    let mut file = writer
        .finish(dropped.unwrap_or(0))
        .expect("finished")
        .into_inner();
    if dropped.is_none() {
        file[40..48].fill(0xff);
    }
    file
}

fn read(bytes: &[u8]) -> Result<(Header, Vec<TracedRequest>), TraceError> {
    let reader = Reader::new(bytes)?;
    let header = *reader.header();
    Ok((header, reader.collect::<Result<_, _>>()?))
}

fn error(bytes: &[u8]) -> String {
    read(bytes).expect_err("a damaged trace").to_string()
}

fn requests() -> Vec<TracedRequest> {
    (0..3)
        .map(|i| TracedRequest {
            time_ns: i * 1000,
            pid: 7,
            comm: *b"fio\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ..TracedRequest::new(Op::Read, i * 8, 8)
        })
        .collect()
}

prop_compose! {
    fn any_request()(
        time_ns: u64,
        sector in 0..SECTORS - 1024,
        nr_sectors in 1..=1024_u32,
        kinds in (0..Op::COUNT, 0..Verdict::COUNT, 0..Reason::COUNT),
        hints in any::<u8>().prop_filter("they mean something", |&hints| hint::is_defined(hints)),
        flags in 0..64_u16,
        ids: (u16, u16, u32, u32, u64),
        name in "[a-z]{0,15}",
    ) -> TracedRequest {
        let (ioprio, qid, pid, tgid, cgroup_id) = ids;
        let (op, verdict, reason) = (Op::ALL[kinds.0], Verdict::ALL[kinds.1], Reason::ALL[kinds.2]);
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(name.as_bytes());
        TracedRequest {
            time_ns, sector, nr_sectors, op, verdict, reason, hints, flags, ioprio, pid, tgid, comm, cgroup_id, qid,
        }
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(requests in prop::collection::vec(any_request(), 0..20), dropped: u64) {
        let (found, all) = read(&written(&requests, Some(dropped))).expect("a trace");
        let recorded = requests.len() as u64;
        prop_assert_eq!(found, Header { end: Some(End { recorded, dropped }), ..header() });
        prop_assert_eq!(all, requests);
    }

    #[test]
    fn any_bytes_give_requests_or_an_error(at in 0..256_usize, bytes: [u8; 8]) {
        let mut trace = written(&requests(), Some(0));
        trace.splice(at..(at + 8).min(trace.len()), bytes);
        if let Ok((header, requests)) = read(&trace) {
            let on_device = |of: &TracedRequest| of.sector + u64::from(of.nr_sectors) <= header.device_sectors;
            prop_assert!(requests.iter().all(|of| of.nr_sectors == 0 || on_device(of)));
        }
    }
}

#[test]
fn a_recording_that_did_not_end_has_its_whole_records() {
    let mut trace = written(&requests(), None);
    trace.truncate(trace.len() - 1);
    let (header, found) = read(&trace).expect("a trace");
    assert_eq!(header.end, None);
    assert_eq!(found, requests()[..2]);
}

#[test]
fn a_file_of_another_length_is_refused() {
    let whole = written(&requests(), Some(5));
    assert_eq!(
        error(&whole[..whole.len() - 1]),
        "has only 2, and its header says 3 records: copy or record it again"
    );
    let longer = [whole, vec![0]].concat();
    assert!(error(&longer).contains("has more data, and its header says 3 records"));
}

#[test]
fn every_field_of_the_header_is_checked() {
    let damaged = |at: usize, value: u8| {
        let mut trace = written(&requests(), None);
        trace[at] = value;
        error(&trace)
    };
    assert!(damaged(0, b'#').starts_with("not a trace of ublk-bpf"));
    assert!(error(b"short").starts_with("not a trace of ublk-bpf"));
    assert!(damaged(8, 2).contains("format version 2, and this ublk-bpf reads version 1"));
    assert!(damaged(12, 63).contains("records of 63 bytes"));
    assert!(damaged(18, 0).contains("a device of 0 sectors"));
    assert!(damaged(24, 1).contains("cache blocks of 65537 bytes"));
    for reserved in [28, 48, 56] {
        assert!(
            damaged(reserved, 1).contains("a reserved field is not 0"),
            "{reserved}"
        );
    }
}

#[test]
fn every_field_of_a_record_is_checked() {
    let damaged = |at: usize, value: u8| {
        let mut trace = written(&requests(), Some(0));
        trace[HEADER_BYTES + RECORD_BYTES + at] = value;
        let text = error(&trace);
        assert!(text.starts_with("record 2 is damaged: "), "{text}");
        text
    };
    assert!(damaged(10, 0x20).contains("8 sectors from 2097160 on a device of 2097152"));
    assert!(damaged(15, 0xff).contains("8 sectors from"));
    assert!(damaged(16, 0).contains("a read of 0 sectors"));
    assert!(damaged(20, 6).contains("unknown operation 6"));
    assert!(damaged(21, 9).contains("unknown verdict 9"));
    assert!(damaged(22, 8).contains("unknown reason 8"));
    assert!(damaged(23, 0x80).contains("hints 0x80"));
    assert!(damaged(24, 0x40).contains("flags 0x0040"));
    assert!(damaged(38, 1).contains("the reserved field is not 0"));
    assert!(damaged(63, 1).contains("a task's name that does not end"));
}
