//! What the guest tells the host: one line of JSON for each thing, between whatever else is printed.

use std::fmt;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// What such a line begins with.
const PREFIX: &str = "bench-result: ";

/// What is asked of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Case {
    /// CPUs of the guest, and as many queues, each with its own reader or writer on a CPU of its own.
    pub(super) cpus: u16,
    pub(super) pattern: Pattern,
    pub(super) block: Block,
    /// I/Os in flight for each queue.
    pub(super) depth: u16,
}

/// Where the I/Os go, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Pattern {
    RandomRead,
    SequentialRead,
    RandomWrite,
    SequentialWrite,
}

/// Bytes of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Block {
    Small,
    Large,
}

/// What one run of fio gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) iops: f64,
    /// The servers' part of the CPUs' time.
    pub(super) server: f64,
    /// For how long nothing ran from fio's start to its end, as a part of the time that it measured.
    pub(super) idle: f64,
}

/// One thing that the guest has to tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Message {
    /// Who makes the subject, with the version.
    Version { subject: String, version: String },
    /// A subject's turn begins.
    Turn { subject: String },
    /// What a run gave.
    Run {
        subject: String,
        case: Case,
        sample: Sample,
    },
    /// System calls of the servers for an I/O.
    Calls {
        subject: String,
        case: Case,
        per_io: f64,
    },
    /// The subject could not be measured, and will not be tried again.
    Failed { subject: String, why: String },
    /// The guest ended before its end: what it had told until then counts. The host puts this here itself.
    Ended(String),
}

impl Message {
    /// Prints it for the host.
    pub(super) fn send(&self) -> Result<()> {
        println!("{PREFIX}{}", serde_json::to_string(self)?);
        Ok(())
    }

    /// Reads a line of the guest's; `None` if it is not one of these.
    pub(super) fn parse(line: &str) -> Result<Option<Self>> {
        let Some(json) = line.strip_prefix(PREFIX) else {
            return Ok(None);
        };
        let message =
            serde_json::from_str(json).with_context(|| format!("the guest's result is none: {json}"))?;
        Ok(Some(message))
    }
}

impl Pattern {
    pub(super) const ALL: [Self; 4] = [
        Self::RandomRead,
        Self::SequentialRead,
        Self::RandomWrite,
        Self::SequentialWrite,
    ];

    /// As fio calls it.
    pub(super) fn fio(self) -> &'static str {
        match self {
            Self::RandomRead => "randread",
            Self::SequentialRead => "read",
            Self::RandomWrite => "randwrite",
            Self::SequentialWrite => "write",
        }
    }

    pub(super) fn writes(self) -> bool {
        matches!(self, Self::RandomWrite | Self::SequentialWrite)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RandomRead => "random read",
            Self::SequentialRead => "sequential read",
            Self::RandomWrite => "random write",
            Self::SequentialWrite => "sequential write",
        })
    }
}

impl Block {
    pub(super) const ALL: [Self; 2] = [Self::Small, Self::Large];
}

impl fmt::Display for Block {
    /// As fio takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Small => "4k",
            Self::Large => "64k",
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpus,
            pattern,
            block,
            depth,
        } = self;
        let cpus = plural(*cpus, "CPU");
        write!(f, "{pattern} {block}, depth {depth}, {cpus}")
    }
}

/// `1 CPU`, `2 CPUs`.
pub(super) fn plural(n: u16, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read_and_nothing_else() {
        let message = Message::Run {
            subject: "brd".to_owned(),
            case: Case {
                cpus: 2,
                pattern: Pattern::SequentialWrite,
                block: Block::Large,
                depth: 32,
            },
            sample: Sample {
                iops: 1234.5,
                server: 0.5,
                idle: 0.25,
            },
        };
        let line = format!("{PREFIX}{}", serde_json::to_string(&message).expect("written"));
        assert_eq!(Message::parse(&line).expect("read"), Some(message));
        assert_eq!(Message::parse("modprobe: something").expect("read"), None);
        assert!(Message::parse(&line[..line.len() - 1]).is_err());
    }
}
