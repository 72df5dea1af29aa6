//! The bytes of a data file: opened, decompressed, without byte-order mark, bounded in size, interruptible.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::limits::{Limits, MEMORY_VARIABLE, in_gib};
use crate::error::{DatasetError, Error, Result};
use crate::runtime::parallel::Cancel;
use crate::text::space::is_json_space;

/// Bytes read at a time.
const BUFFER: usize = 64 << 10;

/// How a file is compressed, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What [`Source::scan`] does with a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scan {
    /// It belongs to the record.
    Keep,
    /// It is passed over, as a quote around a CSV field is.
    Skip,
    /// It ends the record and is passed over.
    End,
    /// It stands behind the end of the record and is left unread.
    EndBefore,
}

/// A file being read. The errors it gives name the file; the row is known to the reader that called it.
pub(crate) struct Source<'a> {
    path: PathBuf,
    reader: Box<dyn Read>,
    compression: Compression,
    limits: &'a Limits,
    cancel: &'a Cancel,
    buffer: Vec<u8>,
    /// The bytes of the buffer that were read and not yet used.
    unused: std::ops::Range<usize>,
    total: u64,
}

impl<'a> Source<'a> {
    /// Opens a file and passes over a byte-order mark.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or read, [`Error::Dataset`] if it cannot be decompressed or is in UTF-16.
    pub(crate) fn open(path: &Path, compression: Compression, limits: &'a Limits, cancel: &'a Cancel) -> Result<Self> {
        let reader = decompress(path, compression).map_err(|error| read_error(path, compression, error))?;
        let mut source = Self {
            path: path.to_owned(),
            reader,
            compression,
            limits,
            cancel,
            buffer: vec![0; BUFFER],
            unused: 0..0,
            total: 0,
        };
        while source.unused.end < 3 && source.read_more()? {}
        match source.buffer[source.unused.clone()] {
            [0xEF, 0xBB, 0xBF, ..] => source.unused.start = 3,
            [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => {
                return Err(fault(path, "the text is in UTF-16; save it in UTF-8"));
            }
            _ => {}
        }
        Ok(source)
    }

    /// Reads behind what is in the buffer; false at the end of the file.
    fn read_more(&mut self) -> Result<bool> {
        self.cancel.check()?;
        let bytes = loop {
            match self.reader.read(&mut self.buffer[self.unused.end..]) {
                Ok(bytes) => break bytes,
                // By a signal; nothing is lost.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(&self.path, self.compression, error)),
            }
        };
        self.unused.end += bytes;
        self.total += bytes as u64;
        if self.compression != Compression::None && self.total > self.limits.decompressed {
            let limit = in_gib(self.limits.decompressed);
            let problem = format!(
                "decompresses to more than {limit}, the most that is read; {MEMORY_VARIABLE} can raise the limit"
            );
            return Err(fault(&self.path, problem));
        }
        Ok(bytes > 0)
    }

    /// The next byte, left unread; none at the end of the file.
    pub(crate) fn peek(&mut self) -> Result<Option<u8>> {
        if self.unused.is_empty() {
            self.unused = 0..0;
            if !self.read_more()? {
                return Ok(None);
            }
        }
        Ok(Some(self.buffer[self.unused.start]))
    }

    /// The beginning of what is unread, up to a line end that is not the first byte, or as much of it as a buffer holds.
    pub(crate) fn peek_line(&mut self) -> Result<&[u8]> {
        if self.unused.is_empty() {
            self.unused = 0..0;
        }
        let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
        while !self.buffer[self.unused.clone()].iter().skip_while(|byte| is_end(byte)).any(is_end)
            && self.unused.end < self.buffer.len()
            && self.read_more()?
        {}
        let bytes = &self.buffer[self.unused.clone()];
        let begin = bytes.iter().position(|byte| !is_end(byte)).unwrap_or(bytes.len());
        let line = &bytes[begin..];
        Ok(&line[..line.iter().position(is_end).unwrap_or(line.len())])
    }

    /// Passes over the byte that [`Source::peek`] gave.
    pub(crate) fn advance(&mut self) {
        self.unused.start += 1;
    }

    /// Passes over lines of nothing but JSON's white space, at the beginning of a line: a small compressed file can hold billions of
    /// them.
    pub(crate) fn skip_blank_lines(&mut self) -> Result<()> {
        while self.peek()?.is_some() {
            let bytes = &self.buffer[self.unused.clone()];
            let space = bytes.iter().position(|&byte| !is_json_space(byte)).unwrap_or(bytes.len());
            let Some(last) = bytes[..space].iter().rposition(|&byte| byte == b'\n') else { break };
            self.unused.start += last + 1;
        }
        Ok(())
    }

    /// Passes over bytes of a kind.
    pub(crate) fn skip(&mut self, is_of_kind: impl Fn(u8) -> bool) -> Result<()> {
        while self.peek()?.is_some_and(&is_of_kind) {
            let bytes = &self.buffer[self.unused.clone()];
            self.unused.start += bytes.iter().position(|&byte| !is_of_kind(byte)).unwrap_or(bytes.len());
        }
        Ok(())
    }

    /// All that is left.
    pub(crate) fn read_to_end(mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while self.peek()?.is_some() {
            let more = self.unused.len() as u64;
            self.limits.budget.charge(more).map_err(|problem| fault(&self.path, problem))?;
            bytes.extend_from_slice(&self.buffer[self.unused.clone()]);
            self.unused = 0..0;
        }
        Ok(bytes)
    }

    /// Puts the next record into `record`; `step` sees every byte and says what it is. False if the file ends first.
    ///
    /// # Errors
    /// [`Error::Dataset`] if the record is longer than the limit, besides those of reading.
    pub(crate) fn scan(&mut self, record: &mut Vec<u8>, mut step: impl FnMut(u8) -> Scan) -> Result<bool> {
        record.clear();
        let mut seen = 0;
        while self.peek()?.is_some() {
            let bytes = &self.buffer[self.unused.clone()];
            // Bytes are kept in runs: `kept..` is the current one.
            let mut kept = 0;
            let mut ended = None;
            for (index, &byte) in bytes.iter().enumerate() {
                let action = step(byte);
                if action == Scan::Keep {
                    continue;
                }
                record.extend_from_slice(&bytes[kept..index]);
                kept = index + 1;
                if action != Scan::Skip {
                    ended = Some(index + usize::from(action == Scan::End));
                    break;
                }
            }
            let used = ended.unwrap_or(bytes.len());
            if ended.is_none() {
                record.extend_from_slice(&bytes[kept..]);
            }
            self.unused.start += used;
            seen += used;
            if seen > self.limits.record {
                let limit = self.limits.record;
                return Err(fault(
                    &self.path,
                    format!("the record is longer than {limit} bytes; is a line end missing?"),
                ));
            }
            if ended.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn decompress(path: &Path, compression: Compression) -> io::Result<Box<dyn Read>> {
    let file = File::open(path)?;
    Ok(match compression {
        Compression::None => Box::new(file),
        // Both read one compressed stream after another, as their command line tools do.
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(file)?),
    })
}

/// A failed read: the operating system's fault has a number, a decompressor's has none and lies in the file.
fn read_error(path: &Path, compression: Compression, error: io::Error) -> Error {
    if error.raw_os_error().is_some() || compression == Compression::None {
        return Error::Io { path: path.to_owned(), source: error };
    }
    let name = if compression == Compression::Gzip { "gzip" } else { "zstd" };
    fault(path, format!("not a complete {name} file ({error}); download or compress it again"))
}

fn fault(path: &Path, problem: impl Into<String>) -> Error {
    DatasetError { file: path.display().to_string(), row: None, field: None, problem: problem.into() }.into()
}
