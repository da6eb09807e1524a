//! How the answers of a device's shadow policy compare with those of the policy that decides.

use std::collections::BTreeMap;
use std::fmt;

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use serde::{Serialize, Serializer};
use ublk_bpf_abi::{Compared, Op, Reason, Verdict, map};

use super::read::{codes_of, program};
use super::{ProgramStats, op_name};
use crate::policy::{self, PinDir, PolicyError, ReasonNames, ShadowPolicy, chain};

/// A shadow policy and its answers since it was attached. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShadowStats {
    /// Its name, or the absolute path of its object.
    pub policy: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The kernel's statistics of its program.
    pub program: Option<ProgramStats>,
    /// Both answers to the requests of each operation.
    pub compared: Vec<OpCompared>,
    /// How often the shadow decided for each reason of its own, by the reason's number, without those that never
    /// occurred.
    pub codes: BTreeMap<u8, u64>,
    /// The shadow's names for them.
    pub code_names: ReasonNames,
}

/// Both answers to the requests of one operation, summed over CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OpCompared {
    /// The operation.
    #[serde(serialize_with = "op_name")]
    pub op: Op,
    /// Requests by the verdict of the policy that decides, and by the shadow's.
    #[serde(serialize_with = "by_verdicts")]
    pub verdicts: [[u64; Verdict::COUNT]; Verdict::COUNT],
    /// Requests by the reason of the policy that decides.
    #[serde(serialize_with = "super::by_reason")]
    pub live_reasons: [u64; Reason::COUNT],
    /// Requests by the shadow's reason.
    #[serde(serialize_with = "super::by_reason")]
    pub shadow_reasons: [u64; Reason::COUNT],
    /// Requests whose block the policies want in the cache.
    pub cached: WantsCached,
}

/// Requests by which of the policies hinted that their block be brought into the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WantsCached {
    /// None of them.
    pub neither: u64,
    /// The policy that decides, and not the shadow.
    pub live: u64,
    /// The shadow, and not the policy that decides.
    pub shadow: u64,
    /// Both.
    pub both: u64,
}

impl OpCompared {
    /// Requests that the shadow has answered.
    #[must_use]
    pub fn requests(&self) -> u64 {
        total(self.verdicts.as_flattened())
    }

    /// Those with the same verdict.
    #[must_use]
    pub fn agreed(&self) -> u64 {
        let same: Vec<u64> = (0..Verdict::COUNT).map(|at| self.verdicts[at][at]).collect();
        total(&same)
    }

    /// The sums over CPUs. Wrapping: other processes may have written anything to the map.
    fn sum(op: Op, cpus: &[[u64; Compared::WORDS]]) -> Self {
        let word = |at: usize| cpus.iter().fold(0_u64, |sum, words| sum.wrapping_add(words[at]));
        let reasons = |first: usize| std::array::from_fn(|at| word(first + at));
        Self {
            op,
            verdicts: Verdict::ALL.map(|live| Verdict::ALL.map(|shadow| word(Compared::word(live, shadow)))),
            live_reasons: reasons(Compared::LIVE_REASONS),
            shadow_reasons: reasons(Compared::SHADOW_REASONS),
            cached: WantsCached {
                neither: word(Compared::CACHED),
                live: word(Compared::CACHED + 1),
                shadow: word(Compared::CACHED + 2),
                both: word(Compared::CACHED + 3),
            },
        }
    }
}

fn total(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.wrapping_add(*count))
}

/// Reads what is counted for the shadow of the device with these pins; none without a shadow.
pub(super) fn shadow(pins: &PinDir) -> Result<Option<ShadowStats>, PolicyError> {
    let Some(ShadowPolicy { policy, since, .. }) = ShadowPolicy::of(pins)? else {
        return Ok(None);
    };
    let pinned = pins.shadow();
    let failed = |e: MapError| PolicyError::Access {
        map: map::COMPARED,
        detail: chain(&e),
    };
    let map = MapData::from_pin(pinned.map(map::COMPARED)).map_err(failed)?;
    let entries: PerCpuArray<_, [u64; Compared::WORDS]> =
        PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(failed)?;
    let mut compared = Vec::with_capacity(Op::COUNT);
    for op in Op::ALL {
        compared.push(OpCompared::sum(
            op,
            &entries.get(&(op as u32), 0).map_err(failed)?,
        ));
    }
    Ok(Some(ShadowStats {
        policy,
        since,
        program: program(&pinned.policy())?,
        compared,
        codes: codes_of(&pinned.map(map::SHADOW_CODES))?,
        code_names: policy::reason_names(&pinned.policy()),
    }))
}

fn by_verdicts<S: Serializer>(
    counts: &[[u64; Verdict::COUNT]; Verdict::COUNT],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let row = |row: &[u64; Verdict::COUNT]| -> BTreeMap<&str, u64> {
        let shadow = Verdict::ALL.iter().skip(1).map(|verdict| verdict.name());
        shadow.zip(row.iter().skip(1).copied()).collect()
    };
    let rows = Verdict::ALL
        .iter()
        .map(|verdict| verdict.name())
        .zip(counts.iter().map(row));
    serializer.collect_map(rows)
}

/// Width of names and of counts.
const NAME: usize = 17;
const COUNT: usize = 13;

/// A comparison as text: the verdicts as a matrix, then reasons and hints side by side. Zeroes are `-` or omitted.
impl fmt::Display for ShadowStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |of: &dyn Fn(&OpCompared) -> u64| total(&self.compared.iter().map(of).collect::<Vec<_>>());
        let (requests, agreed) = (sum(&OpCompared::requests), sum(&OpCompared::agreed));
        write!(f, "shadow policy {}: {requests} requests", self.policy)?;
        if let Some(percent) = percent(agreed, requests) {
            write!(f, ", {percent} % with the same verdict")?;
        }
        writeln!(f)?;
        if requests == 0 {
            return Ok(());
        }
        for of in self.compared.iter().filter(|of| of.requests() != 0) {
            matrix(f, of)?;
        }
        row(f, "reasons", &["decided", "shadow"])?;
        for (at, reason) in Reason::ALL.iter().enumerate() {
            let counts = [sum(&|of| of.live_reasons[at]), sum(&|of| of.shadow_reasons[at])];
            counts_row(f, reason.name(), counts)?;
        }
        for (code, count) in &self.codes {
            let number = format!("user {code}");
            let name = self.code_names.get(code).unwrap_or(&number);
            row(f, &format!("  {name}"), &["", &count.to_string()])?;
        }
        let both = sum(&|of| of.cached.both);
        let counts = [
            sum(&|of| of.cached.live).wrapping_add(both),
            sum(&|of| of.cached.shadow).wrapping_add(both),
        ];
        if counts != [0, 0] {
            row(f, "into the cache", &["decided", "shadow"])?;
            counts_row(f, "requests", counts)?;
            counts_row(f, "of these, both", [both, both])?;
        }
        Ok(())
    }
}

/// The requests of one operation: a row for each verdict that was decided, a column for each of the shadow's.
fn matrix(f: &mut fmt::Formatter<'_>, of: &OpCompared) -> fmt::Result {
    let shadow = Verdict::ALL.map(Verdict::name);
    row(f, of.op.name(), &shadow[1..])?;
    for (live, counts) in Verdict::ALL.iter().zip(of.verdicts) {
        if total(&counts) == 0 {
            continue;
        }
        let cells: Vec<String> = counts[1..].iter().map(|&count| or_dash(count)).collect();
        let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
        row(f, &format!("  {}", live.name()), &cells)?;
    }
    Ok(())
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, cells: &[&str]) -> fmt::Result {
    write!(f, "{name:<NAME$}")?;
    for cell in cells {
        write!(f, "{cell:>COUNT$}")?;
    }
    writeln!(f)
}

fn counts_row(f: &mut fmt::Formatter<'_>, name: &str, [live, shadow]: [u64; 2]) -> fmt::Result {
    if [live, shadow] == [0, 0] {
        return Ok(());
    }
    row(f, &format!("  {name}"), &[&or_dash(live), &or_dash(shadow)])
}

fn or_dash(count: u64) -> String {
    if count == 0 {
        "-".to_owned()
    } else {
        count.to_string()
    }
}

#[expect(clippy::cast_precision_loss, reason = "printed with a digit behind the point")]
fn percent(part: u64, whole: u64) -> Option<String> {
    (whole != 0).then(|| format!("{:.1}", part.min(whole) as f64 * 100.0 / whole as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads() -> [u64; Compared::WORDS] {
        let mut words = [0; Compared::WORDS];
        words[Compared::word(Verdict::Passthrough, Verdict::Passthrough)] = 60;
        words[Compared::word(Verdict::Passthrough, Verdict::Hit)] = 30;
        words[Compared::word(Verdict::None, Verdict::Hit)] = 10;
        words[Compared::LIVE_REASONS + Reason::Default as usize] = 90;
        words[Compared::SHADOW_REASONS + Reason::Default as usize] = 60;
        words[Compared::SHADOW_REASONS + Reason::Cached as usize] = 40;
        words[Compared::CACHED] = 40;
        words[Compared::CACHED + 2] = 60;
        words
    }

    fn sample() -> ShadowStats {
        ShadowStats {
            policy: "lru".to_owned(),
            since: 0,
            program: None,
            compared: vec![OpCompared::sum(Op::Read, &[reads(), reads()])],
            codes: BTreeMap::from([(3, 7), (4, 1)]),
            code_names: ReasonNames::from([(4, "bulk".to_owned())]),
        }
    }

    #[test]
    fn a_comparison_is_a_matrix() {
        let expected = "\
shadow policy lru: 200 requests, 60.0 % with the same verdict
read               passthrough          hit         drop         slow
  none                       -           20            -            -
  passthrough              120           60            -            -
reasons                decided       shadow
  default                  180          120
  cached                     -           80
  user 3                                  7
  bulk                                    1
into the cache         decided       shadow
  requests                   -          120
";
        assert_eq!(sample().to_string(), expected);
    }

    #[test]
    fn json_has_both_verdicts_by_name() {
        let json = serde_json::to_value(sample()).unwrap();
        let reads = &json["compared"][0];
        assert_eq!(reads["verdicts"]["passthrough"]["hit"], 60);
        assert_eq!(reads["verdicts"]["none"]["hit"], 20);
        assert_eq!(reads["live_reasons"]["default"], 180);
        assert_eq!(reads["cached"]["shadow"], 120);
        assert_eq!(json["codes"]["3"], 7);
    }
}
