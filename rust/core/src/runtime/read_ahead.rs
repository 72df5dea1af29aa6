//! Files of weights read into the operating system's page cache by threads, while whoever needs them is still getting ready.
//!
//! It is a hint and never an error: a file that is missing, cut short or unreadable is left to the code that loads it, which says
//! what is wrong. What the page cache holds already is not read again.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::error::{Error, Result};
use crate::runtime::parallel::Cancel;
use crate::runtime::{memory, page_cache};

/// What a thread takes at a time, and asks the disk for at once.
const BLOCK: u64 = 8 << 20;

/// What is read at a time: after each the thread looks whether it should stop.
const STEP: u64 = 1 << 20;

/// Gaps between wanted tensors up to this size are read too.
const GAP: u64 = 1 << 20;

/// Longest header that safetensors allows.
const MAX_HEADER: u64 = 100_000_000;

/// The files that are being read; dropping it stops the threads, without waiting for them.
#[derive(Debug)]
pub struct ReadAhead {
    shared: Arc<Shared>,
    cancel: Cancel,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are wanted; 0 until the files were opened.
    pub total: u64,
    /// Bytes read from the files so far.
    pub read: u64,
    /// Bytes that the page cache held already.
    pub cached: u64,
    /// Whether nothing more will be read.
    pub done: bool,
    /// Why nothing was read, if there was a reason.
    pub skipped: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    read: AtomicU64,
    cached: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    total: u64,
    done: bool,
    skipped: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAhead {
    /// Begins to read safetensors files, in their order, on threads of their own.
    ///
    /// Nothing is read if the files take more than five sixths of the memory that is available.
    ///
    /// # Arguments
    /// - `last_layer`: of tensors whose names have a number in them (`model.layers.7.mlp.up_proj.weight`), only those up to it.
    ///
    /// # Errors
    /// [`Error::Internal`] if no thread can be started.
    pub fn begin(files: Vec<PathBuf>, last_layer: Option<u64>) -> Result<Self> {
        let ahead = Self { shared: Arc::default(), cancel: Cancel::default() };
        let (shared, cancel) = (Arc::clone(&ahead.shared), ahead.cancel.clone());
        thread::Builder::new()
            .name("wmdp-fast-read".to_owned())
            .spawn(move || {
                // A hint that fails is no failure. There is nothing that could panic but what we do not know of.
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    read_all(&files, last_layer, memory::available(), &shared, &cancel);
                }));
                shared.state().done = true;
                shared.changed.notify_all();
            })
            .map_err(|error| Error::Internal(format!("no thread could be started: {error}")))?;
        Ok(ahead)
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let state = self.shared.state();
        Progress {
            total: state.total,
            read: self.shared.read.load(Ordering::Relaxed),
            cached: self.shared.cached.load(Ordering::Relaxed),
            done: state.done,
            skipped: state.skipped.clone(),
        }
    }

    /// Waits up to `patience` for the end; returns whether it has come.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> bool {
        let state = self.shared.state();
        let waited = self.shared.changed.wait_timeout_while(state, patience, |state| !state.done);
        waited.unwrap_or_else(PoisonError::into_inner).0.done
    }

    /// Has the threads stop after what they are reading at the moment.
    pub fn stop(&self) {
        self.cancel.set();
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.stop();
    }
}

fn read_all(files: &[PathBuf], last_layer: Option<u64>, available: Option<u64>, shared: &Shared, cancel: &Cancel) {
    let opened: Vec<(File, Vec<Range<u64>>)> = files
        .iter()
        .filter_map(|path| {
            let file = File::open(path).ok()?;
            let length = file.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
            let wanted = wanted(&file, length, last_layer);
            Some((file, wanted))
        })
        .collect();
    let total = opened.iter().flat_map(|(_, ranges)| ranges).map(|range| range.end - range.start).sum::<u64>();
    shared.state().total = total;
    if let Some(available) = available
        && total > available / 6 * 5
    {
        shared.state().skipped =
            Some(format!("{total} bytes would take most of the {available} bytes of memory that are available"));
        return;
    }
    let blocks: Vec<(&File, Range<u64>)> = opened
        .iter()
        .flat_map(|(file, ranges)| ranges.iter().map(move |range| (file, range)))
        .flat_map(|(file, range)| {
            let end = range.end;
            range.clone().step_by(BLOCK as usize).map(move |start| (file, start..end.min(start + BLOCK)))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = vec![0; STEP as usize];
        while let Some((file, range)) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            if cancel.check().is_err() {
                return;
            }
            read_block(file, range, &mut buffer, shared, cancel);
        }
    };
    thread::scope(|scope| {
        for index in 1..num_readers() {
            // With fewer threads it takes longer.
            let _ = thread::Builder::new().name(format!("wmdp-fast-read-{index}")).spawn_scoped(scope, work);
        }
        work();
    });
}

/// Two keep a disk busy, and more than there are cores would take time from the imports that this runs beside.
fn num_readers() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get).clamp(2, 4)
}

fn read_block(file: &File, block: &Range<u64>, buffer: &mut [u8], shared: &Shared, cancel: &Cancel) {
    let steps = || block.clone().step_by(STEP as usize).map(|start| start..block.end.min(start + STEP));
    let missing: Vec<Range<u64>> = steps().filter(|step| !page_cache::holds(file, step)).collect();
    let num_missing = missing.iter().map(|step| step.end - step.start).sum::<u64>();
    shared.cached.fetch_add(block.end - block.start - num_missing, Ordering::Relaxed);
    if let Some(first) = missing.first() {
        page_cache::will_need(file, &(first.start..block.end));
    }
    for step in missing {
        let part = &mut buffer[..(step.end - step.start) as usize];
        // What cannot be read is for those to report who need it.
        if cancel.check().is_err() || page_cache::read_exact_at(file, part, step.start).is_err() {
            return;
        }
        shared.read.fetch_add(step.end - step.start, Ordering::Relaxed);
    }
}

/// The parts of a safetensors file that are wanted: all, unless layers above `last_layer` are not.
fn wanted(file: &File, length: u64, last_layer: Option<u64>) -> Vec<Range<u64>> {
    #[allow(clippy::single_range_in_vec_init)] // One range it is.
    let whole = if length == 0 { vec![] } else { vec![0..length] };
    match last_layer {
        Some(last) => up_to_layer(file, length, last).unwrap_or(whole),
        None => whole,
    }
}

/// The header and all tensors but those of higher layers; None for a file that is not understood.
fn up_to_layer(file: &File, length: u64, last: u64) -> Option<Vec<Range<u64>>> {
    let mut size = [0; 8];
    page_cache::read_exact_at(file, &mut size, 0).ok()?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size + 8 > length {
        return None;
    }
    let mut header = vec![0; size as usize];
    page_cache::read_exact_at(file, &mut header, 8).ok()?;
    let Header(offsets) = serde_json::from_slice(&header).ok()?;
    let data = size + 8;
    let mut ranges: Vec<Range<u64>> = offsets
        .into_iter()
        .filter(|&(layer, _)| layer.is_none_or(|layer| layer <= last))
        .filter_map(|(_, (start, end))| Some(data.checked_add(start)?.min(length)..data.checked_add(end)?.min(length)))
        .filter(|range| range.start < range.end)
        .collect();
    ranges.push(0..data);
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = vec![];
    for range in ranges {
        match merged.last_mut() {
            Some(before) if range.start <= before.end + GAP => before.end = before.end.max(range.end),
            _ => merged.push(range),
        }
    }
    Some(merged)
}

/// For each tensor of a safetensors header its layer and where its data begin and end. Nothing else is kept of a header, of which
/// a hundred megabytes can stand for gigabytes of values.
struct Header(Vec<(Option<u64>, (u64, u64))>);

#[derive(Deserialize)]
struct Tensor {
    data_offsets: Option<(u64, u64)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the header of a safetensors file")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut offsets = Vec::new();
        while let Some((name, tensor)) = map.next_entry::<Cow<'_, str>, Tensor>()? {
            offsets.extend(tensor.data_offsets.map(|range| (layer_of(&name), range)));
        }
        Ok(Header(offsets))
    }
}

/// The first number that stands by itself in a tensor's name.
fn layer_of(name: &str) -> Option<u64> {
    name.split('.').find_map(|part| part.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shard(path: &std::path::Path, tensors: &[(&str, u64)]) -> std::io::Result<u64> {
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, size) in tensors {
            header.insert((*name).to_owned(), serde_json::json!({"dtype": "U8", "data_offsets": [end, end + size]}));
            end += size;
        }
        let header = serde_json::to_vec(&header)?;
        let mut file = File::create(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        file.write_all(&vec![1; end as usize])?;
        Ok(8 + header.len() as u64 + end)
    }

    #[test]
    fn every_byte_is_read_or_was_cached() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let paths = [folder.path().join("a.safetensors"), folder.path().join("b.safetensors")];
        let lengths = [shard(&paths[0], &[("a", 9 << 20)])?, shard(&paths[1], &[("b", 100)])?];
        let ahead = ReadAhead::begin(paths.to_vec(), None)?;
        assert!(ahead.wait(LONG));
        let progress = ahead.progress();
        assert_eq!(progress.total, lengths.iter().sum::<u64>());
        assert_eq!(progress.read + progress.cached, progress.total);
        assert_eq!(progress.skipped, None);
        Ok(())
    }

    #[test]
    fn what_cannot_be_read_is_no_error() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let cut = folder.path().join("cut.safetensors");
        shard(&cut, &[("model.layers.1.w", 3 << 20)])?;
        File::options().write(true).open(&cut)?.set_len(20)?;
        let files = vec![folder.path().to_path_buf(), folder.path().join("nowhere"), cut];
        let ahead = ReadAhead::begin(files, Some(3))?;
        assert!(ahead.wait(LONG));
        assert_eq!(ahead.progress().total, 20);
        Ok(())
    }

    #[test]
    fn nothing_is_read_where_memory_is_short() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.safetensors");
        let length = shard(&path, &[("a", 1 << 20)])?;
        for (available, skips) in [(length + length / 10, true), (length + length / 4, false)] {
            let shared = Shared::default();
            read_all(std::slice::from_ref(&path), None, Some(available), &shared, &Cancel::default());
            assert_eq!(shared.state().skipped.is_some(), skips);
            assert_eq!(shared.read.load(Ordering::Relaxed) + shared.cached.load(Ordering::Relaxed) == 0, skips);
        }
        Ok(())
    }

    #[test]
    fn a_stopped_one_reads_nothing_more() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.safetensors");
        shard(&path, &[("a", 9 << 20)])?;
        let (shared, cancel) = (Shared::default(), Cancel::default());
        cancel.set();
        read_all(&[path], None, None, &shared, &cancel);
        assert_eq!(shared.read.load(Ordering::Relaxed) + shared.cached.load(Ordering::Relaxed), 0);
        Ok(())
    }

    #[test]
    fn layers_above_the_last_are_left_out() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.safetensors");
        let size = 3 << 20;
        let length = shard(&path, &[("embed.w", size), ("h.0.w", size), ("h.10.w", size), ("norm.w", size)])?;
        let ranges = wanted(&File::open(&path)?, length, Some(1));
        let data = length - 4 * size;
        assert_eq!(ranges, [0..data + 2 * size, data + 3 * size..length]);
        Ok(())
    }
}
