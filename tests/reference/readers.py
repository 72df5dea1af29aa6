"""Question files read the slow and obvious way: json, csv, pyarrow, gzip and zstandard, one rule after another.

`read` gives the questions as plain dicts or raises `Unreadable`. It is written from the rules, not from the Rust code.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import string
import struct
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.reference.decompression import FAULTS, decompressed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

# How deep a record may be nested.
DEEPEST_RECORD = 127
# White space around letters and digits of an answer, and around the names in a CSV header.
SPACE = " \t\n\r\f"

Row = dict[str, Any]


class Unreadable(Exception):  # noqa: N818 - it stands for DatasetError, which is the error
    """The file is not a question file."""


def read(path: Path) -> list[Row]:
    """The questions of a file as dicts with the keys question, choices, answer, subject and extra."""
    try:
        name, content = decompressed(path)
    except FAULTS as error:
        raise Unreadable(f"cannot be decompressed: {error}") from error
    if name.endswith(".parquet"):
        records = parquet_records(content)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unreadable(f"not UTF-8: {error}") from error
        if name.endswith(".jsonl"):
            records = (parse_json(line) for line in text.split("\n") if line.strip(" \t\r"))
        elif name.endswith(".json"):
            records = json_records(text)
        else:
            records = csv_records(text)
    return questions(records)


def questions(records: Iterable[Any]) -> list[Row]:
    """Checks records and gives their answers as indices."""
    checked = [check(record) for record in records]
    if not checked:
        raise Unreadable("no questions")
    textual = [row for row in checked if isinstance(row["answer"], str)]
    # A file's textual answers are all letters, all indices or all texts: whatever makes sense of all of them.
    conventions = [
        meanings
        for reading in (as_letter, as_index, as_text)
        if None not in (meanings := [reading(row["answer"], row["choices"]) for row in textual])
    ]
    if not conventions:
        raise Unreadable("no convention explains all answers")
    if any(meanings != conventions[0] for meanings in conventions):
        raise Unreadable("two conventions explain all answers, and differ")
    for row, meaning in zip(textual, conventions[0], strict=True):
        row["answer"] = meaning
    return checked


def as_letter(answer: str, choices: list[str]) -> int | None:
    letters = string.ascii_uppercase[: len(choices)]
    trimmed = answer.strip(SPACE)
    return letters.index(trimmed.upper()) if re.fullmatch("[A-Za-z]", trimmed) and trimmed.upper() in letters else None


def as_index(answer: str, choices: list[str]) -> int | None:
    trimmed = answer.strip(SPACE)
    in_range = re.fullmatch("[0-9]+", trimmed) and len(trimmed.lstrip("0")) < 3 and int(trimmed) < len(choices)
    return int(trimmed) if in_range else None


def as_text(answer: str, choices: list[str]) -> int | None:
    return choices.index(answer) if answer and choices.count(answer) == 1 else None


OWN = ("question", "choices", "answer", "subject")
OTHER_NAMES = {"question_stem": "question", "answerkey": "answer", "answer_key": "answer"}


class Foreign:
    """Stands for a value that JSON has no form for."""


FOREIGN = Foreign()


def without_foreign(value: Any) -> Any:
    """The value with None in the place of what JSON has no form for."""
    if isinstance(value, list):
        return [without_foreign(item) for item in value]
    if isinstance(value, dict):
        return {name: without_foreign(item) for name, item in value.items()}
    return None if value is FOREIGN else value


def own_name(name: str) -> str | None:
    """What a column under this name can mean."""
    folded = name.strip(SPACE).translate(ASCII_LOWER)
    return folded if folded in OWN else OTHER_NAMES.get(folded)


def check(record: Any) -> Row:
    """A record as a row whose answer may still be text."""
    if not isinstance(record, dict) or depth(record) > DEEPEST_RECORD:
        raise Unreadable("not an object, or too deep")
    row = named(without_foreign(record))
    if row["subject"] is not None and not isinstance(row["subject"], str):
        # A subject that is no text is a column like any other.
        row["extra"]["subject"], row["subject"] = row["subject"], None
    take_labels(row)
    choices, answer = row["choices"], row["answer"]
    if not isinstance(row["question"], str):
        raise Unreadable("question")
    if not (isinstance(choices, list) and 2 <= len(choices) <= 26 and all(isinstance(c, str) for c in choices)):
        raise Unreadable("choices")
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        raise Unreadable("answer")
    if isinstance(answer, int) and not 0 <= answer < len(choices):
        raise Unreadable("answer out of range")
    if isinstance(answer, str) and all(reading(answer, choices) is None for reading in (as_letter, as_index, as_text)):
        raise Unreadable("answer without meaning")
    return row


def named(record: dict[str, Any]) -> Row:
    """A record with our own columns, under whatever names, and the others."""
    row: Row = {name: record.get(name) for name in OWN}
    row["extra"] = {name: value for name, value in record.items() if name not in OWN}
    for name in OWN:
        meant = [other for other in row["extra"] if own_name(other) == name]
        if name in record or not meant:
            continue
        if len(meant) > 1 and name != "subject":
            raise Unreadable(f"two columns for {name}")
        value = row["extra"][meant[0]]
        if len(meant) == 1 and (name != "subject" or isinstance(value, str)):
            row[name] = value
    return row


def take_labels(row: Row) -> None:
    """Choices with labels as a list of texts, and the label that is the answer as an index."""
    choices = row["choices"]
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        if not all(isinstance(choice, dict) for choice in choices):
            raise Unreadable("choices of two kinds")
        texts, labels = [c.get("text") for c in choices], [c["label"] for c in choices if "label" in c] or None
    elif isinstance(choices, dict) and "text" in choices:
        texts, labels = choices["text"], choices.get("label")
        if "label" in choices and labels is None:
            raise Unreadable("labels")
    else:
        return
    if not any(value == choices for value in row["extra"].values()):
        row["extra"]["choices"] = choices
    row["choices"] = texts
    if labels is not None:
        row["answer"] = labeled(row["answer"], texts, labels)


def labeled(answer: Any, texts: Any, labels: Any) -> Any:
    """The answer as an index, if it is a label."""
    if not (isinstance(texts, list) and isinstance(labels, list) and all(isinstance(x, str) for x in texts + labels)):
        raise Unreadable("labels")
    if len(labels) != len(texts) or len(set(labels)) < len(labels):
        raise Unreadable("labels")
    if isinstance(answer, str):
        if answer not in labels:
            raise Unreadable("no label")
        return labels.index(answer)
    if any(re.fullmatch("[+-]?[0-9]+", label) for label in labels):
        raise Unreadable("an index or a label")
    return answer


# JSON.


def parse_json(text: str) -> Any:
    """One JSON value by the letter of RFC 8259, which Python's parser takes more lightly."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise Unreadable("a key twice")
        return dict(pairs)

    def constant(_name: str) -> Foreign:
        return FOREIGN

    def number(text: str) -> float | Foreign:
        value = float(text)
        return FOREIGN if math.isinf(value) else value

    def integer(text: str) -> int | Foreign:
        return FOREIGN if len(text) > 25 or not -(2**63) <= int(text) < 2**64 else int(text)

    try:
        value = json.loads(
            text, object_pairs_hook=unique, parse_constant=constant, parse_float=number, parse_int=integer
        )
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error
    if has_surrogate(value):
        raise Unreadable("a lone surrogate")
    return value


def depth(value: Any) -> int:
    """How deep lists and dicts are nested."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(depth, children), default=0)


def has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(has_surrogate(key) or has_surrogate(item) for key, item in value.items())
    return isinstance(value, list) and any(map(has_surrogate, value))


def json_records(text: str) -> list[Any]:
    document = parse_json(text)
    records = document.get("data") if isinstance(document, dict) else document
    if not isinstance(records, list):
        raise Unreadable("neither an array nor an object with `data`")
    return records


# CSV.


def csv_records(text: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    first_line = re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    delimiter = next((d for d in ",;\t" if is_header(first_line, d)), None)
    try:
        # csv ends a line where its input does, and knows all three line ends itself.
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter or ",")
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise Unreadable(f"not CSV: {error}") from error
    if not lines:
        raise Unreadable("empty")
    names = [name.strip(SPACE).translate(ASCII_LOWER) for name in lines[0]]
    if delimiter:
        for own in ("question", "answer"):
            others = [place for place, name in enumerate(names) if csv_meaning(name) == own]
            if own not in names and others:
                names[others[0]] = own
        columns = header_columns(lines[0], names)
        lines = lines[1:]
    elif len(names) < 4:
        raise Unreadable("too few fields")
    elif names and all(reading(lines[0][-1], lines[0][1:-1]) is None for reading in (as_letter, as_index, as_text)):
        raise Unreadable("neither a header nor a question")
    else:
        columns = ["question", *range(len(names) - 2), "answer"]
    for line in lines:
        if len(line) != len(columns):
            raise Unreadable("number of fields")
        yield csv_record(dict(zip(columns, line, strict=True)))


def is_header(line: str, delimiter: str) -> bool:
    """Whether a line names a question and an answer with this delimiter between."""
    # A delimiter inside quotes is none: pieces between an odd and an even quote stay together.
    names, quoted = [""], False
    for character in line:
        quoted ^= character == '"'
        if character == delimiter and not quoted:
            names.append("")
        else:
            names[-1] += character
    meanings = {csv_meaning(name.strip().strip('"').strip()) for name in names}
    return {"question", "answer"} <= meanings


def csv_meaning(name: str) -> str | None:
    return "question" if name.strip(SPACE).translate(ASCII_LOWER) == "prompt" else own_name(name)


ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def header_columns(header: list[str], names: list[str]) -> list[str | int]:
    """What each column is: a reserved name, the number of a choice, or the name of an extra column."""

    def run(candidates: Iterable[str]) -> list[str]:
        found = []
        for candidate in candidates:
            if candidate not in names:
                break
            found.append(candidate)
        return found

    numbered = run(f"choice{number}" for number in range(len(names)))
    if sum(bool(re.fullmatch("choice[0-9]+", name)) for name in names) != len(numbered):
        raise Unreadable("a gap in the choices, or one twice")
    lettered = run(string.ascii_lowercase)
    if len(lettered) == 1:
        lettered = []
    forms = [form for form in (numbered, lettered, ["choices"] if "choices" in names else []) if form]
    if len(forms) != 1:
        raise Unreadable("no choices, or in two forms")
    columns: list[str | int] = []
    for name, given in zip(names, header, strict=True):
        if name in forms[0] and forms[0] != ["choices"]:
            columns.append(forms[0].index(name))
        else:
            columns.append(name if name in ("question", "choices", "answer", "subject") else given)
    if len(set(columns)) < len(columns):
        raise Unreadable("a column twice")
    return columns


def csv_record(fields: Mapping[str | int, str]) -> Row:
    record: Row = {name: value or None for name, value in fields.items() if isinstance(name, str)}
    numbers = sorted(name for name in fields if isinstance(name, int))
    if numbers:
        # An empty choice may be a missing one; nobody can tell.
        record["choices"] = [fields[number] or None for number in numbers]
    else:
        record["choices"] = parse_json(fields["choices"])
    return record


# Parquet.


def parquet_records(content: bytes) -> list[Row]:
    try:
        table = pq.ParquetFile(io.BytesIO(content)).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise Unreadable(f"not parquet: {error}") from error
    if len(set(table.column_names)) < len(table.column_names):
        raise Unreadable("a column twice")
    try:
        return [
            {name: own_text(value) if name in OWN else plain(value) for name, value in row.items()}
            for row in table.to_pylist()
        ]
    except (UnicodeDecodeError, ValueError) as error:
        raise Unreadable(f"not UTF-8: {error}") from error


def own_text(value: Any) -> Any:
    """A value of a column of our own, where bytes without annotation are text."""
    if isinstance(value, list):
        return [own_text(item) for item in value]
    return value.decode() if isinstance(value, bytes) else plain(value)


def plain(value: Any) -> Any:
    """A value as a samples file shows it: null for what JSON has no form for, text for Python's other objects."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, date | datetime | time | Decimal):
        return str(value)
    return value


# The hash.


def content_hash(rows: Iterable[Row]) -> str:
    """SHA-256 over questions, choices and answers, independent of the file format."""
    parts = [b"wmdp-fast questions 1\n"]

    def text(value: str) -> None:
        encoded = value.encode()
        parts.extend([struct.pack("<Q", len(encoded)), encoded])

    for row in rows:
        text(row["question"])
        parts.append(struct.pack("<Q", len(row["choices"])))
        for choice in row["choices"]:
            text(choice)
        parts.append(struct.pack("<Q", row["answer"]))
    return hashlib.sha256(b"".join(parts)).hexdigest()
