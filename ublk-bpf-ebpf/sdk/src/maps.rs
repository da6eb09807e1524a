//! Maps that a policy owns, with the same interface in BPF and in tests.
//!
//! [`map!`](crate::map!) declares one. In BPF it is a kernel map, which `bpftool` shows under its name. On the host it
//! is thread-local memory, so that tests running in parallel do not share it.
//!
//! Values are copied in and out. If two CPUs update a value at the same time, one update is lost. For exact counts use
//! an atomic instruction or a per-CPU map (`bpf::btf_maps`).

/// Declares a policy's maps: `static NAME: TYPE = "name";`. `bpftool` shows the map under this name, which has at most
/// 15 bytes.
///
/// ```
/// use ublk_bpf_policy::{Table, map};
///
/// map! {
///     /// Requests of each process.
///     static REQUESTS: Table<u32, u64, 1024> = "requests";
/// }
///
/// REQUESTS.insert(&7, &1);
/// assert_eq!(REQUESTS.get(&7), Some(1));
/// ```
#[macro_export]
macro_rules! map {
    ($($(#[$about:meta])* $visibility:vis static $map:ident: $type:ty = $name:literal;)+) => {
        $(
            $(#[$about])*
            #[cfg_attr(target_arch = "bpf", unsafe(link_section = ".maps"), unsafe(export_name = $name))]
            $visibility static $map: $type = {
                const { assert!($name.len() <= 15, "a map name has at most 15 bytes") };
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

    /// Declares a BTF map definition, which the loader reads from the object's type information. Array lengths encode
    /// the map type and the number of entries.
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

            // SAFETY: The pointers are never dereferenced, and kernel maps are safe to use from all CPUs.
            unsafe impl<$($type,)+ const N: usize> Sync for $name<$($type,)+ N> {}

            impl<$($type,)+ const N: usize> $name<$($type,)+ N> {
                /// The definition, for [`map!`](crate::map!).
                #[must_use]
                #[expect(clippy::new_without_default, reason = "a declaration, not a value")]
                pub const fn new() -> Self {
                    Self { r#type: null(), key: null(), value: null(), max_entries: null() }
                }

                #[inline(always)]
                fn find(&self, key: &$key) -> Option<NonNull<$value>> {
                    let map = from_ref(self).cast_mut().cast::<c_void>();
                    // SAFETY: The loader replaces the definition with the map, and the key has its key type.
                    NonNull::new(unsafe { bpf_map_lookup_elem(map, from_ref(key).cast()) }.cast())
                }

                #[inline(always)]
                fn put(&self, key: &$key, value: &$value) -> bool {
                    let map = from_ref(self).cast_mut().cast::<c_void>();
                    // SAFETY: As above; the value has its value type.
                    unsafe { bpf_map_update_elem(map, from_ref(key).cast(), from_ref(value).cast(), 0) == 0 }
                }
            }
        };
    }

    definition! {
        /// `N` values with indices from 0, initially zero. The map with the cheapest look-up.
        Array<V>, BPF_MAP_TYPE_ARRAY, u32 => V
    }
    definition! {
        /// A hash table of up to `N` values.
        Table<K, V>, BPF_MAP_TYPE_HASH, K => V
    }
    definition! {
        /// A hash table that evicts the least recently used values, approximately, to stay within `N`.
        LruTable<K, V>, BPF_MAP_TYPE_LRU_HASH, K => V
    }

    /// Changes a value in place.
    #[inline(always)]
    fn change<V: Copy, R>(place: NonNull<V>, change: impl FnOnce(&mut V) -> R) -> R {
        // SAFETY: The look-up found a value, which stays readable and writable while the program runs.
        let mut value = unsafe { place.read() };
        let result = change(&mut value);
        // SAFETY: As above.
        unsafe { place.write(value) };
        result
    }

    impl<V: Copy, const N: usize> Array<V, N> {
        /// The value at `index`; `None` if `index` is not below `N`.
        #[must_use]
        #[inline(always)]
        pub fn get(&self, index: u32) -> Option<V> {
            // SAFETY: The look-up found a value.
            self.find(&index).map(|place| unsafe { place.read() })
        }

        /// Sets the value at `index`. Returns whether `index` is below `N`.
        #[inline(always)]
        pub fn set(&self, index: u32, value: &V) -> bool {
            self.put(&index, value)
        }

        /// Changes the value at `index` and returns the result of `function`; `None` if `index` is not below `N`.
        #[inline(always)]
        pub fn update<R>(&self, index: u32, function: impl FnOnce(&mut V) -> R) -> Option<R> {
            self.find(&index).map(|place| change(place, function))
        }
    }

    macro_rules! by_key {
        ($name:ident) => {
            impl<K: Ord + Copy, V: Copy, const N: usize> $name<K, V, N> {
                /// The value for `key`, if there is one.
                #[must_use]
                #[inline(always)]
                pub fn get(&self, key: &K) -> Option<V> {
                    // SAFETY: The look-up found a value.
                    self.find(key).map(|place| unsafe { place.read() })
                }

                /// Inserts or replaces the value for `key`. Returns false if the table is full.
                #[inline(always)]
                pub fn insert(&self, key: &K, value: &V) -> bool {
                    self.put(key, value)
                }

                /// Passes the place of the value for `key` to `function`, for atomic instructions; `None` if there is none.
                #[inline(always)]
                pub fn visit<R>(&self, key: &K, function: impl FnOnce(NonNull<V>) -> R) -> Option<R> {
                    self.find(key).map(function)
                }

                /// Changes the value for `key` and returns the result of `function`; `None` if there is none.
                #[inline(always)]
                pub fn update<R>(&self, key: &K, function: impl FnOnce(&mut V) -> R) -> Option<R> {
                    self.find(key).map(|place| change(place, function))
                }

                /// Removes the value for `key`. Returns whether there was one.
                #[inline(always)]
                pub fn remove(&self, key: &K) -> bool {
                    let map = from_ref(self).cast_mut().cast::<c_void>();
                    // SAFETY: The loader replaces the definition with the map, and the key has its key type.
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
    use core::ptr::{NonNull, from_ref};
    use core::sync::atomic::AtomicU8;

    use std::collections::BTreeMap;

    thread_local! {
        /// Contents of this thread's maps, by the address of each map.
        static CONTENT: RefCell<BTreeMap<usize, Box<dyn Any>>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// Clears every map of this thread, for tests that may share a thread with others (`--test-threads=1`).
    pub fn clear() {
        CONTENT.take();
    }

    /// A map's values, each with its time of last use.
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

        fn put(&mut self, key: K, value: V, capacity: usize, evicts: bool) -> bool {
            self.time += 1;
            if self.entries.len() >= capacity && !self.entries.contains_key(&key) {
                let oldest = self.entries.iter().min_by_key(|(_, (used, _))| *used);
                let Some(oldest) = oldest.map(|(&key, _)| key).filter(|_| evicts) else {
                    return false;
                };
                self.entries.remove(&oldest);
            }
            self.entries.insert(key, (self.time, value));
            true
        }
    }

    /// Identity of a map: a unique address, by which each thread finds its contents.
    struct MapId(AtomicU8);

    impl MapId {
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

    /// `N` values with indices from 0, initially zero. The map with the cheapest look-up.
    pub struct Array<V, const N: usize> {
        id: MapId,
        values: PhantomData<fn() -> V>,
    }

    impl<V: Copy + 'static, const N: usize> Array<V, N> {
        /// The definition, for [`map!`](crate::map!).
        #[must_use]
        #[expect(clippy::new_without_default, reason = "a declaration, not a value")]
        pub const fn new() -> Self {
            Self {
                id: MapId::new(),
                values: PhantomData,
            }
        }

        /// The value at `index`; `None` if `index` is not below `N`.
        #[must_use]
        pub fn get(&self, index: u32) -> Option<V> {
            self.update(index, |value| *value)
        }

        /// Sets the value at `index`. Returns whether `index` is below `N`.
        pub fn set(&self, index: u32, value: &V) -> bool {
            self.update(index, |place| *place = *value).is_some()
        }

        /// Changes the value at `index` and returns the result of `function`; `None` if `index` is not below `N`.
        pub fn update<R>(&self, index: u32, function: impl FnOnce(&mut V) -> R) -> Option<R> {
            if index as usize >= N {
                return None;
            }
            Some(self.id.with(|content| {
                let (_, value) = content.entries.entry(index).or_insert_with(|| (0, zeroed()));
                function(value)
            }))
        }
    }

    /// The initial value of an array element.
    fn zeroed<V: Copy>() -> V {
        // SAFETY: As in BPF, where the kernel zeroes the value without knowing its type: map values are integers and
        // structures of them, for which all zeroes is valid.
        unsafe { core::mem::zeroed() }
    }

    macro_rules! by_key {
        ($(#[$about:meta])* $name:ident, $evicts:literal) => {
            $(#[$about])*
            pub struct $name<K, V, const N: usize> {
                id: MapId,
                entries: PhantomData<fn() -> (K, V)>,
            }

            impl<K: Ord + Copy + 'static, V: Copy + 'static, const N: usize> $name<K, V, N> {
                /// The definition, for [`map!`](crate::map!).
                #[must_use]
                #[expect(clippy::new_without_default, reason = "a declaration, not a value")]
                pub const fn new() -> Self {
                    Self { id: MapId::new(), entries: PhantomData }
                }

                /// The value for `key`, if there is one.
                #[must_use]
                pub fn get(&self, key: &K) -> Option<V> {
                    self.update(key, |value| *value)
                }

                /// Inserts or replaces the value for `key`. Returns false if the table is full.
                pub fn insert(&self, key: &K, value: &V) -> bool {
                    self.id.with(|content: &mut Content<K, V>| content.put(*key, *value, N, $evicts))
                }

                /// Passes the place of the value for `key` to `function`, for atomic instructions; `None` if there is none.
                pub fn visit<R>(&self, key: &K, function: impl FnOnce(NonNull<V>) -> R) -> Option<R> {
                    self.update(key, |value| function(NonNull::from(value)))
                }

                /// Changes the value for `key` and returns the result of `function`; `None` if there is none.
                pub fn update<R>(&self, key: &K, function: impl FnOnce(&mut V) -> R) -> Option<R> {
                    self.id.with(|content: &mut Content<K, V>| content.used(key).map(function))
                }

                /// Removes the value for `key`. Returns whether there was one.
                pub fn remove(&self, key: &K) -> bool {
                    self.id.with(|content: &mut Content<K, V>| content.entries.remove(key).is_some())
                }
            }
        };
    }

    by_key! {
        /// A hash table of up to `N` values.
        Table, false
    }
    by_key! {
        /// A hash table that evicts the least recently used values, approximately, to stay within `N`.
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
    fn an_array_starts_as_zeroes() {
        assert_eq!(NUMBERS.get(1), Some(0));
        assert!(NUMBERS.set(1, &5));
        assert_eq!(NUMBERS.update(1, |value| core::mem::replace(value, 6)), Some(5));
        assert_eq!((NUMBERS.get(1), NUMBERS.get(2)), (Some(6), None));
        assert!(!NUMBERS.set(2, &1));
    }

    #[test]
    fn a_full_table_rejects_new_keys() {
        assert!(FEW.insert(&1, &1) && FEW.insert(&2, &2) && FEW.insert(&2, &3));
        assert!(!FEW.insert(&3, &3));
        assert!(FEW.remove(&1) && !FEW.remove(&1));
        assert!(FEW.insert(&3, &3));
        assert_eq!((FEW.get(&1), FEW.get(&2)), (None, Some(3)));
        assert_eq!(FEW.update(&1, |value| *value), None);
    }

    #[test]
    fn an_lru_table_evicts_the_least_recently_used() {
        assert!(LAST.insert(&1, &1) && LAST.insert(&2, &2));
        assert_eq!(LAST.get(&1), Some(1));
        assert!(LAST.insert(&3, &3));
        assert_eq!((LAST.get(&1), LAST.get(&2)), (Some(1), None));
    }

    #[test]
    fn threads_have_separate_maps() {
        NUMBERS.set(0, &1);
        let other = std::thread::spawn(|| NUMBERS.get(0));
        assert_eq!(other.join().expect("it ran"), Some(0));
        clear();
        assert_eq!(NUMBERS.get(0), Some(0));
    }
}
