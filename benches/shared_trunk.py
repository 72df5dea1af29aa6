"""Models in one call that have their lowest layers in common: with and without running these once.

    OMP_NUM_THREADS=1 python benches/shared_trunk.py MODEL FOLDER [--adapted-from 20 --tasks NAMES --data DIR --limit N]

It makes three LoRA adapters on the layers from one on, and two deltas of a few RMU steps on layers 5 to 7, in FOLDER
(once), scores the adapters, and the model and its deltas, with and without, and compares the scores to the bit. Seconds
are the process's own, which on one thread change little beside other work, and those on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast import RMUConfig, demo, unlearn
from wmdp_fast.scoring import trunk
from wmdp_fast.several_models import ModelSpec, evaluate_many

if TYPE_CHECKING:
    from collections.abc import Sequence


def make_adapters(model: str, folder: Path, adapted_from: int) -> list[ModelSpec]:
    """Adapters with random factors of a size at which the model still answers."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    for number in range(3):
        if (folder / f"adapter-{number}").is_dir():
            continue
        base = AutoModelForCausalLM.from_pretrained(model)
        torch.manual_seed(number)
        config = peft.LoraConfig(
            r=8,
            target_modules=["q_proj", "v_proj", "down_proj"],
            layers_to_transform=list(range(adapted_from, base.config.num_hidden_layers)),
            lora_alpha=0.1,
            init_lora_weights=False,
        )
        peft.get_peft_model(base, config).save_pretrained(folder / f"adapter-{number}")
    return [ModelSpec(model, peft=folder / f"adapter-{number}") for number in range(3)]


def make_deltas(model: str, folder: Path) -> list[ModelSpec]:
    """A model, and what a few steps of RMU make of it."""
    corpora: dict[str, Any] = {name: demo.corpus_path(name) for name in ("forget", "retain")}
    for seed in range(2):
        config = RMUConfig(layer_id=7, max_steps=4, batch_size=1, max_length=64, retain_max_length=64, seed=seed)
        if not (folder / f"unlearned-{seed}").is_dir():
            unlearn(model, **corpora, config=config, output=folder / f"unlearned-{seed}", device="cpu", progress=False)
    return [ModelSpec(model), *(ModelSpec(f"{model}+{folder / f'unlearned-{seed}'}") for seed in range(2))]


def measure(what: str, specs: Sequence[ModelSpec], options: dict[str, Any]) -> None:
    """Scores models with and without, twice in turn."""
    before: list[Any] = []
    for with_trunk in (True, False) * 2:
        # Without, no run has tokens enough.
        trunk._LEAST_TOKENS = 1000 if with_trunk else 10**18
        processor, wall, scores, told = [], [], [], []
        models = evaluate_many(specs, **options)
        for _ in specs:
            begun, used = time.perf_counter(), time.process_time()
            scored = next(models)
            processor.append(f"{time.process_time() - used:.1f}")
            wall.append(f"{time.perf_counter() - begun:.1f}")
            if scored.result is None or scored.error is not None:
                raise scored.error or RuntimeError(f"{scored.spec} has no result")
            scores += [task.outcome.loglikelihood for task in scored.result.tasks.values()]
            told.append(scored.result.details["shared_trunk"]["states"])
        same = not before or all(np.array_equal(one, other) for one, other in zip(before, scores, strict=True))
        before = scores
        load = os.getloadavg()[0]
        print(f"{what}, states {told}: processor {', '.join(processor)} s, wall {', '.join(wall)} s, load {load:.1f}")
        print("scores are equal" if same else "SCORES DIFFER", flush=True)


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapted-from", type=int, default=20)
    parser.add_argument("--tasks", default="mmlu_astronomy")
    parser.add_argument("--data", default=None)
    parser.add_argument("--limit", type=int, default=100)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    options = {"tasks": given.tasks, "data": given.data, "limit": given.limit}
    options |= {"dtype": "float32", "device": "cpu", "progress": False}
    print(json.dumps({**options, "adapted from layer": given.adapted_from}))
    measure("adapters", make_adapters(given.model, given.folder, given.adapted_from), options)
    measure("deltas", make_deltas(given.model, given.folder), options)


if __name__ == "__main__":
    main()
