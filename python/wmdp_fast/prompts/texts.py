"""Held-out texts: their documents, read from files, and the windows in which a model reads a document that is long.

The windows are those of lm-eval's `loglikelihood_rolling`: disjoint in what they predict, so that every token is scored
once, and each as long as the model reads at once.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast._rust import Requests, read_documents
from wmdp_fast.exceptions import DatasetError, DataUnavailableError, TaskError, TokenizerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from wmdp_fast._rust import Tokenizer

    TextFile = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text to measure perplexity on.

    Attributes:
        name: What results call it: the name of its file or folder, without the extension.
        documents: Its documents in order, after `limit`.
        available: How many there are without `limit`.
        files: The files that they are from; none if they were in memory.
    """

    name: str
    documents: tuple[str, ...] = field(repr=False)
    available: int
    files: tuple[str, ...] = ()

    @property
    def content_hash(self) -> str:
        """SHA-256 over the documents, each after its length in bytes; that of the same documents as a corpus."""
        found = hashlib.sha256(b"wmdp-fast corpus 1\n")
        for document in self.documents:
            encoded = document.encode()
            found.update(len(encoded).to_bytes(8, "little"))
            found.update(encoded)
        return found.hexdigest()


@dataclass(frozen=True)
class Windows:
    """The documents of texts in windows, those of one document after another.

    Attributes:
        contexts: What a window's first token is predicted from: token ids.
        continuations: The tokens that a window predicts.
        documents: For each window its document, counted over all texts.
        tokens: For each document the number of its tokens, all of which are predicted.
    """

    contexts: list[list[int]]
    continuations: list[list[int]]
    documents: list[int]
    tokens: list[int]


@dataclass(frozen=True)
class TextRequests:
    """Texts as a model is to read them.

    Attributes:
        texts: The texts.
        windows: Their documents, cut up.
        requests: Each window as a question with one choice.
    """

    texts: Sequence[Text]
    windows: Windows
    requests: Requests

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows.documents)

    def name_of(self, window: int) -> str:
        """Text and document of a window, for messages."""
        row = self.windows.documents[window]
        for text in self.texts:
            if row < len(text.documents):
                return f"{text.name}, document {row + 1}"
            row -= len(text.documents)
        raise IndexError(f"there is no window {window}")


def read_texts(
    given: TextFile | Sequence[TextFile | Text] | Mapping[str, Sequence[str]],
    *,
    field: str = "text",
    limit: float | None = None,
    taken: Iterable[str] = (),
) -> list[Text]:
    """Reads texts.

    Args:
        given: Files (.jsonl, .parquet, .txt, also with .gz or .zst behind) or folders of such, each of which is a text;
            what was read before; or documents by name.
        field: Key or column that holds a document.
        limit: Only the first documents of each text: a number of them, or, below 1, a share (lm-eval's rule).
        taken: Names that are those of tasks.

    Raises:
        DataUnavailableError: There is no such file, or none in a folder.
        DatasetError: A file holds something else than documents, or these have no characters; names file, row, field.
        TaskError: Two texts, or a text and a task, would have the same name in the results.
    """
    if isinstance(given, Mapping):
        texts = [_in_memory(name, documents) for name, documents in given.items()]
    else:
        listed = [given] if isinstance(given, (str, os.PathLike)) else list(given)
        texts = [one if isinstance(one, Text) else _read(one, field) for one in listed]
    known = set(taken)
    for text in texts:
        if text.name in known:
            raise TaskError(
                f"the text {', '.join(text.files) or text.name} and another text or task would both be {text.name} in"
                " the results; rename the file"
            )
        known.add(text.name)
    return [_first(text, limit) for text in texts]


def windows_of(texts: Sequence[Text], tokenizer: Tokenizer, prefix_token_id: int, max_length: int) -> Windows:
    """Tokenizes documents and cuts them into windows.

    Args:
        texts: The texts.
        tokenizer: Makes the tokens, the special ones of the beginning included where it adds such.
        prefix_token_id: What the first token of a document is predicted from.
        max_length: Maximum sequence length of the model.

    Raises:
        TokenizerError: A document cannot be tokenized; names it.
    """
    found = Windows([], [], [], [])
    for text in texts:
        for row, document in enumerate(text.documents, start=1):
            try:
                tokens = tokenizer.encode(document)
            except TokenizerError as error:
                raise TokenizerError(f"{text.name}, document {row}: {error}") from error
            for context, continuation in rolling_windows(tokens, prefix_token_id, max_length):
                found.contexts.append(context)
                found.continuations.append(continuation)
                found.documents.append(len(found.tokens))
            found.tokens.append(len(tokens))
    return found


def text_requests(texts: Sequence[Text], tokenizer: Tokenizer, prefix_token_id: int, max_length: int) -> TextRequests:
    """Tokenizes texts for a model; arguments and errors are those of `windows_of`."""
    windows = windows_of(texts, tokenizer, prefix_token_id, max_length)
    continuations = [[one] for one in windows.continuations]
    return TextRequests(texts, windows, Requests.from_tokens(windows.contexts, continuations, max_length))


def rolling_windows(tokens: list[int], prefix: int, max_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """The windows of a document as lm-eval cuts it (`get_rolling_token_windows` with `context_len=1`).

    A model reads a window's context and all but the last of the tokens that it predicts: `max_length` tokens. The last
    window of several is filled up with what comes before it, which serves as context only.

    Args:
        tokens: The document's.
        prefix: What its first token is predicted from.
        max_length: Maximum sequence length of the model.

    Yields:
        Context and tokens to predict.
    """
    for begin in range(0, len(tokens), max_length):
        end = min(begin + max_length, len(tokens))
        context = tokens[max(end - max_length - 1, 0) : begin] if begin else [prefix]
        yield context, tokens[begin:end]


def _in_memory(name: str, documents: Sequence[str]) -> Text:
    if isinstance(documents, str) or not all(isinstance(document, str) for document in documents):
        raise TypeError(f"the documents of the text {name!r} must be a list of strings")
    return _checked(Text(name=name, documents=tuple(documents), available=len(documents)))


def _read(given: TextFile, field: str) -> Text:
    from wmdp_fast.data.corpora import find_corpus

    path = Path(given)
    if not path.exists():
        raise DataUnavailableError(f"{path}: no such file or folder; a text is a .jsonl, .parquet or .txt file")
    _, files, _ = find_corpus(path)
    documents = read_documents(list(files), field=field, keep_empty=True)
    return _checked(
        Text(
            name=_stem(path),
            documents=tuple(documents),
            available=len(documents),
            files=tuple(os.fspath(file) for file in files),
        )
    )


def _stem(path: Path) -> str:
    """The name without the extension, and without that of a compressed file."""
    if path.is_dir():
        return path.resolve().name
    inner = path.name.removesuffix(".gz").removesuffix(".zst")
    return Path(inner).stem


def _checked(text: Text) -> Text:
    if not any(text.documents):
        where = ", ".join(text.files) or text.name
        raise DatasetError(where, f"none of its {len(text.documents)} documents has any characters")
    return text


def _first(text: Text, limit: float | None) -> Text:
    if limit is None:
        return text
    wanted = math.ceil(text.available * limit) if limit < 1 else int(limit)
    kept: dict[str, Any] = {**vars(text), "documents": text.documents[:wanted]}
    return text if wanted >= len(text.documents) else _checked(Text(**kept))
