//! libFuzzer over one target, named by `CONCLAVE_FUZZ_TARGET`; see `tests/fuzz/run`.
#![no_main]

use std::panic::{AssertUnwindSafe, catch_unwind, take_hook};
use std::sync::LazyLock;

use conclave_fuzz::{Target, check, targets};

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("CONCLAVE_FUZZ_TARGET").unwrap_or_default();
    let found = targets::ALL.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("CONCLAVE_FUZZ_TARGET={name} names no target"))
});

libfuzzer_sys::fuzz_target!(
    init: {
        // libfuzzer-sys ends the process at any panic; one that the code under test catches is no finding.
        drop(take_hook());
        LazyLock::force(&TARGET);
    },
    |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| check::run(*TARGET, input))).is_err() {
            std::process::abort();
        }
    }
);
