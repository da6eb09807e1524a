//! [`Stats`] as text for people.

use std::fmt;

use ublk_bpf_abi::{CacheCounters, Reason, ServerCounters};

use super::{OpDecisions, RunTime, Stats, VERDICTS};

/// Prints the counts as tables: decisions by verdict and reason for each operation, then the server's counters.
/// Counts of zero are omitted.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a>(pub &'a Stats);

/// Width of the first column and of the counts. Twelve digits are more than a device serves in a year.
const NAME: usize = 17;
const COUNT: usize = 13;

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.0;
        self.decisions(f)?;
        let misses = stats.classifier.recursion_misses;
        writeln!(
            f,
            "\nclassifier: program {}, not run for {misses} requests of any disk (it was running already)",
            stats.classifier.id
        )?;
        match stats.policy {
            Some(policy) => writeln!(
                f,
                "policy: program {}, {} instructions verified",
                policy.id, policy.verified_instructions
            )?,
            None => writeln!(f, "policy: the default one (passthrough)")?,
        }
        if let Some(RunTime { runs, mean_ns }) = stats.run_time {
            let mean = mean_ns.map_or("none".to_owned(), |ns| format!("{ns} ns on average"));
            writeln!(
                f,
                "run time of the classifier with the policy: {mean}, {runs} runs"
            )?;
        }
        writeln!(f)?;
        self.server(f)
    }
}

impl Table<'_> {
    fn decisions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ops: Vec<&OpDecisions> = self.0.decisions.iter().filter(|of| of.requests != 0).collect();
        if ops.is_empty() {
            return writeln!(f, "no request was classified yet");
        }
        let row = |f: &mut fmt::Formatter<'_>, name: &str, count: &dyn Fn(&OpDecisions) -> u64| {
            let counts: Vec<u64> = ops.iter().map(|of| count(of)).collect();
            if counts.iter().all(|&count| count == 0) {
                return Ok(());
            }
            write!(f, "{name:<NAME$}")?;
            for count in &counts {
                write!(f, "{count:>COUNT$}")?;
            }
            writeln!(f)
        };
        write!(f, "{:<NAME$}", "decisions")?;
        for of in &ops {
            write!(f, "{:>COUNT$}", of.op.name())?;
        }
        writeln!(f)?;
        row(f, "  requests", &|of| of.requests)?;
        row(f, "  sectors", &|of| of.sectors)?;
        writeln!(f, "by verdict")?;
        for (at, verdict) in VERDICTS.iter().enumerate() {
            row(f, &format!("  {}", verdict.name()), &|of| of.verdicts[at])?;
        }
        writeln!(f, "by reason")?;
        for (at, reason) in Reason::ALL.iter().enumerate() {
            row(f, &format!("  {}", reason.name()), &|of| of.reasons[at])?;
        }
        if !self.0.codes.is_empty() {
            writeln!(f, "by the policy's own reasons")?;
            for (code, count) in &self.0.codes {
                writeln!(f, "  {code:<15}{count:>COUNT$}")?;
            }
        }
        Ok(())
    }

    fn server(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "server")?;
        counters(f, ServerCounters::FIELDS, &self.0.server.0.values())?;
        if let Some(cache) = self.0.cache {
            writeln!(f, "\ncache")?;
            counters(f, CacheCounters::FIELDS, &cache.0.values())?;
        }
        Ok(())
    }
}

/// Counters with their descriptions, each in a line.
fn counters(f: &mut fmt::Formatter<'_>, fields: &[(&str, &str)], values: &[u64]) -> fmt::Result {
    for ((name, description), value) in fields.iter().zip(values) {
        if *value != 0 {
            writeln!(f, "  {name:<18}{value:>COUNT$}  {}", description.trim())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn what_happened_is_shown_and_the_rest_is_not() {
        let text = Table(&sample()).to_string();
        let expected = "\
decisions                 read
  requests                  10
  sectors                   80
by verdict
  passthrough               10
by reason
  default                   10

classifier: program 7, not run for 1 requests of any disk (it was running already)
policy: the default one (passthrough)

server
  arrived                      11  Requests received from the kernel.
  completed                    11  Requests completed successfully.
  verdict_missing               1  Requests without a verdict: the classifier did not run for them.
";
        assert_eq!(text, expected);
    }
}
