//! Which part of an I/O's path a stack belongs to.
//!
//! The innermost function that [`RULES`] name decides: so a lock or a copy is charged to its caller. What the
//! block layer and io_uring do is done on two sides, for the client's I/O on our device and for the server's on the
//! backing device; the task tells which, and where one side calls into the other, the stack.

use bench_guest::profile::stacks::{Frame, Stack};

/// A part of an I/O's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Client,
    ClientUring,
    Block,
    Classifier,
    Ublk,
    ServerUring,
    Backing,
    Server,
    Other,
}

impl Part {
    pub(super) const ALL: [Self; 9] = [
        Self::Client,
        Self::ClientUring,
        Self::Block,
        Self::Classifier,
        Self::Ublk,
        Self::ServerUring,
        Self::Backing,
        Self::Server,
        Self::Other,
    ];

    /// As the table has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Client => "client: fio itself",
            Self::ClientUring => "client: its io_uring",
            Self::Block => "block layer of the device",
            Self::Classifier => "classifier, with the policy",
            Self::Ublk => "ublk_drv",
            Self::ServerUring => "server: its io_uring",
            Self::Backing => "backing: block layer and driver",
            Self::Server => "server: ublk-bpf itself",
            Self::Other => "other: scheduler, interrupts, system call entry",
        }
    }
}

/// A kernel function's layer, before it is known whether it works for the client or the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Classifier,
    Ublk,
    Driver,
    Block,
    Uring,
    Other,
}

/// Beginnings of kernel functions' names. The first layer that has one takes it.
const RULES: [(Layer, &[&str]); 6] = [
    (Layer::Classifier, &["bpf_prog_", "bpf_trace_run", "__bpf_trace_"]),
    (Layer::Ublk, &["ublk_", "__ublk_"]),
    (Layer::Driver, &["brd_"]),
    (
        Layer::Block,
        &[
            "blk_",
            "__blk_",
            "blkdev_",
            "blkcg_",
            "bdev_",
            "I_BDEV",
            "bio_",
            "__bio_",
            "bvec_",
            "submit_bio",
            "__submit_bio",
            "rq_qos_",
            "__rq_qos_",
            "wbt_",
            "sbitmap_",
            "__sbitmap_",
            "mq_",
            "dd_",
            "elv_",
            "update_io_ticks",
            "kthread_blkcg",
        ],
    ),
    (
        Layer::Uring,
        &[
            "io_",
            "__io_",
            "__do_sys_io_uring_",
            "__x64_sys_io_uring_",
            "tctx_",
            "kiocb_",
        ],
    ),
    (
        Layer::Other,
        &[
            "schedule",
            "__schedule",
            "preempt_schedule",
            "try_to_wake_up",
            "asm_sysvec_",
            "sysvec_",
            "handle_softirqs",
            "__irq_exit",
        ],
    ),
];

/// Functions that end a request of our device: what they call works for its client, in the server's task.
const REQUEST_END: [&str; 3] = ["blk_update_request", "blk_mq_end_request", "__blk_mq_end_request"];

/// The part that this stack belongs to.
pub(super) fn of(stack: &Stack) -> Part {
    let is_server = stack.task.starts_with("ublkb");
    if !is_server && stack.task != "fio" {
        return Part::Other;
    }
    let decisive = (0..stack.frames.len())
        .rev()
        .find_map(|n| Some((n, layer(&stack.frames[n])?)));
    let Some((n, layer)) = decisive else {
        return match (stack.frames.iter().any(|frame| frame.in_kernel), is_server) {
            (true, _) => Part::Other,
            (false, true) => Part::Server,
            (false, false) => Part::Client,
        };
    };
    let callers = &stack.frames[..=n];
    let below_ublk = callers
        .iter()
        .any(|frame| self::layer(frame) == Some(Layer::Ublk));
    let ends_request = callers
        .iter()
        .any(|frame| REQUEST_END.contains(&frame.name.as_str()));
    match layer {
        Layer::Classifier => Part::Classifier,
        Layer::Ublk => Part::Ublk,
        Layer::Driver => Part::Backing,
        Layer::Other => Part::Other,
        Layer::Block if is_server && !below_ublk && !ends_request => Part::Backing,
        Layer::Block => Part::Block,
        // ublk_drv wakes the server from the client's task, and registers pages with the server's ring.
        Layer::Uring if is_server && !ends_request || !is_server && below_ublk => Part::ServerUring,
        Layer::Uring => Part::ClientUring,
    }
}

fn layer(frame: &Frame) -> Option<Layer> {
    let named = |prefixes: &[&str]| prefixes.iter().any(|prefix| frame.name.starts_with(prefix));
    RULES
        .iter()
        .find(|(_, prefixes)| frame.in_kernel && named(prefixes))
        .map(|(layer, _)| *layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_guest::profile::stacks::unfold;

    fn part(folded: &str) -> Part {
        let line = folded
            .replace("k:", "")
            .split(';')
            .map(str::to_owned)
            .collect::<Vec<_>>();
        let kernel = folded.split(';').map(|word| word.starts_with("k:"));
        let words: Vec<String> = line
            .iter()
            .zip(kernel)
            .map(|(word, kernel)| {
                if kernel {
                    format!("{word}_[k]")
                } else {
                    word.clone()
                }
            })
            .collect();
        of(&unfold(&format!("{} 1", words.join(";"))).expect("a stack").0)
    }

    #[test]
    fn the_innermost_known_function_decides() {
        assert_eq!(part("fio;[fio]"), Part::Client);
        assert_eq!(
            part("fio;[fio];k:do_syscall_64;k:io_submit_sqes;k:__rcu_read_lock"),
            Part::ClientUring
        );
        assert_eq!(
            part("fio;[fio];k:io_submit_sqes;k:io_read;k:blkdev_read_iter;k:memset"),
            Part::Block
        );
        assert_eq!(part("fio;k:ublk_prep_req;k:blk_mq_start_request"), Part::Block);
        assert_eq!(
            part("fio;k:blk_mq_start_request;k:bpf_trace_run1;k:bpf_prog_1_classify"),
            Part::Classifier
        );
        assert_eq!(
            part("fio;k:blk_mq_flush_plug_list;k:ublk_batch_queue_rqs"),
            Part::Ublk
        );
        assert_eq!(
            part("ublkb0-q0;syscall;k:io_cqring_wait;k:schedule;k:__schedule"),
            Part::Other
        );
        assert_eq!(
            part("ublkb0-q0;ublk_bpf::serve"),
            Part::Server,
            "a program's function is no kernel's"
        );
        assert_eq!(part("fio;[fio];k:entry_SYSCALL_64"), Part::Other);
        assert_eq!(part("kworker/0:1;k:blk_mq_run_work_fn"), Part::Other);
    }

    #[test]
    fn the_stack_tells_for_whom_io_uring_and_the_block_layer_work() {
        // The server's own I/O on the backing device, and its completion.
        let read = "ublkb0-q0;syscall;k:io_submit_sqes;k:io_read;k:blkdev_read_iter";
        assert_eq!(part(read), Part::Backing);
        assert_eq!(
            part(&format!("{read};k:brd_submit_bio;k:memcpy_orig")),
            Part::Backing
        );
        assert_eq!(
            part(&format!("{read};k:bio_endio;k:io_complete_rw")),
            Part::ServerUring
        );
        // The server commits, and so ends the client's request.
        let commit = "ublkb0-q0;syscall;k:io_uring_cmd;k:ublk_batch_commit_io";
        assert_eq!(
            part(&format!("{commit};k:io_buffer_unregister")),
            Part::ServerUring
        );
        assert_eq!(part(&format!("{commit};k:blk_mq_end_request")), Part::Block);
        let end = format!("{commit};k:blk_update_request;k:bio_endio");
        assert_eq!(part(&end), Part::Block);
        assert_eq!(part(&format!("{end};k:io_complete_rw")), Part::ClientUring);
        // The client's task tells the server of new tags.
        assert_eq!(
            part("fio;k:io_submit_sqes;k:ublk_batch_queue_rqs;k:io_req_local_work_add"),
            Part::ServerUring
        );
    }
}
