"""Directions of the residual stream projected out: what RMU and its kin hide behind one shows again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from wmdp_fast.robustness import directions
from wmdp_fast.robustness.blocks import ablated_in_turn, blocks_of, random_changes
from wmdp_fast.robustness.folding import fold, written_to_the_stream
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting
from wmdp_fast.robustness.residual_stream import changed_stream, decoder_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

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

# Directions of each block that are projected out of what it writes, block after block, and random ones beside them.
_COMPONENTS: dict[Budget, tuple[int, ...]] = {"quick": (2, 4), "standard": (1, 2, 4, 8), "full": (1, 2, 4, 8)}
_RANDOM_BLOCKS: dict[Budget, int] = {"quick": 5, "standard": 20, "full": 20}

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
        " the prompts of the questions for choosing alone; with a base, also of each block by itself, those before it"
        " ablated already. It brings back what was hidden behind a direction, as by"
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
        tried += [
            {"direction": "base", "way": "blocks", "layers": layers, "components": k} for k in _COMPONENTS[budget]
        ]
        drawn = {"direction": RANDOM, "way": "blocks", "layers": layers, "count": _RANDOM_BLOCKS[budget], "seed": seed}
        random = [
            {"direction": RANDOM, "way": "all", "count": _RANDOM[budget], "seed": seed},
            *({**drawn, "components": k} for k in _COMPONENTS[budget]),
        ]
        return [
            *(Setting(values=values) for values in tried),
            *(Setting(values=values, null=True) for values in random),
        ]

    def why_not(self, subject: Subject, setting: Setting) -> str | None:
        """The model before unlearning, questions or a text may be missing."""
        source = setting.values["direction"]
        needs_base = source == "base" or setting.values["way"] == "blocks"
        if needs_base and subject.original is None:
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
        """A reading a layer, or a direction, and as much again for the activations: of blocks, once for each."""
        if setting.values["way"] == "blocks" and not setting.null:
            return 3.0 * min(2, int(setting.values["layers"]))
        return 1.0 + float(setting.values.get("count", setting.values.get("layers", 1)))

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """A reading for each layer whose direction is tried, or after each whose blocks are ablated.

        Of random directions the best one's alone.
        """
        values = setting.values
        if values["way"] == "blocks":
            yield from _in_blocks(subject, setting)
            return
        if values["direction"] == RANDOM:
            layers, generator = (
                list(decoder_in(subject.model).layers),
                torch.Generator().manual_seed(int(values["seed"])),
            )
            drawn = [_everywhere(decoder_in(subject.model), generator) for _ in range(int(values["count"]))]
            yield _best_of_random(subject, layers, drawn)
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


def _in_blocks(subject: Subject, setting: Setting) -> Iterator[Reading]:
    """Ablates the blocks of the first layers that differ from the base, one after the other."""
    values, components = setting.values, int(setting.values["components"])
    found = subject.once(("directions", "base"), lambda: directions.found_directions(subject, "base"))
    layers = [layer for layer, one in enumerate(found) if one.strength > 0][: values["layers"]]
    blocks = blocks_of(subject.model, layers)
    if setting.null:
        generator = torch.Generator().manual_seed(int(values["seed"]))
        drawn = [random_changes(subject.model, layers, components, generator) for _ in range(int(values["count"]))]
        yield _best_of_random(subject, blocks, drawn)
        return
    for ablated in ablated_in_turn(subject, layers, components):
        with changed_stream(blocks, ablated.changes):
            figures = {"layer": ablated.layer, "shares": ablated.shares}
            yield Reading(answers=subject.ask(), utility=subject.utility(), figures=figures)


def _best_of_random(
    subject: Subject, modules: Sequence[nn.Module], drawn: Sequence[Mapping[int, Callable[[Tensor], Tensor]]]
) -> Reading:
    """The random directions that are best on the questions for choosing, and the accuracies of all of them."""
    chosen = subject.questions.is_for_choosing
    tried: list[Answers] = []
    for changes in drawn:
        with changed_stream(modules, changes):
            tried.append(subject.ask())
    best = max(range(len(drawn)), key=lambda place: int(tried[place].correct[chosen].sum()))
    with changed_stream(modules, drawn[best]):
        utility = subject.utility()
    figures = {
        "choosing": [float(one.correct[chosen].mean()) for one in tried],
        "reported": [float(one.correct[~chosen].mean()) for one in tried],
    }
    return Reading(answers=tried[best], utility=utility, figures=figures)


def _everywhere(decoder: Decoder, generator: torch.Generator) -> dict[int, Callable[[Tensor], Tensor]]:
    """A random direction, the same in every layer."""
    vector = torch.randn(decoder.hidden_size, generator=generator)
    return dict.fromkeys(range(len(decoder.layers)), directions.projecting_out(vector))
