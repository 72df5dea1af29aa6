"""RMU as it was first written down, in the plainest form: two whole models, a hook, nothing frozen, nothing shared.

Li et al. 2024 (arXiv:2403.03218), with the arithmetic of the authors' program where that differs from the paper. There
the mean of the loss runs over padding too; the optimizer is transformers' former AdamW, which adds its epsilon before
it corrects the bias and keeps its moments in the dtype of the weights; every parameter collects gradients though few
are trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM


@dataclass
class Record:
    """What a run leaves: the trained model, the control vectors [1, 1, d], and the losses of each step."""

    model: nn.Module
    control_vectors: list[torch.Tensor]
    forget_losses: list[float] = field(default_factory=list)
    retain_losses: list[float] = field(default_factory=list)


class OldAdamW:
    """AdamW of transformers 4.38 without weight decay: `denominator = sqrt(v) + eps`, and only then bias correction."""

    def __init__(self, parameters, lr, betas=(0.9, 0.999), eps=1e-6):
        self.parameters = list(parameters)
        self.lr, self.betas, self.eps = lr, betas, eps
        self.time = 0
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self):
        self.time += 1
        b1, b2 = self.betas
        rate = self.lr * math.sqrt(1 - b2**self.time) / (1 - b1**self.time)
        for parameter, m, v in zip(self.parameters, self.first, self.second, strict=True):
            gradient = parameter.grad
            m.mul_(b1).add_(gradient, alpha=1 - b1)
            v.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            parameter.addcdiv_(m, v.sqrt() + self.eps, value=-rate)

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad = None


def left_padded(documents, pad_id):
    """input_ids and attention_mask [B, S] of token lists, padded on the left to the longest."""
    longest = max(len(document) for document in documents)
    rows = [[pad_id] * (longest - len(document)) + list(document) for document in documents]
    masks = [[0] * (longest - len(document)) + [1] * len(document) for document in documents]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def batches_of(documents, batch_size, max_length):
    documents = [list(document)[:max_length] for document in documents]
    return [documents[start : start + batch_size] for start in range(0, len(documents), batch_size)]


def hidden_states(model, layer, inputs):
    """The output of a decoder layer, caught by a hook while the whole model runs."""
    caught = []

    def hook(_module, _inputs, output):
        caught.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(hook)
    model(**inputs)
    handle.remove()
    return caught[0]


def rmu(
    folder,
    forget,
    retain,
    *,
    layer_id,
    update,
    steering_coeffs,
    alphas,
    lr,
    batch_size,
    max_steps,
    forget_max_lengths,
    retain_max_length,
    pad_id,
    seed=0,
    dtype="auto",
    truncated=False,
):
    """Runs the original algorithm.

    Args:
        folder: The checkpoint; it is read twice.
        forget: For each topic, its documents as lists of tokens.
        retain: The same for the retain data.
        update: Names of the trained parameters, as `named_parameters` of the whole model has them.
        truncated: Cut both models off after `layer_id` and leave out the head, and nothing else.

    Returns:
        The updated model and what was seen on the way.
    """
    # Before transformers 5.21 torch's attention leaves Gemma 2's soft cap out without a word.
    own = {"attn_implementation": "eager"} if AutoConfig.from_pretrained(folder).model_type == "gemma2" else {}
    updated = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **own)
    frozen = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **own)
    updated.train()
    frozen.eval()
    torch.manual_seed(seed)
    vectors = []
    for coefficient in steering_coeffs:
        direction = torch.rand(1, 1, updated.config.hidden_size, dtype=updated.dtype)
        vectors.append(direction / torch.norm(direction) * coefficient)

    run_updated, run_frozen = updated, frozen
    if truncated:
        for model in (updated, frozen):
            base = model.base_model
            base.layers = base.layers[: layer_id + 1]
            base.config.num_hidden_layers = layer_id + 1
        run_updated, run_frozen = updated.base_model, frozen.base_model
    updated_layer = updated.base_model.layers[layer_id]
    frozen_layer = frozen.base_model.layers[layer_id]

    by_name = dict(updated.named_parameters())
    optimizer = OldAdamW([by_name[name] for name in update], lr)

    forget_batches = [
        batches_of(topic, batch_size, length) for topic, length in zip(forget, forget_max_lengths, strict=True)
    ]
    retain_batches = [batches_of(topic, batch_size, retain_max_length) for topic in retain]
    steps = min([max_steps, *(len(batches) for batches in (*forget_batches, *retain_batches))])

    record = Record(updated, vectors)
    for step in range(steps):
        topic, index = step % len(forget), step // len(forget)
        forget_inputs = left_padded(forget_batches[topic][index], pad_id)
        retain_inputs = left_padded(retain_batches[topic][index], pad_id)

        steered = hidden_states(run_updated, updated_layer, forget_inputs)
        forget_loss = F.mse_loss(steered, vectors[topic].expand_as(steered))

        kept = hidden_states(run_updated, updated_layer, retain_inputs)
        with torch.no_grad():
            original = hidden_states(run_frozen, frozen_layer, retain_inputs)
        retain_loss = F.mse_loss(kept, original) * alphas[topic]

        (forget_loss + retain_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        record.forget_losses.append(forget_loss.item())
        record.retain_losses.append(retain_loss.item())
    return record


def masked_losses(steered, control, kept, original, forget_mask, retain_mask, alpha):
    """The two losses over real tokens only, by loops: the mean squared difference over tokens and hidden dimensions."""

    def mean(first, second, mask):
        total, count = 0.0, 0
        for row in range(first.shape[0]):
            for position in range(first.shape[1]):
                if mask[row, position]:
                    total += ((first[row, position] - second[row, position]) ** 2).sum().item()
                    count += first.shape[2]
        return total / count

    return mean(steered, control.expand_as(steered), forget_mask), mean(kept, original, retain_mask) * alpha
