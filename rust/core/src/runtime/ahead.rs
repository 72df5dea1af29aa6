//! Work done ahead of whoever takes its results, on a thread of its own and no further than a few results.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::runtime::parallel::panic_message;

/// The results of a function that is called ahead of time, in the order in which it returns them.
///
/// Dropping this stops the thread once the call at hand returns, and waits for that.
#[derive(Debug)]
pub struct Ahead<T> {
    receiver: Option<Receiver<Message<T>>>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

/// What became of waiting for a result.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited<T> {
    /// The next result, or None after the last.
    Result(Option<T>),
    /// The time is up and there is none yet.
    NotYet,
}

enum Message<T> {
    Result(T),
    End,
    Failed(Error),
}

impl<T: Send + 'static> Ahead<T> {
    /// Starts to call `produce`, which returns None after its last result. Up to `depth` results wait to be taken, and one more is
    /// in the making.
    ///
    /// # Errors
    /// [`Error::Internal`] if the operating system has no thread left.
    pub fn new(depth: usize, mut produce: impl FnMut() -> Result<Option<T>> + Send + 'static) -> Result<Self> {
        let (sender, receiver) = sync_channel(depth.max(1) - 1);
        let thread = thread::Builder::new()
            .name("wmdp-fast-ahead".to_owned())
            .spawn(move || run(&sender, &mut produce))
            .map_err(|error| Error::Internal(format!("no thread could be started: {error}")))?;
        Ok(Self { receiver: Some(receiver), thread: Some(thread), process: std::process::id() })
    }

    /// Waits up to `patience` for the next result.
    ///
    /// # Errors
    /// What `produce` failed with, once all results before it were taken; a panic in it is [`Error::Internal`]. After an error there
    /// are no more results. [`Error::InvalidArgument`] in a forked child, which does not have the thread.
    pub fn next(&mut self, patience: Duration) -> Result<Waited<T>> {
        if self.process != std::process::id() {
            return Err(Error::InvalidArgument(
                "batches that were begun before a fork cannot be resumed in the child: begin them there".to_owned(),
            ));
        }
        let Some(receiver) = &self.receiver else { return Ok(Waited::Result(None)) };
        match receiver.recv_timeout(patience) {
            Ok(Message::Result(result)) => Ok(Waited::Result(Some(result))),
            Err(RecvTimeoutError::Timeout) => Ok(Waited::NotYet),
            Ok(Message::End) => {
                self.receiver = None;
                Ok(Waited::Result(None))
            }
            Ok(Message::Failed(error)) => {
                self.receiver = None;
                Err(error)
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.receiver = None;
                Err(Error::Internal("the thread that works ahead ended without a result".to_owned()))
            }
        }
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        // A thread that waits to hand over a result is told that nobody will take it.
        self.receiver = None;
        if let Some(thread) = self.thread.take()
            && self.process == std::process::id()
        {
            // It has caught its panics, so there is nothing to learn from how it ended.
            let _ = thread.join();
        }
    }
}

fn run<T>(sender: &SyncSender<Message<T>>, produce: &mut dyn FnMut() -> Result<Option<T>>) {
    loop {
        let message = match catch_unwind(AssertUnwindSafe(&mut *produce)) {
            Ok(Ok(Some(result))) => Message::Result(result),
            Ok(Ok(None)) => Message::End,
            Ok(Err(error)) => Message::Failed(error),
            Err(payload) => Message::Failed(Error::Internal(panic_message(payload.as_ref()))),
        };
        let last = !matches!(message, Message::Result(_));
        if sender.send(message).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn counting(until: usize, calls: &Arc<AtomicUsize>) -> impl FnMut() -> Result<Option<usize>> + Send + use<> {
        let calls = Arc::clone(calls);
        move || {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            Ok((call < until).then_some(call))
        }
    }

    #[test]
    fn results_come_in_order_and_end() -> Result<()> {
        let calls = Arc::default();
        let mut ahead = Ahead::new(3, counting(100, &calls))?;
        for expected in 0..100 {
            assert_eq!(ahead.next(LONG)?, Waited::Result(Some(expected)));
        }
        assert_eq!(ahead.next(LONG)?, Waited::Result(None));
        assert_eq!(ahead.next(LONG)?, Waited::Result(None));
        Ok(())
    }

    #[test]
    fn no_more_is_done_ahead_than_asked_for() -> Result<()> {
        for depth in 1..4 {
            let calls = Arc::default();
            let ahead = Ahead::new(depth, counting(100, &calls))?;
            let begin = Instant::now();
            while calls.load(Ordering::SeqCst) < depth && begin.elapsed() < LONG {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(20));
            assert_eq!(calls.load(Ordering::SeqCst), depth);
            drop(ahead);
            assert_eq!(calls.load(Ordering::SeqCst), depth);
        }
        Ok(())
    }

    #[test]
    fn an_error_comes_after_the_results_before_it() -> Result<()> {
        let mut call = 0;
        let mut ahead = Ahead::new(2, move || {
            call += 1;
            if call < 3 { Ok(Some(call)) } else { Err(Error::InvalidArgument("made up".to_owned())) }
        })?;
        assert_eq!(ahead.next(LONG)?, Waited::Result(Some(1)));
        assert_eq!(ahead.next(LONG)?, Waited::Result(Some(2)));
        assert!(matches!(ahead.next(LONG), Err(Error::InvalidArgument(problem)) if problem == "made up"));
        assert_eq!(ahead.next(LONG)?, Waited::Result(None));
        Ok(())
    }

    #[test]
    #[allow(clippy::panic)]
    fn a_panic_is_an_internal_error() -> Result<()> {
        let mut ahead: Ahead<()> = Ahead::new(1, || panic!("made up"))?;
        assert!(matches!(ahead.next(LONG), Err(Error::Internal(problem)) if problem == "made up"));
        Ok(())
    }

    #[test]
    fn waiting_has_an_end() -> Result<()> {
        let mut ahead = Ahead::new(1, || {
            thread::sleep(Duration::from_millis(200));
            Ok(Some(()))
        })?;
        assert_eq!(ahead.next(Duration::from_millis(1))?, Waited::NotYet);
        assert_eq!(ahead.next(LONG)?, Waited::Result(Some(())));
        Ok(())
    }
}
