"""The same run by this package and by the plain original."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from tests.reference import rmu as plain
from tests.support import unlearning_runs as runs
from wmdp_fast.unlearning.api import unlearn
from wmdp_fast.unlearning.rmu.config import RMUConfig

LENGTHS = (20, 30)


COEFFICIENTS = (2.0, 3.0)


ALPHAS = (100.0, 50.0)


def both(
    folder,
    *,
    topics,
    dtype="auto",
    parameters="mlp.down_proj",
    layer_id=2,
    update=(0, 1, 2),
    steps=12,
    seed=0,
    lr=1e-3,
    forget=None,
    retain=None,
    batch_size=2,
    cache_trunk=None,
):
    """Runs both on the same data; returns the plain record and our result."""
    forget = forget or [runs.documents(seed + 1 + topic) for topic in range(topics)]
    retain = retain or runs.documents(seed + 100)
    config = RMUConfig(
        layer_id=layer_id,
        update_layer_ids=update,
        parameters=parameters,
        steering_coeff=COEFFICIENTS[:topics],
        alpha=ALPHAS[:topics],
        learning_rate=lr,
        batch_size=batch_size,
        max_steps=steps,
        max_length=LENGTHS[:topics],
        retain_max_length=25,
        seed=seed,
        dtype=dtype,
    )
    ours = unlearn(
        folder,
        forget=[runs.corpus(topic) for topic in forget],
        retain=runs.corpus(retain),
        config=config,
        progress=False,
        cache_trunk=cache_trunk,
    )
    record = plain.rmu(
        folder,
        forget,
        [retain] * topics,
        layer_id=layer_id,
        update=trained_names(ours, folder),
        steering_coeffs=COEFFICIENTS[:topics],
        alphas=ALPHAS[:topics],
        lr=lr,
        batch_size=batch_size,
        max_steps=steps,
        forget_max_lengths=LENGTHS[:topics],
        retain_max_length=25,
        pad_id=runs.PAD,
        seed=seed,
        dtype=dtype,
    )
    return record, ours


def trained_names(ours, folder):
    """The plain algorithm's names of what we trained: those of the whole model."""

    prefix = AutoModelForCausalLM.from_pretrained(folder).base_model_prefix
    return [f"{prefix}.{line.split(':')[0]}" for line in ours.picked]


def assert_same(record, ours, folder):
    rows = ours.metrics
    assert [row["forget_loss"] for row in rows] == record.forget_losses
    assert [row["retain_loss"] for row in rows] == record.retain_losses
    for mine, theirs in zip(ours.control_vectors, record.control_vectors, strict=True):
        assert torch.equal(mine, theirs)
    stored = stored_state(record.model, folder)
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor, stored[name]), name
    # Before the first step the model is its own target; afterwards something was trained.
    assert max(record.retain_losses) > 0 or ours.steps == 1


def stored_state(model, folder):
    """A model's tensors by the names its checkpoint has."""
    from safetensors.torch import load_file

    model.save_pretrained(folder / "after")
    return load_file(folder / "after" / "model.safetensors")
