"""Greedy coordinate gradient: which token in which place of a text would lower a loss, and whether it does.

Zou et al. 2023, arXiv:2307.15043. The loss is that of the right choice among a question's choices, a mean over
questions. Its gradient by the one-hot vectors of a text's tokens tells, to first order, what each token of the
vocabulary would do in each place. Some of the best are tried, one place at a time, and the best of these stands.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdp_fast._rust import Requests
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.logits import forward_without_cache
from wmdp_fast.models.threads import computing
from wmdp_fast.robustness.insertion import answers_of
from wmdp_fast.robustness.questions import scored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from wmdp_fast.robustness.insertion import Insertion, Places
    from wmdp_fast.robustness.subject import Subject

# Tokens of the vocabulary whose embeddings are multiplied at once.
_PART = 16384


def embeddings_of(subject: Subject) -> Any:
    """The module that makes vectors of tokens.

    Raises:
        ModelError: The model has none.
    """
    network: Any = subject.network
    found = network.get_input_embeddings()
    if found is None or getattr(found, "weight", None) is None:
        raise ModelError(f"{subject.model.name} has no embeddings of tokens")
    return found


def coordinate_gradient(subject: Subject, places: Places, tokens: Sequence[int], questions: Sequence[int]) -> Tensor:
    """The gradient of the mean loss of some questions by the one-hot vectors of a text's tokens.

    Args:
        subject: The model.
        places: Where the text stands.
        tokens: The text's, `[n]`.
        questions: Numbers of the questions.

    Returns:
        float32 `[n, V]` on the CPU: for a small share of a token in a place what it adds to the loss.
    """
    embeddings = embeddings_of(subject)
    with evaluation_mode(subject.network), computing():
        with torch.enable_grad(), _kept_output(embeddings) as kept:
            losses, rows = _losses(subject, places, tokens, questions)
            [by_vector] = torch.autograd.grad(losses.mean(), [kept[0]])
        at_text = torch.zeros(len(tokens), by_vector.shape[-1], device=by_vector.device)
        for row, question in enumerate(rows):
            start = len(places.heads[question])
            at_text += by_vector[row, start : start + len(tokens)].float()
        # By what the module returns and not by its weights: some scale them.
        every = torch.arange(embeddings.weight.shape[0], device=at_text.device)
        return torch.cat([at_text @ embeddings(part).float().T for part in torch.split(every, _PART)], dim=1).cpu()


@contextmanager
def _kept_output(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, what a module returns begins a graph, and is in the list."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = module.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def _losses(
    subject: Subject, places: Places, tokens: Sequence[int], questions: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """The loss of each question `[Q]`, and of each row of the batch whose it is."""
    inputs: dict[tuple[int, ...], int] = {}
    rows: list[int] = []
    read: list[tuple[int, int, list[int]]] = []
    for question in questions:
        row = places.row(question, tokens)
        for answer in places.answers[question]:
            # Choices of one token are all read off the same row.
            key = (question, *row, *answer[:-1])
            if key not in inputs:
                inputs[key] = len(rows)
                rows.append(question)
            read.append((inputs[key], len(row) - 1, answer))
    # What is behind a row does not reach it: attention is causal.
    padded = torch.zeros(len(rows), max(map(len, inputs)) - 1, dtype=torch.long)
    for key, place in inputs.items():
        padded[place, : len(key) - 1] = torch.tensor(key[1:])
    logits = forward_without_cache(subject.network, padded.to(subject.model.loaded.device)).logits
    scores = []
    for place, first, answer in read:
        predicted = logits[place, first : first + len(answer)].float().log_softmax(dim=-1)
        scores.append(predicted.gather(1, torch.tensor(answer, device=logits.device)[:, None]).sum())
    counts = [len(places.answers[question]) for question in questions]
    gold = subject.questions.gold[list(questions)].tolist()
    losses = [
        -of.log_softmax(dim=0)[right] for of, right in zip(torch.split(torch.stack(scores), counts), gold, strict=True)
    ]
    return torch.stack(losses), rows


def candidates(
    gradient: Tensor,
    tokens: Sequence[int],
    allowed: NDArray[np.bool_],
    top_k: int,
    count: int,
    rng: np.random.Generator,
) -> list[tuple[int, ...]]:
    """Texts that differ in one token from one: any place, and any of the tokens of the steepest descent there.

    Args:
        gradient: As `coordinate_gradient` gives it, `[n, V]`.
        tokens: The text's, `[n]`.
        allowed: Which tokens may be taken, `[V]`.
        top_k: How many tokens are drawn from in each place.
        count: How many are drawn; of the same ones, one is returned.
        rng: Draws places, then tokens.
    """
    kept = gradient.masked_fill(~torch.from_numpy(allowed), float("inf"))
    kept[torch.arange(len(tokens)), torch.tensor(tokens)] = float("inf")
    best = kept.topk(min(top_k, int(allowed.sum()) - 1), largest=False).indices.numpy()
    drawn_places = rng.integers(len(tokens), size=count)
    drawn_ranks = rng.integers(best.shape[1], size=count)
    found: dict[tuple[int, ...], None] = {}
    for place, rank in zip(drawn_places.tolist(), drawn_ranks.tolist(), strict=True):
        found[(*tokens[:place], int(best[place, rank]), *tokens[place + 1 :])] = None
    return list(found)


@dataclass(frozen=True)
class Tried:
    """Candidates that were tried.

    Attributes:
        survivors: Those whose texts are read as just their tokens, in all prompts they were tried in.
        losses: The mean loss of each, float64 `[survivors]`.
    """

    survivors: list[tuple[int, ...]]
    losses: NDArray[np.float64]


def tried(
    insertion: Insertion,
    places: Places,
    drawn: Sequence[tuple[int, ...]],
    texts: Sequence[str],
    questions: Sequence[int],
) -> Tried:
    """The losses of candidates, asked as texts.

    Args:
        insertion: Where they are put.
        places: The same as tokens.
        drawn: The candidates' tokens.
        texts: Their texts.
        questions: Numbers of the questions they are tried on.

    Raises:
        ModelError: The model gives no numbers.
    """
    requests, each = insertion.encoded(texts, questions), len(questions)
    survivors = [
        number
        for number, tokens in enumerate(drawn)
        if all(
            requests.context(number * each + place).tolist() == places.row(question, tokens)
            for place, question in enumerate(questions)
        )
    ]
    if not survivors:
        return Tried([], np.empty(0))
    asked = [number * each + place for number in survivors for place in range(each)]
    kept = Requests.from_tokens(
        [requests.context(one).tolist() for one in asked],
        [answers_of(requests, one) for one in asked],
        requests.max_length,
    )
    scores = _scored(insertion.subject, kept)
    gold = insertion.subject.questions.gold[list(questions) * len(survivors)]
    losses = np.array(
        [
            np.logaddexp.reduce(scores[start:end]) - scores[start + right]
            for start, end, right in zip(kept.choice_offsets, kept.choice_offsets[1:], gold, strict=False)
        ]
    )
    return Tried([drawn[number] for number in survivors], losses.reshape(-1, each).mean(axis=1))


def _scored(subject: Subject, requests: Requests) -> NDArray[np.float64]:
    """The log-likelihoods of all choices, `[num_choices]`."""
    with warnings.catch_warnings():
        # Which way a model is scored has been said when it was asked, and would be said at every step.
        warnings.simplefilter("ignore", WmdpFastWarning)
        return scored(subject.model, requests).loglikelihood
