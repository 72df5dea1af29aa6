"""What published runs have in common that presets of several methods repeat."""

from __future__ import annotations

from typing import Any

UNLEARN_SIMPLE = "Fan et al. 2024 (arXiv:2410.07163), WMDP configurations of OPTML-Group/Unlearn-Simple"


def unlearn_simple(**own: Any) -> dict[str, Any]:
    """The settings of all its WMDP runs, and a method's own. A step is four batches of one document."""
    return {
        "parameters": "all",
        "reduction": "batch_mean_padded",
        "retain_weight": 1.0,
        "batch_size": 1,
        "grad_accum": 4,
        "max_steps": 500,
        "max_length": (512,),
        "retain_max_length": 512,
        "min_chars": 50,
        "schedule": "linear",
        "warmup": 0.1,
        "grad_clip": 1.0,
        "master_weights": False,
        **own,
    }
