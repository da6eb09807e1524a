//! A reload: the configuration is read again, and the devices are made what it describes.
//!
//! The server has left its mounts, so the paths of the configuration lead nowhere for it. A reload has a thread of its own,
//! which enters the mount namespace of who asks: a command sends a descriptor of its own, and for SIGHUP the server holds
//! one. That is the first process's, or none: any other would be kept, with its mounts, by this descriptor. The thread
//! opens everything as a start does, with the same checks, and ends; the main thread goes on meanwhile.

use std::collections::BTreeSet;
use std::env;
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::thread::Scope;
use std::time::Duration;

use super::compare::{self, Plan};
use super::control_socket::Answer;
use super::described;
use super::disk_queue::DiskQueue;
use super::errands::Errands;
use super::inbox::Outbox;
use super::isolation::protect_thread;
use super::life::{DeviceEvent, Ready};
use super::limits;
use super::main_thread::News;
use super::open::OpenDevice;
use super::start::{Configuration, Recipe, Start};
use crate::control::{Control, DeviceId};
use crate::log;
use crate::path_text::ShowPath as _;
use crate::policy::Policy;
use crate::registry::changes::swap_policy;
use crate::registry::message::{DeviceCommand, Reply, Setting};
use crate::registry::owners::Opening;
use crate::registry::stop_by;
use crate::registry::{DeviceOptions, Record, logs};
use crate::sys::{mounts, process};

/// How long a device's thread may take to change an option.
const PATIENCE: Duration = Duration::from_secs(30);

/// The reloads of a server, as its main thread sees them.
pub(super) struct Reloads {
    configuration: Option<Configuration>,
    /// The mount namespace for those by SIGHUP.
    home: Option<OwnedFd>,
    /// SIGHUP is for a reload.
    by_signal: bool,
    /// One came.
    asked_by_signal: bool,
    is_running: bool,
}

/// Who hears what a reload does.
pub(super) enum Audience {
    Client(Answer),
    Log,
}

/// What a reload works with.
pub(super) struct Task<'env> {
    pub(super) control: &'env Control,
    pub(super) errands: &'env Errands,
    /// The devices that are served, and what their threads listen to.
    pub(super) devices: Vec<(DeviceId, Sender<DeviceEvent>)>,
    pub(super) main: Outbox<News>,
}

impl Reloads {
    /// Those of this start. To be called before the process leaves its mounts.
    pub(super) fn of(start: &Start) -> Self {
        let configuration = start.configuration.clone();
        let by_signal = configuration.is_some() && !process::has_terminal();
        let is_home = by_signal && mounts::are_those_of_process_1();
        Self {
            configuration,
            home: is_home.then(process::mount_namespace).and_then(Result::ok),
            by_signal,
            asked_by_signal: false,
            is_running: false,
        }
    }

    pub(super) const fn by_signal(&self) -> bool {
        self.by_signal
    }

    /// SIGHUP came.
    pub(super) const fn ask_by_signal(&mut self) {
        self.asked_by_signal = true;
    }

    /// Whether one by SIGHUP is to begin.
    pub(super) const fn is_asked_by_signal(&self) -> bool {
        self.asked_by_signal && !self.is_running
    }

    pub(super) const fn is_running(&self) -> bool {
        self.is_running
    }

    pub(super) fn home(&self) -> Option<OwnedFd> {
        self.home.as_ref()?.try_clone().ok()
    }

    /// Starts the thread of a reload, or says why not.
    pub(super) fn begin<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        task: Task<'scope>,
        (audience, mounts): (Audience, Option<OwnedFd>),
        is_ready: bool,
    ) {
        if matches!(audience, Audience::Log) {
            self.asked_by_signal = false;
        }
        let why_not = if !is_ready {
            "the server starts or ends: try again when `ublk-bpf list` says live"
        } else if self.is_running {
            "a reload is under way: try again when it is done"
        } else {
            match (self.configuration.clone(), mounts) {
                (Some(configuration), Some(mounts)) => {
                    self.is_running = true;
                    let reload = Reload { task, configuration };
                    return start(scope, reload, audience, mounts);
                }
                (None, _) => {
                    "the server was started without --config, and has nothing to read again: change options with \
                     `ublk-bpf set`, or start it with a configuration"
                }
                (Some(_), None) => {
                    "it is not known which mounts the paths of the configuration mean: reload with `ublk-bpf reload`"
                }
            }
        };
        audience.end(Err(why_not.to_owned()));
    }

    pub(super) const fn end(&mut self) {
        self.is_running = false;
    }
}

impl Audience {
    fn say(&self, line: &str) {
        match self {
            // It may have gone.
            Self::Client(answer) => drop(answer.progress(line)),
            Self::Log => log::say(format_args!("reload: {line}")),
        }
    }

    fn end(self, result: Result<String, String>) {
        match (self, result) {
            (Self::Client(answer), result) => answer.end(result),
            (Self::Log, Ok(line)) if line.is_empty() => {}
            (log @ Self::Log, Ok(line) | Err(line)) => log.say(&line),
        }
    }
}

fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    reload: Reload<'scope>,
    audience: Audience,
    mounts: OwnedFd,
) {
    let main = reload.task.main.clone();
    let apply = move || {
        protect_thread();
        let applied = catch_unwind(AssertUnwindSafe(|| reload.apply(&audience, &mounts)));
        // Who has its answer may ask for the next one.
        reload.task.main.send(News::Reloaded);
        audience.end(applied.unwrap_or_else(|_| Err("the thread of the reload panicked".to_owned())));
    };
    if let Err(error) = limits::thread("reload".to_owned()).spawn_scoped(scope, apply) {
        let why = limits::no_thread("start the thread of the reload")(error);
        tracing::error!("{why}");
        main.send(News::Reloaded);
    }
}

/// A reload, on its own thread.
struct Reload<'env> {
    task: Task<'env>,
    configuration: Configuration,
}

/// What has become of the configuration's devices.
#[derive(Default)]
struct Outcome {
    /// Changes that were made.
    made: usize,
    /// Those that were not.
    failed: usize,
}

impl Reload<'_> {
    /// Does it all. Returns a last line; an error if the devices are not what the configuration describes.
    fn apply(&self, audience: &Audience, mounts: &OwnedFd) -> Result<String, String> {
        let file = self.configuration.file().shown().to_string();
        process::enter_mount_namespace(mounts.as_fd()).map_err(|error| {
            format!("cannot enter the mounts in which {file} is: {error}: this needs CAP_SYS_ADMIN and CAP_SYS_CHROOT")
        })?;
        if let Err(error) = env::set_current_dir(self.configuration.directory()) {
            tracing::debug!("relative paths in {file} will not be found: {error}");
        }
        let described = self.configuration.devices()?;
        // One without a record ends at this moment.
        let running = self
            .task
            .devices
            .iter()
            .filter_map(|(id, _)| Record::read(*id).ok());
        let plan = compare::plan(running.collect(), described);
        let outcome = self.carry_out(&plan, audience);
        match outcome {
            Outcome { failed: 0, made: 0 } => Ok(format!("nothing is to change by {file}")),
            Outcome { failed: 0, .. } => Ok(String::new()),
            Outcome { failed, made } => Err(format!(
                "{failed} of {} changes by {file} were not made",
                failed + made
            )),
        }
    }

    /// First what frees storage, numbers and names, and last what needs them.
    fn carry_out(&self, plan: &Plan, audience: &Audience) -> Outcome {
        let mut outcome = Outcome::default();
        let mut note = |line: Result<String, String>| match line {
            Ok(line) => {
                outcome.made += 1;
                audience.say(&line);
            }
            Err(line) => {
                outcome.failed += 1;
                audience.say(&line);
            }
        };
        let log = self.task.devices.iter().map(|(id, _)| *id);
        let mut logged: BTreeSet<DeviceId> = log.filter(|id| logs::log_path(*id).exists()).collect();
        for record in &plan.gone {
            note(self.stop(record));
            logged.remove(&record.id());
        }
        for (record, wanted) in &plan.kept {
            self.change(record, wanted).into_iter().for_each(&mut note);
        }
        let reserved: Vec<DeviceId> = plan.new.iter().filter_map(|wanted| wanted.id).collect();
        for wanted in &plan.new {
            match self.make(wanted, &reserved) {
                Ok(Made::Here(ready)) => {
                    if let Some(other) = logged.first() {
                        logs::name_log(&logs::log_path(*other), ready.record.id());
                    }
                    note(Ok(format!("{} is ready", titled(&ready.record))));
                }
                Ok(Made::Elsewhere(record)) => audience.say(&format!(
                    "{} is served by process {} and left as it is",
                    titled(&record),
                    record.pid
                )),
                Err(why) => note(Err(format!(
                    "the device on {} was not made: {why}",
                    wanted.backing
                ))),
            }
        }
        outcome
    }

    /// Stops a device that is not described any longer, unless it is in use.
    fn stop(&self, record: &Record) -> Result<String, String> {
        let (control, id) = (self.task.control, record.id());
        let stopped = stop_by(control, id, || self.task.errands.stop(control, id, false));
        stopped.map_err(|error| error.to_string())?;
        Ok(format!("{} is stopped", titled(record)))
    }

    /// Changes what can change, and names the rest.
    fn change(&self, record: &Record, wanted: &DeviceOptions) -> Vec<Result<String, String>> {
        let id = record.id();
        let mut lines = Vec::new();
        let mut note = |what: String, result: Result<(), String>| {
            lines.push(match result {
                Ok(()) => Ok(format!("{}: {what}", titled(record))),
                Err(why) => Err(format!("{}: not {what}: {why}", titled(record))),
            });
        };
        if compare::is_policy_other(record, wanted) {
            note(format!("policy {}", wanted.policy), swap(id, wanted));
        }
        for (words, setting) in compare::cache_settings(record, wanted) {
            note(words, self.set(id, setting));
        }
        let scheduler = DiskQueue::of(id).scheduler();
        if let Some(name) = wanted.scheduler.name().filter(|name| *name != scheduler) {
            let setting = Setting::Scheduler(wanted.scheduler.clone());
            note(format!("scheduler {name}"), self.set(id, setting));
        }
        for option in compare::fixed_differences(record, wanted) {
            lines.push(Err(format!(
                "{}: {option} needs a restart: stop the device with `ublk-bpf stop {id}`, and reload again",
                titled(record)
            )));
        }
        lines
    }

    /// Has the device's thread change an option.
    fn set(&self, id: DeviceId, setting: Setting) -> Result<(), String> {
        let (answer, replies) = Answer::new();
        let device = self.task.devices.iter().find(|(of, _)| *of == id);
        if let Some((_, events)) = device {
            // If it ends instead, the answer is dropped, which answers too.
            let _ = events.send(DeviceEvent::Asked(DeviceCommand::Set(setting), answer));
        }
        match replies.recv_timeout(PATIENCE) {
            Ok(Reply::Ok(_)) => Ok(()),
            Ok(Reply::Error(why)) => Err(why),
            _ => Err("the device has ended, or does not answer".to_owned()),
        }
    }

    /// Makes a device, or takes it back if it waits, as a start does.
    fn make(&self, wanted: &DeviceOptions, reserved: &[DeviceId]) -> Result<Made, String> {
        let device = self.open(wanted, reserved).map_err(|error| error.to_string())?;
        let device = match device {
            Opened::Here(device) => device,
            Opened::Elsewhere(record) => return Ok(Made::Elsewhere(record)),
        };
        let (awaited, ready) = channel();
        self.task.main.send(News::Make(device, awaited));
        match ready.recv() {
            Ok(result) => result.map(|ready| Made::Here(Box::new(ready))),
            Err(_) => Err("the server ends".to_owned()),
        }
    }

    fn open(
        &self,
        wanted: &DeviceOptions,
        reserved: &[DeviceId],
    ) -> Result<Opened, super::error::ServeError> {
        let control = self.task.control;
        let (rest, served) = described::not_served(control, vec![wanted.clone()])?;
        if let Some(record) = served.into_iter().next() {
            return Ok(Opened::Elsewhere(Box::new(record)));
        }
        let of_others = self
            .task
            .devices
            .iter()
            .filter_map(|(id, _)| Record::read(*id).ok());
        limits::raise_open_files(of_others.map(|record| record.queues).chain([wanted.queues]))?;
        let mut opening = Opening::new(Some(control), 1);
        opening.next_device();
        let mut recipes = rest.into_iter().map(Recipe::MakeOrRecover);
        let recipe = recipes.next().expect("what is not served is left");
        let device = recipe.open(Some(control), reserved, &mut opening)?;
        Ok(Opened::Here(Box::new(device.expect("there is a control plane"))))
    }
}

/// What was opened for a device.
enum Opened {
    Here(Box<OpenDevice>),
    Elsewhere(Box<Record>),
}

/// Where a described device is served.
enum Made {
    Here(Box<Ready>),
    Elsewhere(Box<Record>),
}

fn swap(id: DeviceId, wanted: &DeviceOptions) -> Result<(), String> {
    let policy = Policy::parse(&wanted.policy, wanted.policy_memory).map_err(|error| error.to_string())?;
    let swapped = swap_policy(id, &policy, &wanted.policy, wanted.policy_memory);
    let verified = swapped.map_err(|error| error.to_string())?;
    if let Some(warning) = verified.warning() {
        tracing::warn!("policy {}: {warning}", wanted.policy);
    }
    Ok(())
}

/// `ublkb0 (data)`.
fn titled(record: &Record) -> String {
    let disk = record.id().disk_name();
    match &record.name {
        Some(name) => format!("{disk} ({name})"),
        None => disk,
    }
}
