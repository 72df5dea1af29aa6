"""The readers of question files against the slow ones, in every format, on good files, bad files and real MMLU."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import os
import pickle
import random
import re
import string
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reference import readers as reference
from tests.support.damage import cut, delete, flip
from tests.support.hostile_parquet import (
    DELTA_BYTE_ARRAY,
    DELTA_LENGTH_BYTE_ARRAY,
    RLE_DICTIONARY,
    data_page,
    dictionary_page,
    levels,
    nested_schema,
    parquet,
    plain_texts,
    varint,
)
from tests.support.thorough import cases
from wmdp_fast._rust import (
    PromptTemplate,
    Question,
    QuestionSet,
    aggregate,
    read_documents,
    read_many,
    read_questions,
    read_samples,
    write_samples,
)
from wmdp_fast.exceptions import DatasetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BIRDS = [
    {
        "question": "Which bird of these hoots at night?",
        "choices": ["the owl", "the hen"],
        "answer": 0,
        "subject": "owls",
    },
    {"question": 'Which is small,\n"brown" and sings?', "choices": ["emu", "wren", "kiwi", "rhea"], "answer": 1},
    {
        "question": "  Wie heißt der große Vogel? 🦃 ",
        "choices": ["Pute", "Floh", "Maus"],
        "answer": 0,
        "note": [1, None],
    },
    {"question": "How many legs?", "choices": ["1", "2", "3", "4"], "answer": 1, "subject": None, "note": "x"},
    {"question": "Which note is this?", "choices": ["B", "A", "D", "C"], "answer": 3, "subject": "owls"},
]
FOUR = [{**bird, "choices": (bird["choices"] * 2)[:4]} for bird in BIRDS]


# Files.


def compress(content: bytes, compression: str) -> bytes:
    match compression:
        case ".gz":
            return gzip.compress(content, mtime=0)
        case ".zst":
            return zstandard.ZstdCompressor().compress(content)
    return content


def as_csv(rows: list[dict[str, Any]], header: list[str] | None, *, letters: bool = False) -> bytes:
    """CSV with a header of columns, or without one."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    if header:
        writer.writerow(header)
    for row in rows:
        answer = string.ascii_uppercase[row["answer"]] if letters else row["answer"]
        cells: dict[str, Any] = {**row, "answer": answer, "choices": json.dumps(row["choices"])}
        cells |= {f"choice{number}": choice for number, choice in enumerate(row["choices"])}
        cells |= dict(zip(string.ascii_uppercase, row["choices"], strict=False))
        numbered = [f"choice{number}" for number in range(len(row["choices"]))]
        writer.writerow([cells.get(name) for name in header or ["question", *numbered, "answer"]])
    return out.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    out = io.BytesIO()
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


LABELED_ROWS = [
    {"id": "1", "question": "q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"},
    {"id": "2", "question": "r", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
    {"id": None, "question": "s", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
]
PLAIN = [{name: row[name] for name in ("question", "choices", "answer")} for row in FOUR]
WITH_SUBJECT = [{**row, "subject": "birds"} for row in PLAIN]
FILES: dict[str, bytes] = {
    "lines.jsonl": as_lines(BIRDS),
    "array.json": json.dumps(BIRDS, indent=2).encode(),
    "object.json": json.dumps({"version": [1, {"a": None}], "data": BIRDS, "n": 2}).encode(),
    "numbered.csv": as_csv(WITH_SUBJECT, ["question", "subject", "choice0", "choice1", "choice2", "choice3", "answer"]),
    "lettered.csv": as_csv(PLAIN, ["answer", "A", "B", "C", "D", "question"], letters=True),
    "list.csv": as_csv(BIRDS, ["question", "choices", "answer", "subject", "note"]),
    "original.csv": as_csv(PLAIN, None, letters=True),
    # Without Arrow's own schema, which other readers do not look at: damage to it would only stop pyarrow.
    "snappy.parquet": as_parquet(WITH_SUBJECT, store_schema=False),
    "lz4.parquet": as_parquet(WITH_SUBJECT, compression="lz4", use_dictionary=False, store_schema=False),
    "brotli.parquet": as_parquet(LABELED_ROWS, compression="brotli", store_schema=False),
    "delta.parquet": as_parquet(
        WITH_SUBJECT,
        use_dictionary=False,
        column_encoding={
            "answer": "DELTA_BINARY_PACKED",
            "question": "DELTA_BYTE_ARRAY",
            "subject": "DELTA_LENGTH_BYTE_ARRAY",
        },
        store_schema=False,
    ),
    "labeled.jsonl": as_lines(LABELED_ROWS),
    "semicolons.csv": as_csv(PLAIN, ["question", "A", "B", "C", "D", "answer"], letters=True).replace(b",", b";"),
    "zstd.parquet": as_parquet(
        BIRDS[:2] + BIRDS[4:], compression="zstd", data_page_version="2.0", row_group_size=2, store_schema=False
    ),
}


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def rows_of(questions: QuestionSet) -> list[dict[str, Any]]:
    names = ("question", "choices", "answer", "subject", "extra")
    return [{name: getattr(question, name) for name in names} for question in questions]


def exactly(rows: list[dict[str, Any]]) -> str:
    """Rows as text, so that 1, 1.0 and True differ."""
    return json.dumps(rows, sort_keys=True)


def assert_same(path: Path) -> None:
    """Both readers give the same questions, or both refuse."""
    try:
        expected = reference.read(path)
    except reference.Unreadable:
        with pytest.raises(DatasetError) as caught:
            read_questions(path)
        assert caught.value.file == str(path)
        return
    assert exactly(rows_of(read_questions(path))) == exactly(expected)


# Good files.


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_reads_as_the_slow_reader_does(tmp_path: Path, name: str, compression: str) -> None:
    path = write(tmp_path, name + compression, compress(FILES[name], compression))
    expected = reference.read(path)
    questions = read_questions(path)
    assert exactly(rows_of(questions)) == exactly(expected)
    assert questions.content_hash == reference.content_hash(expected)
    assert len(questions) == len(expected) > 2
    assert questions.file == str(path)


def test_the_hash_does_not_depend_on_the_format(tmp_path: Path) -> None:
    plain = ["lettered.csv", "numbered.csv", "original.csv", "snappy.parquet"]
    hashes = {read_questions(write(tmp_path, name, FILES[name])).content_hash for name in plain}
    assert len(hashes) == 1
    assert hashes != {read_questions(write(tmp_path, "array.json", FILES["array.json"])).content_hash}


def test_columns_keep_their_order_and_choices_count_as_one(tmp_path: Path) -> None:
    def columns(name: str) -> list[str]:
        return read_questions(write(tmp_path, name, FILES[name])).columns

    assert columns("lines.jsonl") == ["question", "choices", "answer", "subject", "note"]
    assert columns("lettered.csv") == ["answer", "choices", "question"]
    assert columns("numbered.csv") == ["question", "subject", "choices", "answer"]
    assert columns("original.csv") == ["question", "choices", "answer"]
    assert columns("snappy.parquet") == ["question", "choices", "answer", "subject"]


@pytest.mark.parametrize("name", ["lines.jsonl", "array.json", "numbered.csv", "original.csv"])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, name: str) -> None:
    plain = read_questions(write(tmp_path, name, FILES[name]))
    marked = read_questions(write(tmp_path, name, b"\xef\xbb\xbf" + FILES[name]))
    assert plain == marked


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r", b"\n\n\r\n"])
def test_line_ends_and_blank_lines_of_csv_do_not_matter(tmp_path: Path, line_end: bytes) -> None:
    rows = [row for row in PLAIN if "\n" not in row["question"]]
    content = as_csv(rows, None, letters=True)
    expected = list(read_questions(write(tmp_path, "a.csv", content)))
    assert list(read_questions(write(tmp_path, "a.csv", content.replace(b"\r\n", line_end)))) == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("lacks", ["question", "choices", "answer"])
def test_a_record_that_lacks_a_key_is_told_with_the_keys_that_it_has(tmp_path: Path, name: str, lacks: str) -> None:
    whole = {"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 0, "topic": "birds"}
    broken = {key: value for key, value in whole.items() if key != lacks}
    content = [whole, broken]
    text = json.dumps(content) if name == "a.json" else "".join(json.dumps(one) + "\n" for one in content)
    there = ", ".join(f'"{key}"' for key in broken)
    with pytest.raises(DatasetError) as error:
        read_questions(write(tmp_path, name, text.encode()))
    assert f"{name}, row 2, field `{lacks}`: is missing; the keys are {there}; a question has `question`" in str(
        error.value
    )
    assert "`answer` (an index from 0, a letter or a choice's text)" in str(error.value)
    with pytest.raises(
        DatasetError, match="field `question`: is missing; there are no keys; a question has `question`"
    ):
        read_questions(write(tmp_path, name, b"{}" if name == "a.jsonl" else b"[{}]"))


def test_blank_lines_of_jsonl_do_not_count_as_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b"\n \t\r\n" + as_lines(BIRDS[:1]) + b"\r\n{}")
    with pytest.raises(DatasetError, match="row 2, field `question`: is missing"):
        read_questions(path)


def test_names_in_a_csv_header_may_be_in_any_case(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b" Question ,a,b,ANSWER,Subject,Note\nWho?,he,she,B,owls,\n")
    questions = read_questions(path)
    assert questions.columns == ["question", "choices", "answer", "subject", "Note"]
    assert rows_of(questions) == [
        {"question": "Who?", "choices": ["he", "she"], "answer": 1, "subject": "owls", "extra": {"Note": None}}
    ]


def test_parquet_columns_of_every_type_become_json(tmp_path: Path) -> None:
    from datetime import date
    from decimal import Decimal

    columns: dict[str, pa.Array] = {
        "question": pa.array(["q", "r"]),
        "choices": pa.array([["a", "b"], ["c", "d", "e"]], pa.large_list(pa.large_string())),
        "answer": pa.array([0, 2], pa.uint8()),
        "struct": pa.array([{"x": 1.5, "y": [True, None]}, None]),
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int32())),
        "wide": pa.array([2**64 - 1, None], pa.uint64()),
        "half": pa.array([0.5, -2.0], pa.float16()),
        "single": pa.array([0.1, None], pa.float32()),
        "bytes": pa.array([b"text", None]),
        "date": pa.array([date(2024, 2, 29), None]),
        "decimal": pa.array([Decimal("1.50"), None]),
        "picture": pa.array([{"bytes": b"\xff", "path": "a.png"}, None]),
        "infinite": pa.array([[1.0, float("-inf")], [2.0]]),
        "lists": pa.array([[[1], [], None], None], pa.list_(pa.list_(pa.int8()))),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    first, second = read_questions(path)
    assert (first.choices, second.choices, second.answer) == (["a", "b"], ["c", "d", "e"], 2)
    assert first.extra == {
        "struct": {"x": 1.5, "y": [True, None]},
        "map": [["k", 1]],
        "wide": 2**64 - 1,
        "half": 0.5,
        "single": struct.unpack("f", struct.pack("f", 0.1))[0],
        "date": "2024-02-29",
        "decimal": "1.50",
        "infinite": [1.0, None],
        "lists": [[1], [], None],
    }
    assert read_questions(path).foreign_columns == {
        "bytes": "binary data",
        "date": "dates",
        "decimal": "decimals",
        "infinite": "-inf (in row 1)",
        "map": "maps",
        "picture": "binary data",
    }
    assert second.extra["lists"] is None
    assert second.extra["map"] == []


def test_page_checksums_are_checked(tmp_path: Path) -> None:
    content = as_parquet(WITH_SUBJECT, write_page_checksum=True, compression="none", use_dictionary=False)
    assert len(read_questions(write(tmp_path, "a.parquet", content))) == len(WITH_SUBJECT)
    with pytest.raises(DatasetError, match="CRC"):
        read_questions(write(tmp_path, "a.parquet", content.replace(b"hoots", b"hooks", 1)))


@pytest.mark.parametrize(
    "options",
    [{"compression": c} for c in ("none", "gzip", "zstd", "snappy", "lz4", "brotli")]
    + [
        {"data_page_version": "2.0"},
        {"use_dictionary": False, "data_page_size": 64},
        {"column_encoding": {"answer": "DELTA_BINARY_PACKED", "question": "DELTA_BYTE_ARRAY"}, "use_dictionary": False},
        {"row_group_size": 3},
        {"write_batch_size": 2, "use_compliant_nested_type": False},
    ],
)
def test_parquet_written_in_any_way_reads_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = [{**row, "question": f"{row['question']} {number}"} for number in range(500) for row in BIRDS[:2]]
    path = write(tmp_path, "a.parquet", as_parquet(rows, **options))
    assert exactly(rows_of(read_questions(path))) == exactly(reference.read(path))


# Answers.


@pytest.mark.parametrize(
    ("choices", "answers", "expected"),
    [
        (["B", "A", "C", "D"], ["A", "b", " c\t", "D"], [0, 1, 2, 3]),
        (["1", "2", "3", "0"], ["0", "1", "3", "2"], None),
        (["1", "2", "3", "0"], ["0", "1", "3", "2", "02"], [0, 1, 3, 2, 2]),
        (["1", "2", "3", "x"], ["0", "1", " 2 ", "003"], [0, 1, 2, 3]),
        (["1", "2", "3", "x"], ["1", "3", "x"], [0, 2, 3]),
        (["red", "blue"], ["blue", "red"], [1, 0]),
        (["red", "blue"], ["blue", "A"], None),
        (["red", "blue", "blue"], ["blue"], None),
        (["red", "blue"], ["blue "], None),
        (["red", "blue"], ["C"], None),
        (["red", "blue"], ["2"], None),
        (["red", "blue"], ["-1"], None),
        (["red", ""], [""], None),
        (["A", "B"], ["A", "B"], [0, 1]),
        (["B", "A"], ["A"], None),
        (["red", "A"], ["A", 1, "B", 0], [0, 1, 1, 0]),
    ],
)
def test_textual_answers_follow_one_convention(
    choices: list[str], answers: list[str | int], expected: list[int] | None
) -> None:
    rows = [{"question": "q", "choices": choices, "answer": answer} for answer in answers]
    if expected is None:
        with pytest.raises(reference.Unreadable):
            reference.questions(rows)
        with pytest.raises(DatasetError) as caught:
            QuestionSet.from_rows(rows)
        assert caught.value.field == "answer"
    else:
        assert [row["answer"] for row in reference.questions(rows)] == expected
        assert [question.answer for question in QuestionSet.from_rows(rows)] == expected


# Any file at all.

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
filled = texts.filter(bool)
jsons = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def drawn_rows(draw: st.DrawFn, text: st.SearchStrategy[str] = texts, num_choices: int | None = None) -> dict[str, Any]:
    size = st.integers(2, 26) if num_choices is None else st.just(num_choices)
    choices = draw(size.flatmap(lambda n: st.lists(text, min_size=n, max_size=n)))
    return {"question": draw(text), "choices": choices, "answer": draw(st.integers(0, len(choices) - 1))}


json_rows = st.builds(
    lambda row, subject, extra: extra | subject | row,
    drawn_rows(),
    st.fixed_dictionaries({}, optional={"subject": st.none() | texts}),
    st.dictionaries(
        texts.filter(lambda name: name not in ("question", "choices", "answer", "subject")), jsons, max_size=2
    ),
)
properties = settings(
    max_examples=cases(40, 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@properties
@given(st.lists(json_rows, min_size=1, max_size=4), st.sampled_from(["", ".gz", ".zst"]), st.booleans())
def test_any_json_reads_the_same(
    tmp_path: Path, given_rows: list[dict[str, Any]], compression: str, escape: bool
) -> None:
    lines = "\n".join(json.dumps(row, ensure_ascii=escape) for row in given_rows).encode()
    array = json.dumps({"data": given_rows}, ensure_ascii=escape, indent=1).encode()
    expected = exactly(reference.questions(given_rows))
    for name, content in (("a.jsonl", lines), ("a.json", array)):
        path = write(tmp_path, name + compression, compress(content, compression))
        assert exactly(reference.read(path)) == expected
        assert exactly(rows_of(read_questions(path))) == expected
    questions = QuestionSet.from_rows(given_rows)
    assert exactly(rows_of(questions)) == expected
    assert questions.content_hash == reference.content_hash(reference.questions(given_rows))
    assert questions.columns == list(dict.fromkeys(name for row in given_rows for name in row))
    restored = pickle.loads(pickle.dumps(questions))
    assert restored == questions
    assert exactly(rows_of(restored)) == expected


@properties
@given(
    st.integers(2, 6).flatmap(lambda n: st.lists(drawn_rows(filled, n), min_size=1, max_size=4)),
    st.sampled_from(["numbered", "lettered", "list", "none"]),
    st.booleans(),
)
def test_any_csv_reads_the_same(tmp_path: Path, given_rows: list[dict[str, Any]], form: str, letters: bool) -> None:
    count = len(given_rows[0]["choices"])
    choices = {
        "numbered": [f"choice{number}" for number in range(count)],
        "lettered": list(string.ascii_uppercase[:count]),
        "list": ["choices"],
        "none": None,
    }[form]
    header = choices and ["question", *choices, "answer"]
    path = write(tmp_path, "a.csv", as_csv(given_rows, header, letters=letters))
    assert_same(path)


@properties
@given(
    st.lists(
        json_rows.map(lambda row: {k: row.get(k) for k in ("question", "choices", "answer", "subject")}),
        min_size=1,
        max_size=6,
    )
)
def test_any_parquet_reads_the_same(tmp_path: Path, given_rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema(
        [
            ("question", pa.string()),
            ("choices", pa.list_(pa.string())),
            ("answer", pa.int64()),
            ("subject", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(given_rows, schema), path, row_group_size=4)
    assert (
        exactly(rows_of(read_questions(path)))
        == exactly(reference.read(path))
        == exactly(reference.questions(given_rows))
    )


@properties
@given(st.text(st.sampled_from('question,answer\n\r" {}[]:0123AB'), max_size=60))
def test_any_text_is_read_or_refused_as_the_slow_reader_does(tmp_path: Path, text: str) -> None:
    for prefix in ("", "question,A,B,answer\n", '{"question":"q","choices":["a","b"],"answer":'):
        for name in ("a.csv", "a.json", "a.jsonl"):
            assert_same(write(tmp_path, name, (prefix + text).encode()))


# Thousands of damaged files.


def splice(content: bytes, rng: random.Random) -> bytes:
    start, end, to = sorted(rng.randrange(len(content)) for _ in range(3))
    return content[:to] + content[start:end] + content[to:]


TOKENS = rb"""" , { } [ ] : null 1e999 - \ud800 \ "question" answer, choice0 99999999999999999999""".split(b" ")
TOKENS += [b"\n", b"\r", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"[" * 200, b'{"a":' * 200]


def insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(TOKENS) + content[at:]


# Damaged copies of each file.
DAMAGED = int(os.environ.get("WMDP_FAST_MUTATIONS", "1000"))
DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [cut, flip, splice, delete, insert]


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".parquet")])
def test_damaged_text_is_read_or_refused_as_the_slow_reader_does(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    for _ in range(DAMAGED):
        damaged = rng.choice(DAMAGES)(FILES[name], rng)
        assert_same(write(tmp_path, name, damaged))


# A flipped letter goes unnoticed by both readers; where only pyarrow refuses, there is nothing to compare with.
WITHOUT_CHECK = {"delta.parquet", "lz4.parquet", "brotli.parquet"}


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in FILES if name.endswith(".parquet")),
        "lines.jsonl.gz",
        "lines.jsonl.zst",
        "snappy.parquet.gz",
    ],
)
def test_damaged_binaries_are_refused_or_read_rightly(tmp_path: Path, name: str) -> None:
    """One reader may refuse what the other lets pass, statistics for instance, but neither may read anything else."""
    rng = random.Random(name)
    stem, compression = name.removesuffix(".gz").removesuffix(".zst"), "." + name.rsplit(".", 1)[1]
    content = compress(FILES[stem], compression)
    intact = exactly(reference.read(write(tmp_path, name, content)))
    refused = 0
    for _ in range(DAMAGED):
        path = write(tmp_path, name, rng.choice(DAMAGES)(content, rng))
        try:
            questions = read_questions(path)
        except DatasetError as error:
            refused += error.file == str(path)
            continue
        try:
            expected = exactly(reference.read(path))
        except reference.Unreadable:
            if name in WITHOUT_CHECK:
                continue
            expected = intact
        assert exactly(rows_of(questions)) == expected
    assert DAMAGED / 2 < refused < DAMAGED


def nonsense(value: Any, rng: random.Random) -> Any:
    """The value with something in it replaced by something else."""
    others = [
        None,
        True,
        1,
        -1,
        2**70,
        1.5,
        "",
        "A",
        "7",
        [],
        [None],
        ["a"] * 27,
        {},
        {"question": 1},
        ["x", "x"],
        "\ud800",
    ]
    if not value or not isinstance(value, dict | list) or rng.random() < 0.2:
        return rng.choice(others)
    changed = value.copy()
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if rng.random() < 0.2:
        del changed[key]
    else:
        changed[key] = nonsense(value[key], rng)
    return changed


def test_structural_nonsense_is_refused_as_by_the_slow_reader(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(DAMAGED):
        changed = nonsense(BIRDS, rng)
        document = {"data": changed} if rng.random() < 0.3 else changed
        assert_same(write(tmp_path, "a.json", json.dumps(document).encode()))
        if isinstance(changed, list):
            assert_same(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, changed)).encode()))


def test_parquet_with_wrong_columns_is_refused_by_field(tmp_path: Path) -> None:
    good: dict[str, Any] = {
        "question": pa.array(["q", "r"]),
        "choices": pa.array([["a", "b"], ["c", "d"]]),
        "answer": pa.array([0, 1]),
        "subject": pa.array(["s", None]),
    }
    cases: list[tuple[str, Any, int | None]] = [
        ("question", None, None),
        ("question", pa.array([1, 2]), None),
        ("question", pa.array(["q", None]), 2),
        ("question", pa.array([b"q", b"\xff"]), 2),
        ("question", pa.array([["q"], ["r"]]), None),
        ("choices", None, None),
        ("choices", pa.array(["a", "b"]), None),
        ("choices", pa.array([[1, 2], [3, 4]]), None),
        ("choices", pa.array([["a", "b"], None]), 2),
        ("choices", pa.array([["a", "b"], []]), 2),
        ("choices", pa.array([["a", "b"], ["c", None]]), 2),
        ("choices", pa.array([["a", "b"], ["c"]]), 2),
        ("choices", pa.array([["a", "b"], ["c"] * 27]), 2),
        ("choices", pa.array([[["a"]], [["b"]]]), None),
        ("choices", pa.array([{"a": "x", "b": "y"}] * 2), None),
        ("choices", pa.array([{"a": ["x", "y"]}] * 2), None),
        ("answer", None, None),
        ("answer", pa.array([0, 2]), 2),
        ("answer", pa.array([0, -1]), 2),
        ("answer", pa.array([0, None]), 2),
        ("answer", pa.array([0.0, 1.0]), None),
        ("answer", pa.array([False, True]), None),
        ("answer", pa.array([0, 2**64 - 1], pa.uint64()), 2),
        ("answer", pa.array([0, 2**32 - 1], pa.uint32()), 2),
        ("answer", pa.array([0, 1], pa.timestamp("s")), None),
        ("answer", pa.array(["A", "C"]), 2),
    ]
    for field, column, row in cases:
        columns = {name: value for name, value in {**good, field: column}.items() if value is not None}
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table(columns), path)
        with pytest.raises(DatasetError) as caught:
            read_questions(path)
        assert (caught.value.field, caught.value.row) == (field, row), str(caught.value)
    pq.write_table(pa.table(list(good.values()), names=["question", "choices", "answer", "answer"]), path)
    with pytest.raises(DatasetError, match="field `answer`: there are two columns"):
        read_questions(path)
    pq.write_table(pa.table(good)[:0], path)
    with pytest.raises(DatasetError, match="there are no questions"):
        read_questions(path)


def test_a_subject_that_is_no_text_is_a_column_like_others(tmp_path: Path) -> None:
    good = {"question": ["q", "r"], "choices": [["a", "b"]] * 2, "answer": [0, 1]}
    for subject in (pa.nulls(2), pa.array([3, None]), pa.array([b"x", b"y"])):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({**good, "subject": subject}), path)
        assert_same(path)
        questions = read_questions(path)
        assert [question.subject for question in questions] == (
            [None, None] if subject.type != pa.binary() else ["x", "y"]
        )
    pq.write_table(pa.table({**good, "subject": pa.array([3, None])}), path)
    assert [question.extra for question in read_questions(path)] == [{"subject": 3}, {}]
    assert_same(write(tmp_path, "a.jsonl", as_lines([{**BIRDS[0], "subject": 3}, {**BIRDS[1], "subject": ["x"]}])))


# The well-known datasets' own layouts: ARC and CommonsenseQA, OpenBookQA, and a list of structures.
LABELED: dict[str, list[dict[str, Any]]] = {
    "arc": [
        {"id": "a", "question": "q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        {"id": "b", "question": "r", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
    ],
    "openbookqa": [
        {"id": "c", "question_stem": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    ],
    "structures": [
        {"question": "q", "choices": [{"label": "B", "text": "x"}, {"label": "A", "text": "y"}], "answerKey": "A"}
    ],
    "capitals": [{"Question": "q", "CHOICES": ["x", "y"], "Answer": 1, "Subject": "s"}],
}


@pytest.mark.parametrize(
    ("name", "answers"), [("arc", [2, 0]), ("openbookqa", [1]), ("structures", [1]), ("capitals", [1])]
)
def test_well_known_layouts_are_read(tmp_path: Path, name: str, answers: list[int]) -> None:
    rows = LABELED[name]
    for path in (
        write(tmp_path, "a.jsonl", as_lines(rows)),
        write(tmp_path, "a.json", json.dumps(rows).encode()),
        write(tmp_path, "a.parquet", as_parquet(rows)),
    ):
        assert_same(path)
        questions = read_questions(path)
        assert [question.answer for question in questions] == answers
        assert questions[0].choices[:2] == ["x", "y"]
        assert questions.columns == list(rows[0])
    assert [question.answer for question in QuestionSet.from_rows(rows)] == answers


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"answerKey": "C"}, "answer", '"C" is none of the choices\' labels "A, B"'),
        ({"answerKey": "x"}, "answer", "is none of the choices' labels"),
        (
            {"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": 1},
            "answer",
            "may be an index or the label",
        ),
        ({"choices": {"text": ["x", "y"], "label": ["A", "A"]}}, "choices", "2 choices have 1 different labels"),
        ({"choices": {"text": ["x", "y"], "label": ["A"]}}, "choices", "2 choices have 1 different labels"),
        ({"choices": {"A": "x", "B": "y"}}, "choices", 'lists `text` and `label`, not one with "A", "B"'),
        ({"answer_key": "A"}, "answer", 'could be "answerKey" or "answer_key"; rename one'),
    ],
)
def test_labels_that_make_no_sense_are_refused(change: dict[str, Any], field: str, problem: str) -> None:
    row = {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    assert QuestionSet.from_rows([row])[0].answer == 1
    with pytest.raises(reference.Unreadable):
        reference.questions([row | change])
    with pytest.raises(DatasetError, match=re.escape(problem)) as caught:
        QuestionSet.from_rows([row | change])
    assert caught.value.field == field


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header", ["question X A X B X answer", "id X Prompt X A X B X C X ANSWER", '"question" X "A" X "B" X answerKey']
)
def test_a_header_says_what_stands_between_fields(tmp_path: Path, delimiter: str, header: str) -> None:
    names = [name.strip() for name in header.split("X")]
    row = {"id": "7", "question": '"a,b;c\t?"', "Prompt": "p,q;r", "A": "x", "B": '"y;z,\tw"', "C": "u"}
    cells = [row.get(name.strip('"'), "B") for name in names]
    quote = [cell if delimiter not in cell or cell.startswith('"') else f'"{cell}"' for cell in cells]
    path = write(tmp_path, "a.csv", f"{delimiter.join(names)}\n{delimiter.join(quote)}\n".encode())
    assert_same(path)
    [question] = read_questions(path)
    assert (question.answer, question.choices[:2]) == (1, ["x", "y;z,\tw"])


# Values that JSON has no form for.


@pytest.mark.parametrize(
    ("text", "value", "what"),
    [
        ("NaN", None, "NaN"),
        ("[1, -Infinity]", [1, None], "-Infinity"),
        ('{"a": Infinity}', {"a": None}, "Infinity"),
        ("1e999", None, "a number beyond a float's range"),
        (str(2**70), None, "an integer of more than 64 bits"),
    ],
)
def test_a_number_that_json_has_no_form_for_is_null_unless_a_template_names_it(
    tmp_path: Path, text: str, value: Any, what: str
) -> None:
    line = f'{{"question": "q", "choices": ["a", "b"], "answer": 0, "big": -1e20, "x": {text}}}'
    for name, content in (("a.jsonl", line), ("a.json", f'{{"other": {text}, "data": [{line}]}}')):
        path = write(tmp_path, name, content.encode())
        assert_same(path)
        questions = read_questions(path)
        assert questions[0].extra == {"big": -1e20, "x": value}
        assert questions.foreign_columns == {"x": f"{what} (in row 1)"}
        assert pickle.loads(pickle.dumps(questions)).foreign_columns == questions.foreign_columns
        assert PromptTemplate("{{question}} {{big > 1}}").render(questions).context(0) == "q False"
        with pytest.raises(TemplateError, match=f"names the column `x`, which holds {re.escape(what)}"):
            PromptTemplate("{{question}} {{x}}").render(questions)
    for field in ("question", "choices", "answer"):
        row = {"question": '"q"', "choices": '["a", "b"]', "answer": "0", field: "NaN"}
        content = "{" + ", ".join(f'"{name}": {one}' for name, one in row.items()) + "}"
        with pytest.raises(DatasetError, match="not null") as caught:
            read_questions(write(tmp_path, "a.jsonl", content.encode()))
        assert caught.value.field == field


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("template", ["{{question}} {{x}}", "{{question}} {% if x %}{{ x | string }}{% endif %}"])
@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1, -(2**63)])
def test_large_integers_are_printed_as_jinja2_prints_them_or_refused(
    tmp_path: Path, number: int, template: str, beyond: bool
) -> None:
    """Rendered here, or by jinja2 in its own process: the integers of 64 bits to the digit, none above."""
    if beyond:
        number *= 2 if number % 2 == 0 else 2**64
    line = json.dumps({"question": "q", "choices": ["a", "b"], "answer": 0, "x": number})
    questions = read_questions(write(tmp_path, "a.jsonl", line.encode()))
    if -(2**63) <= number < 2**64:
        plain = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template).render(json.loads(line))
        assert plain == f"q {number}"
        assert PromptTemplate(template).render(questions).context(0) == plain
    else:
        with pytest.raises(TemplateError, match="which holds an integer of more than 64 bits"):
            PromptTemplate(template).render(questions)


def test_rows_in_memory_may_hold_what_json_has_no_form_for() -> None:
    row = {
        "question": "q",
        "choices": ["a", "b"],
        "answer": 0,
        "x": [float("nan")],
        "y": 2**64,
        "z": {"n": float("inf")},
    }
    questions = QuestionSet.from_rows([row])
    assert questions[0].extra == {"x": [None], "y": None, "z": {"n": None}}
    assert sorted(questions.foreign_columns) == ["x", "y", "z"]


def every_type(rows: int) -> dict[str, pa.Array]:
    """A column of every type that pyarrow can write to parquet."""
    from datetime import UTC, date, datetime, time
    from decimal import Decimal

    moment = datetime(1969, 12, 31, 23, 59, 59, 123456)
    values: dict[str, tuple[pa.DataType, list[Any]]] = {
        "small": (pa.int8(), [-128, 127]),
        "unsigned": (pa.uint32(), [2**32 - 1, 0]),
        "long": (pa.uint64(), [2**64 - 1, 0]),
        "double": (pa.float64(), [0.1, -1e300]),
        "truth": (pa.bool_(), [True, False]),
        "nothing": (pa.null(), [None, None]),
        "words": (pa.dictionary(pa.int32(), pa.string()), ["a", "b"]),
        "date": (pa.date32(), [date(1, 1, 1), date(9999, 12, 31)]),
        "seconds": (pa.time32("ms"), [time(1, 2, 3), time(4, 5, 6, 7000)]),
        "micros": (pa.time64("us"), [time(1, 2, 3), time(4, 5, 6, 7)]),
        "naive": (pa.timestamp("us"), [moment, datetime(2024, 2, 29)]),
        "millis": (pa.timestamp("ms"), [datetime(1900, 3, 1), datetime(2000, 2, 29, 1)]),
        "utc": (pa.timestamp("us", "UTC"), [moment.replace(tzinfo=UTC), datetime(2024, 2, 29, tzinfo=UTC)]),
        "decimal": (pa.decimal128(38, 9), [Decimal("-12345678901234567890.123456789"), Decimal("0.000000001")]),
        "cents": (pa.decimal128(5, 2), [Decimal("0.00"), Decimal("-0.05")]),
        "wide": (pa.decimal256(50, 0), [Decimal(10) ** 49, Decimal(-7)]),
        "lists": (pa.list_(pa.list_(pa.date32())), [[[date(2024, 2, 29)], None], []]),
        "struct": (
            pa.struct([("a", pa.decimal128(4, 1)), ("b", pa.string())]),
            [{"a": Decimal("1.5"), "b": "x"}, None],
        ),
        "map": (pa.map_(pa.string(), pa.date32()), [[("k", date(2024, 2, 29))], []]),
        "nanos": (pa.timestamp("ns"), [1, 2]),
        "binary": (pa.large_binary(), [b"\xff", b"text"]),
        "fixed": (pa.binary(3), [b"abc", b"\xff\xff\xff"]),
        "picture": (
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            [{"bytes": b"\x89PNG", "path": None}] * 2,
        ),
    }
    return {name: pa.array((given * rows)[:rows], kind) for name, (kind, given) in values.items()}


# Left out: a samples file shows null, where lm-eval's shows Python's text for an object.
LEFT_OUT = {"binary", "fixed", "picture", "nanos", "nanotime", "int96"}


@pytest.mark.parametrize(
    "options", [{}, {"use_deprecated_int96_timestamps": True}, {"version": "1.0"}, {"use_dictionary": False}]
)
def test_documents_with_every_type_have_lm_evals_hash(tmp_path: Path, options: dict[str, Any]) -> None:
    """What lm-eval writes: `json.dumps` of the objects that `datasets` makes, `str` of what JSON has no form for."""
    datasets = pytest.importorskip("datasets")
    utils = pytest.importorskip("lm_eval.utils")
    own = {"question": ["q", "r"] * 2, "choices": [["a", "b"]] * 4, "answer": [0, 1] * 2}
    for name, column in every_type(4).items():
        path = tmp_path / "a.parquet"
        try:
            pq.write_table(pa.table({**own, name: column}), path, **options)
        except pa.ArrowException:
            continue
        if name == "map":
            continue  # `datasets` refuses it
        rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
        questions = read_questions(path)
        stamped = name in ("naive", "millis", "utc") and "use_deprecated_int96_timestamps" in options
        if name in LEFT_OUT or stamped:
            assert questions.foreign_columns[name]
            assert all(question.extra.get(name) is None for question in questions)
            continue
        dumped = [
            json.dumps(dict(row), indent=2, default=utils.handle_non_serializable, ensure_ascii=False) for row in rows
        ]
        assert hashes_of(questions, tmp_path) == [utils.hash_string(one) for one in dumped], name


def hashes_of(questions: QuestionSet, folder: Path) -> list[str]:
    prompts = PromptTemplate("mmlu").render(questions)
    outcome = aggregate(prompts, np.zeros(prompts.num_choices), np.zeros(prompts.num_choices, bool), near_tie=0.0)
    write_samples(folder / "samples.jsonl", questions, prompts, outcome, ["acc"])
    return [json.loads(line)["doc_hash"] for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_a_column_of_any_type_that_nobody_asks_for_is_no_obstacle(tmp_path: Path) -> None:
    own = {"question": ["q", "r"], "choices": [["a", "b"]] * 2, "answer": [0, 1]}
    columns = every_type(2)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({**own, **columns}), path)
    questions = read_questions(path)
    assert [question.answer for question in questions] == [0, 1]
    assert questions.columns == [*own, *columns]
    plain = {"small", "unsigned", "long", "double", "truth", "nothing", "words"}
    assert set(questions.foreign_columns) == set(columns) - plain
    for name in columns:
        template = PromptTemplate(f"{{{{question}}}} {{{{{name}}}}}")
        if name in plain:
            template.render(questions)
        else:
            with pytest.raises(TemplateError, match=f"names the column `{name}`"):
                template.render(questions)


def test_lzo_is_named_as_what_is_not_read(tmp_path: Path) -> None:
    columns = small_columns()
    assert len(read_questions(write(tmp_path, "a.parquet", parquet(columns, rows=2)))) == 2
    with pytest.raises(
        DatasetError, match=r"field `question`: is compressed with LZO, which is not read; write the file"
    ):
        read_questions(write(tmp_path, "a.parquet", parquet(columns, rows=2, codec="lzo")))


# Files that claim more than they hold.


def small_columns() -> dict[str, tuple[bytes, int]]:
    choices = levels((0, 1), (1, 1), (0, 1), (1, 1)) + levels((1, 4)) + plain_texts("a", "b", "c", "d")
    return {
        "question": (data_page(plain_texts("q", "r"), values=2), 2),
        "choices": (data_page(choices, values=4), 4),
        "answer": (data_page(struct.pack("<2q", 0, 1), values=2), 2),
    }


@functools.cache
def bombs() -> dict[str, tuple[bytes, str]]:
    """Files of at most some kilobytes, and what is said of each."""
    good = small_columns()
    many, huge = 2**31 - 1, 1 << 40

    def with_question(page: bytes, values: int = 2, **options: Any) -> bytes:
        return parquet({**good, "question": (page, values)}, rows=options.pop("rows", 2), **options)

    dictionary = dictionary_page(plain_texts("q"), values=1)
    used = dictionary + data_page(bytes([1]) + varint(many << 1) + bytes([0]), values=many, encoding=RLE_DICTIONARY)
    many_dictionary = dictionary_page(plain_texts("q"), values=many)
    zeros = zlib.compress(bytes(200 << 20), 9)
    wide = levels((0, 1), (1, many - 1)) + levels((1, many))
    deltas = varint(128) + varint(4) + varint(huge) + varint(0)
    big = gzip.compress(bytes(256 << 20), 9)
    zstd = compress(bytes(1 << 28), ".zst")
    return {
        "rows": (
            with_question(used, many, rows=huge, dictionaries={"question": len(dictionary)}),
            "claims 1099511627776 rows",
        ),
        "values": (with_question(data_page(plain_texts("q", "r"), values=many)), "more values in a page than"),
        "page": (with_question(data_page(plain_texts("q"), values=2, uncompressed=many), codec="snappy"), "page"),
        "gzip": (with_question(data_page(big, values=2, uncompressed=256 << 20), codec="gzip"), ""),
        "brotli": (with_question(data_page(zeros, values=2, uncompressed=many), codec="brotli"), ""),
        "lz4": (with_question(data_page(b"\x1f\x00" + b"\xff" * 99, values=2, uncompressed=many), codec="lz4_raw"), ""),
        "zstd": (with_question(data_page(zstd, values=2, uncompressed=many), codec="zstd"), ""),
        "dictionary": (
            with_question(many_dictionary + data_page(b"", values=2), dictionaries={"question": len(many_dictionary)}),
            "more values in a dictionary than it has room for",
        ),
        "choices": (
            parquet({**good, "choices": (data_page(wide, values=many), many)}, rows=2),
            f"there are {many} in 2 rows, more than 26 a question",
        ),
        "delta lengths": (
            with_question(data_page(deltas, values=2, encoding=DELTA_LENGTH_BYTE_ARRAY)), "more lengths in a page than"
        ),
        "delta texts": (
            with_question(data_page(deltas, values=2, encoding=DELTA_BYTE_ARRAY)), "more lengths in a page than"
        ),
        "second deltas": (
            with_question(
                data_page(varint(128) + varint(4) + varint(1) + varint(0) + deltas, values=2, encoding=DELTA_BYTE_ARRAY)
            ),
            "more lengths in a page than",
        ),
        "schema": (nested_schema(200_000), "its schema is nested more than 100 deep"),
    }  # fmt: skip


BOMBS = (
    *("rows", "values", "page", "gzip", "brotli", "lz4", "zstd", "dictionary", "choices"),
    *("delta lengths", "delta texts", "second deltas", "schema"),
)


@pytest.fixture(scope="module")
def read_bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[str, float, float]]:
    """What comes of each bomb, by its name and what reads it."""
    folder = tmp_path_factory.mktemp("bombs")
    assert bombs().keys() == set(BOMBS)
    reads = {}
    for name, (content, _) in bombs().items():
        path = str(write(folder, f"{name}.parquet", content))
        reads[name, "questions"] = f"read_questions({path!r})"
        reads[name, "documents"] = f"read_documents([{path!r}], field='question')"
    said = read_apart(list(reads.values()), WMDP_FAST_MEMORY_GIB="0.5")
    return dict(zip(reads, said, strict=True))


@pytest.mark.parametrize("name", BOMBS)
def test_a_parquet_bomb_ends_in_one_line_within_bounded_memory(
    read_bombs: dict[tuple[str, str], tuple[str, float, float]], name: str
) -> None:
    for read in ("questions", "documents"):
        error, memory, seconds = read_bombs[name, read]
        assert "\n" not in error
        if read == "questions":
            assert error.startswith("DatasetError")
            assert bombs()[name][1] in error
        elif name != "choices":  # another column than the one that is read
            assert error.startswith(("DatasetError", "ValueError"))
        assert memory < 1000, "MiB"
        assert seconds < 60


def read_apart(reads: list[str], **environment: str) -> list[tuple[str, float, float]]:
    """What each of some calls raises in a process of their own, the most memory it takes in MiB, and its seconds."""
    # Not `ru_maxrss`, which counts the process that this one was forked from, and which nothing sets back.
    code = """if True:
        import json, re, sys, time
        from wmdp_fast._rust import *
        for read in json.loads(sys.argv[1]):
            print("reading:", read, file=sys.stderr, flush=True)
            open("/proc/self/clear_refs", "w").write("5")  # the most memory is from now on
            begun, said = time.monotonic(), "nothing"
            try:
                eval(read)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            most = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
            print(json.dumps([said, most, time.monotonic() - begun]))
    """
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(reads)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return [tuple(json.loads(line)) for line in run.stdout.splitlines()]


def test_files_share_one_bound_of_memory_that_can_be_raised(tmp_path: Path) -> None:
    """Each of the files fits, all of them do not: they are read at the same time and held together."""
    line = json.dumps({"question": "q", "choices": ["a", "b"], "answer": 0}) + "\n"
    content = gzip.compress(line.encode() * 50_000, 1)
    for number in range(6):
        write(tmp_path, f"{number}.jsonl.gz", content)
    many = f"read_many([{str(tmp_path)!r} + f'/{{n}}.jsonl.gz' for n in range(6)])"
    one = f"read_questions({str(tmp_path / '0.jsonl.gz')!r})"
    [(error, memory, _), alone] = read_apart([many, one], WMDP_FAST_MEMORY_GIB="0.1")
    assert re.match(
        r"DatasetError: .*\d\.jsonl\.gz, row \d+: what is read takes more than 0\.1 GiB of memory; .*GIB=1$", error
    )
    assert memory < 400
    assert alone[0] == "nothing"
    assert read_apart([many], WMDP_FAST_MEMORY_GIB="0.5")[0][0] == "nothing"
    [(error, _, _)] = read_apart([one], WMDP_FAST_MEMORY_GIB="many")
    assert "must be a number of GiB, not 'many'" in error.replace('"', "'")


def test_a_dictionary_does_not_hide_how_much_questions_take(tmp_path: Path) -> None:
    rows = [{"question": "x" * 20_000, "choices": ["a", "b"], "answer": 0}] * 20_000
    content = as_parquet(rows)
    assert len(content) < 100_000
    path = str(write(tmp_path, "a.parquet", content))
    [(error, memory, _)] = read_apart([f"read_questions({path!r})"], WMDP_FAST_MEMORY_GIB="0.1")
    assert "what is read takes more than 0.1 GiB of memory" in error
    assert memory < 400


@pytest.mark.parametrize("opening", ["[", '{"a":', "[[", '[{"a":'])
def test_endless_nesting_is_one_line(tmp_path: Path, opening: str) -> None:
    deep = opening * 200_000
    for name in ("a.json", "a.jsonl", "a.csv"):
        content = {"a.csv": f'question,choices,answer\nq,"{deep.replace(chr(34), chr(34) * 2)}",0\n'}.get(name, deep)
        with pytest.raises(DatasetError):
            read_questions(write(tmp_path, name, content.encode()))
        with pytest.raises(DatasetError):
            read_questions(write(tmp_path, name, f'{{"data": [{{"x": {content}'.encode()))
    for content in (deep, f'{{"text": {deep}', f'{{"x": {deep}'):
        with pytest.raises(DatasetError, match="row 1"):
            read_documents([write(tmp_path, "a.jsonl", content.encode())])
        with pytest.raises(ValueError, match=r"samples|JSON|line"):
            read_samples(write(tmp_path, "samples_x.jsonl", content.encode()))
    nested: Any = 0
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(DatasetError, match="nested more than 128 deep"):
        QuestionSet.from_rows([{**BIRDS[0], "x": nested}])


def row(choices: str, answer: str) -> bytes:
    return f'{{"question": "q", "choices": {choices}, "answer": {answer}}}'.encode()


@pytest.mark.parametrize(
    ("name", "content", "place", "message"),
    [
        ("a.jsonl", b"", "", "there are no questions"),
        ("a.json", b" \n", "", "the file is empty"),
        ("a.json", b"[]", "", "there are no questions"),
        ("a.json", b"{}", "", "no key `data`"),
        ("a.json", b'{"data": {}}', "", "must be an array"),
        ("a.json", b"7", "", "must be an array of objects"),
        ("a.json", b"[] []", "", "behind the end"),
        ("a.json", b"[", ", row 1", "the file ends in the middle"),
        ("a.json", b'[{"question": "', ", row 1", "the file ends in the middle"),
        ("a.json", row('["a","b"]', "0"), "", "name it .jsonl"),
        ("a.csv", b"", "", "the file is empty"),
        ("a.csv", b"question,A,B,answer\n", "", "there are no questions"),
        ("a.csv", b"a,b,c\n", ", row 1", 'it has 3 fields separated by commas: "a", "b", "c"; give it a header'),
        ("a.csv", b"a\n", ", row 1", 'it has 1 field: "a"; give it a header'),
        ("a.csv", b"Frage;A;B;Antwort\nq;a;b;A\n", ", row 1", '4 fields separated by semicolons: "Frage", "A", "B"'),
        ("a.csv", b"id,text,A,B,C,right\n1,q,a,b,c,A\n", ", row 1", '6 fields separated by commas: "id", "text", "A"'),
        ("a.csv", b"question,x,answer\nq,y,A\n", ", field `choices`", 'header, which has "question", "x", "answer"'),
        ("a.csv", b"question,answer\nq,A\n", ", field `choices`", "are missing in the header"),
        ("a.csv", b"question,choice1,choice2,answer\n", ", field `choice0`", "is missing in the header"),
        ("a.csv", b"question,A,B,choices,answer\n", ", field `choices`", "more than one form"),
        ("a.csv", b"question,A,B,answer,Answer\n", ", field `answer`", "occurs twice"),
        ("a.csv", b"question,A,B,answer,x,x\n", ", field `x`", "occurs twice"),
        ("a.csv", b"question,A,B,answer,b\n", ", field `b`", "occurs twice"),
        ("a.csv", b"q,a,b,A\nq,a,b,c,A\n", ", row 2", "has 5 fields, but the first line has 4"),
        ("a.csv", b"q,a,b,A\nq,a,,A\n", ", row 2, field `choices`", "choice 1 is empty"),
        ("a.csv", b"q,a,b,A\n,a,b,A\n", ", row 2, field `question`", "is empty"),
        ("a.csv", b"q,a,b,A\nq,a,\xff,A\n", ", row 2, field `choices`", "is not UTF-8"),
        ("a.csv", b'q,a,b,A\n"q,a,b,A\n', ", row 2", "inside a quoted field"),
        ("a.csv", b'q,a,b,A\n"q"s,a,b,A\n', ", row 2", "behind a closing quote"),
        ("a.csv", b'question,choices,answer\nq,"[1,2]",0\n', ", row 1, field `choices`", "choice 0 must be text"),
        ("a.csv", b"question,choices,answer\nq,a b,0\n", ", row 1, field `choices`", "not valid JSON"),
        ("a.jsonl", as_lines(BIRDS) + b"[]", ", row 6", "not valid JSON: invalid type: sequence"),
        ("a.jsonl", as_lines(BIRDS) + b"\xff", ", row 6", "byte 1 of it is not UTF-8"),
        ("a.jsonl", b"\xff\xfe{\x00", "", "UTF-16"),
        ("a.jsonl", b'{"question":"q","question":"r"}', ", row 1, field `question`", "occurs twice"),
        ("a.jsonl", b'{"question":"\\ud800"}', ", row 1", "not valid JSON: unexpected end of hex escape"),
        ("a.jsonl", row('["a",2]', "0"), ", row 1, field `choices`", "choice 1 must be text, not an int"),
        ("a.jsonl", row("[]", "0"), ", row 1, field `choices`", "the list is empty"),
        ("a.jsonl", row('["a"]', "0"), ", row 1, field `choices`", "2 to 26 of them, not 1"),
        ("a.jsonl", row('["a","b"]', "2"), ", row 1, field `answer`", "the indices are 0 to 1"),
        ("a.jsonl", row('["a","b"]', "1.0"), ", row 1, field `answer`", "not a floating-point number"),
        ("a.jsonl", b'{"question":null}', ", row 1, field `question`", "must be text, not null"),
        ("a.jsonl", b'{"question":' + b"[" * 500 + b"]" * 500 + b"}", ", row 1", "recursion limit"),
        ("a.jsonl.gz", b"not gzip", "", "not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(as_lines(BIRDS))[:-1], "", "not a complete gzip file"),
        ("a.jsonl.zst", b"not zstd", "", "not a complete zstd file"),
        ("a.parquet", b"", "", "not an intact parquet file"),
        ("a.parquet", b"PAR1", "", "not an intact parquet file"),
        ("a.parquet.zst", compress(b"", ".zst"), "", "not an intact parquet file"),
        ("a.txt", b"", "", "the name must end in .parquet, .json, .jsonl or .csv"),
        ("a.gz", b"", "", "the name must end in"),
    ],
)  # fmt: skip
def test_an_error_says_what_is_wrong_and_where(
    tmp_path: Path, name: str, content: bytes, place: str, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DatasetError) as caught:
        read_questions(path)
    text = str(caught.value)
    assert text.startswith(f"{path}{place}")
    assert message in text
    assert ("row" in place) <= (f"row {caught.value.row}" in place)
    assert pickle.loads(pickle.dumps(caught.value)).row == caught.value.row


def test_an_answer_that_may_be_read_twice_names_both_readings() -> None:
    rows = [{"question": "q", "choices": ["1", "2", "3", "4"], "answer": "2"}]
    with pytest.raises(DatasetError, match="read as an index it means choice C, read as a choice's text choice B"):
        QuestionSet.from_rows(rows)
    with pytest.raises(DatasetError, match=r'row 2.*"B" is a letter, but "blue" in row 1 is not'):
        QuestionSet.from_rows(
            [{"question": "q", "choices": ["red", "blue"], "answer": answer} for answer in ("blue", "B")]
        )


def test_files_that_cannot_be_opened_raise_what_python_would(tmp_path: Path) -> None:
    for name in ("no.jsonl", "no.csv.gz", "no.parquet", "no.txt", "no.parquet.zst"):
        with pytest.raises(FileNotFoundError, match="no"):
            read_questions(tmp_path / name)
    for name in ("folder.jsonl", "folder.csv.gz", "folder.parquet", "folder"):
        (tmp_path / name).mkdir()
        with pytest.raises(IsADirectoryError):
            read_questions(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_a_record_without_end_is_refused_without_being_held(tmp_path: Path, name: str) -> None:
    """Four gigabytes on one line, four megabytes as gzip."""
    import resource

    compressor = zlib.compressobj(wbits=31)
    start = {"a.jsonl.gz": b'{"question": "', "a.json.gz": b'[{"question": "', "a.csv.gz": b'"'}[name]
    block = b"x" * (1 << 24)
    with (tmp_path / name).open("wb") as file:
        file.write(compressor.compress(start))
        for _ in range(4):
            file.write(compressor.compress(block))
        file.write(compressor.flush())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DatasetError, match=r"row 1: the record is longer than 16777216 bytes"):
        read_questions(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# The Python objects.


def test_a_set_is_a_sequence_of_questions() -> None:
    questions = QuestionSet.from_rows(BIRDS, file="birds")
    assert [question.answer for question in questions] == [0, 1, 0, 1, 3]
    assert len(questions) == 5
    assert questions[-1] == questions[4] != questions[0]
    assert questions[1] != "wren"
    for index in (5, -6, 2**62):
        with pytest.raises(IndexError, match="only 5"):
            questions[index]
    assert isinstance(questions[0], Question)
    assert questions.subjects == ["owls"]
    assert repr(questions) == 'QuestionSet("birds", 5 questions)'
    assert repr(questions[0]).startswith(
        'Question("Which bird of these hoots at night?", choices=["the owl", "the hen"]'
    )


def test_selections_keep_file_and_columns() -> None:
    questions = QuestionSet.from_rows(BIRDS, file="birds")
    chosen = questions.select([3, 0])
    assert list(chosen) == [questions[3], questions[0]]
    assert (chosen.file, chosen.columns) == (questions.file, questions.columns)
    assert questions.head(2) == questions.select([0, 1])
    assert questions.head(99) == questions
    assert len(questions.head(0)) == 0
    with pytest.raises(ValueError, match="no question 5, only 5"):
        questions.select([5])
    assert list(QuestionSet.concat([chosen, questions])) == [*chosen, *questions]
    with pytest.raises(ValueError, match="no question sets"):
        QuestionSet.concat([])


def test_sets_and_questions_can_be_pickled() -> None:
    questions = QuestionSet.from_rows(BIRDS, file="birds")
    again = pickle.loads(pickle.dumps(questions))
    assert again == questions
    assert (again.file, again.columns, again.content_hash) == (
        questions.file,
        questions.columns,
        questions.content_hash,
    )
    assert pickle.loads(pickle.dumps(questions[2])) == questions[2]


def test_extra_columns_are_a_fresh_dict() -> None:
    question = QuestionSet.from_rows(BIRDS)[2]
    question.extra["note"].append(2)
    assert question.extra == {"note": [1, None]}


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        ({"question": "\ud800"}, "question", "lone surrogate"),
        ({"question": "q", "choices": ["a", "b"], "answer": 0, "x": object()}, "x", "not object"),
        ({"question": "q", "choices": ["a", "b"], "answer": float("inf")}, "answer", "not null"),
        ({1: 2}, None, "a key must be text, not int"),
    ],
)
def test_rows_that_json_cannot_hold_are_refused(row: Any, field: str | None, problem: str) -> None:
    with pytest.raises(DatasetError, match=problem) as caught:
        QuestionSet.from_rows([BIRDS[0], row])
    assert (caught.value.file, caught.value.row, caught.value.field) == ("<memory>", 2, field)


def test_rows_must_be_dicts() -> None:
    with pytest.raises(TypeError, match="row 1 must be a dict, not str"):
        QuestionSet.from_rows("birds")  # type: ignore[arg-type]
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(DatasetError, match="nested"):
        QuestionSet.from_rows([{"x": nested}])
    with pytest.raises(DatasetError, match="there are no questions"):
        QuestionSet.from_rows([])


# Many files.


def test_many_files_come_back_in_order_or_with_the_first_fault(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"{n}.jsonl", as_lines([{**BIRDS[0], "question": str(n)}])) for n in range(40)]
    assert [questions[0].question for questions in read_many(paths)] == [str(n) for n in range(40)]
    assert read_many([]) == []
    for n in (31, 7):
        write(tmp_path, f"{n}.jsonl", b"{}")
    for _ in range(5):
        with pytest.raises(DatasetError) as caught:
            read_many(paths)
        assert caught.value.file == str(paths[7])


def test_threads_read_the_same(tmp_path: Path) -> None:
    paths = [write(tmp_path, name, content) for name, content in FILES.items()]
    expected = [read_questions(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_questions, paths * 20)) == expected * 20
        assert list(pool.map(read_many, [paths] * 20)) == [expected] * 20
        hashes = list(pool.map(lambda _: expected[0].content_hash, range(50)))
    assert set(hashes) == {expected[0].content_hash}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_reads_in_parallel(tmp_path: Path) -> None:
    paths = [write(tmp_path, name, content) for name, content in FILES.items()]
    expected = read_many(paths)
    child = os.fork()
    if child == 0:
        os._exit(0 if read_many(paths) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Real MMLU.


def test_mmlu_as_parquet_is_mmlu_as_csv(mmlu_dir: Path, mmlu_csv_dir: Path) -> None:
    subjects = sorted(folder.name for folder in mmlu_dir.iterdir() if folder.is_dir())
    assert len(subjects) == 57
    for split, count in (("test", 14_042), ("dev", 285)):
        stored = read_many([mmlu_dir / subject / f"{split}-00000-of-00001.parquet" for subject in subjects])
        written = read_many([mmlu_csv_dir / split / f"{subject}_{split}.csv" for subject in subjects])
        assert sum(map(len, stored)) == sum(map(len, written)) == count
        for subject, one, other in zip(subjects, stored, written, strict=True):
            assert [(q.question, q.choices, q.answer) for q in one] == [
                (q.question, q.choices, q.answer) for q in other
            ]
            assert one.content_hash == other.content_hash
            assert one.subjects == [subject]


def test_mmlu_is_what_pyarrow_reads(mmlu_dir: Path) -> None:
    paths = sorted(mmlu_dir.glob("*/*.parquet"))
    for path, questions in zip(paths, read_many(paths), strict=True):
        table = pq.read_table(path)
        assert questions.columns == table.column_names
        names = ("question", "subject", "choices", "answer")
        assert [{name: getattr(q, name) for name in names} for q in questions] == table.to_pylist()


def test_mmlu_in_its_original_form_reads_the_same(mmlu_dir: Path, tmp_path: Path) -> None:
    """77 answers of MMLU are the letter, or the index, of one choice and the text of another."""
    for path in sorted(mmlu_dir.glob("*/*.parquet")):
        table = pq.read_table(path).to_pylist()
        expected = read_questions(path)
        for letters in (True, False):
            written = read_questions(write(tmp_path, "a.csv", as_csv(table, None, letters=letters)))
            assert written.content_hash == expected.content_hash
