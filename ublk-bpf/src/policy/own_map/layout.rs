//! Keys and values as people write them, by their types.

use serde_json::{Map, Value};

use super::number::{Integer, Unit, cgroup_path};
use crate::policy::types::{MAX_NESTING, Shape, TypeTable};

/// Values with more numbers are shown without those that are zero.
const SHOWN_WHOLE: usize = 16;
/// Names that an error lists.
const LISTED: usize = 16;
/// The field of a structure without names, `Sector(u64)`, as rustc calls it.
const UNNAMED: &str = "__0";

/// A key or value: its numbers and texts, and where in its bytes they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: usize,
    leaves: Vec<Leaf>,
}

/// A number or text in a key or value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leaf {
    /// Its name: `first_sector`, `list.3`, or nothing if the whole is one number.
    path: String,
    at: usize,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Integer(Integer, Unit),
    Enum(Integer, Vec<(String, u64)>),
    /// Bytes that may be text, zero padded.
    Text(usize),
}

impl Layout {
    /// The layout of a type, for a map or its key of this name; without a type, of a number.
    pub(super) fn of(types: Option<(&TypeTable, u32)>, size: usize, name: &str) -> Option<Self> {
        let mut leaves = Vec::new();
        match types {
            Some((types, id)) => Walk {
                types,
                size,
                leaves: &mut leaves,
            }
            .add(id, "", 0, &[name], MAX_NESTING)?,
            None if matches!(size, 1 | 2 | 4 | 8) => leaves.push(Leaf {
                path: String::new(),
                at: 0,
                kind: Kind::Integer(integer(size, false), Unit::of(&[name])),
            }),
            None => return None,
        }
        (!leaves.is_empty()).then_some(Self { size, leaves })
    }

    /// Parses a key: a number or text, or all fields as `a=1,b=2`.
    pub(super) fn parse_whole(&self, text: &str) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; self.size];
        let parts: Vec<&str> = match &self.leaves[..] {
            [_] => vec![text],
            _ => text.split(',').collect(),
        };
        if parts.len() < self.leaves.len() {
            return Err(format!("want all of its fields, as in {}", self.example()));
        }
        parts.iter().try_for_each(|part| self.assign(part, &mut bytes))?;
        Ok(bytes)
    }

    /// Sets one part: `field=value`, or the value alone where there is one part only.
    pub(super) fn assign(&self, text: &str, bytes: &mut [u8]) -> Result<(), String> {
        let named = text.split_once('=');
        let named = named.and_then(|(path, value)| Some((self.leaf(path)?, value)));
        let (leaf, value) = match (named, &self.leaves[..]) {
            (Some(named), _) => named,
            (None, [only]) => (only, text),
            _ => {
                return Err(format!(
                    "`{}` sets no field: want {}",
                    text.escape_debug(),
                    self.example()
                ));
            }
        };
        leaf.parse(value, &mut bytes[leaf.at..])
            .map_err(|what| match leaf.path.as_str() {
                "" => what,
                path => format!("{path}: {what}"),
            })
    }

    fn leaf(&self, path: &str) -> Option<&Leaf> {
        self.leaves
            .iter()
            .find(|leaf| leaf.path == path && !path.is_empty())
    }

    /// All fields, as they are set.
    fn example(&self) -> String {
        let paths = self
            .leaves
            .iter()
            .take(LISTED)
            .map(|leaf| format!("{}=...", leaf.path));
        let more = if self.leaves.len() > LISTED {
            " and more"
        } else {
            ""
        };
        format!("{}{more}", paths.collect::<Vec<_>>().join(" "))
    }

    /// The number that the whole is, if it is one.
    pub(super) fn number(&self, bytes: &[u8]) -> Option<i128> {
        match &self.leaves[..] {
            [
                Leaf {
                    at,
                    kind: Kind::Integer(of, _),
                    ..
                },
            ] => Some(of.read(&bytes[*at..])),
            _ => None,
        }
    }

    /// A value as text; keys separate their fields by commas, as [`Layout::parse_whole`] takes them.
    pub(super) fn show(&self, bytes: &[u8], separator: &str) -> String {
        let shown = |leaf: &&Leaf| self.leaves.len() <= SHOWN_WHOLE || !leaf.is_zero(bytes);
        let parts: Vec<String> = self
            .leaves
            .iter()
            .filter(shown)
            .map(|leaf| match leaf.path.as_str() {
                "" => leaf.show(bytes),
                path => format!("{path}={}", leaf.show(bytes)),
            })
            .collect();
        if parts.is_empty() {
            "0".to_owned()
        } else {
            parts.join(separator)
        }
    }

    /// A value as JSON: a number or text, or an object with a name for each.
    pub(super) fn json(&self, bytes: &[u8]) -> Value {
        if let [leaf] = &self.leaves[..]
            && leaf.path.is_empty()
        {
            return leaf.json(bytes);
        }
        let fields = self
            .leaves
            .iter()
            .map(|leaf| (leaf.path.clone(), leaf.json(bytes)));
        Value::Object(fields.collect::<Map<_, _>>())
    }

    /// The sum of the values of several CPUs, of its numbers; texts are the first one's.
    pub(super) fn sum(&self, values: &[u8]) -> Vec<u8> {
        let mut cpus = values.chunks(self.size.next_multiple_of(8));
        let mut sum = cpus
            .next()
            .map(|first| first[..self.size].to_vec())
            .unwrap_or_default();
        for cpu in cpus {
            for leaf in &self.leaves {
                let Kind::Integer(of, _) = leaf.kind else { continue };
                let both = of.read(&sum[leaf.at..]) + of.read(&cpu[leaf.at..]);
                // What does not fit wraps, as it does for the policy.
                for (to, from) in sum[leaf.at..].iter_mut().zip(&both.to_le_bytes()[..of.bytes]) {
                    *to = *from;
                }
            }
        }
        sum
    }
}

impl Leaf {
    fn is_zero(&self, bytes: &[u8]) -> bool {
        let size = match self.kind {
            Kind::Integer(of, _) | Kind::Enum(of, _) => of.bytes,
            Kind::Text(size) => size,
        };
        bytes[self.at..self.at + size].iter().all(|&byte| byte == 0)
    }

    fn parse(&self, text: &str, bytes: &mut [u8]) -> Result<(), String> {
        match &self.kind {
            Kind::Integer(of, unit) => of.write(of.parse(text, *unit)?, bytes),
            Kind::Enum(of, values) => {
                let named = values.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
                let number = match named {
                    Some((_, number)) => i128::from(*number),
                    None => of.parse(text, Unit::Plain).map_err(|_| {
                        let names: Vec<&str> = values
                            .iter()
                            .take(LISTED)
                            .map(|(name, _)| name.as_str())
                            .collect();
                        format!("`{}` is none of {}", text.escape_debug(), names.join(", "))
                    })?,
                };
                of.write(number, bytes)
            }
            Kind::Text(size) if text.len() <= *size => {
                bytes[..*size].fill(0);
                bytes[..text.len()].copy_from_slice(text.as_bytes());
                Ok(())
            }
            Kind::Text(size) => Err(format!("`{}` has more than {size} bytes", text.escape_debug())),
        }
    }

    fn show(&self, bytes: &[u8]) -> String {
        match &self.kind {
            Kind::Integer(of, Unit::Cgroup) => {
                let inode = of.read(&bytes[self.at..]);
                let path = u64::try_from(inode).ok().and_then(cgroup_path);
                path.unwrap_or_else(|| inode.to_string())
            }
            _ => match self.json(bytes) {
                Value::String(text) => text,
                other => other.to_string(),
            },
        }
    }

    fn json(&self, bytes: &[u8]) -> Value {
        let bytes = &bytes[self.at..];
        match &self.kind {
            Kind::Integer(of, _) => number(of.read(bytes)),
            Kind::Enum(of, values) => {
                let value = of.read(bytes);
                let named = values.iter().find(|(_, number)| i128::from(*number) == value);
                named.map_or_else(|| number(value), |(name, _)| name.as_str().into())
            }
            Kind::Text(size) => {
                let end = bytes[..*size]
                    .iter()
                    .rposition(|&byte| byte != 0)
                    .map_or(0, |last| last + 1);
                match str::from_utf8(&bytes[..end]) {
                    Ok(text) if !text.contains(char::is_control) => text.into(),
                    _ => bytes[..*size].to_vec().into(),
                }
            }
        }
    }
}

/// A number of at most 64 bits, as JSON.
fn number(value: i128) -> Value {
    match u64::try_from(value) {
        Ok(value) => value.into(),
        Err(_) => i64::try_from(value).unwrap_or(i64::MIN).into(),
    }
}

fn integer(bytes: usize, signed: bool) -> Integer {
    Integer { bytes, signed }
}

/// Collects the numbers and texts of a type of `size` bytes.
struct Walk<'a> {
    types: &'a TypeTable,
    size: usize,
    leaves: &'a mut Vec<Leaf>,
}

impl Walk<'_> {
    /// Adds those of the type `id` at byte `at`. `names` are those around it that may tell what it counts.
    fn add(&mut self, id: u32, path: &str, at: usize, names: &[&str], nesting: u32) -> Option<()> {
        let nesting = nesting.checked_sub(1)?;
        let types = self.types;
        let of_type = types.name(id);
        match types.shape(id)? {
            Shape::Int { size, signed } => {
                let of = integer(size as usize, signed);
                self.leaf(path, at, of.bytes, Kind::Integer(of, Unit::of(names)))
            }
            Shape::Enum { size, signed, values } => {
                let of = integer(size as usize, signed);
                let values = values
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect();
                self.leaf(path, at, of.bytes, Kind::Enum(of, values))
            }
            Shape::Array { of, count } => self.array(of, count as usize, path, at, names, nesting),
            Shape::Fields(fields) => {
                let is_wrapper = matches!(&fields[..], [only] if only.name == UNNAMED);
                for field in fields {
                    let at = at + field.offset as usize;
                    match is_wrapper {
                        true => self.add(field.of, path, at, &[of_type.as_str()], nesting)?,
                        false => self.add(field.of, &join(path, field.name), at, &[field.name], nesting)?,
                    }
                }
                Some(())
            }
            // Padding, pointers, floating-point numbers: not shown, and not set.
            Shape::Other => Some(()),
        }
    }

    fn array(
        &mut self,
        of: u32,
        count: usize,
        path: &str,
        at: usize,
        names: &[&str],
        nesting: u32,
    ) -> Option<()> {
        if self.types.shape(of)?
            == (Shape::Int {
                size: 1,
                signed: false,
            })
            && count > 1
        {
            return self.leaf(path, at, count, Kind::Text(count));
        }
        let size = self.types.size(of, nesting).filter(|&size| size > 0)? as usize;
        (at + size.checked_mul(count)? <= self.size).then_some(())?;
        for number in 0..count {
            self.add(
                of,
                &join(path, &number.to_string()),
                at + number * size,
                names,
                nesting,
            )?;
        }
        Some(())
    }

    fn leaf(&mut self, path: &str, at: usize, bytes: usize, kind: Kind) -> Option<()> {
        let fits = at + bytes <= self.size && bytes > 0 && (matches!(kind, Kind::Text(_)) || bytes <= 8);
        fits.then(|| {
            let path = path.to_owned();
            self.leaves.push(Leaf { path, at, kind });
        })
    }
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::types::tests::table;

    /// `Range { first: [u8; 3], rule: Rule }`, as the table has it.
    fn range() -> Layout {
        Layout::of(Some((&table(), 3)), 4, "ranges").unwrap()
    }

    #[test]
    fn fields_are_set_by_name_and_checked() {
        let range = range();
        let mut bytes = vec![0; 4];
        range.assign("first=ab", &mut bytes).unwrap();
        range.assign("rule=pin", &mut bytes).unwrap();
        assert_eq!(bytes, *b"ab\0\x01");
        assert_eq!(range.show(&bytes, " "), "first=ab rule=Pin");
        assert_eq!(
            range.json(&bytes),
            serde_json::json!({"first": "ab", "rule": "Pin"})
        );
        let mut wrong = |text| range.assign(text, &mut bytes).unwrap_err();
        assert_eq!(wrong("first=abcd"), "first: `abcd` has more than 3 bytes");
        assert_eq!(wrong("rule=keep"), "rule: `keep` is none of Pin, Off");
        assert_eq!(wrong("tier=1"), "`tier=1` sets no field: want first=... rule=...");
        assert_eq!(wrong("5"), "`5` sets no field: want first=... rule=...");
        assert_eq!(range.parse_whole("first=ab,rule=7").unwrap(), *b"ab\0\x07");
        assert!(
            range
                .parse_whole("rule=7")
                .unwrap_err()
                .contains("want all of its fields")
        );
        assert_eq!(range.show(&[0xff, 0, 0, 9], ","), "first=[255,0,0],rule=9");
    }

    #[test]
    fn without_a_type_a_number_is_one() {
        let key = Layout::of(None, 8, "by_sector").unwrap();
        assert_eq!(key.parse_whole("1K").unwrap(), 2_u64.to_le_bytes());
        assert_eq!(key.show(&7_u64.to_le_bytes(), ","), "7");
        assert_eq!(key.number(&7_u64.to_le_bytes()), Some(7));
        assert_eq!(Layout::of(None, 12, "other"), None);
    }

    #[test]
    fn counts_of_cpus_are_added() {
        let count = Layout::of(None, 4, "count").unwrap();
        let cpus = [
            1_u64.to_le_bytes(),
            2_u64.to_le_bytes(),
            u64::from(u32::MAX).to_le_bytes(),
        ]
        .concat();
        assert_eq!(count.sum(&cpus), 2_u32.to_le_bytes());
    }

    #[test]
    fn a_type_larger_than_the_map_is_refused() {
        assert_eq!(Layout::of(Some((&table(), 3)), 3, "ranges"), None);
    }
}
