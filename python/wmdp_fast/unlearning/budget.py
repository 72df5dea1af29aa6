"""How far a run may take the model from what it was: its KL divergence from the original model on general text.

With the same budget, methods can be compared: what is measured is how much each has forgotten by the time it has
changed the model's other predictions by so much. The text is held out, as a method holds on to its retain text by
design.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdp_fast.exceptions import DivergedError
from wmdp_fast.models.threads import computing
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.unlearning.batches import num_batches, padded_documents

if TYPE_CHECKING:
    from wmdp_fast._rust import Tokenizer
    from wmdp_fast.unlearning.budget_request import BudgetRequest
    from wmdp_fast.unlearning.method import Setup

# Tokens of a piece that a document is cut into, pieces in a batch, and most tokens of a text that are taken.
_PIECE, _BATCH, _MOST = 256, 4, 8192


def budget_tokens(request: BudgetRequest, encoder: Tokenizer) -> CorpusTokens:
    """The text in pieces of at most 256 tokens, and at most 8,192 tokens of it; a document's last piece may be short.

    Args:
        request: What the user asked for.
        encoder: The model's tokenizer as this package's own.

    Raises:
        TokenizerError: A document cannot be tokenized.
        ValueError: There is no document of two tokens, of which one could be predicted.
    """
    pieces: list[list[int]] = []
    left = _MOST
    for document in request.text.documents:
        tokens = encoder.encode(document)[:left]
        # A piece of one token predicts nothing.
        pieces += [piece for at in range(0, len(tokens), _PIECE) if len(piece := tokens[at : at + _PIECE]) > 1]
        left -= len(tokens)
    if not pieces:
        raise ValueError(f"the text {request.text.name} has no document of two tokens or more; max_kl needs some")
    offsets = np.cumsum([0, *map(len, pieces)])
    joined = np.array([token for piece in pieces for token in piece], dtype=np.int64)
    return CorpusTokens(request.text.name, joined, offsets, request.text.content_hash)


class Budget:
    """Measures a run's distance from the original model.

    Args:
        request: What the user asked for.
        tokens: The text.
        setup: The model and what is trained.

    Attributes:
        max_kl: Most nats per token.
        measured: The divergence by step: of each measurement `step` and `kl`.
    """

    def __init__(self, request: BudgetRequest, tokens: CorpusTokens, setup: Setup) -> None:
        self.max_kl, self.measured = request.max_kl, list[dict[str, Any]]()
        self._request, self._tokens, self._setup = request, tokens, setup
        # It imports what loads a model, which whoever has a request only need not.
        from wmdp_fast.unlearning.language_model import LanguageModel

        self._model = LanguageModel(setup)

    def is_due(self, steps: int) -> bool:
        """Whether it is to be measured after so many steps: after the last, too."""
        return steps == self._setup.total_steps or (steps > 0 and steps % self._request.every == 0)

    def measure(self, steps: int) -> float:
        """KL(original || model), the mean over all tokens that are predicted, in nats.

        Args:
            steps: How many have been done.

        Raises:
            DivergedError: It is infinite or NaN.
        """
        total, count, batches = 0.0, 0, self._setup.batches
        with computing(), torch.no_grad():
            for index in range(num_batches(self._tokens, _BATCH)):
                batch = padded_documents(
                    self._tokens,
                    index,
                    batch_size=_BATCH,
                    max_length=_PIECE,
                    pad_id=batches.pad_id,
                    device=batches.device,
                )
                divergences = self._model.kl(batch)
                total += float(divergences.double().sum())
                count += divergences.numel()
        found = total / count
        if not math.isfinite(found):
            raise DivergedError(
                f"after step {steps} the model's divergence from the original is {found:g}; lower the learning rate",
                steps,
            )
        self.measured.append({"step": steps, "kl": found})
        return found

    def is_exceeded(self) -> bool:
        """Whether the last measurement lies above the budget."""
        return bool(self.measured) and self.measured[-1]["kl"] > self.max_kl

    def is_measured(self, steps: int) -> bool:
        """Whether it was measured after so many steps."""
        return bool(self.measured) and self.measured[-1]["step"] == steps

    def why_stopped(self) -> str:
        """Why a run ends whose last measurement lies above the budget."""
        last = self.measured[-1]
        return f"at step {last['step']} with a KL of {last['kl']:.4g} from the original, above max_kl {self.max_kl:g}"

    def to_json(self, best_step: int) -> dict[str, Any]:
        """What `unlearn.json` says of it.

        Args:
            best_step: The step whose weights are saved.
        """
        text = self._request.text
        at_best = [one["kl"] for one in self.measured if one["step"] == best_step]
        return {
            "max_kl": self.max_kl,
            "every": self._request.every,
            "text": {
                "name": text.name,
                "files": list(text.files),
                "content_hash": text.content_hash,
                "tokens": len(self._tokens.tokens),
            },
            "kl": at_best[0] if at_best else 0.0,
            "measured": self.measured,
        }
