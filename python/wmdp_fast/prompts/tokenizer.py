"""The Rust tokenizer, from a tokenizer of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast._rust import Tokenizer
from wmdp_fast.exceptions import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"{type(tokenizer).__name__} is not backed by the library tokenizers; load it with use_fast=True, or make"
            " a tokenizer.json of it with transformers.convert_slow_tokenizer"
        )
    return Tokenizer(
        backend.to_str(),
        add_special_tokens=True if add_special_tokens is None else add_special_tokens,
        prefix_token_id=prefix_token_id,
        prefix_text=str(tokenizer.decode(prefix_token_id)),
    )


def prefix_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token before a continuation that has no context, by lm-eval's rule: BOS, else EOS; None with neither."""
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return None if prefix is None else int(prefix)
