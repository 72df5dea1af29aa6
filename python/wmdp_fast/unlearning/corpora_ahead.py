"""Corpora that Rust reads and tokenizes while Python imports torch, and transformers' code for models.

Only the latter keeps the interpreter busy, and a tokenizer of transformers is there before most of it is imported. What
cannot be begun so is left to the code that reads corpora when they are needed, and so is saying what is wrong with it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast import _rust
from wmdp_fast.checkpoints.read_ahead import folder_here
from wmdp_fast.data.corpora import find_corpus
from wmdp_fast.exceptions import WmdpFastError
from wmdp_fast.models.tokenizer_only import tokenizer_of
from wmdp_fast.prompts.answers import has_answers
from wmdp_fast.prompts.documents import rust_arguments
from wmdp_fast.runtime.garbage import not_collecting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast._rust import EncodedCorpus, Tokenizer
    from wmdp_fast.runtime.clock import PhaseClock
    from wmdp_fast.unlearning.request import Request

    # Paths, and what else `Tokenizer.encode_corpus` takes: max_length, field, raw_lines, min_chars, limit.
    _Arguments = tuple[tuple[Path, ...], tuple[int, str, bool, int, int | None]]


class CorporaAhead:
    """A tokenizer, and the corpora that are being tokenized with it.

    Args:
        tokenizer: The tokenizer.
        folder: The folder of the model whose tokenizer it is; None if it was given.
        wanted: What will be asked for.

    Raises:
        TokenizerError: No library that is known here stands behind the tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path | None, wanted: Sequence[_Arguments]) -> None:
        self._folder = folder
        self.tokenizer = tokenizer
        self._places = {arguments: place for place, arguments in enumerate(wanted)}
        made_of = rust_arguments(tokenizer)
        corpora = [(list(paths), *how) for paths, how in wanted]
        self._rust = _rust.CorporaAhead(**made_of, corpora=corpora)
        self._encoder: Tokenizer | None = None

    def tokenizer_in(self, folder: Path) -> PreTrainedTokenizerBase | None:
        """The tokenizer, if it is that of a model in this folder."""
        return self.tokenizer if self._folder == folder else None

    def encoder(self) -> Tokenizer:
        """The tokenizer as this package's own: waits for it.

        Raises:
            TokenizerError: It cannot be loaded.
        """
        if self._encoder is None:
            self._encoder = self._rust.tokenizer()
        return self._encoder

    def take(
        self,
        paths: Sequence[Path],
        *,
        max_length: int,
        field: str,
        raw_lines: bool,
        min_chars: int,
        limit: int | None,
    ) -> EncodedCorpus | None:
        """What `Tokenizer.encode_corpus` returns for these arguments, once; None if they were not begun.

        Raises:
            DatasetError, OSError, TokenizerError, ValueError: As that does.
        """
        place = self._places.pop((tuple(paths), (max_length, field, raw_lines, min_chars, limit)), None)
        return None if place is None else self._rust.take(place)

    def stop(self) -> None:
        """What is not finished will not be needed."""
        self._rust.stop()


@contextmanager
def corpora_ahead(
    request: Request,
    model: str | PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    clock: PhaseClock,
    *,
    revision: str | None,
    trust_remote_code: bool,
) -> Iterator[CorporaAhead | None]:
    """Inside, the corpora of a run are being read and tokenized; at the end that stops.

    Only what is on this machine is read: no hub is asked, neither for a model nor for a corpus.

    Args:
        request: What the user asked for, checked.
        model: A folder, a name on the hub, or a model in memory.
        tokenizer: Its tokenizer, if it is not the folder's own.
        clock: Adds up seconds by phase.
        revision: Of the model on the hub.
        trust_remote_code: Whether code that comes with the model may run.

    Yields:
        None if nothing was begun.
    """
    ahead = None
    if isinstance(model, (str, os.PathLike)) and (wanted := _wanted(request)):
        with clock("import"), not_collecting():
            from transformers import AutoTokenizer  # noqa: F401 (takes seconds, so it is timed)
        # That imports half of transformers and of torch.distributed.
        with clock("corpora"), not_collecting():
            ahead = _begun(model, tokenizer, wanted, revision=revision, trust_remote_code=trust_remote_code)
    try:
        yield ahead
    finally:
        if ahead is not None:
            ahead.stop()


def _wanted(request: Request) -> list[_Arguments]:
    """Those corpora of documents that are on this machine, each with the arguments that it will be asked for with."""
    config = request.config
    found: list[_Arguments] = []
    for corpus, max_length, raw_lines in request.files_read:
        try:
            _, files, _ = find_corpus(corpus, data=request.data, offline=True)
            if raw_lines or not has_answers(files, config.field):
                how = (max_length, config.field, raw_lines, config.min_chars, request.documents_read)
                found.append((files, how))
        except (WmdpFastError, OSError, ValueError):
            continue
    return found


def _begun(
    model: str | PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None,
    wanted: Sequence[_Arguments],
    *,
    revision: str | None,
    trust_remote_code: bool,
) -> CorporaAhead | None:
    try:
        if tokenizer is not None:
            return CorporaAhead(tokenizer, None, wanted)
        folder = folder_here(model, revision)
        if folder is None:
            return None
        # Of the hub's cache it is that of a commit.
        commit = None if Path(model).expanduser().is_dir() else folder.name
        found = tokenizer_of(os.fspath(model), folder, commit, trust_remote_code=trust_remote_code)
        return None if found is None else CorporaAhead(found, folder, wanted)
    except (WmdpFastError, OSError):
        return None
