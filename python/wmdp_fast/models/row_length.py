"""What of a model's numbers depends on how long the longest row of a batch is, and what it remembers of that.

Two kinds of rotary embedding go by the longest row of the batch at hand. `longrope` takes one set of frequencies for
batches up to the length that the model was first trained with, and another one beyond. `dynamic` scales its frequencies
with the length beyond that, and later batches may find them so (transformers,
`modeling_rope_utils.dynamic_rope_update`; what exactly it keeps differs between versions).

Attention that picks the k best keys for each token by an index of its own (`top-k`; DeepSeek V3.2 and what follows it,
Doge) goes by it where keys are equally good, which they are by the dozen where the index ends in a ReLU: which of them
`torch.topk` names depends on how many there are in all, padding included. Rows of at most k tokens keep all keys.

lm-eval scores one row at a time, the longest first. So that batches of many rows give the same numbers, they are run in
that order, and rows that such a rule tells apart are never in one batch.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

# Of a rotary module, what ends so is its frequencies and what it remembers; layers of several kinds have several.
_STATE = ("inv_freq", "max_seq_len_cached", "attention_scaling")


# Settings that say how many keys a token attends to. Some count blocks of keys, or what several keys were made into, of
# which k hold k keys or more.
_KEYS_KEPT = re.compile(r"index(er)?_(top_?k(_blocks)?|budget)|keep_window_size|moba_top_?k")


@dataclass(frozen=True)
class LengthRule:
    """A part of a model that goes by the longest row of a batch.

    Attributes:
        kind: `longrope` or `dynamic`, of rotary embeddings; or `top-k`, of attention.
        limit: Maximum tokens of a row to which nothing of it applies.
    """

    kind: str
    limit: int

    @property
    def what(self) -> str:
        """What of a row depends on it, in words."""
        return f"choice of keys ({self.kind})" if self.kind == "top-k" else f"rotary angles ({self.kind})"

    def cuts(self, longest: int) -> range:
        """Rows shorter than one of these lengths and rows at least as long must not be in one batch."""
        if self.kind == "longrope":
            return range(self.limit + 1, self.limit + 2)
        if self.kind == "top-k":
            return range(self.limit + 1, longest + 1)
        # Each length beyond has frequencies of its own, and one of just the trained length may find those of others.
        return range(self.limit, longest + 1)


def length_rules(model: nn.Module, longest: int) -> list[LengthRule]:
    """The rules of a model that apply to a run, each once.

    Args:
        model: A model of transformers, or one that has such a model inside.
        longest: Tokens of the longest row of the run.
    """
    found = [rule for module in model.modules() for rule in _rotary_rules(module)]
    if (kept := keys_kept(model)) is not None:
        found.append(LengthRule("top-k", kept))
    return sorted({rule for rule in found if longest > rule.limit}, key=lambda rule: (rule.limit, rule.kind))


def keys_kept(model: nn.Module) -> int | None:
    """The least number of keys that layers of a model keep for a token, by its configuration; None if all keep all."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    kept = (number for config in configs.values() for number in _kept_by(getattr(config, "__dict__", {})))
    return min(kept, default=None)


def _kept_by(settings: Mapping[str, Any]) -> Iterator[int]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _kept_by(value)
        elif isinstance(name, str) and _KEYS_KEPT.fullmatch(name):
            numbers = value if isinstance(value, (list, tuple)) else [value]
            yield from (number for number in numbers if isinstance(number, int) and not isinstance(number, bool))


def cuts_for(rules: Sequence[LengthRule], longest: int) -> list[int]:
    """The lengths at which batches must be cut, as `Requests.padded_batch` takes them."""
    return sorted({cut for rule in rules for cut in rule.cuts(longest)})


def _rotary_rules(module: Any) -> Iterator[LengthRule]:
    kinds: Any = getattr(module, "rope_type", None)
    layered = isinstance(kinds, dict)
    for layer_type, kind in kinds.items() if layered else [(None, kinds)]:
        if isinstance(kind, str) and "dynamic" in kind:
            yield LengthRule("dynamic", int(module.original_max_seq_len))
        elif kind == "longrope":
            parameters = module.config.rope_parameters
            parameters = parameters[layer_type] if layered else parameters
            yield LengthRule("longrope", int(parameters["original_max_position_embeddings"]))


@contextmanager
def fresh_rotary(model: nn.Module) -> Iterator[None]:
    """Inside, rotary embeddings have forgotten all earlier batches; afterwards they know what they did before."""
    states = []
    for module in model.modules():
        if any(True for _ in _rotary_rules(module)):
            states.append((module, dict(module._buffers), dict(vars(module))))
            _forget(module)
    try:
        yield
    finally:
        for module, buffers, attributes in states:
            for name in [name for name in vars(module) if name.endswith(_STATE) and name not in attributes]:
                delattr(module, name)
            vars(module).update({name: value for name, value in attributes.items() if name.endswith(_STATE)})
            module._buffers.clear()
            module._buffers.update(buffers)


def _forget(module: Any) -> None:
    """Puts copies of the original frequencies in, since transformers writes into what is there."""
    names = [name for name in (*module._buffers, *vars(module)) if name.endswith("original_inv_freq")]
    for name in names:
        current = name.replace("original_inv_freq", "inv_freq")
        device = getattr(module, current).device
        module._buffers[current] = getattr(module, name).to(device).clone()
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        setattr(module, name, module.original_max_seq_len)
