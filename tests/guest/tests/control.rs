//! The control plane on a real ublk: every command, and every refusal that can be provoked.

#![expect(clippy::unwrap_used, reason = "a test should panic at the first surprise")]

use std::fs::{File, read_to_string};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use ublk_bpf::control::{
    AddDevice, Control, ControlError, DeviceId, DeviceInfo, Discard, Features, KernelState, Params, Recovery,
    open_char_device, wait_for_block_device,
};
use ublk_bpf::sys::mmap::Descriptors;
use ublk_bpf::sys::uapi;
use zerocopy::IntoBytes;

const SOON: Duration = Duration::from_secs(10);

/// The control plane, for one test at a time: some tests list all devices.
struct Ublk {
    control: Control,
    before: Vec<DeviceId>,
    _alone: MutexGuard<'static, ()>,
}

fn ublk() -> Ublk {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let control = Control::open().unwrap();
    let before = ids(&control);
    Ublk {
        control,
        before,
        _alone: alone,
    }
}

impl Drop for Ublk {
    /// Each test removes its devices, so that the next one starts clean.
    fn drop(&mut self) {
        let left = ids(&self.control);
        for id in left.iter().filter(|id| !self.before.contains(id)) {
            self.control.delete(*id).ok();
        }
        assert!(
            std::thread::panicking() || left == self.before,
            "left behind: {left:?}, before: {:?}",
            self.before
        );
    }
}

fn ids(control: &Control) -> Vec<DeviceId> {
    control.list().unwrap().iter().map(|info| info.id).collect()
}

/// A server that makes a queue ready but serves no request: enough for these tests.
struct Server {
    _char_device: File,
    _ring: IoUring,
}

impl Server {
    fn attach(info: &DeviceInfo) -> Self {
        assert_eq!(info.queues, 1, "this server has one queue");
        let char_device = open_char_device(info.id, SOON).unwrap();
        let mut ring = IoUring::new(2).unwrap();
        ring.submitter()
            .register_buffers_sparse(info.depth.into())
            .unwrap();
        // The kernel learns the server's memory from the mapping of the descriptors.
        Descriptors::map(char_device.as_fd(), 0, info.depth, info.descriptor_bytes).unwrap();

        let elements: Vec<_> = (0..info.depth)
            .map(|tag| uapi::ElemHeader {
                tag,
                buf_index: tag,
                result: 0,
            })
            .collect();
        let batch = uapi::BatchIo {
            nr_elem: info.depth,
            elem_bytes: 8,
            ..uapi::BatchIo::default()
        };
        let mut area = [0; 16];
        area.copy_from_slice(batch.as_bytes());
        let entry = opcode::UringCmd16::new(Fd(char_device.as_raw_fd()), uapi::UBLK_U_IO_PREP_IO_CMDS)
            .cmd(area)
            .addr(Some(elements.as_ptr().expose_provenance() as u64))
            .build();
        // SAFETY: `elements` is used until the CQE only, which is waited for below.
        unsafe { ring.submission().push(&entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        let result = ring.completion().next().unwrap().result();
        assert!(result >= 0, "PREP: {result}");
        Self {
            _char_device: char_device,
            _ring: ring,
        }
    }
}

/// A device without a partition scan, so that nothing reads from it unprompted.
fn quiet() -> AddDevice {
    AddDevice {
        depth: 4,
        extra: Features::NO_PARTITION_SCAN,
        ..AddDevice::default()
    }
}

fn wait_for(control: &Control, id: DeviceId, state: KernelState) -> DeviceInfo {
    let deadline = Instant::now() + SOON;
    loop {
        let info = control.info(id).unwrap();
        if info.state == state {
            return info;
        }
        assert!(
            Instant::now() < deadline,
            "device {id} is {}, not {state}",
            info.state
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn said<T: std::fmt::Debug>(result: Result<T, ControlError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_kernel_supports_the_served_features() {
    let ublk = ublk();
    let features = ublk.control.features().unwrap();
    features
        .require(Features::SERVED | Features::NO_PARTITION_SCAN | Recovery::Reissue.flags())
        .unwrap();
    let unknown = Features::from_bits_retain(1 << 63);
    assert!(
        features
            .require(unknown)
            .unwrap_err()
            .to_string()
            .contains("0x8000000000000000")
    );
}

#[test]
fn a_device_is_added_shown_and_deleted() {
    let ublk = ublk();
    let added = ublk
        .control
        .add(&AddDevice {
            queues: 4096,
            depth: 7,
            ..quiet()
        })
        .unwrap();
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!((usize::from(added.queues), added.depth), (cpus, 7));
    assert_eq!(
        (added.state, added.server, added.max_io_bytes),
        (KernelState::Dead, None, 1 << 20)
    );
    assert_eq!(ublk.control.info(added.id).unwrap(), added);
    assert!(ublk.control.list().unwrap().contains(&added));
    assert!(added.id.char_path().exists() && !added.id.block_path().exists());

    ublk.control.delete(added.id).unwrap();
    assert!(!added.id.char_path().exists());
    assert_eq!(ids(&ublk.control), ublk.before);
}

#[test]
fn an_id_in_use_and_invalid_parameters_are_refused() {
    let ublk = ublk();
    let id = DeviceId::new(41);
    let device = AddDevice { id, ..quiet() };
    let added = ublk.control.add(&device).unwrap();
    assert_eq!(Some(added.id), id);
    assert_eq!(
        said(ublk.control.add(&device)),
        "cannot add device 41: its id is in use; choose another, or delete the device that has it (ADD_DEV: EEXIST)"
    );
    let nonsense = AddDevice {
        depth: 5000,
        ..quiet()
    };
    assert_eq!(
        said(ublk.control.add(&nonsense)),
        "a queue cannot have a depth of 5000: 2 to 4096 are possible"
    );
    // Reissue without recovery: a combination that this library never creates.
    let nonsense = AddDevice {
        extra: Features::RECOVERY_REISSUE,
        ..quiet()
    };
    assert!(said(ublk.control.add(&nonsense)).contains("refuses this combination"));
    ublk.control.delete(added.id).unwrap();
}

#[test]
fn the_deepest_device_can_be_added() {
    let ublk = ublk();
    let added = ublk
        .control
        .add(&AddDevice {
            depth: 4096,
            ..quiet()
        })
        .unwrap();
    let server = Server::attach(&added);
    drop(server);
    ublk.control.delete(added.id).unwrap();
}

#[test]
fn parameters_read_back_as_set() {
    let ublk = ublk();
    let device = ublk.control.add(&quiet()).unwrap();
    let none = said(ublk.control.params(device.id));
    assert!(none.ends_with("the device has no parameters yet"), "{none}");
    let params = Params {
        logical_block: 4096,
        physical_block: 4096,
        io_min: 4096,
        io_opt: 65536,
        chunk_sectors: 128,
        rotational: true,
        volatile_cache: true,
        fua: true,
        discard: Some(Discard {
            granularity: 4096,
            max_sectors: 1 << 20,
        }),
        max_write_zeroes_sectors: 1 << 16,
        dma_alignment: 512,
        ..Params::new(1 << 20)
    };
    ublk.control.set_params(&device, &params).unwrap();
    assert_eq!(ublk.control.params(device.id).unwrap(), params);
    ublk.control.delete(device.id).unwrap();
}

#[test]
fn the_block_layer_shows_the_parameters() {
    let ublk = ublk();
    let device = ublk.control.add(&quiet()).unwrap();
    let params = Params {
        logical_block: 4096,
        physical_block: 8192,
        io_opt: 65536,
        max_io_bytes: 512 << 10,
        chunk_sectors: 128,
        read_only: true,
        volatile_cache: true,
        fua: true,
        discard: Some(Discard {
            granularity: 65536,
            max_sectors: 1 << 20,
        }),
        max_write_zeroes_sectors: 1 << 16,
        dma_alignment: 512,
        ..Params::new(1 << 20)
    };
    ublk.control.set_params(&device, &params).unwrap();
    let server = Server::attach(&device);
    ublk.control.start(device.id, std::process::id()).unwrap();
    let shown = |name: &str| {
        let path = format!("/sys/block/{}/{name}", device.id.disk_name());
        read_to_string(&path)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
            .trim()
            .to_owned()
    };
    let wanted = [
        ("size", "1048576"),
        ("ro", "1"),
        ("queue/logical_block_size", "4096"),
        ("queue/physical_block_size", "8192"),
        ("queue/optimal_io_size", "65536"),
        ("queue/max_hw_sectors_kb", "512"),
        ("queue/chunk_sectors", "128"),
        ("queue/rotational", "0"),
        ("queue/write_cache", "write back"),
        ("queue/fua", "1"),
        ("queue/discard_granularity", "65536"),
        ("queue/discard_max_hw_bytes", "536870912"),
        ("queue/write_zeroes_max_bytes", "33554432"),
        ("queue/dma_alignment", "511"),
    ];
    let found = wanted.map(|(name, _)| (name, shown(name)));
    assert_eq!(found, wanted.map(|(name, value)| (name, value.to_owned())));
    ublk.control.stop(device.id).unwrap();
    drop(server);
    ublk.control.delete(device.id).unwrap();
}

#[test]
fn a_device_starts_resizes_and_stops() {
    let ublk = ublk();
    let control = &ublk.control;
    let device = control.add(&quiet()).unwrap();
    let id = device.id;
    let me = std::process::id();
    let early = said(control.start(id, me));
    assert!(
        early.starts_with(&format!("cannot start device {id}: no parameters are set")),
        "{early}"
    );
    control.set_params(&device, &Params::new(2048)).unwrap();

    let server = Server::attach(&device);
    assert!(said(control.start(id, 1)).ends_with("(START_DEV: EINVAL)"));
    control.start(id, me).unwrap();
    wait_for_block_device(id, SOON).unwrap();
    let info = wait_for(control, id, KernelState::Live);
    assert_eq!(info.server, Some(me));
    assert!(said(control.start(id, me)).contains("it is already started"));
    assert!(
        said(control.set_params(&device, &Params::new(4096))).contains("parameters must be set before that")
    );
    assert!(said(control.start_recovery(id)).contains("it was made without recovery"));
    assert!(said(control.quiesce(id, SOON)).contains("it was made without recovery"));

    control.update_size(id, 4096).unwrap();
    let size = read_to_string(format!("/sys/block/{}/size", id.disk_name())).unwrap();
    assert_eq!(size.trim(), "4096");

    let opened = File::open(id.block_path()).unwrap();
    assert!(said(control.try_stop(id)).contains("it is in use; unmount or close it first"));
    drop(opened);
    control.try_stop(id).unwrap();
    assert_eq!(control.info(id).unwrap().state, KernelState::Dead);
    assert!(!id.block_path().exists());
    control.stop(id).unwrap();
    drop(server);
    control.delete(id).unwrap();
}

#[test]
fn a_device_is_quiesced_and_recovered() {
    let ublk = ublk();
    let control = &ublk.control;
    let device = control
        .add(&AddDevice {
            recovery: Recovery::Reissue,
            ..quiet()
        })
        .unwrap();
    let (id, me) = (device.id, std::process::id());
    assert_eq!(device.recovery(), Recovery::Reissue);
    control.set_params(&device, &Params::new(2048)).unwrap();
    let server = Server::attach(&device);
    control.start(id, me).unwrap();
    assert!(said(control.start_recovery(id)).contains("is not waiting for a server"));

    control.quiesce(id, SOON).unwrap();
    drop(server);
    assert_eq!(wait_for(control, id, KernelState::Quiesced).server, None);
    control.start_recovery(id).unwrap();
    let server = Server::attach(&device);
    control.end_recovery(id, me).unwrap();
    assert_eq!(wait_for(control, id, KernelState::Live).server, Some(me));

    control.stop(id).unwrap();
    drop(server);
    control.delete(id).unwrap();
}

#[test]
fn a_dead_server_leaves_the_state_that_recovery_selects() {
    let ublk = ublk();
    let control = &ublk.control;
    for (recovery, state) in [
        (Recovery::None, KernelState::Dead),
        (Recovery::FailInFlight, KernelState::Quiesced),
        (Recovery::FailAll, KernelState::FailIo),
    ] {
        let device = control.add(&AddDevice { recovery, ..quiet() }).unwrap();
        control.set_params(&device, &Params::new(2048)).unwrap();
        let server = Server::attach(&device);
        control.start(device.id, std::process::id()).unwrap();
        drop(server);
        wait_for(control, device.id, state);
        control.delete(device.id).unwrap();
    }
}

#[test]
fn a_start_without_ready_queues_times_out() {
    let ublk = ublk();
    let device = ublk.control.add(&quiet()).unwrap();
    ublk.control.set_params(&device, &Params::new(2048)).unwrap();
    let hasty = Control::open().unwrap().with_patience(Duration::from_millis(300));
    let started = Instant::now();
    assert_eq!(
        said(hasty.start(device.id, std::process::id())),
        format!(
            "cannot start device {}: no answer within 0.3 s: not every queue of its server has become ready \
             (START_DEV: cancelled)",
            device.id
        )
    );
    assert!(started.elapsed() < Duration::from_secs(5));
    ublk.control.delete(device.id).unwrap();
}

#[test]
fn a_delete_with_a_live_server_times_out() {
    let ublk = ublk();
    let device = ublk.control.add(&quiet()).unwrap();
    let server = Server::attach(&device);
    assert_eq!(
        said(open_char_device(device.id, SOON)),
        format!(
            "cannot open /dev/ublkc{}: another server has it open; end that server first",
            device.id
        )
    );
    let hasty = Control::open().unwrap().with_patience(Duration::from_millis(300));
    let late = hasty.delete(device.id).unwrap_err();
    assert!(
        matches!(late, ControlError::TimedOut { cancelled: true, .. }),
        "{late}"
    );
    drop(server);
    let deadline = Instant::now() + SOON;
    while !ublk
        .control
        .info(device.id)
        .is_err_and(|error| error.is_no_device())
    {
        assert!(Instant::now() < deadline, "device {} is not gone", device.id);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_missing_device_is_named() {
    let ublk = ublk();
    let id = DeviceId::new(4242).unwrap();
    let control = &ublk.control;
    let none = "there is no such device; see `ublk-bpf list`";
    assert_eq!(
        said(control.info(id)),
        format!("cannot ask for the state of device 4242: {none} (GET_DEV_INFO: ENODEV)")
    );
    assert_eq!(
        said(control.stop(id)),
        format!("cannot stop device 4242: {none} (STOP_DEV: ENODEV)")
    );
    assert_eq!(
        said(control.delete(id)),
        format!("cannot delete device 4242: {none} (DEL_DEV: ENODEV)")
    );
    assert!(said(control.params(id)).ends_with("(GET_PARAMS: ENODEV)"));
    assert!(said(control.try_stop(id)).contains("it does not exist, or is not started"));
    assert!(said(control.update_size(id, 8)).contains("it does not exist, or is not started"));
    assert!(said(control.quiesce(id, SOON)).contains("it does not exist, or is not started"));
}

#[test]
fn an_unprivileged_user_is_told_to_run_as_root() {
    const NOBODY: libc::c_long = 65534;
    std::thread::spawn(|| {
        // SAFETY: takes no pointer. The bare system call changes this thread alone, which ends with the test.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(result, 0);
        assert_eq!(
            said(Control::open()),
            "no permission to open /dev/ublk-control: ublk needs CAP_SYS_ADMIN; run as root"
        );
    })
    .join()
    .unwrap();
}
