//! Numbers with units, for people.

/// Bytes in the largest unit that they fill.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "rounded")]
pub fn amount(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    format!("{value:.1} {unit}")
}

/// The same of a number that may be negative.
pub(super) fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", amount(bytes.unsigned_abs()))
}

/// A ratio, 0 to 1.
pub(super) fn percent(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0))
}

/// Nanoseconds in the largest unit that they fill.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "rounded")]
pub fn duration(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.1} s", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1 << 30, "1.0 GiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
        assert_eq!(signed(-1536), "-1.5 KiB");
        for (ns, text) in [
            (999, "999 ns"),
            (1_500, "1.5 us"),
            (40_000_000, "40.0 ms"),
            (2_000_000_000, "2.0 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
        assert_eq!(
            (percent(None), percent(Some(0.613))),
            ("-".into(), "61.3 %".into())
        );
    }
}
