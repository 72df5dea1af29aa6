//! What can only be shown here: small limits, cancellation, and that no bytes make a reader panic. Formats, faults and equality
//! with independent readers are tested from Python.

use std::io::Write;
use std::path::PathBuf;

use ::parquet as parquet_format;
use proptest::prelude::*;

use super::limits::MemoryBudget;
use super::*;

const LINE: &str = r#"{"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 0}"#;
fn small() -> Limits {
    Limits { record: 100, decompressed: 1000, budget: Arc::new(MemoryBudget::new(20_000)) }
}

fn limits() -> Limits {
    Limits::of_questions().unwrap()
}

fn write(folder: &tempfile::TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

fn read_bytes(name: &str, content: &[u8], limits: &Limits) -> Result<QuestionSet> {
    let folder = tempfile::tempdir().unwrap();
    read_within(&write(&folder, name, content), limits, &Cancel::default())
}

fn fault(result: Result<QuestionSet>) -> DatasetError {
    match result {
        Err(Error::Dataset(fault)) => *fault,
        other => panic!("expected a dataset error, not {other:?}"),
    }
}

#[test]
fn the_extension_decides() {
    let format = |name: &str| format_of(Path::new(name));
    assert_eq!(format("a/b.jsonl"), Some((Format::JsonLines, Compression::None)));
    assert_eq!(format("b.x.JSON.Gz"), Some((Format::Json, Compression::Gzip)));
    assert_eq!(format("b.csv.zst"), Some((Format::Csv, Compression::Zstd)));
    assert_eq!(format(".parquet"), Some((Format::Parquet, Compression::None)));
    for name in ["b", "gz", "b.gz", "b.txt", "b.csv.xz", "b.gz.csv.gz.gz", "", ".."] {
        assert_eq!(format(name), None, "{name}");
    }
}

#[test]
fn a_record_is_bounded() {
    assert!(LINE.len() < small().record);
    let long = LINE.replace("bird", &"x".repeat(100));
    for (name, content) in [
        ("a.jsonl", format!("{LINE}\n{long}\n")),
        ("a.json", format!("[{LINE}, {long}]")),
        ("a.csv", format!("q,a,b,A\n{},a,b,A\n", "x".repeat(100))),
        ("a.csv", format!("q,a,b,A\n{}\n", ",".repeat(101))),
    ] {
        let fault = fault(read_bytes(name, content.as_bytes(), &small()));
        assert_eq!(fault.row, Some(2), "{fault}");
        assert!(fault.problem.contains("longer than 100 bytes"), "{fault}");
    }
}

#[test]
fn a_file_may_decompress_only_so_far() {
    let content = format!("{LINE}\n").repeat(20);
    assert_eq!(read_bytes("a.jsonl", content.as_bytes(), &small()).unwrap().questions.len(), 20);
    let lines = [("a.jsonl.gz", gzip(content.as_bytes())), ("a.jsonl.zst", zstd(content.as_bytes()))];
    for (name, packed) in
        lines.into_iter().chain([("a.parquet.gz", gzip(&[0; 2000])), ("a.json.zst", zstd(&[b' '; 2000]))])
    {
        let fault = fault(read_bytes(name, &packed, &small()));
        assert!(fault.problem.contains("decompresses to more than 1000 bytes"), "{fault}");
    }
}

#[test]
fn questions_may_take_only_so_much_memory() {
    let content = format!("{LINE}\n").repeat(100);
    let fault = fault(read_bytes("a.jsonl", content.as_bytes(), &small()));
    assert!(fault.problem.contains("more than 20000 bytes of memory"), "{fault}");
    assert!(fault.row.is_some_and(|row| row > 20), "{fault}");
}

#[test]
fn compressed_files_may_be_several_in_one() {
    let line = format!("{LINE}\n");
    for (name, packed) in [("a.jsonl.gz", gzip(line.as_bytes())), ("a.jsonl.zst", zstd(line.as_bytes()))] {
        let twice = [packed.as_slice(), packed.as_slice()].concat();
        assert_eq!(read_bytes(name, &twice, &limits()).unwrap().questions.len(), 2);
    }
}

#[test]
fn records_across_buffers_are_whole() {
    // Many buffers long, with a border at every place of a line sooner or later.
    let line = |number: usize| LINE.replace("bird", &"x".repeat(number % 83)) + "\n";
    let content: String = (0..5000).map(line).collect();
    let lines = read_bytes("a.jsonl", content.as_bytes(), &limits()).unwrap();
    let array = format!("[{}]", content.trim_end().replace('\n', ","));
    let array = read_bytes("a.json", array.as_bytes(), &limits()).unwrap();
    assert_eq!(lines.questions, array.questions);
    assert_eq!(lines.questions.len(), 5000);
}

#[test]
fn blank_lines_across_buffers_are_no_rows() {
    let bad = "\t x";
    for spaces in [0, 1, 65_534, 65_535, 65_536, 65_537, 200_000] {
        let blank = "\n \r\n".repeat(spaces / 4) + &"\n".repeat(spaces % 4);
        let lines = format!("{blank}{LINE}\n{blank}  {LINE}{blank}\n{bad}\n");
        let fault = fault(read_bytes("a.jsonl", lines.as_bytes(), &limits()));
        assert_eq!(fault.row, Some(3), "{fault}");
        assert!(fault.problem.ends_with("(line 1, column 3 of it)"), "{fault}");
        let blank = "\n\r".repeat(spaces);
        let rows = format!("{blank}q,a,b,A\n{blank}p,a,b,B{blank}");
        assert_eq!(read_bytes("a.csv", rows.as_bytes(), &limits()).unwrap().questions.len(), 2);
    }
}

#[test]
fn reading_stops_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let cancel = Cancel::default();
    cancel.set();
    for name in ["a.jsonl", "a.json.gz", "a.csv"] {
        let path = write(&folder, name, LINE.as_bytes());
        assert!(matches!(read_questions(&path, &cancel), Err(Error::Cancelled)), "{name}");
        assert!(matches!(read_many(&[path], &cancel), Err(Error::Cancelled)), "{name}");
    }
}

#[test]
fn rows_in_memory_are_checked_as_those_of_a_file() {
    let row = Row { fields: serde_json::from_str(LINE).unwrap(), foreign: Vec::new() };
    let set = from_rows([row.clone()], "memory", &Cancel::default()).unwrap();
    assert_eq!(set.questions, read_bytes("a.jsonl", LINE.as_bytes(), &limits()).unwrap().questions);
    let mut bad = row.clone();
    bad.fields.insert("answer".to_owned(), Value::from(2));
    let fault = fault(from_rows([row, bad], "memory", &Cancel::default()));
    assert_eq!((fault.file.as_str(), fault.row, fault.field.as_deref()), ("memory", Some(2), Some("answer")));
}

/// A parquet file with one question, in the crate's own writing: no other writer here knows the old LZ4.
fn parquet_with(codec: parquet_format::basic::Compression) -> Vec<u8> {
    use parquet_format::data_type::{ByteArray, ByteArrayType, Int64Type};
    let schema =
        "message schema { required binary question (UTF8); repeated binary choices (UTF8); required int64 answer; }";
    let schema = Arc::new(parquet_format::schema::parser::parse_message_type(schema).unwrap());
    let properties = parquet_format::file::properties::WriterProperties::builder().set_compression(codec).build();
    let mut content = Vec::new();
    let mut writer =
        parquet_format::file::writer::SerializedFileWriter::new(&mut content, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let texts = |texts: &[&str]| texts.iter().map(|&text| ByteArray::from(text)).collect::<Vec<_>>();
    let question = "Which bird hoots? ".repeat(50);
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&texts(&[&question]), None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&texts(&["owl", "hen"]), Some(&[1, 1]), Some(&[0, 1])).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[1], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    content
}

#[test]
fn every_codec_of_parquet_but_lzo_is_read() {
    use parquet_format::basic::Compression as Codec;
    let expected = read_bytes("a.parquet", &parquet_with(Codec::UNCOMPRESSED), &limits()).unwrap().questions;
    assert_eq!((expected.len(), expected[0].answer), (1, 1));
    for codec in [
        Codec::SNAPPY,
        Codec::GZIP(parquet_format::basic::GzipLevel::default()),
        Codec::BROTLI(parquet_format::basic::BrotliLevel::default()),
        Codec::LZ4,
        Codec::LZ4_RAW,
        Codec::ZSTD(parquet_format::basic::ZstdLevel::default()),
    ] {
        let read = read_bytes("a.parquet", &parquet_with(codec), &limits()).unwrap();
        assert_eq!(read.questions, expected, "{codec}");
    }
}

/// The error, if there is one, is of the kinds that a file may cause, and names the file.
fn check(name: &str, content: &[u8]) -> Result<(), TestCaseError> {
    match read_bytes(name, content, &small()) {
        Ok(set) => {
            prop_assert!(!set.questions.is_empty());
            prop_assert!(set.questions.iter().all(|question| question.answer < question.choices.len()));
        }
        Err(Error::Dataset(fault)) => prop_assert!(fault.file.ends_with(name)),
        Err(other) => prop_assert!(false, "{other:?}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_bytes_make_a_reader_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
        for name in ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.json.zst", "a.parquet"] {
            check(name, &content)?;
        }
        check("a.json.gz", &gzip(&content))?;
        check("a.csv.zst", &zstd(&content))?;
    }

    #[test]
    fn nothing_that_looks_like_a_record_makes_a_reader_panic(
        content in "([\\[\\]{},:\"\\\\ \n\r0aAé-]|question|choices|answer|data|null|\"q\"|\\[\"a\",\"b\"\\]){0,40}",
    ) {
        for name in ["a.jsonl", "a.json", "a.csv"] {
            check(name, content.as_bytes())?;
        }
    }

    #[test]
    fn csv_fields_survive_quoting(fields in prop::collection::vec("[^\0]{1,8}", 4..8), lines in 1_usize..4) {
        let quoted: Vec<String> = fields.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect();
        let last = fields.len() - 1;
        let record = format!("{},B\r\n", quoted[..last].join(","));
        let set = read_bytes("a.csv", record.repeat(lines).as_bytes(), &limits());
        let fields_are_ambiguous = fields[1..last].iter().enumerate().any(|(index, choice)| choice == "B" && index != 1);
        prop_assume!(!fields_are_ambiguous);
        let set = set.unwrap();
        prop_assert_eq!(set.questions.len(), lines);
        for question in set.questions {
            prop_assert_eq!(&question.question, &fields[0]);
            prop_assert_eq!(&question.choices, &fields[1..last]);
            prop_assert_eq!(question.answer, 1);
        }
    }
}
