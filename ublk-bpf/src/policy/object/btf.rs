//! The type information of an object (`.BTF`), checked before a library reads it.
//!
//! `aya-obj` does not check offsets and enumerators. So this checks that every offset is inside the section, that every
//! type exists, and that every enumerator is valid by the kernel's `Documentation/bpf/btf.rst`.

use crate::policy::btf_format::{
    Header, KIND_ARRAY, KIND_DATASEC, KIND_DECL_TAG, KIND_ENUM, KIND_ENUM64, KIND_FLOAT, KIND_FUNC,
    KIND_FUNC_PROTO, KIND_FWD, KIND_INT, KIND_PTR, KIND_RESTRICT, KIND_STRUCT, KIND_TYPE_TAG, KIND_UNION,
    KIND_VAR, count_of, kind_of,
};
use crate::policy::bytes::u32_at;

/// Far above legitimate sizes: the policies of this repository have 3 KiB.
const MAX_BYTES: usize = 4 << 20;

/// `BTF_FUNC_STATIC` and `BTF_FUNC_GLOBAL`.
const LINKAGE_STATIC: u32 = 0;
const LINKAGE_GLOBAL: u32 = 1;
/// `BTF_VAR_GLOBAL_EXTERN`, the last linkage of variables.
const LINKAGE_LAST: u32 = 2;

/// Type information whose offsets and type references were checked.
#[derive(Debug)]
pub(super) struct Types<'a> {
    strings: &'a [u8],
    functions: Vec<Function<'a>>,
}

/// A function that the object describes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function<'a> {
    /// The number of its type.
    pub(super) id: u32,
    pub(super) name: &'a str,
    linkage: u32,
    /// Offset in the section of its kind and linkage.
    info_at: usize,
}

impl Function<'_> {
    /// Whether the verifier would verify it once and on its own, not for each call.
    pub(super) fn is_global(&self) -> bool {
        self.linkage == LINKAGE_GLOBAL
    }

    /// The patch that makes it static, in a file whose section begins at byte `base`: offset and bytes.
    pub(super) fn static_info(&self, base: usize) -> (usize, [u8; 4]) {
        let info = (KIND_FUNC << 24) | LINKAGE_STATIC;
        (base + self.info_at, info.to_le_bytes())
    }
}

impl<'a> Types<'a> {
    /// Checks the section `.BTF`.
    pub(super) fn parse(section: &'a [u8]) -> Result<Self, String> {
        if section.len() > MAX_BYTES {
            return Err(format!(
                "type information of {} bytes, more than 4 MiB",
                section.len()
            ));
        }
        let Header { types, strings } =
            Header::parse(section).ok_or_else(|| "the header of .BTF does not fit its section".to_owned())?;
        if strings.first() != Some(&0) || strings.last() != Some(&0) {
            return Err("the strings of .BTF do not begin and end with a zero byte".to_owned());
        }
        let mut walk = TypeWalk {
            section,
            at: types.start,
            end: types.end,
            next_id: 1,
            largest_reference: 0,
            largest_name: 0,
        };
        let mut functions = Vec::new();
        while walk.at < walk.end {
            let id = walk.next_id;
            let function = walk
                .step()
                .ok_or_else(|| format!("type {id} of .BTF is damaged"))?;
            functions.extend(function.map(|(name, linkage, info_at)| (id, name, linkage, info_at)));
        }
        if walk.largest_reference >= walk.next_id {
            return Err(format!(
                ".BTF refers to type {}, which does not exist",
                walk.largest_reference
            ));
        }
        if walk.largest_name as usize >= strings.len() {
            return Err(format!(
                "a name at {} is outside the strings of .BTF",
                walk.largest_name
            ));
        }
        let mut types = Self {
            strings,
            functions: Vec::new(),
        };
        for (id, name, linkage, info_at) in functions {
            let name = types
                .string(name)
                .ok_or_else(|| format!("type {id} of .BTF has a name that is not text"))?;
            types.functions.push(Function {
                id,
                name,
                linkage,
                info_at,
            });
        }
        Ok(types)
    }

    /// The functions in the type information.
    pub(super) fn functions(&self) -> &[Function<'a>] {
        &self.functions
    }

    /// The text at this offset of the strings.
    pub(super) fn string(&self, offset: u32) -> Option<&'a str> {
        let text = self.strings.get(offset as usize..)?;
        str::from_utf8(text.split(|&byte| byte == 0).next()?).ok()
    }
}

/// An iteration over the types.
struct TypeWalk<'a> {
    section: &'a [u8],
    at: usize,
    end: usize,
    next_id: u32,
    largest_reference: u32,
    largest_name: u32,
}

impl TypeWalk<'_> {
    /// Skips one type, `struct btf_type` with the data after it. Returns a function's name, linkage and offset.
    fn step(&mut self) -> Option<Option<(u32, u32, usize)>> {
        let info_at = self.at + 4;
        let [name, info, size_or_type] = [self.word()?, self.word()?, self.word()?];
        self.names(name);
        let (kind, count) = (kind_of(info), count_of(info));
        let mut function = None;
        match kind {
            KIND_INT => drop(self.word()?),
            KIND_ARRAY => {
                let [element, index, _] = [self.word()?, self.word()?, self.word()?];
                self.refers(element);
                self.refers(index);
            }
            KIND_STRUCT | KIND_UNION => self.each(count, |walk| {
                let [name, of, _] = [walk.word()?, walk.word()?, walk.word()?];
                walk.names(name);
                walk.refers(of);
                Some(())
            })?,
            KIND_ENUM => self.each(count, |walk| {
                let [name, _] = [walk.word()?, walk.word()?];
                walk.names(name);
                Some(())
            })?,
            KIND_ENUM64 => self.each(count, |walk| {
                let [name, _, _] = [walk.word()?, walk.word()?, walk.word()?];
                walk.names(name);
                Some(())
            })?,
            KIND_FUNC_PROTO => {
                self.refers(size_or_type);
                self.each(count, |walk| {
                    let [name, of] = [walk.word()?, walk.word()?];
                    walk.names(name);
                    walk.refers(of);
                    Some(())
                })?;
            }
            KIND_FUNC => {
                self.refers(size_or_type);
                (count <= LINKAGE_LAST).then_some(())?;
                function = Some((name, count, info_at));
            }
            KIND_VAR => {
                self.refers(size_or_type);
                (self.word()? <= LINKAGE_LAST).then_some(())?;
            }
            KIND_DATASEC => self.each(count, |walk| {
                let [of, _, _] = [walk.word()?, walk.word()?, walk.word()?];
                walk.refers(of);
                Some(())
            })?,
            KIND_DECL_TAG => {
                self.refers(size_or_type);
                self.word()?;
            }
            KIND_PTR | KIND_TYPE_TAG => self.refers(size_or_type),
            // Typedef, volatile, const, restrict.
            kind if kind > KIND_FWD && kind <= KIND_RESTRICT => self.refers(size_or_type),
            KIND_FWD | KIND_FLOAT => {}
            _ => return None,
        }
        self.next_id = self.next_id.checked_add(1)?;
        Some(function)
    }

    fn word(&mut self) -> Option<u32> {
        let word = u32_at(&self.section[..self.end], self.at)?;
        self.at += 4;
        Some(word)
    }

    fn each(&mut self, count: u32, member: impl Fn(&mut Self) -> Option<()>) -> Option<()> {
        (0..count).try_for_each(|_| member(self))
    }

    fn refers(&mut self, id: u32) {
        self.largest_reference = self.largest_reference.max(id);
    }

    fn names(&mut self, offset: u32) {
        self.largest_name = self.largest_name.max(offset);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::policy::btf_format::section;

    const INT: [u32; 4] = [1, KIND_INT << 24, 4, 32];

    #[test]
    fn functions_are_found_and_made_static() {
        let types = [
            &INT[..],
            &[0, KIND_FUNC_PROTO << 24, 1],
            &[5, KIND_FUNC << 24 | LINKAGE_GLOBAL, 2],
        ];
        let mut bytes = section(&types.concat(), b"\0int\0f\0");
        let (at, info) = {
            let parsed = Types::parse(&bytes).unwrap();
            let [function] = parsed.functions() else { panic!() };
            assert_eq!((function.id, function.name, function.is_global()), (3, "f", true));
            function.static_info(0)
        };
        bytes[at..at + 4].copy_from_slice(&info);
        assert!(!Types::parse(&bytes).unwrap().functions()[0].is_global());
    }

    #[test]
    fn damage_is_named() {
        let with = |types: &[u32], strings: &[u8]| Types::parse(&section(types, strings)).unwrap_err();
        assert!(with(&INT, b"int\0").contains("begin and end with a zero byte"));
        assert!(with(&INT, b"\0int").contains("begin and end with a zero byte"));
        assert!(with(&INT, b"\0").contains("outside the strings"));
        assert!(with(&INT[..3], b"\0int\0").contains("type 1 of .BTF is damaged"));
        assert!(with(&[0, KIND_PTR << 24, 2], b"\0").contains("refers to type 2"));
        assert!(with(&[0, 31 << 24, 0], b"\0").contains("type 1 of .BTF is damaged"));
        assert!(with(&[0, KIND_VAR << 24, 0, 3], b"\0").contains("type 1 of .BTF is damaged"));
        assert!(with(&[0, KIND_STRUCT << 24 | 0xffff, 0], b"\0").contains("type 1 of .BTF is damaged"));
        let whole = section(&INT, b"\0int\0");
        for len in 0..whole.len() {
            assert!(
                Types::parse(&whole[..len]).is_err(),
                "{len} bytes of {}",
                whole.len()
            );
        }
    }
}
