//! Policy `hostile`: random answers. It may cost time, but no data.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod answer {
    use ublk_bpf_policy as _;
    use ublk_bpf_policy::Request;
    use ublk_bpf_policy::bpf::helpers::generated::bpf_get_prandom_u32;

    /// Does not use the SDK's macro, whose function can only return valid decisions.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "freplace/policy")]
    extern "C" fn policy(request: *const Request) -> u32 {
        core::hint::black_box(request);
        // SAFETY: The helper takes no arguments and returns a number.
        let random = unsafe { bpf_get_prandom_u32() };
        // Every second answer resembles a decision: any verdict, any reason, any hints.
        if random & 1 == 0 {
            random >> 1
        } else {
            random >> 1 & 0xff_07_07
        }
    }

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 4] = *b"GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
