"""What ELM trains towards: computed once with the original model, then kept as a few numbers a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

# A probability below this changes no loss in float32, so it is not kept.
LEAST = 1e-8

# Rows of logits in float64 at a time.
_ROWS = 128


@dataclass(frozen=True)
class Softened:
    """Targets over a few tokens for each of N tokens of a document.

    Attributes:
        tokens: Token ids, int32 [M], those of the first token before those of the second.
        shares: Their probabilities, float32 [M].
        kept: How many there are of each, uint8 [N].
    """

    tokens: Tensor
    shares: Tensor
    kept: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Softened]) -> Softened:
        """Several, one after the other."""
        return cls(*(torch.cat([getattr(one, name) for one in parts]) for name in ("tokens", "shares", "kept")))

    def split(self, sizes: Sequence[int]) -> list[Softened]:
        """Undoes `joined`, for documents of so many tokens."""
        entries = [int(one.sum()) for one in torch.split(self.kept, list(sizes))]
        columns = (
            torch.split(self.tokens, entries),
            torch.split(self.shares, entries),
            torch.split(self.kept, list(sizes)),
        )
        return [Softened(*one) for one in zip(*columns, strict=True)]

    def rows(self) -> tuple[Tensor, Tensor]:
        """Token ids, int64 [N, K], and probabilities, float32 [N, K], 0 where there are fewer than K."""
        counts = self.kept.tolist()
        tokens, shares = (
            pad_sequence(list(torch.split(one, counts)), batch_first=True) for one in (self.tokens, self.shares)
        )
        return tokens.long(), shares


@dataclass(frozen=True)
class Steering:
    """How targets differ from what the original model says.

    Attributes:
        eta: At the end of a document.
        top_k: Tokens that a target has.
        temperature: What logits are divided by.
    """

    eta: float
    top_k: int
    temperature: float

    def strengths(self, length: int) -> Tensor:
        """Eta at each of a document's tokens that predict another one, float64 [length - 1]."""
        return torch.linspace(1.0, self.eta, length, dtype=torch.float64, device="cpu")[:-1]

    def targets(
        self, logits: Callable[[Tensor], Tensor], own: Tensor, expert: Tensor, novice: Tensor, strengths: Tensor
    ) -> Softened:
        """The targets of N tokens.

        Args:
            logits: From hidden states to logits.
            own: Hidden states of the original model that predict them, `[N, d]`.
            expert: The same after the expert's prefix.
            novice: The same after the novice's prefix.
            strengths: eta of each, float64 `[N]`.
        """
        found = []
        for at in _parts(len(own)):
            before, skilled, unskilled = (self._log_probabilities(logits(one[at])) for one in (own, expert, novice))
            steered = before - strengths[at, None].to(before.device) * (skilled - unskilled)
            top = steered.topk(min(self.top_k, steered.shape[1]), dim=1)
            shares = top.values.softmax(dim=1).float().cpu()
            kept = shares >= LEAST
            tokens = top.indices.to(torch.int32).cpu()
            found.append(Softened(tokens[kept], shares[kept], kept.sum(dim=1).to(torch.uint8)))
        return Softened.joined(found)

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        return (logits.double() / self.temperature).log_softmax(dim=1)


def likeliest(logits: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """The likeliest token of each of N rows of hidden states, int32 [N] on the CPU."""
    return torch.cat([logits(hidden[at]).argmax(dim=1).to(torch.int32) for at in _parts(len(hidden))]).cpu()


def _parts(count: int) -> Iterator[slice]:
    return (slice(begin, begin + _ROWS) for begin in range(0, count, _ROWS))
