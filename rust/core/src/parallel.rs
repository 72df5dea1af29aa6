//! Parallel work: one thread pool of our own per process, the flag that stops it, and teams of other people's threads.
//!
//! Rayon's global pool dies silently in a forked child (its threads do not survive `fork`), and the first parallel call there
//! hangs. The pool here belongs to a process id and is built anew in a child.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, TryLockError};

use crate::error::{Error, Result};

/// A shared flag: set by whoever wants the work to stop, read by the workers between pieces of work.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the work to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Fails with [`Error::Cancelled`] once [`Cancel::set`] was called.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Unwinds once [`Cancel::set`] was called: for places that cannot return an error, such as the comparisons of a sort. Whoever
    /// started the work makes [`Error::Cancelled`] of it with [`error_of_panic`].
    pub fn unwind_if_set(&self) {
        if self.0.load(Ordering::Relaxed) {
            std::panic::resume_unwind(Box::new(Stopped));
        }
    }
}

/// What [`Cancel::unwind_if_set`] unwinds with.
struct Stopped;

/// The error for a panic: that work was stopped, or a fault of ours.
#[must_use]
pub fn error_of_panic(payload: &(dyn std::any::Any + Send)) -> Error {
    if payload.is::<Stopped>() { Error::Cancelled } else { Error::Internal(panic_message(payload)) }
}

/// Environment variable that bounds the number of threads.
pub const THREADS_VARIABLE: &str = "WMDP_FAST_NUM_THREADS";

static POOL: Mutex<Option<(u32, Arc<rayon::ThreadPool>)>> = Mutex::new(None);

/// Number of threads used for parallel work: `WMDP_FAST_NUM_THREADS`, else the number of cores, at most 8.
pub fn num_threads() -> Result<usize> {
    match std::env::var(THREADS_VARIABLE) {
        Ok(value) => value.trim().parse().ok().filter(|&n| n > 0).ok_or_else(|| {
            Error::InvalidArgument(format!("{THREADS_VARIABLE} must be a positive number, not {value:?}"))
        }),
        Err(_) => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8)),
    }
}

fn build_pool() -> Result<Arc<rayon::ThreadPool>> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(num_threads()?)
        .thread_name(|index| format!("wmdp-fast-{index}"))
        .build()
        .map(Arc::new)
        .map_err(|error| Error::Internal(format!("the thread pool could not be started: {error}")))
}

fn pool() -> Result<Arc<rayon::ThreadPool>> {
    let pid = std::process::id();
    let mut slot = match POOL.try_lock() {
        Ok(slot) => slot,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        // Held by another thread for an instant, or, in a forked child, by a thread that no longer exists: never wait for it.
        Err(TryLockError::WouldBlock) => return build_pool(),
    };
    if let Some((owner, pool)) = slot.as_ref()
        && *owner == pid
    {
        return Ok(Arc::clone(pool));
    }
    let fresh = build_pool()?;
    // A pool inherited through fork has no threads to stop, and dropping it may wait for locks they held.
    std::mem::forget(slot.replace((pid, Arc::clone(&fresh))));
    Ok(fresh)
}

/// Runs `work` on the pool, so that the rayon iterators inside it use the pool's threads.
pub fn install<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    pool()?.install(work)
}

/// Runs code of another library on input that nobody vouches for: a panic in it is an error, and silent.
///
/// # Errors
/// What the panic said.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    thread_local! { static SILENT: Cell<bool> = const { Cell::new(false) }; }
    HOOK.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |info| {
            if !SILENT.get() {
                others(info);
            }
        }));
    });
    let before = SILENT.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    SILENT.set(before);
    outcome.map_err(|payload| panic_message(payload.as_ref()))
}

/// What a panic said.
#[must_use]
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_owned())
}

/// Threads that do one thing together.
pub trait Team: Sync {
    /// Runs `work` on every thread of the team, the calling one among them, and returns when all are done. `work` does not
    /// panic.
    fn run(&self, work: &(dyn Fn() + Sync));
}

/// A team of so many threads, started when there is something to do.
#[derive(Debug, Clone, Copy)]
pub struct Threads(pub usize);

impl Team for Threads {
    fn run(&self, work: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| {
            for _ in 1..self.0 {
                scope.spawn(work);
            }
            work();
        });
    }
}

/// Does something to each of several items, on a team; each thread has memory of its own, made by `memory`.
pub fn for_each<T: Send, M>(
    items: Vec<T>,
    team: &dyn Team,
    memory: impl Fn() -> M + Sync,
    work: impl Fn(&mut M, T) + Sync,
) -> Result<()> {
    let queue = Mutex::new(items.into_iter());
    let failed = Mutex::new(None);
    team.run(&|| {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut memory = memory();
            // The lock is held for as long as it takes to get an item, not while it is worked on.
            let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some(item) = next() {
                work(&mut memory, item);
            }
        }));
        if let Err(payload) = outcome {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic_message(payload.as_ref()));
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |message| Err(Error::Internal(message)))
}
