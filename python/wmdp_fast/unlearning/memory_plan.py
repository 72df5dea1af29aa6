"""Whether a run leaves the layers that it does not train on the disk, and how its memory is shared out then."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import torch

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.fits import bytes_of_weights, memory_to_stream_in
from wmdp_fast.models.load import parse_dtype
from wmdp_fast.models.locate import locate_model
from wmdp_fast.models.partial import first_layers_without_weights
from wmdp_fast.models.streamed import SLACK, memory_in_use
from wmdp_fast.runtime.memory import in_gigabytes
from wmdp_fast.scoring.chunk_memory import LEAST_BUDGET, Needs, refuse_memory, room_for_states
from wmdp_fast.unlearning.layers_below import LayersBelow, bytes_of_a_token
from wmdp_fast.unlearning.parameters import trained_parameters
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.source import Streaming

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence
    from os import PathLike

    from torch import Tensor
    from transformers import PreTrainedModel

    from wmdp_fast.models.streamed import StreamedModel
    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.trained_weights import TrainedWeights
    from wmdp_fast.unlearning.training_config import TrainingConfig


def streaming_of(
    model: str | PathLike[str] | PreTrainedModel,
    request: Request,
    configs: Sequence[TrainingConfig],
    *,
    memory: str | int | None,
    stream: bool,
    revision: str | None,
    device: str,
    trust_remote_code: bool,
    whole: bool,
    sharers: int = 1,
) -> Streaming | None:
    """How a model is held whose layers are left on the disk unless a run trains them; None if none are left there.

    Args:
        model: What is to be unlearned.
        request: What the user asked for.
        configs: All settings that will be run, one after the other.
        memory: An amount, as `amount_of_memory` reads it; layers are left on the disk if they do not fit into it.
        stream: Whether to do so even if they fit; without an amount, in what is free.
        revision: Of the model on the hub.
        device: Where to.
        trust_remote_code: Whether code that comes with the model may run.
        whole: Whether the whole model is going to be asked.
        sharers: How many processes do so on this machine at once.

    Raises:
        DataUnavailableError: The model is missing or out of reach.
        ModelError: The device is not there, or the model's files are damaged.
        ValueError: It cannot be done with this model, method or request, or `memory` is no amount.
    """
    if memory is None and not stream:
        return None
    refuse_unstreamed(model, request, configs)
    name = os.fspath(cast("str | PathLike[str]", model))
    rmus = [config for config in configs if isinstance(config, RMUConfig)]
    deepest = max(rmus, key=lambda config: config.depth)
    needs = _bytes_in_memory(name, deepest, revision, trust_remote_code, whole=whole)
    taken = memory_to_stream_in(
        locate_model(name, revision=revision),
        memory="auto" if memory is None else memory,
        stream=stream or needs is None,
        dtype=deepest.dtype,
        device=device,
        needs=needs,
        sharers=sharers,
    )
    lowest = min(config.updated_layers[0] for config in rmus)
    return None if taken is None else Streaming(taken, range(lowest, deepest.depth))


def refuse_unstreamed(
    model: str | PathLike[str] | PreTrainedModel, request: Request, configs: Sequence[TrainingConfig]
) -> None:
    """Raises ValueError for what cannot be done while layers are on the disk; arguments are those of `streaming_of`."""
    config = request.config
    if not isinstance(model, (str, os.PathLike)):
        refused = "memory and stream are for a model on disk; this one is in memory already"
        raise ValueError(refused)  # noqa: TRY004 (the model is right, the combination is not)
    if not isinstance(config, RMUConfig) or type(config).method is not RMUConfig.method:
        raise ValueError(
            f"memory and stream are for rmu, which trains a few layers and runs none above them; for"
            f" {config.method_name} the model has to fit into memory"
        )
    if request.budget is not None:
        raise ValueError(
            "max_kl is measured with the whole model in memory, of which memory and stream hold a few layers: leave it"
            " out"
        )
    if any(isinstance(one, RMUConfig) and one.updated_layers[0] == 0 for one in configs):
        raise ValueError(
            "memory and stream leave the layers below the trained ones on the disk, and below layer 0, which is"
            " trained, there are none: train higher ones (update_layer_ids, layer_id), or leave them out"
        )


def _bytes_in_memory(
    name: str, config: RMUConfig, revision: str | None, trust_remote_code: bool, *, whole: bool
) -> int | None:
    """Memory for a run with all its layers in memory, without what is computed; None where that cannot be told."""
    first = first_layers_without_weights(name, config.depth, revision=revision, trust_remote_code=trust_remote_code)
    if first is None:
        return None
    model = first.decoder.model
    own = model.config.get_text_config().dtype
    dtype = parse_dtype(config.dtype) or (own if isinstance(own, torch.dtype) else torch.float32)
    trained = trained_parameters(config, first.decoder, None, first.num_layers)
    # Beside each trained parameter a copy of what it was, its gradient and two moments; a sweep has a copy of its own.
    beside = (4 + whole) * sum(one.parameter.numel() for one in trained) * dtype.itemsize
    if whole:
        weights = bytes_of_weights(locate_model(name, revision=revision), config.dtype)
        return None if weights is None else weights + beside
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize + beside


def layers_below(
    streamed: StreamedModel,
    config: TrainingConfig,
    weights: TrainedWeights,
    batches: Iterable[Batch],
    held: dict[Hashable, Tensor],
    *,
    scored: bool,
) -> LayersBelow:
    """Shares out the memory of a run.

    Args:
        streamed: The model.
        config: The settings.
        weights: What is trained, with copies of the original values.
        batches: All batches of the run.
        held: `Source.held`.
        scored: Whether the whole model is scored on the way or in the end.

    Raises:
        ModelError: There is not enough for a single batch, or to evaluate; says how much there must be.
    """
    sizes = {batch.key: batch.num_tokens for batch in batches}
    largest, in_use = max(sizes.values()), memory_in_use(streamed.skeleton.device)
    states = _state_bytes(config, weights)
    if scored:
        refuse_little_memory(streamed, in_use + states)
    streamed = streamed.below(min(config.trained_layers(len(streamed.skeleton.layers))))
    besides = states + _busiest(streamed, config, largest)
    state = largest * bytes_of_a_token(streamed)
    room = int(streamed.memory * (1 - SLACK)) - in_use - besides
    if room < state:
        least = (in_use + besides + state) / (1 - SLACK)
        raise ModelError(
            f"memory {in_gigabytes(streamed.memory)} is too little: {in_gigabytes(in_use)} are taken before the run,"
            f" and gradients, the optimizer, and what is computed with a batch of {largest} tokens need"
            f" {in_gigabytes(least - in_use)} more. Give {in_gigabytes(least * 1.05)}, or lower batch_size, max_length"
            " or retain_max_length"
        )
    return LayersBelow(streamed, room, sum(sizes.values()), held)


def refuse_little_memory(streamed: StreamedModel, in_use: int) -> None:
    """Raises ModelError if the whole model could not be scored in the smallest batches while a run is under way.

    Args:
        streamed: The model.
        in_use: Bytes that are taken then.
    """
    needs = Needs(LEAST_BUDGET, LEAST_BUDGET, 0, head_in_parts=True)
    if room_for_states(streamed, needs, in_use) <= 0:
        refuse_memory(streamed, needs, in_use, 0)


def _state_bytes(config: TrainingConfig, weights: TrainedWeights) -> int:
    """Bytes for gradients, and for what the optimizer keeps."""
    found = 0
    for parameter in weights.parameters.values():
        own = parameter.element_size()
        kept = max(own, 4) if config.master_weights else own
        master = kept if kept > own else 0
        # Two moments, and the root of one of them while they are applied.
        found += parameter.numel() * (own + 3 * kept + master)
    return found


def _busiest(streamed: StreamedModel, config: TrainingConfig, tokens: int) -> int:
    """Bytes for what is computed with a batch: by the layers below while the next one arrives, or in a step."""
    skeleton, count = streamed.skeleton, len(streamed.order)
    lower = skeleton.layers[:count]
    arriving = max(part.arriving_bytes for part in lower)
    working = streamed.working_bytes(tokens)
    trained = (config.depth or len(skeleton.layers)) - count
    return max(
        skeleton.embedding.arriving_bytes + arriving,
        max(part.nbytes for part in lower) + arriving + working,
        # Each layer keeps what its gradient needs; three more for losses and for what the gradient itself makes.
        (trained + 3) * working,
    )
