//! How a request is served: by the policy's advice, unless that would lose data.

use super::config::Backing;
use super::request::{Action, BlockRequest};
use super::verdict::Advice;
use super::written::Written;
use crate::errno::Errno;

/// How a request is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Between the request's own pages and the device.
    Direct,
    /// Through a staging buffer.
    Copy,
    /// The request's pages are filled with zeroes; the device is not read.
    Zero,
    /// An operation of the device that has no data.
    Device,
    /// No operation: it succeeds at once.
    Nothing,
    /// It fails.
    Fail(Errno),
}

/// Which counter a request belongs to. Each request that could be parsed belongs to exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Passthrough,
    Dropped,
    Slow,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) route: Route,
    pub(super) class: Class,
    /// The advice was to drop it, and something would have been lost.
    pub(super) refused: bool,
}

/// What a plan depends on, apart from the request and the advice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'w> {
    pub(super) backing: Backing,
    /// The policy may lose data or fail requests (`--allow-lossy`).
    pub(super) lossy: bool,
    pub(super) written: Written<'w>,
}

/// Decides how `request` is served. Nothing but the two flags of `terms` lets advice change what a client
/// reads or what survives.
#[inline]
pub(super) fn plan(request: &BlockRequest, advice: Advice, terms: &Terms<'_>) -> Plan {
    match advice {
        // What is not in the cache passes through, and so does what is no read.
        Advice::Passthrough | Advice::Hit => serve(request, Class::Passthrough, terms),
        Advice::Slow => serve(request, Class::Slow, terms),
        Advice::Drop { fail } => drop(request, fail, terms),
    }
}

/// Serves a request in full.
#[inline]
fn serve(request: &BlockRequest, class: Class, terms: &Terms<'_>) -> Plan {
    let route = match (terms.backing, request.action) {
        (Backing::Null { filled: true }, Action::Read) => Route::Zero,
        (Backing::Null { .. }, _) => Route::Nothing,
        (Backing::Storage(_), Action::Read | Action::Write) => {
            // A request without registered pages has only the slow path, whatever the advice.
            if request.registered && class == Class::Passthrough {
                return Plan {
                    route: Route::Direct,
                    class,
                    refused: false,
                };
            }
            return Plan {
                route: Route::Copy,
                class: Class::Slow,
                refused: false,
            };
        }
        (Backing::Storage(storage), Action::Flush) if !storage.volatile_cache => Route::Nothing,
        (Backing::Storage(_), Action::Flush) => Route::Device,
        (Backing::Storage(storage), Action::Discard) if storage.discard => Route::Device,
        (Backing::Storage(storage), Action::WriteZeroes) if storage.write_zeroes => Route::Device,
        (Backing::Storage(_), Action::Discard | Action::WriteZeroes) => Route::Fail(Errno::EOPNOTSUPP),
    };
    Plan {
        route,
        class,
        refused: false,
    }
}

/// Drops a request if that loses no data, or if the device allows the policy to lose data.
fn drop(request: &BlockRequest, fail: bool, terms: &Terms<'_>) -> Plan {
    let dropped = |route| Plan {
        route,
        class: Class::Dropped,
        refused: false,
    };
    if fail && terms.lossy {
        return dropped(Route::Fail(Errno::EIO));
    }
    let harmless = !fail
        && match request.action {
            Action::Read => terms.lossy || terms.written.reads_as_zeroes(request.offset, request.length),
            Action::Write => terms.lossy,
            // A discard is advisory: its range may keep its content.
            Action::Discard => true,
            // These are promises to the client about what it reads, and what it finds after a power failure.
            Action::Flush | Action::WriteZeroes => false,
        };
    if !harmless {
        return Plan {
            refused: true,
            ..serve(request, Class::Passthrough, terms)
        };
    }
    dropped(if request.action == Action::Read {
        Route::Zero
    } else {
        Route::Nothing
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::*;
    use crate::queue::Capabilities;

    const STORAGE: Backing = Backing::Storage(Capabilities {
        volatile_cache: true,
        discard: true,
        write_zeroes: true,
    });
    const DROP: Advice = Advice::Drop { fail: false };
    const FAIL: Advice = Advice::Drop { fail: true };

    fn request(action: Action) -> BlockRequest {
        let length = if action == Action::Flush { 0 } else { 4096 };
        BlockRequest {
            action,
            durable: false,
            keep_allocated: false,
            registered: true,
            mode: None,
            tenant: 0,
            offset: 0,
            length,
        }
    }

    fn terms(backing: Backing, lossy: bool) -> Terms<'static> {
        Terms {
            backing,
            lossy,
            written: Written::untracked(),
        }
    }

    fn planned(action: Action, advice: Advice, lossy: bool) -> (Route, Class, bool) {
        let plan = plan(&request(action), advice, &terms(STORAGE, lossy));
        (plan.route, plan.class, plan.refused)
    }

    #[test]
    fn passthrough_moves_data_directly_and_slow_by_copy() {
        for action in [Action::Read, Action::Write] {
            assert_eq!(
                planned(action, Advice::Passthrough, false),
                (Route::Direct, Class::Passthrough, false)
            );
            assert_eq!(
                planned(action, Advice::Slow, false),
                (Route::Copy, Class::Slow, false)
            );
        }
        for action in [Action::Flush, Action::Discard, Action::WriteZeroes] {
            assert_eq!(
                planned(action, Advice::Passthrough, false),
                (Route::Device, Class::Passthrough, false)
            );
            assert_eq!(
                planned(action, Advice::Slow, false),
                (Route::Device, Class::Slow, false)
            );
        }
    }

    #[test]
    fn without_registered_pages_data_is_copied_whatever_the_advice() {
        for advice in [Advice::Passthrough, DROP, Advice::Slow] {
            for action in [Action::Read, Action::Write] {
                let request = BlockRequest {
                    registered: false,
                    ..request(action)
                };
                assert_eq!(plan(&request, advice, &terms(STORAGE, false)).route, Route::Copy);
            }
        }
    }

    #[test]
    fn drops_that_lose_something_are_refused() {
        for action in [Action::Read, Action::Write] {
            assert_eq!(
                planned(action, DROP, false),
                (Route::Direct, Class::Passthrough, true)
            );
            assert_eq!(
                planned(action, FAIL, false),
                (Route::Direct, Class::Passthrough, true)
            );
        }
        for lossy in [false, true] {
            for action in [Action::Flush, Action::WriteZeroes] {
                assert_eq!(
                    planned(action, DROP, lossy),
                    (Route::Device, Class::Passthrough, true)
                );
            }
        }
        assert_eq!(
            planned(Action::Discard, FAIL, false),
            (Route::Device, Class::Passthrough, true)
        );
    }

    #[test]
    fn a_lossy_device_loses_what_the_policy_says() {
        assert_eq!(
            planned(Action::Read, DROP, true),
            (Route::Zero, Class::Dropped, false)
        );
        assert_eq!(
            planned(Action::Write, DROP, true),
            (Route::Nothing, Class::Dropped, false)
        );
        assert_eq!(
            planned(Action::Read, FAIL, true),
            (Route::Fail(Errno::EIO), Class::Dropped, false)
        );
        assert_eq!(
            planned(Action::Flush, FAIL, true),
            (Route::Fail(Errno::EIO), Class::Dropped, false)
        );
    }

    #[test]
    fn a_discard_may_always_be_dropped() {
        assert_eq!(
            planned(Action::Discard, DROP, false),
            (Route::Nothing, Class::Dropped, false)
        );
    }

    #[test]
    fn a_read_is_dropped_where_the_server_knows_zeroes() {
        let words = [AtomicU64::new(0b10)];
        let terms = Terms {
            written: Written::new(&words, 12),
            ..terms(STORAGE, false)
        };
        let at = |offset| {
            plan(
                &BlockRequest {
                    offset,
                    ..request(Action::Read)
                },
                DROP,
                &terms,
            )
        };
        assert_eq!((at(0).route, at(0).class), (Route::Zero, Class::Dropped));
        assert_eq!((at(4096).route, at(4096).refused), (Route::Direct, true));
    }

    #[test]
    fn null_reads_zeroes_or_nothing_and_completes_the_rest() {
        let of = |filled, action, advice| {
            plan(&request(action), advice, &terms(Backing::Null { filled }, false)).route
        };
        assert_eq!(of(true, Action::Read, Advice::Passthrough), Route::Zero);
        assert_eq!(of(true, Action::Read, Advice::Slow), Route::Zero);
        assert_eq!(of(false, Action::Read, Advice::Passthrough), Route::Nothing);
        for action in [Action::Write, Action::Flush, Action::Discard, Action::WriteZeroes] {
            assert_eq!(of(true, action, Advice::Passthrough), Route::Nothing);
        }
    }

    #[test]
    fn a_backing_without_the_ability_says_so() {
        let none = Backing::Storage(Capabilities {
            volatile_cache: false,
            discard: false,
            write_zeroes: false,
        });
        let of = |action| plan(&request(action), Advice::Passthrough, &terms(none, false)).route;
        assert_eq!(of(Action::Discard), Route::Fail(Errno::EOPNOTSUPP));
        assert_eq!(of(Action::WriteZeroes), Route::Fail(Errno::EOPNOTSUPP));
        assert_eq!(of(Action::Flush), Route::Nothing);
    }

    proptest! {
        /// The rule above all others: without leave to lose, advice changes neither what is read nor what is kept.
        #[test]
        fn advice_costs_speed_alone(action in 0..5_usize, drop: bool, fail: bool, registered: bool) {
            let all = [Action::Read, Action::Write, Action::Flush, Action::Discard, Action::WriteZeroes];
            let action = all[action];
            let advice = if drop { Advice::Drop { fail } } else { Advice::Slow };
            let request = BlockRequest { registered, ..request(action) };
            let route = plan(&request, advice, &terms(STORAGE, false)).route;
            let served = match action {
                Action::Read | Action::Write => matches!(route, Route::Direct | Route::Copy),
                Action::Flush | Action::WriteZeroes => route == Route::Device,
                Action::Discard => matches!(route, Route::Device | Route::Nothing),
            };
            prop_assert!(served, "{action:?} {advice:?} {route:?}");
        }
    }
}
