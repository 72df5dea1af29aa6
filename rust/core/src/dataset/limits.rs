//! The most that is read of files, in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// The most that is read. Real question files stay far below; what is above is a mistake or an attack.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Bytes of one record.
    pub(crate) record: usize,
    /// Bytes that a compressed file may decompress to.
    pub(crate) decompressed: u64,
    /// Memory for what is read, all files together.
    pub(crate) budget: Arc<MemoryBudget>,
}

impl Limits {
    /// Those of question files: what [`MEMORY_VARIABLE`] says.
    pub(super) fn of_questions() -> Result<Self> {
        let memory = memory_limit()?;
        Ok(Self { record: 16 << 20, decompressed: memory, budget: Arc::new(MemoryBudget::new(memory)) })
    }
}

/// Environment variable that says how many GiB of memory the questions or documents of a run may take, and a compressed file unpacked.
pub const MEMORY_VARIABLE: &str = "WMDP_FAST_MEMORY_GIB";

const GIB: u64 = 1 << 30;

/// The limit that [`MEMORY_VARIABLE`] sets, or 4 GiB, in bytes.
pub(crate) fn memory_limit() -> Result<u64> {
    match std::env::var(MEMORY_VARIABLE) {
        Ok(text) => match text.trim().parse::<f64>() {
            Ok(gib) if gib > 0.0 && gib <= 1e6 => Ok(in_bytes(gib)),
            _ => Err(Error::InvalidArgument(format!("{MEMORY_VARIABLE} must be a number of GiB, not {text:?}"))),
        },
        Err(_) => Ok(4 * GIB),
    }
}

#[allow(clippy::cast_sign_loss)] // It is positive.
fn in_bytes(gib: f64) -> u64 {
    (gib * GIB as f64) as u64
}

/// A number of bytes in the words of error messages.
pub(crate) fn in_gib(bytes: u64) -> String {
    if bytes >= GIB / 10 {
        format!("{} GiB", (bytes as f64 / GIB as f64 * 10.0).round() / 10.0)
    } else {
        format!("{bytes} bytes")
    }
}

/// Memory that is shared by whatever is read at a time.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    limit: u64,
    held: AtomicU64,
}

impl MemoryBudget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, held: AtomicU64::new(0) }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes memory, before it is allocated.
    ///
    /// # Errors
    /// What to say if there is not enough of it.
    pub(crate) fn charge(&self, bytes: u64) -> Result<(), String> {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if held <= self.limit {
            return Ok(());
        }
        self.release(bytes);
        let (limit, more) = (in_gib(self.limit), (held as f64 / GIB as f64 * 2.0).ceil().max(1.0));
        Err(format!(
            "what is read takes more than {limit} of memory; read less, or raise the limit with {MEMORY_VARIABLE}={more}"
        ))
    }

    /// Gives memory back.
    pub(crate) fn release(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}
