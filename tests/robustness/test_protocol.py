"""An attack as the protocol has it: weight noise, whose result is evaluated like any model."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

import wmdp_fast as wf
from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from wmdp_fast.models.load import load_model
from wmdp_fast.robustness.protocol import Access, Attack, AttackedModel, AttackRecord, Material, Target

if TYPE_CHECKING:
    from pathlib import Path


class WeightNoise:
    """Adds to each weight noise of a share of its matrix's root mean square."""

    name = "weight noise"
    access: Access = "weights"
    needs_original = False

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def run(self, target: Target, _material: Material, /, *, seed: int) -> AttackedModel:
        loaded = load_model(str(target.checkpoint), device="cpu")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(self.scale * parameter.pow(2).mean().sqrt() * noise)
        record = AttackRecord(attack=self.name, settings={"scale": self.scale, "seed": seed})
        return AttackedModel(model=loaded.model, tokenizer=loaded.tokenizer, record=record)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_an_attack_gives_a_model_to_evaluate_and_a_record(tmp_path: Path) -> None:
    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.save_pretrained(tmp_path / "base")
    tokenizers_zoo.tokenizer("llama3").save_pretrained(tmp_path / "base")
    rows = [{"question": f"What is {i}?", "choices": ["a wren", "an owl"], "answer": i % 2} for i in range(8)]
    (tmp_path / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = digests(tmp_path / "base")
    attack: Attack = WeightNoise(0.5)
    target = Target(name="base", checkpoint=tmp_path / "base")

    def scores(attacked: AttackedModel) -> list[float]:
        result = wf.evaluate(
            attacked.model,
            tokenizer=attacked.tokenizer,
            tasks=str(tmp_path / "birds.jsonl"),
            template="mmlu",
            progress=False,
            **attacked.eval_options,
        )
        return result["birds"].outcome.loglikelihood.tolist()

    first, again, other = (attack.run(target, Material(), seed=seed) for seed in (1, 1, 2))
    assert scores(first) == scores(again) != scores(other)
    assert first.record.settings == {"scale": 0.5, "seed": 1}
    assert digests(tmp_path / "base") == before
