"""Corpus files read the slow and obvious way, and the hash of their documents; written from the rules, not the code."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.reference.decompression import FAULTS, decompressed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Unreadable(Exception):  # noqa: N818 - it stands for DatasetError, which is the error
    """The file is not a corpus."""


def read(path: Path, *, field: str = "text", raw_lines: bool = False, min_chars: int = 0) -> list[str]:
    """The documents of a file."""
    try:
        name, content = decompressed(path)
        if name.endswith(".parquet"):
            texts = parquet_texts(content, field)
        elif raw_lines:
            # As `open(path)` gives them: every line end is "\n".
            texts = list(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig"))
        elif name.endswith(".txt"):
            texts = [content.decode("utf-8-sig")]
        else:
            lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
            texts = [text_of_line(line.decode(), field) for line in lines if line.strip(b" \t\r")]
    except (*FAULTS, ValueError, RecursionError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    documents = [text for text in texts if len(text) > min_chars]
    if not documents:
        raise Unreadable("no documents")
    return documents


def text_of_line(line: str, field: str) -> str:
    """The text in one line of JSON: the string it is, or what its object has under `field`."""

    class Pairs(list[tuple[str, Any]]):
        """An object, its keys as often as they occur."""

    value = json.loads(line, object_pairs_hook=Pairs, parse_constant=float)
    if isinstance(value, Pairs):
        for key, _ in value:
            key.encode()
        [value] = [text for key, text in value if key == field]
    if not isinstance(value, str):
        raise ValueError("not a text")  # noqa: TRY004 - all faults of a line are ValueErrors
    value.encode()  # a lone surrogate cannot be
    return value


def parquet_texts(content: bytes, field: str) -> list[str]:
    try:
        column = pq.read_table(io.BytesIO(content), columns=[field]).column(field)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(str(error)) from error
    texts = column.to_pylist()
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not texts")
    return texts


def content_hash(documents: Iterable[str]) -> str:
    """SHA-256 over the documents' texts, each with its length in bytes before it."""
    digest = hashlib.sha256(b"wmdp-fast corpus 1\n")
    for text in documents:
        encoded = text.encode()
        digest.update(struct.pack("<Q", len(encoded)))
        digest.update(encoded)
    return digest.hexdigest()
