"""Modules of a model that are computed another way for a while, once that was tried to give what they give."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from wmdp_fast.models.fused.forwards import replaced_forwards

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    import torch
    from torch import nn

    # What a module returns, given the module and its input.
    Compute = Callable[[Any, torch.Tensor], torch.Tensor]

_T = TypeVar("_T")


class Trials:
    """What came of trying parts of a model; those that are alike are tried once."""

    def __init__(self) -> None:
        self._outcomes: dict[Hashable, Any] = {}

    def outcome(self, alike: Hashable, trial: Callable[[], _T]) -> _T:
        """What a trial of a part says, or what it said of one that is alike.

        Args:
            alike: What parts that need no trial of their own have in common, with what is tried.
            trial: Tries a part.
        """
        if alike not in self._outcomes:
            self._outcomes[alike] = trial()
        return cast("_T", self._outcomes[alike])


@dataclass(frozen=True)
class ModulePart:
    """A kind of module that can be computed another way.

    Attributes:
        alike: What modules that can be computed alike have in common; None for one that is of no such kind.
        prove: How such a module is computed, if that was tried and gives what the module gives; else None.
    """

    alike: Callable[[nn.Module], Hashable | None]
    prove: Callable[[nn.Module], Compute | None]


@contextmanager
def replaced_modules(model: nn.Module, parts: Sequence[ModulePart], trials: Trials | None = None) -> Iterator[None]:
    """Inside, the modules of some kinds are computed another way; all others, and what failed its trial, stay.

    Afterwards the model is as it was. The projection onto the vocabulary always stays, as its rounding goes straight
    into the scores; `ChunkedLMHead` takes care of it.

    Args:
        model: The model.
        parts: The kinds.
        trials: Those of earlier calls with the same model; filled here.
    """
    trials = Trials() if trials is None else trials
    head = getattr(model, "get_output_embeddings", lambda: None)()
    replacements: dict[nn.Module, Callable[..., torch.Tensor]] = {}
    for module in model.modules():
        for part in parts:
            if module is head or (alike := part.alike(module)) is None:
                continue
            compute = trials.outcome((part, alike), partial(part.prove, module))
            if compute is not None:
                replacements[module] = partial(compute, module)
    with replaced_forwards(replacements):
        yield
