//! What can only be shown here: small limits, and that no bytes make a reader panic. Formats, faults and tokens are tested from Python.

use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn small() -> Limits {
    Limits { record: 100, decompressed: 1000, budget: Arc::new(MemoryBudget::new(10_000)) }
}
pub(super) const TINY: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"u": 0, "a": 1}, "unk_token": "u"}}"#;

fn write(folder: &tempfile::TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn read_bytes(name: &str, content: &[u8], options: &ReadOptions, limits: &Limits) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, name, content);
    let mut texts = Vec::new();
    read_within(&[path], options, limits, limits, &Cancel::default(), &mut |text| {
        texts.push(text);
        Ok(())
    })?;
    Ok(texts)
}

fn problem(result: Result<Vec<String>>) -> String {
    match result {
        Err(Error::Dataset(fault)) => fault.to_string(),
        other => panic!("expected a dataset error, not {other:?}"),
    }
}

#[test]
fn a_record_is_bounded() {
    let long = "x".repeat(120);
    let raw = ReadOptions { raw_lines: true, ..ReadOptions::default() };
    let default = ReadOptions::default();
    for (name, content, options, place) in [
        ("a.jsonl", format!("\"a\"\n\"{long}\"\n"), &default, ", row 2: the record is longer than 100 bytes"),
        ("a.jsonl", format!("a\n{long}\n"), &raw, ", row 2: the record is longer than 100 bytes"),
        ("a.txt", long.clone(), &default, ": the document is longer than is read"),
    ] {
        let problem = problem(read_bytes(name, content.as_bytes(), options, &small()));
        assert!(problem.contains(place), "{problem}");
    }
}

#[test]
fn no_more_is_read_than_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&b"\"a bird\"\n".repeat(100_000)).unwrap();
    let mut packed = encoder.finish().unwrap();
    // The rest is broken, and nobody notices.
    packed.truncate(packed.len() / 2);
    let path = write(&folder, "a.jsonl.gz", &packed);
    let missing = folder.path().join("missing.jsonl");
    let options = ReadOptions { limit: Some(300), ..ReadOptions::default() };
    let texts = read_documents(&[path.clone(), missing], &options, &Cancel::default()).unwrap();
    assert_eq!(texts, vec!["a bird"; 300]);
    let all = read_documents(&[path], &ReadOptions::default(), &Cancel::default());
    assert!(problem(all).contains("not a complete gzip file"));
}

#[test]
fn a_set_flag_cancels() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "a.jsonl", b"\"a\"\n");
    let cancel = Cancel::default();
    cancel.set();
    assert!(matches!(read_documents(&[path], &ReadOptions::default(), &cancel), Err(Error::Cancelled)));
}

#[test]
fn tokens_are_cut_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "a.jsonl", b"\"a a b\"\n\n{\"text\": \"a\"}\n");
    let tokenizer = crate::tokens::tokenizer::Tokenizer::from_json(TINY, true, 0, "u").unwrap();
    let cancel = Cancel::default();
    let encoded = tokens::encode(&tokenizer, &[&path], &ReadOptions::default(), 2, &cancel).unwrap();
    assert_eq!((encoded.tokens, encoded.offsets), (vec![1, 1, 1], vec![0, 2, 3]));
    let none = tokens::encode(&tokenizer, &[&path], &ReadOptions::default(), 0, &cancel);
    assert!(matches!(none, Err(Error::InvalidArgument(_))));
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(
        content in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            r#"(\{"(text|x)": ?("(a|\\\\|\\u0041|\\ud800|é)*"|[0-9\[\]{}tru]{0,6}),?"?\}?[\r\n]{0,2}){0,4}"#.prop_map(String::into_bytes),
        ],
        name in prop::sample::select(vec!["a.jsonl", "a.txt", "a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.parquet.zst"]),
        raw_lines in any::<bool>(),
        min_chars in 0_usize..5,
    ) {
        let options = ReadOptions { raw_lines, min_chars, ..ReadOptions::default() };
        match read_bytes(name, &content, &options, &small()) {
            Ok(texts) => prop_assert!(texts.iter().all(|text| text.chars().count() > min_chars)),
            Err(Error::Dataset(_)) => {}
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }
}
