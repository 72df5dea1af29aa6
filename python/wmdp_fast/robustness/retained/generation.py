"""Text that a model continues prompts with, by transformers' own `generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.threads import computing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wmdp_fast.scoring.local import LocalModel

# Prompts at once.
_BATCH = 16

# What FastChat samples from; nothing where the likeliest token is taken.
_TOP_K = 50


class _RefusesNaN(LogitsProcessor):
    """Ends a generation whose numbers are none: the likeliest of NaNs would be a token like any other."""

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if bool(scores.isnan().any()):
            raise ModelError("the model's logits are NaN while it generates")
        return scores


def generate(
    model: LocalModel,
    prompts: Sequence[Sequence[int]],
    *,
    most: int,
    temperature: float = 0.0,
    seed: int = 0,
    tell: Callable[[int], None] = lambda _done: None,
) -> list[list[int]]:
    """Continues prompts, prompts of about the same length together and padded on the left.

    What a model's own configuration says of generation does not count, but for its end-of-text tokens: penalties and
    temperatures would hide what unlearning did.

    Args:
        model: The model.
        prompts: Token ids of each.
        most: Most new tokens.
        temperature: 0 takes the likeliest token.
        seed: Of the sampling, if there is any.
        tell: Is told how many prompts are done.

    Returns:
        The new tokens of each, without the end of text.

    Raises:
        ModelError: The model cannot generate, gives no numbers, or a prompt leaves no room for an answer.
    """
    network: Any = model.loaded.model
    if not hasattr(network, "generate"):
        raise ModelError(f"{model.name} cannot generate: it has no `generate`")
    if any(not 0 < len(one) < model.max_length for one in prompts):
        raise ModelError(f"a prompt is empty, or leaves no room for an answer in {model.max_length} tokens")
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    ends = _ends(model)
    found: list[list[int]] = [[] for _ in prompts]
    devices = [model.loaded.device] if model.loaded.device.type == "cuda" else []
    with evaluation_mode(network), computing(), torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for begin in range(0, len(order), _BATCH):
            places = order[begin : begin + _BATCH]
            rows = _batch(model, [prompts[place] for place in places], ends, most, temperature)
            for place, row in zip(places, rows, strict=True):
                found[place] = row
            tell(begin + len(places))
    return found


def _batch(
    model: LocalModel, prompts: Sequence[Sequence[int]], ends: Sequence[int], most: int, temperature: float
) -> list[list[int]]:
    width = max(map(len, prompts))
    pad = ends[0] if ends else 0
    ids = torch.tensor([[pad] * (width - len(one)) + list(one) for one in prompts], device=model.loaded.device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=model.loaded.device)
    sampling = {"temperature": temperature, "top_k": _TOP_K, "top_p": 1.0} if temperature > 0 else {}
    config_of: Any = GenerationConfig  # it has no types
    config = config_of(
        do_sample=temperature > 0,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=min(most, model.max_length - width),
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        **sampling,
    )
    network: Any = model.loaded.model
    made = network.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([_RefusesNaN()]),
    )
    return [_before_end(row, ends) for row in made[:, width:].tolist()]


def _ends(model: LocalModel) -> list[int]:
    """The model's end-of-text tokens, or the tokenizer's."""
    own = getattr(getattr(model.loaded.model, "generation_config", None), "eos_token_id", None)
    if own is None:
        own = model.tokenizer.eos_token_id
    return [own] if isinstance(own, int) else list(own or ())


def _before_end(row: Sequence[int], ends: Sequence[int]) -> list[int]:
    place = next((place for place, token in enumerate(row) if token in ends), len(row))
    return list(row[:place])
