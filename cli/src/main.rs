//! The program `iotctl`. Everything it does is in the library.

use std::process::ExitCode;

/// The query engine allocates in many threads at once, which the system's allocator does slowly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    iotctl::run()
}
