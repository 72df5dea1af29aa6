"""A few excerpts of what is asked, on which a way of scoring is proven before the run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from wmdp_fast._rust import Requests

if TYPE_CHECKING:
    import torch

# Of so many questions, the first and the last tokens of each context, and the
# first choices, of which two branch as well as four.
_PROOF_QUESTIONS = 3
_PROOF_HEAD, _PROOF_TAIL = 16, 16
_PROOF_CHOICES = 2

# Windows, chunks, and the lengths at which queries are scaled; not how many layers have one.
_WINDOWS = re.compile(r"(window|chunk)(_size|_len)?$|^local_attention$|^floor_scale$")


def excerpts_of(model: torch.nn.Module, requests: Requests) -> Requests:
    """A few questions of a run, shortened unless length matters to the model: what they begin with, and their ends."""
    longest = requests.padded_batch(0, 1)
    length = 0 if longest is None else int(longest.lengths[0])
    return _excerpts(requests, whole=_smallest_window(model) < length)


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


def _smallest_window(model: torch.nn.Module) -> float:
    """The least number of tokens beyond which a model attends otherwise, by whatever its configuration calls it."""
    config: Any = model.config
    settings = vars(config.get_text_config()).items()
    sizes = (value for name, value in settings if _WINDOWS.search(name) and type(value) is int and value > 0)
    return min(sizes, default=float("inf"))
