"""Whether two ways of scoring differ by rounding alone, in a type of 16 bits.

How far rounding moves a log-probability there depends on the model: of one the second digit is right, of another
hardly the first. So the model is asked: rows are run once more, with a rounding more of what enters each layer, and
what another way of scoring differs by is held against what that made. A mixture of experts may choose others by
rounding in the one run and not in the next, so where a few rows say that it is too much, all are run several times.

One log-probability would say little, as it may hardly have moved by chance. Many tokens are looked up in each
distribution, which costs next to nothing, and all of them count together.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdp_fast._rust import Requests
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.adapters import without_adapter
from wmdp_fast.models.decoder import decoder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

# Tokens looked up in each distribution besides those of the choices.
_PROBES = 16

# How many times as far apart as a rounding more puts them two ways may be. In 770 tries with 108 architectures, random
# weights, bfloat16 and float16, it was 0.6 mostly and up to 1.7, but for two in which experts changed (16 and 18). By
# the first question alone it was 3.1 in one of 112 tries with SmolLM2, and by all of them nothing was beyond.
_MOST = 3.0

# How often all rows are run with a rounding more before a way is called wrong.
_TRIALS = 3

# What is always allowed: in digits of the type, of how far log-probabilities of a distribution are from each other.
_DIGITS, _FLAT = 4.0, 0.1


def is_coarse(dtype: torch.dtype) -> bool:
    """Whether a type has so few digits that rounding hides much: all of 16 bits or less."""
    return torch.finfo(dtype).bits <= 16


def with_probes(excerpts: Requests) -> Requests:
    """The same questions, with more tokens looked up wherever a choice's last one is: no more is run.

    The tokens are some of those that the excerpts consist of, as models may exclude others.
    """
    contexts = [excerpts.context(question).tolist() for question in range(excerpts.num_questions)]
    choices = [excerpts.continuation(choice).tolist() for choice in range(excerpts.num_choices)]
    distinct = np.unique([token for tokens in (*contexts, *choices) for token in tokens])
    spread = np.linspace(0, len(distinct) - 1, min(_PROBES, len(distinct))).round().astype(np.int64)
    probes = distinct[spread].tolist()
    continuations = [
        [one for choice in choices[first:last] for one in (choice, *([*choice[:-1], token] for token in probes))]
        for first, last in pairwise(excerpts.choice_offsets.tolist())
    ]
    return Requests.from_tokens(contexts, continuations, excerpts.max_length)


def difference_beyond_rounding(
    requests: Requests,
    expected: NDArray[np.float64],
    found: NDArray[np.float64],
    dtype: torch.dtype,
    again: Callable[[Requests, int], NDArray[np.float64]],
) -> str | None:
    """What to say of two ways of scoring that differ by more than rounding explains; None if they do not.

    Args:
        requests: What `with_probes` made.
        expected: Log-likelihoods of them, scored one way.
        found: The same, scored the other way.
        dtype: The model's type.
        again: Scores requests the first way with a rounding more, which a seed chooses. Called only where the
            difference is not small anyway.
    """
    counts = np.isfinite(expected)
    if (counts != np.isfinite(found)).any():
        return "tried on excerpts of the requests, a token is impossible on padded rows or by trie, and not both ways"
    difference = _root_mean_square(found[counts] - expected[counts])
    allowed = torch.finfo(dtype).eps * (_DIGITS * _width(requests, expected) + _FLAT)
    first = _first_question(requests)
    for seed, tried in enumerate((first, *[requests] * _TRIALS)):
        if difference <= allowed:
            return None
        moved = again(tried, seed) - expected[: tried.num_choices]
        allowed = max(allowed, _MOST * _root_mean_square(moved[np.isfinite(moved)]))
    if difference <= allowed:
        return None
    return (
        f"tried on excerpts of the requests, log-likelihoods by trie were {difference:.2g} from those on padded rows"
        f" (root mean square of {int(counts.sum())}), where rounding in {str(dtype).removeprefix('torch.')} explains"
        f" {allowed:.2g}"
    )


def _first_question(requests: Requests) -> Requests:
    choices = range(int(requests.choice_offsets[1]))
    continuations = [requests.continuation(choice).tolist() for choice in choices]
    return Requests.from_tokens([requests.context(0).tolist()], [continuations], requests.max_length)


def _width(requests: Requests, loglikelihood: NDArray[np.float64]) -> float:
    """How far log-probabilities are from each other, in nats: the standard deviation, of a question's on average."""
    each = np.split(loglikelihood, requests.choice_offsets[1:-1])
    return float(np.mean([np.std(one[np.isfinite(one)]) if np.isfinite(one).any() else 0.0 for one in each]))


def _root_mean_square(numbers: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(numbers)))) if len(numbers) else 0.0


@contextmanager
def rounded_otherwise(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Inside, what enters each layer of a model, and what its embedding returns, is off by up to half a last digit.

    Args:
        model: The model, or one that PEFT has wrapped.
        seed: Of the numbers, which come from a generator of their own.
    """
    base: Any = without_adapter(model)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    try:
        layers = list(decoder_of(base).layers)
    except (ModelError, AttributeError):
        layers = []

    def moved(hidden: Any) -> Any:
        # What several processes hold together is no plain tensor.
        if type(hidden) is not torch.Tensor or not hidden.is_floating_point():
            return hidden
        off = torch.rand(hidden.shape, generator=generator, dtype=torch.float32, device="cpu").to(hidden.device) - 0.5
        return (hidden.float() * (1 + torch.finfo(hidden.dtype).eps * off)).to(hidden.dtype)

    def entering(_layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (moved(args[0]), *args[1:]), kwargs
        return args, {name: moved(one) if name == "hidden_states" else one for name, one in kwargs.items()}

    handles = [layer.register_forward_pre_hook(entering, with_kwargs=True) for layer in layers]
    try:
        embedding: Any = base.get_input_embeddings()
        handles.append(embedding.register_forward_hook(lambda _module, _args, output: moved(output)))
        yield
    finally:
        for handle in handles:
            handle.remove()
