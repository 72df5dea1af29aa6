"""The readers of question files against the slow ones, in every format, on good files, bad files and real MMLU."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import random
import string
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.damage import cut, delete, flip
from tests.reference import readers as reference
from wmdp_fast._rust import Question, QuestionSet, read_many, read_questions
from wmdp_fast.exceptions import DatasetError

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
        "bytes": "text",
        "date": "2024-02-29",
        "decimal": "1.50",
        "lists": [[1], [], None],
    }
    assert list(first.extra) == list(columns)[3:]
    assert second.extra["lists"] is None
    assert second.extra["map"] == []


def test_page_checksums_are_checked(tmp_path: Path) -> None:
    content = as_parquet(WITH_SUBJECT, write_page_checksum=True, compression="none", use_dictionary=False)
    assert len(read_questions(write(tmp_path, "a.parquet", content))) == len(WITH_SUBJECT)
    with pytest.raises(DatasetError, match="CRC"):
        read_questions(write(tmp_path, "a.parquet", content.replace(b"hoots", b"hooks", 1)))


@pytest.mark.parametrize(
    "options",
    [{"compression": c} for c in ("none", "gzip", "zstd", "snappy")]
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
properties = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
DAMAGED = 1000
DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [cut, flip, splice, delete, insert]


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".parquet")])
def test_damaged_text_is_read_or_refused_as_the_slow_reader_does(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    for _ in range(DAMAGED):
        damaged = rng.choice(DAMAGES)(FILES[name], rng)
        assert_same(write(tmp_path, name, damaged))


@pytest.mark.parametrize(
    "name", ["snappy.parquet", "zstd.parquet", "lines.jsonl.gz", "lines.jsonl.zst", "snappy.parquet.gz"]
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
        ("subject", pa.array([1, 2]), None),
        ("extra", pa.array([0.0, float("nan")]), 2),
        ("extra", pa.array([b"x", b"\xff"]), 2),
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
        ("a.csv", b"a,b,c\n", ", row 1", "found 3 fields"),
        ("a.csv", b"question;A;B;answer\nq;a;b;A\n", ", row 1", "found 1 field;"),
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
        ({"question": "q", "choices": ["a", "b"], "answer": 0, "x": float("inf")}, "x", "no number"),
        ({"question": "q", "choices": ["a", "b"], "answer": 0, "x": 2**64}, "x", "more than 64 bits"),
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
