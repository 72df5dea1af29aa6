"""Files as they were before gzip or zstandard, by Python's own means."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from pathlib import Path

FAULTS = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""What damaged files raise."""


def decompressed(path: Path) -> tuple[str, bytes]:
    """A file's name in lower case without `.gz` or `.zst`, and what was compressed, or the file as it is."""
    name, content = path.name.lower(), path.read_bytes()
    if name.endswith(".gz"):
        return name.removesuffix(".gz"), gzip.decompress(content)
    if name.endswith(".zst"):
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True) as reader:
            return name.removesuffix(".zst"), reader.read()
    return name, content
