"""The Rust tokenizer, from a tokenizer of transformers."""

from __future__ import annotations

import operator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from wmdp_fast._rust import Tokenizer
from wmdp_fast.exceptions import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.tasks.resolve import Selection


class ReadsTokens(Protocol):
    """What its prompts are tokenized by, of a model that is loaded, served or not there at all."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer of transformers, or None if its server tokenizes."""

    @property
    def prefix_token_id(self) -> int | None:
        """Token that stands for an empty context; None without a tokenizer."""

    @property
    def max_length(self) -> int | None:
        """Maximum sequence length of the model, or None if nobody said."""

    @property
    def model_type(self) -> str:
        """Transformers' name for its architecture; empty if it has none, or is served."""


def load_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, prefix_token_id: int, add_special_tokens: bool | None = None
) -> Tokenizer:
    """The Rust tokenizer that does what a transformers tokenizer does.

    Args:
        tokenizer: A tokenizer of transformers that the library `tokenizers` stands behind.
        prefix_token_id: Token in front of a continuation that has no context; see the function of that name.
        add_special_tokens: Whether texts get the tokenizer's special tokens; None leaves it to the tokenizer, which
            adds them if it has any.

    Raises:
        TokenizerError: It is another kind of tokenizer.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from wmdp_fast import demo, load_tokenizer
        >>> theirs = AutoTokenizer.from_pretrained(demo.model_path())
        >>> ours = load_tokenizer(theirs, prefix_token_id=0)
        >>> ours.encode("Which lantern is lit?") == theirs("Which lantern is lit?")["input_ids"]
        True
    """
    return Tokenizer(**tokenizer_arguments(tokenizer, prefix_token_id, add_special_tokens))


def tokenizer_arguments(
    tokenizer: PreTrainedTokenizerBase, prefix_token_id: int, add_special_tokens: bool | None = None
) -> dict[str, Any]:
    """All that the Rust tokenizer is made of: where these are equal, so are all tokens.

    Arguments and errors are those of `load_tokenizer`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"{type(tokenizer).__name__} is not backed by the library tokenizers; load it with use_fast=True, or make"
            " a tokenizer.json of it with transformers.convert_slow_tokenizer"
        )
    return {
        "json": backend.to_str(),
        "add_special_tokens": True if add_special_tokens is None else add_special_tokens,
        "prefix_token_id": prefix_token_id,
        "prefix_text": str(tokenizer.decode(prefix_token_id)),
    }


def prefix_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token before a continuation that has no context, by lm-eval's rule: BOS, else EOS; None with neither."""
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return None if prefix is None else int(prefix)


class BackgroundTokenizer:
    """The Rust tokenizer, loaded and put to work on a thread while libraries are imported and weights are read."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._begun: Future[Tokenizer] | None = None
        self._made_of: dict[str, Any] = {}
        self._made_for: tuple[object, ...] = ()
        self._ahead: Future[Requests] | None = None
        self._asked: tuple[list[Prompts], int] | None = None

    def begin(self, model: ReadsTokens, prompts: Sequence[Prompts], max_length: int) -> None:
        """Begins to load it, and to tokenize prompts with it, on a thread; both take little of Python's time.

        For the next of several models nothing begins whose outcome would be the same.
        """
        if self._begun is not None and not self._fits(model):
            self._begun = self._ahead = None
        if model.tokenizer is None or model.prefix_token_id is None:
            return
        threads = ThreadPoolExecutor(max_workers=1)
        if self._begun is None:
            self._begun = threads.submit(self._load, model.tokenizer, model.prefix_token_id, model.model_type)
        if prompts and not (self._ahead is not None and self._is_asked(prompts, max_length)):
            self._asked = list(prompts), max_length
            begun = self._begun
            self._ahead = threads.submit(lambda: begun.result().encode_requests(prompts, max_length))
        threads.shutdown(wait=False)

    def of(self, model: ReadsTokens) -> Tokenizer:
        """That of a model, which has one: waits for it, or loads it now.

        Raises:
            TokenizerError: As `load_tokenizer`.
            ValueError: The model has no tokenizer, or this one neither BOS nor EOS.
        """
        if self._begun is not None:
            return self._begun.result()
        if model.tokenizer is None or model.prefix_token_id is None:
            raise ValueError("without a tokenizer that has BOS or EOS there are no tokens")
        return self._load(model.tokenizer, model.prefix_token_id, model.model_type)

    def encoded(self, model: ReadsTokens, prompts: Sequence[Prompts], max_length: int) -> Requests:
        """Prompts as tokens, of at most `max_length` each: waits for those that were begun, or makes them now.

        Raises:
            TokenizerError, ValueError: As `of` and `Tokenizer.encode_requests`.
        """
        if self._ahead is not None and self._is_asked(prompts, max_length):
            return self._ahead.result()
        return self.of(model).encode_requests(prompts, max_length)

    def _is_asked(self, prompts: Sequence[Prompts], max_length: int) -> bool:
        begun, length = self._asked or ([], 0)
        return length == max_length and len(begun) == len(prompts) and all(map(operator.is_, begun, prompts))

    def _fits(self, model: ReadsTokens) -> bool:
        """Whether the tokenizer that was loaded is another model's too."""
        if self._begun is None or self._begun.exception() is not None:
            return False
        if model.tokenizer is None or model.prefix_token_id is None:
            return False
        special = self._selection.compat.add_special_tokens(model.model_type)
        # Of the very same tokenizer nothing needs to be written down and compared, which takes longer than tokenizing.
        if self._made_for == (model.tokenizer, model.prefix_token_id, special):
            return True
        return tokenizer_arguments(model.tokenizer, model.prefix_token_id, special) == self._made_of

    def _load(self, tokenizer: PreTrainedTokenizerBase, prefix_token_id: int, model_type: str) -> Tokenizer:
        special = self._selection.compat.add_special_tokens(model_type)
        self._made_of = tokenizer_arguments(tokenizer, prefix_token_id, special)
        self._made_for = tokenizer, prefix_token_id, special
        return Tokenizer(**self._made_of)
