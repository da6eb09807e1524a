//! Servers killed under load, and their successors while they recover: no acknowledged write is lost, nothing is mixed,
//! and file systems are consistent.
//!
//! `UBLK_BPF_ROUNDS` sets the number of kills of each test, `UBLK_BPF_SEED` their seed.

use std::process::{Command, Stdio};
use std::thread::{scope, sleep};

use ublk_bpf_guest::cached::Pair;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left};
use ublk_bpf_guest::power::{Client, Until, block_device, forget_dirty_caches, milliseconds, number};
use ublk_bpf_guest::torture::Dice;
use ublk_bpf_guest::{Device, FileSystem, Fio, Torture, wait_until};

const RECOVERABLE: [&str; 4] = ["--recovery", "reissue", "--queues", "2"];
/// Sizes in MiB. `mkfs.xfs` needs 300.
const MIB: u64 = 64;
const FILE_SYSTEM_MIB: u64 = 320;
const CACHE_MIB: u64 = 16;
/// What a recovery takes under emulation: a killed one is killed within this time.
const RECOVERY_MS: u64 = 600;
/// The longest time between a recovery and the next kill.
const SERVES_MS: u64 = 500;

fn dice(of_test: u64) -> Dice {
    Dice::new(number("UBLK_BPF_SEED", of_test))
}

fn kills(default: u64) -> u64 {
    number("UBLK_BPF_ROUNDS", default)
}

fn device(pair: &Pair, mode: &str) -> Device {
    pair.run(&[&["--cache-mode", mode], &RECOVERABLE[..]].concat())
}

/// Kills the server after a random time, and in half of the cases the one that recovers, again and again; in the end one
/// serves. Gives the number of servers that were killed.
fn kill(device: &Device, dice: &mut Dice) -> u64 {
    sleep(milliseconds(dice, SERVES_MS));
    device.kill_server("waiting");
    let mut killed = 1;
    while dice.percent(50) {
        let mut recovery = Command::new("ublk-bpf")
            .args(["run", "--recover", &device.id()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"));
        sleep(milliseconds(dice, RECOVERY_MS));
        recovery.kill().expect("it has not ended");
        recovery.wait().expect("it ends");
        wait_until("the device waits again", SOON, || device.state() == "waiting");
        killed += 1;
    }
    device.recover();
    killed
}

#[test]
fn every_sector_is_right_after_kills() {
    let pair = Pair::disks(MIB, CACHE_MIB);
    let client = sectors(&pair, "write-through", 1);
    let backing = block_device(pair.backing.path().expect("a disk has a path"));
    client
        .verify_now(&backing)
        .unwrap_or_else(|fault| panic!("the backing: {fault}"));
}

#[test]
fn every_sector_is_right_after_kills_in_write_back() {
    let pair = Pair::disks(MIB, CACHE_MIB);
    let client = sectors(&pair, "write-back", 5);
    // What the stop has left dirty is in the cache.
    let device = device(&pair, "write-back");
    let verified = client.verify_now(&block_device(device.path()));
    verified.unwrap_or_else(|fault| panic!("after a start: {fault}"));
    device.stop();
    forget_dirty_caches();
}

#[test]
fn fio_verifies_what_it_wrote_back_under_kills() {
    fio("write-back", 6);
    forget_dirty_caches();
}

#[test]
fn ext4_is_consistent_after_each_kill_in_write_back() {
    file_system(FileSystem::Ext4, "write-back", 7);
    forget_dirty_caches();
}

#[test]
fn xfs_is_consistent_after_each_kill_in_write_back() {
    file_system(FileSystem::Xfs, "write-back", 8);
    forget_dirty_caches();
}

/// Kills servers while a client works, which knows every sector.
fn sectors(pair: &Pair, mode: &str, seed: u64) -> Client {
    let mut dice = dice(seed);
    let device = device(pair, mode);
    let client = Client::new(dice.below(u64::MAX), MIB << 20);
    let disk = block_device(device.path());
    client.lay_down(&disk);
    let (mut killed, wanted) = (0, kills(4));
    while killed < wanted {
        let done = scope(|scope| {
            let load = scope.spawn(|| client.work(&disk, Until::Operations(400)));
            killed += kill(&device, &mut dice);
            load.join().expect("the client does not panic")
        });
        let done = done.unwrap_or_else(|fault| panic!("after {killed} kills: {fault}"));
        assert_eq!(done.failed, 0, "after {killed} kills");
    }
    eprintln!("{killed} kills");
    client.verify_now(&disk).unwrap_or_else(|fault| panic!("{fault}"));
    // A device that is open is not stopped.
    drop(disk);
    device.stop();
    nothing_is_left();
    client
}

#[test]
fn fio_verifies_what_it_wrote_under_kills() {
    fio("write-through", 2);
}

fn fio(mode: &str, seed: u64) {
    let mut dice = dice(seed);
    let pair = Pair::files(MIB, CACHE_MIB);
    let device = device(&pair, mode);
    let (mut killed, wanted) = (0, kills(4));
    while killed < wanted {
        let mut job = Fio::verify(device.path())
            .arg("iodepth", "16")
            .arg("size", "12m")
            .arg("rate", "2m")
            .start();
        while job.is_running() && killed < wanted {
            killed += kill(&device, &mut dice);
        }
        job.finish();
    }
    eprintln!("{killed} kills");
    device.stop();
}

#[test]
fn ext4_is_consistent_after_each_kill() {
    file_system(FileSystem::Ext4, "write-through", 3);
}

#[test]
fn xfs_is_consistent_after_each_kill() {
    file_system(FileSystem::Xfs, "write-around", 4);
}

/// Kills servers below a mounted file system that is written to, and checks it after each.
fn file_system(system: FileSystem, mode: &str, seed: u64) {
    let mut dice = dice(seed);
    let pair = Pair::files(FILE_SYSTEM_MIB, CACHE_MIB);
    let device = device(&pair, mode);
    system.make(device.path_str());
    let (mut killed, wanted) = (0, kills(2));
    while killed < wanted {
        let mounted = system.mount(device.path_str(), "discard");
        let file = mounted.make_file("tortured", 8);
        let torture = Torture::on_file(&file).operations(400).seed(dice.below(u64::MAX));
        let report = scope(|scope| {
            let kills = scope.spawn(|| kill(&device, &mut dice));
            let report = torture.run();
            killed += kills.join().expect("the servers are killed");
            report
        });
        drop(mounted);
        system.check(device.path_str());
        let mounted = system.mount(device.path_str(), "ro");
        report.compare(mounted.file("tortured"));
    }
    eprintln!("{system:?}: {killed} kills");
    assert_eq!(device.counter("failed"), 0);
    device.stop();
    if mode != "write-back" {
        system.check(pair.backing.spec());
    }
}
