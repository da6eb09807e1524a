//! What the guest reports to the host: one line of JSON for each thing, between whatever else is printed.

use std::fmt;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// What such a line begins with.
const PREFIX: &str = "bench-result: ";

/// A load on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Case {
    /// CPUs of the guest, and as many queues, each with its own reader or writer on a CPU of its own.
    pub cpus: u16,
    /// Where they go.
    pub pattern: Pattern,
    /// Their size.
    pub block: Block,
    /// I/Os in flight for each queue.
    pub depth: u16,
}

/// Where the I/Os go, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Pattern {
    /// Anywhere in the range.
    RandomRead,
    /// One after the other.
    SequentialRead,
    /// Anywhere in the range.
    RandomWrite,
    /// One after the other.
    SequentialWrite,
}

/// Bytes of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Block {
    /// 4 KiB.
    Small,
    /// 64 KiB.
    Large,
}

/// What one run of fio gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// I/Os per second of the guest's clock.
    pub iops: f64,
    /// The servers' part of the CPUs' time.
    pub server: f64,
    /// For how long nothing ran from fio's start to its end, as a part of the time that it measured.
    pub idle: f64,
}

/// One report of the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// A subject and its version.
    Version {
        /// The subject's name.
        subject: String,
        /// The version of what makes it.
        version: String,
    },
    /// A subject's turn begins.
    Turn {
        /// The subject's name.
        subject: String,
    },
    /// What a run gave.
    Run {
        /// The subject's name.
        subject: String,
        /// The load.
        case: Case,
        /// The result.
        sample: Sample,
    },
    /// System calls of the servers.
    Calls {
        /// The subject's name.
        subject: String,
        /// The load.
        case: Case,
        /// Calls for an I/O.
        per_io: f64,
    },
    /// The subject could not be measured, and will not be tried again.
    Failed {
        /// The subject's name.
        subject: String,
        /// What went wrong.
        why: String,
    },
    /// The guest ended too early: what it reported until then counts. The host adds this itself.
    Ended(String),
}

impl Message {
    /// Prints it for the host.
    pub fn send(&self) -> Result<()> {
        println!("{PREFIX}{}", serde_json::to_string(self)?);
        Ok(())
    }

    /// Reads a line of the guest's; `None` if it is not one of these.
    pub fn parse(line: &str) -> Result<Option<Self>> {
        let Some(json) = line.strip_prefix(PREFIX) else {
            return Ok(None);
        };
        let message =
            serde_json::from_str(json).with_context(|| format!("the guest's result is none: {json}"))?;
        Ok(Some(message))
    }
}

impl Pattern {
    /// In the order of tables.
    pub const ALL: [Self; 4] = [
        Self::RandomRead,
        Self::SequentialRead,
        Self::RandomWrite,
        Self::SequentialWrite,
    ];

    /// As fio calls it.
    pub fn fio(self) -> &'static str {
        match self {
            Self::RandomRead => "randread",
            Self::SequentialRead => "read",
            Self::RandomWrite => "randwrite",
            Self::SequentialWrite => "write",
        }
    }

    /// Whether data is written.
    pub fn writes(self) -> bool {
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
    /// In the order of tables.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];
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
pub fn plural(n: u16, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Random reads, one queue, the depth of the floors.
pub fn is_headline(case: Case) -> bool {
    Block::ALL.map(headline).contains(&case)
}

/// See [`is_headline`].
pub fn headline(block: Block) -> Case {
    Case {
        cpus: 1,
        pattern: Pattern::RandomRead,
        block,
        depth: 128,
    }
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
