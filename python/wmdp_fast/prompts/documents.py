"""Documents as tokens: the forget and retain corpora of unlearning, from files or from the public corpora by name.

A file is read as its extension says, also with .gz or .zst behind it:

    .jsonl     on a line an object with the text under `field`, or a string, which is the text
    .parquet   the column `field`
    .txt       the file is one document

Records with `prompt` and `response` in place of the text are prompts with their responses, see `answers`.

With `raw_lines` every line of a .jsonl or .txt file as it stands is a document, line end included. So the original RMU
read every .jsonl corpus but the bio forget corpus, JSON syntax and all, and its published numbers come from such text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wmdp_fast._rust import Tokenizer
from wmdp_fast.data.corpora import find_corpus
from wmdp_fast.prompts.answers import encode_answers, has_answers, read_answers
from wmdp_fast.prompts.tokenizer import prefix_token_id, tokenizer_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import EncodedCorpus


CorpusKind = Literal["documents", "answers"]


@dataclass(frozen=True, eq=False)
class CorpusTokens:
    """The documents of a corpus as token ids, in the corpus's order, each cut to the length that was asked for.

    Attributes:
        name: What the user called the corpus: a path or a name on the hub.
        tokens: int64 [N], all documents' ids one after another, special tokens included.
        offsets: int64 [documents + 1]; document i is `tokens[offsets[i]:offsets[i + 1]]`.
        content_hash: SHA-256 over the texts read, for the record of a run.
        revision: Commit of the dataset on the hub if the corpus is from there, else None.
        prompt_lengths: Of a corpus of prompts with their responses int64 [documents], how many tokens of each are its
            prompt, which count in no loss; None of documents.
    """

    name: str
    tokens: NDArray[np.int64]
    offsets: NDArray[np.int64]
    content_hash: str
    revision: str | None = None
    prompt_lengths: NDArray[np.int64] | None = None

    @property
    def kind(self) -> CorpusKind:
        """Whether it is documents, or prompts with their responses."""
        return "documents" if self.prompt_lengths is None else "answers"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> NDArray[np.int64]:
        """The ids of one document: int64 [length]."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


# A corpus as a user names it: a file or a name that `load_corpus` knows, or its tokens.
Corpus = str | os.PathLike[str] | CorpusTokens


def load_corpus(
    spec: str | PathLike[str] | Sequence[str | PathLike[str]],
    tokenizer: PreTrainedTokenizerBase | Tokenizer,
    *,
    max_length: int,
    num_documents: int | None = None,
    min_chars: int = 0,
    raw_lines: bool = False,
    field: str = "text",
    chat_template: bool = False,
    data: str | PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    encoder: Callable[[], Tokenizer] | None = None,
    ahead: Callable[..., EncodedCorpus | None] | None = None,
) -> CorpusTokens:
    """Reads and tokenizes a corpus.

    Reading ends with the last document that is wanted. Tokens are those that transformers gives with `truncation=True`:
    the tokenizer's special tokens stay, too long a text loses its end.

    Args:
        spec: A name of `CORPORA`; else a file, a folder of files, or a list of files, which are read in that order (a
            folder's by name). A name that is also a path means the corpus; write `./name` for the path.
        tokenizer: A tokenizer of transformers backed by the library tokenizers, or this package's own.
        max_length: Maximum tokens of a document, special tokens included.
        num_documents: Most documents to read; None reads all.
        min_chars: Documents of no more characters than this are left out.
        raw_lines: Whether each line of a .jsonl or .txt file as it stands is a document.
        field: Key or column that holds the text.
        chat_template: Whether prompts of a corpus of prompts and responses go through the tokenizer's chat template.
        data: Folder to use in place of the hub for corpora by name, laid out as `wmdp_fast.data.locate` says.
        revision: Commit, tag or branch of the hub's dataset in place of the pinned one.
        offline: Whether to use only what is cached. None does as `HF_HUB_OFFLINE` says.
        encoder: Gives `tokenizer` as this package's own, for a caller that reads several corpora with it; loading a
            large one takes seconds. None loads it.
        ahead: Takes the arguments of `Tokenizer.encode_corpus`, and gives what that would return if it was begun ahead
            with this tokenizer, else None.

    Raises:
        DataUnavailableError: The corpus is missing, gated or out of reach; says what to do.
        DatasetError: A file holds something else than documents, or than prompts with responses, or there are none;
            names file, row and field.
        TemplateError: Prompts are to go through a chat template, which the tokenizer does not have or which fails.
        TokenizerError: The tokenizer is of another kind, or fails on a text.
        ValueError: `max_length` leaves no room for text, `num_documents` is 0, or the tokens take more than 4 GiB.
    """
    name, files, commit = find_corpus(spec, data=data, revision=revision, offline=offline)
    rust = rust_tokenizer(tokenizer) if encoder is None else encoder()
    if not raw_lines and has_answers(files, field):
        if chat_template and isinstance(tokenizer, Tokenizer):
            raise ValueError("a chat template is the tokenizer's of transformers: pass that one")
        answers = read_answers(files, min_chars=min_chars, limit=num_documents)
        chat = tokenizer if chat_template and not isinstance(tokenizer, Tokenizer) else None
        found = encode_answers(answers, rust.encode, max_length=max_length, chat=chat)
        return CorpusTokens(name, found.tokens, found.offsets, found.content_hash, commit, found.prompt_lengths)
    options: dict[str, Any] = {
        "max_length": max_length,
        "field": field,
        "raw_lines": raw_lines,
        "min_chars": min_chars,
        "limit": num_documents,
    }
    encoded = None if ahead is None else ahead(files, **options)
    if encoded is None:
        encoded = rust.encode_corpus(list(files), **options)
    return CorpusTokens(name, encoded.tokens, encoded.offsets, encoded.content_hash, commit)


def rust_tokenizer(tokenizer: PreTrainedTokenizerBase | Tokenizer) -> Tokenizer:
    """A tokenizer of transformers as this package's own, which also makes the special tokens that it makes.

    Raises:
        TokenizerError: It is another kind of tokenizer.
    """
    return tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(**rust_arguments(tokenizer))


def rust_arguments(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What `rust_tokenizer` makes this package's own tokenizer of: arguments of `Tokenizer`.

    Raises:
        TokenizerError: As `rust_tokenizer`.
    """
    # The token in front of a continuation without a context; a corpus has neither.
    return tokenizer_arguments(tokenizer, prefix_token_id(tokenizer) or 0)
