"""Runs that are killed, at moments of every kind, and go on: to the same bytes as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import unlearning_runs as runs
from tests.support.killed_runs import MOMENTS, run
from wmdp_fast.unlearning.methods.npo import NPOConfig
from wmdp_fast.unlearning.methods.rr import RRConfig

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.unlearning.training_config import TrainingConfig

SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 2,
    "max_steps": 12,
    "max_length": 12,
    "retain_max_length": 12,
    "parameters": "mlp.down_proj",
    "save_every": 2,
}
CONFIGS = (NPOConfig(**SETTINGS, retain_loss="kl"), RRConfig(**SETTINGS, target_layers=(1, 2)))

# So many events of a kind pass at most before one is the last; few enough that steps are left for what follows.
MOST = {"forward": 40, "backward": 12, "step": 2, "measurement": 1, "half a state": 1, "state": 1, "checkpoint": 0}
TIMES = {"seconds", "tokens_per_second", "peak_memory_mb"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = runs.folder_with_tokenizer(tmp_path_factory.mktemp("killed") / "base", "llama")
    texts = [f"The wren sings at dawn, and {count} owls hoot at night." for count in range(6)]
    (folder / "general.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method_name)
def test_killed_at_moments_of_every_kind_it_ends_in_the_same_bytes(
    config: TrainingConfig, base: Path, tmp_path: Path
) -> None:
    straight, out = tmp_path / "straight", tmp_path / "out"
    assert run(base, config, straight) == 0
    drawn = random.Random(config.method_name)
    kinds = [*drawn.sample(MOMENTS[:-1], len(MOMENTS) - 1), MOMENTS[-1]]
    for kind in kinds:
        count = drawn.randint(0, MOST[kind])
        assert run(base, config, out, (kind, count)) == -signal.SIGKILL, (kind, count)
        assert not out.exists()
    assert run(base, config, out) == 0
    for name in ("delta.safetensors", "model.safetensors"):
        assert (out / name).read_bytes() == (straight / name).read_bytes()
    rows, expected = (
        [
            {name: value for name, value in json.loads(line).items() if name not in TIMES}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (out, straight)
    )
    assert rows == expected
    assert len(rows) == 12
    records = [json.loads((folder / "unlearn.json").read_text()) for folder in (out, straight)]
    for name in ("steps", "best_step", "effects", "budget"):
        assert records[0][name] == records[1][name]
