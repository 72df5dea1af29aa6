//! As much of thrift's compact protocol as it takes to see what a parquet file claims before the crate believes it.

use std::io::{self, ErrorKind, Read};

use parquet::errors::ParquetError;

/// Deepest nesting of thrift structures; a page header has four.
const DEEPEST: usize = 16;
/// Deepest nesting of a schema, which the crate follows by recursion.
const DEEPEST_SCHEMA: usize = 100;

const INTEGER: u8 = 5;
const LIST: u8 = 9;
const STRUCTURE: u8 = 12;

/// What a page's header says of its size.
#[derive(Debug, Default)]
pub(super) struct PageHeader {
    pub(super) kind: u64,
    pub(super) uncompressed: u64,
    pub(super) compressed: u64,
    pub(super) values: u64,
    /// Bytes of the header itself.
    pub(super) length: u64,
}

impl PageHeader {
    pub(super) const INDEX: u64 = 1;
    pub(super) const DICTIONARY: u64 = 2;

    /// Reads the header that begins at the next byte.
    pub(super) fn read(input: &mut impl Read) -> Result<Self, ParquetError> {
        let mut thrift = Thrift { input, read: 0 };
        let mut header = Self::default();
        let read = thrift.structure(DEEPEST, &mut |thrift, path, kind, depth| {
            let number = match path {
                [1] => &mut header.kind,
                [2] => &mut header.uncompressed,
                [3] => &mut header.compressed,
                [5 | 7 | 8, 1] => &mut header.values,
                [5 | 7 | 8] => return Ok(Step::Into),
                _ => {
                    thrift.skip(kind, depth)?;
                    return Ok(Step::Done);
                }
            };
            if kind != INTEGER {
                return Err(invalid("another type than the format has here"));
            }
            *number = thrift.size()?;
            Ok(Step::Done)
        });
        read.map_err(|error| ParquetError::General(format!("a page's header is damaged: {error}")))?;
        header.length = thrift.read;
        Ok(header)
    }
}

/// Refuses the metadata of a file whose schema is nested too deeply to be followed.
pub(super) fn check_schema(metadata: &[u8]) -> Result<(), String> {
    let mut thrift = Thrift { input: &mut &*metadata, read: 0 };
    // Of each group that is open, how many of its children are to come.
    let mut open: Vec<u64> = Vec::new();
    let mut too_deep = false;
    let read = thrift.structure(DEEPEST, &mut |thrift, path, kind, depth| {
        if path != [2] || kind != LIST {
            thrift.skip(kind, depth)?;
            return Ok(Step::Done);
        }
        let (count, _) = thrift.list()?;
        for _ in 0..count {
            let mut children = 0;
            thrift.structure(depth - 1, &mut |thrift, path, kind, depth| {
                match path {
                    [5] => children = thrift.size()?,
                    _ => thrift.skip(kind, depth)?,
                }
                Ok(Step::Done)
            })?;
            if let Some(last) = open.last_mut() {
                *last = last.saturating_sub(1);
            }
            if children > 0 {
                open.push(children);
            }
            while open.last() == Some(&0) {
                open.pop();
            }
            too_deep |= open.len() > DEEPEST_SCHEMA;
        }
        Ok(Step::Done)
    });
    // What is damaged in another way is for the crate to say.
    if read.is_ok() && too_deep { Err(format!("its schema is nested more than {DEEPEST_SCHEMA} deep")) } else { Ok(()) }
}

/// What stands behind a list of at most `most` integers in the encoding `DELTA_BINARY_PACKED`, or none if it says that it is longer.
pub(super) fn after_deltas(data: &[u8], most: u64) -> Option<&[u8]> {
    let mut rest = data;
    let mut number = || -> Option<u64> {
        let (value, behind) = variable_length(rest)?;
        rest = behind;
        Some(value)
    };
    let (block, miniblocks, count, _first) = (number()?, number()?, number()?, number()?);
    if count > most || miniblocks == 0 || block > 1 << 30 || miniblocks > 1 << 20 {
        return None;
    }
    let per_miniblock = block / miniblocks;
    let mut left = count.saturating_sub(1);
    while left > 0 && per_miniblock > 0 {
        number_at(&mut rest)?;
        let widths = rest.get(..miniblocks as usize)?;
        rest = &rest[miniblocks as usize..];
        for &width in widths {
            if left == 0 {
                break;
            }
            let bytes = usize::try_from(per_miniblock * u64::from(width) / 8).ok()?;
            // The last one may be cut short.
            rest = rest.get(bytes..).unwrap_or_default();
            left = left.saturating_sub(per_miniblock);
        }
    }
    Some(rest)
}

/// A number of variable length, least significant seven bits first, and what stands behind it.
pub(super) fn variable_length(data: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (place, &byte) in data.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some((value, &data[place + 1..]));
        }
    }
    None
}

/// Passes over a number of variable length.
fn number_at(rest: &mut &[u8]) -> Option<()> {
    let length = rest.iter().position(|&byte| byte < 0x80)? + 1;
    *rest = &rest[length..];
    Some(())
}

/// What the visitor of a structure's fields did with one.
enum Step {
    /// It read or passed over the field.
    Done,
    /// It wants to see the fields of this structure.
    Into,
}

/// Called with a reader, the numbers of the fields on the way to one, its type, and the depth left.
type Visit<'a, T> = dyn FnMut(&mut T, &[i64], u8, usize) -> io::Result<Step> + 'a;

struct Thrift<'a, R> {
    input: &'a mut R,
    read: u64,
}

impl<R: Read> Thrift<'_, R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        self.read += 1;
        Ok(byte[0])
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(invalid("a number of more than 64 bits"))
    }

    /// A signed number that must not be negative.
    fn size(&mut self) -> io::Result<u64> {
        let number = self.number()?;
        if number & 1 == 0 { Ok(number >> 1) } else { Err(invalid("a negative size")) }
    }

    /// Length and element type of a list.
    fn list(&mut self) -> io::Result<(u64, u8)> {
        let byte = self.byte()?;
        let count = if byte >> 4 == 15 { self.number()? } else { u64::from(byte >> 4) };
        Ok((count, byte & 15))
    }

    fn skip_bytes(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.input.by_ref().take(count), &mut io::sink())?;
        self.read += skipped;
        if skipped == count { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    /// Passes over a value of this type.
    fn skip(&mut self, kind: u8, depth: usize) -> io::Result<()> {
        let Some(depth) = depth.checked_sub(1) else { return Err(invalid("structures nested too deeply")) };
        match kind {
            1 | 2 => Ok(()),
            3 => self.skip_bytes(1),
            4..=6 => self.number().map(|_| ()),
            7 => self.skip_bytes(8),
            8 => {
                let length = self.number()?;
                self.skip_bytes(length)
            }
            LIST | 10 => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| self.skip_element(kind, depth))
            }
            11 => {
                let count = self.number()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 15, depth)
                })
            }
            STRUCTURE => self.structure(depth, &mut |thrift, _, kind, depth| {
                thrift.skip(kind, depth)?;
                Ok(Step::Done)
            }),
            _ => Err(invalid("an unknown type")),
        }
    }

    /// Passes over an element of a list, where a truth value takes a byte.
    fn skip_element(&mut self, kind: u8, depth: usize) -> io::Result<()> {
        if matches!(kind, 1 | 2) { self.skip_bytes(1) } else { self.skip(kind, depth) }
    }

    /// Reads a structure field by field; `visit` gets the numbers of the fields on the way to each, its type and the depth left.
    fn structure(&mut self, depth: usize, visit: &mut Visit<'_, Self>) -> io::Result<()> {
        self.fields(depth, &mut Vec::new(), visit)
    }

    fn fields(&mut self, depth: usize, path: &mut Vec<i64>, visit: &mut Visit<'_, Self>) -> io::Result<()> {
        let Some(depth) = depth.checked_sub(1) else { return Err(invalid("structures nested too deeply")) };
        let mut id = 0_i64;
        loop {
            let byte = self.byte()?;
            if byte == 0 {
                return Ok(());
            }
            let kind = byte & 15;
            id = if byte >> 4 == 0 {
                let number = self.number()?;
                (number >> 1) as i64 ^ -((number & 1) as i64)
            } else {
                id.saturating_add(i64::from(byte >> 4))
            };
            path.push(id);
            if let Step::Into = visit(self, path, kind, depth)? {
                if kind != STRUCTURE {
                    return Err(invalid("another type than the format has here"));
                }
                self.fields(depth, path, visit)?;
            }
            path.pop();
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
