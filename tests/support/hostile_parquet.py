"""Parquet files whose metadata claim what they do not hold, written byte by byte."""

from __future__ import annotations

import struct

BYTE_ARRAY, INT64 = 6, 2
PLAIN, DELTA_BINARY_PACKED, DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY, RLE, RLE_DICTIONARY = 0, 5, 6, 7, 3, 8
CODECS = {"none": 0, "snappy": 1, "gzip": 2, "lzo": 3, "brotli": 4, "lz4": 5, "zstd": 6, "lz4_raw": 7}


def varint(number: int) -> bytes:
    """An unsigned number of variable length."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def integer(number: int) -> bytes:
    """A signed one."""
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def structure(**fields: tuple[int, bytes]) -> tuple[int, bytes]:
    """A thrift structure of fields `f1`, `f2` and so on, each its type and its bytes."""
    out, last = b"", 0
    for name, (kind, value) in sorted(fields.items(), key=lambda field: int(field[0][1:])):
        number = int(name[1:])
        out += bytes([(number - last) << 4 | kind]) + value
        last = number
    return 12, out + b"\0"


def i32(number: int) -> tuple[int, bytes]:
    """A thrift integer of 32 bits."""
    return 5, integer(number)


def i64(number: int) -> tuple[int, bytes]:
    """A thrift integer of 64 bits."""
    return 6, integer(number)


def text(value: str) -> tuple[int, bytes]:
    """A thrift string."""
    return 8, varint(len(value)) + value.encode()


def many(items: list[tuple[int, bytes]], kind: int = 12) -> tuple[int, bytes]:
    """A thrift list."""
    head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + varint(len(items))
    return 9, head + b"".join(value for _, value in items)


def dictionary_page(body: bytes, *, values: int, uncompressed: int | None = None) -> bytes:
    """A dictionary page that claims so many values."""
    claimed = len(body) if uncompressed is None else uncompressed
    header = structure(f1=i32(2), f2=i32(claimed), f3=i32(len(body)), f7=structure(f1=i32(values), f2=i32(PLAIN)))
    return header[1] + body


def data_page(body: bytes, *, values: int, encoding: int = PLAIN, uncompressed: int | None = None) -> bytes:
    """A data page that claims so many values."""
    claimed = len(body) if uncompressed is None else uncompressed
    page = structure(f1=i32(values), f2=i32(encoding), f3=i32(RLE), f4=i32(RLE))
    return structure(f1=i32(0), f2=i32(claimed), f3=i32(len(body)), f5=page)[1] + body


def plain_texts(*texts: str) -> bytes:
    """Texts one after another, as plain pages hold them."""
    return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in texts)


def levels(*runs: tuple[int, int]) -> bytes:
    """Runs (value, length) of levels of one bit."""
    body = b"".join(varint(length << 1) + bytes([value]) for value, length in runs)
    return struct.pack("<I", len(body)) + body


def parquet(
    columns: dict[str, tuple[bytes, int]], *, rows: int, codec: str = "none", dictionaries: dict[str, int] | None = None
) -> bytes:
    """A file of required columns: `question` and others are texts, `answer` an integer, `choices` a bare repeated text.

    Args:
        columns: For each column its pages and how many values its metadata claim.
        rows: How many rows are claimed.
        codec: What the pages are said to be compressed with.
        dictionaries: For columns that have a dictionary page, its length.
    """
    content, chunks, elements = b"PAR1", [], []
    elements.append(structure(f4=text("schema"), f5=i32(len(columns))))
    for name, (pages, values) in columns.items():
        kind = INT64 if name == "answer" else BYTE_ARRAY
        repetition = i32(2 if name == "choices" else 0)
        annotated = {} if name == "answer" else {"f6": i32(0)}
        elements.append(structure(f1=i32(kind), f3=repetition, f4=text(name), **annotated))
        start = len(content)
        content += pages
        at = start + (dictionaries or {}).get(name, 0)
        meta = {
            "f1": i32(kind), "f2": many([i32(PLAIN), i32(RLE)], 5), "f3": many([text(name)], 8),
            "f4": i32(CODECS[codec]), "f5": i64(values), "f6": i64(len(pages)), "f7": i64(len(pages)), "f9": i64(at),
        }  # fmt: skip
        if at != start:
            meta["f11"] = i64(start)
        chunks.append(structure(f2=i64(start), f3=structure(**meta)))
    group = structure(f1=many(chunks), f2=i64(len(content)), f3=i64(rows))
    footer = structure(f1=i32(1), f2=many(elements), f3=i64(rows), f4=many([group]))[1]
    return content + footer + struct.pack("<I", len(footer)) + b"PAR1"


def nested_schema(depth: int) -> bytes:
    """A file whose schema is groups in groups."""
    elements = [structure(f3=i32(0), f4=text("g"), f5=i32(1)) for _ in range(depth)]
    elements.append(structure(f1=i32(INT64), f3=i32(0), f4=text("x")))
    footer = structure(f1=i32(1), f2=many(elements), f3=i64(0), f4=many([]))[1]
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"
