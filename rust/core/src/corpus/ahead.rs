//! Corpora read and tokenized on a thread of their own, while whoever needs the tokens is still getting ready.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::ReadOptions;
use super::tokens::{EncodedCorpus, encode};
use crate::error::{Error, Result};
use crate::runtime::parallel::{Cancel, error_of_panic};
use crate::tokens::tokenizer::Tokenizer;

/// A corpus that will be asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its files, in order.
    pub paths: Vec<PathBuf>,
    /// How they are read.
    pub options: ReadOptions,
    /// Most tokens of a document, special ones included.
    pub max_length: usize,
}

/// A tokenizer that is being loaded, and corpora that are tokenized with it after that, one after the other.
///
/// Dropping this stops the thread without waiting for it: it ends at the next document, or once the tokenizer is loaded.
pub struct CorporaAhead {
    shared: Arc<Shared>,
    cancel: Cancel,
    process: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// What is there already. An error is taken by the first who asks.
#[derive(Default)]
struct State {
    tokenizer: Option<Result<Arc<Tokenizer>>>,
    corpora: Vec<Option<Result<EncodedCorpus>>>,
    ended: bool,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CorporaAhead {
    /// Begins to load a tokenizer, and then to tokenize corpora in their order.
    ///
    /// # Errors
    /// [`Error::Internal`] if no thread can be started.
    pub fn begin(load: impl FnOnce() -> Result<Tokenizer> + Send + 'static, wanted: Vec<Wanted>) -> Result<Self> {
        let ahead = Self { shared: Arc::default(), cancel: Cancel::default(), process: std::process::id() };
        ahead.shared.change(|state| state.corpora.resize_with(wanted.len(), || None));
        let (shared, cancel) = (Arc::clone(&ahead.shared), ahead.cancel.clone());
        thread::Builder::new()
            .name("wmdp-fast-corpora".to_owned())
            .spawn(move || {
                work(load, &wanted, &shared, &cancel);
                shared.change(|state| state.ended = true);
            })
            .map_err(|error| Error::Internal(format!("no thread could be started: {error}")))?;
        Ok(ahead)
    }

    /// Waits up to `patience` for the tokenizer; None if it is not there by then.
    ///
    /// # Errors
    /// What loading it failed with. [`Error::InvalidArgument`] if that was told before, or in a forked child, which does not have the
    /// thread.
    pub fn tokenizer(&self, patience: Duration) -> Result<Option<Arc<Tokenizer>>> {
        self.wait(patience, |state| match &state.tokenizer {
            Some(Ok(tokenizer)) => Some(Ok(Arc::clone(tokenizer))),
            _ => state.tokenizer.take(),
        })
    }

    /// Waits up to `patience` for the tokens of a corpus, which are given once; None if they are not there by then.
    ///
    /// # Errors
    /// As [`encode`]. [`Error::InvalidArgument`] if they were taken before, there is no such corpus or no tokenizer, or in a forked child.
    pub fn take(&self, corpus: usize, patience: Duration) -> Result<Option<EncodedCorpus>> {
        self.wait(patience, |state| state.corpora.get_mut(corpus)?.take())
    }

    /// Has the thread stop at the next document, or once the tokenizer is loaded.
    pub fn stop(&self) {
        self.cancel.set();
    }

    fn wait<T>(&self, patience: Duration, mut take: impl FnMut(&mut State) -> Option<Result<T>>) -> Result<Option<T>> {
        let gone = |why: &str| Err(Error::InvalidArgument(format!("this was not done ahead: {why}")));
        if self.process != std::process::id() {
            return gone("it was begun in another process, before a fork");
        }
        let mut state = self.shared.state();
        if let Some(found) = take(&mut state) {
            return found.map(Some);
        }
        if !state.ended {
            let waited = self.shared.changed.wait_timeout(state, patience);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        match take(&mut state) {
            Some(found) => found.map(Some),
            None if state.ended => gone("it was stopped, taken before, or never asked for"),
            None => Ok(None),
        }
    }
}

impl Drop for CorporaAhead {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Loads and tokenizes, and lays everything down as it is finished.
fn work(load: impl FnOnce() -> Result<Tokenizer>, wanted: &[Wanted], shared: &Shared, cancel: &Cancel) {
    let loaded = no_panic(|| load().map(Arc::new));
    let tokenizer = loaded.as_ref().ok().cloned();
    shared.change(|state| state.tokenizer = Some(loaded));
    let Some(tokenizer) = tokenizer else { return };
    for (place, one) in wanted.iter().enumerate() {
        if cancel.check().is_err() {
            return;
        }
        let encoded = no_panic(|| encode(&tokenizer, &one.paths, &one.options, one.max_length, cancel));
        shared.change(|state| state.corpora[place] = Some(encoded));
    }
}

fn no_panic<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(error_of_panic(payload.as_ref())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::tests::TINY;

    const LONG: Duration = Duration::from_secs(60);

    fn load() -> Result<Tokenizer> {
        Tokenizer::from_json(TINY, true, 0, "u")
    }

    fn wanted(folder: &tempfile::TempDir, name: &str, content: &str) -> Wanted {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        Wanted { paths: vec![path], options: ReadOptions::default(), max_length: 8 }
    }

    /// Waits for something that is on its way.
    fn get<T>(mut asked: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        loop {
            if let Some(found) = asked()? {
                return Ok(found);
            }
        }
    }

    #[test]
    fn tokens_and_errors_are_those_of_encoding_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let corpora = [
            wanted(&folder, "good.jsonl", "\"a a u\"\n\"a\"\n"),
            wanted(&folder, "bad.jsonl", "\"a\"\n{\"text\": 3}\n"),
            wanted(&folder, "other.jsonl", "\"u\"\n"),
        ];
        let ahead = CorporaAhead::begin(load, corpora.to_vec()).unwrap();
        let plain = load().unwrap();
        // In any order.
        for (place, corpus) in corpora.iter().enumerate().rev() {
            let expected = encode(&plain, &corpus.paths, &corpus.options, corpus.max_length, &Cancel::default());
            let found = get(|| ahead.take(place, LONG));
            assert_eq!(format!("{found:?}"), format!("{expected:?}"));
            assert_eq!(found.is_ok(), place != 1);
            assert!(matches!(ahead.take(place, LONG), Err(Error::InvalidArgument(_))));
        }
        assert!(matches!(ahead.take(3, LONG), Err(Error::InvalidArgument(_))));
        for _ in 0..2 {
            assert_eq!(get(|| ahead.tokenizer(LONG)).unwrap().encode("a u").unwrap(), plain.encode("a u").unwrap());
        }
    }

    #[test]
    #[allow(clippy::panic)]
    fn a_tokenizer_that_fails_is_told_once_and_waits_for_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let fails: [fn() -> Result<Tokenizer>; 2] =
            [|| Err(Error::Tokenizer("made up".to_owned())), || panic!("made up")];
        for fail in fails {
            let ahead = CorporaAhead::begin(fail, vec![wanted(&folder, "good.jsonl", "\"a\"\n")]).unwrap();
            assert!(get(|| ahead.tokenizer(LONG)).err().unwrap().to_string().contains("made up"));
            assert!(matches!(get(|| ahead.tokenizer(LONG)), Err(Error::InvalidArgument(_))));
            assert!(matches!(get(|| ahead.take(0, LONG)), Err(Error::InvalidArgument(_))));
        }
    }

    #[test]
    fn it_stops_when_it_is_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let corpus = wanted(&folder, "long.jsonl", &"\"a a a a\"\n".repeat(1000));
        let (begin, may_begin) = std::sync::mpsc::channel::<()>();
        let slow = move || {
            may_begin.recv().unwrap();
            load()
        };
        let ahead = CorporaAhead::begin(slow, vec![corpus]).unwrap();
        assert!(ahead.tokenizer(Duration::from_millis(1)).unwrap().is_none());
        ahead.stop();
        begin.send(()).unwrap();
        assert!(matches!(get(|| ahead.take(0, LONG)), Err(Error::InvalidArgument(_))));
        assert!(ahead.tokenizer(LONG).unwrap().is_some());
    }
}
