"""What of a model's numbers depends on how long the longest row of a batch is, and what it remembers of that.

Two kinds of rotary embedding go by the longest row of the batch at hand. `longrope` takes one set of frequencies for
batches up to the length that the model was first trained with, and another one beyond. `dynamic` scales its frequencies
with the length beyond that, and later batches may find them so (transformers,
`modeling_rope_utils.dynamic_rope_update`; what exactly it keeps differs between versions).

lm-eval scores one row at a time, the longest first. So that batches of many rows give the same numbers, they are run in
that order, and rows that such a rule tells apart are never in one batch.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

# Of a rotary module, what ends so is its frequencies and what it remembers; layers of several kinds have several.
_STATE = ("inv_freq", "max_seq_len_cached", "attention_scaling")


@dataclass(frozen=True)
class LengthRule:
    """A rotary embedding that goes by the longest row of a batch.

    Attributes:
        kind: `longrope` or `dynamic`.
        trained: Maximum tokens of a row to which nothing of it applies.
    """

    kind: str
    trained: int

    def cuts(self, longest: int) -> range:
        """Rows shorter than one of these lengths and rows at least as long must not be in one batch."""
        if self.kind == "longrope":
            return range(self.trained + 1, self.trained + 2)
        # Each length beyond has frequencies of its own, and one of just the trained length may find those of others.
        return range(self.trained, longest + 1)


def length_rules(model: nn.Module, longest: int) -> list[LengthRule]:
    """The rules of a model's rotary embeddings that apply to a run, each once.

    Args:
        model: A model of transformers, or one that has such a model inside.
        longest: Tokens of the longest row of the run.
    """
    rules = {rule for module in model.modules() for rule in _rules(module) if longest > rule.trained}
    return sorted(rules, key=lambda rule: (rule.trained, rule.kind))


def cuts_for(rules: Sequence[LengthRule], longest: int) -> list[int]:
    """The lengths at which batches must be cut, as `Requests.padded_batch` takes them."""
    return sorted({cut for rule in rules for cut in rule.cuts(longest)})


def _rules(module: Any) -> Iterator[LengthRule]:
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
        if any(True for _ in _rules(module)):
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
