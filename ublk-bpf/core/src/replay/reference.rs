//! Lines of reference: what other caches would make of the same reads, if promotions cost no time.

use std::collections::{BTreeSet, VecDeque};

use ublk_bpf_abi::Op;

use super::counts::Counts;
use super::stream::{Part, Stream};
use super::trace::Trace;

/// An algorithm for comparison. Both look at reads alone and load whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reference {
    /// Every read block comes in; the least recently read one goes.
    Lru,
    /// Belady's algorithm: what is read farthest in the future goes, or does not come in. No cache hits more.
    Belady,
}

impl Reference {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Lru, Self::Belady];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "LRU",
            Self::Belady => "Belady",
        }
    }

    /// Runs it with this number of slots, at least 1.
    #[must_use]
    pub fn run(self, trace: &Trace, stream: &Stream, slots: u32) -> Counts {
        let is_read = |part: &&Part| trace.requests()[part.request as usize].op == Op::Read;
        let reads: Vec<&Part> = stream.parts.iter().filter(is_read).collect();
        let hits = match self {
            Self::Lru => lru(&reads, stream.blocks, slots),
            Self::Belady => belady(&reads, stream.blocks, slots),
        };
        count(&reads, &hits, stream.shift)
    }
}

/// What became of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    Hit,
    /// Its block came in.
    Loaded,
    Missed,
}

fn lru(reads: &[&Part], blocks: u32, slots: u32) -> Vec<Served> {
    // A queue in which a block has an entry for each of its last reads; only its newest counts.
    let mut latest = vec![usize::MAX; blocks as usize];
    let mut queue = VecDeque::new();
    let mut used = 0;
    let mut served = Vec::with_capacity(reads.len());
    for (now, part) in reads.iter().enumerate() {
        let place = &mut latest[part.block as usize];
        let is_hit = *place != usize::MAX;
        *place = now;
        queue.push_back((now, part.block));
        if is_hit {
            served.push(Served::Hit);
            continue;
        }
        served.push(Served::Loaded);
        if used < slots {
            used += 1;
            continue;
        }
        while let Some((then, block)) = queue.pop_front() {
            if latest[block as usize] == then {
                latest[block as usize] = usize::MAX;
                break;
            }
        }
    }
    served
}

/// The next read of a block that is not read again.
const NEVER: usize = usize::MAX;

fn belady(reads: &[&Part], blocks: u32, slots: u32) -> Vec<Served> {
    let next = next_reads(reads, blocks);
    // Blocks in the cache, by their next read.
    let mut cached: BTreeSet<(usize, u32)> = BTreeSet::new();
    let mut served = Vec::with_capacity(reads.len());
    for (now, (part, &next)) in reads.iter().zip(&next).enumerate() {
        let is_hit = cached.remove(&(now, part.block));
        if is_hit {
            served.push(Served::Hit);
        }
        let fits = cached.len() < slots as usize;
        let farthest = cached.last().copied().filter(|_| !fits);
        if next == NEVER || farthest.is_some_and(|(then, _)| then <= next) {
            if !is_hit {
                served.push(Served::Missed);
            }
            continue;
        }
        if let Some(farthest) = farthest {
            cached.remove(&farthest);
        }
        cached.insert((next, part.block));
        if !is_hit {
            served.push(Served::Loaded);
        }
    }
    served
}

/// For each read, when its block is read next.
fn next_reads(reads: &[&Part], blocks: u32) -> Vec<usize> {
    let mut next = vec![NEVER; reads.len()];
    let mut latest = vec![NEVER; blocks as usize];
    for (now, part) in reads.iter().enumerate().rev() {
        next[now] = std::mem::replace(&mut latest[part.block as usize], now);
    }
    next
}

fn count(reads: &[&Part], served: &[Served], shift: u32) -> Counts {
    let mut counts = Counts::default();
    for (part, served) in reads.iter().zip(served) {
        let length = u64::from(part.nr_sectors) << 9;
        counts.reads += 1;
        counts.read_bytes += length;
        match served {
            Served::Hit => {
                counts.hits += 1;
                counts.hit_bytes += length;
            }
            Served::Loaded => {
                counts.promoted += 1;
                counts.backing_reads += 1;
                counts.backing_bytes += 1 << shift;
                counts.filled_bytes += 1 << shift;
            }
            Served::Missed => {
                counts.backing_reads += 1;
                counts.backing_bytes += length;
            }
        }
    }
    let mut requests = reads.iter().zip(served).peekable();
    while let Some((part, served)) = requests.next() {
        let mut all_hit = *served == Served::Hit;
        while let Some((_, served)) = requests.next_if(|(next, _)| next.request == part.request) {
            all_hit &= *served == Served::Hit;
        }
        counts.read_requests += 1;
        counts.hit_requests += u64::from(all_hit);
    }
    counts
}
