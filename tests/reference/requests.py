"""lm-eval's rules for tokens, written out: `TemplateLM.loglikelihood`, `_encode_pair` and `HFLM.tok_encode`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LmEvalTokenizer:
    """A transformers tokenizer with lm-eval's choice of special tokens."""

    tokenizer: PreTrainedTokenizerBase
    prefix_token_id: int
    add_special_tokens: bool = True

    def encode(self, text: str) -> list[int]:
        has_prefix = text.startswith(self.tokenizer.decode(self.prefix_token_id))
        special = self.add_special_tokens and not has_prefix
        return list(self.tokenizer.encode(text, add_special_tokens=special))

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context == "":
            ids = list(self.tokenizer.encode(continuation, add_special_tokens=False))
            if ids and ids[0] == self.prefix_token_id:
                return ids[:1], ids[1:]
            return [self.prefix_token_id], ids
        spaces = len(context) - len(context.rstrip())
        if spaces > 0:
            continuation = context[-spaces:] + continuation
            context = context[:-spaces]
        whole = self.encode(context + continuation)
        ids = self.encode(context)
        return ids, whole[len(ids) :]
