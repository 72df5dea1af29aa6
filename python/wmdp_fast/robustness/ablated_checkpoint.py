"""The attack `ablate` as a checkpoint: a model without some directions, for whoever wants to look further."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.checkpoint import Checkpoint, new_folder, refuse_existing, stored_tensors, write_checkpoint
from wmdp_fast.exceptions import ModelError
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.robustness.asking_options import check_asking
from wmdp_fast.robustness.attacked_model import AttackedModel
from wmdp_fast.robustness.blocks import ablated_in_turn
from wmdp_fast.robustness.directions import found_directions
from wmdp_fast.robustness.folding import fold, fold_blocks, written_to_the_stream
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.subject import Subject
from wmdp_fast.robustness.utility import Utility
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike


def save_ablated(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    tasks: str | PathLike[str] | Sequence[str | PathLike[str]],
    layer: int,
    components: int | None = None,
    base: str | PathLike[str] | None = None,
    utility: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    eval_options: Mapping[str, Any] | None = None,
) -> Path:
    """Folds directions into a model's weights and saves the checkpoint, as `ablate` tries them in memory.

    Without `components` it is one direction, taken out of what all layers write: the difference between mean
    activations at the questions for choosing in the model and in `base`; without it, between those at these questions
    and at those of `utility`; without either, their first component. With `components` it is the way *blocks*: so many
    directions of each block of the layers that differ from the base, up to `layer`, each block with those before it
    ablated.

    Args:
        model: The unlearned model: a folder, or a name on the hub.
        output: Folder to make.
        tasks: What was unlearned, as in `wmdp_fast.attack`.
        layer: The layer whose direction to take, or the last whose blocks are ablated, from 0; `ablate` reports the one
            that was best.
        components: Directions of each block, as in the setting that `ablate` reports; None is one of the whole layer.
        base: The model before unlearning.
        utility: Tasks on what was kept.
        dtype: What to run the models in: `auto` (the checkpoint's), `float32`, `bfloat16` or `float16`. Weights are
            folded in float32 and saved in the checkpoint's types.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trust_remote_code: Whether code that comes with a model may run.
        eval_options: Further options of `wmdp_fast.evaluate` that say how questions are asked.

    Returns:
        The folder.

    Raises:
        FileExistsError: There is something at `output`.
        ModelError: Directions cannot be folded into this architecture; see `fold` and `fold_blocks` in
            `wmdp_fast.robustness.folding`.
        ValueError: There is no such layer, its blocks are as in the base, or there is no base to compare blocks with.
    """
    if components is not None and (base is None or components < 1):
        raise ValueError("components, a number of directions of each block, needs base: blocks are compared with its")
    check_asking(eval_options)
    refuse_existing(Path(output))
    loading = LoadOptions(dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    asked = {**(eval_options or {})}
    test = Utility(questions=Questions.from_options(PromptOptions(tasks=utility), split=False) if utility else None)
    subject = Subject(
        role="unlearned",
        model=AttackedModel(model=os.fspath(model), load=loading, score=ScoreOptions()).open(),
        questions=Questions.from_options(PromptOptions(tasks=tasks, **asked)),
        test=test,
        original=None if base is None else AttackedModel(model=base, load=loading, score=ScoreOptions()).open,
    )
    source = "base" if base is not None else "utility questions" if utility else "first component"
    found = found_directions(subject, source)
    if not 0 <= layer < len(found):
        raise ValueError(f"layer {layer} of a model with layers 0 to {len(found) - 1}")
    network: Any = subject.network
    if subject.model.loaded.path is None:
        raise ModelError(f"{subject.model.name} has no files")
    if components is None:
        fold(network, found[layer].vector)
        names = written_to_the_stream(network)
    else:
        names = _fold_blocks(subject, [place for place, one in enumerate(found) if one.strength > 0], layer, components)
    parameters = dict(network.named_parameters())
    checkpoint = Checkpoint.open(subject.model.loaded.path)
    changed = stored_tensors(network, {name: parameters[name] for name in names}, checkpoint)
    with new_folder(Path(output)) as folder:
        write_checkpoint(checkpoint, changed, folder)
    return Path(output)


def _fold_blocks(subject: Subject, differing: Sequence[int], last: int, components: int) -> list[str]:
    """Folds the directions of the blocks of layers that differ from the base, up to a layer; names what it changed."""
    if last not in differing:
        raise ValueError(f"layer {last} is as in the base; layers that differ are {', '.join(map(str, differing))}")
    layers = [layer for layer in differing if layer <= last]
    *_, ablated = ablated_in_turn(subject, layers, components)
    return fold_blocks(subject.network, layers, ablated.directions)
