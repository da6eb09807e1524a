//! Policy `writeback-for-database`: the writes of chosen cgroups end in the cache, all others on the backing device.
//!
//! The map `databases` has an entry for each such cgroup, by ID (`stat -c %i /sys/fs/cgroup/NAME`):
//!
//! | write | ends |
//! |---|---|
//! | of a chosen cgroup | in the cache alone |
//! | the same, if the entry says `sync_only` and no task waits for it (neither SYNC nor FUA) | on the backing alone |
//! | the same, if more of the cache is dirty than the entry allows | on both devices |
//! | of what is dirty already | in the cache, whoever writes |
//! | any other | on the backing alone |
//!
//! Cached blocks are served from the cache, and a block is promoted on its second read.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Op, Priority, Request, Table, Verdict, cache_view, current, map, policy};

/// Reason code for writes of a chosen cgroup that end in the cache.
const CODE_BACK: u8 = 1;
/// Reason code for those that do not, because too much is dirty.
const CODE_FULL: u8 = 2;
/// Reason code for all other writes.
const CODE_REST: u8 = 3;

map! {
    /// The chosen cgroups by ID.
    static DATABASES: Table<u64, Database, 1024> = "databases";
}

cache_view! {
    /// The device's cache.
    static CACHE;
}

/// What a cgroup may do.
#[repr(C)]
#[derive(Clone, Copy)]
struct Database {
    /// 1: only writes that a task waits for end in the cache. 0: all.
    sync_only: u32,
    /// Thousandths of the cache that may be dirty for that; 0: as much as the server allows.
    dirty_per_mille: u32,
}

impl Database {
    #[inline(always)]
    fn wants(self, request: &Request) -> bool {
        self.sync_only == 0 || request.is_sync() || request.is_fua()
    }

    #[inline(always)]
    fn is_full(self) -> bool {
        self.dirty_per_mille != 0 && CACHE.dirty_per_mille() >= self.dirty_per_mille
    }
}

fn decide(request: &Request) -> Decision {
    match request.op() {
        Op::Read if request.is_cached() => Decision::hit(),
        Op::Read if request.heat > 0 => Decision::pass().promote(Priority::Normal),
        Op::Write => write(request),
        _ => Decision::pass(),
    }
}

fn write(request: &Request) -> Decision {
    let passes = |code| Decision::coded(Verdict::Passthrough, code);
    match DATABASES.get(&current::cgroup_id()) {
        Some(database) if database.wants(request) => {
            if database.is_full() {
                passes(CODE_FULL).through()
            } else {
                passes(CODE_BACK).back()
            }
        }
        _ => passes(CODE_REST).around(),
    }
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::request_flags::{FUA, SYNC};
    use ublk_bpf_policy::testkit::{Kit, Report, Trace, clear_maps};

    const DATABASE: u64 = 77;
    const OTHER: u64 = 78;
    /// Sectors of a cache block.
    const BLOCK: u64 = 128;

    /// A device whose cache writes back, and the rules of the database.
    fn kit(sync_only: u32, dirty_per_mille: u32) -> Kit {
        clear_maps();
        let database = Database {
            sync_only,
            dirty_per_mille,
        };
        assert!(DATABASES.insert(&DATABASE, &database));
        Kit::new(decide).cache_blocks(100).write_back()
    }

    fn codes(report: &Report) -> [u64; 3] {
        [CODE_BACK, CODE_FULL, CODE_REST].map(|code| report.by_code(code))
    }

    #[test]
    fn only_the_databases_writes_end_in_the_cache() {
        let mut kit = kit(0, 0);
        let database = Trace::new().as_task(1, "postgres", DATABASE).write(0, 16);
        let other = Trace::new()
            .as_task(2, "cp", OTHER)
            .sequential_writes(10 * BLOCK, 100 * BLOCK);
        let report = kit.run(&database.then(other));
        assert_eq!((report.absorbed, codes(&report)), (1, [1, 0, 100]), "{report}");
        assert!(kit.is_dirty(0) && kit.is_dirty(15) && !kit.is_dirty(10 * BLOCK));
        // There is one newest copy of what is dirty, whoever writes it.
        let report = kit.run(&Trace::new().as_task(2, "cp", OTHER).write(0, 8));
        assert_eq!((report.absorbed, codes(&report)), (1, [0, 0, 1]), "{report}");
    }

    #[test]
    fn writes_that_nothing_waits_for_may_go_around() {
        let writes = || {
            [0, SYNC, FUA].into_iter().fold(Trace::new(), |trace, flags| {
                let sector = u64::from(flags) * BLOCK;
                trace
                    .as_task(1, "postgres", DATABASE)
                    .with_flags(flags)
                    .write(sector, 8)
            })
        };
        for (sync_only, absorbed) in [(0, 3), (1, 2)] {
            let report = kit(sync_only, 0).run(&writes());
            assert_eq!(report.absorbed, absorbed, "{report}");
        }
    }

    #[test]
    fn a_database_keeps_to_its_share_of_the_cache() {
        let mut kit = kit(0, 100);
        let write = |block: u64| {
            Trace::new()
                .as_task(1, "postgres", DATABASE)
                .write(block * BLOCK, 8)
        };
        let report = kit.run(&(0..12).fold(Trace::new(), |trace, block| trace.then(write(block))));
        assert_eq!((report.absorbed, codes(&report)), (10, [10, 2, 0]), "{report}");
        assert!(kit.is_dirty(9 * BLOCK) && !kit.is_dirty(10 * BLOCK));
    }

    #[test]
    fn what_was_written_is_read_from_the_cache() {
        let mut kit = kit(0, 0);
        let task = || Trace::new().as_task(1, "postgres", DATABASE);
        let report = kit.run(
            &task()
                .write(0, 8)
                .read(0, 8)
                .read(BLOCK, 8)
                .read(BLOCK, 8)
                .read(BLOCK, 8),
        );
        assert_eq!(
            (report.hits, report.misses, report.promoted),
            (2, 2, 1),
            "{report}"
        );
    }
}
