//! What `perf script` prints, as stacks that are counted.

use std::collections::BTreeMap;

/// How a kernel function is marked in a folded stack; flame graphs colour by it.
const KERNEL: &str = "_[k]";

/// Where the CPU was: a task, and its functions from the outermost to the one that ran.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stack {
    /// The thread's name.
    pub task: String,
    /// The innermost last.
    pub frames: Vec<Frame>,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    /// As the symbol table has it.
    pub name: String,
    /// Whether the kernel ran it, or a BPF program in it.
    pub in_kernel: bool,
}

/// Stacks, and how often each was seen.
pub type Counted = BTreeMap<Stack, u64>;

/// Reads what `perf script -F comm,ip,sym,dso` prints: for each sample a line with the task and one for each function,
/// the innermost first.
pub fn read_perf(text: &str) -> Counted {
    let mut counted = Counted::new();
    for sample in text.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.trim().is_empty());
        let Some(task) = lines.next() else { continue };
        let mut frames: Vec<Frame> = lines.filter_map(frame).collect();
        // Programs are built without frame pointers: only the first of their functions is reliable.
        let own = frames.iter().position(|frame| !frame.in_kernel);
        frames.truncate(own.map_or(frames.len(), |first| first + 1));
        frames.reverse();
        let stack = Stack {
            task: task.trim().to_owned(),
            frames,
        };
        *counted.entry(stack).or_default() += 1;
    }
    counted
}

/// `ffffffff81000000 function ([kernel.kallsyms])`: BPF programs are objects of their own, named as the function.
fn frame(line: &str) -> Option<Frame> {
    let (_, rest) = line.trim().split_once(' ')?;
    let (name, object) = rest.trim_end_matches(')').rsplit_once(" (")?;
    let in_kernel = object.starts_with('[') && object != "[unknown]" && object != "[vdso]"
        || object.starts_with("bpf_prog_")
        || object.ends_with(".ko");
    let file = object.rsplit('/').next().unwrap_or(object);
    let name = if name == "[unknown]" {
        format!("[{}]", file.trim_matches(['[', ']']))
    } else {
        name.replace(';', ":")
    };
    Some(Frame { name, in_kernel })
}

/// `task;function;function COUNT`, as flame graphs are made of.
pub fn fold(stack: &Stack, count: u64) -> String {
    let mut line = stack.task.replace(';', ":");
    for frame in &stack.frames {
        line.push(';');
        line.push_str(&frame.name);
        if frame.in_kernel {
            line.push_str(KERNEL);
        }
    }
    format!("{line} {count}")
}

/// What [`fold`] made.
pub fn unfold(line: &str) -> Option<(Stack, u64)> {
    let (stack, count) = line.rsplit_once(' ')?;
    let mut words = stack.split(';');
    let task = words.next()?.to_owned();
    let frames = words
        .map(|word| match word.strip_suffix(KERNEL) {
            Some(name) => (name, true),
            None => (word, false),
        })
        .map(|(name, in_kernel)| Frame {
            name: name.to_owned(),
            in_kernel,
        });
    let frames = frames.collect();
    Some((Stack { task, frames }, count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "fio \n\
        \tffffffffc0001000 bpf_prog_cdb1_classify (bpf_prog_cdb1_classify)\n\
        \tffffffff81000000 ublk_prep_req ([kernel.kallsyms])\n\
        \t           1da2ea [unknown] (/usr/bin/fio)\n\
        \t           1da2eb [unknown] ([unknown])\n\n\
        ublkb0-q0 \n\
        \t           12345 ublk_bpf::serve<A, B> (/usr/local/bin/ublk-bpf)\n\n";

    #[test]
    fn samples_are_read_innermost_first_and_kept_outermost_first() {
        let folded: Vec<String> = read_perf(&format!("{SCRIPT}{SCRIPT}"))
            .iter()
            .map(|(stack, count)| fold(stack, *count))
            .collect();
        assert_eq!(
            folded,
            [
                "fio;[fio];ublk_prep_req_[k];bpf_prog_cdb1_classify_[k] 2",
                "ublkb0-q0;ublk_bpf::serve<A, B> 2"
            ]
        );
    }

    #[test]
    fn a_folded_stack_is_read_as_it_was() {
        for (stack, count) in read_perf(SCRIPT) {
            assert_eq!(unfold(&fold(&stack, count)), Some((stack, count)));
        }
        assert_eq!(unfold("no count"), None);
    }
}
