"""How far a run may take the model from what it was: its KL divergence from the original model on general text.

With the same budget, methods can be compared: what is measured is how much each has forgotten by the time it has
changed the model's other predictions by so much. The text is held out, as a method holds on to its retain text by
design.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdp_fast.exceptions import DivergedError
from wmdp_fast.models.threads import computing
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.prompts.texts import Text, read_texts
from wmdp_fast.unlearning.batches import num_batches, padded_documents
from wmdp_fast.unlearning.training_config import check_number, check_whole

if TYPE_CHECKING:
    from os import PathLike

    from wmdp_fast._rust import Tokenizer
    from wmdp_fast.unlearning.method import Setup

# Steps between measurements unless told otherwise: what a step may overshoot by is not known before it is done.
EVERY = 5

# Tokens of a piece that a document is cut into, pieces in a batch, and most tokens of a text that are taken.
_PIECE, _BATCH, _MOST = 256, 4, 8192

GENERAL_TEXT = Path(__file__).with_name("general_text.jsonl")
"""Prose on everyday subjects, written for this package."""


@dataclass(frozen=True, kw_only=True)
class BudgetRequest:
    """What the user asked for.

    Attributes:
        max_kl: Most nats per token.
        every: Steps between measurements.
        text: What it is measured on.
    """

    max_kl: float
    every: int
    text: Text

    @property
    def identity(self) -> list[Any]:
        """What two runs must agree in to be the same."""
        return [self.max_kl, self.every, self.text.content_hash]


def budget_request(
    max_kl: float | None, kl_text: str | PathLike[str] | None, kl_every: int | None, *, field: str
) -> BudgetRequest | None:
    """What the user asked for, or None if there is no budget.

    Args:
        max_kl: Most nats per token, or None for no budget.
        kl_text: A file or folder with the text; None is the one of this package.
        kl_every: Steps between measurements; None is `EVERY`.
        field: Key of the text in its records.

    Raises:
        ValueError: A setting is impossible, or has no budget that it is about.
        DataUnavailableError, DatasetError: The text cannot be read.
    """
    if max_kl is None:
        if kl_text is not None or kl_every is not None:
            raise ValueError("kl_text and kl_every are about max_kl, which is not set: how far may the model go?")
        return None
    check_number("max_kl", max_kl)
    every = EVERY if kl_every is None else kl_every
    check_whole("kl_every", every, least=1)
    if kl_text is None:
        # What the user knows it by is no file of theirs.
        [text] = (replace(one, name="general text", files=()) for one in read_texts(GENERAL_TEXT))
    else:
        [text] = read_texts(kl_text, field=field)
    return BudgetRequest(max_kl=max_kl, every=every, text=text)


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
