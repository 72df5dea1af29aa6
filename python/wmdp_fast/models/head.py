"""A causal model cut at its last hidden states: its base, and the model without its base.

The logits of a whole batch over a whole vocabulary can be gigabytes. So a batch goes through the base, and its hidden
states through the rest some rows at a time. The rest is the model itself, called with its base left out: whatever it
does to its logits (caps, scales, an adapter on the projection) is done. Nothing here knows an architecture; that the
two parts give the logits of the whole is tried first.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from wmdp_fast.models.adapters import begins_at_tokens, without_adapter
from wmdp_fast.models.fused.forwards import replaced_forwards
from wmdp_fast.models.logits import all_logits, are_close, forward_without_cache

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ModelHead:
    """A model without its base. Gradients go through both, where they are on.

    Attributes:
        base: The part of the model that returns hidden states.
        vocabulary_size: Logits of a token.
        dtype: Of the logits.

    Args:
        model: The whole model.
        base: That part of it.
        logits: Some of its logits, `[R, V]`.
    """

    def __init__(self, model: nn.Module, base: nn.Module, logits: Tensor) -> None:
        self.base, self.vocabulary_size, self.dtype = base, logits.shape[1], logits.dtype
        self._model = model
        self._outputs: Any = None

    def hidden(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Runs the base.

        Args:
            input_ids: Token ids, `[B, T]`.
            **inputs: What else it is called with, such as `attention_mask`.

        Returns:
            Its last hidden states, `[B, T, d]`.
        """
        self._outputs = forward_without_cache(self.base, input_ids, **inputs)
        hidden: Tensor = self._outputs.last_hidden_state
        # `logits` needs whatever else the base returned. The states would outlive the batch.
        self._outputs.last_hidden_state = hidden.new_empty(0)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """What the model makes of hidden states `[R, d]`: `[R, V]`. `hidden` must have been called before."""
        return logits_without_base(self._model, self.base, copy.copy(self._outputs), hidden)


def logits_without_base(model: nn.Module, base: nn.Module, outputs: Any, hidden: Tensor) -> Tensor:
    """Calls a model with its base left out.

    Args:
        model: The whole model.
        base: The part of it that returns hidden states.
        outputs: What the model is given as the base's outputs; `last_hidden_state` is set in it.
        hidden: Hidden states, `[R, d]`.

    Returns:
        What the model makes of them: `[R, V]`.
    """

    def put_in(*_: Any) -> Any:
        outputs.last_hidden_state = hidden[None]
        return outputs

    outputs.last_hidden_state = hidden.new_empty(0)
    tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    # After the hooks that the base has: FSDP's would take the gradient of a few logits for the end of a batch's.
    last = base.register_forward_hook(put_in)
    try:
        with replaced_forwards({base: lambda *_, **__: outputs}):
            logits: Tensor = forward_without_cache(model, tokens).logits
    finally:
        last.remove()
    return logits[0]


def logits_at(head: ModelHead, input_ids: Tensor, readouts: NDArray[np.int64]) -> Tensor:
    """Logits at readouts, the only ones computed; `models.logits.selected_logits` where a model takes no mask.

    Args:
        head: The model's head.
        input_ids: Token ids, `[B, T]`.
        readouts: Pairs (row, position), in order: `[R, 2]`.

    Returns:
        Logits, `[R, V]`.
    """
    hidden = head.hidden(input_ids)
    rows, positions = torch.from_numpy(readouts).to(hidden.device).unbind(dim=1)
    return head.logits(hidden[rows, positions])


def head_of(model: nn.Module, device: torch.device) -> ModelHead | None:
    """A model's head; None if the model has no base, or its base and head do not give its own logits.

    That is tried on a few tokens, but for an adapter that begins at others.

    Args:
        model: A causal model, in the mode in which it will be run.
        device: Where its token ids go.
    """
    if begins_at_tokens(model):
        return None
    inner: Any = without_adapter(model)
    # OPT calls the decoder in its base, not the base. Llama 4 calls itself its base.
    inside = [child for child in inner.children() if hasattr(child, "get_input_embeddings")]
    bases = [getattr(inner, "base_model", inner), getattr(inner, "get_decoder", lambda: inner)(), *inside]
    bases = [base for base in bases if base is not inner and isinstance(base, nn.Module)]
    input_ids = torch.tensor([[1, 2, 1]], device=device)
    with torch.no_grad():
        expected = all_logits(model, input_ids, np.array([[0, 0], [0, 1], [0, 2]])) if bases else None
        heads = (_tried(model, base, input_ids, expected) for base in dict.fromkeys(bases) if expected is not None)
        return next((head for head in heads if head is not None), None)


def _tried(model: nn.Module, base: nn.Module, input_ids: Tensor, expected: Tensor) -> ModelHead | None:
    """A model cut at a base, if the two parts give logits that are expected, `[R, V]`."""
    head = ModelHead(model, base, expected)
    try:
        # One row by itself, as a part of a batch may be.
        hidden = head.hidden(input_ids)[0]
        found = torch.cat([head.logits(hidden[:2]), head.logits(hidden[2:])])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    same = found.shape == expected.shape and found.dtype == expected.dtype and are_close(found, expected)
    return head if same else None
