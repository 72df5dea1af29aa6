"""The readers of corpora against the slow ones, and their tokens against those of transformers."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reference import corpus as reference
from tests.support import tokenizers_zoo
from tests.support.damage import cut, delete, flip
from wmdp_fast._rust import EncodedCorpus, read_documents
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.prompts.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The owl hoots.\nAt night.",
    "",
    'A "wren" sings: \\o/ — naïve 🦃\u2028 and\tmore',
    "x",
    "  The hen\r\nlays eggs \n\n",
    "The jay is blue. " * 40,
]


def as_parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, store_schema=False, **options)
    return out.getvalue()


ROWS = [{"title": str(row), "text": text, "n": row} for row, text in enumerate(TEXTS)]
FILES: dict[str, bytes] = {
    "objects.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "strings.jsonl": "\n".join(json.dumps(text, ensure_ascii=False) for text in TEXTS).encode(),
    "mixed.jsonl": b'\n \r\n"one"\r\n{"a": [1, {"text": "no"}], "text": "two", "n": 1e999}\r\n\n',
    "plain.txt": "\n".join(TEXTS).encode(),
    "snappy.parquet": as_parquet(ROWS),
    "zstd.parquet": as_parquet(ROWS, compression="zstd", data_page_version="2.0", row_group_size=2),
    "many.parquet": as_parquet([{"text": f"bird {n}"} for n in range(300)], row_group_size=130, use_dictionary=False),
}


def compress(content: bytes, compression: str) -> bytes:
    match compression:
        case ".gz":
            return gzip.compress(content, mtime=0)
        case ".zst":
            return zstandard.ZstdCompressor().compress(content)
    return content


def write(folder: Path, name: str, content: bytes | None = None) -> Path:
    path = folder / name
    path.write_bytes(FILES[name] if content is None else content)
    return path


# Documents.


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_reads_as_the_slow_reader_does(tmp_path: Path, name: str, compression: str) -> None:
    path = write(tmp_path, name + compression, compress(FILES[name], compression))
    for min_chars in (0, 1, 25):
        if min_chars == 25 and name in ("mixed.jsonl", "many.parquet"):
            continue
        assert read_documents([path], min_chars=min_chars) == reference.read(path, min_chars=min_chars)
    if not name.endswith(".parquet"):
        for min_chars in (0, 1):
            raw = read_documents([path], raw_lines=True, min_chars=min_chars)
            assert raw == reference.read(path, raw_lines=True, min_chars=min_chars)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    for name in ("objects.jsonl", "strings.jsonl", "snappy.parquet", "zstd.parquet"):
        assert read_documents([write(tmp_path, name)]) == [text for text in TEXTS if text]
    assert read_documents([write(tmp_path, "plain.txt")]) == ["\n".join(TEXTS)]
    assert read_documents([write(tmp_path, "mixed.jsonl")]) == ["one", "two"]


def test_raw_lines_are_those_of_python(tmp_path: Path) -> None:
    for content in (b"a\r\nb\rc\n\n\r\n\rd", b"a\n", b"\r", b"\n\r", b'{"text": "x"}\r\n'):
        path = write(tmp_path, "a.jsonl", content)
        with path.open(encoding="utf-8") as file:
            assert read_documents([path], raw_lines=True) == list(file)


def test_another_field_may_be_named(tmp_path: Path) -> None:
    for name in ("objects.jsonl", "snappy.parquet"):
        assert read_documents([write(tmp_path, name)], field="title") == ["0", "1", "2", "3", "4", "5"]


def test_several_files_are_one_corpus_and_no_more_is_opened_than_needed(tmp_path: Path) -> None:
    first, second = write(tmp_path, "strings.jsonl"), write(tmp_path, "many.parquet")
    both = [text for text in TEXTS if text] + [f"bird {n}" for n in range(300)]
    assert read_documents([first, second]) == both
    for limit in (1, 4, 5, 6, 7, 300, 305, 400):
        paths = [first, second] if limit > 5 else [first, tmp_path / "missing.jsonl"]
        assert read_documents(paths, limit=limit) == both[:limit]
    assert read_documents([second, first], min_chars=7, limit=95) == [f"bird {n}" for n in range(100, 195)]


@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=5),
    min_chars=st.integers(0, 8),
    escape=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_any_text_survives_in_any_format(texts: list[str], min_chars: int, escape: bool) -> None:
    kept = [text for text in texts if len(text) > min_chars]
    with tempfile.TemporaryDirectory() as name:
        lines = "\n".join(json.dumps({"text": text}, ensure_ascii=escape) for text in texts)
        paths = [
            write(Path(name), "a.jsonl", lines.encode()),
            write(Path(name), "a.parquet", as_parquet([{"text": text} for text in texts])),
        ]
        for path in paths:
            if kept:
                assert read_documents([path], min_chars=min_chars) == kept
                continue
            with pytest.raises(DatasetError, match=f"none of the {len(texts)} documents has more than {min_chars}"):
                read_documents([path], min_chars=min_chars)


# Faults.


@pytest.mark.parametrize(
    ("name", "content", "options", "place", "message"),
    [
        ("a.jsonl", b"", {}, "", "there are no documents"),
        ("a.jsonl", b"\n \n", {}, "", "there are no documents"),
        ("a.jsonl", b'"abc"\n', {"min_chars": 3}, "", "none of the 1 documents has more than 3 characters"),
        ("a.jsonl", b'"a"\n\n{"body": "b", "n": 1}\n', {}, ", row 2, field `text`", 'the keys are "body", "n"'),
        ("a.jsonl", b"{}", {}, ", row 1, field `text`", "no keys; a line is a text, or an object with it under"),
        ("a.jsonl", b'{"text": null}', {}, ", row 1, field `text`", "must be text, not null"),
        ("a.jsonl", b'{"text": ["a"]}', {}, ", row 1, field `text`", "must be text, not a list"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', {}, ", row 1, field `text`", "occurs twice"),
        ("a.jsonl", b'{"text": "a"} "b"', {}, ", row 1", "not valid JSON: trailing characters"),
        ("a.jsonl", b'"a"\n{"text": "a', {}, ", row 2", "not valid JSON"),
        ("a.jsonl", b'"a"\n[1]', {}, ", row 2", "an object with the key `text`, or a string"),
        ("a.jsonl", b'"a"\n"\\ud800"', {}, ", row 2", "not valid JSON"),
        ("a.jsonl", b'"a"\n"\xff"', {}, ", row 2", "byte 2 of it is not UTF-8"),
        ("a.jsonl", b"a\n\n\xff", {"raw_lines": True}, ", row 3", "byte 1 of it is not UTF-8"),
        ("a.jsonl", b"\xff\xfe{\x00", {}, "", "UTF-16"),
        ("a.txt", b"ab\xff", {}, "", "byte 3 of it is not UTF-8"),
        ("a.txt", b"", {}, "", "none of the 1 documents has more than 0 characters"),
        ("a.jsonl.gz", b"not gzip", {}, "", "not a complete gzip file"),
        ("a.jsonl.zst", b"not zstd", {}, "", "not a complete zstd file"),
        ("a.parquet", b"PAR1", {}, "", "not an intact parquet file"),
        ("a.parquet", as_parquet([{"body": "b", "n": 1}]), {}, ", field `text`", "is missing; the columns are body, n"),
        ("a.parquet", as_parquet([{"text": 1}]), {}, ", field `text`", "must be text, not INT64"),
        ("a.parquet", as_parquet([{"text": ["a"]}]), {}, ", field `text`", "must be text, not"),
        ("a.parquet", as_parquet([{"text": "a"}, {"text": None}]), {}, ", row 2, field `text`", "is null"),
        ("a.parquet", as_parquet([{"text": "a"}]), {"raw_lines": True}, "", "parquet has no lines"),
        ("a.json", b"[]", {}, "", "the name must end in .jsonl, .parquet or .txt"),
        ("a.csv.gz", b"", {}, "", "the name must end in .jsonl, .parquet or .txt"),
    ],
)  # fmt: skip
def test_an_error_says_what_is_wrong_and_where(
    tmp_path: Path, name: str, content: bytes, options: dict[str, Any], place: str, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DatasetError) as caught:
        read_documents([path], **options)
    assert str(caught.value).startswith(f"{path}{place}: ")
    assert message in str(caught.value)


def test_what_is_not_the_files_fault_is_another_error(tmp_path: Path) -> None:
    path = write(tmp_path, "strings.jsonl")
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
        read_documents([path, tmp_path / "missing.jsonl"])
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(IsADirectoryError):
        read_documents([tmp_path / "folder.parquet"])
    with pytest.raises(ValueError, match="must be at least 1"):
        read_documents([path], limit=0)
    with pytest.raises(ValueError, match="at least one file"):
        read_documents([])


# Thousands of damaged files.


TOKENS = [b'"', b",", b"{", b"}", b"[", b":", b"null", b"-", rb"\ud800", b"\\", b'"text":', b"\n", b"\r", b"\x00"]
TOKENS += [b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"[" * 200, b'{"a":' * 200, b"1e999", b"NaN", b"-Infinity"]


def insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(TOKENS) + content[at:]


DAMAGED = int(os.environ.get("WMDP_FAST_MUTATIONS", "400"))
DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [cut, flip, delete, insert]


@pytest.mark.parametrize("raw_lines", [False, True])
@pytest.mark.parametrize("name", ["objects.jsonl", "strings.jsonl", "mixed.jsonl", "plain.txt"])
def test_damaged_text_is_read_or_refused_as_the_slow_reader_does(tmp_path: Path, name: str, raw_lines: bool) -> None:
    rng = random.Random(name)
    for _ in range(DAMAGED):
        path = write(tmp_path, name, rng.choice(DAMAGES)(FILES[name], rng))
        try:
            expected = reference.read(path, raw_lines=raw_lines)
        except reference.Unreadable:
            with pytest.raises(DatasetError):
                read_documents([path], raw_lines=raw_lines)
            continue
        assert read_documents([path], raw_lines=raw_lines) == expected


@pytest.mark.parametrize(
    "name", ["snappy.parquet", "zstd.parquet", "objects.jsonl.gz", "objects.jsonl.zst", "snappy.parquet.gz"]
)
def test_damaged_binaries_are_refused_or_read_rightly(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One reader may refuse what the other lets pass, but neither may read anything else.

    A text in a page has no checksum: where one of its bytes is another, both read that one.
    """
    rng = random.Random(name)
    stem, compression = name.removesuffix(".gz").removesuffix(".zst"), "." + name.rsplit(".", 1)[1]
    content = compress(FILES[stem], compression)
    intact = reference.read(write(tmp_path, name, content))
    refused = 0
    for _ in range(DAMAGED):
        damaged = rng.choice(DAMAGES)(content, rng)
        path = write(tmp_path, name, damaged)
        try:
            documents = read_documents([path])
        except DatasetError as error:
            refused += error.file == str(path)
            continue
        try:
            expected = reference.read(path)
        except reference.Unreadable:
            expected = intact
        if documents != expected:
            # What the slow reader refuses is the metadata at the end; with those as they were, it reads the pages.
            assert expected is intact
            assert name.endswith(".parquet")
            assert len(damaged) == len(content)
            pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
            assert documents == reference.read(write(tmp_path, name, damaged[:pages] + content[pages:]))
    # Whole files with a checksum can all be refused.
    assert DAMAGED / 3 < refused <= DAMAGED
    # What a crate panics about is the file's fault, and said in one line.
    assert not capfd.readouterr().err


def test_places_in_a_dictionary_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """Five places take one group of eight; with two groups claimed, bytes have been lost, and pyarrow says so too."""
    content = as_parquet([{"text": letter} for letter in "abcde"], compression="none")
    places = b"\x03\x03\x88\x46\x00"
    assert content.count(places) == 1
    assert read_documents([write(tmp_path, "a.parquet", content)]) == list("abcde")
    path = write(tmp_path, "a.parquet", content.replace(places, b"\x03\x05" + places[2:]))
    with pytest.raises(reference.Unreadable, match="Invalid number of indices"):
        reference.read(path)
    with pytest.raises(DatasetError, match="it claims more values in a page than there are"):
        read_documents([path])


# Tokens.


def encode(tokenizer: PreTrainedTokenizerFast, paths: list[Path], **options: Any) -> EncodedCorpus:
    return load_tokenizer(tokenizer, prefix_token_id=2).encode_corpus(paths, **options)


def documents_of(encoded: EncodedCorpus) -> list[list[int]]:
    return [list(part) for part in np.split(encoded.tokens, encoded.offsets[1:-1])]


PIECES = st.one_of(
    st.sampled_from([*tokenizers_zoo.CORPUS[:5], " ", "\n", "<s>", "</s>", "jay", " owl \n", "bird\nA", "1234"]),
    st.text(max_size=8),
)


@pytest.mark.parametrize("kind", tokenizers_zoo.KINDS)
@given(
    texts=st.lists(
        st.builds(lambda parts, times: "".join(parts) * times, st.lists(PIECES, max_size=6), st.integers(1, 4)),
        min_size=1,
        max_size=6,
    ).filter(any),
    max_length=st.integers(3, 60),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_tokens_are_those_of_transformers(kind: str, texts: list[str], max_length: int) -> None:
    tokenizer = tokenizers_zoo.tokenizer(kind)
    assert tokenizer.truncation_side == "right"
    with tempfile.TemporaryDirectory() as name:
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        path = write(Path(name), "a.jsonl", lines.encode())
        encoded = encode(tokenizer, [path], max_length=max_length)
    kept = [text for text in texts if text]
    assert documents_of(encoded) == tokenizer(kept, truncation=True, max_length=max_length)["input_ids"]
    assert encoded.content_hash == reference.content_hash(kept)


def test_long_documents_give_the_same_tokens_in_many_portions(tmp_path: Path) -> None:
    """More than one portion, and documents far longer than what is kept of them."""
    tokenizer = tokenizers_zoo.tokenizer("llama3")
    rng = random.Random(0)
    words = " ".join(tokenizers_zoo.CORPUS).split(" ")
    texts = [" ".join(rng.choices(words, k=rng.choice([1, 30, 400]))) + "é" * rng.randrange(1, 3) for _ in range(1300)]
    path = write(tmp_path, "a.jsonl.gz", gzip.compress("".join(json.dumps(text) + "\n" for text in texts).encode()))
    encoded = encode(tokenizer, [path], max_length=64)
    assert documents_of(encoded) == tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    assert encoded.engine == "fastokens"
    assert encoded.tokens.dtype == encoded.offsets.dtype == np.int64
    assert encoded.tokens.flags.writeable
    assert len(encode(tokenizer, [path], max_length=64, limit=700).offsets) == 701


def test_bos_is_kept_when_a_document_is_cut_and_eos_too(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"The following are multiple choice questions")
    for kind, ends in (("llama3", (1, None)), ("bos_and_eos", (1, 2))):
        [tokens] = documents_of(encode(tokenizers_zoo.tokenizer(kind), [path], max_length=4))
        assert len(tokens) == 4
        assert tokens[0] == ends[0]
        assert ends[1] is None or tokens[-1] == ends[1]


def test_a_length_without_room_for_text_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"The owl")
    with pytest.raises(ValueError, match="leaves no room for text beside 2 special tokens"):
        encode(tokenizers_zoo.tokenizer("bos_and_eos"), [path], max_length=2)
