"""A base model that several adapters are put on one after the other: loaded once, and as it was loaded for each.

PEFT puts modules of its own around those of the base and takes them off again (`unload`); nothing is merged. That the
base is then as it was is not taken on trust: its modules and the sums over its parameters' bytes are compared. If they
differ, or the next adapter needs another vocabulary, the base is loaded again, and a warning says so.

Importing this imports no torch.
"""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import WmdpFastWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PreTrainedTokenizerBase


class AdapterBase:
    """Keeps the base in memory, with no more than one adapter on it."""

    def __init__(self) -> None:
        self._base: Any = None
        self._adapted: Any = None
        self._adapter = ""
        self._notes: list[str] = []
        self._vocabulary = 0
        self._attention: str | None = None
        self._state: tuple[object, ...] = ()

    @property
    def loaded(self) -> bool:
        """Whether the base is in memory."""
        return self._base is not None

    def forget(self) -> None:
        """Lets go of the base and what is on it."""
        self._base = self._adapted = None
        gc.collect()

    def with_adapter(
        self,
        read: Callable[[], tuple[torch.nn.Module, list[str]]],
        adapter: str,
        tokenizer: PreTrainedTokenizerBase,
    ) -> tuple[torch.nn.Module, list[str]]:
        """The base with an adapter on it, in place of the last one.

        Args:
            read: Reads the base from its files; with what is to be said of it. Called if it is not here as it was read.
            adapter: Folder, or name on the hub.
            tokenizer: The base's.

        Returns:
            The model with its adapter, and what is to be said of the two: what separate calls say.

        Warns:
            WmdpFastWarning: The base has to be read again.

        Raises:
            WmdpFastError: As `read` and `wmdp_fast.models.adapters.with_adapter`.
        """
        from wmdp_fast.models import adapters

        if self._base is not None and (problem := self._take_off(adapter, tokenizer)):
            self.forget()
            warnings.warn(f"the base is loaded again for {adapter}: {problem}", WmdpFastWarning, stacklevel=2)
        if self._base is None:
            self._base, self._notes = read()
            self._vocabulary = adapters.vocabulary_size(self._base)
            self._attention = _attention(self._base)
            self._state = state_of(self._base)
        self._adapter, had = adapter, adapters.vocabulary_size(self._base)
        sized = adapters.fit_vocabulary(self._base, adapter, tokenizer, self._vocabulary)
        if adapters.vocabulary_size(self._base) != had:
            self._state = state_of(self._base)
        self._adapted, notes = adapters.with_adapter(self._base, adapter, tokenizer)
        return self._adapted, [*self._notes, *sized, *notes]

    def _take_off(self, adapter: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Takes the last adapter off; or says why the base cannot be used for the next one."""
        from wmdp_fast.models import adapters

        adapted, self._adapted = self._adapted, None
        if adapted is not None:
            if not hasattr(adapted.base_model, "unload"):
                return f"PEFT has no way to take {self._adapter} off it"
            adapted.base_model.unload()
            # PEFT up to 0.20 leaves it there, and takes the next adapter for a second one.
            vars(self._base).pop("peft_config", None)
        if state_of(self._base) != self._state:
            return f"PEFT cannot take {self._adapter} off it without a trace"
        if adapters.rows_for(self._base, adapter, tokenizer) != adapters.vocabulary_size(self._base):
            return f"its vocabulary was cut or grown for {self._adapter}, and not to what this one needs"
        if _attention(self._base) != self._attention:
            self._base.set_attn_implementation(self._attention)
        return None


def state_of(model: torch.nn.Module) -> tuple[object, ...]:
    """What tells whether a model was changed: attributes, modules, hooks, and the sum of each parameter's bytes."""
    from wmdp_fast.models.byte_sums import sum_of_bytes

    modules = [
        (name, type(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]
    parameters = [(name, tuple(one.shape), one.dtype, sum_of_bytes(one)) for name, one in model.named_parameters()]
    return frozenset(vars(model)), tuple(modules), tuple(parameters)


def _attention(model: Any) -> str | None:
    return getattr(model.config, "_attn_implementation", None)
