//! Names for a policy's own reasons, which `ublk-bpf stats` prints.

/// Declares a policy's own reasons: an enum with a number from 1 to 255 for each.
///
/// `ublk-bpf stats` counts them by name, in lower case with hyphens: `OverQuota` is `over-quota`. The names are in the
/// object's type information, and cost no instruction. A policy has at most one such enum.
///
/// ```
/// use ublk_bpf_policy::{Decision, Verdict, reasons};
///
/// reasons! {
///     /// Why a request does not take the fast path.
///     enum Why {
///         /// A backup reads.
///         Backup = 1,
///         OverQuota = 2,
///     }
/// }
///
/// let decision = Decision::pass().because(Why::OverQuota);
/// assert_eq!(decision, Decision::coded(Verdict::Passthrough, 2));
/// ```
#[macro_export]
macro_rules! reasons {
    ($(#[$about:meta])* $visibility:vis enum $name:ident {
        $($(#[$reason_about:meta])* $reason:ident = $code:literal),+ $(,)?
    }) => {
        $(#[$about])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visibility enum $name {
            $($(#[$reason_about])* $reason = $code,)+
        }

        impl ::core::convert::From<$name> for u8 {
            fn from(reason: $name) -> u8 {
                reason as u8
            }
        }

        const _: () = {
            $(assert!($code != 0, "a reason's number is from 1 to 255: 0 stands for none");)+
        };

        /// Keeps the enum, and with it the names, in the object's type information.
        #[cfg(target_arch = "bpf")]
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "ublk_bpf_reasons")]
        static UBLK_BPF_REASONS: [$name; [$($code),+].len()] = [$($name::$reason),+];
    };
}

#[cfg(test)]
mod tests {
    use crate::{Decision, Verdict};

    reasons! {
        enum Why {
            First = 1,
            Last = 255,
        }
    }

    #[test]
    fn a_reason_is_its_number() {
        let hit = Decision::hit().because(Why::Last).cold();
        assert_eq!(hit, Decision::coded(Verdict::Hit, 255).cold());
        assert_eq!(Decision::pass().because(Why::First).code, 1);
        assert!(Decision::is_answer(hit.pack()));
    }
}
