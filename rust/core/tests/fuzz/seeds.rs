//! Whole inputs to begin with, and bombs: small files that claim or unpack to much.

use std::io::Write;
use std::sync::Arc;

use parquet::basic::Compression as Codec;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use serde_json::{Value, json};

/// Members of which a compressed stream has many: of line ends, it unpacks to 320 MB.
const BOMB_PART: usize = 1 << 20;
const BOMB_PARTS: usize = 320;

pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
    let part = |part: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    };
    if is_bomb(content) { part(&content[1..]).repeat(BOMB_PARTS) } else { part(content) }
}

pub(crate) fn zstd(content: &[u8]) -> Vec<u8> {
    let part = |part: &[u8]| zstd::encode_all(part, 1).unwrap();
    if is_bomb(content) { part(&content[1..]).repeat(BOMB_PARTS) } else { part(content) }
}

/// A megabyte of line ends behind a mark, which stands for many of them where they are compressed.
fn bomb() -> Vec<u8> {
    let mut content = vec![b'\n'; BOMB_PART + 1];
    content[0] = b'!';
    content
}

fn is_bomb(content: &[u8]) -> bool {
    content.len() == BOMB_PART + 1 && content[0] == b'!'
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(crate) fn questions_json() -> Vec<Vec<u8>> {
    let line = r#"{"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 0, "subject": "birds", "x": [1, {"y": null}]}"#;
    let labels =
        r#"{"question": {"stem": "q"}, "choices": {"text": ["owl", "hen"], "label": ["A", "B"]}, "answerKey": "B"}"#;
    let mut seeds = texts(&[
        line,
        labels,
        &format!("{line}\n\n{}\n", line.replace("answer\": 0", "answer\": \"hen\"")),
        &format!("[{line}, {line}]"),
        &format!("{{\"name\": \"birds\", \"data\": [{line}], \"n\": 1e400}}"),
        &format!("{{\"question\": {}", "[".repeat(100_000)),
        &format!("[{}", "{\"data\":".repeat(100_000)),
        &line.replace("[1,", &format!("{}1{},", "[".repeat(120), "]".repeat(120))),
        &"9".repeat(200_000),
    ]);
    seeds.push(vec![b' '; 17 << 20]);
    seeds.push(line.replace("bird", &"x".repeat(17 << 20)).into_bytes());
    // As many values as a record may have: each takes many times its bytes.
    seeds.push(line.replace("[1,", &format!("[{}", "1,".repeat(7 << 20))).into_bytes());
    seeds.push(bomb());
    seeds
}

pub(crate) fn questions_csv() -> Vec<Vec<u8>> {
    let mut seeds = texts(&[
        "question,A,B,answer\nWhich bird hoots?,owl,hen,A\n",
        "question;choices;answer;level\n\"Which \"\"bird\"\";\nhoots?\";\"[\"\"owl\"\", \"\"hen\"\"]\";1;3\r\n",
        "Which bird hoots?,owl,hen,wren,jay,B\rAnd which sings?,owl,hen,wren,jay,C\r",
        "subject\tquestion\tchoice0\tchoice1\tanswer\nbirds\tq\towl\then\t0\n",
    ]);
    seeds.push(vec![b','; 8 << 20]);
    seeds.push(vec![b'"'; 17 << 20]);
    seeds.push([b"question,A,B,answer,".as_slice(), ",".repeat(100_000).as_bytes(), b"\n"].concat());
    // A header of so many columns.
    let columns: String = (0..200_000).map(|column| format!(",x{column}")).collect();
    seeds.push(format!("question,A,B,answer{columns}\nq,a,b,A{}\n", ",".repeat(200_000)).into_bytes());
    seeds.push(bomb());
    seeds
}

/// A parquet file of questions, with a column of texts beside.
fn parquet_of(codec: Codec, question: &str, rows: usize) -> Vec<u8> {
    let schema =
        "message schema { required binary question (UTF8); repeated binary choices (UTF8); required int64 answer;
        optional binary text (UTF8); optional int64 when (TIMESTAMP_MILLIS); }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(codec).build();
    let mut content = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut content, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let question = ByteArray::from(question);
    for column in 0..5 {
        let mut writer = group.next_column().unwrap().unwrap();
        let each = |levels: &[i16]| levels.repeat(rows);
        match column {
            0 => writer.typed::<ByteArrayType>().write_batch(&vec![question.clone(); rows], None, None),
            1 => {
                let choices: Vec<ByteArray> = ["owl", "hen"].repeat(rows).into_iter().map(ByteArray::from).collect();
                writer.typed::<ByteArrayType>().write_batch(&choices, Some(&each(&[1, 1])), Some(&each(&[0, 1])))
            }
            2 => writer.typed::<Int64Type>().write_batch(&vec![1; rows], None, None),
            3 => {
                let documents = vec![question.clone(); rows];
                writer.typed::<ByteArrayType>().write_batch(&documents, Some(&each(&[1])), None)
            }
            _ => writer.typed::<Int64Type>().write_batch(&vec![-1; rows], Some(&each(&[1])), None),
        }
        .unwrap();
        writer.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    content
}

pub(crate) fn parquet() -> Vec<Vec<u8>> {
    let codecs = [
        Codec::UNCOMPRESSED,
        Codec::SNAPPY,
        Codec::GZIP(parquet::basic::GzipLevel::default()),
        Codec::BROTLI(parquet::basic::BrotliLevel::default()),
        Codec::LZ4,
        Codec::LZ4_RAW,
        Codec::ZSTD(parquet::basic::ZstdLevel::default()),
    ];
    let mut seeds: Vec<Vec<u8>> = codecs.iter().map(|&codec| parquet_of(codec, "Which bird hoots?", 3)).collect();
    seeds.push(parquet_of(Codec::ZSTD(parquet::basic::ZstdLevel::default()), &"x".repeat(15 << 20), 12));
    seeds.push(bomb());
    seeds
}

/// Documents are read one after another for as long as there are some, so that only the length of one is bounded.
pub(crate) fn documents() -> Vec<Vec<u8>> {
    let mut seeds = texts(&[
        "{\"text\": \"An owl.\", \"n\": 1}\n\n\"A hen.\"\n{\"text\": \"\"}\n",
        "One line.\r\nAnother\ranother \u{e9}\n",
        "\u{feff}{\"text\": \"An owl.\", \"big\": 1e400}\n",
        &format!("{{\"n\": {}", "[".repeat(100_000)),
    ]);
    seeds.push(vec![b'x'; 65 << 20]);
    seeds.push(format!("{{\"text\": [{}", "1,".repeat(5 << 20)).into_bytes());
    seeds
}

pub(crate) fn samples() -> Vec<Vec<u8>> {
    let line = concat!(
        r#"{"doc_id": 0, "doc": {"question": "q"}, "target": "1", "arguments": {"gen_args_0": {"arg_0": "p", "arg_1": " A"}, "#,
        r#""gen_args_1": {"arg_0": "p", "arg_1": " B"}}, "resps": [[["-1.5", "True"]], [["-0.5", "False"]]], "#,
        r#""filtered_resps": [["-1.5", "True"], ["-0.5", "False"]], "filter": "none", "metrics": ["acc", "acc_norm"], "#,
        r#""doc_hash": "a", "prompt_hash": "b", "target_hash": "c", "acc": 1.0, "acc_norm": NaN}"#
    );
    let old = r#"{"doc_id": 1, "target": 0, "arguments": [["p", " A"], ["p", " B"]], "filtered_resps": [[-1.5, true], [-0.5, false]], "acc": 1.0}"#;
    texts(&[
        line,
        old,
        &format!("{line}\n{}\n", line.replace("doc_id\": 0", "doc_id\": 7")),
        &format!("[{old},\n{}]", old.replace("doc_id\": 1", "doc_id\": 0")),
        &line.replace("\"acc\"]", "\"acc_mutual_info\"]"),
        &"[".repeat(100_000),
        &format!("{{\"filtered_resps\": [{}", "[],".repeat(500_000)),
        &format!("[{}", ",".repeat(1_000_000)),
        &format!("{{\"doc_id\": [{}0]}}", "1,".repeat(5 << 20)),
        &line.replace("\"1\"", &format!("[{}0]", "1,".repeat(5 << 20))),
        &line.replace("[[\"-1.5\"", &format!("[{}[\"-1.5\"", "[\"1\",\"True\"],".repeat(300_000))),
    ])
}

pub(crate) fn templates() -> Vec<Vec<u8>> {
    texts(&[
        "mmlu",
        "question",
        "{{question.strip()}}\nA. {{choices[0]}}\nB. {{ choices[-1] | trim }}\nAnswer:",
        "{% for note in notes %}{{ loop.index }}. {{ note.strip()|length }}\n{% endfor %}{{ number }}",
        "{%- for c in choices -%}\n{{ loop.index0 }} {{c}}{%- endfor -%} {# x #}",
        &"{{".repeat(400_000),
        &"{% for c in choices %}".repeat(40_000),
        &format!("{{{{ {}question }}}}", "(".repeat(500_000)),
        &format!("{{{{ question{} }}}}", ".strip()".repeat(120_000)),
        &format!("{{{{ choices{} }}}}", "[0]".repeat(300_000)),
        &"{% for c in choices %}{{ c }}{% endfor %}".repeat(24_000),
        &"{{question}}".repeat(87_000),
    ])
}

fn tokenizer(model: &Value, pre_tokenizer: &Value, normalizer: &Value) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true}],
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": model
    })
}

pub(crate) fn tokenizers() -> Vec<Vec<u8>> {
    let bpe = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
        "vocab": {"<s>": 0, "a": 1, "aa": 2, "o": 3, "w": 4, "l": 5, "ow": 6, "owl": 7, "\u{120}": 8, "h": 9, "1": 10, "\u{c3}": 11},
        "merges": [["a", "a"], ["o", "w"], ["ow", "l"]]});
    let words = json!({"type": "WordLevel", "vocab": {"<s>": 0, "owl": 1, "[UNK]": 2}, "unk_token": "[UNK]"});
    let pieces = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"<s>": 0, "[UNK]": 1, "ow": 2, "##l": 3}});
    let unigram = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["\u{2581}", -2.0], ["owl", -1.5], ["a", -3.0], ["aa", -4.5]]});
    let split = |regex: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
    };
    let space = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    let lower = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}, {"type": "Prepend", "prepend": "\u{2581}"}]});
    let mut nested = json!({"type": "NFC"});
    for _ in 0..60 {
        nested = json!({"type": "Sequence", "normalizers": [nested, {"type": "NFKD"}]});
    }
    let mut huge = bpe.clone();
    huge["vocab"]["owl"] = json!(u32::MAX);
    let gpt = r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    let none = Value::Null;
    [
        tokenizer(&bpe, &split(gpt), &none),
        tokenizer(&bpe, &none, &lower),
        tokenizer(&words, &json!({"type": "Whitespace"}), &none),
        tokenizer(
            &pieces,
            &json!({"type": "BertPreTokenizer"}),
            &json!({"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
        ),
        tokenizer(&unigram, &space, &none),
        tokenizer(&bpe, &split("(a*)*b|(a|aa)+$|(a|a|b)*c"), &none),
        tokenizer(&bpe, &split(gpt), &nested),
        tokenizer(&huge, &split(gpt), &none),
    ]
    .iter()
    .map(|tokenizer| tokenizer.to_string().into_bytes())
    .chain([vec![b'['; 100_000], br#"{"model":{"vocab":{"#.repeat(50_000)])
    .collect()
}

pub(crate) fn weights() -> Vec<Vec<u8>> {
    let file =
        |header: &str, data: usize| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![7; data]].concat();
    let tensors = r#"{"__metadata__": {"format": "pt"}, "model.layers.0.w": {"dtype": "U8", "shape": [40], "data_offsets": [0, 40]}, "model.layers.7.w": {"dtype": "F32", "shape": [5], "data_offsets": [40, 60]}, "h.1": {"data_offsets": [60, 90]}}"#;
    let far = r#"{"a": {"data_offsets": [18446744073709551615, 18446744073709551615]}, "b": {"data_offsets": [9, 3]}}"#;
    vec![
        file(tensors, 90),
        file(far, 20),
        [&100_000_000_u64.to_le_bytes()[..], b"{}"].concat(),
        [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
        file(&format!("{{\"a\": [{}0]}}", "0,".repeat(8 << 20)), 0),
        file(&format!("{{\"a\": {}", "[".repeat(1 << 20)), 0),
        Vec::new(),
    ]
}

pub(crate) fn pickled() -> Vec<Vec<u8>> {
    let prompts = json!({"source": "birds", "prefix": "p", "bodies": ["q"], "choices": [["A", "B"]], "delimiter": " ", "answers": [1],
        "renderer": "Rust"});
    let questions = json!({"file": "birds", "columns": ["question", "choices", "answer"], "foreign": {}, "questions": [
        {"question": "q", "choices": ["owl", "hen"], "answer": 1, "subject": null, "extra": {"x": [1.5]}}]});
    let requests = wmdp_core::tokens::request::Requests::from_tokens(
        &[vec![1, 2], vec![3]],
        &[vec![vec![4], vec![5, 6]], vec![vec![7]]],
        8,
    );
    vec![
        prompts.to_string().into_bytes(),
        questions.to_string().into_bytes(),
        requests.unwrap().to_bytes().unwrap(),
        vec![b'['; 100_000],
    ]
}
