//! Any bytes are refused as a policy or are harmless: no panic in the checks or in the loader's library, no large
//! allocation, no long run time.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Panics that are caught are found too: the fuzzer's hook ends the process.
    if let Ok(admitted) = ublk_bpf::policy::check_policy_object(bytes.to_vec()) {
        // The patched object passes the checks too.
        assert!(ublk_bpf::policy::check_policy_object(admitted).is_ok());
    }
});
