"""Corpora of prompts and responses: records with `prompt` and `response` in place of a document's text.

They are read as documents are, from .jsonl and .parquet files, also with .gz or .zst behind, one column after the
other. A loss is of the response alone, so it matters where that begins: prompt and response are tokenized as one text,
and the response begins with the first token that the prompt by itself does not have there.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wmdp_fast._rust import read_documents
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.prompts.chat import conversation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

PROMPT, RESPONSE = "prompt", "response"

_HASH_HEADER = b"wmdp-fast prompts and responses 1\n"


@dataclass(frozen=True)
class Answer:
    """A record.

    Attributes:
        file: The file it is from.
        row: Its row, from 1.
        prompt: What is said to the model.
        response: What the model says.
    """

    file: Path
    row: int
    prompt: str
    response: str

    @property
    def joined(self) -> str:
        """Both as one text, with a space between unless there is white space where they meet."""
        touching = self.prompt[-1].isspace() or self.response[0].isspace()
        return self.prompt + ("" if touching else " ") + self.response


@dataclass(frozen=True, eq=False)
class EncodedAnswers:
    """Prompts with their responses as token ids.

    Attributes:
        tokens: int64 [N], one after another, special tokens included.
        offsets: int64 [records + 1].
        prompt_lengths: int64 [records], how many tokens of each are its prompt.
        content_hash: SHA-256 over the texts.
    """

    tokens: NDArray[np.int64]
    offsets: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]
    content_hash: str


def has_answers(files: Sequence[Path], field: str) -> bool:
    """Whether the first record of the first file is a prompt with a response; one that also has a text is a document.

    Args:
        files: Of the corpus.
        field: Key or column of a document's text.
    """
    first = list(files[:1])

    def has(name: str) -> bool:
        try:
            return bool(read_documents(first, field=name, keep_empty=True, limit=1))
        except DatasetError:
            # What is wrong is said when the corpus is read as what it then is taken for.
            return False

    return not has(field) and has(PROMPT) and has(RESPONSE)


def read_answers(files: Sequence[Path], *, min_chars: int = 0, limit: int | None = None) -> list[Answer]:
    """Reads prompts and responses.

    Args:
        files: In this order.
        min_chars: Records of no more characters in prompt and response together are left out.
        limit: Most records to read; None reads all.

    Raises:
        DatasetError: A record lacks one of the two, or one is empty, or nothing is left; names file, row and field.
    """
    found: list[Answer] = []
    for file in files:
        wanted = None if limit is None else limit - len(found)
        if wanted == 0:
            break
        # Which records are left out depends on both columns.
        ahead = None if min_chars else wanted
        columns = [read_documents([file], field=name, keep_empty=True, limit=ahead) for name in (PROMPT, RESPONSE)]
        for row, (prompt, response) in enumerate(zip(*columns, strict=True), 1):
            _check(file, row, prompt, response)
            if len(prompt) + len(response) > min_chars and (wanted is None or len(found) < (limit or 0)):
                found.append(Answer(file, row, prompt, response))
    if not found:
        raise DatasetError(os.fspath(files[0]), f"no prompt with its response has more than {min_chars} characters")
    return found


def encode_answers(
    answers: Sequence[Answer],
    encode: Callable[[str], list[int]],
    *,
    max_length: int,
    chat: PreTrainedTokenizerBase | None = None,
) -> EncodedAnswers:
    """Tokenizes prompts with their responses; what is too long loses its end.

    Args:
        answers: The records.
        encode: Makes tokens of a text, special ones included where they are due.
        max_length: Maximum tokens of a record.
        chat: A tokenizer of transformers whose chat template the prompts go through, the response following where the
            assistant speaks; None takes them as they are.

    Raises:
        DatasetError: A prompt leaves no room for a token of its response; names file and row.
        TemplateError: The tokenizer has no chat template, or the template fails or leaves a prompt out.
    """
    tokens: list[int] = []
    offsets, lengths = [0], []
    digest = hashlib.sha256(_HASH_HEADER)
    for one in answers:
        for text in (one.prompt, one.response):
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        if chat is None:
            before, whole = encode(one.prompt), encode(one.joined)
        else:
            [context] = conversation(chat, [("user", one.prompt)]).contexts
            before, whole = encode(context), encode(context + one.response)
        same = next(_differences(before, whole), min(len(before), len(whole)))
        whole = whole[:max_length]
        if same >= len(whole):
            raise DatasetError(
                os.fspath(one.file),
                f"its {same} tokens leave no room for the response in {max_length}; raise the maximal length, or leave"
                " the record out",
                one.row,
                PROMPT,
            )
        tokens += whole
        offsets.append(len(tokens))
        lengths.append(same)
    return EncodedAnswers(
        np.array(tokens, dtype=np.int64),
        np.array(offsets, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        digest.hexdigest(),
    )


def _differences(first: Sequence[int], second: Sequence[int]) -> Iterator[int]:
    """The places where two lists differ."""
    return (at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)


def _check(file: Path, row: int, prompt: str, response: str) -> None:
    for name, text in ((PROMPT, prompt), (RESPONSE, response)):
        if not text.strip():
            raise DatasetError(os.fspath(file), "is empty", row, name)
    if prompt == response:
        # A line that is a string and no object is read as both.
        problem = "is the same text as the prompt; a record is an object with the keys `prompt` and `response`"
        raise DatasetError(os.fspath(file), problem, row, RESPONSE)
