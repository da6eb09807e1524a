//! Policy `{name}`: promotes a block when it is read a second time, and keeps large reads out of the cache.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Array, Decision, Priority, Request, map, policy, reasons};

reasons! {
    /// Reasons that `ublk-bpf stats` names.
    enum Why {
        /// The read is larger than the limit.
        LargeRead = 1,
    }
}

map! {
    /// What the administrator sets: `ublk-bpf policy map ID limits set 0 largest_read=64K`.
    static LIMITS: Array<Limits, 1> = "limits";
}

/// A structure, so that commands print its fields by name.
#[repr(C)]
#[derive(Clone, Copy)]
struct Limits {
    /// Reads of more bytes are not promoted; 0: no limit.
    largest_read: u64,
}

fn decide(request: &Request) -> Decision {
    if !request.is_read() {
        return Decision::pass();
    }
    if request.is_cached() {
        return Decision::hit();
    }
    let limit = LIMITS.get(0).map_or(0, |limits| limits.largest_read);
    if limit != 0 && u64::from(request.nr_sectors) * 512 > limit {
        return Decision::pass().because(Why::LargeRead).cold();
    }
    if request.heat > 0 {
        return Decision::pass().promote(Priority::Normal);
    }
    Decision::pass()
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::testkit::{Kit, Trace, clear_maps};

    #[test]
    fn the_second_read_promotes() {
        clear_maps();
        let report = Kit::new(decide).run(&Trace::new().read(0, 8).read(0, 8).read(0, 8));
        assert_eq!((report.hits, report.misses), (1, 2), "{report}");
    }

    #[test]
    fn large_reads_stay_out_of_the_cache() {
        clear_maps();
        assert!(LIMITS.set(0, &Limits { largest_read: 4096 }));
        let report = Kit::new(decide).run(&Trace::new().read(0, 16).read(0, 16).read(0, 16));
        assert_eq!((report.hits, report.promoted), (0, 0), "{report}");
        assert_eq!(report.by_code(Why::LargeRead as u8), 3);
    }
}
