//! Power cuts: what was flushed before one is there after it, in every sector, and nothing is mixed.
//!
//! `UBLK_BPF_ROUNDS` sets the number of cuts of each test, `UBLK_BPF_SEED` their seed.

use std::path::PathBuf;
use std::thread::{scope, sleep};
use std::time::Instant;

use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::power::{
    Client, Done, Lie, Lost, Machine, Supply, Until, VolatileDisk, block_device, milliseconds, number,
};
use ublk_bpf_guest::torture::Dice;
use ublk_bpf_guest::{run, wait_until};

/// Size of the devices and of their caches, in MiB.
const MIB: u64 = 8;
const CACHE_MIB: u64 = 4;

#[test]
fn passthrough_keeps_what_was_flushed() {
    let machine = Machine::new(seed(1), MIB, None, &["--queues", "2"]);
    cuts(machine, false, backing_has_all);
}

#[test]
fn write_through_keeps_what_was_flushed() {
    let machine = cached(2, "write-through", &[]);
    cuts(machine, false, backing_has_all);
}

#[test]
fn write_around_keeps_what_was_flushed_by_servers_that_were_killed_before() {
    let machine = cached(3, "write-around", &["--recovery", "reissue"]);
    cuts(machine, true, backing_has_all);
}

#[test]
fn write_back_keeps_what_was_flushed() {
    cuts(cached(4, "write-back", &[]), false, cache_has_the_rest);
}

#[test]
fn write_back_keeps_what_was_flushed_by_servers_that_were_killed_before() {
    let machine = cached(5, "write-back", &["--recovery", "reissue"]);
    cuts(machine, true, cache_has_the_rest);
}

/// The cache says whether it has what the backing lacks, and after the next start the device has everything.
fn cache_has_the_rest(machine: &mut Machine, client: &Client) {
    let cache = machine.plug_cache();
    let said = run(
        "ublk-bpf",
        &["cache", "inspect", &cache.path().display().to_string()],
    );
    drop(cache);
    // Where nothing was written for a second, all of it may have been written back.
    assert!(
        said.contains("dirty ") || said.contains("state        clean"),
        "{said}"
    );
    let path = machine.boot().expect("the power is on");
    right(machine, client.verify_now(&block_device(&path)));
    machine.stop();
}

fn cached(of_test: u64, mode: &str, more: &[&str]) -> Machine {
    let cache = [
        "--cache-mode",
        mode,
        "--policy",
        "lru",
        "--promote-limit",
        "1G",
        "--queues",
        "2",
    ];
    Machine::new(seed(of_test), MIB, Some(CACHE_MIB), &[&cache, more].concat())
}

fn seed(of_test: u64) -> u64 {
    number("UBLK_BPF_SEED", of_test)
}

/// Cuts the power again and again, under load and while the server starts; before some of the cuts the server is killed
/// alone, if its device can be recovered. In the end `check` looks at the machine, which has no power then.
fn cuts(mut machine: Machine, kills: bool, check: impl FnOnce(&mut Machine, &Client)) {
    let rounds = number("UBLK_BPF_ROUNDS", 2);
    let client = Client::new(machine.dice().below(u64::MAX), MIB << 20);
    let start = Instant::now();
    let (mut done, mut lost) = (Done::default(), Lost::default());
    let mut path = machine.boot().expect("the power is on");
    client.lay_down(&block_device(&path));
    while machine.cuts() < rounds {
        let mut dice = machine.dice();
        machine.supply.cut_after(1 + dice.below(700), dice.percent(30));
        let worked = scope(|scope| {
            let (client, disk) = (&client, block_device(&path));
            let load = scope.spawn(move || client.work(&disk, Until::Failure));
            if kills && dice.percent(50) {
                sleep(milliseconds(&mut dice, 300));
                machine.kill_server();
                machine.recover();
            }
            wait_until("the power is cut", 4 * SOON, || !machine.supply.is_on());
            lost.add(machine.off());
            load.join().expect("faults are returned, not panicked")
        });
        done.add(right(&machine, worked));
        path = booted(&mut machine, &client, &mut lost);
    }
    let made = machine.cuts();
    eprintln!("{made} cuts in {:?}: {done:?} {lost:?}", start.elapsed());
    assert!(done.flushes > made, "{done:?}");
    assert!(lost.lost > 0 && lost.cached > lost.lost, "{lost:?}");
    machine.stop();
    check(&mut machine, &client);
}

/// Starts the server after a power cut and judges every sector. Some of the starts are cut too.
fn booted(machine: &mut Machine, client: &Client, lost: &mut Lost) -> PathBuf {
    loop {
        let mut dice = machine.dice();
        if dice.percent(33) {
            machine.supply.cut_after(1 + dice.below(200), dice.percent(30));
        }
        let path = machine.boot();
        machine.supply.keep();
        match path {
            Some(path) if machine.supply.is_on() => {
                right(machine, client.verify_after_cut(&block_device(&path)));
                return path;
            }
            _ => lost.add(machine.off()),
        }
    }
}

/// The backing has everything.
fn backing_has_all(machine: &mut Machine, client: &Client) {
    let backing = machine.plug_backing();
    right(machine, client.verify_now(&block_device(backing.path())));
}

fn right<T>(machine: &Machine, result: Result<T, impl std::fmt::Display>) -> T {
    result.unwrap_or_else(|fault| panic!("{}: {fault}", machine.describe()))
}

/// Cuts the power of a disk without a server between it and the client.
fn bare(lie: Lie, seed: u64) -> Result<(), String> {
    let supply = Supply::new();
    let disk = VolatileDisk::lying(&supply, MIB, lie);
    let client = Client::new(seed, MIB << 20);
    client.lay_down(&disk);
    let mut dice = Dice::new(seed);
    for _ in 0..10 {
        supply.cut_after(1 + dice.below(1000), false);
        client
            .work(&disk, Until::Failure)
            .and_then(|_| {
                disk.cycle(dice.below(u64::MAX));
                client.verify_after_cut(&disk)
            })
            .map_err(|fault| fault.to_string())?;
    }
    Ok(())
}

#[test]
fn a_disk_that_loses_only_what_was_not_flushed_passes() {
    for seed in 0..2 {
        bare(Lie::None, seed).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

#[test]
fn a_disk_that_loses_more_is_detected() {
    for lie in [Lie::NoFlush, Lie::NoForce, Lie::Torn, Lie::Misplaced] {
        let fault = bare(lie, 7).err();
        let fault = fault.unwrap_or_else(|| panic!("{lie:?} was not found"));
        eprintln!("{lie:?}: {fault}");
        assert!(fault.contains("it may hold"), "{lie:?}: {fault}");
    }
}
