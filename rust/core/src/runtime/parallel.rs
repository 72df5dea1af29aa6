//! Parallel work: one thread pool of our own per process, the flag that stops it, and teams of other people's threads.
//!
//! Rayon's global pool dies silently in a forked child (its threads do not survive `fork`), and the first parallel call there
//! hangs. The pool here belongs to a process id and is built anew in a child.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, TryLockError};

use crate::error::{Error, Result};

/// Fewest items in a part of parallel work that unwinds if it is stopped.
pub const PART: usize = 4096;

/// A shared flag: set by whoever wants the work to stop, read by the workers between pieces of work.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    /// How often the flag was read, and after how often it sets itself.
    #[cfg(test)]
    reads: Arc<std::sync::atomic::AtomicUsize>,
    #[cfg(test)]
    most: Option<usize>,
}

impl Cancel {
    /// Asks the work to stop.
    pub fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Fails with [`Error::Cancelled`] once [`Cancel::set`] was called.
    pub fn check(&self) -> Result<()> {
        if self.is_set() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Unwinds once [`Cancel::set`] was called: for places that cannot return an error, such as the comparisons of a sort. Whoever
    /// started the work makes [`Error::Cancelled`] of it with [`error_of_panic`].
    ///
    /// Rayon begins every part of its work that has been split off, and each part unwinds: a hundred thousand of them take longer
    /// than most work. So parts have at least [`PART`] items.
    pub fn unwind_if_set(&self) {
        if self.is_set() {
            std::panic::resume_unwind(Box::new(Stopped));
        }
    }

    #[cfg(not(test))]
    fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    fn is_set(&self) -> bool {
        let reads = self.reads.fetch_add(1, Ordering::Relaxed);
        if self.most.is_some_and(|most| reads >= most) {
            self.set();
        }
        self.flag.load(Ordering::Relaxed)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::padded::PaddedPlan;
    use crate::tokens::request::Requests;
    use crate::tokens::trie::Trie;

    /// Questions in no order, with two choices of one input and two of others.
    fn requests(questions: u32) -> Requests {
        let scattered = |question: u32| question.wrapping_mul(2_654_435_761) >> 16;
        let contexts: Vec<Vec<u32>> =
            (0..questions).map(|question| vec![7; 1 + scattered(question) as usize % 5]).collect();
        let choices = (0..questions)
            .map(|question| vec![vec![1], vec![2], vec![scattered(question), 3], vec![4, scattered(question), 5]])
            .collect::<Vec<_>>();
        Requests::from_tokens(&contexts, &choices, 64).unwrap()
    }

    /// How often the flag was read by work that runs into it after so many reads, as [`error_of_panic`] tells it.
    fn reads(most: Option<usize>, work: impl FnOnce(&Cancel) -> Result<()>) -> (usize, Result<()>) {
        let cancel = Cancel { most, ..Cancel::default() };
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&cancel)))
            .unwrap_or_else(|payload| Err(error_of_panic(payload.as_ref())));
        (cancel.reads.load(Ordering::Relaxed), outcome)
    }

    #[test]
    fn plans_stop_wherever_they_are() {
        const QUESTIONS: usize = 20_000;
        type Work<'a> = &'a dyn Fn(&Cancel) -> Result<()>;
        let requests = requests(QUESTIONS as u32);
        let rows = PaddedPlan::new(&requests, &Cancel::default()).unwrap().num_rows();
        assert_eq!(rows, 3 * QUESTIONS);
        let plan = |cancel: &Cancel| PaddedPlan::new(&requests, cancel).map(drop);
        let trie = |cancel: &Cancel| Trie::new(&requests, cancel).map(drop);
        let works: [(Work<'_>, usize); 2] = [(&plan, 2), (&trie, 5)];
        for (work, passes) in works {
            let (all, whole) = reads(None, work);
            whole.unwrap();
            // Each pass over the questions or rows reads it for each of them.
            assert!(all >= passes * QUESTIONS, "{all}");
            for stop in (0..10).map(|tenth| all / 10 * tenth) {
                let (read, outcome) = reads(Some(stop), work);
                assert!(matches!(outcome, Err(Error::Cancelled)), "{stop} of {all}: {outcome:?}");
                // Each thread reads it once more, and so does each part of the work that was not begun: of a sort, 2000 rows.
                assert!(read <= stop + rows / 100, "{read} reads, {stop} of {all}");
            }
        }
    }
}
