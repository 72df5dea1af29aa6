//! What is fuzzed: for each reader its files, its words, and what is done with an input.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::{Value, json};
use wmdp_core::corpus::{ReadOptions, for_each_document, tokens};
use wmdp_core::dataset::{Row, from_rows, read_questions};
use wmdp_core::runtime::parallel::Cancel;
use wmdp_core::runtime::read_ahead::ReadAhead;
use wmdp_core::scores::saved::read_samples;
use wmdp_core::text::prompt::Prompts;
use wmdp_core::text::question::QuestionSet;
use wmdp_core::text::template::{ChoiceStyle, DocToText, PromptTemplate};
use wmdp_core::tokens::request::Requests;
use wmdp_core::tokens::tokenizer::Tokenizer;
use wmdp_core::{Error, Result};

use crate::seeds;

/// A reader.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Names that an input's file may have: an extension decides the format.
    pub(crate) files: &'static [&'static str],
    /// What inputs are made of, beside bytes.
    pub(crate) words: &'static [&'static str],
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Reads a file and uses what was read.
    pub(crate) read: fn(&Path) -> Result<()>,
}

const JSON: &[&str] = &[
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\"",
    "\\",
    "\n",
    " ",
    "null",
    "true",
    "NaN",
    "-Infinity",
    "\"question\":",
    "\"choices\":",
    "\"answer\":",
    "\"subject\":",
    "\"text\":",
    "\"data\":",
    "\"doc_id\":",
    "\"target\":",
    "\"arguments\":",
    "\"arg_1\":",
    "\"filtered_resps\":",
    "\"filter\":",
    "\\ud800",
    "\\u0000",
    "[\"a\",\"b\"]",
    "{\"text\":[",
    "{\"label\":[",
];

const CSV: &[&str] = &[
    ",",
    ";",
    "\t",
    "\"",
    "\"\"",
    "\n",
    "\r\n",
    "\r",
    "question",
    "answer",
    "choices",
    "choice0",
    "A",
    "B",
    "[\"a\",\"b\"]",
];

const BINARY: &[&str] = &["\0", "\x01", "\x15", "\x7F", "PAR1", "question", "choices", "answer", "text", "\0\0\0\0"];

const TEMPLATE: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "question",
    "choices",
    "answer",
    "notes",
    "number",
    "level",
    "loop.index",
    "loop.index0",
    "for ",
    " in ",
    "endfor",
    ".strip()",
    ".lstrip()",
    ".rstrip()",
    "|trim",
    "|length",
    "|count",
    "[0]",
    "[-1]",
    "[1]",
    "[",
    "]",
    "(",
    ")",
    "{% for c in choices %}",
    "{% endfor %}",
    "{%- ",
    " -%}",
    "\n",
    " ",
    "'",
    "\u{e9}",
    "raw",
    "endraw",
    "#",
];

const TOKENIZER: &[&str] = &[
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "\"type\":",
    "\"BPE\"",
    "\"WordPiece\"",
    "\"WordLevel\"",
    "\"Unigram\"",
    "\"Sequence\"",
    "\"Split\"",
    "\"Regex\":",
    "\"String\":",
    "\"ByteLevel\"",
    "\"Metaspace\"",
    "\"Whitespace\"",
    "\"Digits\"",
    "\"Replace\"",
    "\"Prepend\"",
    "\"NFC\"",
    "\"NFKC\"",
    "\"Lowercase\"",
    "\"Strip\"",
    "\"Precompiled\"",
    "\"TemplateProcessing\"",
    "\"BertProcessing\"",
    "\"RobertaProcessing\"",
    "\"pretokenizers\":",
    "\"normalizers\":",
    "\"vocab\":",
    "\"merges\":",
    "\"id\":",
    "\"behavior\":",
    "\"invert\":",
    "\"unk_token\":",
    "\"ignore_merges\":",
    "\"added_tokens\":",
    "(a*)*b",
    "\\\\p{L}+",
    "\\\\s+(?!\\\\S)",
];

/// All targets.
pub(crate) fn all() -> Vec<Target> {
    let questions = |name, files, words, seeds| Target { name, files, words, seeds, read: read_question_file };
    let json_files: &[&str] = &["a.jsonl", "a.json"];
    let packed_files: &[&str] = &["a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.csv.zst"];
    let document_files: &[&str] = &["a.jsonl", "a.txt", "a.jsonl.gz", "a.txt.zst"];
    vec![
        questions("json", json_files, JSON, seeds::questions_json),
        questions("csv", &["a.csv"], CSV, seeds::questions_csv),
        questions("parquet", &["a.parquet", "a.parquet.zst"], BINARY, seeds::parquet),
        questions("compressed", packed_files, JSON, seeds::questions_json),
        Target { name: "documents", files: document_files, words: JSON, seeds: seeds::documents, read: read_documents },
        Target { name: "texts", files: &["a.parquet"], words: BINARY, seeds: seeds::parquet, read: read_documents },
        Target { name: "samples", files: &["a.jsonl"], words: JSON, seeds: seeds::samples, read: read_samples_file },
        Target { name: "template", files: &["a.jinja"], words: TEMPLATE, seeds: seeds::templates, read: render },
        Target { name: "tokenizer", files: &["a.json"], words: TOKENIZER, seeds: seeds::tokenizers, read: tokenize },
        Target { name: "weights", files: &["a.safetensors"], words: JSON, seeds: seeds::weights, read: read_ahead },
        Target { name: "pickled", files: &["a.json"], words: JSON, seeds: seeds::pickled, read: restore },
    ]
}

/// An input as it stands in a file of that name.
pub(crate) fn packed(file: &str, input: &[u8]) -> Vec<u8> {
    match file.rsplit_once('.') {
        Some((_, "gz")) => seeds::gzip(input),
        Some((_, "zst")) => seeds::zstd(input),
        _ => input.to_vec(),
    }
}

/// The committed inputs of a target; the name of each begins with a word of its own: `huge_id.json` is read as `a.json`.
pub(crate) fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let input = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (_, extension) = name.split_once('.').unwrap();
        (format!("a.{extension}"), fs::read(path).unwrap())
    };
    paths.iter().map(input).collect()
}

fn read_question_file(path: &Path) -> Result<()> {
    let cancel = Cancel::default();
    let set = read_questions(path, &cancel)?;
    assert!(set.questions.iter().all(|question| question.answer < question.choices.len()));
    set.content_hash_until(&cancel)?;
    let bytes = set.to_bytes()?;
    // Another copy of a large set would be this test's own.
    if bytes.len() < 1 << 20 {
        assert_eq!(QuestionSet::from_bytes(&bytes)?, set);
    }
    Ok(())
}

fn read_documents(path: &Path) -> Result<()> {
    let mut first = Ok(());
    for options in [ReadOptions::default(), ReadOptions { raw_lines: true, keep_empty: true, ..ReadOptions::default() }]
    {
        let read = for_each_document(&[path], &options, &Cancel::default(), |_| Ok(()));
        first = first.and(read.map(drop));
    }
    first
}

fn read_samples_file(path: &Path) -> Result<()> {
    let samples = read_samples(path, None, &Cancel::default())?;
    assert_eq!(samples.choice_offsets.last(), Some(&samples.continuations.len()));
    for metric in 0..3 {
        let _ = samples.correct(metric);
    }
    Ok(())
}

static QUESTIONS: LazyLock<QuestionSet> = LazyLock::new(|| {
    let rows = [
        json!({"question": " Which bird hoots? ", "choices": ["owl", "hen"], "answer": 0, "notes": ["n", " m "], "number": -3}),
        json!({"question": "\u{e9}", "choices": [" ", "x", "y"], "answer": 2, "notes": [], "level": {"of": [1.5, null]}}),
    ];
    let rows = rows.map(|row| match row {
        Value::Object(fields) => Row { fields, ..Row::default() },
        _ => unreachable!(),
    });
    from_rows(rows, "birds", &Cancel::default()).unwrap()
});

fn render(path: &Path) -> Result<()> {
    let source = text(path)?;
    let template = PromptTemplate {
        description: String::new(),
        doc_to_text: DocToText::parse(&source)?,
        choices: ChoiceStyle::Letters,
        target_delimiter: " ".to_owned(),
        fewshot_delimiter: "\n\n".to_owned(),
    };
    template.question_texts(&QUESTIONS, &Cancel::default()).map(drop)
}

/// Loads a tokenizer and tokenizes a prompt and a document with it, in all ways that it allows.
fn tokenize(path: &Path) -> Result<()> {
    static TEXT: LazyLock<tempfile::NamedTempFile> = LazyLock::new(|| {
        let file = tempfile::Builder::new().suffix(".txt").tempfile().unwrap();
        fs::write(&file, "An owl  hoots.\n\n12345 times, \u{e9}\u{301} and aaaaaaaaaaaaaaaaaaaaaaaa\t!").unwrap();
        file
    });
    let tokenizer = Tokenizer::from_json(&text(path)?, true, 0, "<s>")?;
    let contexts = ["Which bird  hoots?\nAnswer:".to_owned()];
    let choices = vec![vec![" owl".to_owned(), " hen aaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned()]];
    let prompts = Prompts::from_contexts(&contexts, choices, vec![0], "", "birds")?;
    Requests::encode(&tokenizer, &[&prompts], 32, &Cancel::default())?;
    tokens::encode(&tokenizer, &[TEXT.path()], &ReadOptions::default(), 64, &Cancel::default()).map(drop)
}

/// That a file is not understood is no error here.
fn read_ahead(path: &Path) -> Result<()> {
    let ahead = ReadAhead::begin(vec![path.to_owned()], Some(1))?;
    assert!(ahead.wait(Duration::from_secs(60)));
    let (progress, length) = (ahead.progress(), fs::metadata(path).unwrap().len());
    assert!(progress.total <= length, "{progress:?} of {length}");
    assert_eq!((progress.read + progress.cached, progress.skipped), (progress.total, None));
    Ok(())
}

/// What pickle hands over is bytes like others.
fn restore(path: &Path) -> Result<()> {
    let bytes = fs::read(path).unwrap();
    let cancel = Cancel::default();
    let first = Prompts::from_bytes(&bytes).map(|prompts| {
        for question in 0..prompts.len() {
            let _ = prompts.context(question);
            let _ = prompts.continuation(question, prompts.answers[question]);
        }
    });
    let second = QuestionSet::from_bytes(&bytes).and_then(|set| {
        set.content_hash_until(&cancel)?;
        set.to_json_lines(&cancel)
    });
    let third = Requests::from_bytes(&bytes).map(|requests| {
        for question in 0..requests.num_questions() {
            let _ = requests.context(question);
            for choice in requests.choices(question) {
                let _ = requests.continuation(choice);
            }
        }
    });
    first.or(second.map(drop)).or(third)
}

fn text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).unwrap();
    String::from_utf8(bytes).map_err(|error| Error::InvalidArgument(error.to_string()))
}
