//! The types that type information (BTF) describes, by their numbers. Sizes, offsets and numbers in it are not trusted:
//! what does not fit is `None`.

use std::ops::Range;

use super::btf_format::{
    Header, KIND_ARRAY, KIND_DATASEC, KIND_ENUM, KIND_ENUM64, KIND_INT, KIND_RESTRICT, KIND_STRUCT,
    KIND_TYPE_TAG, KIND_TYPEDEF, KIND_VAR, bytes_behind, count_of, kind_of,
};
use super::bytes::u32_at;

/// Bytes of a type before what its kind adds (`struct btf_type`).
const TYPE_LEN: usize = 12;
/// How many typedefs, qualifiers and structures may be around each other.
pub(super) const MAX_NESTING: u32 = 16;
/// The bit of `info` that says that members are bit fields, or an enum's values signed.
const FLAG: u32 = 1 << 31;
/// `BTF_INT_SIGNED`, in the word behind an integer.
const INT_SIGNED: u32 = 1 << 24;

/// Type information, taken apart into its types.
#[derive(Debug)]
pub(super) struct TypeTable {
    section: Vec<u8>,
    strings: Range<usize>,
    /// Where each type is; the first one has number 1.
    places: Vec<usize>,
}

/// What a type consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape<'a> {
    /// An integer of so many bytes.
    Int { size: u32, signed: bool },
    /// So many values of one type.
    Array { of: u32, count: u32 },
    /// The members of a structure, or the variables of a section of globals.
    Fields(Vec<Field<'a>>),
    /// An enum of so many bytes, and its values.
    Enum {
        size: u32,
        signed: bool,
        values: Vec<(&'a str, u64)>,
    },
    /// Anything else: unions, pointers, floating-point numbers, bit fields.
    Other,
}

/// A member of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: &'a str,
    pub(super) of: u32,
    /// In bytes from the start of the structure.
    pub(super) offset: u32,
}

impl TypeTable {
    /// Takes a `.BTF` section apart.
    pub(super) fn parse(section: Vec<u8>) -> Option<Self> {
        let Header { types, strings } = Header::parse(&section)?;
        let start = strings.as_ptr().addr() - section.as_ptr().addr();
        let strings = start..start + strings.len();
        let mut places = Vec::new();
        let mut at = types.start;
        while at < types.end {
            places.push(at);
            at += TYPE_LEN + bytes_behind(u32_at(&section, at + 4)?)?;
        }
        (at == types.end).then_some(Self {
            section,
            strings,
            places,
        })
    }

    /// The word at this byte of a type.
    fn word(&self, id: u32, at: usize) -> Option<u32> {
        let place = *self.places.get((id as usize).checked_sub(1)?)?;
        u32_at(&self.section, place + at)
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let text = self.section[self.strings.clone()].get(offset as usize..)?;
        str::from_utf8(text.split(|&byte| byte == 0).next()?).ok()
    }

    /// A type's own name; none if it has none.
    pub(super) fn own_name(&self, id: u32) -> Option<&str> {
        self.string(self.word(id, 0)?).filter(|name| !name.is_empty())
    }

    /// The type without typedefs and qualifiers around it.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_NESTING {
            let kind = kind_of(self.word(id, 4)?);
            if !matches!(kind, KIND_TYPEDEF..=KIND_RESTRICT | KIND_TYPE_TAG) {
                return Some(id);
            }
            id = self.word(id, 8)?;
        }
        None
    }

    /// What a type consists of.
    pub(super) fn shape(&self, id: u32) -> Option<Shape<'_>> {
        let id = self.resolve(id)?;
        let [info, size] = [self.word(id, 4)?, self.word(id, 8)?];
        let has_flag = info & FLAG != 0;
        Some(match kind_of(info) {
            KIND_INT => Shape::Int {
                size,
                signed: self.word(id, TYPE_LEN)? & INT_SIGNED != 0,
            },
            KIND_ARRAY => Shape::Array {
                of: self.word(id, TYPE_LEN)?,
                count: self.word(id, TYPE_LEN + 8)?,
            },
            KIND_STRUCT if !has_flag => Shape::Fields(self.members(id, info)?),
            KIND_DATASEC => Shape::Fields(self.section_variables(id, info)?),
            KIND_ENUM | KIND_ENUM64 => Shape::Enum {
                size,
                signed: has_flag,
                values: self.values(id, info)?,
            },
            _ => Shape::Other,
        })
    }

    fn members(&self, id: u32, info: u32) -> Option<Vec<Field<'_>>> {
        let member = |number: usize| {
            let at = TYPE_LEN + 12 * number;
            let [name, of, bits] = [0, 4, 8].map(|part| self.word(id, at + part));
            Some(Field {
                name: self.string(name?)?,
                of: of?,
                offset: bits? / 8,
            })
        };
        (0..count_of(info) as usize).map(member).collect()
    }

    fn section_variables(&self, id: u32, info: u32) -> Option<Vec<Field<'_>>> {
        let variable = |number: usize| {
            let at = TYPE_LEN + 12 * number;
            let [variable, offset] = [0, 4].map(|part| self.word(id, at + part));
            Some(Field {
                name: self.own_name(variable?).unwrap_or_default(),
                of: self.word(variable?, 8)?,
                offset: offset?,
            })
        };
        (0..count_of(info) as usize).map(variable).collect()
    }

    fn values(&self, id: u32, info: u32) -> Option<Vec<(&str, u64)>> {
        let is_wide = kind_of(info) == KIND_ENUM64;
        let value = |number: usize| {
            let at = TYPE_LEN + number * if is_wide { 12 } else { 8 };
            let low = self.word(id, at + 4)?;
            let value = match (is_wide, info & FLAG) {
                (true, _) => u64::from(low) | u64::from(self.word(id, at + 8)?) << 32,
                (false, 0) => low.into(),
                // The sign goes up to the last bit.
                (false, _) => i64::from(low.cast_signed()).cast_unsigned(),
            };
            Some((self.string(self.word(id, at)?)?, value))
        };
        (0..count_of(info) as usize).map(value).collect()
    }

    /// The bytes of a type.
    pub(super) fn size(&self, id: u32, nesting: u32) -> Option<u32> {
        let nesting = nesting.checked_sub(1)?;
        match self.shape(id)? {
            Shape::Array { of, count } => self.size(of, nesting)?.checked_mul(count),
            Shape::Int { size, .. } | Shape::Enum { size, .. } => Some(size),
            Shape::Fields(_) => self.word(self.resolve(id)?, 8),
            Shape::Other => None,
        }
    }

    /// The type of the variable with this name.
    pub(super) fn variable(&self, name: &str) -> Option<u32> {
        let last = u32::try_from(self.places.len()).ok()?;
        let is_it = |&id: &u32| {
            let kind = self.word(id, 4).map(kind_of);
            kind == Some(KIND_VAR) && self.own_name(id) == Some(name)
        };
        self.word((1..=last).find(is_it)?, 8)
    }

    /// A type as a policy's author writes it, as far as it is known.
    pub(super) fn name(&self, id: u32) -> String {
        self.name_within(id, MAX_NESTING)
            .unwrap_or_else(|| "?".to_owned())
    }

    fn name_within(&self, id: u32, nesting: u32) -> Option<String> {
        let nesting = nesting.checked_sub(1)?;
        if let Some(name) = self.own_name(id) {
            return Some(name.to_owned());
        }
        match self.shape(id)? {
            Shape::Array { of, count } => Some(format!("[{}; {count}]", self.name_within(of, nesting)?)),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::policy::btf_format::section;

    const STRINGS: &[u8] = b"\0u8\0Range\0first\0rule\0Rule\0Pin\0Off\0RULES\0";

    /// The types of a range of bytes with a rule.
    pub(in crate::policy) fn table() -> TypeTable {
        let of = |kind: u32, count: u32| kind << 24 | count;
        let section = section(
            &[
                &[1, of(KIND_INT, 0), 1, 8][..],
                // `[u8; 3]`, indexed by `u8`.
                &[0, of(KIND_ARRAY, 0), 0, 1, 1, 3],
                // Twice the enum below: a name 15, a type 4.
                &[4, of(KIND_STRUCT, 2), 4, 10, 2, 0, 16, 4, 24],
                &[21, of(KIND_ENUM, 2), 1, 26, 1, 30, 7],
                &[34, of(KIND_VAR, 0), 4, 1],
            ]
            .concat(),
            STRINGS,
        );
        TypeTable::parse(section).unwrap()
    }

    #[test]
    fn types_are_taken_apart() {
        let table = table();
        assert_eq!(
            table.shape(1),
            Some(Shape::Int {
                size: 1,
                signed: false
            })
        );
        assert_eq!(table.shape(2), Some(Shape::Array { of: 1, count: 3 }));
        let field = |name, of, offset| Field { name, of, offset };
        assert_eq!(
            table.shape(3),
            Some(Shape::Fields(vec![field("first", 2, 0), field("rule", 4, 3)]))
        );
        let values = vec![("Pin", 1), ("Off", 7)];
        let rule = Shape::Enum {
            size: 1,
            signed: false,
            values,
        };
        assert_eq!(table.shape(4), Some(rule));
        assert_eq!(table.variable("RULES"), Some(4));
        assert_eq!(table.variable("Range"), None);
        assert_eq!(
            [1, 2, 3, 4].map(|id| table.size(id, 4)),
            [Some(1), Some(3), Some(4), Some(1)]
        );
        assert_eq!([1, 2, 3].map(|id| table.name(id)), ["u8", "[u8; 3]", "Range"]);
        assert_eq!((table.shape(0), table.shape(6)), (None, None));
    }

    #[test]
    fn what_refers_to_itself_has_an_end() {
        let typedef = section(&[0, KIND_TYPEDEF << 24, 1], b"\0");
        assert_eq!(TypeTable::parse(typedef).unwrap().shape(1), None);
        let array = section(&[0, KIND_ARRAY << 24, 0, 1, 1, 3], b"\0");
        assert_eq!(TypeTable::parse(array).unwrap().name(1), "?");
    }
}
