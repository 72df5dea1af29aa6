"""How far a model is from its base on a text, and how well it predicts it.

The divergence is KL(base || model) of each predicted token over the whole vocabulary, the finest measure of what
unlearning has done to everything else. Windows and tokens are those of perplexity (`prompts.texts`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.head import head_of
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.logits import forward_without_cache
from wmdp_fast.models.threads import computing
from wmdp_fast.prompts.texts import text_requests
from wmdp_fast.prompts.tokenizer import BackgroundTokenizer
from wmdp_fast.results.by_document import ratio
from wmdp_fast.results.perplexity import text_results
from wmdp_fast.robustness.retained.measure import Figure, RetainedMeasure
from wmdp_fast.scoring.rolling import score_windows
from wmdp_fast.tasks.resolve import without_tasks
from wmdp_fast.unlearning.token_losses import kl_divergences

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from wmdp_fast.prompts.texts import Text, TextRequests
    from wmdp_fast.robustness.subject import Role, Subject
    from wmdp_fast.scoring.local import LocalModel

    # From token ids [1, T] to what `Logits` takes, [T, ...].
    States = Callable[[Tensor], Tensor]
    # From some rows of states to logits [R, V].
    Logits = Callable[[Tensor], Tensor]

# Rows of logits at a time: with 128,000 words in the vocabulary, 64 MiB of them.
_ROWS = 128


@dataclass(frozen=True)
class Distance(RetainedMeasure):
    """Perplexity of a text and, of a model that has a base, its divergence from the base there.

    Attributes:
        text: The text.
    """

    kind: ClassVar[str] = "distance"
    text: Text

    @property
    def name(self) -> str:
        """The text's name."""
        return self.text.name

    def identity(self) -> dict[str, Any]:
        """The hash of the text."""
        return {"text": self.text.content_hash}

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Reads the text with the model, and with its base."""
        model = subject.model
        asked = _requests(self.text, model)
        scores = score_windows(model.loaded, asked.requests, token_budget=model.options.token_budget)
        documents = text_results(asked, scores.loglikelihood)[self.text.name].documents
        found = {
            "loglikelihood": documents.loglikelihood.tolist(),
            **{size: getattr(documents, size).tolist() for size in ("words", "bytes", "tokens")},
        }
        if subject.original is not None:
            try:
                found["kl"] = divergences(model, subject.once("original", subject.original), self.text)
            except ModelError as error:
                found["no_kl"] = str(error)
        return found


def figures(name: str, role: Role, found: Mapping[str, Any] | None, why: str) -> list[Figure]:
    """Perplexity by token, and nats a token between the model and its base."""
    perplexity, kl = f"perplexity, {name}", f"KL from the base, {name}"
    if role != "unlearned":
        reason = "it is the base" if role == "base" else "it is not made of the base"
        distance = Figure(title=kl, value=None, text="n/a", why=reason)
    elif found is not None and "kl" not in found:
        distance = Figure(title=kl, value=None, why=found.get("no_kl", "there is no base: pass --base"))
    elif found is not None:
        value, low, high = ratio(found["kl"], found["tokens"])
        bound = None if low is None else max(0.0, low)
        distance = Figure(title=kl, value=value, low=bound, high=high, n=len(found["tokens"]), unit="nats")
    else:
        distance = Figure(title=kl, value=None, why=why)
    if found is None:
        return [Figure(title=perplexity, value=None, why=why), distance]
    nats = ratio([-one for one in found["loglikelihood"]], found["tokens"])
    return [Figure.perplexity(perplexity, nats, len(found["tokens"])), distance]


def divergences(model: LocalModel, base: LocalModel, text: Text) -> list[float]:
    """KL(base || model) summed over the tokens of each document, in nats.

    Raises:
        ModelError: They have other tokens, or give no numbers.
    """
    asked = _requests(text, model)
    windows, theirs = asked.windows, _requests(text, base).windows
    if (windows.contexts, windows.continuations) != (theirs.contexts, theirs.continuations):
        raise ModelError(f"{model.name} and {base.name} make other tokens of {text.name}, so that none can be compared")
    sums = [0.0] * len(windows.tokens)
    with evaluation_mode(model.loaded.model), evaluation_mode(base.loaded.model), computing(), torch.no_grad():
        ours, original = _parts(model), _parts(base)
        for context, continuation, document in zip(
            windows.contexts, windows.continuations, windows.documents, strict=True
        ):
            row = [*context, *continuation][:-1]
            sums[document] += _of_window(ours, original, row, len(continuation))
    if not all(map(math.isfinite, sums)):
        raise ModelError(f"the divergence of {model.name} from {base.name} on {text.name} is no number")
    return sums


def _of_window(
    ours: tuple[States, Logits, torch.device], theirs: tuple[States, Logits, torch.device], row: list[int], count: int
) -> float:
    """The sum over the last tokens of a window."""
    (states, logits, device), (their_states, their_logits, their_device) = ours, theirs
    hidden = states(torch.tensor([row], device=device))[-count:]
    original = their_states(torch.tensor([row], device=their_device))[-count:]

    def before(at: slice) -> Tensor:
        return their_logits(original[at]).to(device)

    if logits(hidden[:1]).shape != before(slice(0, 1)).shape:
        raise ModelError("the base has another vocabulary")
    return float(kl_divergences(logits, hidden, before, rows=_ROWS).double().sum())


def _parts(model: LocalModel) -> tuple[States, Logits, torch.device]:
    """What gives a model's last hidden states, and what makes logits of them; or its logits, and nothing."""
    network, device = model.loaded.model, model.loaded.device
    head = head_of(network, device)
    if head is None:
        # Virtual tokens of an adapter stand in front; the window's own are at the end either way.
        return lambda ids: forward_without_cache(network, ids).logits[0], lambda states: states, device
    return lambda ids: head.hidden(ids)[0], head.logits, device


def _requests(text: Text, model: LocalModel) -> TextRequests:
    tokenizer = BackgroundTokenizer(without_tasks()).of(model)
    return text_requests([text], tokenizer, model.prefix_token_id, model.max_length)
