"""A few excerpts of what is asked, on which a way of scoring is proven before the run."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from wmdp_fast._rust import Requests

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from wmdp_fast._rust import Trie, TrieBatch

# Of so many questions, the first and the last tokens of each context, and the
# first choices, of which two branch as well as four.
_PROOF_QUESTIONS = 3
_PROOF_HEAD, _PROOF_TAIL = 16, 16
_PROOF_CHOICES = 2

# Shares of all tokens that a batch of excerpts may have; the first that cuts them as a run is cut is taken.
_SHARES = (0.5, 0.45, 0.4, 0.35, 0.3, 0.27, 0.25, 0.22, 0.2, 0.17, 0.15, 0.6, 0.7, 0.8)

# Windows, chunks, and the lengths at which queries are scaled; not how many layers have one.
_WINDOWS = re.compile(r"(window|chunk)(_size|_len)?$|^local_attention$|^floor_scale$")


def excerpts_of(model: torch.nn.Module, requests: Requests) -> Requests:
    """A few questions of a run, shortened unless length matters to the model: what they begin with, and their ends.

    It may matter to hooks that somebody has hung on its modules: those of an experiment often go by places in a row.
    """
    longest = requests.padded_batch(0, 1)
    length = 0 if longest is None else int(longest.lengths[0])
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return _excerpts(requests, whole=hooked or _smallest_window(model) < length)


def _excerpts(requests: Requests, *, whole: bool) -> Requests:
    step = max(1, requests.num_questions // _PROOF_QUESTIONS)
    contexts, continuations = [], []
    for question in range(0, requests.num_questions, step)[:_PROOF_QUESTIONS]:
        context = requests.context(question).tolist()
        if not whole and len(context) > _PROOF_HEAD + _PROOF_TAIL:
            context = context[:_PROOF_HEAD] + context[-_PROOF_TAIL:]
        contexts.append(context)
        first, last = requests.choice_offsets[question : question + 2].tolist()
        choices = range(first, min(last, first + _PROOF_CHOICES))
        continuations.append([requests.continuation(choice).tolist() for choice in choices])
    return Requests.from_tokens(contexts, continuations, requests.max_length)


def cutting_budget(trie: Trie, excerpts: Requests) -> int:
    """A token budget with which batches of excerpts have what those of a run have.

    That are tokens of several questions, and of several choices of a question, of which none may see anything of
    another, and keys and values carried over from one batch to the next. Of questions that have no beginning in common,
    batches of some sizes have none of it.

    Args:
        trie: That of the excerpts.
        excerpts: The excerpts.
    """
    shortest = min(len(excerpts.context(question)) for question in range(excerpts.num_questions))

    def tried(budget: int) -> tuple[int, int]:
        batches = list(trie.batches(budget, budget))
        contexts, choices = (
            sum(counts) for counts in zip(*(_neighbors(one, shortest) for one in batches), strict=True)
        )
        carried = any(batch.num_carried for batch in batches)
        return carried + (contexts > 0) + (choices > 0), choices

    # Of equally good ones the first.
    return max((max(1, math.ceil(share * trie.num_tokens)) for share in _SHARES), key=tried)


def _neighbors(batch: TrieBatch, shortest: int) -> tuple[int, int]:
    """How many parts of contexts, and of choices, stand behind others of the batch that they must not see."""
    own = batch.segments[batch.segments[:, 1] > batch.num_carried]
    contexts, choices = own[own[:, 3] < shortest], own[own[:, 3] >= shortest]

    def behind(before: NDArray[np.int64], parts: NDArray[np.int64]) -> int:
        return int((before[:, 2].min() <= parts[:, 0]).sum()) if len(parts) else 0

    return behind(own, contexts), behind(choices, choices)


def _smallest_window(model: torch.nn.Module) -> float:
    """The least number of tokens beyond which a model attends otherwise, by whatever its configuration calls it."""
    config: Any = model.config
    settings = vars(config.get_text_config()).items()
    sizes = (value for name, value in settings if _WINDOWS.search(name) and type(value) is int and value > 0)
    return min(sizes, default=float("inf"))
