"""Published settings of RMU by name, each with its source and what is known of it.

A preset gives the fields of `RMUConfig` that its source states, and no others. Settings belong to a model: a steering
coefficient means something only beside the norm of the activations it replaces (`wmdp-fast layers` measures that), and
settings that work for one number of steps need not for another.

Example:
    >>> from wmdp_fast import RMUConfig, presets
    >>> RMUConfig(**presets["zephyr-7b"].settings).layer_id
    7
"""

from __future__ import annotations

from typing import Any

from wmdp_fast.unlearning.preset import PER_TOPIC, Preset

__all__ = ["PER_TOPIC", "PRESETS", "Preset", "preset"]

_CAIS = "Li et al. 2024 (arXiv:2403.03218), notebooks of centerforaisafety/wmdp"

# What the original does whatever the model: two topics, of which the second is cut at a later token.
_ORIGINAL: dict[str, Any] = {
    "parameters": "mlp.down_proj",
    "learning_rate": 5e-5,
    "max_length": (512, 768),
}


def _around(layer_id: int) -> dict[str, Any]:
    """The steered layer, updated together with the two below it."""
    return {"layer_id": layer_id, "update_layer_ids": (layer_id - 2, layer_id - 1, layer_id)}


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "zephyr-7b",
            "HuggingFaceH4/zephyr-7b-beta",
            {
                **_ORIGINAL,
                **_around(7),
                "steering_coeff": (6.5, 6.5),
                "alpha": (1200.0, 1200.0),
                "batch_size": 4,
                "max_steps": 150,
                "min_chars": 0,
            },
            _CAIS,
            "For bio and cyber with wikitext as both retain corpora. WMDP bio 63.7 -> 31.2, cyber 44.0 -> 28.2,"
            " MMLU 58.1 -> 57.1. The cyber corpus was read as raw lines of JSON, and padding counted in the loss.",
        ),
        Preset(
            "yi-34b",
            "01-ai/Yi-34B-Chat",
            {
                **_ORIGINAL,
                **_around(15),
                "steering_coeff": (300.0, 300.0),
                "alpha": (350.0, 350.0),
                "batch_size": 2,
                "max_steps": 400,
                "min_chars": 0,
            },
            _CAIS,
            "WMDP bio 75.3 -> 30.7, cyber 49.7 -> 29.0, MMLU 72.6 -> 70.6. 400 steps are the notebook's; the"
            " paper tells of a search over 150, 300 and 500, and others cite 150. The forget loss stays flat for"
            " some 200 steps, then falls.",
        ),
        Preset(
            "mixtral-8x7b",
            "mistralai/Mixtral-8x7B-Instruct-v0.1",
            {
                **_ORIGINAL,
                **_around(7),
                "steering_coeff": (300.0, 300.0),
                "alpha": (1600.0, 1600.0),
                "batch_size": 2,
                "max_steps": 400,
                "min_chars": 200,
            },
            _CAIS,
            "WMDP bio 74.8 -> 34.0, cyber 52.0 -> 30.8, MMLU 68.2 -> 67.1. There the parameter with index 7 was"
            " trained, which was one matrix (w3) of the first expert of each layer; here it is the down projection"
            " of all experts, so results will differ. 400 steps are the notebook's.",
        ),
        Preset(
            "llama-3-8b",
            "meta-llama/Meta-Llama-3-8B-Instruct",
            {
                **_around(7),
                "parameters": "mlp.down_proj",
                "steering_coeff": (20.0,),
                "alpha": (90.0,),
                "learning_rate": 5e-5,
                "batch_size": 8,
            },
            "checkpoints of LLM-GAT on the Hugging Face hub",
            "The number of steps is not published. Others used alpha 100 and a batch of 4 (zorache on the hub).",
        ),
        Preset(
            "llama-3.1-8b",
            "meta-llama/Llama-3.1-8B",
            {**_around(15), "parameters": "mlp.down_proj", "steering_coeff": (30.0,), "alpha": (350.0,)},
            "the RMU baseline of GRUN",
            "Only layers, coefficient and alpha are published.",
        ),
        Preset(
            "mistral-7b",
            "mistralai/Mistral-7B-v0.1",
            {
                **_around(15),
                "parameters": "mlp.down_proj",
                "steering_coeff": (27.0,),
                "alpha": (1600.0,),
                "min_chars": 200,
            },
            "the RMU baseline of GRUN",
            "Only the layer, coefficient, alpha and least length are published; that the two layers below are"
            " updated too is RMU's rule.",
        ),
        Preset(
            "llama-3.2-1b",
            "meta-llama/Llama-3.2-1B-Instruct",
            {**_around(6), "parameters": "self_attn.o_proj", "steering_coeff": (53.4,), "alpha": (1883.0,)},
            "jeanne-s/wmdp_rec, found by a search over layers, alpha 300 to 2,000 and coefficients 1 to 300",
            "The scores of the result are not published. It trains the attention's output, not the down projection.",
        ),
        Preset(
            "gemma-2-2b",
            "google/gemma-2-2b",
            {**_around(7), "parameters": "mlp.down_proj", "steering_coeff": (400.0,), "alpha": (300.0,)},
            "models of AMindToThink on the Hugging Face hub",
            "One of a grid over layers 3 and 7, coefficients 100 to 400 and alpha 100 and 300, read off the"
            " models' names.",
        ),
        Preset(
            "deep-ignorance-7b",
            "EleutherAI/deep-ignorance-unfiltered",
            {
                **_around(13),
                "parameters": "mlp.down_proj",
                "steering_coeff": (20.0,),
                "alpha": (1000.0,),
                "learning_rate": 2e-5,
                "batch_size": 32,
                "max_length": (2048,),
                "grad_clip": 1.0,
            },
            "a model of girishgupta on the Hugging Face hub",
            "The window is narrow: with a coefficient of 21 in place of 20, or twice the data, MMLU fell from"
            " 0.40 to 0.27.",
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: There is none; names those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
