//! What the simulations share; the tests are in `tests/`.
#![expect(clippy::missing_panics_doc, reason = "a test helper reports by panicking")]

/// The number in an environment variable; none if it is not set. Panics if it is something else.
#[must_use]
pub fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is {value:?}; it must be a number")),
    )
}
