//! Maps that a policy owns, the same in BPF and in a test.
//!
//! [`map!`](crate::map!) declares one. In BPF it is a map of the kernel's, which `bpftool` sees by its name; on the host it is
//! memory of the thread that uses it, so that tests that run side by side do not see each other's.
//!
//! Values are copied in and out. Two CPUs may do that to one value at a time, and one of the changes is then lost: what
//! must be exact is counted by an atomic instruction or in a map for each CPU (`bpf::btf_maps`).

/// Declares maps of a policy's own: `static NAME: TYPE = "name";`, where the name is what `bpftool` calls the map, at
/// most 15 bytes.
///
/// ```
/// use ublk_bpf_policy::{Table, map};
///
/// map! {
///     /// How often each process asked.
///     static ASKED: Table<u32, u64, 1024> = "asked";
/// }
///
/// ASKED.insert(&7, &1);
/// assert_eq!(ASKED.get(&7), Some(1));
/// ```
#[macro_export]
macro_rules! map {
    ($($(#[$about:meta])* $visibility:vis static $map:ident: $type:ty = $name:literal;)+) => {
        $(
            $(#[$about])*
            #[cfg_attr(target_arch = "bpf", unsafe(link_section = ".maps"), unsafe(export_name = $name))]
            $visibility static $map: $type = {
                const { assert!($name.len() <= 15, "the kernel takes names of up to 15 bytes") };
                <$type>::new()
            };
        )+
    };
}

#[cfg(target_arch = "bpf")]
pub use bpf::{Array, LruTable, Table};
#[cfg(not(target_arch = "bpf"))]
pub use native::{Array, LruTable, Table, clear};

#[cfg(target_arch = "bpf")]
mod bpf {
    use core::ffi::c_void;
    use core::ptr::{NonNull, from_ref, null};

    use aya_ebpf::bindings::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH};
    use aya_ebpf::helpers::generated::{bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem};

    /// Declares the definition of a map, which the loader reads from the object's type information: the kind and the
    /// number of entries are the lengths of arrays that do not exist.
    macro_rules! definition {
        ($(#[$about:meta])* $name:ident<$($type:ident),+>, $kind:ident, $key:ty => $value:ty) => {
            $(#[$about])*
            #[repr(C)]
            pub struct $name<$($type,)+ const N: usize> {
                r#type: *const [i32; $kind as usize],
                key: *const $key,
                value: *const $value,
                max_entries: *const [i32; N],
            }

            // SAFETY: The pointers are never followed, and the kernel's maps are for all CPUs.
            unsafe impl<$($type,)+ const N: usize> Sync for $name<$($type,)+ N> {}

            impl<$($type,)+ const N: usize> $name<$($type,)+ N> {
                /// The definition, for [`map!`](crate::map!).
                #[must_use]
                #[expect(clippy::new_without_default, reason = "it is a declaration, not a value")]
                pub const fn new() -> Self {
                    Self { r#type: null(), key: null(), value: null(), max_entries: null() }
                }

                #[inline(always)]
                fn find(&self, key: &$key) -> Option<NonNull<$value>> {
                    let map = from_ref(self).cast_mut().cast::<c_void>();
                    // SAFETY: The loader has put the map in the definition's place, and the key is of its type.
                    NonNull::new(unsafe { bpf_map_lookup_elem(map, from_ref(key).cast()) }.cast())
                }

                #[inline(always)]
                fn put(&self, key: &$key, value: &$value) -> bool {
                    let map = from_ref(self).cast_mut().cast::<c_void>();
                    // SAFETY: As above; so is the value.
                    unsafe { bpf_map_update_elem(map, from_ref(key).cast(), from_ref(value).cast(), 0) == 0 }
                }
            }
        };
    }

    definition! {
        /// `N` values, numbered from 0; zeroes until someone writes them. The cheapest map to look things up in.
        Array<V>, BPF_MAP_TYPE_ARRAY, u32 => V
    }
    definition! {
        /// Up to `N` values by key.
        Table<K, V>, BPF_MAP_TYPE_HASH, K => V
    }
    definition! {
        /// The `N` values, or nearly so, that were used last, by key.
        LruTable<K, V>, BPF_MAP_TYPE_LRU_HASH, K => V
    }

    /// Changes a value where it is.
    #[inline(always)]
    fn change<V: Copy, R>(place: NonNull<V>, change: impl FnOnce(&mut V) -> R) -> R {
        // SAFETY: The lookup found a value, which stays readable and writable while the program runs.
        let mut value = unsafe { place.read() };
        let result = change(&mut value);
        // SAFETY: As above.
        unsafe { place.write(value) };
        result
    }

    impl<V: Copy, const N: usize> Array<V, N> {
        /// The value of this number; `None` from `N` on.
        #[must_use]
        #[inline(always)]
        pub fn get(&self, index: u32) -> Option<V> {
            // SAFETY: The lookup found a value.
            self.find(&index).map(|place| unsafe { place.read() })
        }

        /// Replaces the value of this number. Says whether there is one.
        #[inline(always)]
        pub fn set(&self, index: u32, value: &V) -> bool {
            self.put(&index, value)
        }

        /// Changes the value of this number and gives what the function gives; `None` from `N` on.
        #[inline(always)]
        pub fn update<R>(&self, index: u32, function: impl FnOnce(&mut V) -> R) -> Option<R> {
            self.find(&index).map(|place| change(place, function))
        }
    }

    macro_rules! by_key {
        ($name:ident) => {
            impl<K: Ord + Copy, V: Copy, const N: usize> $name<K, V, N> {
                /// The value of this key, if it has one.
                #[must_use]
                #[inline(always)]
                pub fn get(&self, key: &K) -> Option<V> {
                    // SAFETY: The lookup found a value.
                    self.find(key).map(|place| unsafe { place.read() })
                }

                /// Gives the key this value, in the place of an older one. Says whether there was room.
                #[inline(always)]
                pub fn insert(&self, key: &K, value: &V) -> bool {
                    self.put(key, value)
                }

                /// Changes the value of this key and gives what the function gives; `None` if it has none.
                #[inline(always)]
                pub fn update<R>(&self, key: &K, function: impl FnOnce(&mut V) -> R) -> Option<R> {
                    self.find(key).map(|place| change(place, function))
                }

                /// Takes the key's value away. Says whether it had one.
                #[inline(always)]
                pub fn remove(&self, key: &K) -> bool {
                    let map = from_ref(self).cast_mut().cast::<c_void>();
                    // SAFETY: The loader has put the map in the definition's place, and the key is of its type.
                    unsafe { bpf_map_delete_elem(map, from_ref(key).cast()) == 0 }
                }
            }
        };
    }

    by_key!(Table);
    by_key!(LruTable);
}

#[cfg(not(target_arch = "bpf"))]
mod native {
    use core::any::Any;
    use core::cell::RefCell;
    use core::marker::PhantomData;
    use core::ptr::from_ref;
    use core::sync::atomic::AtomicU8;

    use std::collections::BTreeMap;

    thread_local! {
        /// The content of this thread's maps, by the address of each map.
        static CONTENT: RefCell<BTreeMap<usize, Box<dyn Any>>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// Empties every map of this thread, for a test that may share its thread with others (`--test-threads=1`).
    pub fn clear() {
        CONTENT.take();
    }

    /// A map's values, each with the time of its last use.
    struct Content<K, V> {
        entries: BTreeMap<K, (u64, V)>,
        time: u64,
    }

    impl<K: Ord + Copy, V> Content<K, V> {
        fn used(&mut self, key: &K) -> Option<&mut V> {
            self.time += 1;
            let (used, value) = self.entries.get_mut(key)?;
            *used = self.time;
            Some(value)
        }

        fn put(&mut self, key: K, value: V, most: usize, makes_room: bool) -> bool {
            self.time += 1;
            if self.entries.len() >= most && !self.entries.contains_key(&key) {
                let oldest = self.entries.iter().min_by_key(|(_, (used, _))| *used);
                let Some(oldest) = oldest.map(|(&key, _)| key).filter(|_| makes_room) else {
                    return false;
                };
                self.entries.remove(&oldest);
            }
            self.entries.insert(key, (self.time, value));
            true
        }
    }

    /// Where a map is: an address of its own, by which each thread finds its content.
    struct Place(AtomicU8);

    impl Place {
        const fn new() -> Self {
            Self(AtomicU8::new(0))
        }

        fn with<K: Ord + 'static, V: 'static, R>(&self, function: impl FnOnce(&mut Content<K, V>) -> R) -> R {
            let address = from_ref(&self.0).addr();
            let mut content = CONTENT
                .with_borrow_mut(|all| all.remove(&address))
                .unwrap_or_else(|| {
                    Box::new(Content::<K, V> {
                        entries: BTreeMap::new(),
                        time: 0,
                    })
                });
            let Some(typed) = content.downcast_mut() else {
                unreachable!("a map has one type");
            };
            let result = function(typed);
            CONTENT.with_borrow_mut(|all| all.insert(address, content));
            result
        }
    }

    /// `N` values, numbered from 0; zeroes until someone writes them. The cheapest map to look things up in.
    pub struct Array<V, const N: usize> {
        place: Place,
        values: PhantomData<fn() -> V>,
    }

    impl<V: Copy + 'static, const N: usize> Array<V, N> {
        /// The definition, for [`map!`](crate::map!).
        #[must_use]
        #[expect(clippy::new_without_default, reason = "it is a declaration, not a value")]
        pub const fn new() -> Self {
            Self {
                place: Place::new(),
                values: PhantomData,
            }
        }

        /// The value of this number; `None` from `N` on.
        #[must_use]
        pub fn get(&self, index: u32) -> Option<V> {
            self.update(index, |value| *value)
        }

        /// Replaces the value of this number. Says whether there is one.
        pub fn set(&self, index: u32, value: &V) -> bool {
            self.update(index, |place| *place = *value).is_some()
        }

        /// Changes the value of this number and gives what the function gives; `None` from `N` on.
        pub fn update<R>(&self, index: u32, function: impl FnOnce(&mut V) -> R) -> Option<R> {
            if index as usize >= N {
                return None;
            }
            Some(self.place.with(|content| {
                let (_, value) = content.entries.entry(index).or_insert_with(|| (0, zeroed()));
                function(value)
            }))
        }
    }

    /// What the kernel fills an array with.
    fn zeroed<V: Copy>() -> V {
        // SAFETY: As in BPF, where the kernel makes the same value and nobody is asked: a map's values are integers and
        // structures of them.
        unsafe { core::mem::zeroed() }
    }

    macro_rules! by_key {
        ($(#[$about:meta])* $name:ident, $makes_room:literal) => {
            $(#[$about])*
            pub struct $name<K, V, const N: usize> {
                place: Place,
                entries: PhantomData<fn() -> (K, V)>,
            }

            impl<K: Ord + Copy + 'static, V: Copy + 'static, const N: usize> $name<K, V, N> {
                /// The definition, for [`map!`](crate::map!).
                #[must_use]
                #[expect(clippy::new_without_default, reason = "it is a declaration, not a value")]
                pub const fn new() -> Self {
                    Self { place: Place::new(), entries: PhantomData }
                }

                /// The value of this key, if it has one.
                #[must_use]
                pub fn get(&self, key: &K) -> Option<V> {
                    self.update(key, |value| *value)
                }

                /// Gives the key this value, in the place of an older one. Says whether there was room.
                pub fn insert(&self, key: &K, value: &V) -> bool {
                    self.place.with(|content: &mut Content<K, V>| content.put(*key, *value, N, $makes_room))
                }

                /// Changes the value of this key and gives what the function gives; `None` if it has none.
                pub fn update<R>(&self, key: &K, function: impl FnOnce(&mut V) -> R) -> Option<R> {
                    self.place.with(|content: &mut Content<K, V>| content.used(key).map(function))
                }

                /// Takes the key's value away. Says whether it had one.
                pub fn remove(&self, key: &K) -> bool {
                    self.place.with(|content: &mut Content<K, V>| content.entries.remove(key).is_some())
                }
            }
        };
    }

    by_key! {
        /// Up to `N` values by key.
        Table, false
    }
    by_key! {
        /// The `N` values, or nearly so, that were used last, by key.
        LruTable, true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    map! {
        static NUMBERS: Array<u64, 2> = "numbers";
        static FEW: Table<u32, u64, 2> = "few";
        static LAST: LruTable<u32, u64, 2> = "last";
    }

    #[test]
    fn an_array_is_there_from_the_start() {
        assert_eq!(NUMBERS.get(1), Some(0));
        assert!(NUMBERS.set(1, &5));
        assert_eq!(NUMBERS.update(1, |value| core::mem::replace(value, 6)), Some(5));
        assert_eq!((NUMBERS.get(1), NUMBERS.get(2)), (Some(6), None));
        assert!(!NUMBERS.set(2, &1));
    }

    #[test]
    fn a_full_table_takes_no_more() {
        assert!(FEW.insert(&1, &1) && FEW.insert(&2, &2) && FEW.insert(&2, &3));
        assert!(!FEW.insert(&3, &3));
        assert!(FEW.remove(&1) && !FEW.remove(&1));
        assert!(FEW.insert(&3, &3));
        assert_eq!((FEW.get(&1), FEW.get(&2)), (None, Some(3)));
        assert_eq!(FEW.update(&1, |value| *value), None);
    }

    #[test]
    fn an_lru_table_forgets_what_was_not_used() {
        assert!(LAST.insert(&1, &1) && LAST.insert(&2, &2));
        assert_eq!(LAST.get(&1), Some(1));
        assert!(LAST.insert(&3, &3));
        assert_eq!((LAST.get(&1), LAST.get(&2)), (Some(1), None));
    }

    #[test]
    fn threads_do_not_see_each_others_maps() {
        NUMBERS.set(0, &1);
        let other = std::thread::spawn(|| NUMBERS.get(0));
        assert_eq!(other.join().expect("it ran"), Some(0));
        clear();
        assert_eq!(NUMBERS.get(0), Some(0));
    }
}
