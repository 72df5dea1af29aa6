"""Whether a run leaves the layers below the trained ones on the disk, and how its memory is shared out then."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.fits import memory_to_stream_in
from wmdp_fast.models.load import parse_dtype
from wmdp_fast.models.locate import locate_model
from wmdp_fast.models.partial import first_layers_without_weights
from wmdp_fast.models.streamed import SLACK, memory_in_use
from wmdp_fast.runtime.memory import in_gigabytes
from wmdp_fast.unlearning.layers_below import LayersBelow, bytes_of_a_token
from wmdp_fast.unlearning.parameters import trained_parameters
from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    from transformers import PreTrainedModel

    from wmdp_fast.models.streamed import StreamedModel
    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.trained_weights import TrainedWeights
    from wmdp_fast.unlearning.training_config import TrainingConfig


def memory_to_take(
    model: str | PathLike[str] | PreTrainedModel,
    request: Request,
    *,
    memory: str | int | None,
    stream: bool,
    revision: str | None,
    device: str,
    trust_remote_code: bool,
) -> int | None:
    """Bytes that a run may take which leaves the layers below the trained ones on the disk; None if it does not.

    Args:
        model: What is to be unlearned.
        request: What the user asked for.
        memory: An amount, as `amount_of_memory` reads it; layers are left on the disk if they do not fit into it.
        stream: Whether to do so even if they fit; without an amount, in what is free.
        revision: Of the model on the hub.
        device: Where to.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        DataUnavailableError: The model is missing or out of reach.
        ModelError: The device is not there, or the model's files are damaged.
        ValueError: It cannot be done with this model, method or request, or `memory` is no amount.
    """
    if memory is None and not stream:
        return None
    config = request.config
    name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
    if name is None:
        raise ValueError("memory and stream are for a model on disk; this one is in memory already")
    if not isinstance(config, RMUConfig) or type(config).method is not RMUConfig.method:
        raise ValueError(
            f"memory and stream are for rmu, which trains a few layers and runs none above them; for"
            f" {config.method_name} the model has to fit into memory"
        )
    if request.needs_whole_model:
        raise ValueError(
            "eval_tasks, eval_text and max_kl need the whole model, of which memory and stream hold a few layers: leave"
            " them out, and score the new checkpoint afterwards (`wmdp-fast eval` takes --memory and --stream too)"
        )
    if config.updated_layers[0] == 0:
        raise ValueError(
            "memory and stream leave the layers below the trained ones on the disk, and below layer 0, which is"
            " trained, there are none: train higher ones (update_layer_ids, layer_id), or leave them out"
        )
    needs = _bytes_of_first_layers(name, config, revision, trust_remote_code)
    amount = "auto" if memory is None else memory
    files = locate_model(name, revision=revision)
    return memory_to_stream_in(
        files, memory=amount, stream=stream or needs is None, dtype=config.dtype, device=device, needs=needs
    )


def _bytes_of_first_layers(name: str, config: RMUConfig, revision: str | None, trust_remote_code: bool) -> int | None:
    """Memory for a run with all its layers in memory, without what is computed; None where that cannot be told."""
    first = first_layers_without_weights(name, config.depth, revision=revision, trust_remote_code=trust_remote_code)
    if first is None:
        return None
    model = first.decoder.model
    own = model.config.get_text_config().dtype
    dtype = parse_dtype(config.dtype) or (own if isinstance(own, torch.dtype) else torch.float32)
    trained = trained_parameters(config, first.decoder, None, first.num_layers)
    # Beside each trained parameter a copy of what it was, its gradient and two moments.
    count = sum(parameter.numel() for parameter in model.parameters()) + 4 * sum(
        one.parameter.numel() for one in trained
    )
    return count * dtype.itemsize


def layers_below(
    streamed: StreamedModel, config: TrainingConfig, weights: TrainedWeights, batches: Iterable[Batch]
) -> LayersBelow:
    """Shares out the memory of a run.

    Args:
        streamed: The layers below the first trained one.
        config: The settings.
        weights: What is trained, with copies of the original values.
        batches: All batches of the run.

    Raises:
        ModelError: There is not enough for a single batch; says how much there must be.
    """
    sizes = {batch.key: batch.num_tokens for batch in batches}
    largest, in_use = max(sizes.values()), memory_in_use(streamed.skeleton.device)
    besides = _state_bytes(config, weights) + _busiest(streamed, config, largest)
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
    return LayersBelow(streamed, room, sum(sizes.values()))


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
