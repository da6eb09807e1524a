//! The names of a policy's own reasons, as its type information has them.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;

use ublk_bpf_abi::POLICY_REASONS;

use super::types::{Shape, TypeTable};
use crate::sys::bpf::load::types_of;
use crate::sys::bpf::open_pinned;

/// Letters of a name that are shown.
const MAX_NAME: usize = 40;

/// The names, by the numbers that the policy's decisions carry.
pub type ReasonNames = BTreeMap<u8, String>;

/// The names that the program pinned at `path` was loaded with; none if there is no such program, or it names none.
///
/// They are for people only: a reason without a name is printed as its number.
#[must_use]
pub fn reason_names(path: &Path) -> ReasonNames {
    let types = open_pinned(path).and_then(|program| types_of(program.as_fd()));
    let types = types.ok().and_then(TypeTable::parse);
    types.map(|types| named_in(&types)).unwrap_or_default()
}

/// The names in an object's types: those of the enum that [`POLICY_REASONS`] lists.
pub(super) fn named_in(types: &TypeTable) -> ReasonNames {
    let of = types.variable(POLICY_REASONS).and_then(|id| types.shape(id));
    let Some(Shape::Array { of, .. }) = of else {
        return ReasonNames::new();
    };
    let Some(Shape::Enum { values, .. }) = types.shape(of) else {
        return ReasonNames::new();
    };
    let named = values
        .into_iter()
        .map(|(name, code)| Some((u8::try_from(code).ok()?, kebab(name))));
    named.flatten().collect()
}

/// `OverQuota` as `over-quota`, as the other reasons are written. A name comes from the object: what is no letter or
/// digit is left out, and what is longer than a line cut.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars().filter(char::is_ascii_alphanumeric).take(MAX_NAME) {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_other_reasons_are() {
        let names = ["Bulk", "OverQuota", "Tier2Full", "a\u{1b}[2J", ""];
        assert_eq!(names.map(kebab), ["bulk", "over-quota", "tier2-full", "a2-j", ""]);
    }
}
