"""Noise on weights or activations: whether a thin cover over what is still known gives way to it.

There is no agreed recipe. Noise of a share of the root mean square is the same for every model and every matrix.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from wmdp_fast.robustness.matrices import changeable
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting
from wmdp_fast.robustness.residual_stream import changed_stream, decoder_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from wmdp_fast.models.decoder import Decoder
    from wmdp_fast.robustness.subject import Subject

_SIGMAS = (0.001, 0.003, 0.01, 0.03, 0.1)

# By budget: sigmas, seeds, and how deep in the model activations are disturbed.
_TRIED: dict[Budget, tuple[tuple[float, ...], int, tuple[float, ...]]] = {
    "quick": ((0.01, 0.1), 1, (0.5,)),
    "standard": (_SIGMAS, 3, (0.25, 0.5, 0.75)),
    "full": (_SIGMAS, 5, (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)),
}

# Rows of noise, which tokens are dealt out to by their ids and places, and what deals them.
_TABLE, _PRIMES = 4096, (7919, 104729)


class Noise(Attack):
    """Adds normal noise to the weights of linear layers, or to what one decoder layer returns, and asks."""

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "normal noise on the weights, or on a layer's activations"
    access: ClassVar[Access] = "weights"
    about: ClassVar[str] = (
        "sigma is the noise's standard deviation as a share of the root mean square: of each weight matrix, or of each"
        " token's activations. The matrices are those that `quantize` rounds. Seeds are settings among others: the best"
        " is chosen with the rest, and all are in the record. A token of the same kind at the same place has the same"
        " noise in every question."
    )

    def settings(self, budget: Budget, seed: int) -> Sequence[Setting]:
        """Weights first, then activations from the lowest layer up; sigma from weak to strong."""
        sigmas, seeds, depths = _TRIED[budget]
        drawn = [{"sigma": sigma, "seed": seed + shift} for sigma in sigmas for shift in range(seeds)]
        return [
            *(Setting(values={"on": "weights", **one}) for one in drawn),
            *(Setting(values={"on": "activations", "depth": depth, **one}) for depth in depths for one in drawn),
        ]

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """One reading.

        Raises:
            ModelError: The model has no matrices or no list of layers, or it gives no numbers any more.
        """
        values = setting.values
        if values["on"] == "weights":
            with changeable(subject) as matrices:
                generator = torch.Generator(matrices[0].parameter.device).manual_seed(values["seed"])
                for matrix in matrices:
                    for weight in matrix.views():
                        weight.copy_(disturbed(weight, values["sigma"], generator))
                yield Reading(answers=subject.ask(), utility=subject.utility())
        else:
            decoder = decoder_in(subject.model)
            layer = round(values["depth"] * (len(decoder.layers) - 1))
            with disturbed_stream(decoder, layer, values["sigma"], values["seed"]):
                yield Reading(answers=subject.ask(), utility=subject.utility(), figures={"layer": layer})


def disturbed(weight: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """A matrix with noise of a share of its root mean square, in float32."""
    noise = torch.randn(weight.shape, generator=generator, device=weight.device)
    return weight + sigma * weight.float().square().mean().sqrt() * noise


@contextmanager
def disturbed_stream(decoder: Decoder, layer: int, sigma: float, seed: int) -> Iterator[None]:
    """Inside, what a decoder layer returns has noise of a share of each token's root mean square.

    Each token at each place has its own noise, the same in any batch: engines share the beginnings of prompts, and try
    themselves on a few tokens first.
    """
    device = next(decoder.layers[layer].parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    table = torch.randn(_TABLE, decoder.hidden_size, generator=generator, device=device)
    rows: list[Tensor] = []

    def place(_model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        input_ids: Tensor = args[0] if args else kwargs["input_ids"]
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        rows[:] = [(input_ids * _PRIMES[0] + positions * _PRIMES[1]) % _TABLE]

    def disturb(hidden: Tensor) -> Tensor:
        mean_square = hidden.float().square().mean(dim=-1, keepdim=True)
        return (hidden + sigma * mean_square.sqrt() * table[rows[0].to(device)]).to(hidden.dtype)

    handle = decoder.model.register_forward_pre_hook(place, with_kwargs=True)
    try:
        with changed_stream(decoder.layers, {layer: disturb}):
            yield
    finally:
        handle.remove()
