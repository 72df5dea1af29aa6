//! The threads that torch computes with.
//!
//! After each parallel loop torch's threads (those of libgomp) spin for some milliseconds in case another one follows. Threads
//! of our own beside them would get half a core each: with as many of both as cores, attention took twice as long. So the work
//! is given to torch's own threads, by the function that compilers call for `#pragma omp parallel`.
#![allow(unsafe_code)] // A C function, found by its name.

use std::ffi::{c_uint, c_void};

use libloading::os::unix::Library;
use wmdp_core::runtime::parallel::{Team, Threads};

/// `void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags)`: libgomp's ABI, which LLVM's and
/// Intel's runtimes offer as well. Threads wait for the next loop in a pool that belongs to the calling thread.
type GompParallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// So many of the threads that torch, if it is loaded, would run a loop on that this thread begins.
pub(crate) struct OpenMp {
    pub(crate) threads: usize,
}

impl Team for OpenMp {
    fn run(&self, work: &(dyn Fn() + Sync)) {
        extern "C" fn call(work: *mut c_void) {
            // SAFETY: `run` passes a reference to such a function, which lives until all threads are done.
            let work = unsafe { &*work.cast::<&(dyn Fn() + Sync)>() };
            work();
        }
        match (self.threads, gomp_parallel()) {
            (2.., Some(parallel)) => {
                let data = (&raw const work).cast_mut().cast();
                // SAFETY: `call` takes what `data` points to, which is shared by threads only as `Sync` allows, and it is not
                // written to. The function returns when all of them are done. `work` does not panic, by `Team`'s contract.
                unsafe { parallel(call, data, self.threads as c_uint, 0) }
            }
            _ => Threads(self.threads).run(work),
        }
    }
}

/// The function, if a library is loaded that has it. Torch makes the one that it uses visible to the whole process.
fn gomp_parallel() -> Option<GompParallel> {
    // SAFETY: in every library that has a function of this name, it is of this type.
    unsafe { Library::this().get::<GompParallel>(b"GOMP_parallel").ok().map(|function| *function) }
}
