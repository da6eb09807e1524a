//! The control plane over a scripted driver.

use std::sync::{Arc, Mutex};

use super::*;
use crate::sys::command::Reply;
use crate::sys::uapi;

type Respond = dyn Fn(u32, &CtrlCmd, &mut [u8]) -> Result<i32, NoReply> + Send + Sync;

/// Answers every command by a function, and keeps what was sent.
struct Fake {
    respond: Box<Respond>,
    sent: Arc<Mutex<Vec<(u32, CtrlCmd)>>>,
}

impl Transport for Fake {
    fn send(
        &self,
        code: u32,
        command: CtrlCmd,
        mut buffer: Box<[u8]>,
        _: Duration,
    ) -> Result<Reply, NoReply> {
        self.sent.lock().unwrap().push((code, command));
        let result = (self.respond)(code, &command, &mut buffer)?;
        Ok(Reply { result, buffer })
    }
}

type Sent = Arc<Mutex<Vec<(u32, CtrlCmd)>>>;

fn control(
    respond: impl Fn(u32, &CtrlCmd, &mut [u8]) -> Result<i32, NoReply> + Send + Sync + 'static,
) -> (Control, Sent) {
    let sent = Sent::default();
    let fake = Fake {
        respond: Box::new(respond),
        sent: Arc::clone(&sent),
    };
    (
        Control {
            transport: Box::new(fake),
            patience: None,
        },
        sent,
    )
}

fn refusing(errno: i32) -> Control {
    control(move |_, _, _| Ok(-errno)).0
}

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

/// What a kernel of this feature word makes of ADD_DEV.
fn added(buffer: &mut [u8], kernel: Features) -> RawDevInfo {
    let mut raw = RawDevInfo::read_from_bytes(buffer).unwrap();
    if raw.dev_id == u32::MAX {
        raw.dev_id = 0;
    }
    raw.flags &= kernel.bits();
    raw.nr_hw_queues = raw.nr_hw_queues.min(2);
    raw.io_desc_size = 24;
    buffer.copy_from_slice(raw.as_bytes());
    raw
}

#[test]
fn without_ublk_the_way_out_is_said() {
    if Path::new(CONTROL_PATH).exists() {
        return; // This host has ublk: the refusal of its absence is tested on those that have not.
    }
    let error = Control::open().err().unwrap().to_string();
    assert_eq!(
        error,
        "ublk is not available: /dev/ublk-control does not exist; load the driver with `modprobe ublk_drv` \
         (batch I/O needs Linux >= 7.0)"
    );
}

#[test]
fn a_feature_word_is_read() {
    let (control, sent) = control(|_, command, buffer| {
        assert_eq!((command.queue_id, buffer.len()), (u16::MAX, 8));
        buffer.copy_from_slice(&0x1f_ffff_u64.to_ne_bytes());
        Ok(0)
    });
    control.features().unwrap().require(Features::SERVED).unwrap();
    assert_eq!(sent.lock().unwrap()[0].0, uapi::UBLK_U_CMD_GET_FEATURES);
}

#[test]
fn a_device_is_added_with_what_the_kernel_chose() {
    let (control, _) = control(|_, _, buffer| {
        added(buffer, Features::all());
        Ok(0)
    });
    let info = control
        .add(&AddDevice {
            queues: 8,
            ..AddDevice::default()
        })
        .unwrap();
    assert_eq!((info.id, info.queues, info.depth), (id(0), 2, 128));
    assert!(info.flags.contains(Features::SERVED));
}

#[test]
fn a_feature_that_the_kernel_dropped_is_named_and_the_device_deleted() {
    let (control, sent) = control(|code, _, buffer| {
        if code == uapi::UBLK_U_CMD_ADD_DEV {
            added(buffer, Features::all().difference(Features::BATCH_IO));
        }
        Ok(0)
    });
    let error = control
        .add(&AddDevice {
            id: Some(id(7)),
            ..AddDevice::default()
        })
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no batch I/O (UBLK_F_BATCH_IO, Linux >= 7.0)"),
        "{error}"
    );
    let last = *sent.lock().unwrap().last().unwrap();
    assert_eq!((last.0, last.1.dev_id), (uapi::UBLK_U_CMD_DEL_DEV, 7));
}

#[test]
fn what_no_kernel_would_take_is_not_sent() {
    let (control, sent) = control(|_, _, _| Ok(0));
    control
        .add(&AddDevice {
            depth: 0,
            ..AddDevice::default()
        })
        .unwrap_err();
    assert!(sent.lock().unwrap().is_empty());
}

#[test]
fn commands_carry_device_and_number() {
    let (control, sent) = control(|_, _, _| Ok(0));
    control.start(id(3), 4711).unwrap();
    control.quiesce(id(4), Duration::ZERO).unwrap();
    control.update_size(id(5), 1 << 40).unwrap();
    let sent: Vec<_> = sent
        .lock()
        .unwrap()
        .iter()
        .map(|(code, command)| (*code, command.dev_id, command.data[0]))
        .collect();
    let wanted = [
        (uapi::UBLK_U_CMD_START_DEV, 3, 4711),
        // Zero would mean: wait for ever.
        (uapi::UBLK_U_CMD_QUIESCE_DEV, 4, 1),
        (uapi::UBLK_U_CMD_UPDATE_SIZE, 5, 1 << 40),
    ];
    assert_eq!(sent, wanted);
}

/// What each command says when the kernel refuses it.
#[test]
fn refusals_are_told_in_words() {
    use libc::{EACCES, EBUSY, EEXIST, EINTR, EINVAL, ENODEV, EOPNOTSUPP, EPERM, ERANGE};
    type Act = fn(&Control) -> Result<(), ControlError>;
    let add: Act = |c| {
        c.add(&AddDevice {
            id: DeviceId::new(3),
            ..AddDevice::default()
        })
        .map(drop)
    };
    let start: Act = |c| c.start(id(3), 1);
    let recover: Act = |c| c.start_recovery(id(3));
    let cases: [(Act, i32, &str); 16] = [
        (
            add,
            EEXIST,
            "cannot add device 3: its id is in use; choose another, or delete the device that has it (ADD_DEV: EEXIST)",
        ),
        (
            add,
            EPERM,
            "cannot add device 3: it needs CAP_SYS_ADMIN; run as root (ADD_DEV: EPERM)",
        ),
        (
            |c| c.add(&AddDevice::default()).map(drop),
            EACCES,
            "cannot add a device: it needs CAP_SYS_ADMIN; run as root (ADD_DEV: EACCES)",
        ),
        (
            |c| c.features().map(drop),
            EOPNOTSUPP,
            "cannot ask ublk for its features: this kernel's ublk is too old to report them; boot Linux 7.0 or later (GET_FEATURES: EOPNOTSUPP)",
        ),
        (
            start,
            EINVAL,
            "cannot start device 3: no parameters are set, or the process that was named as its server does not have its character device open (START_DEV: EINVAL)",
        ),
        (
            start,
            EEXIST,
            "cannot start device 3: it is already started (START_DEV: EEXIST)",
        ),
        (
            start,
            ENODEV,
            "cannot start device 3: there is no such device; see `ublk-bpf list` (START_DEV: ENODEV)",
        ),
        (
            |c| c.stop(id(3)),
            ENODEV,
            "cannot stop device 3: there is no such device; see `ublk-bpf list` (STOP_DEV: ENODEV)",
        ),
        (
            |c| c.try_stop(id(3)),
            EBUSY,
            "cannot stop device 3: it is in use; unmount or close it first (TRY_STOP_DEV: EBUSY)",
        ),
        (
            |c| c.delete(id(3)),
            EINTR,
            "cannot delete device 3: its server still has it open or mapped; it is deleted when the server ends (DEL_DEV: EINTR)",
        ),
        (
            |c| c.delete(id(3)),
            ERANGE,
            "cannot delete device 3: numerical result out of range (DEL_DEV: errno 34)",
        ),
        (
            recover,
            EINVAL,
            "cannot begin the recovery of device 3: it was made without recovery; delete it (START_USER_RECOVERY: EINVAL)",
        ),
        (
            recover,
            EBUSY,
            "cannot begin the recovery of device 3: it is not waiting for a server; end its old one, or try again in a moment (START_USER_RECOVERY: EBUSY)",
        ),
        (
            |c| c.end_recovery(id(3), 1),
            EBUSY,
            "cannot end the recovery of device 3: it is not waiting for a server (END_USER_RECOVERY: EBUSY)",
        ),
        (
            |c| c.quiesce(id(3), Duration::ZERO),
            EOPNOTSUPP,
            "cannot quiesce device 3: it was made without recovery, so it cannot be quiesced (QUIESCE_DEV: EOPNOTSUPP)",
        ),
        (
            |c| c.update_size(id(3), 8),
            ENODEV,
            "cannot resize device 3: it does not exist, or is not started (UPDATE_SIZE: ENODEV)",
        ),
    ];
    for (act, errno, words) in cases {
        let error = act(&refusing(errno)).unwrap_err();
        assert_eq!(error.to_string(), words);
        assert_eq!(error.errno().map(Errno::number), Some(errno));
    }
}

#[test]
fn a_late_answer_is_told_with_command_device_and_time() {
    let late = |cancelled| control(move |_, _, _| Err(NoReply::TimedOut { cancelled })).0;
    assert_eq!(
        late(true).start(id(3), 1).unwrap_err().to_string(),
        "cannot start device 3: no answer within 30 s: not every queue of its server has become ready \
         (START_DEV: cancelled)"
    );
    assert_eq!(
        late(false)
            .with_patience(Duration::from_millis(1500))
            .delete(id(3))
            .unwrap_err()
            .to_string(),
        "cannot delete device 3: no answer within 1.5 s: its server still has it open or mapped; end the server \
         (DEL_DEV: still running in the kernel)"
    );
}

#[test]
fn a_host_without_io_uring_is_told_how_to_get_it() {
    let (control, _) = control(|_, _, _| Err(NoReply::Ring(std::io::Error::from_raw_os_error(libc::EPERM))));
    let error = control.features().unwrap_err().to_string();
    assert!(
        error.starts_with("cannot send GET_FEATURES to ublk: io_uring does not work here"),
        "{error}"
    );
}

#[test]
fn an_unprivileged_device_is_asked_by_its_path() {
    let (control, sent) = control(|code, command, buffer| {
        if code == uapi::UBLK_U_CMD_GET_DEV_INFO {
            return Ok(-libc::EINVAL);
        }
        let (path, info) = buffer.split_at_mut(usize::from(command.dev_path_len));
        assert_eq!(path, b"/dev/ublkc12\0");
        let raw = RawDevInfo {
            dev_id: 12,
            nr_hw_queues: 1,
            queue_depth: 1,
            ..RawDevInfo::default()
        };
        info.copy_from_slice(raw.as_bytes());
        Ok(0)
    });
    assert_eq!(control.info(id(12)).unwrap().id, id(12));
    assert_eq!(sent.lock().unwrap().len(), 2);
}

#[test]
fn an_unknown_state_is_an_error() {
    let (control, _) = control(|_, _, buffer| {
        let raw = RawDevInfo {
            nr_hw_queues: 1,
            queue_depth: 1,
            state: 9,
            ..RawDevInfo::default()
        };
        buffer.copy_from_slice(raw.as_bytes());
        Ok(0)
    });
    assert_eq!(
        control.info(id(0)).unwrap_err().to_string(),
        "cannot make sense of the kernel's answer to GET_DEV_INFO for device 0: it says the device is in state 9, and \
         0 to 3 are known"
    );
}

#[test]
fn parameters_go_and_come() {
    let kept = Mutex::new(RawParams::default());
    let (control, _) = control(move |code, _, buffer| {
        let mut kept = kept.lock().unwrap();
        if code == uapi::UBLK_U_CMD_SET_PARAMS {
            *kept = RawParams::read_from_bytes(buffer).unwrap();
        } else {
            buffer.copy_from_slice(kept.as_bytes());
        }
        Ok(0)
    });
    let unset = control.params(id(0)).unwrap_err().to_string();
    assert_eq!(
        unset,
        "cannot read the parameters of device 0: the device has no parameters yet"
    );
    let raw = RawDevInfo {
        nr_hw_queues: 1,
        queue_depth: 1,
        max_io_buf_bytes: 1 << 20,
        ..RawDevInfo::default()
    };
    let info = DeviceInfo::parse(&raw, None).unwrap();
    let params = Params::new(2048);
    control.set_params(&info, &params).unwrap();
    assert_eq!(control.params(id(0)).unwrap(), params);
    let too_large = Params {
        max_io_bytes: 2 << 20,
        ..params
    };
    assert!(matches!(
        control.set_params(&info, &too_large),
        Err(ControlError::InvalidParams(_))
    ));
}

#[test]
fn devices_are_listed_by_number() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["ublkc10", "ublkc9", "ublkb1", "ublkcx", "ublkc", "other"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    assert_eq!(ids_in(folder.path()).unwrap(), [id(9), id(10)]);
    assert_eq!(ids_in(&folder.path().join("absent")).unwrap(), []);
    let file = folder.path().join("other");
    let error = ids_in(&file).unwrap_err().to_string();
    assert!(error.starts_with("cannot list ublk devices: reading "), "{error}");
}
