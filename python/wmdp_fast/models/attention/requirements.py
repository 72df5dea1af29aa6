"""What a model asks of its attention, and whether the implementation that it is set to does it.

Attention functions of transformers take what they know by name and pass over the rest. torch's own (`sdpa`), the usual
default, knows no soft caps (Gemma 2) and no sinks (gpt-oss): versions of transformers that give it to such models
compute something else than their configuration says, without a word.
"""

from __future__ import annotations

import inspect
import sys
from contextvars import ContextVar
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.adapters import without_adapter
from wmdp_fast.models.attention.packed import attending_by, attention_names
from wmdp_fast.models.threads import only_user

_RECORDING = "wmdp_fast_recording"

# Arguments of attention functions that change what they compute, and what they are.
_NEEDS = {"softcap": "soft cap", "s_aux": "sinks"}

_asked: ContextVar[dict[str, str] | None] = ContextVar("attention_asked", default=None)


def left_out(model: torch.nn.Module) -> list[str]:
    """What a model asks of torch's attention (`sdpa`) that this leaves out, such as `soft cap`.

    Empty for a model that is set to another implementation, or attends in a way of its own.
    """
    if "sdpa" not in attention_names(model) or not _may_ask(without_adapter(model)):
        return []
    known = inspect.signature(ALL_ATTENTION_FUNCTIONS["sdpa"]).parameters
    return [_NEEDS[name] for name in _asked_of_attention(model) if name not in known]


def take_eager_where_needed(model: torch.nn.Module) -> list[str]:
    """Sets a model that was just loaded to the attention of its own file if torch's leaves something out.

    Returns:
        What results should say of that.

    Raises:
        ModelError: Its file has none.
    """
    if not (needs := left_out(model)):
        return []
    base = without_adapter(model)
    for name, file in _asked_of_attention(model).items():
        # Written beside the layers that use it, so it does what they ask: gpt-oss's reads the sinks off its layer.
        if not hasattr(sys.modules.get(file), "eager_attention_forward"):
            raise ModelError(
                f"transformers {transformers.__version__} runs {type(base).__name__} without the {_NEEDS[name]} that"
                " its configuration asks for, and has no other attention for it: take another version of transformers"
            )
    base.set_attn_implementation("eager")
    return [
        f"attention is eager: the default of transformers {transformers.__version__}, sdpa, leaves out the"
        f" {' and '.join(needs)} that the configuration asks for; lm-eval runs with that default, so its numbers differ"
    ]


def about_left_out(model: torch.nn.Module) -> list[str]:
    """What results should say of a model that stays as it is."""
    return [
        f"the model's attention (sdpa) leaves out the {' and '.join(needs)} that its configuration asks for, and it is"
        ' run as it is: model.set_attn_implementation("eager") does all'
        for needs in [left_out(model)]
        if needs
    ]


def _may_ask(model: Any) -> bool:
    """Whether a configuration or a weight speaks of soft caps or sinks at all; others need no trying."""
    settings = vars(model.config.get_text_config())
    named = [name for name, value in settings.items() if value is not None]
    named += [name for name, _ in model.named_parameters()]
    return any(word in name for name in named for word in ("softcap", "soft_cap", "logit_cap", "sink"))


def _asked_of_attention(model: torch.nn.Module) -> dict[str, str]:
    """The names of `_NEEDS` that a model's layers pass to their attention, each with the file of one that does.

    Found by a forward pass of two tokens through an attention that only looks.
    """
    base = without_adapter(model)
    found: dict[str, str] = {}
    token = _asked.set(found)
    device = next(base.parameters()).device
    training = [(module, module.training) for module in base.modules()]
    try:
        with only_user(base), torch.no_grad(), torch.random.fork_rng(devices=[]), attending_by(base, _RECORDING):
            base.eval()
            base(torch.zeros(1, 2, dtype=torch.long, device=device))
    except Exception:
        # It does not attend through transformers' interface; what it has seen so far counts.
        return found
    finally:
        _asked.reset(token)
        for module, flag in training:
            module.training = flag
    return found


def _record(
    module: torch.nn.Module, query: torch.Tensor, _key: torch.Tensor, value: torch.Tensor, *_: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """What transformers calls to attend: query [B, heads, T, size], value [B, key heads, T, value size]."""
    asked = _asked.get()
    if asked is not None:
        for name in _NEEDS:
            if kwargs.get(name) is not None:
                asked.setdefault(name, type(module).__module__)
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(_RECORDING, _record)
AttentionMaskInterface.register(_RECORDING, lambda **_: None)
