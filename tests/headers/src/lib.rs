//! Nothing but tests: see `tests/ublk_cmd.rs`.
