//! What the pages of a parquet file claim, checked before anything is allocated for them.
//!
//! A header of some bytes can claim a page of gigabytes, a dictionary of billions of values, or lists without end, and the crate
//! allocates what is claimed. So each page's header is read here first, and what its page will take is counted against the
//! memory that all questions may take.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, Type as PhysicalType};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length, RowGroupReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

use super::runs;
use super::thrift::PageHeader;
use crate::dataset::limits::MemoryBudget;

type Result<T> = std::result::Result<T, ParquetError>;

/// The bytes of a parquet file: on disk, or in memory if they were compressed.
#[derive(Clone)]
pub(super) enum Data {
    Disk(Arc<File>),
    Memory(Bytes),
}

impl Length for Data {
    fn len(&self) -> u64 {
        match self {
            Self::Disk(file) => file.len(),
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }
}

impl ChunkReader for Data {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(match self {
            Self::Disk(file) => Box::new(file.get_read(start)?),
            Self::Memory(bytes) => Box::new(bytes.get_read(start)?),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        match self {
            Self::Disk(file) => file.get_bytes(start, length),
            Self::Memory(bytes) => bytes.get_bytes(start, length),
        }
    }
}

/// A row group whose pages are checked as they are read.
pub(super) struct BoundedGroup<'a> {
    pub(super) group: Box<dyn RowGroupReader + 'a>,
    pub(super) data: Data,
    pub(super) budget: Arc<MemoryBudget>,
}

impl RowGroupReader for BoundedGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.group.metadata()
    }

    fn num_columns(&self) -> usize {
        self.group.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let chunk = self.metadata().column(i);
        let (offset, length) = chunk.byte_range();
        let descriptor = chunk.column_descr();
        // The fewest bytes of a value in a dictionary, whose values are written out back to back.
        let least = match descriptor.physical_type() {
            PhysicalType::BOOLEAN => 1,
            PhysicalType::INT32 | PhysicalType::FLOAT | PhysicalType::BYTE_ARRAY => 4,
            PhysicalType::INT64 | PhysicalType::DOUBLE => 8,
            PhysicalType::INT96 => 12,
            PhysicalType::FIXED_LEN_BYTE_ARRAY => u64::try_from(descriptor.type_length()).unwrap_or(1).max(1),
        };
        Ok(Box::new(BoundedPages {
            inner: self.group.get_column_page_reader(i)?,
            data: self.data.clone(),
            offset,
            end: offset.saturating_add(length),
            values_left: u64::try_from(chunk.num_values()).unwrap_or_default(),
            least,
            codec: chunk.compression(),
            max_levels: [descriptor.max_rep_level(), descriptor.max_def_level()],
            budget: Arc::clone(&self.budget),
            held_by_dictionary: 0,
            held_by_page: 0,
        }))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.group.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// The pages of a column chunk.
struct BoundedPages {
    inner: Box<dyn PageReader>,
    data: Data,
    /// Where the next page's header begins, and where the chunk ends.
    offset: u64,
    end: u64,
    /// Values that pages may still claim: the chunk's metadata say how many there are.
    values_left: u64,
    least: u64,
    codec: Compression,
    /// The highest repetition level and the highest definition level; levels that can only be 0 are not stored.
    max_levels: [i16; 2],
    budget: Arc<MemoryBudget>,
    held_by_dictionary: u64,
    held_by_page: u64,
}

impl BoundedPages {
    /// Reads the header of the page that comes next, checks it, and counts its memory.
    fn check_next(&mut self) -> Result<()> {
        // Pages of an index are passed over by the reader.
        while self.offset < self.end {
            let header = PageHeader::read(&mut self.data.get_read(self.offset)?)?;
            self.offset = self.offset.saturating_add(header.length).saturating_add(header.compressed);
            if header.uncompressed > most_unpacked(self.codec, header.compressed) || header.compressed > self.data.len()
            {
                return Err(claims("a page of a size that it cannot have"));
            }
            match header.kind {
                PageHeader::DICTIONARY => {
                    if header.values.saturating_mul(self.least) > header.uncompressed {
                        return Err(claims("more values in a dictionary than it has room for"));
                    }
                    // Values are unpacked beside their page.
                    let bytes = header.uncompressed + header.values * size_of::<parquet::data_type::ByteArray>() as u64;
                    self.hold(bytes, true)?;
                }
                PageHeader::INDEX => continue,
                _ => {
                    self.values_left = self
                        .values_left
                        .checked_sub(header.values)
                        .ok_or_else(|| claims("more values in a page than in all of its column"))?;
                    self.hold(header.uncompressed, false)?;
                }
            }
            return Ok(());
        }
        Ok(())
    }

    fn hold(&mut self, bytes: u64, by_dictionary: bool) -> Result<()> {
        let held = if by_dictionary { &mut self.held_by_dictionary } else { &mut self.held_by_page };
        self.budget.release(std::mem::replace(held, 0));
        self.budget.charge(bytes).map_err(ParquetError::General)?;
        *held = bytes;
        Ok(())
    }

    /// Refuses a page whose encodings say that there is more in it than is.
    fn check_content(&self, page: &Page) -> Result<()> {
        let Some(content) = Content::of(page, self.max_levels) else { return Ok(()) };
        content.check_runs(self.max_levels)?;
        content.check_deltas()
    }
}

/// What a page of data holds.
struct Content<'a> {
    /// Repetition levels and definition levels, where they are stored as runs.
    levels: [Option<&'a [u8]>; 2],
    values: &'a [u8],
    encoding: Encoding,
    /// Number of levels, and the most values there can be.
    count: u64,
    most_values: u64,
}

impl<'a> Content<'a> {
    /// None for a dictionary.
    fn of(page: &'a Page, max_levels: [i16; 2]) -> Option<Self> {
        match page {
            Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, .. } => {
                let mut values = buf.as_ref();
                let mut levels = [None, None];
                for (place, stored_as) in [rep_level_encoding, def_level_encoding].into_iter().enumerate() {
                    if max_levels[place] > 0 && *stored_as == Encoding::RLE {
                        (levels[place], values) = sized(values);
                    }
                }
                let count = u64::from(*num_values);
                Some(Self { levels, values, encoding: *encoding, count, most_values: count })
            }
            Page::DataPageV2 {
                buf, num_values, encoding, num_nulls, def_levels_byte_len, rep_levels_byte_len, ..
            } => {
                let (repetitions, behind) = split(buf, *rep_levels_byte_len as usize);
                let (definitions, values) = split(behind, *def_levels_byte_len as usize);
                let [count, nulls] = [num_values, num_nulls].map(|&count| u64::from(count));
                let levels = [repetitions, definitions].map(Some);
                Some(Self { levels, values, encoding: *encoding, count, most_values: count.saturating_sub(nulls) })
            }
            Page::DictionaryPage { .. } => None,
        }
    }

    /// Levels and places in a dictionary that claim bytes of which whole groups are not there.
    fn check_runs(&self, max_levels: [i16; 2]) -> Result<()> {
        let mut overruns = self.levels.iter().zip(max_levels).map(|(levels, max_level)| {
            let width = (i16::BITS - max_level.leading_zeros()) as u8;
            levels.is_some_and(|levels| runs::overrun(levels, width, self.count))
        });
        if overruns.any(|overrun| overrun) {
            return Err(claims("more levels in a page than there are"));
        }
        let overrun = match (self.encoding, self.values.split_first()) {
            (Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY, Some((&width, places))) => {
                runs::overrun(places, width, self.most_values)
            }
            // Booleans.
            (Encoding::RLE, _) => sized(self.values).0.is_some_and(|runs| runs::overrun(runs, 1, self.most_values)),
            _ => false,
        };
        if overrun { Err(claims("more values in a page than there are")) } else { Ok(()) }
    }

    /// Delta encodings say their number of values once more, and lengths are allocated by that number.
    fn check_deltas(&self) -> Result<()> {
        let lists = match self.encoding {
            Encoding::DELTA_BINARY_PACKED | Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
            Encoding::DELTA_BYTE_ARRAY => 2,
            _ => 0,
        };
        let mut rest = self.values;
        for _ in 0..lists {
            rest = super::thrift::after_deltas(rest, self.count)
                .ok_or_else(|| claims("more lengths in a page than it has values"))?;
        }
        Ok(())
    }
}

/// Bytes behind their length, and what follows; of bytes that are cut short there are none.
fn sized(data: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let length = data.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
    let behind = data.get(4..).unwrap_or_default();
    (behind.get(..length), behind.get(length..).unwrap_or_default())
}

/// The first bytes, and what follows.
fn split(data: &[u8], length: usize) -> (&[u8], &[u8]) {
    data.split_at_checked(length).unwrap_or_default()
}

impl Drop for BoundedPages {
    fn drop(&mut self) {
        self.budget.release(self.held_by_dictionary + self.held_by_page);
    }
}

impl Iterator for BoundedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for BoundedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.check_next()?;
        let page = self.inner.get_next_page()?;
        if let Some(page) = &page {
            self.check_content(page)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.check_next()?;
        self.inner.skip_next_page()
    }
}

/// The most bytes that so many compressed ones can stand for.
fn most_unpacked(codec: Compression, compressed: u64) -> u64 {
    const LARGEST: u64 = i32::MAX as u64;
    // Levels of a new page may stand before it uncompressed, and a page of nulls is empty.
    let ratio = match codec {
        Compression::UNCOMPRESSED => 1,
        // A copy of at most 64 bytes takes three.
        Compression::SNAPPY => 32,
        // A byte adds at most 255 to a length.
        Compression::LZ4 | Compression::LZ4_RAW => 256,
        // A match of 258 bytes takes at least two bits.
        Compression::GZIP(_) => 1100,
        _ => LARGEST,
    };
    compressed.saturating_mul(ratio).saturating_add(64).min(LARGEST)
}

fn claims(what: &str) -> ParquetError {
    ParquetError::General(format!("it claims {what}"))
}
