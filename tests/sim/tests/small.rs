//! Small histories in any world, so that one that breaks a promise is shrunk to the smallest that does.

use proptest::prelude::*;

use sim_tests::{CacheWorld, RunOptions, World, run};
use ublk_bpf::cache::Mode;
use ublk_bpf::cache::evict::Algorithm;
use ublk_bpf::queue::{Backing, Capabilities};

fn backings() -> impl Strategy<Value = Backing> {
    let storage =
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(volatile_cache, discard, write_zeroes)| {
            Backing::Storage(Capabilities {
                volatile_cache,
                discard,
                write_zeroes,
            })
        });
    prop_oneof![9 => storage, 1 => any::<bool>().prop_map(|filled| Backing::Null { filled })]
}

fn caches() -> impl Strategy<Value = Option<CacheWorld>> {
    let kinds = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let fills = (0_u16..1001, 1_u16..5, 20_u16..1001);
    (kinds, 12_u32..17, 1_u32..8, 0_u16..1001, fills).prop_map(
        |((is_there, through, clock, limited), shift, slots, promote, (fill, fill_buffers, fill_pace))| {
            is_there.then_some(CacheWorld {
                shift,
                slots,
                mode: if through {
                    Mode::WriteThrough
                } else {
                    Mode::WriteAround
                },
                algorithm: if clock {
                    Algorithm::Clock
                } else {
                    Algorithm::Adaptive
                },
                rate: limited.then_some(1 << 20),
                promote,
                fill,
                fill_buffers,
                fill_pace,
            })
        },
    )
}

fn worlds() -> impl Strategy<Value = World> {
    let sizes = (
        1_u16..20,
        prop_oneof![Just(512_u32), Just(4096)],
        1_u16..40,
        1_u16..10,
        1_u16..4,
        1_u16..6,
        1_u16..300,
    );
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let rates = (
        0_u16..500,
        0_u16..300,
        0_u16..100,
        0_u16..1000,
        0_u16..1000,
        0_u16..100,
        0_u16..2000,
    );
    let others = (1_u8..3, 9_u32..17, caches());
    (sizes, backings(), flags, rates, others).prop_map(
        |(sizes, backing, flags, rates, (queues, written_shift, cache))| World {
            queues,
            depth: sizes.0,
            logical_block: sizes.1,
            blocks: sizes.2,
            most_blocks: sizes.3,
            staging_buffers: sizes.4,
            staging_blocks: sizes.5,
            fetch_room: sizes.6,
            backing,
            read_only: flags.0,
            lossy: flags.1,
            prefilled: flags.2,
            written_shift,
            reissue: flags.3,
            io_faults: rates.0,
            fetch_faults: rates.1,
            commit_faults: rates.2,
            register_faults: rates.3,
            verdict_faults: rates.4,
            bad_requests: rates.5,
            ends: rates.6,
            cache: cache.filter(|_| matches!(backing, Backing::Storage(_))),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_small_history_breaks_a_promise(world in worlds(), seed in any::<u64>(), requests in 1_u64..60) {
        if let Err(violation) = run(&RunOptions { seed, requests, world: Some(world), bug: None }) {
            return Err(TestCaseError::fail(violation.to_string()));
        }
    }
}
