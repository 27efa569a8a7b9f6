//! The program `iotctl`. Everything it does is in the library.

use std::process::ExitCode;

/// The query engine allocates in many threads at once, which the system's allocator does slowly. Of those that do it fast,
/// this one gives back what a thread leaves when it ends: with `mimalloc`, a server grew by 200 MiB in three minutes of
/// steady work, and by 60 with this one (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    iotctl::run()
}
