"""The residual stream of a model after each of its decoder layers: what attacks read that look inside."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wmdp_fast._rust import Requests
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.adapters import without_adapter
from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.logits import forward_without_cache
from wmdp_fast.models.row_length import cuts_for, length_rules
from wmdp_fast.models.threads import computing
from wmdp_fast.scoring.padded import auto_token_budget, is_out_of_memory, longest_row
from wmdp_fast.scoring.scores import NAN_ADVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from wmdp_fast._rust import PaddedBatch
    from wmdp_fast.models.decoder import Decoder
    from wmdp_fast.scoring.local import LocalModel


def decoder_in(model: LocalModel) -> Decoder:
    """The decoder of a model that is attacked.

    Raises:
        ModelError: It has no list of decoder layers, or calls them several times, or its adapter puts tokens of its own
            before every row.
    """
    network: Any = model.loaded.model
    if getattr(getattr(network, "active_peft_config", None), "is_prompt_learning", False):
        raise ModelError(f"{model.name}: its adapter puts tokens of its own before every row; its layers are not read")
    decoder = decoder_of(without_adapter(network))
    decoder.refuse_other_orders()
    return decoder


def residual_stream(
    model: LocalModel,
    rows: Sequence[Sequence[int]],
    from_end: Sequence[Sequence[int]],
    modules: Sequence[nn.Module] | None = None,
) -> list[Tensor]:
    """Runs rows of tokens and keeps what each layer leaves in the residual stream at some of their tokens.

    One forward pass over padded rows. Kept is a number of the model's own dtype for each token, layer and dimension: of
    a model with 32 layers and a width of 4,096 in bfloat16 a quarter of a megabyte a token.

    Args:
        model: The model as it is now.
        rows: Token ids of each row; of one that is too long the model sees the end.
        from_end: Of each row the tokens that are wanted, counted from its end: 1 is the last.
        modules: Modules of the model whose output is kept instead of its layers': blocks that write to the stream.

    Returns:
        For each layer or module `[N, d]` on the CPU: the wanted tokens of the first row, then those of the next.

    Raises:
        ModelError: It has no layers that can be read, or gives no numbers.
        ValueError: A row has no such token.
        RuntimeError: Memory ran out with a single row.
    """
    decoder, loaded = decoder_in(model), model.loaded
    read = list(decoder.layers) if modules is None else modules
    requests = Requests.from_tokens([list(row) for row in rows], [[[0]]] * len(rows), model.max_length)
    firsts = torch.tensor([0, *(len(one) for one in from_end)]).cumsum(0).tolist()
    kept = [torch.empty(firsts[-1], decoder.hidden_size, dtype=loaded.dtype) for _ in read]
    longest = longest_row(requests)
    cuts = cuts_for(length_rules(loaded.model, longest), longest)
    budget, start = auto_token_budget(loaded, requests, every_logit=False), 0
    with evaluation_mode(loaded.model):
        while (batch := requests.padded_batch(start, budget, cuts)) is not None:
            wanted = _wanted(batch, from_end, firsts)
            try:
                with computing(), _kept(read, wanted, kept):
                    forward_without_cache(decoder.model, torch.from_numpy(batch.input_ids).to(loaded.device))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(batch.input_ids) == 1:
                    raise
                budget = batch.input_ids.size // 2
            else:
                start = batch.stop
    if not all(bool(one.isfinite().all()) for one in kept):
        raise ModelError(NAN_ADVICE)
    return kept


def _wanted(batch: PaddedBatch, from_end: Sequence[Sequence[int]], firsts: Sequence[int]) -> Tensor:
    """Of each token that is wanted from a batch its row, its position, and its place among all: `[3, N]`."""
    found = []
    rows = batch.readouts[batch.target_readouts, 0]
    for row, request in zip(rows.tolist(), batch.target_choices.tolist(), strict=True):
        length = int(batch.lengths[row])
        for place, back in enumerate(from_end[request]):
            if not 1 <= back <= length:
                raise ValueError(f"a row of {length} tokens has none {back} from its end")
            found.append((row, length - back, firsts[request] + place))
    return torch.tensor(found).T


@contextmanager
def _kept(layers: Sequence[nn.Module], wanted: Tensor, kept: Sequence[Tensor]) -> Iterator[None]:
    rows, positions, places = wanted

    def keep_of(kept_of_layer: Tensor) -> Callable[[Tensor], None]:
        def keep(stream: Tensor) -> None:
            chosen = stream[rows.to(stream.device), positions.to(stream.device)]
            kept_of_layer[places] = chosen.to("cpu", kept_of_layer.dtype)

        return keep

    with changed_stream(layers, {index: keep_of(one) for index, one in enumerate(kept)}):
        yield


@contextmanager
def changed_stream(
    layers: Sequence[nn.Module] | nn.ModuleList, changes: Mapping[int, Callable[[Tensor], Tensor | None]]
) -> Iterator[None]:
    """Inside, what layers leave in the residual stream goes through functions first.

    Args:
        layers: A model's decoder layers, or blocks of them.
        changes: By a layer's number what is made of the stream after it, `[B, S, d]`; None leaves it as it is.
    """

    def hook_of(change: Callable[[Tensor], Tensor | None]) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                changed = change(output[0])
                return None if changed is None else (changed, *output[1:])
            return change(output)

        return hook

    handles = [layers[index].register_forward_hook(hook_of(change)) for index, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
