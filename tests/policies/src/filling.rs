//! Fills with every read that misses, as much as its map says.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Array, Decision, Extent, Priority, Request, map, policy};

map! {
    /// 0 the whole block, 1 the request's regions, 2 the quarters around it, 3 nothing: cached parts are hit.
    static EXTENT: Array<u32, 1> = "extent";
}

fn decide(request: &Request) -> Decision {
    if !request.is_read() {
        return Decision::pass();
    }
    if request.is_cached() {
        return Decision::hit();
    }
    let extent = match EXTENT.get(0) {
        Some(1) => Extent::Request,
        Some(2) => Extent::Around,
        Some(3) => return Decision::hit(),
        _ => Extent::Block,
    };
    Decision::pass().fill(extent, Priority::Normal)
}

policy!(decide);
