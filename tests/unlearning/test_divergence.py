"""Runs whose numbers become infinite or NaN end with what to lower; nothing of them is taken for a result."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wmdp_fast as wf
from tests.support import unlearning_runs as runs
from wmdp_fast import cli
from wmdp_fast.exceptions import DivergedError, ModelError
from wmdp_fast.runtime import strict_json
from wmdp_fast.unlearning import divergence, optim
from wmdp_fast.unlearning.rmu.config import RMUConfig

SETTINGS = {
    "layer_id": 2,
    "steering_coeff": 2.0,
    "alpha": 50.0,
    "batch_size": 2,
    "max_steps": 12,
    "max_length": 30,
    "save_every": 2,
}


def strict(text):
    """What a reader that knows only JSON makes of a text."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("dtype", "other", "says"),
    [
        (torch.float16, {"learning_rate": 1.0}, r"lower the learning rate \(now 1\).*leave float16"),
        (torch.float32, {"learning_rate": 1e38}, r"at step [12]: .*lower the learning rate \(now 1e\+38\)"),
        (torch.float32, {"alpha": 1e38, "learning_rate": 1.0}, r"learning rate.*alpha \(now 1e\+38\)"),
        (torch.bfloat16, {"steering_coeff": 1e30}, r"at step 1: forget_loss inf.*; lower alpha.*steering coefficient"),
    ],
)
@pytest.mark.parametrize("mode", ["reference", "masked"])
def test_a_diverged_run_ends_with_what_to_lower_and_no_checkpoint(tmp_path, dtype, other, says, mode):
    base = runs.saved_model(tmp_path / "base", "llama", dtype)
    config = RMUConfig(**{**SETTINGS, "save_every": 0, "mode": mode, **other})
    with pytest.raises(DivergedError, match=says) as caught:
        runs.unlearn(base, config, output=tmp_path / "out")
    assert 1 <= caught.value.step <= 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_the_last_good_state_is_kept_and_gives_the_checkpoint_of_its_step(tmp_path, monkeypatch):
    base = runs.saved_model(tmp_path / "base", "llama")
    config = RMUConfig(**SETTINGS, learning_rate=1e-3)
    step = optim.AdamW.step

    def explode_at_seven(self, gradients):
        self.learning_rate = 1e38 if self.steps == 6 else self.learning_rate
        step(self, gradients)

    with monkeypatch.context() as patch:
        patch.setattr(optim.AdamW, "step", explode_at_seven)
        with pytest.raises(DivergedError, match=r"at step [78]") as caught:
            runs.unlearn(base, config, output=tmp_path / "out")
    work = tmp_path / "out.unlearning"
    assert "the state after step 6 is kept" in caught.value.__notes__[0]
    lines = [strict(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, caught.value.step + 1))
    assert not (tmp_path / "out").exists()
    # What exploded here was no setting, so the run can go on; it ends as one that never did.
    resumed = runs.unlearn(base, config, output=tmp_path / "out", resume=True)
    straight = runs.unlearn(base, config, output=tmp_path / "straight")
    for name, tensor in straight.tensors.items():
        assert torch.equal(resumed.tensors[name], tensor)
    assert [row["step"] for row in resumed.metrics] == list(range(1, 13))


def test_a_model_in_memory_gets_its_weights_back():
    model = runs.model("llama", torch.float16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DivergedError):
        runs.unlearn(model, RMUConfig(**SETTINGS, learning_rate=1.0))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("coefficient", [2.0, "auto"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_without_numbers_is_named_and_not_the_settings(tmp_path, coefficient, value):
    model = runs.model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = value
    model.save_pretrained(tmp_path / "base")
    config = RMUConfig(**{**SETTINGS, "steering_coeff": coefficient})
    with pytest.raises(ModelError, match="before anything is trained; are its weights finite"):
        runs.unlearn(tmp_path / "base", config, output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_in_a_sweep_it_is_one_failed_run_and_every_line_is_json(tmp_path):
    from tests.support.unlearning_runs import CONFIG

    result = sweep(tmp_path, over={"learning_rate": [1e38, 1e-3], "max_steps": [1, 3]}, config=CONFIG)
    failed = [run.failed is not None for run in result.runs]
    assert failed == [True, True, False, False]
    assert "lower the learning rate (now 1e+38)" in result.runs[1].failed
    for line in (tmp_path / "sweep" / "runs.jsonl").read_text().splitlines():
        strict(line)


def sweep(tmp_path, **options):
    from tests.support import tokenizers_zoo

    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.save_pretrained(tmp_path / "base")
    tokenizers_zoo.tokenizer("llama3").save_pretrained(tmp_path / "base")
    rows = [{"question": f"What is {i}?", "choices": ["an owl", "a jay"], "answer": i % 2} for i in range(4)]
    (tmp_path / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return wf.sweep(
        tmp_path / "base",
        forget=runs.corpus(runs.documents(1), "forget"),
        retain=runs.corpus(runs.documents(2), "retain"),
        forget_tasks=str(tmp_path / "birds.jsonl"),
        retain_tasks=str(tmp_path / "birds.jsonl"),
        output=tmp_path / "sweep",
        progress=False,
        **options,
    )


def test_the_command_fails_with_one_line(tmp_path, capsys):
    from wmdp_fast import demo

    corpora = [word for kind in ("forget", "retain") for word in (f"--{kind}", str(demo.corpus_path(kind)))]
    command = ["unlearn", str(demo.model_path()), *corpora, "--output", str(tmp_path / "out"), "--quiet"]
    command += ["--layer-id", "1", "--max-steps", "5", "--learning-rate", "1e30", "--dtype", "float32"]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert re.search(r"^error: unlearning diverged at step [12]: .*lower the learning rate \(now 1e\+30\)", error, re.M)
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=9))
def test_the_largest_weight_is_finite_where_all_are(values):
    tensor = torch.tensor(values, dtype=torch.float32)
    largest = float(divergence.largest_weight([torch.zeros(2), tensor]))
    expected = np.abs(np.array(values, dtype=np.float32)).max()
    assert (np.isnan(largest) and np.isnan(expected)) or largest == expected


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_every_value_is_written_as_json_and_finite_ones_unchanged(value):
    text = strict_json.dumps(value)
    assert strict_json.dumps(strict(text)) == text
    if "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value):
        assert json.loads(text) == value
