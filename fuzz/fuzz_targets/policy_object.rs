//! Any bytes are refused as a policy, or harmless: no panic in our checks or in the loader's library behind them, no large
//! allocation, nothing that takes long.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A panic that is caught would be found too: the fuzzer's hook ends the process.
    if let Ok(admitted) = ublk_bpf::policy::check_policy_object(bytes.to_vec()) {
        // What is admitted stays so, as the loader will read it.
        assert!(ublk_bpf::policy::check_policy_object(admitted).is_ok());
    }
});
