"""The settings that `make methods-table` tries of each method on the demo's model, three of each.

Rates are those of a tiny model, far from what a large one takes. Where a loss on forget text may move the whole model,
the budget of divergence is spent before anything is forgotten unless the retain loss weighs ten times as much and more;
and with cross-entropy for it, the budget is spent on learning the retain text better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wmdp_fast.demo import world
from wmdp_fast.demo.world import DOMAINS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What all methods that take steps share; the model is in float32.
STEPS: Mapping[str, Any] = {"batch_size": 4, "max_steps": 120, "save_every": 0}


def _rates(*rates: float, **settings: Any) -> list[dict[str, Any]]:
    return [{**STEPS, **settings, "learning_rate": rate} for rate in rates]


def _held(*pairs: tuple[float, float], **settings: Any) -> list[dict[str, Any]]:
    """Learning rates, each with a weight of the divergence from the original that holds such steps on retain text."""
    return [_rates(rate, **settings, retain_loss="kl", retain_weight=weight)[0] for rate, weight in pairs]


GRIDS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "rmu": _rates(
        *(5e-4, 1e-3, 2e-3),
        layer_id=1,
        update_layer_ids=(0, 1),
        parameters="proj",
        mode="masked",
        steering_coeff="auto:10",
        alpha=300.0,
    ),
    "rr": _rates(1e-3, 3e-3, 6e-3, target_layers=(1, 3)),
    "elm": [
        {**one, "retain_weight": weight}
        for rate, weight in ((1e-4, 1.0), (3e-4, 10.0), (6e-4, 30.0))
        for one in _rates(
            rate,
            update_layer_ids=(0, 1, 2, 3),
            expert_prefix=world.description(DOMAINS["forget"].subject),
            novice_prefix=world.description(DOMAINS["retain"].subject),
            fluency_tokens=32,  # about as long as a document
        )
    ],
    "ssd": [{"threshold": threshold, "num_documents": 96} for threshold in (1.0, 2.0, 5.0)],
    **{
        name: _held((6e-4, 1.0), (2e-3, 10.0), (4e-3, 20.0))
        for name in ("graddiff", "npo", "simnpo", "npo_sam", "llmu")
    },
    "scrub": [
        {**one, "kl_weight": weight}
        for rate, weight in ((6e-4, 3.0), (2e-3, 10.0), (4e-3, 20.0))
        for one in _rates(rate, retain_weight=0.0)
    ],
    "finetune": _rates(2e-4, 6e-4, 2e-3),
}
