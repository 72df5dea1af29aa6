//! Parquet, in the hub's layout: `question` text, `choices` list of texts, `answer` integer (or text), `subject` text if there.
//!
//! These four are read column by column, which is fast; any other columns through the crate's rows, which know every type.

mod pages;
mod runs;
mod thrift;
mod values;

use std::collections::HashSet;
use std::fs::File;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression as Codec, ConvertedType, LogicalType, Type as PhysicalType};
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, FileReader, Length, RowGroupReader, SerializedFileReader};
use parquet::record::Row;
use parquet::record::reader::RowIter;
use parquet::schema::types::{BasicTypeInfo, ColumnDescriptor, SchemaDescriptor, Type};
use serde_json::{Map, Value};

use self::pages::{BoundedGroup, Data};
use self::values::Form;
use super::collect::{Collector, GivenAnswer, own_column};
use super::fault::Fault;
use super::limits::{Limits, MEMORY_VARIABLE, in_gib};
use super::source::{Compression, Source};
use crate::error::{DatasetError, Error, Result};
use crate::runtime::parallel::{Cancel, caught};
use crate::text::question::{CHOICES, COLUMNS, Question};

/// Rows read from every column before the next rows of any.
const BATCH: usize = 1024;
/// The same of a column of documents, which are longer.
const TEXT_BATCH: usize = 64;

/// A column that nobody has asked for may take this part of the memory for all; else it is left out, as pictures and embeddings are.
const COLUMN_SHARE: u64 = 4;

/// Reads the questions of a parquet file.
///
/// The crate panics on some damaged files; that is a fault of the file and reported as one.
pub(super) fn read(
    path: &Path,
    compression: Compression,
    limits: &Limits,
    cancel: &Cancel,
    out: &mut Collector,
) -> Result<()> {
    let work = AssertUnwindSafe(|| {
        let (data, file) = open(path, compression, limits, cancel)?;
        Reader { path, limits, cancel, data, file: &file }.read(out)
    });
    caught(work).unwrap_or_else(|_| Err(contradicting(path)))
}

/// Passes the texts of one column to `take`, row by row from 1, until it says that it has enough; no other column is read.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Dataset`] if it is damaged or the column is not one of texts, and what
/// `take` gives.
pub(crate) fn read_texts(
    path: &Path,
    compression: Compression,
    limits: &Limits,
    cancel: &Cancel,
    column: &str,
    take: &mut dyn FnMut(u64, String) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let fault = |row, field: Option<&str>, problem| -> Error {
        DatasetError { file: path.display().to_string(), row, field: field.map(str::to_owned), problem }.into()
    };
    let work = AssertUnwindSafe(|| {
        let (data, file) = open(path, compression, limits, cancel)?;
        check_offsets(&file).map_err(|problem| fault(None, None, problem))?;
        let metadata = file.metadata();
        let leaf = text_leaf(metadata.file_metadata().schema_descr(), column)
            .map_err(|problem| fault(None, Some(column), problem))?;
        check_codec(&file, leaf).map_err(|problem| fault(None, Some(column), problem))?;
        let (mut row, mut expected) = (0, 0);
        for index in 0..metadata.num_row_groups() {
            let group = file.get_row_group(index).map_err(|error| damaged(path, None, &error))?;
            let group = BoundedGroup { group, data: data.clone(), budget: Arc::clone(&limits.budget) };
            let mut texts =
                Column::<ByteArrayType>::new(&group, leaf).map_err(|error| damaged(path, Some(column), &error))?;
            loop {
                cancel.check()?;
                let batch = texts.read(TEXT_BATCH).map_err(|error| damaged(path, Some(column), &error))?;
                if batch.is_empty() {
                    break;
                }
                for value in batch {
                    row += 1;
                    let value = value.ok_or_else(|| fault(Some(row), Some(column), "is null".to_owned()))?;
                    if value.len() > limits.record {
                        let problem = format!("the text is longer than {} bytes", limits.record);
                        return Err(fault(Some(row), Some(column), problem));
                    }
                    let text = std::str::from_utf8(value.data())
                        .map_err(|_| fault(Some(row), Some(column), "is not UTF-8".to_owned()))?;
                    if take(row, text.to_owned())?.is_break() {
                        return Ok(());
                    }
                }
            }
            expected += u64::try_from(group.group.metadata().num_rows()).unwrap_or_default();
            if row != expected {
                let problem = format!("{DAMAGED} (the column contradicts the number of rows)");
                return Err(fault(None, Some(column), problem));
            }
        }
        Ok(())
    });
    caught(work).unwrap_or_else(|_| Err(contradicting(path)))
}

/// The leaf of a column of texts, found by its name.
fn text_leaf(schema: &SchemaDescriptor, column: &str) -> Result<usize, String> {
    let roots = schema.root_schema().get_fields();
    let named: Vec<_> = roots.iter().enumerate().filter(|(_, root)| root.name() == column).collect();
    let [(place, root)] = named[..] else {
        let names: Vec<&str> = roots.iter().map(|root| root.name()).collect();
        let problem = if named.is_empty() { "is missing" } else { "there are two columns of this name" };
        return Err(format!("{problem}; the columns are {}", names.join(", ")));
    };
    let leaf = (0..schema.num_columns()).find(|&leaf| schema.get_column_root_idx(leaf) == place);
    leaf.filter(|&leaf| {
        root.is_primitive() && schema.column(leaf).max_rep_level() == 0 && is_text(&schema.column(leaf))
    })
    .ok_or_else(|| format!("must be text, not {}", kind(root)))
}

/// Opens a file and reads its metadata.
fn open(
    path: &Path,
    compression: Compression,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<(Data, SerializedFileReader<Data>)> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let damage = |error| damaged(path, None, &error);
    let data = if compression == Compression::None {
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        Data::Disk(Arc::new(file))
    } else {
        Data::Memory(Bytes::from(Source::open(path, compression, limits, cancel)?.read_to_end()?))
    };
    check_schema(&data).map_err(damage)?;
    let reader = SerializedFileReader::new(data.clone()).map_err(damage)?;
    Ok((data, reader))
}

/// Refuses a schema that is nested deeper than the crate's recursion may go. Other damage is for the crate to find.
fn check_schema(data: &Data) -> Result<(), ParquetError> {
    const TAIL: usize = 8;
    let Some(begin) = data.len().checked_sub(TAIL as u64) else { return Ok(()) };
    let tail = data.get_bytes(begin, TAIL)?;
    let length = tail.first_chunk::<4>().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)));
    let Some(begin) = begin.checked_sub(length) else { return Ok(()) };
    let metadata = data.get_bytes(begin, length as usize)?;
    thrift::check_schema(&metadata).map_err(ParquetError::General)
}

/// Refuses a column that is compressed in a way that cannot be read.
fn check_codec(file: &SerializedFileReader<Data>, leaf: usize) -> Result<(), String> {
    let is_lzo = |group: &RowGroupMetaData| group.column(leaf).compression() == Codec::LZO;
    if file.metadata().row_groups().iter().any(is_lzo) {
        return Err("is compressed with LZO, which is not read; write the file again with zstd or snappy".to_owned());
    }
    Ok(())
}

/// Refuses negative places in a file, at which the crate panics.
fn check_offsets(file: &SerializedFileReader<Data>) -> Result<(), String> {
    let chunks = file.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns);
    let mut offsets = chunks.flat_map(|chunk| {
        [chunk.data_page_offset(), chunk.compressed_size(), chunk.dictionary_page_offset().unwrap_or_default()]
    });
    if offsets.any(i64::is_negative) { Err(format!("{DAMAGED} (a negative offset)")) } else { Ok(()) }
}

fn contradicting(path: &Path) -> Error {
    DatasetError {
        file: path.display().to_string(),
        row: None,
        field: None,
        problem: format!("{DAMAGED} (its metadata contradict its data)"),
    }
    .into()
}

const DAMAGED: &str = "not an intact parquet file; download or write it again";

/// The error for what the crate says about a file: the operating system's faults are not the file's.
fn damaged(path: &Path, column: Option<&str>, error: &ParquetError) -> Error {
    if let ParquetError::External(external) = error
        && let Some(io) = external.downcast_ref::<std::io::Error>()
        && let Some(number) = io.raw_os_error()
    {
        return Error::Io { path: path.to_owned(), source: std::io::Error::from_raw_os_error(number) };
    }
    DatasetError {
        file: path.display().to_string(),
        row: None,
        field: column.map(str::to_owned),
        problem: format!("{DAMAGED} ({error})"),
    }
    .into()
}

struct Reader<'a> {
    path: &'a Path,
    limits: &'a Limits,
    cancel: &'a Cancel,
    data: Data,
    file: &'a SerializedFileReader<Data>,
}

/// How the columns of a file are read.
struct Layout {
    /// The columns with a meaning of their own, if they are what the hub's layout has; else they are read with the others.
    own: Option<Own>,
    /// The schema of the columns that are read as rows, if there are any, and whether times in each are in UTC.
    rows: Option<(Type, Vec<bool>)>,
}

/// Which leaf of the schema is what.
struct Own {
    question: usize,
    choices: usize,
    answer: (usize, AnswerType),
    subject: Option<usize>,
}

#[derive(Clone, Copy)]
enum AnswerType {
    Int32 { signed: bool },
    Int64 { signed: bool },
    Text,
}

impl Reader<'_> {
    fn read(&self, out: &mut Collector) -> Result<()> {
        let metadata = self.file.metadata();
        check_offsets(self.file).map_err(|problem| out.error_in_file(problem))?;
        self.check_rows(out)?;
        let layout = Layout::new(self.file, self.limits.budget.limit() / COLUMN_SHARE, out)
            .map_err(|fault| out.error_in_header(fault))?;
        for index in 0..metadata.num_row_groups() {
            let group = self.file.get_row_group(index).map_err(|error| damaged(self.path, None, &error))?;
            let group = BoundedGroup { group, data: self.data.clone(), budget: Arc::clone(&self.limits.budget) };
            self.read_group(&group, &layout, out)?;
        }
        Ok(())
    }

    /// Refuses a file that claims more rows than can be held: a few bytes can stand for billions of them.
    fn check_rows(&self, out: &Collector) -> Result<()> {
        let rows =
            self.file.metadata().row_groups().iter().map(|group| u64::try_from(group.num_rows()).unwrap_or_default());
        let rows: u64 = rows.fold(0, u64::saturating_add);
        if rows.saturating_mul(size_of::<Question>() as u64) > self.limits.budget.limit() {
            let limit = in_gib(self.limits.budget.limit());
            return Err(out.error_in_file(format!(
                "it claims {rows} rows, which take more than {limit} of memory; split the file, or raise the limit with {MEMORY_VARIABLE}"
            )));
        }
        Ok(())
    }

    fn read_group(&self, group: &BoundedGroup<'_>, layout: &Layout, out: &mut Collector) -> Result<()> {
        let rows =
            layout.rows.as_ref().map(|(schema, _)| RowIter::from_row_group(Some(schema.clone()), group)).transpose();
        let mut rows = rows.map_err(|error| damaged(self.path, None, &error))?;
        let Some(own) = &layout.own else {
            let count = u64::try_from(group.metadata().num_rows()).map_err(|_| out.error_in_file(DAMAGED))?;
            for _ in 0..count {
                self.cancel.check()?;
                let fields = self.next_row(rows.as_mut(), layout, out)?;
                out.add_fields(fields)?;
            }
            return Ok(());
        };
        let damage = |(column, error): (&str, ParquetError)| damaged(self.path, Some(column), &error);
        let mut columns = Columns::new(group, own).map_err(damage)?;
        let mut left = usize::try_from(group.metadata().num_rows()).map_err(|_| out.error_in_file(DAMAGED))?;
        loop {
            self.cancel.check()?;
            let batch = left.min(BATCH);
            // After the last row one more is asked for: a column that has it contradicts the file's own count.
            let stored = columns.read(batch.max(1)).map_err(damage)?;
            if stored.len() != batch {
                return Err(out.error_in_file(format!("{DAMAGED} (its columns contradict its number of rows)")));
            }
            if batch == 0 {
                return Ok(());
            }
            for row in stored {
                let size = row.size();
                if size > self.limits.record {
                    let problem = format!("the record is longer than {} bytes", self.limits.record);
                    return Err(out.error(Fault::new(problem)));
                }
                let question = text("question", row.question).map_err(|fault| out.error(fault))?;
                let choices = choice_texts(row.choices).map_err(|fault| out.error(fault))?;
                let answer = row.answer.map_err(|fault| out.error(fault))?;
                let subject = row.subject.map(|subject| text("subject", Some(subject))).transpose();
                let subject = subject.map_err(|fault| out.error(fault))?;
                let extra = if rows.is_some() { self.next_row(rows.as_mut(), layout, out)? } else { Map::new() };
                out.add(question, choices, answer, subject, extra)?;
            }
            left -= batch;
        }
    }

    /// The columns of the next row that are read as rows, as JSON.
    fn next_row(
        &self,
        rows: Option<&mut RowIter<'_>>,
        layout: &Layout,
        out: &mut Collector,
    ) -> Result<Map<String, Value>> {
        let row: Option<Result<Row, ParquetError>> = rows.and_then(Iterator::next);
        let row = row.unwrap_or_else(|| Err(ParquetError::EOF("a column has too few rows".to_owned())));
        let row = row.map_err(|error| damaged(self.path, None, &error))?;
        let utc = layout.rows.iter().flat_map(|(_, utc)| utc.iter().copied());
        let values = row.into_columns().into_iter().zip(utc).map(|((name, field), utc)| {
            let mut lost = None;
            let value = values::json(field, utc, &mut lost);
            if let Some(what) = lost {
                out.add_foreign(&name, &what, false);
            }
            (name, value)
        });
        // A subject that is not there is none, of whatever type its column is.
        Ok(values.filter(|(name, value)| name != COLUMNS[3] || !value.is_null()).collect())
    }
}

/// The columns with a meaning of their own, of one row group.
struct Columns {
    question: Column<ByteArrayType>,
    choices: Column<ByteArrayType>,
    answer: AnswerColumn,
    subject: Option<Column<ByteArrayType>>,
}

/// A row as it is stored, unchecked.
struct StoredRow {
    question: Option<ByteArray>,
    choices: List<ByteArray>,
    answer: Result<GivenAnswer, Fault>,
    subject: Option<ByteArray>,
}

impl StoredRow {
    /// Bytes of its texts.
    fn size(&self) -> usize {
        let choices = self.choices.iter().flatten().flatten().map(ByteArray::len);
        let texts = self.question.iter().chain(&self.subject).map(ByteArray::len);
        choices.chain(texts).sum()
    }
}

impl Columns {
    fn new(group: &dyn RowGroupReader, layout: &Own) -> Result<Self, (&'static str, ParquetError)> {
        let in_column = |name| move |error| (name, error);
        Ok(Self {
            question: Column::new(group, layout.question).map_err(in_column("question"))?,
            choices: Column::new(group, layout.choices).map_err(in_column("choices"))?,
            answer: AnswerColumn::new(group, layout.answer).map_err(in_column("answer"))?,
            subject: match layout.subject {
                Some(leaf) => Some(Column::new(group, leaf).map_err(in_column("subject"))?),
                None => None,
            },
        })
    }

    /// The next `count` rows, or all that are left if there are fewer.
    fn read(&mut self, count: usize) -> Result<Vec<StoredRow>, (&'static str, ParquetError)> {
        let in_column = |name| move |error| (name, error);
        let questions = self.question.read(count).map_err(in_column("question"))?;
        let choices = self.choices.read_lists(count).map_err(in_column("choices"))?;
        let answers = self.answer.read(count).map_err(in_column("answer"))?;
        let subjects = match &mut self.subject {
            Some(column) => column.read(count).map_err(in_column("subject"))?,
            None => vec![None; questions.len()],
        };
        for (name, rows) in [("choices", choices.len()), ("answer", answers.len()), ("subject", subjects.len())] {
            if rows != questions.len() {
                return Err((name, ParquetError::EOF("the column is not as long as `question`".to_owned())));
            }
        }
        let rows = questions.into_iter().zip(choices).zip(answers).zip(subjects);
        Ok(rows
            .map(|(((question, choices), answer), subject)| StoredRow { question, choices, answer, subject })
            .collect())
    }
}

impl Layout {
    /// Finds out how to read the columns, and tells their names to `out`.
    fn new(file: &SerializedFileReader<Data>, largest: u64, out: &mut Collector) -> Result<Self, Fault> {
        let schema = file.metadata().file_metadata().schema_descr();
        let roots = schema.root_schema().get_fields();
        let mut known = HashSet::new();
        for root in roots {
            if !known.insert(root.name()) {
                return Err(Fault::in_field(root.name(), "there are two columns of this name"));
            }
            out.add_column(root.name());
        }
        let own = if Self::are_of_the_hub(roots) { Some(Own::new(schema, out)?) } else { None };
        let (mut kept, mut utc) = (Vec::new(), Vec::new());
        for (place, root) in roots.iter().enumerate() {
            if own.as_ref().is_some_and(|own| own.holds(schema, place)) {
                continue;
            }
            match values::form(schema, place, file.metadata(), largest) {
                Form::Json => utc.push(false),
                Form::Text { what, utc: in_utc } => {
                    out.add_foreign(root.name(), what, true);
                    utc.push(in_utc);
                }
                Form::Without { what } => {
                    out.add_foreign(root.name(), what, true);
                    continue;
                }
            }
            kept.push(Arc::clone(root));
        }
        for leaf in 0..schema.num_columns() {
            let root = roots[schema.get_column_root_idx(leaf)].name();
            if COLUMNS.contains(&root) || kept.iter().any(|kept| kept.name() == root) {
                check_codec(file, leaf).map_err(|problem| Fault::in_field(root, problem))?;
            }
        }
        if let Some(own) = &own {
            own.check_choices(file)?;
        }
        if kept.is_empty() {
            if own.is_none() {
                return Err(Fault::in_field(COLUMNS[0], "is missing; no column can be read"));
            }
            return Ok(Self { own, rows: None });
        }
        let schema = Type::group_type_builder(schema.root_schema().name()).with_fields(kept).build();
        Ok(Self { own, rows: Some((schema.map_err(|error| Fault::new(format!("{DAMAGED} ({error})")))?, utc)) })
    }

    /// Whether the columns are called as on the hub, with choices that are no structure with labels. What is wrong with one of them
    /// is said then without reading any; otherwise they are read as JSON would be.
    fn are_of_the_hub(roots: &[Arc<Type>]) -> bool {
        let find = |name: &str| roots.iter().find(|root| root.name() == name);
        let is_missing = |place: usize| {
            find(COLUMNS[place]).is_none() && roots.iter().any(|root| own_column(root.name()) == Some(place))
        };
        let has_labels = find(COLUMNS[1]).is_some_and(|choices| {
            let names = |group: &Type| group.get_fields().iter().any(|field| field.name() == "text");
            let mut inner: &Type = choices;
            loop {
                if inner.is_primitive() {
                    break false;
                }
                if names(inner) {
                    break true;
                }
                let [only] = inner.get_fields() else { break false };
                inner = only;
            }
        });
        !has_labels && !(0..3).any(is_missing)
    }
}

impl Own {
    fn new(schema: &SchemaDescriptor, out: &Collector) -> Result<Self, Fault> {
        let roots = schema.root_schema().get_fields();
        // The only leaf of a column, and the column's place.
        let column = |name: &str| {
            let root = roots.iter().position(|root| root.name() == name)?;
            let mut leaves = (0..schema.num_columns()).filter(|&leaf| schema.get_column_root_idx(leaf) == root);
            match (leaves.next(), leaves.next()) {
                (Some(leaf), None) => Some(Ok((leaf, roots[root].as_ref(), schema.column(leaf)))),
                _ => Some(Err(Fault::in_field(name, "is a structure of several columns"))),
            }
        };
        let required = |name: &str| {
            column(name).unwrap_or_else(|| {
                Err(Fault::in_field(name, format!("is missing; the columns are {}", out.columns().join(", "))))
            })
        };
        let flat_text = |(leaf, root, descriptor): (usize, &Type, Arc<ColumnDescriptor>)| {
            (root.is_primitive() && descriptor.max_rep_level() == 0 && is_text(&descriptor)).then_some(leaf)
        };

        let (leaf, root, descriptor) = required("question")?;
        let question = flat_text((leaf, root, descriptor))
            .ok_or_else(|| Fault::in_field("question", format!("must be text, not {}", kind(root))))?;
        let (choices, root, descriptor) = required("choices")?;
        let is_list = root.is_primitive() || is_list(root.get_basic_info());
        if !is_list || descriptor.max_rep_level() != 1 || !is_text(&descriptor) {
            return Err(Fault::in_field("choices", format!("must be a list of texts, not {}", kind(root))));
        }
        let (answer, root, descriptor) = required("answer")?;
        let Some(answer_type) = answer_type(root, &descriptor) else {
            return Err(Fault::in_field("answer", format!("must be an integer or text, not {}", kind(root))));
        };
        // A subject that is no text is a column like others.
        let subject = column("subject").and_then(Result::ok).and_then(flat_text);
        Ok(Self { question, choices, answer: (answer, answer_type), subject })
    }

    /// Whether the column at this place is one of these.
    fn holds(&self, schema: &SchemaDescriptor, root: usize) -> bool {
        let leaves = [Some(self.question), Some(self.choices), Some(self.answer.0), self.subject];
        leaves.into_iter().flatten().any(|leaf| schema.get_column_root_idx(leaf) == root)
    }

    /// Refuses lists without end: no row may have more than so many choices.
    fn check_choices(&self, file: &SerializedFileReader<Data>) -> Result<(), Fault> {
        for group in file.metadata().row_groups() {
            let (values, rows) = (group.column(self.choices).num_values(), group.num_rows());
            if values > rows.saturating_mul(*CHOICES.end() as i64 + 1) {
                let most = CHOICES.end();
                let problem = format!("there are {values} in {rows} rows, more than {most} a question");
                return Err(Fault::in_field("choices", problem));
            }
        }
        Ok(())
    }
}

fn is_text(descriptor: &ColumnDescriptor) -> bool {
    let annotated = match descriptor.logical_type_ref() {
        Some(logical) => matches!(logical, LogicalType::String | LogicalType::Enum | LogicalType::Json),
        // Without annotation, as old writers leave text; it must be UTF-8 all the same.
        None => matches!(
            descriptor.converted_type(),
            ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON
        ),
    };
    annotated && descriptor.physical_type() == PhysicalType::BYTE_ARRAY
}

fn is_list(info: &BasicTypeInfo) -> bool {
    info.logical_type_ref() == Some(&LogicalType::List) || info.converted_type() == ConvertedType::LIST
}

fn answer_type(root: &Type, descriptor: &ColumnDescriptor) -> Option<AnswerType> {
    if !root.is_primitive() || descriptor.max_rep_level() != 0 {
        return None;
    }
    if is_text(descriptor) {
        return Some(AnswerType::Text);
    }
    let signed = match (descriptor.logical_type_ref(), descriptor.converted_type()) {
        (Some(LogicalType::Integer(integer)), _) => integer.is_signed,
        (None, ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64) => {
            false
        }
        (
            None,
            ConvertedType::NONE
            | ConvertedType::INT_8
            | ConvertedType::INT_16
            | ConvertedType::INT_32
            | ConvertedType::INT_64,
        ) => true,
        _ => return None,
    };
    match descriptor.physical_type() {
        PhysicalType::INT32 => Some(AnswerType::Int32 { signed }),
        PhysicalType::INT64 => Some(AnswerType::Int64 { signed }),
        _ => None,
    }
}

/// What a column is, in the words of error messages.
fn kind(root: &Type) -> String {
    let info = root.get_basic_info();
    match (info.logical_type_ref(), info.converted_type()) {
        (Some(logical), _) => format!("{logical:?}"),
        (None, ConvertedType::NONE) if root.is_primitive() => root.get_physical_type().to_string(),
        (None, ConvertedType::NONE) => "a structure".to_owned(),
        (None, converted) => converted.to_string(),
    }
}

/// One leaf column of a row group.
struct Column<T: DataType> {
    reader: ColumnReaderImpl<T>,
    max_definition: i16,
    /// Definition level from which on there is an element in the row's list.
    element_definition: i16,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
    values: Vec<T::T>,
}

/// A list of values of which some may be null, itself null or not.
type List<T> = Option<Vec<Option<T>>>;

impl<T: DataType> Column<T> {
    fn new(group: &dyn RowGroupReader, leaf: usize) -> Result<Self, ParquetError> {
        let descriptor = group.metadata().schema_descr().column(leaf);
        let reader = group.get_column_reader(leaf)?;
        if descriptor.physical_type() != T::get_physical_type() {
            return Err(ParquetError::General("the column's type contradicts the schema".to_owned()));
        }
        Ok(Self {
            reader: get_typed_column_reader(reader),
            max_definition: descriptor.max_def_level(),
            element_definition: descriptor.repeated_ancestor_def_level(),
            definitions: Vec::new(),
            repetitions: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Decodes up to `rows` rows and returns their number.
    fn decode(&mut self, rows: usize) -> Result<usize, ParquetError> {
        self.definitions.clear();
        self.repetitions.clear();
        self.values.clear();
        let (definitions, repetitions) = (Some(&mut self.definitions), Some(&mut self.repetitions));
        let (rows, _, _) = self.reader.read_records(rows, definitions, repetitions, &mut self.values)?;
        Ok(rows)
    }

    /// The next values of a column without lists; fewer than `rows` only at its end.
    fn read(&mut self, rows: usize) -> Result<Vec<Option<T::T>>, ParquetError> {
        let rows = self.decode(rows)?;
        let mut values = self.values.drain(..);
        if self.max_definition == 0 {
            return Ok(values.map(Some).collect());
        }
        let column: Vec<_> = self
            .definitions
            .iter()
            .map(|&definition| if definition == self.max_definition { values.next() } else { None })
            .collect();
        if column.len() == rows { Ok(column) } else { Err(ParquetError::EOF("levels are missing".to_owned())) }
    }

    /// The next rows of a column of lists; fewer than `rows` only at its end.
    fn read_lists(&mut self, rows: usize) -> Result<Vec<List<T::T>>, ParquetError> {
        let rows = self.decode(rows)?;
        let mut values = self.values.drain(..);
        let mut lists: Vec<List<T::T>> = Vec::with_capacity(rows);
        for (index, &repetition) in self.repetitions.iter().enumerate() {
            let definition = self.definitions.get(index).copied().unwrap_or(self.max_definition);
            if repetition == 0 {
                // Below the element's level the list is empty, unless it is null, which has the lowest level if it may be.
                let is_null = definition == 0 && self.element_definition > 1;
                lists.push(if is_null { None } else { Some(Vec::new()) });
            }
            if definition >= self.element_definition
                && let Some(Some(list)) = lists.last_mut()
            {
                list.push(if definition == self.max_definition { values.next() } else { None });
            }
        }
        if lists.len() == rows { Ok(lists) } else { Err(ParquetError::EOF("levels are missing".to_owned())) }
    }
}

/// The answers, of whichever type they are.
enum AnswerColumn {
    Int32(Column<Int32Type>, bool),
    Int64(Column<Int64Type>, bool),
    Text(Column<ByteArrayType>),
}

impl AnswerColumn {
    fn new(group: &dyn RowGroupReader, (leaf, answer_type): (usize, AnswerType)) -> Result<Self, ParquetError> {
        Ok(match answer_type {
            AnswerType::Int32 { signed } => Self::Int32(Column::new(group, leaf)?, signed),
            AnswerType::Int64 { signed } => Self::Int64(Column::new(group, leaf)?, signed),
            AnswerType::Text => Self::Text(Column::new(group, leaf)?),
        })
    }

    fn read(&mut self, rows: usize) -> Result<Vec<Result<GivenAnswer, Fault>>, ParquetError> {
        let null = || Fault::in_field("answer", "is null");
        // An unsigned integer beyond the signed range is stored as a negative one; it is beyond any index as well.
        let index = |value: Option<i64>, signed: bool| match value {
            None => Err(null()),
            Some(value) if value < 0 && !signed => Ok(GivenAnswer::Index(i64::MAX)),
            Some(value) => Ok(GivenAnswer::Index(value)),
        };
        Ok(match self {
            Self::Int32(column, signed) => {
                column.read(rows)?.into_iter().map(|value| index(value.map(i64::from), *signed)).collect()
            }
            Self::Int64(column, signed) => column.read(rows)?.into_iter().map(|value| index(value, *signed)).collect(),
            Self::Text(column) => {
                column.read(rows)?.into_iter().map(|value| text("answer", value).map(GivenAnswer::Text)).collect()
            }
        })
    }
}

fn text(field: &str, value: Option<ByteArray>) -> Result<String, Fault> {
    let value = value.ok_or_else(|| Fault::in_field(field, "is null"))?;
    let text = std::str::from_utf8(value.data());
    text.map(str::to_owned).map_err(|_| Fault::in_field(field, "is not UTF-8"))
}

fn choice_texts(list: List<ByteArray>) -> Result<Vec<String>, Fault> {
    let list = list.ok_or_else(|| Fault::in_field("choices", "is null"))?;
    list.into_iter()
        .enumerate()
        .map(|(number, choice)| match choice {
            None => Err(Fault::in_field("choices", format!("choice {number} must be text, not null"))),
            choice => text("choices", choice),
        })
        .collect()
}
