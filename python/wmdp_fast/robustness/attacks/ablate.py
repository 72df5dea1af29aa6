"""Directions of the residual stream projected out: what RMU and its kin hide behind one shows again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from wmdp_fast.robustness import directions
from wmdp_fast.robustness.folding import fold, written_to_the_stream
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting
from wmdp_fast.robustness.residual_stream import changed_stream, decoder_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from wmdp_fast.models.decoder import Decoder
    from wmdp_fast.robustness.answers import Answers
    from wmdp_fast.robustness.directions import Direction
    from wmdp_fast.robustness.subject import Subject

# Layers whose direction is tried, those first in which it is strongest.
_LAYERS: dict[Budget, int] = {"quick": 2, "standard": 6, "full": 1000}
_RANDOM: dict[Budget, int] = {"quick": 20, "standard": 100, "full": 100}

# Where a direction comes from; each needs something else.
_SOURCES: dict[Budget, tuple[str, ...]] = {
    "quick": ("base", "utility questions"),
    "standard": ("base", "utility questions", "related text", "unrelated text", "first component"),
    "full": ("base", "utility questions", "related text", "unrelated text", "first component"),
}

# What is done with it: every layer's own is projected out; that of one layer is, on all layers, from that layer on, or
# on that layer; the difference itself is taken off at that layer; or it is projected out of what all layers write, by
# their weights.
_WAYS: dict[Budget, tuple[str, ...]] = {
    "quick": ("each", "onward"),
    "standard": ("each", "onward", "all", "subtract", "weights"),
    "full": ("each", "onward", "all", "one", "subtract", "weights"),
}

RANDOM = "random"


class Ablate(Attack):
    """Takes directions out of the residual stream."""

    name: ClassVar[str] = "ablate"
    summary: ClassVar[str] = "directions in which unlearned questions differ, projected out of the residual stream"
    access: ClassVar[Access] = "activations"
    about: ClassVar[str] = (
        "Directional ablation (Arditi et al. 2024) of what unlearning adds (Lucki et al. 2024). Directions come from"
        " the prompts of the questions for choosing alone. It brings back what was hidden behind a direction, as by"
        " RMU; what was erased from the weights or spread over many directions it does not, so a failure shows little."
        f" Up to {directions.MOST_TOKENS} activations of each layer are kept in memory, in the model's dtype, and as"
        " many of the base."
    )

    def settings(self, budget: Budget, seed: int) -> Sequence[Setting]:
        """Each source of directions with each way of taking them out; random ones for comparison."""
        layers = _LAYERS[budget]
        tried = [
            {"direction": source, "way": way} if way == "each" else {"direction": source, "way": way, "layers": layers}
            for source in _SOURCES[budget]
            for way in _WAYS[budget]
            if not (source == "first component" and way == "subtract")
        ]
        random = {"direction": RANDOM, "way": "all", "count": _RANDOM[budget], "seed": seed}
        return [*(Setting(values=values) for values in tried), Setting(values=random, null=True)]

    def why_not(self, subject: Subject, setting: Setting) -> str | None:
        """The model before unlearning, questions or a text may be missing."""
        source = setting.values["direction"]
        if source == "base" and subject.original is None:
            if subject.role != "unlearned":
                return f"it compares the unlearned model with the one before; this is the {subject.role} one"
            return "it compares with the model before unlearning: pass --base"
        if source == "utility questions" and subject.test.questions is None:
            return "it compares with other questions: pass --utility"
        corpus = source.removesuffix(" text")
        if source.endswith(" text") and corpus not in subject.sources:
            return f"it compares with other text: pass --{corpus}"
        return None

    def cost(self, _subject: Subject, setting: Setting) -> float:
        """A reading a layer, or a direction, and as much again for the activations."""
        return 1.0 + float(setting.values.get("count", setting.values.get("layers", 1)))

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """A reading for each layer whose direction is tried; of random directions the best one's alone."""
        values = setting.values
        if values["direction"] == RANDOM:
            yield _best_of_random(subject, int(values["count"]), int(values["seed"]))
            return
        source = values["direction"]
        found = subject.once(("directions", source), lambda: directions.found_directions(subject, source))
        figures: dict[str, Any] = {"strengths": [one.strength for one in found]}
        if values["way"] == "each":
            with changed_stream(decoder_in(subject.model).layers, _projections(found)):
                yield Reading(answers=subject.ask(), utility=subject.utility(), figures=figures)
            return
        for layer in _strongest(found, values["layers"]):
            with _taken_out(subject, found[layer].vector, values["way"], layer):
                yield Reading(answers=subject.ask(), utility=subject.utility(), figures=figures | {"layer": layer})


def _projections(found: Sequence[Direction]) -> dict[int, Callable[[Tensor], Tensor]]:
    """What takes out of each layer its own direction, where it has one."""
    return {layer: directions.projecting_out(one.vector) for layer, one in enumerate(found) if one.strength > 0}


def _strongest(found: Sequence[Direction], most: int) -> list[int]:
    """The layers with the strongest directions, in order."""
    some = [layer for layer, one in enumerate(found) if one.strength > 0]
    return sorted(sorted(some, key=lambda layer: -found[layer].strength)[:most])


@contextmanager
def _taken_out(subject: Subject, vector: Tensor, way: str, layer: int) -> Iterator[None]:
    """Inside, the direction of a layer is taken out of a model in a way of `_WAYS`."""
    layers = decoder_in(subject.model).layers
    if way == "weights":
        with subject.restored(written_to_the_stream(subject.network)):
            fold(subject.network, vector)
            yield
        return
    change = directions.subtracting(vector) if way == "subtract" else directions.projecting_out(vector)
    first, stop = {"all": (0, len(layers)), "onward": (layer, len(layers))}.get(way, (layer, layer + 1))
    with changed_stream(layers, dict.fromkeys(range(first, stop), change)):
        yield


def _best_of_random(subject: Subject, count: int, seed: int) -> Reading:
    """The random direction that is best on the questions for choosing, and the accuracies of all of them."""
    decoder, generator = decoder_in(subject.model), torch.Generator().manual_seed(seed)
    chosen = subject.questions.is_for_choosing
    tried: list[tuple[Answers, Tensor]] = []
    for _ in range(count):
        vector = torch.randn(decoder.hidden_size, generator=generator)
        with changed_stream(decoder.layers, _everywhere(decoder, vector)):
            tried.append((subject.ask(), vector))
    answers, vector = max(tried, key=lambda one: int(one[0].correct[chosen].sum()))
    with changed_stream(decoder.layers, _everywhere(decoder, vector)):
        utility = subject.utility()
    figures = {
        "choosing": [float(one.correct[chosen].mean()) for one, _ in tried],
        "reported": [float(one.correct[~chosen].mean()) for one, _ in tried],
    }
    return Reading(answers=answers, utility=utility, figures=figures)


def _everywhere(decoder: Decoder, vector: Tensor) -> dict[int, Callable[[Tensor], Tensor]]:
    return dict.fromkeys(range(len(decoder.layers)), directions.projecting_out(vector))
