"""A method of unlearning of one's own: gradient ascent up to a ceiling, with a term that keeps retain text likely.

From Python as below, or `wmdp-fast unlearn MODEL --method own_method.py:CeilingConfig --set ceiling=8 ...`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import wmdp_fast as wf
from wmdp_fast import demo


@dataclass(frozen=True, kw_only=True)
class CeilingConfig(wf.TrainingConfig):
    """What can be set: all that a `TrainingConfig` has, and the ceiling in nats a token."""

    method_name: ClassVar[str] = "ceiling"
    search_axes: ClassVar[tuple[wf.SearchAxis, ...]] = (wf.SearchAxis("ceiling"), *wf.TrainingConfig.search_axes)
    ceiling: float = 6.0

    def method(self, setup: wf.Setup) -> wf.Method:
        """What the trainer runs."""
        return Ceiling(setup, self.ceiling)

    def trained_layers(self, num_layers: int, /) -> Sequence[int]:
        """All of them."""
        return range(num_layers)


class Ceiling(wf.Method):
    """The method on one model, of which `setup` has what a step needs."""

    metrics = ("forget_loss", "retain_loss")

    def __init__(self, setup: wf.Setup, ceiling: float) -> None:
        self.setup, self.ceiling = setup, ceiling

    def step(self, given: wf.StepInput) -> wf.StepOutput:
        """The gradients of a step's loss by parameter, and what `metrics` names."""
        losses = torch.stack([torch.stack([self.loss(batch) for batch in pair]) for pair in given.pairs]).mean(0)
        loss = losses[1] - losses[0].clamp_max(self.ceiling)
        gradients = torch.autograd.grad(loss, list(self.setup.trained.values()))
        return wf.StepOutput(dict(zip(self.setup.trained, gradients, strict=True)), losses.detach())

    def loss(self, batch: Any) -> torch.Tensor:
        """Nats per token; a document's first token, which follows padding, is not predicted."""
        logits = self.setup.model(**batch.inputs, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        targets = batch.inputs["input_ids"][:, 1:].masked_fill(batch.attention_mask[:, :-1] == 0, -100)
        return torch.nn.functional.cross_entropy(logits, targets.flatten())

    def card(self, _record: Mapping[str, Any]) -> wf.CardText:
        """What the model card says of it."""
        return wf.CardText(
            method="gradient ascent up to a ceiling",
            summary=f"Forget text was made unlikely, up to {self.ceiling:g} nats a token.",
            change="What it knew is still in its weights.",
            ways_back=("by fine-tuning on a handful of texts",),
        )


if __name__ == "__main__":
    corpora = {domain: demo.corpus_path(domain) for domain in ("forget", "retain")}
    config = CeilingConfig(ceiling=8.0, learning_rate=1e-3, max_steps=8, max_length=64, dtype="float32")
    result = wf.unlearn(demo.model_path(), **corpora, config=config, progress=False)
    first, last = result.metrics[0], result.metrics[-1]
    print(f"forget loss {first['forget_loss']:.2f} -> {last['forget_loss']:.2f} nats a token")
    print(f"retain loss {first['retain_loss']:.2f} -> {last['retain_loss']:.2f} nats a token")
