//! How long the server keeps a request.

/// How long the server keeps a request before it serves it: up to ten minutes, in steps of an eighth or less.
///
/// A number with five bits of exponent and three of mantissa, as in a floating-point number. What is rounded off does not
/// accumulate where a delay follows from a debt, as those of quotas do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Delay(u8);

impl Delay {
    /// The request is served at once.
    pub const NONE: Self = Self(0);
    /// The longest.
    pub const MAX_MICROS: u64 = 600 * 1_000_000;
    /// log2 of the microseconds that the lowest bit stands for.
    const UNIT: u32 = 4;
    const MANTISSA: u32 = 3;

    /// The longest delay that is not longer than this.
    #[must_use]
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "exponents have five bits, mantissas four"
    )]
    pub const fn from_micros(micros: u64) -> Self {
        let micros = if micros > Self::MAX_MICROS {
            Self::MAX_MICROS
        } else {
            micros
        };
        let units = micros >> Self::UNIT;
        if units < 1 << Self::MANTISSA {
            return Self(units as u8);
        }
        let exponent = crate::log2(units) - Self::MANTISSA;
        // The highest bit of the mantissa is not stored: it adds one to the exponent.
        Self(((exponent as u64) << Self::MANTISSA) as u8 + (units >> exponent) as u8)
    }

    /// The delay with this number, which any is.
    #[must_use]
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Microseconds, at most [`MAX_MICROS`](Self::MAX_MICROS).
    #[must_use]
    pub const fn micros(self) -> u64 {
        let (exponent, mantissa) = (
            self.0 >> Self::MANTISSA,
            self.0 as u64 & ((1 << Self::MANTISSA) - 1),
        );
        let units = match exponent {
            0 => mantissa,
            _ => (mantissa | 1 << Self::MANTISSA) << (exponent - 1),
        };
        let micros = units << Self::UNIT;
        if micros > Self::MAX_MICROS {
            Self::MAX_MICROS
        } else {
            micros
        }
    }

    /// Whether it is one.
    #[must_use]
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_rounded_down_by_an_eighth_at_most() {
        for number in 0..=u8::MAX {
            let delay = Delay::from_number(number);
            if delay.micros() < Delay::MAX_MICROS {
                assert_eq!(Delay::from_micros(delay.micros()), delay);
                assert!(delay.micros() < Delay::from_number(number + 1).micros());
            }
        }
        let mut micros = 1;
        while micros < Delay::MAX_MICROS {
            let rounded = Delay::from_micros(micros).micros();
            assert!(
                rounded <= micros && micros - rounded <= (micros / 8).max(15),
                "{micros}: {rounded}"
            );
            micros += 1 + micros / 7;
        }
        assert_eq!(Delay::from_micros(15), Delay::NONE);
        assert!(Delay::from_micros(u64::MAX).micros() > Delay::MAX_MICROS / 8 * 7);
        assert_eq!(Delay::from_number(u8::MAX).micros(), Delay::MAX_MICROS);
    }
}
