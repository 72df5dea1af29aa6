"""Weights set to zero: whether what covers up the knowledge is in those that matter least.

By magnitude within each matrix, or by Wanda (Sun et al., 2306.11695) within each of its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from wmdp_fast.exceptions import ModelError
from wmdp_fast.robustness.matrices import changeable, share_of
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting
from wmdp_fast.robustness.pruning import at_random, by_magnitude, by_wanda, input_norms
from wmdp_fast.robustness.residual_stream import decoder_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from torch import Tensor

    from wmdp_fast.robustness.matrices import WeightMatrix
    from wmdp_fast.robustness.subject import Subject

_SHARES = (0.1, 0.2, 0.3, 0.5)

# Documents that Wanda measures inputs on, as many as in the paper, and tokens of each.
_DOCUMENTS, _LENGTH = 128, 512


class Prune(Attack):
    """Sets a share of the weights of linear layers to zero and asks."""

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "a share of the weights set to zero, by magnitude and by Wanda"
    access: ClassVar[Access] = "weights"
    about: ClassVar[str] = (
        "The matrices are those that `quantize` rounds. Magnitudes are compared within a matrix, Wanda's products of"
        " weight and input within a row. Inputs are those of the whole model; the paper's are of a model whose lower"
        " layers are pruned already. The control sets as many weights to zero, whichever."
    )

    def settings(self, budget: Budget, seed: int) -> Sequence[Setting]:
        """From few weights to many: by magnitude, by Wanda with either text, at random."""
        shares = (0.1, 0.3) if budget == "quick" else _SHARES
        texts = ("unrelated",) if budget == "quick" else ("unrelated", "related")
        return [
            *(Setting(values={"by": "magnitude", "share": share}) for share in shares),
            *(Setting(values={"by": "wanda", "text": text, "share": share}) for text in texts for share in shares),
            *(Setting(values={"by": "chance", "share": share, "seed": seed}, null=True) for share in shares),
        ]

    def why_not(self, subject: Subject, setting: Setting) -> str | None:
        """Wanda needs a text."""
        text = setting.values.get("text")
        missing = text is not None and text not in subject.sources
        return f"Wanda with {text} text needs some: pass --{text}" if missing else None

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """One reading; its figures say which share of all parameters was set to zero.

        Raises:
            ModelError: The model has no matrices, or its experts in one tensor and not each by itself, as Wanda needs
                them; or it gives no numbers any more.
        """
        values = setting.values
        with changeable(subject) as matrices:
            pruned = _pruned(subject, matrices, values)
            for matrix in matrices:
                for weight in matrix.views():
                    weight.copy_(pruned(matrix, weight))
            figures = {"share of parameters": values["share"] * share_of(matrices, subject.network)}
            yield Reading(answers=subject.ask(), utility=subject.utility(), figures=figures)


def _pruned(
    subject: Subject, matrices: Sequence[WeightMatrix], values: Mapping[str, Any]
) -> Callable[[WeightMatrix, Tensor], Tensor]:
    """What makes of a matrix the pruned one."""
    share = values["share"]
    if values["by"] == "magnitude":
        return lambda _, weight: by_magnitude(weight, share)
    if values["by"] == "chance":
        generator = torch.Generator(matrices[0].parameter.device).manual_seed(values["seed"])
        return lambda _, weight: at_random(weight, share, generator)
    if any(one.is_stack for one in matrices):
        raise ModelError(
            "Wanda needs the inputs of each expert by itself, and this model has its experts in one tensor"
        )
    tokens = subject.corpus(values["text"], documents=_DOCUMENTS, length=_LENGTH)
    read = [tokens.document(index)[:_LENGTH].tolist() for index in range(min(len(tokens), _DOCUMENTS))]
    norms = input_norms(decoder_in(subject.model).model, matrices, read)
    return lambda matrix, weight: by_wanda(weight, norms[matrix.name], share)
