"""The methods by name: what chooses one on the command line, and what a list of them says.

A configuration's module is imported when its method is asked for. None of them imports torch, so that settings can be
looked at and checked before a model is thought of. A method of one's own is named by its file or its module, see
`own_file`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from wmdp_fast.runtime.own_code import FORM, own_name
from wmdp_fast.unlearning.methods.own_file import load_own_method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wmdp_fast.unlearning.preset import Preset
    from wmdp_fast.unlearning.training_config import TrainingConfig

DEFAULT = "rmu"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A method of this package.

    Attributes:
        name: What it is called, its configuration's `method_name`.
        config: Module and class of the configuration, with a colon between.
        about: What it does, in a line.
        cost: What a step costs, in forward passes of the whole model over one batch, for a forget and a retain batch; a
            backward pass through all of it counts as two.
        changes: What it changes unless told otherwise.
        source: Where it was published.
        presets: The module with its `PRESETS`, if it has any.
    """

    name: str
    config: str
    about: str
    cost: float
    changes: str
    source: str
    presets: str | None = None


# A line each; costs are those of a method that computes no more than it needs.
METHODS: Mapping[str, Listed] = MappingProxyType(
    {
        one.name: one
        for one in (
            Listed(
                name="rmu",
                config="wmdp_fast.unlearning.rmu.config:RMUConfig",
                about="steers activations of one layer on forget text to a random vector, holds them on retain text",
                cost=0.8,
                changes="mlp.down_proj of 3 layers",
                source="Li et al. 2024, arXiv:2403.03218",
                presets="wmdp_fast.unlearning.rmu.presets",
            ),
            Listed(
                name="graddiff",
                config="wmdp_fast.unlearning.methods.graddiff:GradDiffConfig",
                about="raises the loss on forget text without a bound, lowers it on retain text",
                cost=6,
                changes="mlp.down_proj of all layers",
                source="Liu et al. 2022, arXiv:2203.12817",
                presets="wmdp_fast.unlearning.methods.graddiff",
            ),
            Listed(
                name="npo",
                config="wmdp_fast.unlearning.methods.npo:NPOConfig",
                about="raises the loss on forget text over the original model's, each document's less and less",
                cost=6,
                changes="mlp.down_proj of all layers",
                source="Zhang et al. 2024, arXiv:2404.05868",
                presets="wmdp_fast.unlearning.methods.npo",
            ),
            Listed(
                name="simnpo",
                config="wmdp_fast.unlearning.methods.simnpo:SimNPOConfig",
                about="raises the loss on forget text, each document's less and less; no original model",
                cost=6,
                changes="mlp.down_proj of all layers",
                source="Fan et al. 2024, arXiv:2410.07163",
                presets="wmdp_fast.unlearning.methods.simnpo",
            ),
            Listed(
                name="npo_sam",
                config="wmdp_fast.unlearning.methods.npo_sam:NPOSAMConfig",
                about="as npo, at weights moved to where the forget loss is worse, against relearning; float32 weights",
                cost=9,
                changes="mlp.down_proj of all layers",
                source="Fan et al. 2025, arXiv:2502.05374",
                presets="wmdp_fast.unlearning.methods.npo_sam",
            ),
            Listed(
                name="rr",
                config="wmdp_fast.unlearning.methods.rr:RRConfig",
                about="turns activations on forget text away from what they were, holds them on retain text",
                cost=3.9,
                changes="mlp of all layers up to the highest target",
                source="Zou et al. 2024, arXiv:2406.04313",
                presets="wmdp_fast.unlearning.methods.rr",
            ),
            Listed(
                name="elm",
                config="wmdp_fast.unlearning.methods.elm:ELMConfig",
                about="trains the model to say of forget text what it would as one who does not know the subject",
                cost=9,
                changes="mlp of layers 4 to 7",
                source="Gandikota et al. 2024, arXiv:2410.02760",
                presets="wmdp_fast.unlearning.methods.elm",
            ),
            Listed(
                name="finetune",
                config="wmdp_fast.unlearning.methods.finetune:FinetuneConfig",
                about="trains on retain text alone: what any training does, to compare the others with",
                cost=4,
                changes="mlp.down_proj of all layers",
                source="none",
            ),
            Listed(
                name="ssd",
                config="wmdp_fast.unlearning.methods.ssd:SSDConfig",
                about="no training: makes weights smaller that matter more to forget text than to retain text",
                cost=6,
                changes="mlp.down_proj of all layers",
                source="Foster et al. 2023, arXiv:2308.07707",
            ),
            Listed(
                name="scrub",
                config="wmdp_fast.unlearning.methods.scrub:SCRUBConfig",
                about="in turns, away from the original's predictions on forget text and towards them on retain text",
                cost=4,
                changes="mlp.down_proj of all layers",
                source="Kurmanji et al. 2023, arXiv:2302.09880",
            ),
            Listed(
                name="llmu",
                config="wmdp_fast.unlearning.methods.llmu:LLMUConfig",
                about="raises the loss on answers without a bound, trains unrelated ones in their place",
                cost=10,
                changes="mlp.down_proj of all layers",
                source="Yao et al. 2023, arXiv:2310.10683",
            ),
        )
    }
)


def spelled(method: str) -> str:
    """A name as it is in `METHODS`, where it was written with dashes; anything else as it is."""
    name = method.replace("-", "_")
    return name if name in METHODS else method


def config_class(method: str) -> type[TrainingConfig]:
    """The configuration of a method.

    Args:
        method: A name of `METHODS`, or a method of one's own as `FILE.py:CLASS` or `package.module:CLASS`.

    Raises:
        ValueError: There is no such method, or it cannot be loaded; says which there are, or what is wrong.
    """
    if method in METHODS:
        module, _, name = METHODS[method].config.partition(":")
        found: type[TrainingConfig] = getattr(importlib.import_module(module), name)
        return found
    if ":" in method or method.endswith(".py"):
        return load_own_method(method)
    raise ValueError(f"there is no method {method}; there are {', '.join(METHODS)}, and {FORM} for one of your own")


def name_of(config: type[TrainingConfig]) -> str | None:
    """What `config_class` finds a configuration by, or None if it would not find it: one that was typed in."""
    place = f"{config.__module__}:{config.__qualname__}"
    for one in METHODS.values():
        if one.config == place:
            return one.name
    return own_name(config)


def presets_of(method: str) -> Mapping[str, Preset]:
    """The published settings of a method by name; none of one's own method."""
    module = METHODS[method].presets if method in METHODS else None
    if module is None:
        return {}
    found: Mapping[str, Preset] = importlib.import_module(module).PRESETS
    return found


def preset_of(method: str, name: str) -> Preset:
    """The preset of a method by its name.

    Raises:
        ValueError: There is none; names those there are.
    """
    known = presets_of(method)
    if name in known:
        return known[name]
    if known:
        raise ValueError(f"there is no preset {name}; there are {', '.join(known)}")
    raise ValueError(f"there is no preset {name}: {method} has no presets")
