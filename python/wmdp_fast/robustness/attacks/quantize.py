"""Weights in 8 or 4 bits: whether what was unlearned comes back when a change is smaller than a step.

Zhang et al. (2410.16454) found most of the forgotten text back after 4-bit quantization on MUSE, where training had
moved all weights a little. For WMDP others found no recovery (RMU and NPO, 2510.07626).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.robustness.matrices import changeable, share_of
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting
from wmdp_fast.robustness.quantization import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wmdp_fast.robustness.subject import Subject

_QUICK = ("int8", "int4 symmetric groups of 64", "nf4")


class Quantize(Attack):
    """Rounds the weights of linear layers to a quantized format, puts them back and asks."""

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "weights rounded to int8, int4 and nf4"
    access: ClassVar[Access] = "weights"
    about: ClassVar[str] = (
        "Weights of linear layers and experts are rounded to the format and put back in the model's own type;"
        " embeddings, head, norms and routers stay as they are, as libraries leave them. It rounds to nearest; GPTQ"
        " and AWQ, which look at text, round otherwise. Activations are not quantized."
    )

    def settings(self, budget: Budget, _seed: int) -> Sequence[Setting]:
        """One for each format. The control is the base in the same format."""
        return [Setting(values={"format": name}) for name in (_QUICK if budget == "quick" else FORMATS)]

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """One reading; its figures say which share of the parameters was rounded, and how far they moved.

        Raises:
            ModelError: The model has no matrices to round, or they are quantized already.
        """
        rounded = FORMATS[setting.values["format"]]
        moved = total = 0.0
        with changeable(subject) as matrices:
            for matrix in matrices:
                for weight in matrix.views():
                    values = rounded(weight)
                    moved += float((values - weight).square().sum())
                    total += float(weight.float().square().sum())
                    weight.copy_(values)
            figures = {
                "share of parameters": share_of(matrices, subject.network),
                "relative change": (moved / total) ** 0.5 if total else 0.0,
            }
            yield Reading(answers=subject.ask(), utility=subject.utility(), figures=figures)
