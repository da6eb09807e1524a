//! What an operator looks at first: rates, latencies, and what the cache is worth.

use std::fmt;

use ublk_bpf_abi::{Op, SECTOR_SIZE, Verdict};

use super::amount::{amount, duration, percent};
use super::{Histograms, OpRequests, Savings, Stats, VERDICTS};

/// Widths of the columns: together less than a terminal's 80.
const NAME: usize = 19;
const COUNT: usize = 15;
const TIME: usize = 12;

/// A few lines about the last interval, or about the time since the start if there is none.
pub(super) struct Overview<'a> {
    requests: Vec<OpRequests>,
    histograms: Option<&'a Histograms>,
    savings: Option<Savings>,
    /// Length of the interval; `None`: since the start.
    seconds: Option<f64>,
}

impl<'a> Overview<'a> {
    pub(super) fn of(stats: &'a Stats) -> Self {
        if let Some(interval) = &stats.interval {
            return Self {
                requests: interval.requests.clone(),
                histograms: interval.histograms.as_ref(),
                savings: interval.savings,
                seconds: Some(interval.seconds),
            };
        }
        Self {
            requests: stats.decisions.iter().map(OpRequests::of).collect(),
            histograms: stats.histograms.as_ref(),
            savings: stats.savings,
            seconds: None,
        }
    }

    /// A count of the period as it is shown: per second in an interval.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "rounded"
    )]
    fn rate(&self, count: i64) -> i64 {
        self.seconds.map_or(count, |seconds| {
            (count as f64 / seconds.max(0.001)).round() as i64
        })
    }

    fn count(&self, count: u64) -> u64 {
        self.rate(count.cast_signed()).cast_unsigned()
    }

    fn header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (period, per) = match self.seconds {
            Some(seconds) => (format!("last {seconds:.1} s"), "/s"),
            None => ("since start".to_owned(), ""),
        };
        write!(f, "{period:<NAME$}")?;
        for name in ["requests", "bytes"] {
            write!(f, "{:>COUNT$}", format!("{name}{per}"))?;
        }
        if self.histograms.is_some() {
            write!(f, "{:>TIME$}{:>TIME$}", "p50", "p99")?;
        }
        writeln!(f)
    }

    fn operation(&self, f: &mut fmt::Formatter<'_>, of: &OpRequests) -> fmt::Result {
        let bytes = amount(self.count(of.sectors.saturating_mul(SECTOR_SIZE)));
        let requests = self.count(of.requests);
        writeln!(
            f,
            "  {:<1$}{requests:>COUNT$}{bytes:>COUNT$}",
            of.op.name(),
            NAME - 2
        )?;
        for (verdict, &requests) in VERDICTS.iter().zip(&of.verdicts) {
            self.verdict(f, of.op, *verdict, requests)?;
        }
        Ok(())
    }

    fn verdict(&self, f: &mut fmt::Formatter<'_>, op: Op, verdict: Verdict, requests: u64) -> fmt::Result {
        let of_both = |all: &'a Histograms| {
            let mut all = all.latencies.iter();
            all.find(|of| (of.op, of.verdict) == (op, verdict))
        };
        let latency = self.histograms.and_then(of_both);
        if requests == 0 && latency.is_none() {
            return Ok(());
        }
        let requests = self.count(requests);
        write!(f, "    {:<1$}{requests:>COUNT$}", verdict.name(), NAME - 4)?;
        if let Some(latency) = latency {
            let at = |part| latency.ns.quantile(part).map_or_else(String::new, duration);
            write!(f, "{:>1$}{2:>TIME$}", at(0.5), COUNT + TIME, at(0.99))?;
        }
        writeln!(f)
    }

    fn cache(&self, f: &mut fmt::Formatter<'_>, savings: &Savings) -> fmt::Result {
        let (hits, of_bytes) = (percent(savings.hit_ratio), percent(savings.hit_ratio_bytes));
        writeln!(
            f,
            "  {:<1$}{hits:>COUNT$}{of_bytes:>COUNT$}",
            "hits of all reads",
            NAME - 2
        )?;
        let saved = self.rate(savings.backing_reads_saved);
        let bytes = super::amount::signed(self.rate(savings.backing_bytes_saved));
        writeln!(
            f,
            "  {:<1$}{saved:>COUNT$}{bytes:>COUNT$}",
            "backing saved",
            NAME - 2
        )
    }
}

impl fmt::Display for Overview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let busy: Vec<_> = self.requests.iter().filter(|of| of.requests != 0).collect();
        match self.seconds {
            Some(seconds) if busy.is_empty() => return writeln!(f, "no request in the last {seconds:.1} s"),
            None if busy.is_empty() => return writeln!(f, "no request was classified yet"),
            _ => self.header(f)?,
        }
        for of in busy {
            self.operation(f, of)?;
        }
        self.savings
            .as_ref()
            .map_or(Ok(()), |savings| self.cache(f, savings))
    }
}
